"""Where the epochs of a source begin whose length is known only when it has been read."""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable


class Epochs:
    """The places of the epochs that have ended, and of the one after them.

    Epochs of the same length are kept as one run, so they cost nothing however many there are.

    Attributes:
        epoch: the first epoch whose end is not known, counted from 0.
        start: the position at which it begins.
    """

    __slots__ = ("_runs", "epoch", "start")

    def __init__(self, runs: Iterable[tuple[int, int, int]] = (), epoch: int = 0, start: int = 0) -> None:
        self._runs = [(first, begins, length) for first, begins, length in runs]
        self.epoch: int = epoch
        self.start: int = start

    def end(self, length: int) -> None:
        """The epoch whose end was not known has so many items."""
        if not self._runs or self._runs[-1][2] != length:
            self._runs.append((self.epoch, self.start, length))
        self.epoch += 1
        self.start += length

    def find(self, position: int) -> tuple[int, int]:
        """The epoch that a position is in, and where it begins."""
        if position >= self.start:
            return self.epoch, self.start
        first, begins, length = self._runs[bisect_right(self._runs, position, key=_begins) - 1]
        number = (position - begins) // length
        return first + number, begins + number * length

    def length(self, epoch: int) -> int | None:
        """How many items an epoch has; None if that is not known."""
        if epoch >= self.epoch:
            return None
        return self._runs[bisect_right(self._runs, epoch, key=_first) - 1][2]

    def forget(self, position: int) -> None:
        """Keep no more than is needed for the positions from this one on."""
        if position >= self.start:
            self._runs.clear()
        while len(self._runs) > 1 and self._runs[1][1] <= position:
            del self._runs[0]

    def state(self) -> dict[str, Any]:
        """What makes it again: ``Epochs(**state)``."""
        return {"runs": list(self._runs), "epoch": self.epoch, "start": self.start}


def _first(run: tuple[int, int, int]) -> int:
    return run[0]


def _begins(run: tuple[int, int, int]) -> int:
    return run[1]
