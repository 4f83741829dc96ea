"""Arrays -> histograms."""

from __future__ import annotations

from typing import Any, SupportsIndex

from asyncstep.errors import InvalidArgumentError, InvalidTypeError, kind_of
from asyncstep.summary.extras import numpy_for
from asyncstep.summary.values import Histogram

__all__ = ["BINS", "check_bins", "histogram_of", "numbers_of"]

BINS = 30


def check_bins(owner: str, bins: object) -> None:
    """Refuse a number of buckets that is no integer (InvalidTypeError) or not positive (InvalidArgumentError)."""
    if isinstance(bins, bool) or not isinstance(bins, SupportsIndex):
        raise InvalidTypeError(f"{owner}: bins must be an integer, got {kind_of(bins)}")
    if bins.__index__() < 1:
        raise InvalidArgumentError(f"{owner}: bins must be at least 1, got {bins!r}")


def numbers_of(tag: str, value: Any) -> Any:
    """The values as a numpy array of floats without shape, which may share the memory of `value`.

    Raises:
        InvalidTypeError: they are no real numbers.
    """
    np = numpy_for("a histogram")
    array = np.asarray(value)
    if array.dtype.kind not in "biufV":  # V: the small floats of ml_dtypes
        raise _no_numbers(tag, array)
    try:
        return array.astype(np.float64, copy=False).reshape(-1)
    except (TypeError, ValueError):
        raise _no_numbers(tag, array) from None


def _no_numbers(tag: str, array: Any) -> InvalidTypeError:
    return InvalidTypeError(
        f"the histogram {tag!r} needs an array of real numbers, got one of dtype {array.dtype}"
    )


def histogram_of(tag: str, value: Any, bins: int = BINS) -> Histogram:
    """The distribution of the finite ones among the values of an array, in buckets of one width."""
    np = numpy_for("a histogram")
    values = numbers_of(tag, value)
    finite = np.isfinite(values)
    skipped = int(values.size - finite.sum())
    if skipped:
        values = values[finite]
    if not values.size:
        return Histogram(tag, 0.0, 0.0, 0.0, 0.0, 0.0, (), (), skipped)
    with np.errstate(all="ignore"):  # a sum may be infinite
        low, high = values.min(), values.max()
        limits = _limits(np, low, high, bins)
        # A value belongs to the bucket at whose upper end it is, as in TensorFlow.
        places = np.minimum(np.searchsorted(limits, values), len(limits) - 1)
        counts = np.bincount(places, minlength=len(limits)).astype(np.float64)
        total, squares = float(values.sum()), float(np.dot(values, values))
    return Histogram(
        tag, float(low), float(high), float(values.size), total, squares,
        tuple(limits.tolist()), tuple(counts.tolist()), skipped,
    )  # fmt: skip


def _limits(np: Any, low: Any, high: Any, bins: int) -> Any:
    """The upper ends of the buckets, each once: between neighbouring floats there are no others."""
    if np.isfinite(high - low):
        edges = np.linspace(low, high, bins + 1)
    else:
        edges = np.linspace(low / 2, high / 2, bins + 1) * 2
    edges[-1] = high
    distinct = np.unique(edges)
    return distinct[1:] if len(distinct) > 1 else distinct
