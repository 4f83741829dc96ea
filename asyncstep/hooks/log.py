"""LoggingHook: values of the loop as lines in the log."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from asyncstep._graph.variable import get_or_create_global_step
from asyncstep._monitored.coordinator import Coordinator
from asyncstep._monitored.hook import SessionRunArgs, SessionRunContext, SessionRunHook, SessionRunValues
from asyncstep._runtime.session import Session
from asyncstep.hooks.named import listed, named_fetches
from asyncstep.hooks.sampling import Sampler
from asyncstep.hooks.timer import SecondOrStepTimer, check_intervals

__all__ = ["LoggingHook"]

logger: logging.Logger = logging.getLogger("asyncstep")


class LoggingHook(SessionRunHook):
    """Log values every so often, at INFO on the logger ``asyncstep``.

    Args:
        values: what to log: a mapping of names to fetches, or a sequence of fetches that have names of their
            own (nodes, variables, nodes' names, coroutine functions).
        every_n_steps: log the first step that this session runs and every n-th from there, by the global step.
        every_n_secs: log the first step, and then one as soon as this many seconds have passed. With both,
            whichever is over first.
        at_end: log once more when the session ends cleanly, by an evaluation after the last step (so name
            nothing that takes items from a source: its data may have ended). With `at_end` both intervals may
            be left out: then the end is all that is logged.
        formatter: makes the line from a dict of name -> value. None: ``step 7: loss = 0.25 (1.502 sec)``,
            where 7 is the global step that the run committed as, and the time is that since the line before.

    One worker's runs fetch the values only when they log. Of several workers' runs, those fetch them that may
    become the step to log, for which one does is known only at its commit. So with any number of workers the
    lines come from the same steps, in their order, and none twice. A step that is rolled back is not logged.

    Python shows INFO only when asked to: ``logging.basicConfig(level=logging.INFO)``.

    Raises:
        InvalidArgumentError: no interval, one that is not positive, no values, or two of one name.
        InvalidTypeError: `values` is neither mapping nor sequence, or holds a fetch that has no name.

    TensorFlow: ``tf.train.LoggingTensorHook``.
    """

    def __init__(
        self,
        values: Mapping[str, Any] | Sequence[Any],
        *,
        every_n_steps: int | None = None,
        every_n_secs: float | None = None,
        at_end: bool = False,
        formatter: Callable[[dict[str, Any]], str] | None = None,
    ) -> None:
        self._sampler: Sampler | None = None
        if not at_end or every_n_steps is not None or every_n_secs is not None:
            check_intervals("LoggingHook", every_n_steps=every_n_steps, every_n_secs=every_n_secs)
            self._sampler = Sampler(SecondOrStepTimer(every_n_secs, every_n_steps), every_n_steps)
        self._values = named_fetches("LoggingHook", values)
        self._at_end = at_end
        self._formatter = formatter

    async def begin(self) -> None:
        """Make sure that there is a global step for the line at the end."""
        self._global_step = get_or_create_global_step()

    async def after_create_session(self, session: Session, coord: Coordinator) -> None:
        """Begin with the first step, also after a recovery."""
        if self._sampler is not None:
            self._sampler.restart()

    async def before_run(self, run_context: SessionRunContext) -> SessionRunArgs | None:
        """Ask for the values if this run may become the step to log."""
        if self._sampler is None or not self._sampler.asks(run_context):
            return None
        return SessionRunArgs(self._values)

    async def after_run(self, run_context: SessionRunContext, run_values: SessionRunValues) -> None:
        """Log the values if this step is due."""
        step = run_values.global_step
        assert step is not None
        if self._sampler is None:
            return
        due, secs = self._sampler.shows(run_context, step)
        if due:
            self._log(f"step {step}: ", run_values.results, "" if secs is None else f" ({secs:.3f} sec)")

    async def on_run_error(self, run_context: SessionRunContext, error: BaseException) -> None:
        """Leave the line to another run."""
        if self._sampler is not None:
            self._sampler.forget(run_context)

    async def end(self, session: Session) -> None:
        """Log the values as they are at the end, with `at_end`."""
        if self._at_end:
            step, values = await session.run((self._global_step, self._values))
            self._log(f"end, step {step}: ", values, "")

    def _log(self, when: str, values: dict[str, Any], since: str) -> None:
        if self._formatter is not None:
            logger.info("%s", self._formatter(values))
        else:
            logger.info("%s%s%s", when, listed(values), since)
