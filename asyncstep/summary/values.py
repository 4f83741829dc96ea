"""Summary values: small, frozen, and ready to be written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any, TypeAlias

from asyncstep.errors import InvalidTypeError, kind_of

__all__ = ["Histogram", "Image", "Scalar", "Summary", "Text", "number", "summaries_of"]


@dataclass(frozen=True, slots=True)
class Scalar:
    """A number under a tag."""

    tag: str
    value: float


@dataclass(frozen=True, slots=True)
class Histogram:
    """How the values of an array are distributed.

    Attributes:
        tag: under which it is written.
        min, max, num, sum, sum_squares: of the values.
        limits: the upper end of each bucket, which belongs to it; the first bucket begins with `min`.
        counts: how many values are in each bucket.
        skipped: how many values were no finite numbers; they are in none of the above.
    """

    tag: str
    min: float
    max: float
    num: float
    sum: float
    sum_squares: float
    limits: tuple[float, ...]
    counts: tuple[float, ...]
    skipped: int = 0


@dataclass(frozen=True, slots=True)
class Text:
    """A text under a tag; TensorBoard shows it as Markdown."""

    tag: str
    text: str


@dataclass(frozen=True, slots=True)
class Image:
    """A picture under a tag.

    Attributes:
        tag: under which it is written.
        width, height: in pixels.
        channels: 1 grey, 2 grey and alpha, 3 RGB, 4 RGB and alpha.
        png: the content of a PNG file.
    """

    tag: str
    width: int
    height: int
    channels: int
    png: bytes


Summary: TypeAlias = Scalar | Histogram | Text | Image


def number(value: object) -> float | None:
    """The value of a number or of an array without dimensions; None if it is neither, or no float can hold it."""
    item = getattr(value, "item", None)
    if callable(item) and getattr(value, "shape", None) == ():
        value = item()
    if not isinstance(value, Real):
        return None
    try:
        return float(value)
    except OverflowError:
        return None


def summaries_of(owner: str, tag: str, value: Any) -> Iterator[Summary]:
    """The summaries that a fetched value is.

    A number or an array without dimensions is a scalar, a string is a text, and a summary is what it is, all
    three also in mappings (whose keys are added to the tag) and summaries in lists and tuples.

    Raises:
        InvalidTypeError: it is something else; the message names `owner` and the fetch.
    """
    if isinstance(value, (Scalar, Histogram, Text, Image)):
        yield value
    elif isinstance(value, str):
        yield Text(tag, value)
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from summaries_of(owner, f"{tag}/{key}", part)
    elif isinstance(value, (list, tuple)) and all(map(_is_summary, value)):
        for part in value:
            yield from summaries_of(owner, tag, part)
    else:
        scalar = number(value)
        if scalar is None:
            raise InvalidTypeError(
                f"{owner}: the value of {tag!r} is {_described(value)}, which is no summary; {_REMEDY}"
            )
        yield Scalar(tag, scalar)


_REMEDY = "fetch a number, a string, or a node made by asyncstep.summary.scalar, histogram, text or image"


def _is_summary(value: object) -> bool:
    return isinstance(value, (Scalar, Histogram, Text, Image)) or (
        isinstance(value, (list, tuple)) and all(map(_is_summary, value))
    )


def _described(value: object) -> str:
    shape = getattr(value, "shape", None)
    return (
        f"{kind_of(value)} of shape {tuple(shape)}"
        if isinstance(shape, tuple)
        else f"{kind_of(value)} ({value!r:.80})"
    )
