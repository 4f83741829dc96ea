"""ProfilerHook and TraceHook: what the loop did when, as traces that Perfetto and chrome://tracing open."""

from __future__ import annotations

import logging
import os
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import anyio.to_thread

from asyncstep._monitored.company import program_index
from asyncstep._monitored.coordinator import Coordinator
from asyncstep._monitored.hook import SessionRunContext, SessionRunHook, SessionRunValues
from asyncstep._runtime.session import Session
from asyncstep._runtime.snapshot import global_step
from asyncstep._runtime.trace import STEP, Span, Trace, active
from asyncstep._runtime.trace_events import checked_path, write_trace
from asyncstep.errors import InvalidArgumentError
from asyncstep.hooks.timer import SecondOrStepTimer, check_intervals

__all__ = ["MOST_EVENTS", "ProfilerHook", "TraceHook"]

logger: logging.Logger = logging.getLogger("asyncstep")

MOST_EVENTS = 100_000
"""The most events of one trace, about 20 MB of memory; how many more there were is told in the file."""


class ProfilerHook(SessionRunHook):
    """Write a trace of one step every so often, to ``timeline-STEP.json`` in a directory.

    Args:
        save_steps: trace the first step, and then one as soon as so many global steps have been made.
        save_secs: trace the first step, and then one as soon as so many seconds have passed. With both,
            whichever is over first.
        output_dir: where the files go; made if need be. "" is the current directory.

    When a trace is due, runs are recorded that begin from then on (as by ``RunOptions(trace=True)``), those of
    all workers, until one of them has committed; the file is named after its step. What the others have begun by then
    is recorded to its end, and steps that were in flight before appear as they end. So a file shows about one
    step of each worker: its nodes, the methods of its hooks, its waits for items, limiters and further
    attempts, recoveries; and checkpoints, from the snapshot until they are durable. If the session ends before
    any of them has committed, the file is named after the step that they were to become.

    Between two traces a step costs next to nothing. A trace holds at most 100,000 events; in the file's
    `otherData`, `dropped_events` and `dropped_steps` say how many more there were. Files are written in a
    thread, each as a whole or not at all, and no further trace is begun while 100,000 events wait to be written.
    An error of writing is logged at WARNING, once in a session, and the loop goes on.

    Raises:
        InvalidArgumentError: no interval, one that is not positive, or `output_dir` is no path of this machine.
        InvalidTypeError: an interval is no number, or `output_dir` no path.

    TensorFlow: ``tf.train.ProfilerHook``, which passes over the first step.
    """

    def __init__(
        self,
        save_steps: int | None = None,
        save_secs: float | None = None,
        output_dir: str | os.PathLike[str] = "",
    ) -> None:
        check_intervals("ProfilerHook", save_steps=save_steps, save_secs=save_secs)
        self._timer = SecondOrStepTimer(save_secs, save_steps)
        self._directory = checked_path("ProfilerHook: output_dir", output_dir)
        self._forget()

    def _forget(self) -> None:
        self._coord: Coordinator | None = None
        self._files: _TraceFiles | None = None
        self._open: Trace | None = None  # records the runs that begin now
        self._ending: Trace | None = None  # waits for the end of the runs that it has
        self._last: Span | None = None  # the step that it is named after

    async def begin(self) -> None:
        """Forget what is of an earlier session."""
        self._timer.reset()
        self._forget()

    async def after_create_session(self, session: Session, coord: Coordinator) -> None:
        """The first run is traced; and the next one, if a recovery went back behind the last trace."""
        if self._coord is None:
            self._coord, self._files = coord, _TraceFiles()
            coord.call_when_closed(self._files.close)
        last = self._timer.last_triggered_step()
        if last is not None and last > global_step(session.store):
            self._timer.reset()
        self._begin_if_due(global_step(session.store) + 1)

    def _begin_if_due(self, step: int) -> None:
        """Record the runs that begin from now on, if a trace is due at `step`, which the next one may be."""
        if self._open is not None or not self._timer.should_trigger_for_step(step):
            return
        if self._ending is not None:
            if self._last is not None and self._last.ended is None:
                return  # its last step is not over; then it is asked again
            self._ending.finish()
        coord, files = self._coord, self._files
        if (
            self._open is None
            and coord is not None
            and files is not None
            and files.events_waiting < MOST_EVENTS
        ):
            self._open = Trace(MOST_EVENTS)
            coord.open_trace(self._open)

    def _end_trace(self, coord: Coordinator, files: _TraceFiles, step: int) -> Trace:
        """Take no more runs into the open trace; it is written when those are over that it has."""
        trace = self._open
        assert trace is not None

        def over() -> None:
            self._ending = self._last = None
            files.write(self._directory / f"timeline-{step}.json", trace)
            self._begin_if_due(step + 1)

        self._open, self._ending = None, trace
        trace.when_over = over
        coord.close_trace(trace)
        return trace

    async def after_run(self, run_context: SessionRunContext, run_values: SessionRunValues) -> None:
        """End the trace if this run is in it; begin one if it is due."""
        step = run_values.global_step
        assert step is not None
        if self._open is not None and self._coord is not None and self._files is not None:
            recorded = self._is_recorded(self._open)
            if recorded or not self._open.takes_more:
                self._timer.update_last_triggered_step(step)
                self._last = _step_around(active.get()) if recorded else None
                self._end_trace(self._coord, self._files, step)
            else:
                self._add_late(f"step {step}", run_context, "committed")
        self._begin_if_due(step + 1)

    async def on_run_error(self, run_context: SessionRunContext, error: BaseException) -> None:
        """Show the run in the trace, if it began before."""
        if self._open is not None and not self._is_recorded(self._open):
            self._add_late(STEP, run_context, error)

    def _is_recorded(self, trace: Trace) -> bool:
        span = active.get()
        return span is not None and trace in span.traces

    def _add_late(self, name: str, run_context: SessionRunContext, end: BaseException | str) -> None:
        """A run ends that was in flight when the trace began."""
        trace = self._open
        assert trace is not None
        span = Span(name, STEP, run_context.worker, traces=(trace,), began=trace.began)
        span.note(attempt=run_context.attempt, began="before the trace")
        if isinstance(end, str):
            span.note(outcome=end)
            span.end()
        else:
            span.end(end)

    async def end(self, session: Session) -> None:
        """Write what there is, and wait for it."""
        await self._end(session)

    async def on_session_error(self, session: Session, error: BaseException) -> None:
        """Likewise: here the trace of what failed is in."""
        await self._end(session)

    async def _end(self, session: Session) -> None:
        coord, files = self._coord, self._files
        if coord is None or files is None:
            return
        self._coord = None  # no further trace begins
        if self._ending is not None:
            self._ending.finish()
        if self._open is not None:
            if any(span.category == STEP for span in self._open.spans):
                self._end_trace(coord, files, global_step(session.store) + 1).finish()
            else:
                coord.close_trace(self._open)
        self._open = None
        await files.written()


