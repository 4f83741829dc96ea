"""IterableStream: the items of iterables, sync or async, that are opened anew for each epoch."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any, cast

import anyio
import anyio.lowlevel

from asyncstep.data.course import Course, proof
from asyncstep.data.epochs import Epochs
from asyncstep.data.positions import Positions
from asyncstep.data.snapshots import Snapshots
from asyncstep.data.stream import FAILURE, Place, Stream
from asyncstep.data.threads import KEPT
from asyncstep.errors import FailedPreconditionError

if TYPE_CHECKING:
    from asyncstep.data.opening import Closable, Opened, Opener
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
    next item is wanted, and the items that were read are skipped. But one that raises at an item again
    where a step has failed for good before is opened no more: nobody can get past that item, and to read up
    to it again and again for whoever asks would be to loop on a poison item (contract D1). Errors that
    steps are retried on do not count, however often they come.

    With `prefetch`, iterables that are not async are read by worker threads. While one works, it owns the
    course and the open iterable, and only appends to `_read` and `_taken`; a snapshot is made of nothing but
    what the event loop has taken from these.

    A stream that is closed, or whose object another one has opened, does not touch the items any more: it may
    be that the next incarnation reads them, while a step of this one is still in `pull`.
    """

    def __init__(self, opener: Opener, settings: Settings, name: str) -> None:
        super().__init__(in_thread=settings.prefetch > 0)
        self._opener = opener
        self._settings = settings
        self._name = name
        self._taken: deque[Snapshot] = deque()
        self._epochs = Epochs()
        self._snapshots = Snapshots()
        self._course = Course(name, settings, Positions(), Epochs())
        self._opened: Opened | None = None
        self._ended = False
        self._used = False
        self._stale: list[AsyncGenerator[Any, Any] | Closable] = []
        self._given_up: Place | None = None
        self._poison: str | None = None
        self._reading = False
        self._read_over: anyio.Event | None = None
        self._closed = False

    def prepare(self) -> None:
        if self._thread is None or not self._thread.busy:
            self._place()

    def read_now(self, want: int) -> bool:
        if self._thread is not None or self._stale:
            return False
        try:
            if not self._read:
                self._place()
                if self.needs_task or not self._opener.free:
                    return False
                self._read_on(want, READ_AT_ONCE)
        except Exception as error:
            self._read.append((FAILURE, error))
        return self.hand_over()

    async def pull(self, want: int) -> None:
        self._reading = True
        try:
            try:
                await self._pull(want)
            except Exception as error:
                self._read.append((FAILURE, error))
            self.hand_over()
            if self._closed:
                await super().aclose()
                await self._close_opened()
        finally:
            self._reading = False
            if self._read_over is not None:
                self._read_over.set()
                self._read_over = None

    async def _pull(self, want: int) -> None:
        if self._read:
            return
        if self._thread is not None and self._thread.busy:
            await self._thread.wait(lambda: bool(self._read))
            return
        self._cut = False
        await self._close_stale()
        if self._closed:
            return
        self._place()
        if not self._opener.free:
            await self._opener.others_left(self)
        if self.needs_task:
            await self._read_on_async()
        elif self._thread is not None:
            await self._thread.run(lambda: self._read_in_thread(want))
        else:
            self._read_on(want, READ_AT_ONCE)
            await anyio.lowlevel.checkpoint()

    def hand_over(self) -> bool:
        while self._taken:
            self._snapshots.add(self._taken.popleft())
        return super().hand_over()

    def _pass(self, mark: int, value: Any) -> None:
        super()._pass(mark, value)
        if mark != FAILURE and value is not None and value[0] == self._epochs.epoch:
            self._epochs.end(value[1])

    def _place(self) -> None:
        """Have something open that stands at the wanted item, or before it."""
        if self._poison is not None:
            raise FailedPreconditionError(self._poison)
        course, opener = self._course, self._opener
        if self._used:
            opener.check(self)
        if course.over or (self._opened is not None and not course.far):
            return
        index = course.target if opener.starts and not course.doubtful else course.proof
        nearest = opener.nearest(course.epoch, index, self._snapshots)
        goes_on = (self._opened is not None or self._ended) and nearest <= (course.reading, course.index)
        course.far = False
        if not goes_on:
            self._discard()
            self._opened = opener.open(self, course.epoch, index, self._snapshots)
            self._used = True
        elif self._ended:
            self._opened = opener.follow(course.reading)
        self._ended = False
        if self._opened is not None:
            self.needs_task: bool = self._opened.is_async

    # Reading: in the event loop, or in a worker thread.

    def _read_in_thread(self, want: int) -> None:
        try:
            self._read_on(want, None)
        except KEPT as error:
            self._read.append((FAILURE, error))

    def _read_on(self, want: int, reads: int | None) -> None:
        """Read so many entries; or `reads` items at most, if that is not None."""
        opened = self._opened
        if opened is None or self._cut:
            self._publish()  # nothing is wanted, or the reading is to end
            return
        try:
            iterator = cast("Iterator[Any]", opened.iterator or self._begin(opened))
            while not (self._cut or self._course.far):
                item = next(iterator, _END)
                if item is _END:
                    self._end()
                    return
                want -= self._accept(item, opened)
                if reads is not None:
                    reads -= 1
                if want <= 0 or reads == 0:
                    return
                self._tell()
        except BaseException as error:
            self._failed(error)
            raise

    async def _read_on_async(self) -> None:
        """Read until there is an entry."""
        opened = self._opened
        if opened is None or self._cut:
            self._publish()  # nothing is wanted, or the reading is to end
            return
        try:
            iterator = cast("AsyncIterator[Any]", opened.iterator or self._begin(opened))
            for _ in range(READ_AT_ONCE):
                item = await anext(iterator, _END)
                if item is _END:
                    self._end()
                    return
                if self._accept(item, opened) or self._course.far or self._cut:
                    return
        except BaseException as error:
            self._failed(error)
            raise
        await anyio.lowlevel.checkpoint()

    def _accept(self, item: Any, opened: Opened) -> int:
        """The iterator has given an item; return how many entries there are for that."""
        course = self._course
        course.accept(item)
        if opened.state is not None and course.index % SNAPSHOT_EVERY == 1:
            self._taken.append(opened.snapshot(course.reading, course.index))
        return self._publish()

    def _publish(self) -> int:
        """Let what the course gives be taken; return how many entries that are."""
        out = self._course.out
        found = len(out)
        if found:
            self._read.extend(out)
            out.clear()
        return found

    def _begin(self, opened: Opened) -> Iterator[Any] | AsyncIterator[Any]:
        iterator = opened.begin()
        self._course.opened(opened.epoch, opened.index)
        return iterator

    def _end(self) -> None:
        """The iterator has given all of its items."""
        assert self._opened is not None
        self._ended = self._course.end()
        self._close_later(self._opened.closable)
        self._opened = None
        self._publish()

    def _failed(self, error: BaseException) -> None:
        """Open anew what cannot go on after an error: a generator is finished by whatever it raises."""
        assert self._opened is not None
        if isinstance(error, Exception):
            self._note_failure(error)
        if isinstance(error, Exception) or self._opened.generator is not None:
            self._discard()

    def _note_failure(self, error: Exception) -> None:
        place = self._course.reading, self._course.index
        self.failed_at: Place | None = place
        if place == self._given_up:
            self._poison = (
                f"the source {self._name!r} is read no further: its items have failed at the same place again, after"
                f" {place[1]} items of epoch {place[0]}, by {error!r}. Mend them, and open a new session; errors"
                " that may pass can be retried, by Recovery(on=...)"
            )
        self._given_up = None

    def give_up(self, place: Place) -> None:
        self._given_up = place

    # Closing.

    def _discard(self) -> None:
        """Close what is open as soon as that can be waited for."""
        if self._opened is not None:
            self._close_later(self._opened.generator)
            self._close_later(self._opened.closable)
        self._opened = None

    def _close_later(self, stale: AsyncGenerator[Any, Any] | Closable | None) -> None:
        if stale is not None:
            self._stale.append(stale)

    async def _close_stale(self) -> None:
        while self._stale:
            closable = self._stale.pop()
            if isinstance(closable, AsyncGenerator):
                await closable.aclose()
            else:
                closable.close()

    async def aclose(self) -> None:
        """Close what is open; a generator that somebody waits for is closed when the wait is over."""
        self._closed = True
        await super().aclose()
        if not self._reading:
            await self._close_opened()

    async def leave(self) -> None:
        """Wait until nothing is being read, and close what is open. Checkpoint: if that is one."""
        while self._reading:
            self._read_over = self._read_over or anyio.Event()
            await self._read_over.wait()
        if self._thread is not None:
            await self._thread.out()
        await self._close_opened()

    async def _close_opened(self) -> None:
        self._discard()
        await self._close_stale()

    # Checkpoints.

    def snapshot(self, low: int) -> dict[str, Any]:
        self._epochs.forget(low)
        epoch, start = self._epochs.find(low)
        windows = self._settings.windows(None)
        number = low - start
        if windows is not None:
            number -= number % windows.size
        self._snapshots.forget(epoch, proof(number, self._settings.shard))
        return {"epochs": self._epochs.state(), "snapshots": self._snapshots.state()}

    def restore(self, state: dict[str, Any], finished: Positions) -> None:
        if "epochs" not in state:
            raise FailedPreconditionError(
                f"the source {self._name!r} was saved when its items were a sequence, and are read one after"
                " the other now. Give it a sequence, or another name to begin at its first item"
            )
        self._epochs = Epochs(**state["epochs"])
        self._snapshots = Snapshots(state["snapshots"])
        self._course = Course(self._name, self._settings, finished, Epochs(**state["epochs"]))
