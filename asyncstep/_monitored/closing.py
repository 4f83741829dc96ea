"""The closing of a session: shielded, bounded, once (contract L4 to L6).

The work is done in a child task that has a shield of its own. A shield in the host task would not stop
native cancels, which pierce it; here they reach only the host, which waits on, and they are raised when the
child is done.

The order: steps in flight in other tasks finish (for half of the grace period, then they can no longer
commit); background tasks end (cancelled at half of the grace period); the hooks' `end` or
`on_session_error`, in reverse list order, with the raw session open; the raw session is closed; the graph
takes nodes again. What is not done at the end of the grace period is cancelled, and named in a TimeoutError.
"""

from __future__ import annotations

import logging
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import anyio

from asyncstep._monitored.stop import foremost, keep_errors
from asyncstep._runtime.pace import runs_on_asyncio
from asyncstep._runtime.session import Session
from asyncstep._runtime.transaction import current
from asyncstep.errors import DeadlineExceededError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from asyncstep._monitored.hook import SessionRunHook
    from asyncstep._monitored.life import Life

logger = logging.getLogger("asyncstep")

_within: ContextVar[tuple[Life, ...]] = ContextVar("asyncstep_closing", default=())
"""The sessions whose closing the running code is part of."""


async def close(life: Life, body: BaseException | None) -> tuple[list[BaseException], BaseException | None]:
    """Close a session whose block raised `body`, its own stop taken out.

    Returns:
        The errors of its background tasks and of its closing; and the cancellation or interrupt that
        reached this task meanwhile, which the caller has to raise.

    Checkpoint: always.
    """
    closing = _Closing(life, body)
    life.closing = True
    meanwhile = await _undisturbed(_uninterrupted(closing.run)) or closing.cancellation
    # The tracebacks of the errors hold `closing` and this frame, which must not hold them (contract E5).
    errors, closing.errors = closing.errors, []
    closing.body = closing.cancellation = None
    try:
        return errors, meanwhile
    finally:
        del body, errors, meanwhile


async def until_closed(life: Life) -> BaseException | None:
    """Wait for a closing that another task began; return what reached this task meanwhile, as `close` does.

    What the closing itself waits for (a hook's `end`, a step, a background task) does not wait for it.

    Checkpoint: always.
    """

    async def wait() -> None:
        with anyio.CancelScope(shield=True):
            await life.closed_event.wait()

    needless = life.closed or life in _within.get() or life.own_steps() or life.coord.own_tasks()
    return await _undisturbed(anyio.lowlevel.checkpoint if needless else wait)


async def _undisturbed(work: Callable[[], Coroutine[Any, Any, None]]) -> BaseException | None:
    """Do shielded work in a child task; return the cancellation or interrupt that came to this task meanwhile.

    Checkpoint: always.
    """
    try:
        async with anyio.create_task_group() as group:  # noqa: ASYNC112 - no native cancel reaches a child (contract L6)
            group.start_soon(work)
        # trio does not cancel a task that waits for its children: a cancellation is seen here.
        await anyio.lowlevel.checkpoint_if_cancelled()
    except BaseException as error:  # noqa: ASYNC103 - the caller raises it
        return foremost(error)  # noqa: ASYNC104, ASYNC910 - leaving the group is one; the caller raises it
    return None


def _uninterrupted(work: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], Coroutine[Any, Any, None]]:
    """The same work, in which Ctrl-C raises nothing (contract L6).

    asyncio cancels the main task on Ctrl-C. trio raises KeyboardInterrupt in whatever code is running, a
    hook's `end` for one, unless that is protected: then it is raised in the main task.
    """
    if runs_on_asyncio():
        return work
    from trio.lowlevel import enable_ki_protection

    @enable_ki_protection
    async def protected() -> None:
        await work()

    return protected


