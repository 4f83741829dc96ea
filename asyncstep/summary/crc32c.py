"""CRC-32C, the checksum of records in event files.

The standard library has none. A record of a scalar has some sixty bytes, for which a table of 256 does; one of
a picture may have a million, and a loop over them would take the interpreter from the event loop for as long.
So with numpy long data is reduced by halves: the checksums of all single bytes are looked up at once, then
those of neighbours are combined, until there is one. numpy lets other threads run meanwhile.

The register of a CRC is linear: that of ``a + b`` is that of ``a`` shifted by the length of ``b``, xor that of
``b``. A start value is the same as xor with the first four bytes, and zeros in front of the rest change nothing.
"""

from __future__ import annotations

from functools import cache
from typing import Any

__all__ = ["crc32c"]

_POLYNOMIAL = 0x82F63B78  # Castagnoli's, with the bits reversed
_ONES = 0xFFFFFFFF
_LONG = 2048
_BLOCK = 1 << 16


def _entry(byte: int) -> int:
    for _ in range(8):
        byte = (byte >> 1) ^ (_POLYNOMIAL if byte & 1 else 0)
    return byte


_TABLE = tuple(map(_entry, range(256)))


def crc32c(data: bytes) -> int:
    """The CRC-32C of some bytes, as an unsigned number of 32 bits."""
    register = _ONES
    done = 0
    if len(data) >= _LONG:
        np = _numpy()
        while np is not None and len(data) - done >= _LONG:
            register = _reduced(np, data[done : done + _BLOCK], register)
            done += _BLOCK
    table = _TABLE
    for byte in data[done:] if done else data:
        register = table[(register ^ byte) & 0xFF] ^ (register >> 8)
    return register ^ _ONES


def _numpy() -> Any:
    """The module numpy; None where it is not installed."""
    try:
        import numpy
    except ImportError:
        return None
    return numpy


def _reduced(np: Any, data: bytes, register: int) -> int:
    """The register after at least four bytes."""
    content = np.frombuffer(data, np.uint8).copy()
    content[:4] ^= np.frombuffer(register.to_bytes(4, "little"), np.uint8)
    registers = _tables(np, 0)[-1][content]
    level = 0
    while len(registers) > 1:
        if len(registers) % 2:
            registers = np.concatenate((np.zeros(1, np.uint32), registers))
        registers = _shifted(_tables(np, level)[:4], registers[0::2]) ^ registers[1::2]
        level += 1
    return int(registers[0])


@cache
def _tables(np: Any, level: int) -> tuple[Any, ...]:
    """For each byte of a register: what becomes of it when ``2 ** level`` zeros follow; and the table of a byte."""
    single = np.array(_TABLE, np.uint32)
    if level == 0:
        byte = np.arange(256, dtype=np.uint32)
        # The lowest byte is looked up; the others move down by one.
        return (single, byte, byte << np.uint32(8), byte << np.uint32(16), single)
    half = _tables(np, level - 1)[:4]
    return (*(_shifted(half, part) for part in half), single)


def _shifted(tables: tuple[Any, ...], registers: Any) -> Any:
    low, second, third, high = tables
    return (
        low[registers & 0xFF]
        ^ second[registers >> 8 & 0xFF]
        ^ third[registers >> 16 & 0xFF]
        ^ high[registers >> 24]
    )
