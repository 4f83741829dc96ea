"""session.loop: workers that run a step function until the session stops."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any

import anyio

from asyncstep._monitored.company import in_loop
from asyncstep._monitored.run import begin_run
from asyncstep._monitored.step import check_step_fn, recorded_step_fn, run_step_fn
from asyncstep._monitored.stop import (
    StopKind,
    foremost,
    is_interrupt,
    keep_errors,
    name_of,
    outcome,
    raise_as_is,
    take_out,
)
from asyncstep._runtime.pace import NativeCancels
from asyncstep.errors import InvalidArgumentError, SessionClosedError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from asyncstep._monitored.life import Life

logger = logging.getLogger("asyncstep")


async def loop(
    life: Life, step_fn: Callable[..., Awaitable[Any]], args: tuple[Any, ...], workers: int
) -> None:
    """Run a step function in `workers` tasks until the session stops (contract W)."""
    if not isinstance(workers, int) or isinstance(workers, bool) or workers < 1:
        raise InvalidArgumentError(f"workers must be an int of at least 1, not {workers!r}")
    check_step_fn(step_fn, args)
    life.check_open()
    entered_with = NativeCancels()
    crew = _Crew(life, step_fn, args, workers)
    meanwhile: BaseException | None = None
    try:
        async with anyio.create_task_group() as group:
            with life.coord.running_in(group):
                await crew.work(group)
    except BaseException as error:  # noqa: ASYNC103 - raised below, where it is weighed against the errors
        meanwhile = foremost(error)
    final = outcome(meanwhile or crew.cancellation, crew.take_errors(), anyio.get_cancelled_exc_class())
    meanwhile = None
    if final is not None:
        try:
            raise_as_is(final)
        finally:
            del final
    await after_absorbing(entered_with)


async def after_absorbing(entered_with: NativeCancels, but: int = 0) -> None:
    """What follows the absorption of a stop: no cancellation may be lost with it (contract C2).

    `but` native cancels are known to be no cancellations. Checkpoint: always.
    """
    await anyio.lowlevel.checkpoint()
    if entered_with.have_grown(but):
        raise anyio.get_cancelled_exc_class()()


class _Crew:
    """The workers of one loop."""

    def __init__(
        self, life: Life, step_fn: Callable[..., Awaitable[Any]], args: tuple[Any, ...], workers: int
    ) -> None:
        self.life = life
        self.step_fn = step_fn
        self.args = args
        self.name = name_of(step_fn)
        self.size = workers
        self.working: set[int] = set(range(workers))
        self.errors: list[BaseException] = []
        self.cancellation: BaseException | None = None
        self.wake = anyio.Event()
        self.done = anyio.Event()

    async def work(self, group: anyio.abc.TaskGroup) -> None:
        """Start the workers; once the session stops, give them the grace period to finish their steps."""
        self.life.stop.when_set(self.wake.set)
        try:
            for index in range(self.size):
                group.start_soon(self._worker, index, group.cancel_scope, name=f"{self.name} worker {index}")
            await self.wake.wait()
        finally:
            self.life.stop.forget(self.wake.set)
        if self.life.stop.reason is None:
            if self.cancellation is not None:
                # A step was cancelled. If that came from outside of the loop, it is seen here too.
                await anyio.lowlevel.checkpoint()
                group.cancel_scope.cancel()
            return  # else the session was closed, and the workers have ended
        # The last items were given to steps in flight: however long those take, the end of the data waits
        # for them (contract D5).
        at_end = self.life.stop.reason.kind is StopKind.END_OF_DATA
        with anyio.move_on_after(math.inf if at_end else self.life.grace):
            await self.done.wait()
        if self.working:
            logger.warning(
                "cancelled after the stop_grace_period of %g s: %s of %s",
                self.life.grace, _workers(self.working), self.name,
            )  # fmt: skip
            group.cancel_scope.cancel()
            return
        raw = self.life.raw
        if raw is not None and raw.company is not None:
            await raw.company.loop_ended()
        if self.life.coord.tasks_end_with_loop:
            if self.life.raw is not None:
                self.life.raw.store.stop_reading()
            with anyio.move_on_after(self.life.grace / 2):
                await self.life.coord.wait_until_idle()
            self.life.coord.cancel_tasks()

    async def _worker(self, index: int, scope: anyio.CancelScope) -> None:  # noqa: ASYNC910 - each step has one
        life = self.life
        in_loop.set(True)
        cancelled = anyio.get_cancelled_exc_class()  # noqa: ASYNC118 - of the loop that runs; read once
        try:
            while True:
                life.turn = index
                try:
                    await begin_run(life)
                except SessionClosedError:
                    if not life.closing:
                        raise  # a background task's
                    return  # noqa: ASYNC910 - closed meanwhile, the session has stopped (contract L5)
                run = recorded_step_fn if life.recording else run_step_fn
                await run(life, self.step_fn, self.args, index)
                if life.turn == index and self.size > 1:
                    await anyio.lowlevel.checkpoint()  # nobody else has had a turn (contract W3)
        except BaseException as error:  # noqa: ASYNC103 - keep_errors raises a cancellation again
            try:
                keep_errors(error, cancelled, lambda each: self._failed(each, scope))
            except cancelled as cancellation:
                if not scope.cancel_called and self.cancellation is None:
                    self.cancellation = cancellation
                    self.wake.set()
                raise
        finally:
            self.working.discard(index)
            if not self.working:
                self.done.set()
                self.wake.set()

    def _failed(self, error: BaseException, scope: anyio.CancelScope) -> None:
        """A worker's error stops the session; the others finish their steps (contract W2)."""
        rest = take_out(error, self.life.session)
        if rest is None:
            return
        self.errors.append(rest)
        self.life.request_stop(StopKind.ERROR, repr(rest), self.name)
        if is_interrupt(rest):
            scope.cancel()

    def take_errors(self) -> list[BaseException]:
        """The workers' errors, and those of background tasks that nobody has raised."""
        errors, self.errors = [*self.errors, *self.life.coord.take_errors()], []
        self.cancellation = None
        return errors


def _workers(indices: set[int]) -> str:
    shown = sorted(indices)[:10]
    more = f" and {len(indices) - len(shown)} more" if len(indices) > len(shown) else ""
    return f"worker{'s' if len(indices) > 1 else ''} {', '.join(map(str, shown))}{more}"
