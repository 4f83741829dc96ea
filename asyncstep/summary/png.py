"""Arrays -> pictures in PNG."""

from __future__ import annotations

import struct
import zlib
from typing import Any

from asyncstep.errors import InvalidArgumentError, InvalidTypeError
from asyncstep.summary.extras import numpy_for
from asyncstep.summary.values import Image

__all__ = ["image_of", "pixels_of"]

_COLOR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}
"""PNG's numbers for grey, grey and alpha, RGB, RGB and alpha, by the number of channels."""

_UP = 2  # each byte as the difference to the one above it


def pixels_of(tag: str, value: Any) -> Any:
    """The pixels as a numpy array of bytes of the shape (height, width, channels), in memory of its own.

    Raises:
        InvalidArgumentError: it has the shape of no picture.
        InvalidTypeError: the values are neither bytes, booleans nor floats.
    """
    np = numpy_for("an image")
    array = np.asarray(value)
    shaped = array[..., None] if array.ndim == 2 else array
    if shaped.ndim != 3 or shaped.shape[2] not in _COLOR_TYPES or not shaped.size:
        raise InvalidArgumentError(
            f"the image {tag!r} needs the shape (height, width) or (height, width, channels) with 1 to 4"
            f" channels, got {array.shape}"
        )
    if array.dtype.kind == "f":
        with np.errstate(invalid="ignore"):
            return (np.nan_to_num(shaped.clip(0.0, 1.0)) * 255.0 + 0.5).astype(np.uint8)
    if array.dtype == np.bool_:
        return shaped.astype(np.uint8) * np.uint8(255)
    if array.dtype != np.uint8:
        raise InvalidTypeError(
            f"the image {tag!r} needs bytes (uint8), booleans, or floats from 0 to 1, got dtype {array.dtype}"
        )
    return shaped.copy()


def image_of(tag: str, value: Any) -> Image:
    """The picture that an array is."""
    pixels = pixels_of(tag, value)
    height, width, channels = pixels.shape
    return Image(tag, width, height, channels, _png(pixels))


def _png(pixels: Any) -> bytes:
    np = numpy_for("an image")
    height, width, channels = pixels.shape
    lines = np.empty((height, 1 + width * channels), np.uint8)
    lines[:, 0] = _UP
    rows = pixels.reshape(height, -1)
    lines[0, 1:] = rows[0]
    np.subtract(rows[1:], rows[:-1], out=lines[1:, 1:])  # modulo 256, as PNG wants it
    header = struct.pack(">IIBBBBB", width, height, 8, _COLOR_TYPES[channels], 0, 0, 0)
    return b"".join(
        (
            b"\x89PNG\r\n\x1a\n",
            _chunk(b"IHDR", header),
            _chunk(b"IDAT", zlib.compress(lines)),
            _chunk(b"IEND", b""),
        )
    )


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
