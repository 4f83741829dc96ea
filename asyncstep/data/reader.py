"""Reader: gives the items of one source to the steps of one raw session, each to exactly one."""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, Any

import anyio

from asyncstep._runtime.state import Fate, SourceState
from asyncstep.data.positions import Positions
from asyncstep.errors import OutOfRangeError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from asyncstep._runtime.state import LocalStateStore, Transaction
    from asyncstep.data.stream import Stream


class Reader:
    """The items of one source, for one raw session.

    An item, or a batch of them, is given to one transaction. It is finished when that commits. Rolled
    back, it is given again as it was before anything new, or parked (contract D1). A batch is filled by
    one step at a time, so which items are in it does not depend on who asks when (contract D3).
    """

    def __init__(self, name: str, stream: Stream, batch: int | None, drop_remainder: bool) -> None:
        self._name = name
        self._stream = stream
        self._batch = batch
        self._size = batch or 1
        self._drop_remainder = drop_remainder
        self._positions = Positions()
        self._given: set[int] = set()
        self._again: list[tuple[int, Taken]] = []  # a heap, by the first position
        self._parked: set[int] = set()
        self._filling = anyio.Lock(fast_acquire=True)

    def state(self) -> SourceState:
        """How far the source is."""
        again = (position for _, taken in self._again for position in taken.positions)
        return SourceState(
            self._positions.low, tuple(sorted((*self._given, *again))), tuple(sorted(self._parked))
        )

    async def take(self, transaction: Transaction) -> Any:
        """The next item, or a list of `batch` items.

        Checkpoint: only if the stream has to wait.

        Raises:
            OutOfRangeError: the last item has been given.
            SessionClosedError, AbortedError: the raw session was closed, or replaced, while this waited.
        """
        if self._again and len(self._again[0][1].positions) == self._size:
            taken = self._taken_again()
        elif self._stream.waits:
            async with self._filling:
                taken = await self._filled(transaction.store)
        else:
            taken = await self._filled(transaction.store)
        transaction.hold(taken)
        values = [self._stream.load(*item) for item in zip(taken.positions, taken.values, strict=True)]
        return values[0] if self._batch is None else values

    async def _filled(self, store: LocalStateStore) -> Taken:
        """A batch that was rolled back, or a new one; OutOfRangeError if there is none."""
        while True:
            taken = self._taken_again() if self._again else Taken(self)
            try:
                store.check_open()
                whole = await self._fill(taken)
                store.check_open()  # what a closed stream gives is neither an item nor the end of the data
            except BaseException:
                self._give_back(taken)  # nobody was given it yet: whoever asks next goes on filling it
                raise
            if whole:
                return taken
            if taken.positions:
                self.finish(taken.positions)  # the remainder that nobody wants
            elif not self._again and not self._stream.next_epoch():
                raise OutOfRangeError(f"the source {self._name!r} has no more items")

    async def _fill(self, taken: Taken) -> bool:
        """Add items up to the size of a batch; False if the epoch ended before there was one to be given."""
        stream = self._stream
        while len(taken.positions) < self._size:
            found = False
            if not taken.positions or stream.epoch == taken.epoch:
                found, value = await stream.next()
            if not found:
                return bool(taken.positions) and not self._drop_remainder
            self._given.add(stream.position - 1)
            taken.add(stream.position - 1, stream.epoch, value)
        return True

    def _taken_again(self) -> Taken:
        """The first of what was rolled back."""
        _, taken = heapq.heappop(self._again)
        self._given.update(taken.positions)
        return taken

    def _give_back(self, taken: Taken) -> None:
        self._given.difference_update(taken.positions)
        if taken.positions:
            heapq.heappush(self._again, (taken.positions[0], taken))

    def finish(self, positions: Sequence[int]) -> None:
        """The step that was given these has committed."""
        for position in positions:
            self._given.discard(position)
            self._positions.finish(position)

    def undo(self, taken: Taken, fate: Fate) -> None:
        """The step that was given these has been rolled back."""
        if fate is Fate.GIVE_AGAIN:
            self._give_back(taken)
        else:
            self._given.difference_update(taken.positions)
            self._parked.update(taken.positions)

    async def aclose(self) -> None:
        """Close the stream."""
        await self._stream.aclose()


class Taken:
    """What one transaction was given at a time: an item, or a batch of one epoch."""

    __slots__ = ("epoch", "positions", "reader", "values")

    def __init__(self, reader: Reader) -> None:
        self.reader: Reader = reader
        self.epoch: int = 0
        self.positions: list[int] = []
        self.values: list[Any] = []

    def add(self, position: int, epoch: int, value: Any) -> None:
        """One more item."""
        self.epoch = epoch
        self.positions.append(position)
        self.values.append(value)

    def done(self) -> None:
        """The step has committed."""
        self.reader.finish(self.positions)

    def undone(self, fate: Fate) -> None:
        """The step has been rolled back."""
        self.reader.undo(self, fate)
