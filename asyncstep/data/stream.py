"""Stream: the items of a source with their positions, in the order in which they are given."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from typing import TYPE_CHECKING, Any

from asyncstep.data.threads import ThreadWork

if TYPE_CHECKING:
    from collections.abc import Sequence

    from asyncstep.data.positions import Positions

Entry = tuple[int, Any]
"""(position, what `load` makes the item of), or one of the marks below with what belongs to it."""

Place = tuple[int, int]
"""An epoch, and the index in it of what an iterator gives next."""

END_OF_EPOCH = -1
END_OF_DATA = -2
FAILURE = -3  # with the error


class Stream(ABC):
    """What has been read of a source and was not given to a step yet; and how more is read.

    It is read by one at a time: by the step that wants an item, or by the task that reads ahead. An error
    of the items is an entry of the queue, so that the items before it are given before it is raised.

    Attributes:
        queue: entries, in order. At the end of the data the last one is END_OF_DATA, and stays.
        over: whether that has been reached.
        failed: whether the last entry is an error, so that nothing may be read before it has been raised.
        failed_at: where the last error was, if the items come from an iterator.
        needs_task: whether only a task in the event loop can read ahead; known once the stream is prepared.
        wanted: how many entries somebody waits for, while a thread reads.
    """

    over: bool = False
    failed: bool = False
    failed_at: Place | None = None
    needs_task: bool = False
    wanted: int = 0

    def __init__(self, *, in_thread: bool) -> None:
        self.queue: deque[Entry] = deque()
        # A thread that reads appends to this while the event loop takes from it: a deque allows that.
        self._read: deque[Entry] = deque()
        self._thread = ThreadWork() if in_thread else None
        self._cut = False

    def hand_over(self) -> bool:
        """Put what has been read into the queue; False if that is nothing."""
        read, queue = self._read, self.queue
        found = bool(read)
        while read:
            entry = read.popleft()
            queue.append(entry)
            if entry[0] < 0:
                self._pass(*entry)
        return found

    def _pass(self, mark: int, value: Any) -> None:
        """A mark is handed over."""
        self.failed = mark == FAILURE
        self.over = mark == END_OF_DATA

    def _tell(self) -> None:
        """In a thread: something has been read; nobody knows when there will be more, so who waits gets it now."""
        if self.wanted and len(self._read) >= self.wanted:
            assert self._thread is not None
            self._thread.let_go()

    def prepare(self) -> None:
        """Find out what kind of items there are, if need be by opening them; nothing is read."""

    @abstractmethod
    def read_now(self, want: int) -> bool:
        """Read up to so many items if that can be done without waiting; False if it read none."""

    @abstractmethod
    async def pull(self, want: int) -> None:
        """Read on, up to so many items; it may be none yet. Checkpoint: if the items make it wait."""

    def load(self, read: Sequence[Any]) -> list[Any]:
        """The items, of what the queue has in their places."""
        return list(read)

    async def load_again(self, read: list[Any]) -> list[Any]:
        """The items, where loading them has failed before."""
        return self.load(read)

    def give_up(self, place: Place) -> None:
        """A step that met the error at this place has failed for good: it is not tried again."""

    @abstractmethod
    def snapshot(self, low: int) -> dict[str, Any]:
        """What `restore` needs to go on at the position `low`, as plain values."""

    @abstractmethod
    def restore(self, state: dict[str, Any], finished: Positions) -> None:
        """Begin at the first position that is not finished, and leave out the others that are.

        Raises:
            FailedPreconditionError: the items are not those of which the state was saved.
        """

    def stop(self) -> None:
        """End a read that is under way in another thread as soon as it has an item."""
        self._cut = True

    async def aclose(self) -> None:
        """Close what is open. Checkpoint: if that is one."""
        self.stop()
        if self._thread is not None:
            await self._thread.idle()
