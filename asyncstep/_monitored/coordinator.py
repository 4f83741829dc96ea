"""Coordinator: the background tasks of a session, and its stop as they see it."""

from __future__ import annotations

import logging
import math
from contextlib import AbstractAsyncContextManager, contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import anyio

from asyncstep._monitored.company import program_index
from asyncstep._monitored.stop import (
    StopKind,
    is_interrupt,
    keep_errors,
    name_of,
    raise_as_is,
    take_out,
)
from asyncstep._runtime.trace import active
from asyncstep._runtime.transaction import current
from asyncstep.errors import InvalidArgumentError, InvalidTypeError, kind_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from types import TracebackType

    from anyio.abc import TaskGroup

    from asyncstep._monitored.life import Life
    from asyncstep._monitored.stop import StopReason
    from asyncstep._runtime.trace import Span, Trace

logger = logging.getLogger("asyncstep")

_within: ContextVar[tuple[anyio.CancelScope, ...]] = ContextVar("asyncstep_background", default=())
"""The background tasks, of all sessions, that the running code is part of."""


class Coordinator:
    """Runs a session's background tasks (TensorFlow: ``tf.train.Coordinator``).

    Tasks run in the group given as ``MonitoredSession(task_group=...)``, else in the one that
    `session.loop` opens (contract L8). The error of a task stops the session and is raised by its next
    run, or at the end of its block (contract E4); it never reaches the group that the task runs in.
    """

    def __init__(self, life: Life, group: TaskGroup | None) -> None:
        self._life = life
        self._given_group = group
        self._loop_groups: list[TaskGroup] = []
        self._scopes: dict[anyio.CancelScope, str] = {}
        self._stopping = False
        self._stop_events: set[anyio.Event] = set()
        self._idle_events: set[anyio.Event] = set()
        self._errors: list[BaseException] = []
        self._activities: list[Span] = []
        self._traces: WeakSet[Trace] = WeakSet()
        life.stop.when_set(self._wake)

    def start_soon(
        self, async_fn: Callable[..., Awaitable[Any]], *args: Any, name: str | None = None
    ) -> None:
        """Start a task that closing stops: by the stop event, then, after half the grace period, by a cancel.

        Raises:
            RuntimeError: there is no task group to run it in.
            SessionClosedError: the session's background tasks have been ended.
        """
        if self._life.sealed:
            raise self._life.not_open()
        group = self._given_group or next(reversed(self._loop_groups), None)
        if group is None:
            raise RuntimeError(
                "a background task needs a task group: give one to the session, as"
                " MonitoredSession(task_group=...), or use session.loop, which opens one"
            )
        if not callable(async_fn):
            raise InvalidTypeError(f"start_soon needs a coroutine function, not {kind_of(async_fn)}")
        scope = anyio.CancelScope()
        name = name or name_of(async_fn)
        self._scopes[scope] = name
        try:
            group.start_soon(self._run, scope, async_fn, args, name=name)
        except BaseException:
            del self._scopes[scope]
            raise

    async def _run(  # noqa: ASYNC910 - it runs as long as its function
        self, scope: anyio.CancelScope, async_fn: Callable[..., Awaitable[Any]], args: Any
    ) -> None:
        """One background task: its error is kept for the session."""
        _within.set((*_within.get(), scope))
        current.set(None)  # what a step starts in the background is no part of the step (contract T8)
        active.set(None)
        try:
            with scope:
                await async_fn(*args)
        except BaseException as error:  # noqa: ASYNC103 - keep_errors raises a cancellation again
            keep_errors(error, anyio.get_cancelled_exc_class(), lambda each: self._failed(each, scope))
        finally:
            del self._scopes[scope]
            for event in self._idle_events:
                event.set()

    def _failed(self, error: BaseException, scope: anyio.CancelScope) -> None:
        if is_interrupt(error):
            # Nobody may ever ask for it here: it ends the program, by way of the task group (contract C5).
            self._life.request_stop(StopKind.SIGNAL, repr(error), self._scopes[scope])
            raise_as_is(error)
        self.fail(take_out(error, self._life.session), self._scopes[scope])

    def fail(self, error: BaseException | None, origin: str) -> None:
        """Keep an error for the session to raise, and stop it; after the closing, log it (contract E3).

        None is what is left of an error in which there was nothing but the session's stop.
        """
        if error is None:
            return
        if self._life.closed:
            logger.error("%s failed after its session was closed", origin, exc_info=error)
            return
        self._errors.append(error)
        self._life.request_stop(StopKind.ERROR, repr(error), origin)

    def request_stop(self, error: BaseException | None = None) -> None:
        """Ask the session to stop; an `error` is raised by its next run, or at its end."""
        if error is None:
            self._life.request_stop(StopKind.HOOK, None, "the coordinator")
        elif not isinstance(error, BaseException):
            raise InvalidTypeError(f"request_stop takes an exception or nothing, not {kind_of(error)}")
        else:
            self.fail(error, "the coordinator")

    def set_stop(self, reason: StopReason) -> None:
        """Ask the session to stop, for a reason of any kind."""
        self._life.stop.set(reason)

    def should_stop(self) -> bool:
        """Whether background tasks are to end: the session stops or closes."""
        return self._stopping or self._life.stop.reason is not None

    async def wait_for_stop(self) -> None:
        """Wait until `should_stop()`. Checkpoint: always."""
        if self.should_stop():
            await anyio.lowlevel.checkpoint()
            return
        event = anyio.Event()
        self._stop_events.add(event)
        try:
            await event.wait()
        finally:
            self._stop_events.discard(event)

    def stop_on_exception(self) -> AbstractAsyncContextManager[None]:
        """Report an Exception of the block to the coordinator, which stops the session, and absorb it."""
        return _StopOnException(self)

    def every(self, seconds: float, async_fn: Callable[..., Awaitable[Any]], *args: Any) -> None:
        """Call a coroutine function every so many seconds, until the stop; late ticks are skipped.

        The first call is after `seconds`. The clock is the event loop's, which is monotonic.
        """
        if not seconds > 0 or not math.isfinite(seconds):
            raise InvalidArgumentError(f"every() needs a positive number of seconds, not {seconds!r}")
        self.start_soon(self._tick, seconds, async_fn, args, name=f"every {seconds:g} s: {name_of(async_fn)}")

    async def _tick(self, seconds: float, async_fn: Callable[..., Awaitable[Any]], args: Any) -> None:
        began = anyio.current_time()
        ticks = 0
        while not self.should_stop():
            ticks = max(ticks, math.floor((anyio.current_time() - began) / seconds)) + 1
            with anyio.move_on_after(began + ticks * seconds - anyio.current_time()):
                await self.wait_for_stop()
                return
            await async_fn(*args)
        await anyio.lowlevel.checkpoint()

    async def join(self) -> None:
        """Wait until all background tasks have ended; raise the error of one that failed. Checkpoint: always."""
        await self.wait_until_idle()
        self.raise_requested_exception()

    def clear_stop(self) -> None:
        """Do nothing but warn: the stop of a session is never taken back (contract S1)."""
        if self.should_stop():
            logger.warning("clear_stop: a session's stop is never taken back; make a new session")

    def raise_requested_exception(self) -> None:
        """Raise the error of a background task, if there is one that has not been raised."""
        if self._errors:
            error = self._errors.pop(0)
            try:
                raise error
            finally:
                del error

    def call_when_closed(self, function: Callable[[], None]) -> None:
        """Call a plain function at the very end of the session's closing, after all hooks."""
        self._life.when_closed.append(function)

    def call_before_recovery(self, async_fn: Callable[[], Awaitable[None]]) -> None:
        """Await a coroutine function in each recovery, between the raw session that is lost and the next one."""
        self._life.before_recovery.append(async_fn)

    # What follows is for stock hooks that record what the session does.

    def open_trace(self, trace: Trace) -> None:
        """Record in it the steps that begin from now on, and what is going on beside them."""
        program = program_index()
        if program is not None:
            trace.process = f"asyncstep, program {program}"
        self._activities = [span for span in self._activities if span.ended is None]
        for span in self._activities:
            trace.add(span)
        self._life.traces += (trace,)
        self._life.recording += 1
        self._traces.add(trace)

    def close_trace(self, trace: Trace) -> None:
        """Record no further steps in it; it is over when those are that it has. Idempotent."""
        if trace in self._life.traces:
            self._life.traces = tuple(other for other in self._life.traces if other is not trace)
            self._life.recording -= 1
        trace.close()

    def note_activity(self, activity: Span) -> None:
        """Something has begun that goes on beside the steps; its end is filled in when it comes."""
        self._activities = [span for span in self._activities if span.ended is None]
        self._activities.append(activity)
        for trace in self._traces:
            trace.add(activity)

    # What follows is for the session.

    def take_errors(self) -> list[BaseException]:
        """The errors that nobody has raised yet."""
        errors, self._errors = self._errors, []
        return errors

    @property
    def has_errors(self) -> bool:
        """Whether there are errors that nobody has raised yet."""
        return bool(self._errors)

    @contextmanager
    def running_in(self, group: TaskGroup) -> Iterator[None]:
        """Within the block, tasks may run in this group, which a loop has opened."""
        self._loop_groups.append(group)
        try:
            yield
        finally:
            self._loop_groups.remove(group)

    @property
    def tasks_end_with_loop(self) -> bool:
        """Whether background tasks run in the loop's group, and so have to end before it does."""
        return self._given_group is None

    def stop_tasks(self) -> None:
        """Tell background tasks to end."""
        self._stopping = True
        self._wake()

    def _wake(self) -> None:
        for event in list(self._stop_events):
            event.set()

    def own_tasks(self) -> frozenset[anyio.CancelScope]:
        """The background tasks that the running code is part of; closing does not make them wait for themselves."""
        return frozenset(_within.get()) & self._scopes.keys()

    async def wait_until_idle(self, but: frozenset[anyio.CancelScope] = frozenset()) -> None:
        """Wait until there is no background task, apart from some. Checkpoint: always."""
        await anyio.lowlevel.checkpoint()
        while self._scopes.keys() - but:
            event = anyio.Event()
            self._idle_events.add(event)
            try:
                await event.wait()
            finally:
                self._idle_events.discard(event)

    def cancel_tasks(self, but: frozenset[anyio.CancelScope] = frozenset()) -> list[str]:
        """Cancel what has not ended, apart from some; return the names."""
        scopes = self._scopes.keys() - but
        for scope in scopes:
            scope.cancel()
        return [self._scopes[scope] for scope in scopes]


class _StopOnException(AbstractAsyncContextManager[None]):
    """Absorbs the Exceptions of its block.

    No `contextlib.asynccontextmanager`: since Python 3.12 its frames would keep the error alive (contract E5).
    """

    def __init__(self, coord: Coordinator) -> None:
        self._coord = coord

    async def __aenter__(self) -> None:  # noqa: ASYNC910 - like `contextlib.suppress`
        pass

    async def __aexit__(  # noqa: ASYNC910 - like `contextlib.suppress`
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if not isinstance(error, Exception):
            return False
        coord = self._coord
        coord.fail(take_out(error, coord._life.session), "stop_on_exception")
        del error, trace
        return True
