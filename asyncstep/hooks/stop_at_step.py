"""StopAtStepHook: a loop of a known length."""

from __future__ import annotations

from asyncstep._graph.variable import get_or_create_global_step
from asyncstep._monitored.coordinator import Coordinator
from asyncstep._monitored.hook import SessionRunContext, SessionRunHook, SessionRunValues
from asyncstep._monitored.stop import StopKind, StopReason
from asyncstep._runtime.session import Session
from asyncstep.errors import InvalidArgumentError
from asyncstep.hooks.shared import shared
from asyncstep.hooks.timer import check_steps

__all__ = ["Bound", "StopAtStepHook"]


class Bound:
    """Where a session is going to stop, for its other hooks; see `shared`.

    Attributes:
        last_step: the global step; None if there is no `StopAtStepHook`.
    """

    def __init__(self) -> None:
        self.last_step: int | None = None


class StopAtStepHook(SessionRunHook):
    """Stop the session when its global step has reached a number.

    Args:
        num_steps: how many steps to run from where this session starts, be that 0 or a restored checkpoint.
            A recovery on the way does not make it count anew.
        last_step: the global step to stop at. A loop that is killed and resumed, however often, runs this
            many steps in all.

    Exactly one of the two is given. A session that starts at its target, or past it, runs no step at all:
    ``while not session.should_stop()`` is over before the first, and a `run` raises StopRequested. With
    several workers, the steps that are in flight when the target is reached still commit (contract S4): at
    most one each.

    Raises:
        InvalidArgumentError: none or both were given, or a negative number.
        InvalidTypeError: the number is no integer.

    TensorFlow: ``tf.train.StopAtStepHook``, which always runs one step more when it is resumed at its target.
    """

    def __init__(self, num_steps: int | None = None, last_step: int | None = None) -> None:
        if num_steps is not None and last_step is not None:
            raise InvalidArgumentError("StopAtStepHook takes num_steps or last_step, got both")
        if num_steps is not None:
            check_steps("StopAtStepHook", "num_steps", num_steps, least=0)
        elif last_step is not None:
            check_steps("StopAtStepHook", "last_step", last_step, least=0)
        else:
            raise InvalidArgumentError("StopAtStepHook needs num_steps or last_step")
        self._num_steps = num_steps
        self._last_step = last_step

    async def begin(self) -> None:
        """Make sure that there is a global step."""
        self._global_step = get_or_create_global_step()
        self._target: int | None = self._last_step

    async def after_create_session(self, session: Session, coord: Coordinator) -> None:
        """Find the target from where the session starts; stop at once if it starts there."""
        step = await session.run(self._global_step)
        if self._target is None:
            assert self._num_steps is not None
            self._target = step + self._num_steps
        bound = shared(coord, Bound)
        if bound.last_step is None or self._target < bound.last_step:
            bound.last_step = self._target
        if step >= self._target:
            coord.set_stop(StopReason(StopKind.HOOK, _reached(step, self._target), "StopAtStepHook"))

    async def after_run(self, run_context: SessionRunContext, run_values: SessionRunValues) -> None:
        """Stop when the step that has just been committed is the last one."""
        step, target = run_values.global_step, self._target
        assert step is not None
        assert target is not None
        if step >= target:
            run_context.request_stop(_reached(step, target))


def _reached(step: int, target: int) -> str:
    return f"global step {step} has reached {target}"
