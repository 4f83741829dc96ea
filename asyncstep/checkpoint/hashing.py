"""Bytes and their checksum in one pass, on the way to a file and from it."""

from __future__ import annotations

import hashlib
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Self

from asyncstep.checkpoint.manifest import FileRecord

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from types import TracebackType
    from typing import BinaryIO

CHUNK = 4 * 2**20
"""Bytes that are written, hashed and read at a time."""

_WORTH_A_THREAD = 2**18
_SHORT = 2**16

_AHEAD = 64
"""Chunks that may be written and not hashed yet; it bounds what copies of arrays take."""


class HashedChunks:
    """The chunks of a file, once, hashed while they are being written. Use it in a ``with``.

    Hashing 100 MB takes about as long as writing them, so chunks of some length are hashed by a thread of
    their own, beside the write and the fsync; the memory is not copied for it.
    """

    def __init__(self, buffers: Iterable[memoryview]) -> None:
        self._buffers = buffers
        self._hash = hashlib.sha256()
        self._size = 0
        self._pool: ThreadPoolExecutor | None = None
        self._pending: deque[Future[None]] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def __iter__(self) -> Iterator[memoryview]:
        for chunk in _chunks(self._buffers):
            self._size += len(chunk)
            self._update(chunk)
            yield chunk

    def record(self) -> FileRecord:
        """The file's length and checksum, when all chunks have been written."""
        for update in self._pending:
            update.result()
        return FileRecord(self._size, self._hash.hexdigest())

    def _update(self, chunk: memoryview) -> None:
        if self._pool is None:
            if len(chunk) < _WORTH_A_THREAD:
                self._hash.update(chunk)
                return
            self._pool = ThreadPoolExecutor(1, "asyncstep-hash")
        self._pending.append(self._pool.submit(self._hash.update, chunk))
        if len(self._pending) > _AHEAD:
            self._pending.popleft().result()


def _chunks(buffers: Iterable[memoryview]) -> Iterator[memoryview]:
    """Long buffers in pieces, short ones joined."""
    joined = bytearray()
    for buffer in buffers:
        if len(buffer) < _SHORT:
            joined += buffer
            if len(joined) < CHUNK:
                continue
        if joined:
            yield memoryview(joined)
            joined = bytearray()
        if len(buffer) >= _SHORT:
            for start in range(0, len(buffer), CHUNK):
                yield buffer[start : start + CHUNK]
    if joined:
        yield memoryview(joined)


class HashedReader:
    """A file that is hashed while it is read."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self._size = 0

    def fill(self, target: memoryview) -> bool:
        """Read as many bytes as `target` has; False if the file ends before."""
        done = 0
        while done < len(target):
            count = self._file.readinto(target[done : done + CHUNK])  # type: ignore[attr-defined]
            if not count:
                return False
            self._hash.update(target[done : done + count])
            done += count
        self._size += done
        return True

    def record(self) -> FileRecord:
        """Length and checksum of what has been read."""
        return FileRecord(self._size, self._hash.hexdigest())
