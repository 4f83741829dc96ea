"""CRC-32C, byte by byte and by halves, against published values and TensorBoard's own."""

from __future__ import annotations

import random

import pytest
from hypothesis import example, given, settings, strategies as st
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

from asyncstep.summary import crc32c as module
from asyncstep.summary.crc32c import crc32c
from asyncstep.summary.record import masked_crc


@pytest.mark.parametrize(
    ("data", "crc"),
    [
        (b"", 0),
        (b"123456789", 0xE3069283),
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
    ],
    ids=["nothing", "digits", "zeros", "ones", "up", "down"],
)
def test_known_values(data: bytes, crc: int) -> None:
    """Those of RFC 3720, and the check value of the catalogues."""
    assert crc32c(data) == crc


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000) | st.sampled_from([2047, 2048, 65535, 65536, 65537, 65536 + 2048, 131_075]))
@example(2048)
@example(65536 + 2047)
def test_long_data_gives_the_same_by_halves_as_byte_by_byte(length: int) -> None:
    """With numpy and without it, the checksum of data of any length is the same, and TensorBoard's."""
    data = random.Random(length).randbytes(length)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_numpy", lambda: None)
        plain = crc32c(data)
    assert crc32c(data) == plain
    if length < 5000:  # TensorBoard's takes its time
        assert masked_crc(data) == masked_crc32c(data)


@given(st.binary(max_size=200))
def test_the_masked_one_is_tensorboards(data: bytes) -> None:
    """Records have the checksum by which TensorBoard checks them."""
    assert masked_crc(data) == masked_crc32c(data)
