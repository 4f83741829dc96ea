"""When a run gives the event loop a turn (contract R9)."""

from __future__ import annotations

import sys
from asyncio import CancelledError, TaskGroup, current_task
from time import monotonic
from typing import TYPE_CHECKING, Any
from weakref import ref

import anyio.lowlevel
from anyio.lowlevel import checkpoint_if_cancelled

if TYPE_CHECKING:
    from asyncio import Task
    from collections.abc import Iterator
    from types import FrameType

TURN_EVERY = 0.001
"""Seconds that a loop of runs may go on without giving the event loop a turn."""


class Pace:
    """A cancel point at every run, a schedule point at least once a millisecond.

    Shared by all runs of a session: whichever run comes after the millisecond gives the turn for all.
    """

    __slots__ = ("_native", "due")

    def __init__(self) -> None:
        self.due: float = 0.0
        self._native = runs_on_asyncio()

    def is_due(self) -> bool:
        """Whether the event loop is to be given a turn, so that `turn` has to be awaited."""
        # anyio's cheap check does not see a native cancel: where there is one, only a real yield does.
        return monotonic() >= self.due or (self._native and current_task().cancelling() > 0)  # type: ignore[union-attr]

    async def turn(self) -> None:
        """Give the event loop a turn. Checkpoint: always."""
        await anyio.lowlevel.checkpoint()
        self.due = monotonic() + TURN_EVERY

    async def keep(self) -> None:
        """Checkpoint: always a cancel point; a schedule point if one is due."""
        if self.is_due():
            await self.turn()
        else:
            await checkpoint_if_cancelled()


def runs_on_asyncio() -> bool:
    """Whether the code that is running is a task of asyncio (uvloop included)."""
    return _native_task() is not None


def _native_task() -> Task[Any] | None:
    try:
        return current_task()
    except RuntimeError:
        return None


class NativeCancels:
    """How many native cancels this task has been sent and has not taken back, to be compared with later."""

    __slots__ = ("_count", "_task")

    def __init__(self) -> None:
        task = _native_task()
        self._task: ref[Task[Any]] | None = None if task is None else ref(task)
        self._count: int = 0 if task is None else task.cancelling()

    def have_grown(self, but: int = 0) -> bool:
        """Whether there are more now, apart from so many; False in another task, and off asyncio."""
        task = _native_task()
        if task is None or self._task is None or self._task() is not task:
            return False  # what another task had been sent before is not known
        return task.cancelling() > self._count + but


def cancels_of_task_groups(error: BaseException) -> int:
    """How many native cancels of this task are left of the `asyncio.TaskGroup`s that `error` came out of.

    Before Python 3.13 a group that waits at its end, and then cancels its own task because a child failed,
    absorbs that cancel and does not take it back (python/cpython#116720): `Task.cancelling()` stays
    grown, though nobody asked for a cancellation.
    """
    if sys.version_info >= (3, 13) or not runs_on_asyncio():
        return 0
    task = current_task()
    return sum(
        local["self"]._parent_task is task
        and local["self"]._parent_cancel_requested
        and local["et"] is not CancelledError  # else it came in the group's body, and was taken back
        for frame in _frames(error)
        if frame.f_code is TaskGroup.__aexit__.__code__
        for local in (frame.f_locals,)
    )


def _frames(error: BaseException) -> Iterator[FrameType]:
    """The frames that the exception groups in an exception were raised through."""
    pending: list[BaseException] = [error]
    while pending:
        group = pending.pop()
        if not isinstance(group, BaseExceptionGroup):
            continue
        pending.extend(group.exceptions)
        trace = group.__traceback__
        while trace is not None:
            yield trace.tb_frame
            trace = trace.tb_next
