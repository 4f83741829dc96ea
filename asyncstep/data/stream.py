"""Stream: the items of a source with their positions, in the order in which they are given."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from asyncstep.data.positions import Positions

Entry = tuple[int, Any]
"""(position, what `load` makes the item of), or one of the marks below with what belongs to it."""

END_OF_EPOCH = -1
END_OF_DATA = -2
FAILURE = -3  # with the error

LONGEST_READ = 0.002
"""Seconds that a worker thread reads on before it hands over what it has."""


class Stream(ABC):
    """What has been read of a source and was not given to a step yet; and how more is read.

    It is read by one at a time: by the step that wants an item, or by the task that reads ahead. An error
    of the items is an entry of the queue, so that the items before it are given before it is raised.

    Attributes:
        queue: entries, in order. At the end of the data the last one is END_OF_DATA, and stays.
        over: whether that has been reached.
        failed: whether the last entry is an error, so that nothing may be read before it has been raised.
    """

    over = False
    failed = False

    def __init__(self) -> None:
        self.queue: deque[Entry] = deque()

    async def prepare(self) -> None:
        """Find out what kind of items there are, if need be by opening them; nothing is read."""

    @property
    def needs_task(self) -> bool:
        """Whether items can be read ahead only by a task in the event loop; known once it is prepared."""
        return False

    @abstractmethod
    def read_now(self, want: int) -> bool:
        """Read up to so many items if that can be done without waiting; False if it read none."""

    @abstractmethod
    async def pull(self, want: int) -> None:
        """Read on; add an entry or several, or none yet. Checkpoint: if the items make it wait."""

    def load(self, read: Sequence[Any]) -> list[Any]:
        """The items, of what the queue has in their places."""
        return list(read)

    async def load_again(self, read: list[Any]) -> list[Any]:
        """The items, the second time, where loading them for the first time has failed."""
        return self.load(read)

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

    async def aclose(self) -> None:
        """Close what is open. Checkpoint: if that is one."""
