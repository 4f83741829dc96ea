"""GlobalStepWaiterHook: workers that begin one after the other."""

from __future__ import annotations

import logging

import anyio

from asyncstep._graph.graph import GLOBAL_STEP
from asyncstep._graph.variable import get_or_create_global_step
from asyncstep._monitored.coordinator import Coordinator
from asyncstep._monitored.hook import SessionRunContext, SessionRunHook
from asyncstep._runtime.session import Session
from asyncstep.errors import DeadlineExceededError
from asyncstep.hooks.timer import check_secs, check_steps

__all__ = ["GlobalStepWaiterHook"]

logger: logging.Logger = logging.getLogger("asyncstep")


class GlobalStepWaiterHook(SessionRunHook):
    """Let runs begin only when the global step has reached a number.

    Where workers share one global step it staggers their start: with ``int(k * math.log(index + 1))`` the
    first begins at once, and each later one when the loop is further under way.

    Args:
        wait_until_step: the global step to wait for; 0: there is nothing to wait for.
        timeout: seconds that a run waits at most; None: as long as it takes.

    Steps without this hook must bring the global step there: those of other processes, of
    ``run_without_hooks``, or of runs with other hooks. A commit wakes the run; nothing polls. Once the step
    is reached, no run of the session waits again. A run that still waits when the session stops or closes
    ends, without having been evaluated, with StopRequested or SessionClosedError.

    Raises:
        InvalidArgumentError: `wait_until_step` is negative, or `timeout` is not positive.
        DeadlineExceededError: from the run, when it has waited for `timeout`.

    TensorFlow: ``tf.train.GlobalStepWaiterHook``, which asks twice a second and for ever.
    """

    def __init__(self, wait_until_step: int, *, timeout: float | None = None) -> None:
        check_steps("GlobalStepWaiterHook", "wait_until_step", wait_until_step, least=0)
        if timeout is not None:
            check_secs("GlobalStepWaiterHook", "timeout", timeout)
        self._wait_until_step = wait_until_step
        self._timeout = timeout

    async def begin(self) -> None:
        """Make sure that there is a global step."""
        get_or_create_global_step()
        self._reached = False

    async def after_create_session(self, session: Session, coord: Coordinator) -> None:
        """Remember whose stop ends the waiting."""
        self._coord = coord

    async def before_run(self, run_context: SessionRunContext) -> None:
        """Wait until the global step is there. Checkpoint: if it is not."""
        if self._reached:
            return
        session = run_context.session
        if not self._is_reached(session):
            logger.info(
                "waiting for global step %d; it is at %d", self._wait_until_step, _global_step(session)
            )
            await self._wait(session)
        if not self._is_reached(session):
            session.check_open()  # a recovery may have put another session in its place
            if self._coord.should_stop():
                run_context.raise_stop()
            raise DeadlineExceededError(
                f"GlobalStepWaiterHook has waited {self._timeout} s for global step {self._wait_until_step};"
                f" it is at {_global_step(session)}"
            )
        self._reached = True

    def _is_reached(self, session: Session) -> bool:
        return _global_step(session) >= self._wait_until_step

    async def _wait(self, session: Session) -> None:
        """Wait for the step, a stop, the end of this raw session, or the timeout. Checkpoint: always."""
        with anyio.move_on_after(self._timeout):  # noqa: ASYNC912 - the task group waits
            async with anyio.create_task_group() as waits:
                waits.start_soon(self._cancel_at_stop, waits.cancel_scope)
                while session.intact and not self._is_reached(session):
                    await session.store.changed()
                waits.cancel_scope.cancel()

    async def _cancel_at_stop(self, scope: anyio.CancelScope) -> None:
        await self._coord.wait_for_stop()
        scope.cancel()


def _global_step(session: Session) -> int:
    """The committed value."""
    step: int = session.store.read(GLOBAL_STEP)
    return step
