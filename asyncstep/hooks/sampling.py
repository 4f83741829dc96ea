"""Which runs are asked for values so that the steps that are due have theirs."""

from __future__ import annotations

import math
from dataclasses import dataclass

from asyncstep._monitored.hook import SessionRunContext
from asyncstep._runtime.snapshot import global_step
from asyncstep.hooks.timer import SecondOrStepTimer

__all__ = ["Sampler"]


@dataclass(frozen=True, slots=True)
class _Run:
    """A run in flight: whether it was asked for the values, and the global step when it began."""

    asked: bool
    committed: int


class Sampler:
    """Finds, for a hook that wants values every so often, the runs that fetch them and the steps that show them.

    Before a run nobody knows as which step it will commit: with several workers, those in flight may commit in
    any order. So the runs that may become the step that is due are all asked, and the one that does become it
    shows its values; those of the others are dropped. One worker's runs are asked only when they are due. Runs
    due by time alone are asked one at a time, for which of them it is does not matter.

    A run counts as one that may become the due step if that is no more commits away than runs took of late, or
    than twice as many as were in flight. Where one that takes longer becomes it all the same, the next one
    that was asked takes its place; the steps that are due after it are the same.

    Args:
        timer: says which steps are due.
        every_steps: the global steps between two of them, as in the timer.
    """

    __slots__ = ("_every_steps", "_last", "_reach", "_runs", "_timer")

    def __init__(self, timer: SecondOrStepTimer, every_steps: int | None) -> None:
        self._timer = timer
        self._every_steps = math.inf if every_steps is None else every_steps
        self._runs: dict[SessionRunContext, _Run] = {}  # those in flight
        self.restart()

    def restart(self) -> None:
        """Show the next step, whatever was shown before: a session begins, or goes back to a checkpoint."""
        self._timer.reset()
        self._last: int | None = None
        self._reach = (
            1.0  # how many commits there may be from a run's beginning to its own, as far as is known
        )

    def asks(self, run_context: SessionRunContext) -> bool:
        """Whether a run that begins is to fetch the values."""
        committed, in_flight = global_step(run_context.session.store), len(self._runs) + 1
        self._reach = max(self._reach, 2 * in_flight - 1)
        may_become = committed + math.ceil(self._reach)
        asked = self._timer.should_trigger_for_step(may_become)
        if asked and self._last is not None and not self._due_by_steps(may_become):
            asked = not any(run.asked for run in self._runs.values())
        self._runs[run_context] = _Run(asked, committed)
        return asked

    def shows(self, run_context: SessionRunContext, step: int) -> tuple[bool, float | None]:
        """Whether a run that has committed shows its values; and the seconds since the step shown before it.

        Steps are shown in their order: what is told after a later step is left out.
        """
        run = self._runs.pop(run_context, None)
        if run is None:
            return False, None
        self._reach = max(0.99 * self._reach, step - run.committed)
        late = self._last is not None and step <= self._last
        if not run.asked or late or not self._timer.should_trigger_for_step(step):
            return False, None
        late_by = int((step - self._anchor) % self._every_steps) if self._due_by_steps(step) else 0
        seconds, _ = self._timer.update_last_triggered_step(step - late_by)
        self._last = step
        return True, seconds

    def forget(self, run_context: SessionRunContext) -> None:
        """A run has failed: the values that it was asked for come from another one."""
        self._runs.pop(run_context, None)

    def _due_by_steps(self, step: int) -> bool:
        return self._last is not None and step >= self._anchor + self._every_steps

    @property
    def _anchor(self) -> int:
        """The step from which the next due one is counted."""
        return self._timer.last_triggered_step() or 0
