"""SummarySaverHook: values of the loop in files that TensorBoard reads."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from asyncstep._graph.node import Node
from asyncstep._monitored.coordinator import Coordinator
from asyncstep._monitored.hook import SessionRunArgs, SessionRunContext, SessionRunHook, SessionRunValues
from asyncstep._runtime.session import Session
from asyncstep._runtime.snapshot import global_step
from asyncstep.errors import InvalidTypeError, kind_of
from asyncstep.hooks.named import named_fetches
from asyncstep.hooks.summary_output import SummaryOutput
from asyncstep.hooks.timer import SecondOrStepTimer, check_intervals
from asyncstep.summary import SummaryWriter
from asyncstep.summary.values import summaries_of
from asyncstep.summary.writers import write

__all__ = ["SummarySaverHook"]


class SummarySaverHook(SessionRunHook):
    """Write values as summaries every so often, with the global step that they were committed as.

    Args:
        values: what to write: a mapping of names to fetches, a sequence of fetches that have names of their
            own, or one such fetch. A number or an array without dimensions is written as a scalar, a
            string as a text, under the name of its fetch; a summary (`asyncstep.summary`) as what it is, under
            its own. For all the summaries of a graph give ``asyncstep.summary.merge_all()``.
        save_steps: write the first step and then one as soon as there are this many more global steps.
        save_secs: write the first step, and then one as soon as this many seconds have passed. With both,
            whichever is over first.
        output_dir: the directory for event files. All hooks of a process share one writer for a directory;
            it is closed with the session. A disk that is full is a line in the log (WARNING), not an error.
        writer: a writer instead, such as ``JSONLinesWriter(directory)``, or your own `SummaryWriter`. It is
            flushed when the session ends, and is yours to close.

    The fetches join only the runs that write. A step is written after its commit, and one at a time: so with
    any number of workers the steps come in order, and none twice. A step that is rolled back is not written;
    the next one is. The writing itself is done in a thread. After a recovery, and where a session goes on from a
    checkpoint, TensorBoard is told to drop what it has of the steps that are made again. What the session's
    `EvaluatorHook`s find is written, too: ``eval/loss``.

    Raises:
        InvalidArgumentError: no interval, or one that is not positive; no values, or two of one name; both or
            none of `output_dir` and `writer`.
        InvalidTypeError: `values` holds a fetch that has no name, `writer` lacks a method. From the run that
            writes: a value is no summary.

    TensorFlow: ``tf.train.SummarySaverHook``, where `writer` is called ``summary_writer``, and `values` ``summary_op``.
    """

    def __init__(
        self,
        values: Mapping[str, Any] | Sequence[Any] | Node[Any],
        *,
        save_steps: int | None = None,
        save_secs: float | None = None,
        output_dir: str | os.PathLike[str] | None = None,
        writer: SummaryWriter | None = None,
    ) -> None:
        check_intervals("SummarySaverHook", save_steps=save_steps, save_secs=save_secs)
        if values is None:
            raise InvalidTypeError(
                "SummarySaverHook: values must be fetches, got None; merge_all() gives None for a graph"
                " without summary nodes"
            )
        if isinstance(values, str) or not isinstance(values, (Mapping, Sequence)):
            values = [values]
        self._values = named_fetches("SummarySaverHook", values)
        if writer is not None and not isinstance(writer, SummaryWriter):
            raise InvalidTypeError(
                "SummarySaverHook: writer must have the methods of asyncstep.summary.SummaryWriter,"
                f" got {kind_of(writer)}"
            )
        self._output = SummaryOutput("SummarySaverHook", output_dir, writer)
        self._timer = SecondOrStepTimer(save_secs, save_steps)
        self._writing: _WrittenRun | None = None
        self._newest: int | None = None

    async def begin(self) -> None:
        """Get the writer."""
        self._output.open()

    async def after_create_session(self, session: Session, coord: Coordinator) -> None:
        """Begin with the first step, at the opening and after a recovery."""
        self._timer.reset()
        self._writing = self._newest = None
        self._output.start(session, coord)

    async def before_run(self, run_context: SessionRunContext) -> SessionRunArgs | None:
        """Ask for the values if they are due, and no other run in flight is going to give them."""
        if self._writing is not None:
            return None
        due_at = global_step(run_context.session.store) + 1
        if not self._timer.should_trigger_for_step(due_at):
            return None
        self._writing = _WrittenRun(run_context, due_at)
        return SessionRunArgs(self._values)

    async def after_run(self, run_context: SessionRunContext, run_values: SessionRunValues) -> None:
        """Write the values if this run was asked for them."""
        writing = self._writing
        if writing is None or writing.context is not run_context:
            return
        self._writing = None
        step = run_values.global_step
        assert step is not None
        if self._newest is not None and step <= self._newest:
            return  # in a graph that counts its steps itself, this run was none; the next one is asked
        self._newest = step
        self._timer.update_last_triggered_step(writing.due_at)
        found = [
            summary
            for name, value in run_values.results.items()
            for summary in summaries_of("SummarySaverHook", name, value)
        ]
        for summary in found:
            write(self._output.writer, summary, step)

    async def on_run_error(self, run_context: SessionRunContext, error: BaseException) -> None:
        """Leave the writing to the next run."""
        if self._writing is not None and self._writing.context is run_context:
            self._writing = None

    async def end(self, session: Session) -> None:
        """Have everything written."""
        await self._output.close()

    async def on_session_error(self, session: Session, error: BaseException) -> None:
        """Have everything written."""
        await self._output.close()


@dataclass(frozen=True, slots=True)
class _WrittenRun:
    """The one run in flight whose values are going to be written.

    While it is set, no other run is asked for them. So the next one that is begins, and commits, later.
    """

    context: SessionRunContext
    due_at: int  # the global step for which it was found due
