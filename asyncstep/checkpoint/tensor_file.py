"""The layout of a safetensors file: eight bytes of length, a JSON header, the bytes of the tensors.

Written and read here, not by the safetensors library, so that arrays are written without a copy of them all,
and each is read into memory of its own while the file is hashed. Any safetensors reader can open the files.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import msgspec

from asyncstep.checkpoint.arrays import ITEM_SIZES, Stored
from asyncstep.errors import DataLossError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from asyncstep.checkpoint.arrays import Tensor
    from asyncstep.checkpoint.hashing import HashedReader

HEADER_LIMIT = 100_000_000
"""The longest header, as the safetensors library has it."""

MAX_DIMENSIONS = 64
"""As many as numpy allows."""

_ALIGNMENT = 8


class _Entry(msgspec.Struct, forbid_unknown_fields=True):
    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


def in_files(tensors: Mapping[str, Tensor], limit: int) -> list[dict[str, Tensor]]:
    """Which tensors go into which file: a new one where the last has reached `limit` bytes.

    Inside a file, tensors with larger items stand first, so that each is aligned to its items.
    """
    files: list[dict[str, Tensor]] = []
    size = limit
    for key, tensor in sorted(tensors.items(), key=lambda item: -ITEM_SIZES[item[1].dtype]):
        if size >= limit:
            files.append({})
            size = 0
        files[-1][key] = tensor
        size += tensor.size
    return files


def chunks(tensors: Mapping[str, Tensor]) -> Iterator[memoryview]:
    """The content of the file that holds these tensors."""
    header = {}
    offset = 0
    for key, tensor in tensors.items():
        header[key] = _Entry(tensor.dtype, list(tensor.shape), (offset, offset + tensor.size))
        offset += tensor.size
    encoded = msgspec.json.encode(header)
    encoded += b" " * (-len(encoded) % _ALIGNMENT)
    yield memoryview(len(encoded).to_bytes(8, "little") + encoded)
    for tensor in tensors.values():
        yield tensor.content()


def read(file: HashedReader, size: int) -> dict[str, Stored]:
    """The tensors of a file of `size` bytes; DataLossError if it is not as it should be.

    Nothing is allocated before it is known that the file is long enough for it.
    """
    stored = {}
    for key, entry in _read_header(file, size):
        content = _take(file, entry.data_offsets[1] - entry.data_offsets[0])
        stored[key] = Stored(entry.dtype, tuple(entry.shape), content)
    return stored


def _take(file: HashedReader, length: int) -> bytearray:
    content = bytearray(length)
    if not file.fill(memoryview(content)):
        raise DataLossError("it ends too early")
    return content


def _read_header(file: HashedReader, size: int) -> Sequence[tuple[str, _Entry]]:
    """The entries in the order of their bytes, which fill the rest of the file without a gap."""
    length = int.from_bytes(_take(file, min(8, size)), "little")
    if size < 8 or length > min(size - 8, HEADER_LIMIT):
        raise DataLossError(f"it claims a header of {length} bytes, and has {size} bytes in all")
    try:
        header = msgspec.json.decode(_take(file, length), type=dict[str, _Entry])
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise DataLossError(f"its header cannot be read: {error}") from None
    entries = sorted(header.items(), key=lambda item: item[1].data_offsets)
    end = 0
    for key, entry in entries:
        begin, stop = entry.data_offsets
        if begin != end or stop < begin or not _fits(entry, stop - begin):
            raise DataLossError(f"in its header the tensor {key!r} does not fit its place")
        end = stop
    if 8 + length + end != size:
        raise DataLossError(f"it has {size} bytes, and its header speaks of {8 + length + end}")
    return entries


def _fits(entry: _Entry, size: int) -> bool:
    item = ITEM_SIZES.get(entry.dtype)
    if item is None or len(entry.shape) > MAX_DIMENSIONS or any(length < 0 for length in entry.shape):
        return False
    return math.prod(entry.shape) * item == size
