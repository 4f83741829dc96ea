"""RunOptions and RunMetadata: what a run is asked for, and what it tells."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread

from asyncstep._runtime.trace import NODE, Trace, active
from asyncstep._runtime.trace_events import checked_path, trace_events, write_trace
from asyncstep.errors import (
    DeadlineExceededError,
    FailedPreconditionError,
    InvalidArgumentError,
    InvalidTypeError,
    kind_of,
)

if TYPE_CHECKING:
    import os
    from types import TracebackType


@dataclass(frozen=True, slots=True)
class RunOptions:
    """Options of one run (TensorFlow: ``tf.RunOptions``).

    Args:
        timeout: seconds; then the run is rolled back with DeadlineExceededError (contract R10).
        trace: whether to record what the run does when, in its `RunMetadata`.
        concurrency: the most nodes that are under way at a time.
    """

    timeout: float | None = None
    trace: bool = False
    concurrency: int | None = None

    def __post_init__(self) -> None:
        timeout, concurrency = self.timeout, self.concurrency
        if timeout is not None and not (isinstance(timeout, (int, float)) and timeout > 0):
            raise InvalidArgumentError(f"timeout must be a positive number of seconds, not {timeout!r}")
        if concurrency is not None and not (isinstance(concurrency, int) and concurrency >= 1):
            raise InvalidArgumentError(f"concurrency must be an int of at least 1, not {concurrency!r}")


class RunMetadata:
    """Filled in by a run (TensorFlow: ``tf.RunMetadata``).

    Attributes:
        global_step: that of the run's commit; None before it.
        attempt: 1, or more after the step was retried.
    """

    __slots__ = ("_trace", "attempt", "global_step")

    def __init__(self) -> None:
        self._trace: Trace | None = None
        self.global_step: int | None = None
        self.attempt: int = 1

    @property
    def node_timings(self) -> dict[str, tuple[float, float]]:
        """Name of a node -> (start, end) in seconds of ``time.monotonic``; empty if the run was not traced.

        Of a step that was tried again these are the times of the last attempt.
        """
        if self._trace is None or not self._trace.spans:
            return {}
        whole = self._trace.spans[0]
        return {
            span.name: (span.began, span.ended)
            for span in self._trace.spans
            if span.category == NODE and span.parent is whole and span.ended is not None
        }

    def trace_events(self) -> list[dict[str, Any]]:
        """What the run did when, as events of Chrome's trace event format: the step, its nodes, hooks and waits.

        Raises:
            FailedPreconditionError: the run was not traced.
        """
        return trace_events(self._recorded())

    async def save_trace(self, path: str | os.PathLike[str]) -> None:
        """Write the trace of the run to a JSON file, which Perfetto and chrome://tracing open.

        It is written in a worker thread, and is there as a whole or not at all; its directory is made if need be.

        Raises:
            FailedPreconditionError: the run was not traced.
            InvalidTypeError, InvalidArgumentError: `path` is no path of this machine.
            OSError: what the disk says.

        Checkpoint: always.
        """
        trace, file = self._recorded(), checked_path("the path of a trace", path)
        await anyio.to_thread.run_sync(write_trace, file, trace)

    def _recorded(self) -> Trace:
        if self._trace is None:
            raise FailedPreconditionError(
                "this run was not traced; ask for it by run(..., options=RunOptions(trace=True), run_metadata=...)"
            )
        return self._trace

    def __repr__(self) -> str:
        return f"RunMetadata(global_step={self.global_step}, attempt={self.attempt}, nodes={len(self.node_timings)})"

    # What follows is for sessions.

    def new_trace(self) -> Trace:
        """The trace of the run that begins now; it is over with that run."""
        self._trace = Trace(closed=True)
        return self._trace

    @property
    def is_recording(self) -> bool:
        """Whether the running code is part of the run that this is filled in by, and recorded in it."""
        span = active.get()
        return span is not None and self._trace in span.traces


def merged(options: RunOptions, other: RunOptions) -> RunOptions:
    """Options that serve two askers: the longer timeout, a trace if either wants one, the lower limit."""
    timeouts = [each.timeout for each in (options, other) if each.timeout is not None]
    limits = [each.concurrency for each in (options, other) if each.concurrency is not None]
    return RunOptions(
        timeout=max(timeouts, default=None),
        trace=options.trace or other.trace,
        concurrency=min(limits, default=None),
    )


def check_options(options: object, metadata: object) -> None:
    """Refuse what is not RunOptions or RunMetadata."""
    if options is not None and not isinstance(options, RunOptions):
        raise InvalidTypeError(f"options must be a RunOptions, not {kind_of(options)}")
    if metadata is not None and not isinstance(metadata, RunMetadata):
        raise InvalidTypeError(f"run_metadata must be a RunMetadata, not {kind_of(metadata)}")


class deadline:
    """Cancel the block after a time, and say so with DeadlineExceededError.

    No `contextlib.contextmanager`: since Python 3.12 its frames would keep the cancellation, and all that its
    traceback holds, alive in a cycle (contract E5).
    """

    __slots__ = ("_scope", "_seconds")

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._scope = anyio.CancelScope()

    def __enter__(self) -> anyio.CancelScope:
        self._scope.deadline = anyio.current_time() + self._seconds
        return self._scope.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        absorbed = bool(self._scope.__exit__(kind, error, trace))
        if not (absorbed and self._scope.cancelled_caught):
            return absorbed
        exceeded = DeadlineExceededError(
            f"the run took longer than its timeout of {self._seconds:g} s; it is rolled back"
        )
        try:
            raise exceeded from None
        finally:
            exceeded.__context__ = None
            del exceeded, error, trace
