"""Streams: the items of a source in order, epoch after epoch, from whatever holds them."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterable, Generator, Iterable
from typing import TYPE_CHECKING, Any, Protocol

from asyncstep.errors import InvalidTypeError, kind_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

_END = object()


async def _pull(iterator: Any) -> Any:  # noqa: ASYNC910 - waits only if the iterator does
    """The next item of a sync or async iterator, or `_END`."""
    if hasattr(iterator, "__anext__"):
        return await anext(iterator, _END)
    return next(iterator, _END)


class Indexed(Protocol):
    """What a source needs of a sequence."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


class Stream(ABC):
    """Items in order.

    Attributes:
        waits: whether `next` may wait, so that only one may call it at a time.
        position: the number of items read so far, over all epochs.
        epoch: the number of the epoch that is being read, from 0.
    """

    waits = False

    def __init__(self, repeat: int | None) -> None:
        self.position = 0
        self.epoch: int = 0
        self._repeat = repeat
        self._epoch_start = 0

    @abstractmethod
    async def next(self) -> tuple[bool, Any]:
        """(True, what `load` makes the next item of), or (False, None) at the end of the epoch."""

    def load(self, position: int, read: Any) -> Any:
        """The item at a position, of what `next` read there."""
        return read

    def next_epoch(self) -> bool:
        """Go on to the next epoch; False if there is none, or the last was empty."""
        if self.position == self._epoch_start or (
            self._repeat is not None and self.epoch + 1 >= self._repeat
        ):
            return False
        self.epoch += 1
        self._epoch_start = self.position
        return True

    async def aclose(self) -> None:  # noqa: ASYNC910 - nothing is open
        """Close what is open."""


class SequenceStream(Stream):
    """The items of a sequence, by index; each is read whenever a step is given it."""

    def __init__(self, items: Indexed, repeat: int | None) -> None:
        super().__init__(repeat)
        self._items = items
        self._length = len(items)

    async def next(self) -> tuple[bool, Any]:  # noqa: ASYNC910 - part of a run, which has a cancel point
        if self.position - self._epoch_start >= self._length:
            return False, None
        self.position += 1
        return True, None

    def load(self, position: int, read: Any) -> Any:
        """The item at a position: an error of the sequence is one of the step that was given the item."""
        return self._items[position % self._length]


class IterableStream(Stream):
    """The items of iterables, sync or async, that a function opens anew for each epoch.

    An iterator that raises, or a generator that is cancelled while it is asked, is opened again when the
    next item is wanted, and the items that were read are skipped.
    """

    def __init__(self, open_items: Callable[[], Any], repeat: int | None, name: str) -> None:
        super().__init__(repeat)
        self._open_items = open_items
        self._name = name
        self._iterator: Iterator[Any] | AsyncIterator[Any] | None = None
        self._exhausted = False
        self._reading = False
        self._closed = False
        self.waits = True

    async def next(self) -> tuple[bool, Any]:
        if self._exhausted:
            return False, None
        item = await self._read()
        if self._closed:
            await self.aclose()
        if item is _END:
            self._exhausted = True
            return False, None
        self.position += 1
        return True, item

    def next_epoch(self) -> bool:
        if not super().next_epoch():
            return False
        self._iterator, self._exhausted = None, False
        return True

    async def _read(self) -> Any:
        self._reading = True
        try:
            if self._iterator is None:
                iterator = self._opened()
                for _ in range(self.position - self._epoch_start):
                    await _pull(iterator)
                self._iterator = iterator
            return await _pull(self._iterator)
        except BaseException as error:
            if isinstance(error, Exception) or isinstance(self._iterator, (AsyncGenerator, Generator)):
                self._iterator = None  # it cannot go on: a generator is finished by whatever it raises
            raise
        finally:
            self._reading = False

    def _opened(self) -> Iterator[Any] | AsyncIterator[Any]:
        items = self._open_items()
        if isinstance(items, AsyncIterable):
            return aiter(items)
        if isinstance(items, Iterable):
            return iter(items)
        if inspect.iscoroutine(items):
            items.close()
        raise InvalidTypeError(
            f"the function of the source {self._name!r} must return an iterable or an async iterable,"
            f" not {kind_of(items)}"
        )

    async def aclose(self) -> None:
        """Close a generator that is open; one that somebody waits for is closed when the wait is over."""
        self._closed = True
        if self._reading:
            return
        iterator, self._iterator = self._iterator, None
        self._exhausted = True
        if isinstance(iterator, AsyncGenerator):
            await iterator.aclose()
        elif inspect.isgenerator(iterator):
            iterator.close()
