"""A trace as people look at it: events of Chrome's trace event format, and a file of them.

Perfetto, chrome://tracing and others open such files. Each span is a complete event ("X"), with its beginning
and its length in microseconds since the trace began. What those programs draw in one row (a `tid`) must be
properly nested, and the nodes of one run overlap; so a worker has as many rows as there are spans that overlap
without one being a part of the other. The first row of a worker has its steps, its hooks and, mostly, its nodes.
"""

from __future__ import annotations

import json
import os
import secrets
import time
from heapq import heappop, heappush
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from asyncstep.errors import InvalidArgumentError, InvalidTypeError, kind_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from asyncstep._runtime.trace import Span, Trace

Row = tuple[int | str, int]
"""The row of a span, as `Span.row`, and which of those that share it: 0, 1, ..."""

_COLOURS = {"failed": "terrible", "interrupted": "terrible", "cancelled": "grey", "stopped": "grey"}
"""Names of colours that chrome://tracing knows, for spans that did not end as they should."""

_IN_MICROSECONDS = 1e6


class _Placed:
    """A span with the times that it has in one trace, and its row."""

    __slots__ = ("began", "ended", "lane", "span")

    def __init__(self, span: Span, began: float, ended: float) -> None:
        self.span = span
        self.began = began
        self.ended = ended
        self.lane: _Lane | None = None


class _Lane:
    """One row. What is open in it at the moment that is looked at is on a stack."""

    __slots__ = ("number", "open")

    def __init__(self, number: int) -> None:
        self.number = number
        self.open: list[_Placed] = []

    def has_room_in(self, parent: _Placed, placed: _Placed) -> bool:
        """Whether `placed` can be drawn inside of `parent` here: then nothing else of it is open at that time."""
        stack = self.open
        while stack and stack[-1] is not parent and stack[-1].ended <= placed.began:
            stack.pop()
        return bool(stack) and stack[-1] is parent and placed.ended <= parent.ended


class _Lanes:
    """The rows that the spans of one worker are drawn in."""

    def __init__(self) -> None:
        self._count = 0
        self._free: list[tuple[int, _Lane]] = []
        self._busy: list[tuple[float, int, _Lane]] = []

    def place(self, placed: _Placed, parent: _Placed | None) -> _Lane:
        """The row for the next span, by its beginning: inside its parent if there is room, else one of its own."""
        while self._busy and self._busy[0][0] <= placed.began:
            _, number, lane = heappop(self._busy)
            heappush(self._free, (number, lane))
        if parent is not None and parent.lane is not None and parent.lane.has_room_in(parent, placed):
            lane = parent.lane
        else:
            lane = self._another()
            heappush(self._busy, (placed.ended, lane.number, lane))
            lane.open.clear()
        lane.open.append(placed)
        return lane

    def _another(self) -> _Lane:
        if self._free:
            return heappop(self._free)[1]
        self._count += 1
        return _Lane(self._count - 1)


def trace_events(trace: Trace) -> list[dict[str, Any]]:
    """The events of a trace: first the names of its rows, then the spans by their beginnings."""
    return list(_events(trace))


def checked_path(what: str, path: str | os.PathLike[str]) -> Path:
    """The path, if it can be one of this machine's file system; nothing is looked up.

    Raises:
        InvalidTypeError: it is no path at all.
        InvalidArgumentError: it is a URL, or has a NUL in it.
    """
    if not isinstance(path, (str, os.PathLike)) or not isinstance(os.fspath(path), str):
        raise InvalidTypeError(f"{what} must be a string or a path, got {kind_of(path)}")
    text = os.fspath(path)
    if "\0" in text or "://" in text:
        raise InvalidArgumentError(f"{what} must be a path in this machine's file system, got {text!r}")
    return Path(text)


