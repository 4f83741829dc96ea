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
from typing import TYPE_CHECKING

import anyio

from asyncstep._monitored.stop import leaves
from asyncstep._runtime.session import Session
from asyncstep._runtime.state import current
from asyncstep.errors import DeadlineExceededError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from asyncstep._monitored.hook import SessionRunHook
    from asyncstep._monitored.life import Life

logger = logging.getLogger("asyncstep")


async def close(life: Life, body: BaseException | None) -> tuple[list[BaseException], BaseException | None]:
    """Close a session whose block raised `body`, its own stop taken out.

    Returns:
        The errors of its background tasks and of its closing; and the cancellation or interrupt that
        reached this task meanwhile, which the caller has to raise.

    Checkpoint: always.
    """
    closing = _Closing(life, body, life.own_steps())
    life.closing = True
    meanwhile: BaseException | None = None
    try:
        async with anyio.create_task_group() as group:
            group.start_soon(closing.run)
    except BaseException as error:  # noqa: ASYNC103 - the caller raises it
        meanwhile = next(leaves(error))
    return closing.errors, meanwhile


class _Closing:
    """One closing, in a task of its own."""

    def __init__(self, life: Life, body: BaseException | None, own_steps: int) -> None:
        self.life = life
        self.body = body
        self.own_steps = own_steps
        self.errors: list[BaseException] = []
        self.unfinished: list[str] = []
        self.half = 0.0
        self.deadline = 0.0

    async def run(self) -> None:
        """Close everything; nothing is raised."""
        now = anyio.current_time()
        self.half, self.deadline = now + self.life.grace / 2, now + self.life.grace
        current.set(None)  # what hooks run from here on is not part of the step that closed the session
        with anyio.CancelScope(shield=True):
            try:
                await self._stop_work()
                await self._tell_hooks()
                await self._close_raw()
            finally:
                self._finish()

    async def _stop_work(self) -> None:
        """Let steps and background tasks end; from here on nothing can commit but the hooks."""
        life, coord = self.life, self.life.coord
        coord.stop_tasks()
        with anyio.CancelScope(deadline=self.half, shield=True) as scope:
            await life.wait_for_steps(self.own_steps)
        life.sealed = True
        if scope.cancelled_caught:
            logger.warning("closing the session: %d steps are still running and cannot commit", life.in_flight)
        with anyio.CancelScope(deadline=self.half, shield=True):
            await coord.wait_until_idle()
        if coord.running:
            coord.cancel_tasks()
            with anyio.CancelScope(deadline=self.deadline, shield=True):
                await coord.wait_until_idle()
            self.unfinished.extend(f"the background task {name}" for name in coord.running)
        self.errors.extend(coord.take_errors())

    async def _tell_hooks(self) -> None:
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
        return self.errors[0] if len(self.errors) == 1 else BaseExceptionGroup("background tasks failed", self.errors)

    async def _close_raw(self) -> None:
        raw = self.life.raw
        if raw is not None:
            self.life.global_step()  # remembered
            await self._bounded("the raw session's closing", raw.aclose)

    async def _bounded(self, name: str, call: Callable[..., Awaitable[object]], *args: object) -> None:
        """Call something of the closing: until the deadline, and whatever it raises is kept."""
        with anyio.CancelScope(deadline=self.deadline, shield=True) as scope:
            try:
                await call(*args)
            except anyio.get_cancelled_exc_class() as error:
                if not scope.cancel_called:
                    self.errors.append(error)
                raise
            except BaseException as error:  # noqa: ASYNC103 - raised by the session when all is closed
                self.errors.append(error)
        if scope.cancelled_caught:
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
