"""What the tests of traces share: the check of the trace event format, and ways to look something up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Event = dict[str, Any]


def nanoseconds(microseconds: float) -> int:
    """A time of a trace without the rounding errors of a float."""
    return round(microseconds * 1000)


def checked(events: list[Event]) -> list[Event]:
    """The complete events of a trace in the trace event format, once all that it asks for is checked.

    Metadata events name the process and each row; a complete event has a name, categories, a beginning, a length,
    a process and a row; beginnings never go back, in the whole trace and so in each row; and what is in one row
    is properly nested: of two events that overlap one lies within the other.
    """
    assert events == json.loads(json.dumps(events))
    named: dict[tuple[int, int], str] = {}
    order: dict[int, int] = {}
    spans: list[Event] = []
    for event in events:
        assert isinstance(event["pid"], int)
        assert isinstance(event["tid"], int)
        if event["ph"] == "M":
            assert not spans, "metadata comes first"
            if event["name"] == "thread_name":
                named[event["pid"], event["tid"]] = event["args"]["name"]
            elif event["name"] == "thread_sort_index":
                order[event["tid"]] = event["args"]["sort_index"]
            else:
                assert event["name"] == "process_name"
            continue
        assert event["ph"] == "X"
        assert isinstance(event["name"], str)
        assert event["name"]
        assert event["cat"] in ("step function", "step", "run", "node", "hook", "wait", "checkpoint")
        assert event["ts"] >= 0
        assert event["dur"] >= 0
        assert isinstance(event["args"], dict)
        spans.append(event)
    assert set(named) == {(event["pid"], event["tid"]) for event in spans}, (
        "every row has a name, and is used"
    )
    assert len(set(named.values())) == len(named), "no two rows have one name"
    assert set(order) == {tid for _, tid in named}
    assert [event["ts"] for event in spans] == sorted(event["ts"] for event in spans)
    _check_nesting(spans)
    return spans


def _check_nesting(spans: list[Event]) -> None:
    stacks: dict[int, list[int]] = {}
    for event in spans:
        began = nanoseconds(event["ts"])
        ended = nanoseconds(event["ts"] + event["dur"])
        stack = stacks.setdefault(event["tid"], [])
        while stack and stack[-1] <= began:
            stack.pop()
        assert not stack or ended <= stack[-1], f"{event} is half inside of another event of its row"
        stack.append(ended)


def rows(events: list[Event]) -> dict[str, list[Event]]:
    """The complete events by the names of their rows."""
    names = {event["tid"]: event["args"]["name"] for event in events if event["name"] == "thread_name"}
    found: dict[str, list[Event]] = {name: [] for name in names.values()}
    for event in checked(events):
        found[names[event["tid"]]].append(event)
    return found


def only(events: list[Event], name: str) -> Event:
    """The one complete event of that name."""
    [found] = [event for event in events if event["ph"] == "X" and event["name"] == name]
    return found


def is_inside(inner: Event, outer: Event) -> bool:
    """Whether one event is drawn inside of another."""
    return (
        inner["tid"] == outer["tid"]
        and inner["ts"] >= outer["ts"]
        and nanoseconds(inner["ts"] + inner["dur"]) <= nanoseconds(outer["ts"] + outer["dur"])
    )


def read(path: Path) -> tuple[list[Event], dict[str, Any]]:
    """The events of a trace file, and what it says about itself."""
    whole = json.loads(path.read_text(encoding="utf-8"))
    assert set(whole) == {"displayTimeUnit", "otherData", "traceEvents"}
    checked(whole["traceEvents"])
    return whole["traceEvents"], whole["otherData"]
