"""IterableStream: the items of iterables, sync or async, that are opened anew for each epoch."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator
from time import monotonic
from typing import TYPE_CHECKING, Any, cast

import anyio.lowlevel

from asyncstep.data.course import Course
from asyncstep.data.epochs import Epochs
from asyncstep.data.positions import Positions
from asyncstep.data.snapshots import Snapshots
from asyncstep.data.stream import END_OF_DATA, END_OF_EPOCH, FAILURE, LONGEST_READ, Entry, Stream
from asyncstep.data.threads import ThreadWork
from asyncstep.errors import FailedPreconditionError

if TYPE_CHECKING:
    from asyncstep.data.opening import Opened, Opener
    from asyncstep.data.settings import Settings
    from asyncstep.data.snapshots import Snapshot

READ_AT_ONCE = 256
"""Items that are read in the event loop before it is given a turn, when they are only skipped."""
SNAPSHOT_EVERY = 16
"""Items from one snapshot of an iterable with a state to the next: so many are read again by a restore.

The first is made when an epoch has given an item: before, `__iter__` may not have got to what it does.
"""
_END = object()


class IterableStream(Stream):
    """The items of what an opener opens.

    An iterator that raises, or a generator that is cancelled while it is asked, is opened again when the
    next item is wanted, and the items that were read are skipped.

    With `prefetch`, iterables that are not async are read by worker threads. While one works, it owns the
    course, the open iterable and the lists `_read` and `_taken`; the event loop takes what is in those when
    it is done, and a snapshot is made of nothing else.
    """

    def __init__(self, opener: Opener, settings: Settings, name: str) -> None:
        super().__init__()
        self._opener = opener
        self._settings = settings
        self._name = name
        self._thread = ThreadWork() if settings.prefetch else None
        self._read: list[Entry] = []
        self._taken: list[Snapshot] = []
        self._epochs = Epochs()
        self._snapshots = Snapshots()
        self._course = Course(name, settings, Positions(), Epochs(), self._read)
        self._opened: Opened | None = None
        self._ended = False
        self._stale: list[Any] = []
        self._reading = False
        self._cut = False
        self._closed = False

    async def prepare(self) -> None:
        if self._thread is not None:
            await self._thread.idle()
        self._place()

    @property
    def needs_task(self) -> bool:
        return self._opened is not None and self._opened.is_async

    def read_now(self, want: int) -> bool:
        if self._thread is not None or self._stale:
            return False
        if not self._read:
            try:
                self._place()
                if self.needs_task:
                    return False
                self._read_on(want, READ_AT_ONCE)
            except Exception as error:
                self._read.append((FAILURE, error))
        return self._hand_over()

    async def pull(self, want: int) -> None:
        self._reading = True
        self._cut = False
        try:
            await self._pull(want)
        except Exception as error:
            self._read.append((FAILURE, error))
        finally:
            self._reading = False
        self._hand_over()
        if self._closed:
            await self.aclose()

    async def _pull(self, want: int) -> None:
        if self._thread is not None:
            await self._thread.idle()
        if self._read:
            return
        await self._close_stale()
        self._place()
        if self.needs_task:
            await self._read_on_async()
        elif self._thread is not None:
            await self._thread.run(lambda: self._read_in_thread(want))
        else:
            self._read_on(want, READ_AT_ONCE)
            await anyio.lowlevel.checkpoint()

    def _hand_over(self) -> bool:
        """Put what was read into the queue; False if there is nothing."""
        for snapshot in self._taken:
            self._snapshots.add(snapshot)
        self._taken.clear()
        if not self._read:
            return False
        mark, value = self._read[-1]  # an epoch whose end was not known before ends what is read at a time
        if mark in (END_OF_EPOCH, END_OF_DATA) and value is not None and value[0] == self._epochs.epoch:
            self._epochs.end(value[1])
        self.failed: bool = mark == FAILURE
        self.over: bool = mark == END_OF_DATA
        self.queue.extend(self._read)
        self._read.clear()
        return True

    def _place(self) -> None:
        """Have something open that stands at the wanted item, or before it."""
        course, opener = self._course, self._opener
        if self._opened is not None or self._ended:
            opener.check(self)
        if course.over or (self._opened is not None and not course.far):
            return
        nearest = opener.nearest(course.epoch, course.target, self._snapshots)
        goes_on = (self._opened is not None or self._ended) and nearest <= (course.reading, course.index)
        course.far = False
        if not goes_on:
            self._discard()
            self._opened = opener.open(self, course.epoch, course.target, self._snapshots)
        elif self._ended:
            self._opened = opener.follow(course.reading)
        self._ended = False

    # Reading: in the event loop, or in a worker thread.

    def _read_in_thread(self, want: int) -> None:
        try:
            self._read_on(want, None)
        except Exception as error:
            self._read.append((FAILURE, error))

    def _read_on(self, want: int, reads: int | None) -> None:
        """Read until there are so many entries; or `reads` items, or, if that is None, for some time."""
        course, opened, read = self._course, self._opened, self._read
        if opened is None or read:
            return
        deadline = monotonic() + LONGEST_READ
        try:
            iterator = cast("Iterator[Any]", opened.iterator or self._begin(opened))
            while True:
                item = next(iterator, _END)
                if item is _END:
                    self._end()
                    return
                course.accept(item)
                if opened.state is not None and course.index % SNAPSHOT_EVERY == 1:
                    self._taken.append(opened.snapshot(course.reading, course.index))
                if len(read) >= want or course.far or self._cut:
                    return
                if reads is None:
                    if monotonic() >= deadline:
                        return
                else:
                    reads -= 1
                    if not reads:
                        return
        except BaseException as error:
            self._failed(error)
            raise

    async def _read_on_async(self) -> None:
        """Read until there is an entry."""
        course, opened, read = self._course, self._opened, self._read
        assert opened is not None
        try:
            iterator = cast("AsyncIterator[Any]", opened.iterator or self._begin(opened))
            for _ in range(READ_AT_ONCE):
                item = await anext(iterator, _END)
                if item is _END:
                    self._end()
                    return
                course.accept(item)
                if opened.state is not None and course.index % SNAPSHOT_EVERY == 1:
                    self._taken.append(opened.snapshot(course.reading, course.index))
                if read or course.far:
                    return
        except BaseException as error:
            self._failed(error)
            raise
        await anyio.lowlevel.checkpoint()

    def _begin(self, opened: Opened) -> Iterator[Any] | AsyncIterator[Any]:
        iterator = opened.begin()
        self._course.opened(opened.epoch, opened.index)
        return iterator

    def _end(self) -> None:
        """The iterator has given all of its items."""
        self._course.end()
        self._opened, self._ended = None, True

    def _failed(self, error: BaseException) -> None:
        """Open anew what cannot go on after an error: a generator is finished by whatever it raises."""
        assert self._opened is not None
        if isinstance(error, Exception) or isinstance(self._opened.iterator, AsyncGenerator | Generator):
            self._discard()

    # Closing.

    def _discard(self) -> None:
        """Close what is open as soon as that can be waited for."""
        if self._opened is not None and isinstance(self._opened.iterator, AsyncGenerator | Generator):
            self._stale.append(self._opened.iterator)
        self._opened = None

    async def _close_stale(self) -> None:
        while self._stale:
            generator = self._stale.pop()
            if isinstance(generator, AsyncGenerator):
                await generator.aclose()
            else:
                generator.close()

    def stop(self) -> None:
        self._cut = True

    async def aclose(self) -> None:
        """Close a generator that is open; one that somebody waits for is closed when the wait is over."""
        self._closed = True
        self.stop()
        if self._reading:
            return
        if self._thread is not None:
            await self._thread.idle()
        self._discard()
        await self._close_stale()

    # Checkpoints.

    def snapshot(self, low: int) -> dict[str, Any]:
        self._epochs.forget(low)
        epoch, start = self._epochs.find(low)
        windows, (first, count) = self._settings.windows(None), self._settings.shard
        number = low - start
        if windows is not None:
            number -= number % windows.size
        self._snapshots.forget(epoch, number * count + first)
        return {"epochs": self._epochs.state(), "snapshots": self._snapshots.state()}

    def restore(self, state: dict[str, Any], finished: Positions) -> None:
        if "epochs" not in state:
            raise FailedPreconditionError(
                f"the source {self._name!r} was saved when its items were a sequence, and are read one after"
                " the other now. Give it a sequence, or another name to begin at its first item"
            )
        self._epochs = Epochs(**state["epochs"])
        self._snapshots = Snapshots(state["snapshots"])
        self._read.clear()
        self._course = Course(self._name, self._settings, finished, Epochs(**state["epochs"]), self._read)
