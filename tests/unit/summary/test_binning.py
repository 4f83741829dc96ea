"""Arrays -> histograms."""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, strategies as st

from asyncstep.errors import InvalidArgumentError, InvalidTypeError
from asyncstep.summary.binning import check_bins, histogram_of


@given(st.lists(st.floats(), max_size=60), st.integers(1, 40))
def test_every_value_is_in_the_bucket_that_it_belongs_to(values: list[float], bins: int) -> None:
    """Each finite value is counted once, in the first bucket whose limit it does not exceed."""
    made = histogram_of("h", values, bins)
    finite = [value for value in values if math.isfinite(value)]
    assert made.skipped == len(values) - len(finite)
    assert made.num == sum(made.counts) == len(finite)
    assert len(made.limits) == len(made.counts) <= bins
    assert all(lower < upper for lower, upper in zip(made.limits, made.limits[1:], strict=False))
    if finite:
        assert (made.min, made.max, made.limits[-1]) == (min(finite), max(finite), max(finite))
    expected = [0.0] * len(made.limits)
    for value in finite:
        expected[next(at for at, limit in enumerate(made.limits) if value <= limit)] += 1
    assert list(made.counts) == expected


def test_a_distribution() -> None:
    """Buckets of one width, the sum and the sum of the squares."""
    made = histogram_of("h", np.array([[0, 1], [2, 4]], np.uint8), 4)
    assert (made.limits, made.counts) == ((1.0, 2.0, 3.0, 4.0), (2.0, 1.0, 0.0, 1.0))
    assert (made.sum, made.sum_squares) == (7.0, 21.0)


@pytest.mark.parametrize(
    "value",
    [3.5, [True, False], np.zeros((2, 0)), np.ones(3, np.float16), np.ones(3, ml_dtypes.bfloat16), range(5)],
    ids=repr,
)
def test_what_numbers_may_come_in(value: Any) -> None:
    """Whatever numpy makes an array of real numbers of."""
    assert histogram_of("h", value).num == np.asarray(value).size


@pytest.mark.parametrize(
    "value", [["a"], [1j], [None], np.array(["2020-01-01"], "datetime64[D]"), np.zeros(2, "i4,f4")], ids=repr
)
def test_what_is_no_numbers(value: Any) -> None:
    """A TypeError that names the histogram and the dtype."""
    with pytest.raises(InvalidTypeError, match="'weights' needs an array of real numbers, got one of dtype"):
        histogram_of("weights", value)


@pytest.mark.parametrize("bins", [0, -1])
def test_bins_are_positive(bins: int) -> None:
    """0 and less is a ValueError."""
    with pytest.raises(InvalidArgumentError, match="bins must be at least 1"):
        check_bins("histogram", bins)


@pytest.mark.parametrize("bins", ["auto", 3.0, True, None])
def test_bins_are_a_number(bins: Any) -> None:
    """What is no integer is a TypeError."""
    with pytest.raises(InvalidTypeError, match="bins must be an integer"):
        check_bins("histogram", bins)
