"""Reader: gives the items of one source to the steps of one raw session, each to exactly one."""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import anyio

from asyncstep._runtime.state import Fate
from asyncstep.data.positions import Positions
from asyncstep.errors import OutOfRangeError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from asyncstep._runtime.state import LocalStateStore, Transaction
    from asyncstep.data.stream import Stream


@dataclass(frozen=True, slots=True)
class SourceState:
    """How far a source is.

    Attributes:
        position: the low-water mark, in items: everything below it is finished.
        pending: the positions that were given and are not committed (yet, or any more).
        parked: the positions that an error rolled back; not given again in this process (contract D1).
    """

    position: int
    pending: tuple[int, ...]
    parked: tuple[int, ...]


class Reader:
    """The items of one source, for one raw session.

    An item is given to one transaction. It is finished when that commits. Rolled back, it is given
    again before any new item, or parked (contract D1).
    """

    def __init__(self, name: str, stream: Stream, batch: int | None, drop_remainder: bool) -> None:
        self._name = name
        self._stream = stream
        self._batch = batch
        self._drop_remainder = drop_remainder
        self._positions = Positions()
        self._given: set[int] = set()
        self._again: list[tuple[int, int, Any]] = []  # a heap of (position, epoch, value)
        self._parked: set[int] = set()
        self._pulling = anyio.Lock(fast_acquire=True)

    def state(self) -> SourceState:
        """How far the source is."""
        pending = (*self._given, *(position for position, *_ in self._again))
        return SourceState(self._positions.low, tuple(sorted(pending)), tuple(sorted(self._parked)))

    async def take(self, transaction: Transaction) -> Any:
        """The next item, or a list of `batch` items.

        Checkpoint: only if the stream has to wait.

        Raises:
            OutOfRangeError: the last item has been given.
            SessionClosedError, AbortedError: the raw session was closed, or replaced, while this waited.
        """
        taken = Taken(self)
        transaction.hold(taken)
        if self._batch is None:
            await self._fill(taken, 1, transaction.store)
            return taken.values[0]
        await self._fill(taken, self._batch, transaction.store)
        return list(taken.values)

    async def _fill(self, taken: Taken, size: int, store: LocalStateStore) -> None:
        while len(taken.values) < size:
            if self._take_again(taken):
                continue
            if self._stream.waits:
                async with self._pulling:  # one at a time, in the order in which they asked
                    store.check_open()
                    more = self._take_again(taken) or await self._take_new(taken)
                store.check_open()  # what a closed stream gives is neither an item nor the end of the data
            else:
                more = await self._take_new(taken)
            if not more and self._ends(taken):
                return

    def _take_again(self, taken: Taken) -> bool:
        """Add an item that was rolled back, if there is one that may stand in the same batch."""
        if not self._again or (taken.values and self._again[0][1] != taken.epoch):
            return False
        position, epoch, value = heapq.heappop(self._again)
        self._give(taken, position, epoch, value)
        return True

    async def _take_new(self, taken: Taken) -> bool:
        """Add the next item of the stream; False if the epoch of the batch has no more."""
        if taken.values and self._stream.epoch != taken.epoch:
            return False
        found, value = await self._stream.next()
        if found:
            self._give(taken, self._stream.position - 1, self._stream.epoch, value)
        return found

    def _give(self, taken: Taken, position: int, epoch: int, value: Any) -> None:
        self._given.add(position)
        taken.add(position, epoch, value)

    def _ends(self, taken: Taken) -> bool:
        """At the end of an epoch: whether the batch is to be given as it is."""
        if taken.values:
            if not self._drop_remainder:
                return True
            self.finish(taken.positions)  # the remainder that nobody wants
            taken.clear()
        elif not self._again and not self._stream.next_epoch():
            raise OutOfRangeError(f"the source {self._name!r} has no more items")
        return False

    def finish(self, positions: Sequence[int]) -> None:
        """The step that was given these has committed."""
        for position in positions:
            self._given.discard(position)
            self._positions.finish(position)

    def undo(self, taken: Taken, fate: Fate) -> None:
        """The step that was given these has been rolled back."""
        self._given.difference_update(taken.positions)
        if fate is Fate.PARK:
            self._parked.update(taken.positions)
            return
        for position, value in zip(taken.positions, taken.values, strict=True):
            heapq.heappush(self._again, (position, taken.epoch, value))

    async def aclose(self) -> None:
        """Close the stream."""
        await self._stream.aclose()


class Taken:
    """What one transaction was given at a time: an item, or a batch of one epoch."""

    __slots__ = ("epoch", "positions", "reader", "values")

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self.epoch = 0
        self.positions: list[int] = []
        self.values: list[Any] = []

    def add(self, position: int, epoch: int, value: Any) -> None:
        """One more item."""
        self.epoch = epoch
        self.positions.append(position)
        self.values.append(value)

    def clear(self) -> None:
        """Hold nothing any more."""
        self.positions, self.values = [], []

    def done(self) -> None:
        """The step has committed."""
        self.reader.finish(self.positions)

    def undone(self, fate: Fate) -> None:
        """The step has been rolled back."""
        self.reader.undo(self, fate)
