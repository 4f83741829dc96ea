"""Bytes and their checksum in one pass."""

from __future__ import annotations

import hashlib
import io
import threading

import pytest
from hypothesis import given, settings, strategies as st

from asyncstep.checkpoint.hashing import CHUNK, HashedChunks, HashedReader


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.sampled_from([0, 1, 1000, 2**16 - 1, 2**16, 2**18, CHUNK - 1, CHUNK, 2 * CHUNK + 1]), max_size=6
    )
)
def test_the_checksum_is_that_of_all_bytes(lengths: list[int]) -> None:
    """Whatever the lengths of the buffers, the chunks are their bytes, none too long, and the checksum is theirs."""
    buffers = [bytes([index]) * length for index, length in enumerate(lengths)]
    whole = b"".join(buffers)
    with HashedChunks(map(memoryview, buffers)) as chunks:
        pieces = [bytes(chunk) for chunk in chunks]
        record = chunks.record()
    assert b"".join(pieces) == whole
    assert max(map(len, pieces), default=0) <= CHUNK + 2**16
    assert (record.size, record.sha256) == (len(whole), hashlib.sha256(whole).hexdigest())


def test_an_error_while_writing_leaves_no_thread() -> None:
    """If the disk fails, the hashing thread ends, too."""
    before = threading.active_count()
    with pytest.raises(OSError, match="full"), HashedChunks([memoryview(bytes(10 * CHUNK))]) as chunks:
        for _ in chunks:
            raise OSError("full")
    assert threading.active_count() == before


def test_reading_gives_the_same_record() -> None:
    """What is read in parts has the checksum of the whole; beyond the end there is nothing."""
    content = bytes(range(256)) * 100
    reader = HashedReader(io.BytesIO(content))
    parts = [bytearray(100), bytearray(len(content) - 100)]
    assert [reader.fill(memoryview(part)) for part in parts] == [True, True]
    assert b"".join(parts) == content
    assert reader.record().sha256 == hashlib.sha256(content).hexdigest()
    assert not reader.fill(memoryview(bytearray(1)))
