"""How a record stands in an event file: its length and its bytes, each with a checksum (TensorFlow's TFRecord)."""

from __future__ import annotations

import struct
from functools import lru_cache

from asyncstep.summary.crc32c import crc32c

__all__ = ["framed", "masked_crc"]

_LENGTH = struct.Struct("<Q")
_CRC = struct.Struct("<I")
_DELTA = 0xA282EAD8


def framed(content: bytes) -> bytes:
    """One record."""
    return b"".join((_head(len(content)), content, _CRC.pack(masked_crc(content))))


@lru_cache(maxsize=1024)  # the records of scalars have few lengths
def _head(length: int) -> bytes:
    content = _LENGTH.pack(length)
    return content + _CRC.pack(masked_crc(content))


def masked_crc(content: bytes) -> int:
    """The checksum as the format has it: rotated and moved, for data that holds checksums itself."""
    crc = crc32c(content)
    return (((crc >> 15) | (crc << 17)) + _DELTA) & 0xFFFFFFFF
