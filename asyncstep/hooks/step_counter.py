"""StepCounterHook: how fast the loop is."""

from __future__ import annotations

import logging
import time
from os import PathLike
from typing import Any, Protocol

from asyncstep._monitored.coordinator import Coordinator
from asyncstep._monitored.hook import SessionRunContext, SessionRunHook, SessionRunValues
from asyncstep._runtime.session import Session
from asyncstep.errors import InvalidTypeError, kind_of
from asyncstep.hooks.summary_output import SummaryOutput
from asyncstep.hooks.timer import SecondOrStepTimer, check_intervals

__all__ = ["ScalarWriter", "StepCounterHook"]

logger: logging.Logger = logging.getLogger("asyncstep")

TAG = "global_step/sec"
TICK = time.get_clock_info("monotonic").resolution


class ScalarWriter(Protocol):
    """What takes a number for a step: a writer of `asyncstep.summary`, of tensorboardX or torch, or your own."""

    def add_scalar(self, tag: str, value: float, step: int, /) -> Any:
        """Take the value of a tag at a global step. Called on the event loop, so it must be quick."""


class StepCounterHook(SessionRunHook):
    """Log the global steps per second, at INFO on the logger ``asyncstep``, and give them to a writer.

    Args:
        every_n_steps: measure over this many global steps; None: steps do not trigger.
        every_n_secs: measure over this many seconds. With both, whichever is over first: for seconds alone,
            give ``every_n_steps=None`` too.
        output_dir: a directory for event files; they get ``global_step/sec``. All hooks of a process share one
            writer for a directory; it is closed with the session.
        writer: whatever has ``add_scalar(tag, value, step)`` instead. If it has a method ``flush``, that is
            called when the session ends; it is yours to close. With neither, the rate is logged only.

    The first step starts the clock. What is measured is the global step: the steps of all workers, whether
    this hook ran with them or not. After a recovery the clock starts anew, for steps that are made again are
    no progress.

    Raises:
        InvalidArgumentError: no interval, or one that is not positive; both `output_dir` and `writer`.
        InvalidTypeError: `writer` has no ``add_scalar``.

    TensorFlow: ``tf.train.StepCounterHook``, where `writer` is called ``summary_writer``.
    """

    def __init__(
        self,
        every_n_steps: int | None = 100,
        every_n_secs: float | None = None,
        output_dir: str | PathLike[str] | None = None,
        writer: ScalarWriter | None = None,
    ) -> None:
        check_intervals("StepCounterHook", every_n_steps=every_n_steps, every_n_secs=every_n_secs)
        if writer is not None and not callable(getattr(writer, "add_scalar", None)):
            raise InvalidTypeError(
                f"StepCounterHook: writer must have add_scalar(tag, value, step), got {kind_of(writer)}"
            )
        self._output: SummaryOutput | None = None
        if output_dir is not None or writer is not None:
            self._output = SummaryOutput("StepCounterHook", output_dir, writer)
        self._timer = SecondOrStepTimer(every_n_secs, every_n_steps)

    async def begin(self) -> None:
        """Get the writer."""
        if self._output is not None:
            self._output.open()

    async def after_create_session(self, session: Session, coord: Coordinator) -> None:
        """Start measuring anew, at the opening and after a recovery."""
        self._timer.reset()
        if self._output is not None:
            self._output.start(session, coord)

    async def after_run(self, run_context: SessionRunContext, run_values: SessionRunValues) -> None:
        """Log the rate if it is due at the step that has just been committed."""
        step = run_values.global_step
        assert step is not None
        last = self._timer.last_triggered_step()
        if last is not None and step <= last:
            return  # of two workers' steps the later one was seen first, and has been counted with
        if not self._timer.should_trigger_for_step(step):
            return
        secs, steps = self._timer.update_last_triggered_step(step)
        if secs is not None and steps is not None:
            self._report(steps / max(secs, TICK), step)  # a clock that stood still ran for less than a tick

    def _report(self, rate: float, step: int) -> None:
        logger.info("%s: %g", TAG, rate)
        if self._output is not None:
            self._output.writer.add_scalar(TAG, rate, step)

    async def end(self, session: Session) -> None:
        """Have everything written."""
        if self._output is not None:
            await self._output.close()

    async def on_session_error(self, session: Session, error: BaseException) -> None:
        """Have everything written."""
        if self._output is not None:
            await self._output.close()
