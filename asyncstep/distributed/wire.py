"""What a message is while it is on its way: bytes, and the large buffers beside them."""

from __future__ import annotations

import pickle
from typing import Any

import cloudpickle
from distributed.protocol.serialize import ToPickle

LARGE = 64 * 1024
"""Bytes from which on a buffer (an array's memory) is sent from where it lies."""

Packed = tuple[bytes, Any]


def pack(message: Any, *, in_one: bool) -> Packed:
    """The bytes of a message, and its large buffers.

    The buffers are not copied, so what they belong to must not be changed until the message is answered.

    Args:
        message: plain data, or what cloudpickle takes.
        in_one: copy the buffers into the bytes. Needed where sender and receiver are one process: there buffers
            arrive as they are, and the two would share what can be changed.
    """
    buffers: list[pickle.PickleBuffer] = []

    def in_band(buffer: pickle.PickleBuffer) -> bool:
        if buffer.raw().nbytes < LARGE:
            return True
        buffers.append(buffer)
        return False

    callback = None if in_one else in_band
    try:
        payload = pickle.dumps(message, protocol=5, buffer_callback=callback)
    except Exception:  # pickle says so in many ways
        buffers.clear()
        payload = cloudpickle.dumps(message, protocol=5, buffer_callback=callback)
    # Dask pickles the list out of band again: what arrives are views of the memory that the socket was read into.
    return payload, ToPickle(buffers) if buffers else None


def unpack(payload: bytes, buffers: list[Any] | None) -> Any:
    """The message, whose arrays can be written to."""
    return pickle.loads(payload, buffers=[_writable(buffer) for buffer in buffers or ()])


def _writable(buffer: bytes | bytearray | memoryview) -> bytes | bytearray | memoryview:
    view = memoryview(buffer)
    return bytearray(view) if view.readonly else view
