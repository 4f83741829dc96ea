"""When a run gives the event loop a turn (contract R9)."""

from __future__ import annotations

import sys
from asyncio import CancelledError, TaskGroup, current_task, get_running_loop
from time import monotonic
from typing import TYPE_CHECKING, Any
from weakref import ref

import anyio.lowlevel
from anyio.lowlevel import checkpoint_if_cancelled

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop, Task
    from collections.abc import Awaitable, Callable, Iterator, Mapping
    from types import FrameType

TURN_EVERY = 0.001
"""Seconds that a loop of runs may go on without giving the event loop a turn."""


class Pace:
    """A cancel point at every run, a schedule point at least once a millisecond.

    Shared by all runs of a session: whichever run comes after the millisecond gives the turn for all.

    Attributes:
        cancel_point: on trio, what a run awaits when no turn is due; it raises or returns at once.
    """

    __slots__ = ("_loop", "_scope_states", "_state", "_task", "cancel_point", "due")

    def __init__(self) -> None:
        self.due: float = 0.0
        self.cancel_point: Callable[[], Awaitable[None]] | None = None
        self._loop: AbstractEventLoop | None = None
        self._scope_states: Mapping[Any, Any] | None = None
        self._task: Callable[[], Task[Any] | None] = (
            _no_task  # whose run was the last, and what anyio has of it
        )
        self._state: Any = None

    def start(self) -> None:
        """Find out on which event loop the session runs."""
        if runs_on_asyncio():
            self._loop = get_running_loop()
            self._scope_states = anyio_scope_states()
        else:
            from trio.lowlevel import checkpoint_if_cancelled as cancel_point  # an extra; here it is running

            self.cancel_point = cancel_point  # what anyio's function calls in the end, in a third of the time

    def is_due(self) -> bool:
        """Whether `turn` has to be awaited: the time has come, or (on asyncio) there may be a cancellation."""
        if monotonic() >= self.due:
            return True
        if self._loop is None:
            return False
        task = current_task(self._loop)
        if task is None or task.cancelling() > 0 or self._scope_states is None:
            return True
        if self._task() is task:
            state = self._state
        else:
            key = ref(task)
            state = self._scope_states.get(key)
            if state is None:  # until the task enters its first scope
                return False
            self._task, self._state = key, state
        scope = state.cancel_scope
        while scope is not None:
            if scope._cancel_called:
                return True
            if scope._shield:
                return False
            scope = scope._parent_scope
        return False

    async def turn(self) -> None:
        """Give the event loop a turn if it is time. Checkpoint: always a cancel point."""
        # anyio's cheap check does not see a native cancel: where there is one, only a real yield does.
        if monotonic() >= self.due or (self._loop is not None and _is_natively_cancelled(self._loop)):
            await anyio.lowlevel.checkpoint()
            self.due = monotonic() + TURN_EVERY
        await checkpoint_if_cancelled()

    async def keep(self) -> None:  # noqa: ASYNC910 - `is_due` has looked, or `cancel_point` is one
        """Checkpoint: always a cancel point; a schedule point if one is due."""
        if self.is_due():
            await self.turn()
        elif self.cancel_point is not None:
            await self.cancel_point()


def _is_natively_cancelled(loop: AbstractEventLoop) -> bool:
    task = current_task(loop)
    return task is None or task.cancelling() > 0


def anyio_scope_states() -> Mapping[Any, Any] | None:
    """anyio's record of the cancel scope that each task of asyncio is in; None if it is not laid out as expected.

    `checkpoint_if_cancelled` takes most of its time to find the loop and the task, which a `Pace` knows, and
    to be awaited, which is of use only where there is a cancellation. The record that it then looks at is
    private, so it is tried here with a few scopes; a run falls back to the public function where it differs.
    """
    try:
        from anyio._backends import _asyncio

        record: Any = _asyncio._task_states
        states: Mapping[Any, Any] = record.data  # by weak reference
        key = ref(current_task())
        before = states.get(key)
        around = None if before is None else before.cancel_scope
        outer: Any = anyio.CancelScope()
        inner: Any = anyio.CancelScope()
        with outer, inner:  # only looked at
            state: Any = states[key]
            expected = (
                (before is None or before is state)
                and state.cancel_scope is inner
                and inner._parent_scope is outer
                and outer._parent_scope is around
            )
        expected = expected and states[key] is state and state.cancel_scope is around
        shielded: Any = anyio.CancelScope(shield=True)
        shielded.cancel()
        looks = [(scope._cancel_called, scope._shield) for scope in (inner, shielded)]
        expected = expected and looks == [(False, False), (True, True)]
    except (ImportError, AttributeError, KeyError, TypeError):
        return None
    return states if expected else None


def _no_task() -> None:
    """What a reference to no task gives."""


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
