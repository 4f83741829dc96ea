"""Reader: gives the items of one source to the steps of one raw session, each to exactly one."""

from __future__ import annotations

import heapq
import logging
from typing import TYPE_CHECKING, Any

import anyio

from asyncstep._runtime.state import SourceState
from asyncstep._runtime.trace import WAIT, traced
from asyncstep._runtime.transaction import Fate
from asyncstep.data.ahead import ReadAhead
from asyncstep.data.positions import Positions
from asyncstep.data.stream import END_OF_DATA, END_OF_EPOCH, FAILURE
from asyncstep.errors import DataLossError, OutOfRangeError

if TYPE_CHECKING:
    from asyncstep._runtime.state import StateStore
    from asyncstep._runtime.transaction import Transaction
    from asyncstep.data.settings import Settings
    from asyncstep.data.stream import Place, Stream

logger: logging.Logger = logging.getLogger("asyncstep")


class Reader:
    """The items of one source, for one raw session.

    An item, or a batch of them, is given to one transaction. It is finished when that commits. Rolled
    back, it is given again as it was before anything new, or parked (contract D1). A batch is filled by
    one step at a time, so which items are in it does not depend on who asks when (contract D3).
    """

    def __init__(self, name: str, stream: Stream, settings: Settings) -> None:
        self._name = name
        self._stream = stream
        self._settings = settings
        self._size = settings.batch or 1
        self._ahead = ReadAhead(stream, settings.prefetch, name) if settings.prefetch else None
        self._positions = Positions()
        self._given: set[Taken] = set()
        self._again: list[tuple[int, Taken]] = []  # a heap, by the first position
        self._parked: set[int] = set()
        self._filling = anyio.Lock(fast_acquire=True)
        # The scopes of the steps that wait for it, which are cancelled when there is no need to.
        self._queued: list[anyio.CancelScope] = []

    def state(self) -> SourceState:
        """How far the source is."""
        pending = [*self._given, *(taken for _, taken in self._again if taken.seen)]
        return SourceState(
            self._positions.low,
            tuple(sorted(position for taken in pending for position in taken.positions())),
            tuple(sorted(self._parked)),
        )

    async def take(self, transaction: Transaction) -> Any:
        """The next item, or a list of `batch` items.

        Checkpoint: only if there is something to wait for.

        Raises:
            OutOfRangeError: the last item has been given.
            SessionClosedError, AbortedError: the raw session was closed, or replaced, while this waited.
        """
        while True:
            try:
                taken = None
                if not self._filling.locked() or (self._gives_again() and not self._queued):
                    taken = self._next(transaction)
                if taken is None:
                    with traced("wait for items", WAIT):
                        while taken is None:
                            taken = await self._wait(transaction)
                break
            except OutOfRangeError as error:
                end = error
            before_end = transaction.store.before_end
            if before_end is None or await before_end(transaction):
                try:
                    raise end
                finally:
                    del end
        transaction.hold(taken)
        stream = self._stream
        try:
            values = await stream.load_again(taken.values) if taken.failed else stream.load(taken.values)
        except BaseException:
            taken.failed = True
            raise
        if self._ahead is not None:
            self._ahead.taken()
        return values[0] if self._settings.batch is None else values

    def take_now(self, transaction: Transaction) -> tuple[Any] | None:
        """What `take` would give, if that needs no waiting and is neither an error nor an end; else nothing changes."""
        if self._filling.locked() or self._queued:
            return None
        if self._again:
            if not self._again[0][1].whole or self._again[0][1].failed:
                return None
        elif not self._has_whole():
            return None
        taken = self._next(transaction)
        assert taken is not None
        transaction.hold(taken)
        try:
            values = self._stream.load(taken.values)
        except Exception:  # the step that is given them again shall have it
            taken.failed = True
            assert transaction.items is not None
            transaction.items.remove(taken)
            self._give_back(taken)
            return None
        if self._ahead is not None:
            self._ahead.taken()
        return (values[0] if self._settings.batch is None else values,)

    def _has_whole(self) -> bool:
        """Whether an item, or a whole batch of one epoch, is next in the queue, or can be read without waiting."""
        stream, size = self._stream, self._size
        while len(stream.queue) < size:
            if (stream.queue and stream.queue[-1][0] < 0) or not stream.read_now(size - len(stream.queue)):
                return False
        return all(stream.queue[number][0] >= 0 for number in range(size))

    async def _wait(self, transaction: Transaction) -> Taken | None:
        """Wait for the turn to read, and read, or for what is given back; None if another step came before."""
        if not await self._turn_comes():
            return self._next(transaction) if self._gives_again() else None
        try:
            while (taken := self._next(transaction)) is None:
                await self._read(transaction.store)
            return taken
        finally:
            self._filling.release()

    async def _turn_comes(self) -> bool:
        """Wait for the turn to read; False if there is no need to, because something is given back."""
        if not self._filling.locked():
            self._filling.acquire_nowait()
            return True
        offered = anyio.CancelScope()
        self._queued.append(offered)
        try:
            with offered:
                await self._filling.acquire()
                return True
        except BaseException:
            if offered.cancel_called:
                self._offer()  # it is for the next one, because this one is cancelled
            raise
        finally:
            self._queued.remove(offered)
        return False

    def _gives_again(self) -> bool:
        """Whether something was given back that needs no filling."""
        return bool(self._again) and self._again[0][1].whole

    def _offer(self) -> None:
        """Something was given back: let a step have it that waits because another one reads, or that itself.

        A step that reads without a task ahead of it cannot be told, for that would end what it reads.
        """
        if self._gives_again() and not (self._ahead is not None and self._ahead.let_go()):
            for offered in self._queued:
                if not offered.cancel_called:
                    offered.cancel()
                    return

    def _next(self, transaction: Transaction) -> Taken | None:
        """What was rolled back, or else what comes next; None if more has to be read for that.

        OutOfRangeError if there is nothing. What is not whole yet is kept as if it was rolled back, so
        that whoever asks next goes on filling it.
        """
        transaction.store.check_open()  # what a closed stream gives is neither an item nor the end of the data
        taken = heapq.heappop(self._again)[1] if self._again else Taken(self)
        taken.seen = True
        self._given.add(taken)
        try:
            if taken.whole or self._fill(taken, transaction):
                taken.whole = True
                return taken
        except BaseException:
            self._give_back(taken)
            raise
        self._give_back(taken)
        return None

    async def _read(self, store: StateStore) -> None:
        """Have more items in the queue, which is empty."""
        missing = self._size - (self._again[0][1].size if self._again else 0)
        if self._ahead is None:
            await self._stream.pull(missing)
        else:
            await self._ahead.more(missing, store.start_soon)

    def _give_back(self, taken: Taken) -> None:
        self._given.discard(taken)
        if taken.runs:
            heapq.heappush(self._again, (taken.runs[0][0], taken))
            if taken.whole:
                self._offer()

    def _fill(self, taken: Taken, transaction: Transaction) -> bool:
        """Add items up to the size of a batch; False if more have to be read for that."""
        stream, size = self._stream, self._size
        queue = stream.queue
        while True:
            while queue and taken.size < size:
                mark = queue[0][0]
                if mark >= 0:
                    taken.add(*queue.popleft())
                elif self._meet(mark, taken, transaction):
                    return True
            if taken.size == size:
                return True
            if not stream.read_now(size - taken.size):
                return False

    def _meet(self, mark: int, taken: Taken, transaction: Transaction) -> bool:
        """A mark is next in the queue: True if what is taken is whole with that."""
        stream, queue = self._stream, self._stream.queue
        if mark == FAILURE:
            stream.failed = False
            if stream.failed_at is not None:
                transaction.hold(Failure(stream, stream.failed_at))
            error = queue.popleft()[1]
            try:
                raise error
            finally:
                del error
        if taken.size and not self._settings.drop_remainder:
            return True
        if taken.size:
            self._finish_positions(taken)  # nobody wants the remainder
            taken.clear()
        if mark == END_OF_DATA:
            raise OutOfRangeError(f"the source {self._name!r} has no more items")
        assert mark == END_OF_EPOCH
        queue.popleft()
        return False

    def finish(self, taken: Taken) -> None:
        """The step that was given these has committed."""
        self._given.discard(taken)
        self._finish_positions(taken)

    def _finish_positions(self, taken: Taken) -> None:
        for start, stop in taken.runs:
            self._positions.finish(start, stop)

    def undo(self, taken: Taken, fate: Fate) -> None:
        """The step that was given these has been rolled back."""
        if fate is Fate.PARK:
            self._given.discard(taken)
            self._parked.update(taken.positions())
        else:
            taken.seen = fate is Fate.GIVE_AGAIN
            self._give_back(taken)

    def snapshot(self) -> dict[str, Any]:
        """How far the source is, as plain values for a checkpoint; what is not finished is pending (D2)."""
        return {
            "position": self._positions.low,
            "finished": [list(each) for each in self._positions.ranges],
            "settings": self._settings.saved(),
            "items": self._stream.snapshot(self._positions.low),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on, from the first item, where a snapshot was made: all that was not finished is given again.

        Raises:
            FailedPreconditionError: the source has changed, so that the saved positions mean other items.
            DataLossError: this is no snapshot of a source.
        """
        try:
            self._settings.check_saved(state["settings"], self._name)
            self._positions = Positions(state["position"], state["finished"])
            self._stream.restore(state["items"], Positions(state["position"], state["finished"]))
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise DataLossError(
                f"the saved state of the source {self._name!r} is damaged: {error!r}"
            ) from error

    def stop(self) -> None:
        """Read no further ahead, because no step is going to ask for more."""
        if self._ahead is not None:
            self._ahead.stop()

    async def aclose(self) -> None:
        """Stop reading ahead, and close what is open. Checkpoint: if there is something to wait for."""
        self.stop()
        if self._ahead is not None:
            await self._ahead.wait_stopped()
        await self._stream.aclose()
        self._stream.hand_over()
        queue = self._stream.queue
        if queue and queue[-1][0] == FAILURE:
            logger.error("reading ahead for the source %r failed", self._name, exc_info=queue.pop()[1])


class Taken:
    """What one transaction was given at a time: an item, or a batch of one epoch.

    Attributes:
        runs: its positions, as [start, stop) each.
        values: what the stream loads the items from.
        whole: whether it has been given to a step; else it is still to be filled.
        failed: whether loading them has failed once.
        seen: whether a step has had them, so that they are pending when they were given back.
    """

    __slots__ = ("failed", "reader", "runs", "seen", "size", "values", "whole")

    def __init__(self, reader: Reader) -> None:
        self.reader: Reader = reader
        self.whole: bool = False
        self.failed: bool = False
        self.seen: bool = True
        self.clear()

    def clear(self) -> None:
        """Hold nothing."""
        self.size: int = 0
        self.runs: list[list[int]] = []
        self.values: list[Any] = []

    def add(self, position: int, value: Any) -> None:
        """One more item."""
        if self.runs and self.runs[-1][1] == position:
            self.runs[-1][1] = position + 1
        else:
            self.runs.append([position, position + 1])
        self.values.append(value)
        self.size += 1

    def positions(self) -> list[int]:
        """All of its positions."""
        return [position for start, stop in self.runs for position in range(start, stop)]

    def done(self) -> None:
        """The step has committed."""
        self.reader.finish(self)

    def undone(self, fate: Fate) -> None:
        """The step has been rolled back."""
        self.reader.undo(self, fate)


class Failure:
    """Stands for the item that a step was not given, because reading it failed.

    Args:
        place: where reading failed.
    """

    __slots__ = ("_place", "_stream")

    def __init__(self, stream: Stream, place: Place) -> None:
        self._stream = stream
        self._place = place

    def done(self) -> None:
        """The step has committed, so it did without the item."""

    def undone(self, fate: Fate) -> None:
        """The step has been rolled back."""
        if fate is Fate.PARK:
            self._stream.give_up(self._place)
