"""Recording: what a run does when, as spans, while somebody wants to see it.

A `Trace` collects spans. The span that the running code is part of is in the context variable `active`; while
that is None, which is nearly always, nothing is recorded and nothing costs anything but looking it up. A
span may be in several traces at a time: that of the run's own metadata, and those of hooks.

The order of things: `begin` adds the span to the traces, the end is filled in when it comes. So a span that has
not ended when its trace is looked at has a beginning all the same, and a trace that is full drops what begins
then, never the end of what it has.
"""

from __future__ import annotations

from contextlib import nullcontext
from contextvars import ContextVar
from datetime import UTC, datetime
from time import monotonic
from typing import TYPE_CHECKING, Any

import anyio

from asyncstep.errors import OutOfRangeError, StopRequested

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from contextlib import AbstractContextManager
    from types import TracebackType

STEP_FUNCTION = "step function"
STEP = "step"
RUN = "run"
NODE = "node"
HOOK = "hook"
WAIT = "wait"
CHECKPOINT = "checkpoint"

MOST_LETTERS = 300
"""Of an error in a trace; some quote whole documents."""

_OUTCOMES = ("interrupted", "failed", "cancelled", "stopped", "end of data")
"""How a span can end but by returning, the most urgent first (contract C1)."""


class Span:
    """Something that began and ended.

    Attributes:
        name: for people.
        category: one of the above.
        row: the index of the worker, or the name of another row.
        parent: what it is a part of.
        traces: those that it is in.
        began, ended: in seconds of ``time.monotonic``; `ended` is None until then.
        args: more about it, as plain values.
    """

    __slots__ = ("args", "began", "category", "ended", "name", "parent", "row", "traces")

    def __init__(
        self,
        name: str,
        category: str,
        row: int | str,
        *,
        parent: Span | None = None,
        traces: tuple[Trace, ...] = (),
        began: float | None = None,
    ) -> None:
        self.name: str = name
        self.category: str = category
        self.row: int | str = row
        self.parent: Span | None = parent
        self.traces: tuple[Trace, ...] = traces
        self.ended: float | None = None
        self.args: dict[str, Any] | None = None
        self.began: float = monotonic() if began is None else began
        for trace in traces:
            trace.add(self)

    def note(self, **args: Any) -> None:
        """Say more about it."""
        self.args = args if self.args is None else {**self.args, **args}

    def end(self, error: BaseException | None = None) -> None:
        """It ends now: by returning, or by an error, of which only the words are kept (contract E5)."""
        if error is not None:
            outcome = outcome_of(error)
            self.note(**{"outcome": outcome, "error": described(error)} | (self.args or {}))
        self.ended = monotonic()


class Trace:
    """The spans of some time.

    Args:
        limit: the most spans that are kept; those that begin later are counted. None: as many as there are.
        closed: whether it takes one run only, and is over with that.

    Attributes:
        began, ended: in seconds of ``time.monotonic``; `ended` is None until the trace is over.
        began_at: the time of day.
        spans: in the order of their beginnings, but for those that were told of later.
        dropped: how many there were beyond the limit, of steps that were recorded.
        dropped_steps: how many steps were not recorded at all, because it was full when they began.
        when_over: called once, when the trace is over.
        process: what the process is called.
    """

    __slots__ = (
        "__weakref__",
        "_closed",
        "_roots",
        "began",
        "began_at",
        "dropped",
        "dropped_steps",
        "ended",
        "limit",
        "process",
        "spans",
        "when_over",
    )

    def __init__(self, limit: int | None = None, *, closed: bool = False) -> None:
        self.limit: int | None = limit
        self.process: str = "asyncstep"
        self.spans: list[Span] = []
        self.dropped: int = 0
        self.dropped_steps: int = 0
        self.began: float = monotonic()
        self.began_at: datetime = datetime.now(UTC)
        self.ended: float | None = None
        self._closed = closed
        self._roots = 0
        self.when_over: Callable[[], object] | None = None

    @property
    def takes_more(self) -> bool:
        """Whether it is neither full nor over."""
        return self.ended is None and (self.limit is None or len(self.spans) < self.limit)

    def add(self, span: Span) -> None:
        """A span has begun."""
        if self.takes_more:
            self.spans.append(span)
        elif self.ended is None:
            self.dropped += 1

    def enter(self) -> None:
        """A step has begun whose parts are recorded here."""
        self._roots += 1

    def leave(self) -> None:
        """Such a step is over, and perhaps the trace with it."""
        self._roots -= 1
        if self._closed and not self._roots:
            self.finish()

    def close(self) -> None:
        """No further step begins here; the trace is over when those are that have begun."""
        self._closed = True
        if not self._roots:
            self.finish()

    def finish(self) -> None:
        """The trace is over; what has not ended is cut off here."""
        if self.ended is None:
            self.ended = monotonic()
            call, self.when_over = self.when_over, None
            if call is not None:
                call()


active: ContextVar[Span | None] = ContextVar("asyncstep_span", default=None)
"""The innermost span of the code that is running; None: nothing is recorded."""


class recorded:
    """Record the block as a span, in the traces of the span that it is inside of, and in others.

    No `contextlib.contextmanager`: since Python 3.12 its frames would keep an error alive (contract E5).
    """

    __slots__ = ("_before", "_joined", "_span")

    def __init__(
        self, name: str, category: str, *, row: int | str | None = None, traces: Iterable[Trace] = ()
    ) -> None:
        parent = active.get()
        around = () if parent is None else parent.traces
        self._joined = tuple(trace for trace in traces if trace not in around)
        if row is None:
            row = 0 if parent is None else parent.row
        self._before = parent
        self._span = Span(name, category, row, parent=parent, traces=(*around, *self._joined))

    def __enter__(self) -> Span:
        active.set(self._span)
        for trace in self._joined:
            trace.enter()
        return self._span

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        active.set(self._before)
        self._span.end(error)
        for joined in self._joined:
            joined.leave()


_nothing: AbstractContextManager[Span | None] = nullcontext()


def traced(name: str, category: str) -> AbstractContextManager[Span | None]:
    """Record the block as a part of what is being recorded; if nothing is, do nothing."""
    return _nothing if active.get() is None else recorded(name, category)


def outcome_of(error: BaseException) -> str:
    """How a span ended that raised this: one of `_OUTCOMES`."""
    if isinstance(error, BaseExceptionGroup):
        return min(map(outcome_of, error.exceptions), key=_OUTCOMES.index)
    if isinstance(error, OutOfRangeError):
        return "end of data"
    if isinstance(error, Exception):
        return "failed"
    if isinstance(error, StopRequested):
        return "stopped"
    return "cancelled" if isinstance(error, anyio.get_cancelled_exc_class()) else "interrupted"


def described(error: BaseException) -> str:
    """An error in a few words, whatever its own are."""
    try:
        words = str(error)
    except Exception:
        words = "(which cannot say what it is)"
    name = type(error).__name__
    text = f"{name}: {words}" if words else name
    return text if len(text) <= MOST_LETTERS else f"{text[: MOST_LETTERS - 3]}..."
