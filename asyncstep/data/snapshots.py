"""Snapshots: states of an iterable that can be taken back to them, each with its place."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

MOST = 16


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state of an iterable that has given `index` items of an epoch."""

    epoch: int
    index: int
    state: Any

    @property
    def place(self) -> tuple[int, int]:
        """What snapshots are ordered by."""
        return self.epoch, self.index


class Snapshots:
    """At most `MOST` snapshots, in the order of their places.

    When there are more, every second is dropped, but not the first and the last. So the older they are,
    the farther apart they stand; those near the items that are read now stand close.
    """

    __slots__ = ("_kept",)

    def __init__(self, kept: Iterable[Sequence[Any]] = ()) -> None:
        self._kept = [Snapshot(*each) for each in kept]

    def add(self, snapshot: Snapshot) -> None:
        """Keep one, unless its place has been passed before."""
        kept = self._kept
        if kept and snapshot.place <= kept[-1].place:
            return
        kept.append(snapshot)
        if len(kept) > MOST:
            del kept[1:-1:2]

    def nearest(self, epoch: int, index: int) -> Snapshot | None:
        """The last one at or before a place."""
        at = bisect_right(self._kept, (epoch, index), key=_place)
        return self._kept[at - 1] if at else None

    def forget(self, epoch: int, index: int) -> None:
        """Keep of those at or before a place the last one only."""
        at = bisect_right(self._kept, (epoch, index), key=_place)
        del self._kept[: max(0, at - 1)]

    def state(self) -> list[list[Any]]:
        """What makes it again: ``Snapshots(state)``."""
        return [[each.epoch, each.index, each.state] for each in self._kept]


def _place(snapshot: Snapshot) -> tuple[int, int]:
    return snapshot.place
