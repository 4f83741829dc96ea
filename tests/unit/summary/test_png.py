"""Arrays -> pictures, read back by Pillow."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies as st
from PIL import Image as Picture

from asyncstep.errors import InvalidArgumentError, InvalidTypeError
from asyncstep.summary.png import image_of


def pixels(value: Any) -> Any:
    """The pixels of the picture that is made of an array."""
    with Picture.open(io.BytesIO(image_of("i", value).png)) as picture:
        picture.load()
        return np.asarray(picture)


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_the_pixels_come_back(height: int, width: int, channels: int, seed: int) -> None:
    """A picture of any size and any number of channels comes back to the bit."""
    array = np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)
    made = image_of("i", array)
    assert (made.width, made.height, made.channels) == (width, height, channels)
    assert np.array_equal(pixels(array), array[..., 0] if channels == 1 else array)


def test_no_channels_are_grey() -> None:
    """An array of two dimensions is a grey picture."""
    array = np.arange(12, dtype=np.uint8).reshape(3, 4)
    assert np.array_equal(pixels(array), array)


def test_floats_are_from_0_to_1() -> None:
    """0 is black and 1 is white; beyond, values are clipped, and NaN is black."""
    assert pixels(np.array([[0.0, 0.5, 1.0, -3.0, 7.0, np.nan, np.inf]])).tolist() == [
        [0, 128, 255, 0, 255, 0, 255]
    ]


def test_booleans_are_black_and_white() -> None:
    """False is black."""
    assert pixels(np.array([[False, True]])).tolist() == [[0, 255]]


@pytest.mark.parametrize("shape", [(3,), (2, 2, 5), (1, 2, 2, 3), (0, 4), (2, 2, 0), ()], ids=repr)
def test_what_is_no_picture(shape: tuple[int, ...]) -> None:
    """A shape that no picture has is a ValueError that names it."""
    with pytest.raises(InvalidArgumentError, match=r"'face' needs the shape \(height, width\)"):
        image_of("face", np.zeros(shape, np.uint8))


@pytest.mark.parametrize("dtype", [np.int64, np.complex128, "U3", object])
def test_what_is_no_pixel(dtype: Any) -> None:
    """Other values than bytes, booleans and floats are a TypeError that names the dtype."""
    with pytest.raises(InvalidTypeError, match=r"'face' needs bytes .* got dtype"):
        image_of("face", np.zeros((2, 2), dtype))
