"""How spans become events: rows in which everything is properly nested, whatever overlaps."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given, strategies as st

from asyncstep._runtime.trace import NODE, STEP, Span, Trace
from asyncstep._runtime.trace_events import trace_events

from .parts import checked, nanoseconds, rows


@dataclass
class Work:
    """Something that begins and ends, in ticks, and what happens within it."""

    begin: int
    length: int
    row: int
    inner: list[Work] = field(default_factory=list)


TICK = 1e-3
WORK = st.recursive(
    st.builds(Work, st.integers(0, 30), st.integers(0, 30), st.integers(0, 2)),
    lambda inner: st.builds(
        Work, st.integers(0, 30), st.integers(0, 60), st.integers(0, 2), st.lists(inner, max_size=4)
    ),
    max_leaves=20,
)


def recorded(trace: Trace, work: Work, parent: Span | None) -> None:
    """The spans of some work: parts may begin at the same time as the whole, end with it, and overlap."""
    began = trace.began + work.begin * TICK if parent is None else parent.began + work.begin % 7 * TICK
    last = None if parent is None else parent.ended
    ended = began + work.length * TICK
    if last is not None:
        began, ended = min(began, last), min(ended, last)
    span = Span(
        "work", STEP if parent is None else NODE, work.row if parent is None else parent.row,
        parent=parent, traces=(trace,), began=began,
    )  # fmt: skip
    span.ended = ended
    for inner in work.inner:
        recorded(trace, inner, span)


@given(st.lists(WORK, max_size=8))
def test_every_span_is_there_once_and_every_row_is_properly_nested(works: list[Work]) -> None:
    """The rows of the trace event format hold, and each beginning and length is that of a span."""
    trace = Trace()
    for work in works:
        recorded(trace, work, None)
    trace.ended = trace.began + 1.0
    found = checked(trace_events(trace))
    assert sorted((nanoseconds(event["ts"]), nanoseconds(event["dur"])) for event in found) == sorted(
        (
            round((span.began - trace.began) * 1e9),
            round((span.ended - trace.began) * 1e9) - round((span.began - trace.began) * 1e9),
        )
        for span in trace.spans
        if span.ended is not None
    )


@given(st.lists(WORK, max_size=8))
def test_rows_are_as_few_as_the_overlaps(works: list[Work]) -> None:
    """A worker never has more rows than it has spans open at one time that are no part of each other."""
    trace = Trace()
    for work in works:
        recorded(trace, work, None)
    trace.ended = trace.began + 1.0
    for worker in range(3):
        spans = [span for span in trace.spans if span.row == worker]
        most = max(
            (sum(_is_open(span, other.began) for span in spans) for other in spans), default=0
        )  # each open span could need a row of its own
        names = [name for name in rows(trace_events(trace)) if name.startswith(f"worker {worker}")]
        assert len(names) <= max(most, 1)


def _is_open(span: Span, now: float) -> bool:
    assert span.ended is not None
    return span.began <= now and (span.ended > now or span.began == now)


def test_what_is_not_over_ends_with_the_trace() -> None:
    """A span without an end, or with one after the trace's, is cut off; so is one that began before."""
    trace = Trace()
    trace.ended = trace.began + 1.0
    trace.ended, end = None, trace.ended
    for name, began, ended in [("open", 0.5, None), ("late", 0.25, 2.0), ("early", -1.0, 0.5)]:
        span = Span(name, STEP, 0, traces=(trace,), began=trace.began + began)
        span.ended = None if ended is None else trace.began + ended
    trace.ended = end
    found = {event["name"]: event for event in checked(trace_events(trace))}
    assert [found[name]["args"] for name in ("open", "late", "early")] == [
        {"ended": "after the trace"},
        {"ended": "after the trace"},
        {"began": "before the trace"},
    ]
    ends = {name: nanoseconds(event["ts"] + event["dur"]) for name, event in found.items()}
    assert ends == {"open": 10**9, "late": 10**9, "early": 5 * 10**8}
    assert found["early"]["ts"] == 0.0


def test_workers_are_in_order_and_other_rows_come_last() -> None:
    """Row 10 comes after row 9, and what goes on beside the steps after all workers."""
    trace = Trace()
    for row in (10, "checkpoints", 9):
        Span("work", STEP, row, traces=(trace,)).end()
    trace.finish()
    assert list(rows(trace_events(trace))) == ["worker 9", "worker 10", "checkpoints"]


def test_a_wide_trace_takes_no_quadratic_time() -> None:
    """10,000 spans that all overlap have 10,000 rows; this would take minutes if each looked at all the others."""
    trace = Trace()
    whole = Span("step", STEP, 0, traces=(trace,))
    spans = [Span("node", NODE, 0, parent=whole, traces=(trace,)) for _ in range(10_000)]
    for span in (*spans, whole):
        span.end()
    trace.finish()
    events = trace_events(trace)
    assert len({event["tid"] for event in events if event["ph"] == "X"}) == 10_000