class _Closing:
    """One closing, in a task of its own."""

    def __init__(self, life: Life, body: BaseException | None) -> None:
        self.life = life
        self.body = body
        self.own_steps = life.own_steps()  # what the closing is called from does not wait for itself
        self.own_tasks = life.coord.own_tasks()
        self.errors: list[BaseException] = []
        self.cancellation: BaseException | None = None
        self.unfinished: list[str] = []
        self.half = 0.0
        self.deadline = 0.0

    async def run(self) -> None:  # noqa: ASYNC910 - a part of the closing, which has one
        """Close everything; nothing is raised."""
        now = anyio.current_time()
        self.half, self.deadline = now + self.life.grace / 2, now + self.life.grace
        current.set(None)  # what hooks run from here on is not part of the step that closed the session
        _within.set((*_within.get(), self.life))
        with anyio.CancelScope(shield=True):
            for part in (self._stop_work, self._tell_hooks, self._close_raw):
                try:
                    await part()
                except anyio.get_cancelled_exc_class() as error:  # noqa: ASYNC103 - raised when the closing is done
                    self.cancellation = error  # a native cancel of this very task, by `asyncio.Runner.close`
            self._finish()

    async def _stop_work(self) -> None:
        """Let steps and background tasks end; from here on nothing can commit but the hooks."""
        life, coord = self.life, self.life.coord
        coord.stop_tasks()
        try:
            with anyio.CancelScope(deadline=self.half) as scope:
                await life.wait_for_steps(self.own_steps)
                if life.raw is not None and life.raw.company is not None:
                    await life.raw.company.drained()
        finally:
            life.sealed = True
        if scope.cancelled_caught:
            others = " here, and other programs take part" if life.raw and life.raw.company else ""
            logger.warning(
                "closing the session: %d steps are still running%s; they cannot commit",
                life.in_flight,
                others,
            )
        if life.raw is not None:
            life.raw.store.stop_reading()
        with anyio.CancelScope(deadline=self.half):
            await coord.wait_until_idle(self.own_tasks)
        cancelled = coord.cancel_tasks(self.own_tasks)
        with anyio.CancelScope(deadline=self.deadline) as scope:
            await coord.wait_until_idle(self.own_tasks)
        if scope.cancelled_caught:
            self.unfinished.extend(f"the background task {name}" for name in cancelled)
        self.errors.extend(coord.take_errors())

    async def _tell_hooks(self) -> None:  # noqa: ASYNC910 - a part of the closing, which has one
        """Exactly one of `end` and `on_session_error` for each hook that began (contract L4)."""
        raw = self.life.raw or Session(self.life.graph)
        error = self._error()
        for hook in reversed(self.life.began):
            if error is None:
                await self._bounded(_named(hook, "end"), hook.end, raw)
            else:
                await self._bounded(_named(hook, "on_session_error"), hook.on_session_error, raw, error)

    def _error(self) -> BaseException | None:
        """What the session ends with, as far as it is known when the hooks are told."""
        if self.body is not None or not self.errors:
            return self.body
        return (
            self.errors[0]
            if len(self.errors) == 1
            else BaseExceptionGroup("background tasks failed", self.errors)
        )

    async def _close_raw(self) -> None:  # noqa: ASYNC910 - a part of the closing, which has one
        raw = self.life.raw
        if raw is not None:
            self.life.global_step()  # remembered
            await self._bounded("the raw session's closing", raw.aclose)
            if raw.company is not None:
                await self._bounded("the end of what other programs share", raw.company.end)

    async def _bounded(self, name: str, call: Callable[..., Awaitable[object]], *args: object) -> None:  # noqa: ASYNC910 - a part of the closing, which has one
        """Call something of the closing: until the deadline, and whatever it raises is kept."""
        overdue = False
        with anyio.CancelScope(deadline=self.deadline) as scope:
            try:
                await call(*args)
            except BaseException as error:  # noqa: ASYNC103 - raised when the closing is done
                overdue = scope.cancel_called
                try:
                    keep_errors(error, anyio.get_cancelled_exc_class(), self.errors.append)
                except anyio.get_cancelled_exc_class() as cancellation:  # noqa: ASYNC103 - raised when the closing is done
                    if overdue:
                        raise
                    self.cancellation = cancellation  # of a task that a hook awaited, say; raised at the end
        if overdue:
            self.unfinished.append(name)

    def _finish(self) -> None:
        life = self.life
        if self.unfinished:
            self.errors.append(
                DeadlineExceededError(
                    f"closing the session took longer than its stop_grace_period of {life.grace:g} s;"
                    f" cancelled: {', '.join(self.unfinished)}"
                )
            )
        for call in life.when_closed:
            try:
                call()
            except Exception as error:
                self.errors.append(error)
        self.errors.extend(life.coord.take_errors())
        life.finish()


def _named(hook: SessionRunHook, method: str) -> str:
    return f"{type(hook).__name__}.{method}"