def _step_around(span: Span | None) -> Span | None:
    """The step that a span is a part of."""
    while span is not None and span.category != STEP:
        span = span.parent
    return span


class TraceHook(SessionRunHook):
    """Write one trace of the whole session to a file when it ends, in whatever way.

    Args:
        path: the file; its directory is made if need be, and a file that is there is replaced.

    It is for short programs: the trace holds the first 100,000 events, and the count of what came later; see
    `ProfilerHook` for what is in it, and for a loop that runs long. Put it first in the list of hooks: then it
    ends last, with the last checkpoint in it. An error of writing is logged at WARNING. In a launch each program
    writes its own: that of index 2 writes ``trace-2.json`` where the chief writes ``trace.json``.

    Raises:
        InvalidArgumentError, InvalidTypeError: `path` is no path of this machine.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = checked_path("TraceHook: path", path)
        if not self._path.name:
            raise InvalidArgumentError(f"TraceHook: path must be that of a file, got {os.fspath(path)!r}")
        self._coord: Coordinator | None = None
        self._trace = Trace(MOST_EVENTS)

    async def begin(self) -> None:
        """Forget what is of an earlier session."""
        self._coord = None

    async def after_create_session(self, session: Session, coord: Coordinator) -> None:
        """Record from now on."""
        if self._coord is None:
            self._coord, self._trace = coord, Trace(MOST_EVENTS)
            coord.open_trace(self._trace)

    async def end(self, session: Session) -> None:
        """Write the file."""
        await self._end()

    async def on_session_error(self, session: Session, error: BaseException) -> None:
        """Likewise."""
        await self._end()

    async def _end(self) -> None:
        if self._coord is not None:
            self._coord.close_trace(self._trace)
            self._trace.finish()
            files = _TraceFiles()
            files.write(_of_program(self._path), self._trace)
            files.close()
            await files.written()


def _of_program(path: Path) -> Path:
    """The path, or one beside it in the programs of a launch that are not its chief's: they may share a directory."""
    return path.with_stem(f"{path.stem}-{index}") if (index := program_index()) else path


class _TraceFiles:
    """Writes traces to files, one after the other, in a thread."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="asyncstep-trace")
        self._waiting: deque[tuple[Future[None], int]] = deque()
        self._failed = False

    @property
    def events_waiting(self) -> int:
        """How many events are in the traces that are not written yet."""
        while self._waiting and self._waiting[0][0].done():
            self._waiting.popleft()
        return sum(events for _, events in self._waiting)

    def write(self, path: Path, trace: Trace) -> None:
        """Have a trace written. Does not wait."""
        self._waiting.append((self._thread.submit(self._write, path, trace), len(trace.spans)))

    def _write(self, path: Path, trace: Trace) -> None:
        try:
            write_trace(path, trace)
        except Exception as error:
            if not self._failed:
                logger.warning(
                    "the trace %s cannot be written, and the loop goes on: %s; further traces that cannot be"
                    " written are not told of", path, error,
                )  # fmt: skip
            self._failed = True
        else:
            logger.info("a trace of %d events is in %s", len(trace.spans), path)

    async def written(self) -> None:
        """Wait until all is written. Checkpoint: if something is not."""
        for future, _ in list(self._waiting):
            if not future.done():
                await anyio.to_thread.run_sync(future.exception, abandon_on_cancel=True)

    def close(self) -> None:
        """Nothing further is to be written. Does not wait."""
        self._thread.shutdown(wait=False)
