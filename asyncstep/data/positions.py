"""Which positions of a source are finished: a low-water mark, and ranges above it (contract D2)."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

Range = tuple[int, int]
"""The positions from the first number to before the second."""


class Positions:
    """A set of finished positions that costs nothing while they are finished more or less in order.

    Attributes:
        low: all positions below it are finished, it itself is not.
        ranges: finished positions above `low`, in order, none touching another.
    """

    __slots__ = ("low", "ranges")

    def __init__(self, low: int = 0, ranges: Iterable[Range] = ()) -> None:
        self.low: int = low
        self.ranges: list[Range] = []
        for start, stop in ranges:
            self.finish(start, stop)

    def finish(self, start: int, stop: int) -> None:
        """Count the positions from `start` to before `stop` as finished."""
        ranges = self.ranges
        if start <= self.low:
            self.low = max(self.low, stop)
            while ranges and ranges[0][0] <= self.low:
                self.low = max(self.low, ranges.pop(0)[1])
            return
        first = bisect_left(ranges, start, key=_stop)
        last = bisect_right(ranges, stop, key=_start)
        if first < last:
            start, stop = min(start, ranges[first][0]), max(stop, ranges[last - 1][1])
        ranges[first:last] = [(start, stop)]

    def first_open(self, position: int) -> int:
        """The first position from `position` on that is not finished."""
        if position < self.low:
            return self.low
        at = bisect_right(self.ranges, position, key=_start)
        return max(position, self.ranges[at - 1][1]) if at else position

    @property
    def end(self) -> int:
        """From here on nothing is finished."""
        return self.ranges[-1][1] if self.ranges else self.low


def _start(span: Range) -> int:
    return span[0]


def _stop(span: Range) -> int:
    return span[1]
