"""Which positions of a source are finished: a low-water mark, and ranges above it (contract D2)."""

from __future__ import annotations

from bisect import bisect_right


class Positions:
    """A set of finished positions that costs nothing while they are finished more or less in order.

    Attributes:
        low: all positions below it are finished.
        ranges: [start, stop) of finished positions above `low`, in order, none touching another.
    """

    __slots__ = ("low", "ranges")

    def __init__(self, low: int = 0) -> None:
        self.low: int = low
        self.ranges: list[tuple[int, int]] = []

    def finish(self, position: int) -> None:
        """Count a position as finished."""
        if position < self.low:
            return
        at = bisect_right(self.ranges, (position, position))
        start, stop = position, position + 1
        first = last = at
        if at > 0 and self.ranges[at - 1][1] >= start:
            first = at - 1
            start, stop = self.ranges[first][0], max(stop, self.ranges[first][1])
        if at < len(self.ranges) and self.ranges[at][0] <= stop:
            last = at + 1
            stop = max(stop, self.ranges[at][1])
        self.ranges[first:last] = [(start, stop)]
        if self.ranges[0][0] == self.low:
            self.low = self.ranges.pop(0)[1]

    def __contains__(self, position: int) -> bool:
        if position < self.low:
            return True
        at = bisect_right(self.ranges, (position, position))
        if at < len(self.ranges) and self.ranges[at][0] == position:
            return True
        return at > 0 and position < self.ranges[at - 1][1]
