"""SequenceStream: the items of a sequence, which are read by index and so need no skipping."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Protocol

from asyncstep.data.order import SequenceOrder
from asyncstep.data.positions import Positions
from asyncstep.data.stream import END_OF_DATA, END_OF_EPOCH, Entry, Stream
from asyncstep.data.threads import KEPT
from asyncstep.errors import FailedPreconditionError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from asyncstep.data.settings import Settings


class Indexed(Protocol):
    """What a source needs of a sequence."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


class SequenceStream(Stream):
    """The items of a sequence by index; each is loaded whenever a step is given it.

    An error of the sequence is one of the step that was given the item (contract D1).
    """

    def __init__(self, items: Indexed, settings: Settings, name: str) -> None:
        super().__init__(in_thread=settings.prefetch > 0)
        self._items = items
        self._name = name
        self._length = len(items)
        self._order = SequenceOrder(self._length, settings.windows(self._length), settings.shard)
        self._finished = Positions()
        self._position = 0
        self._epoch = 0
        self._planned_all = False
        repeat = settings.repeat if self._order.size else 0
        self._end = None if repeat is None else repeat * self._order.size

    def read_now(self, want: int) -> bool:
        self._read.extend(self._next(want))
        return self.hand_over()

    async def pull(self, want: int) -> None:
        self.read_now(want)

    def _next(self, want: int) -> list[Entry]:
        """Up to so many entries: a position with the index of its item, or a mark."""
        entries: list[Entry] = []
        size, order = self._order.size, self._order
        while len(entries) < want and not self._planned_all:
            position = self._finished.first_open(self._position)
            if self._end is not None and position >= self._end:
                self._planned_all = True
                entries.append((END_OF_DATA, None))
                break
            epoch, number = divmod(position, size)
            if epoch != self._epoch:
                self._epoch = epoch
                entries.append((END_OF_EPOCH, None))
            entries.append((position, order.index(epoch, number)))
            self._position = position + 1
        return entries

    def load(self, read: Sequence[Any]) -> list[Any]:
        items = self._items
        return [items[index] for index in read]

    def snapshot(self, low: int) -> dict[str, Any]:
        return {"length": self._length}

    def restore(self, state: dict[str, Any], finished: Positions) -> None:
        length = state.get("length")
        if length != self._length:
            before = "no sequence" if length is None else f"a sequence of {length} items"
            raise FailedPreconditionError(
                f"the source {self._name!r} was saved when its items were {before}, and has a sequence of"
                f" {self._length} now: its saved positions would mean other items. Give it the items that it"
                " had, or another name to begin at its first item"
            )
        self._finished = finished
        self._epoch = finished.low // self._order.size if self._order.size else 0


class SequenceAhead(SequenceStream):
    """The items of a sequence that a worker thread loads before steps ask for them."""

    def __init__(self, items: Indexed, settings: Settings, name: str) -> None:
        super().__init__(items, settings, name)
        self._planned: deque[Entry] = deque()

    def read_now(self, want: int) -> bool:
        return False

    async def pull(self, want: int) -> None:
        assert self._thread is not None
        if self._thread.busy and not self._read:
            await self._thread.wait(lambda: bool(self._read))
        elif not self._read:
            self._cut = False
            if not self._planned:
                self._planned.extend(self._next(want))
            await self._thread.run(self._load_planned)
        self.hand_over()

    def _load_planned(self) -> None:
        planned, read = self._planned, self._read
        while planned and not self._cut:
            position, index = planned[0]
            entry = (position, self._loaded_item(index) if position >= 0 else None)
            planned.popleft()
            read.append(entry)
            if planned:
                self._tell()

    def _loaded_item(self, index: int) -> Any:
        try:
            return self._items[index]
        except KEPT as error:
            return _Unloaded(index, error)

    def load(self, read: Sequence[Any]) -> list[Any]:
        for item in read:
            if isinstance(item, _Unloaded):
                item.fail()
        return list(read)

    async def load_again(self, read: list[Any]) -> list[Any]:
        assert self._thread is not None
        await self._thread.run(lambda: self._load_missing(read))
        return self.load(read)

    def _load_missing(self, read: list[Any]) -> None:
        for place, item in enumerate(read):
            if isinstance(item, _Unloaded):
                read[place] = self._loaded_item(item.index)


class _Unloaded:
    """Stands for an item that could not be loaded."""

    __slots__ = ("error", "index")

    def __init__(self, index: int, error: BaseException) -> None:
        self.index = index
        self.error: BaseException | None = error

    def fail(self) -> None:
        """Raise the error, and hold on to it no longer (contract E5)."""
        error, self.error = self.error, None
        try:
            if error is not None:
                raise error
        finally:
            del error
