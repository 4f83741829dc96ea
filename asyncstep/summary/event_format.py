"""Summaries as TensorBoard's events: records of the protocol buffers ``Event`` and ``Summary``, written by hand.

Each field is its number and kind in one varint, then the value: a varint, 4 or 8 bytes, or bytes after their length.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable
from functools import lru_cache

from asyncstep.summary.record import framed
from asyncstep.summary.values import Histogram, Image

__all__ = ["EventFormat", "varint"]

_START = 1  # SessionLog.SessionStatus.START
_STRINGS = 7  # DataType.DT_STRING
_TENSOR = 2  # DataClass.DATA_CLASS_TENSOR

_SINGLE_BYTES = tuple(bytes((number,)) for number in range(0x80))


class EventFormat:
    """Makes the records of an event file."""

    prefix = "events.out.tfevents."
    suffix = ""

    def head(self, wall_time: float) -> bytes:
        """The first record: the version, by which TensorBoard knows what a start means."""
        source = _bytes(10, _bytes(1, b"asyncstep"))  # Event.source_metadata.writer
        return framed(_double(1, wall_time) + _bytes(3, b"brain.Event:2") + source)

    def start(self, step: int, wall_time: float) -> bytes:
        """From here on the steps from `step` on are made (again): what there is of them is dropped."""
        return framed(_event(step, wall_time) + _bytes(7, _integer(1, _START)))

    def scalar(self, tag: str, value: float, step: int, wall_time: float) -> bytes:
        """A number; the format has 4 bytes for it."""
        return _summary(step, wall_time, _tag(tag) + _float(2, value))

    def text(self, tag: str, text: str, step: int, wall_time: float) -> bytes:
        """A text, as the tensor that TensorBoard's text plugin reads."""
        tensor = _integer(1, _STRINGS) + _bytes(2, b"") + _bytes(8, _utf8(text))
        metadata = _bytes(1, _bytes(1, b"text")) + _integer(4, _TENSOR)
        return _summary(step, wall_time, _tag(tag) + _bytes(9, metadata) + _bytes(8, tensor))

    def histogram(self, tag: str, histogram: Histogram, step: int, wall_time: float) -> bytes:
        """A distribution."""
        content = b"".join(
            (
                _double(1, histogram.min),
                _double(2, histogram.max),
                _double(3, histogram.num),
                _double(4, histogram.sum),
                _double(5, histogram.sum_squares),
                _bytes(6, _doubles(histogram.limits)),
                _bytes(7, _doubles(histogram.counts)),
            )
        )
        return _summary(step, wall_time, _tag(tag) + _bytes(5, content))

    def image(self, tag: str, image: Image, step: int, wall_time: float) -> bytes:
        """A picture."""
        content = (
            _integer(1, image.height)
            + _integer(2, image.width)
            + _integer(3, image.channels)
            + _bytes(4, image.png)
        )
        return _summary(step, wall_time, _tag(tag) + _bytes(4, content))


def _event(step: int, wall_time: float) -> bytes:
    return _double(1, wall_time) + _integer(2, step)


def _summary(step: int, wall_time: float, value: bytes) -> bytes:
    """The record of an event with one value of a summary."""
    return framed(_event(step, wall_time) + _bytes(5, _bytes(1, value)))


@lru_cache(maxsize=1024)
def _tag(tag: str) -> bytes:
    return _bytes(1, _utf8(tag))


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "backslashreplace")  # half a surrogate pair is no text


def varint(number: int) -> bytes:
    """An integer, seven bits a byte, the lowest first; a negative one as its 64 bits."""
    if 0 <= number < 0x80:
        return _SINGLE_BYTES[number]
    number &= 0xFFFFFFFFFFFFFFFF
    content = bytearray()
    while number > 0x7F:
        content.append(number & 0x7F | 0x80)
        number >>= 7
    content.append(number)
    return bytes(content)


def _integer(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)


def _bytes(field: int, content: bytes) -> bytes:
    return varint(field << 3 | 2) + varint(len(content)) + content


def _double(field: int, value: float) -> bytes:
    return varint(field << 3 | 1) + struct.pack("<d", value)


def _doubles(values: Iterable[float]) -> bytes:
    return b"".join(struct.pack("<d", value) for value in values)


def _float(field: int, value: float) -> bytes:
    try:
        content = struct.pack("<f", value)
    except OverflowError:
        content = struct.pack("<f", math.copysign(math.inf, value))
    return varint(field << 3 | 5) + content