def write_trace(path: Path, trace: Trace) -> None:
    """Write a trace to a file, which is there as a whole or not at all. Blocks.

    Raises:
        OSError: what the disk says; nothing is left behind, and a file that was there is there still.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".asyncstep-trace-{secrets.token_hex(4)}.tmp")
    try:
        with draft.open("x", encoding="utf-8", buffering=1 << 16) as file:
            for line in _lines(trace):
                file.write(line)
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def _lines(trace: Trace) -> Iterator[str]:
    """The file, an event a line."""
    about = {
        "began": trace.began_at.isoformat(),
        "dropped_events": trace.dropped,
        "dropped_steps": trace.dropped_steps,
        "monotonic_began": trace.began,
    }
    yield f'{{"displayTimeUnit": "ms", "otherData": {json.dumps(about)}, "traceEvents": ['
    separator = "\n"
    for number, event in enumerate(_events(trace)):
        yield separator + json.dumps(event, default=repr)
        separator = ",\n"
        if number % 32 == 31:
            time.sleep(0)  # lets the event loop go on, which runs in another thread
    yield "\n]}\n"


def _events(trace: Trace) -> Iterator[dict[str, Any]]:
    placed = _in_rows(_within(trace))
    rows = sorted({_row(each) for each in placed}, key=lambda row: (isinstance(row[0], str), row[0], row[1]))
    tids = {row: tid for tid, row in enumerate(rows, 1)}
    pid = os.getpid()
    yield _named("process_name", pid, 0, name=trace.process)
    for (row, lane), tid in tids.items():
        title = f"worker {row}" if isinstance(row, int) else row
        yield _named("thread_name", pid, tid, name=f"{title}, beside {lane}" if lane else title)
        yield _named("thread_sort_index", pid, tid, sort_index=tid)
    for each in placed:
        yield _complete(each, trace.began, pid, tids[_row(each)])


def _named(what: str, pid: int, tid: int, **args: Any) -> dict[str, Any]:
    return {"ph": "M", "name": what, "pid": pid, "tid": tid, "args": args}


def _complete(placed: _Placed, zero: float, pid: int, tid: int) -> dict[str, Any]:
    span = placed.span
    began = round((placed.began - zero) * _IN_MICROSECONDS, 3)
    ended = round((placed.ended - zero) * _IN_MICROSECONDS, 3)
    args = dict(span.args or ())
    if placed.began > span.began:
        args["began"] = "before the trace"
    if span.ended is None or placed.ended < span.ended:
        args["ended"] = "after the trace"
    outcome = args.get("outcome", "committed")
    event = {
        "ph": "X",
        "name": span.name if outcome == "committed" else f"{span.name} ({outcome})",
        "cat": span.category,
        "ts": began,
        "dur": round(ended - began, 3),
        "pid": pid,
        "tid": tid,
        "args": args,
    }
    colour = _COLOURS.get(outcome)
    return event if colour is None else {**event, "cname": colour}


def _row(placed: _Placed) -> Row:
    assert placed.lane is not None
    return placed.span.row, placed.lane.number


def _within(trace: Trace) -> list[_Placed]:
    """The spans, cut to the time of the trace, by their beginnings; a span comes after what it is a part of."""
    # The steps go on while a thread looks at their spans, so each end is read once.
    over = monotonic() if trace.ended is None else trace.ended
    found = []
    for span in list(trace.spans):
        ended = over if span.ended is None else min(span.ended, over)
        began = min(max(span.began, trace.began), over)
        found.append(_Placed(span, began, max(began, ended)))
    found.sort(key=lambda each: each.began)  # it is stable, and what is around a span was added before it
    return found


def _in_rows(spans: Iterable[_Placed]) -> list[_Placed]:
    """The same spans, each with its row."""
    places: dict[int, _Placed] = {}
    lanes: dict[int | str, _Lanes] = {}
    done = []
    for each in spans:
        span = each.span
        parent = None if span.parent is None else places.get(id(span.parent))
        each.lane = lanes.setdefault(span.row, _Lanes()).place(each, parent)
        places[id(span)] = each
        done.append(each)
    return done
