"""`ProfilerHook` and `TraceHook`: traces of a loop, as files."""

from __future__ import annotations

import errno
import gc
import logging
import threading
import weakref
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest

import asyncstep.hooks.profiler
from asyncstep import (
    AbortedError,
    ChiefSessionCreator,
    Graph,
    MonitoredSession,
    Recovery,
    Session,
    SessionCreator,
    SessionRunHook,
    StepContext,
    Variable,
    op,
    source,
)
from asyncstep._runtime.trace import Trace, active
from asyncstep._runtime.trace_events import write_trace
from asyncstep.errors import InvalidArgumentError, InvalidTypeError
from asyncstep.hooks import CheckpointSaverHook, ProfilerHook, SecondOrStepTimer, TraceHook

from .parts import Event, is_inside, only, read, rows

pytestmark = pytest.mark.anyio


def monitored(graph: Graph, *hooks: SessionRunHook, recovery: Recovery | None = None) -> MonitoredSession:
    """A monitored session of a graph."""
    recovery = recovery or Recovery(wait_initial=0.0, jitter=0.0)
    return MonitoredSession(ChiefSessionCreator(graph=graph), hooks, recovery=recovery)


def files(directory: Path) -> list[str]:
    """The names of the files in a directory; of timelines by their steps."""
    return sorted((path.name for path in directory.iterdir()), key=lambda name: (len(name), name))


def events(path: Path) -> list[Event]:
    """The events of a trace file, checked."""
    return read(path)[0]


def names(found: list[Event]) -> list[str]:
    """The names of the complete events, in order."""
    return [event["name"] for event in found if event["ph"] == "X"]


async def nothing() -> None:
    """A step."""


async def run_steps(session: MonitoredSession, steps: int) -> None:
    """Run so many steps that do nothing."""
    for _ in range(steps):
        await session.run(nothing)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time in seconds, in a list of one, that the hook's timer goes by."""
    now = [0.0]
    timer = partial(SecondOrStepTimer, clock=lambda: now[0])
    monkeypatch.setattr(asyncstep.hooks.profiler, "SecondOrStepTimer", timer)
    return now


async def test_the_first_step_and_every_nth_from_there(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Each file has the one step that it is named after, its hooks and its nodes; and the log names the file."""
    caplog.set_level(logging.INFO, logger="asyncstep")
    async with monitored(Graph(), ProfilerHook(save_steps=3, output_dir=tmp_path)) as session:
        await run_steps(session, 8)
    assert files(tmp_path) == ["timeline-1.json", "timeline-4.json", "timeline-7.json"]
    for step in (1, 4, 7):
        found = events(tmp_path / f"timeline-{step}.json")
        assert names(found) == [f"step {step}", "nothing", "ProfilerHook.after_run"]
        assert only(found, f"step {step}")["args"]["global_step"] == step
    told = [record.getMessage() for record in caplog.records if record.module == "profiler"]
    assert len(told) == 3
    assert str(tmp_path / "timeline-1.json") in told[0]


async def test_every_so_many_seconds(tmp_path: Path, clock: list[float]) -> None:
    """The first step, and the one after the seconds have passed."""
    async with monitored(Graph(), ProfilerHook(save_secs=2.5, output_dir=tmp_path)) as session:
        for _ in range(8):
            await session.run(nothing)
            clock[0] += 1.0
    assert files(tmp_path) == ["timeline-1.json", "timeline-5.json"]


async def test_with_both_intervals_whichever_is_over_first(tmp_path: Path, clock: list[float]) -> None:
    """Steps trigger while the clock stands still, and the clock does before the steps are over."""
    hook = ProfilerHook(save_steps=4, save_secs=10.0, output_dir=tmp_path)
    async with monitored(Graph(), hook) as session:
        await run_steps(session, 6)
        clock[0] += 11.0
        await run_steps(session, 2)
    assert files(tmp_path) == ["timeline-1.json", "timeline-5.json", "timeline-8.json"]


async def test_a_resumed_run_traces_its_first_step(tmp_path: Path) -> None:
    """A session that goes on at step 10 begins with the trace of step 11."""
    with Graph() as graph:
        Variable(10, name="global_step")
    async with monitored(graph, ProfilerHook(save_steps=5, output_dir=tmp_path)) as session:
        await run_steps(session, 7)
    assert files(tmp_path) == ["timeline-11.json", "timeline-16.json"]


async def test_a_hook_serves_one_session_after_the_other(tmp_path: Path) -> None:
    """What is of the earlier session is forgotten."""
    hook = ProfilerHook(save_steps=100, output_dir=tmp_path)
    for first in (1, 51):
        with Graph() as graph:
            Variable(first - 1, name="global_step")
        async with monitored(graph, hook) as session:
            await run_steps(session, 3)
    assert files(tmp_path) == ["timeline-1.json", "timeline-51.json"]


async def test_nothing_is_recorded_between_two_traces(tmp_path: Path) -> None:
    """The code of an untraced step runs outside of any span, so that nothing of it is kept."""
    recorded: list[bool] = []

    async def step() -> None:
        recorded.append(active.get() is not None)

    async with monitored(Graph(), ProfilerHook(save_steps=4, output_dir=tmp_path)) as session:
        for _ in range(9):
            await session.run(step)
    assert recorded == [True, False, False, False] * 2 + [True]


async def test_every_worker_is_in_the_trace(tmp_path: Path) -> None:
    """With ten workers a trace has a row of each, with what its step did in it, to the end of that step."""
    all_in = anyio.Event()
    inside: set[int] = set()

    async def meet() -> None:
        await all_in.wait()

    async def work(ctx: StepContext) -> None:
        inside.add(ctx.worker)
        if len(inside) == 10:
            all_in.set()
        await ctx.run_with_hooks(meet)
        ctx.request_stop()

    async with monitored(Graph(), ProfilerHook(save_steps=100, output_dir=tmp_path)) as session:
        await session.loop(work, workers=10)
    assert files(tmp_path) == ["timeline-1.json"]
    found = rows(events(tmp_path / "timeline-1.json"))
    assert list(found) == [f"worker {index}" for index in range(10)]
    for row in found.values():
        assert [event["cat"] for event in row] == ["step function", "step", "node", "hook"]
        assert row[0]["name"] == "work (stopped)"
        assert all(is_inside(event, row[0]) for event in row[1:])
    steps = {
        event["args"]["global_step"] for row in found.values() for event in row if event["cat"] == "step"
    }
    assert steps == set(range(1, 11))


async def test_a_step_in_flight_when_the_trace_begins_is_there_too(tmp_path: Path) -> None:
    """Of a run that began before, its end is known, and that it began before."""
    go_on, told = anyio.Event(), anyio.Event()

    async def long() -> None:
        await go_on.wait()

    async def fail() -> None:
        await go_on.wait()
        raise ValueError("no")

    async def failing() -> None:
        with pytest.raises(ValueError, match="no"):
            await session.run(fail)
        told.set()

    async with monitored(Graph(), ProfilerHook(save_steps=2, output_dir=tmp_path)) as session:
        await session.run(nothing)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(session.run, long)
            tasks.start_soon(failing)
            await anyio.wait_all_tasks_blocked()
            await session.run(nothing)  # when it is over, a trace is begun
            go_on.set()
            await told.wait()
            await anyio.wait_all_tasks_blocked()
            await session.run(nothing)
    assert files(tmp_path) == ["timeline-1.json", "timeline-4.json"]
    found = [event for event in events(tmp_path / "timeline-4.json") if event.get("cat") == "step"]
    early = {event["name"]: event["args"] for event in found if event["ts"] == 0.0}
    assert set(early) == {"step 3", "step (failed)"}
    assert all(args["began"] == "before the trace" for args in early.values())


async def test_a_step_that_fails_is_in_the_last_trace(tmp_path: Path) -> None:
    """Where the session ends before a traced run has committed, the trace of what failed is written all the same."""

    async def fail() -> None:
        raise ValueError("no such page")

    with pytest.raises(ValueError, match="no such page"):
        async with monitored(Graph(), ProfilerHook(save_steps=3, output_dir=tmp_path)) as session:
            await run_steps(session, 3)
            await session.run(fail)
    assert files(tmp_path) == ["timeline-1.json", "timeline-4.json"]
    found = events(tmp_path / "timeline-4.json")
    assert names(found)[0] == "step (failed)"
    assert only(found, "step (failed)")["args"]["error"] == "ValueError: no such page"


async def test_a_step_that_fails_and_the_next_one_are_in_one_trace(tmp_path: Path) -> None:
    """A trace goes on until one of its runs has committed."""

    async def fail() -> None:
        raise ValueError("no")

    async with monitored(Graph(), ProfilerHook(save_steps=10, output_dir=tmp_path)) as session:
        with pytest.raises(ValueError, match="no"):
            await session.run(fail)
        await session.run(nothing)
        await session.run(nothing)
    assert files(tmp_path) == ["timeline-1.json"]
    steps = [name for name in names(events(tmp_path / "timeline-1.json")) if name.startswith("step")]
    assert steps == ["step (failed)", "step 1"]


async def test_a_cancelled_session_writes_what_it_has(tmp_path: Path) -> None:
    """The step that was cancelled is in the trace, as such."""
    with anyio.CancelScope() as scope:
        async with monitored(Graph(), ProfilerHook(save_steps=1, output_dir=tmp_path)) as session:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(session.run, anyio.sleep_forever)
                await anyio.wait_all_tasks_blocked()
                scope.cancel()
    assert names(events(tmp_path / "timeline-1.json"))[0] == "step (cancelled)"


async def test_a_recovery_is_in_the_trace(tmp_path: Path) -> None:
    """A step that a recovery made run again: what failed, the wait, the recovery and the attempt that committed."""

    class Anew(SessionCreator):
        """Each of its sessions starts at 0."""

        def __init__(self) -> None:
            self.graph = Graph()

        async def create_session(self) -> Session:
            return Session(self.graph)

    plan: list[Exception | None] = [AbortedError("lost"), None]

    async def work() -> None:
        if (failure := plan.pop(0)) is not None:
            raise failure

    recovery = Recovery(restore="always", wait_initial=0.0, jitter=0.0)
    hook = ProfilerHook(save_steps=10, output_dir=tmp_path)
    async with MonitoredSession(Anew(), [hook], recovery=recovery) as session:
        await session.run(work)
        await run_steps(session, 3)
    assert files(tmp_path) == ["timeline-1.json"]
    found = names(events(tmp_path / "timeline-1.json"))
    assert [name for name in found if not name.startswith("ProfilerHook")] == [
        "step 1",
        next(name for name in found if "work" in name and "failed" in name),
        "wait for the next attempt",
        "recovery",
        next(name for name in found if "work" in name and "failed" not in name),
    ]


async def test_a_recovery_is_in_the_row_of_every_worker_that_waits_for_it(tmp_path: Path) -> None:
    """V2: one worker makes the recovery; those whose steps cannot commit any more are tried again after it."""
    all_in, again = anyio.Event(), anyio.Event()
    calls = 0

    async def meet() -> None:
        nonlocal calls
        calls += 1
        number = calls
        if number == 5:
            all_in.set()
        elif number > 5:
            again.set()
        await all_in.wait()
        if number == 1:
            raise AbortedError("lost")
        await again.wait()

    async def work(ctx: StepContext) -> None:
        await ctx.run_with_hooks(meet)
        if session.global_step == 5:
            ctx.request_stop()

    recovery = Recovery(restore="always", wait_initial=0.0, jitter=0.0)
    path = tmp_path / "trace.json"
    async with monitored(Graph(), TraceHook(path), recovery=recovery) as session:
        await session.loop(work, workers=5)
        assert session.recoveries == 1
    found = rows(events(path))
    assert list(found) == [f"worker {index}" for index in range(5)]
    for row in found.values():
        outcomes = [event["args"]["outcome"] for event in row if event["cat"] == "step"]
        assert outcomes[:2] == ["failed", "committed"]
    assert sum(event["name"] == "recovery" for row in found.values() for event in row) == 1


async def test_a_recovery_behind_the_last_trace_begins_a_new_one(tmp_path: Path) -> None:
    """Where the steps are counted anew from an earlier one, the next step is traced."""

    class Anew(SessionCreator):
        """Each of its sessions starts at 0."""

        def __init__(self) -> None:
            self.graph = Graph()

        async def create_session(self) -> Session:
            return Session(self.graph)

    failures: list[Exception] = []

    async def work() -> None:
        if failures:
            raise failures.pop()

    recovery = Recovery(restore="always", wait_initial=0.0, jitter=0.0)
    hook = ProfilerHook(save_steps=5, output_dir=tmp_path)
    async with MonitoredSession(Anew(), [hook], recovery=recovery) as session:
        for _ in range(7):
            await session.run(work)
        failures.append(AbortedError("lost"))
        for _ in range(3):
            await session.run(work)
    assert files(tmp_path) == ["timeline-1.json", "timeline-2.json", "timeline-6.json"]


async def test_a_trace_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the most events of a trace they are counted only, and the file says how many there were."""
    monkeypatch.setattr(asyncstep.hooks.profiler, "MOST_EVENTS", 50)
    with Graph() as graph:
        nodes = [op(name="one")(lambda: 1)() for _ in range(200)]
    async with monitored(graph, ProfilerHook(save_steps=1, output_dir=tmp_path)) as session:
        await session.run(nodes)
    found, about = read(tmp_path / "timeline-1.json")
    assert len(names(found)) == 50
    assert about["dropped_events"] == 1 + 200 + 1 - 50  # the step, its nodes, after_run
    assert only(found, "step 1")["args"]["outcome"] == "committed"


async def test_a_full_trace_records_no_further_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps that begin when it is full run as if there was no trace, and are counted in it."""
    monkeypatch.setattr(asyncstep.hooks.profiler, "MOST_EVENTS", 20)
    recorded: list[bool] = []

    async def step() -> None:
        recorded.append(active.get() is not None)

    async with monitored(Graph(), TraceHook(tmp_path / "trace.json")) as session:
        for _ in range(100):
            await session.run(step)
    found, about = read(tmp_path / "trace.json")
    assert recorded == [True] * 10 + [False] * 90
    assert len(names(found)) == 20
    assert (about["dropped_events"], about["dropped_steps"]) == (0, 90)


async def test_a_trace_that_failures_have_filled_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends with the next step, though that is not in it."""
    monkeypatch.setattr(asyncstep.hooks.profiler, "MOST_EVENTS", 6)

    async def fail() -> None:
        raise ValueError("no")

    async with monitored(Graph(), ProfilerHook(save_steps=100, output_dir=tmp_path)) as session:
        for _ in range(5):
            with pytest.raises(ValueError, match="no"):
                await session.run(fail)
        await run_steps(session, 3)
    found, about = read(tmp_path / "timeline-1.json")
    assert [name for name in names(found) if name.startswith("step")] == ["step (failed)"] * 2
    assert about["dropped_steps"] == 4


async def test_steps_within_one_call_of_a_step_function(tmp_path: Path) -> None:
    """T3: a step function that makes many steps is in the trace of the first; the next trace does not wait for it."""

    async def many(ctx: StepContext) -> None:
        for _ in range(8):
            await ctx.run_with_hooks(nothing)

    async with monitored(Graph(), ProfilerHook(save_steps=3, output_dir=tmp_path)) as session:
        await session.run_step_fn(many)
    assert files(tmp_path) == ["timeline-1.json", "timeline-4.json", "timeline-7.json"]
    first = names(events(tmp_path / "timeline-1.json"))
    assert first[0] == "many"
    assert [name for name in first if name.startswith("step")] == ["step 1", "step 2", "step 3"]


async def test_a_trace_that_is_written_is_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many traces there were, none is kept."""
    kept: list[weakref.ref[Any]] = []

    class Known(Trace):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            kept.append(weakref.ref(self))

    monkeypatch.setattr(asyncstep.hooks.profiler, "Trace", Known)
    async with monitored(Graph(), ProfilerHook(save_steps=1, output_dir=tmp_path)) as session:
        await run_steps(session, 20)
    gc.collect()
    assert len(kept) >= 2
    assert [trace() for trace in kept] == [None] * len(kept)


async def test_writing_holds_up_no_step_and_the_backlog_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a slow disk takes a file, steps go on; traces are begun only until too many events wait."""
    slow = threading.Event()

    def write(path: Path, trace: Trace) -> None:
        assert slow.wait(60)
        write_trace(path, trace)

    monkeypatch.setattr(asyncstep.hooks.profiler, "write_trace", write)
    monkeypatch.setattr(asyncstep.hooks.profiler, "MOST_EVENTS", 10)
    async with monitored(Graph(), ProfilerHook(save_steps=1, output_dir=tmp_path)) as session:
        await run_steps(session, 20)
        assert files(tmp_path) == []
        slow.set()
    # Each has three events: with four of them, ten are waiting.
    assert files(tmp_path) == [f"timeline-{step}.json" for step in range(1, 5)]


async def test_a_directory_that_cannot_be_made_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A write error is one WARNING of the session, and the loop goes on."""
    (tmp_path / "file").write_text("in the way")
    hook = ProfilerHook(save_steps=1, output_dir=tmp_path / "file" / "traces")
    async with monitored(Graph(), hook) as session:
        await run_steps(session, 5)
        assert session.global_step == 5
    warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warnings) == 1
    assert "timeline-" in warnings[0].getMessage()
    assert warnings[0].levelno == logging.WARNING


async def test_a_full_disk_costs_traces_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A file that does not fit is not there; those that do are whole."""
    space = iter([True, False, False, True])
    lines = asyncstep._runtime.trace_events._lines

    def filling(trace: Trace) -> Any:
        fits = next(space)
        for line in lines(trace):
            if not fits and "step" in line:
                raise OSError(errno.ENOSPC, "No space left on device")
            yield line

    monkeypatch.setattr("asyncstep._runtime.trace_events._lines", filling)
    async with monitored(Graph(), ProfilerHook(save_steps=1, output_dir=tmp_path)) as session:
        await run_steps(session, 4)
    assert files(tmp_path) == ["timeline-1.json", "timeline-4.json"]
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert "No space left on device" in warnings[0]


async def test_two_hooks_trace_at_the_same_time(tmp_path: Path) -> None:
    """Each has its own files, and a run that is in both is in both as a whole."""
    hooks = [
        ProfilerHook(save_steps=2, output_dir=tmp_path / "often"),
        ProfilerHook(save_steps=3, output_dir=tmp_path / "seldom"),
        TraceHook(tmp_path / "whole.json"),
    ]
    async with monitored(Graph(), *hooks) as session:
        await run_steps(session, 5)
    assert files(tmp_path / "often") == [f"timeline-{step}.json" for step in (1, 3, 5)]
    assert files(tmp_path / "seldom") == [f"timeline-{step}.json" for step in (1, 4)]
    for path in ("often/timeline-3.json", "often/timeline-1.json", "seldom/timeline-4.json"):
        assert [name for name in names(events(tmp_path / path)) if "Hook" not in name][1:] == ["nothing"]
    steps = [name for name in names(events(tmp_path / "whole.json")) if name.startswith("step")]
    assert steps == [f"step {number}" for number in range(1, 6)]


async def test_a_checkpoint_is_shown_from_the_snapshot_until_it_is_durable(tmp_path: Path) -> None:
    """Checkpoints are in a row of their own, and the last one is in a TraceHook's file that stands first."""
    hooks = [TraceHook(tmp_path / "trace.json"), CheckpointSaverHook(tmp_path / "saved", save_steps=2)]
    async with monitored(Graph(), *hooks) as session:
        await run_steps(session, 4)
    found = rows(events(tmp_path / "trace.json"))
    saved = [event["name"] for event in found["checkpoints"]]
    assert saved[0] == "checkpoint of step 1"
    assert saved[-1] == "checkpoint of step 4"
    begun = only(found["worker 0"], "step 1")
    assert found["checkpoints"][0]["ts"] >= begun["ts"]
    assert all("ended" not in event["args"] for event in found["checkpoints"])


async def test_a_checkpoint_of_the_traced_step_is_in_its_trace(tmp_path: Path) -> None:
    """A hook that comes after in the list begins to save when the trace takes no further step."""
    hooks = [
        ProfilerHook(save_steps=9, output_dir=tmp_path),
        CheckpointSaverHook(tmp_path / "saved", save_steps=9),
    ]
    async with monitored(Graph(), *hooks) as session:
        await run_steps(session, 2)
    found = rows(events(tmp_path / "timeline-1.json"))
    assert [event["name"] for event in found["checkpoints"]] == ["checkpoint of step 1"]


async def test_a_checkpoint_that_began_before_the_trace_is_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is being written while a step is traced is there for as long as the trace is."""
    slow = threading.Event()
    write = asyncstep.checkpoint.saver.SaverDirectory._write

    def slowly(self: Any, *args: Any) -> None:
        assert slow.wait(60)
        write(self, *args)

    monkeypatch.setattr(asyncstep.checkpoint.saver.SaverDirectory, "_write", slowly)
    hooks = [
        ProfilerHook(save_steps=3, output_dir=tmp_path),
        CheckpointSaverHook(tmp_path / "saved", save_steps=9),
    ]
    async with monitored(Graph(), *hooks) as session:
        await run_steps(session, 5)
        slow.set()
    checkpoint = only(events(tmp_path / "timeline-4.json"), "checkpoint of step 1")
    assert checkpoint["args"] == {"began": "before the trace", "ended": "after the trace"}


async def test_a_save_that_fails_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error of a save is the session's, and the trace has it too."""

    def full(self: Any, *args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(asyncstep.checkpoint.saver.SaverDirectory, "_write", full)
    hooks = [TraceHook(tmp_path / "trace.json"), CheckpointSaverHook(tmp_path / "saved", save_steps=9)]
    with pytest.raises(ExceptionGroup):
        async with monitored(Graph(), *hooks) as session:
            await run_steps(session, 1)
    failed = [event for event in events(tmp_path / "trace.json") if event.get("cat") == "checkpoint"]
    assert [event["args"]["outcome"] for event in failed] == ["failed", "failed"]
    assert "No space left" in failed[0]["args"]["error"]


async def test_a_whole_session_in_one_file(tmp_path: Path) -> None:
    """A TraceHook has all steps of all workers, those that failed and the waits of a source too."""

    async def numbers() -> Any:
        for number in range(30):
            await anyio.lowlevel.checkpoint()
            yield number

    with Graph() as graph:
        total = Variable(0, name="total").assign_add(source(numbers, name="numbers"))

    async def work(ctx: StepContext) -> None:
        await ctx.run_with_hooks(total)

    path = tmp_path / "made" / "trace.json"
    async with monitored(graph, TraceHook(path)) as session:
        await session.loop(work, workers=3)
    found = events(path)
    steps = {event["args"]["global_step"] for event in found if "global_step" in event.get("args", ())}
    assert steps == set(range(1, 31))
    assert "wait for items" in names(found)
    assert {name for name in rows(found) if "beside" not in name} == {"worker 0", "worker 1", "worker 2"}


async def test_a_session_that_fails_to_open_writes_nothing(tmp_path: Path) -> None:
    """L3: the hooks are told of the error before there is anything to trace."""

    class Refusing(SessionRunHook):
        async def begin(self) -> None:
            raise ValueError("no")

    hooks = [ProfilerHook(save_steps=1, output_dir=tmp_path), TraceHook(tmp_path / "trace.json"), Refusing()]
    with pytest.raises(ValueError, match="no"):
        async with monitored(Graph(), *hooks):
            pass
    assert files(tmp_path) == []


async def test_a_session_without_steps_writes_no_timeline(tmp_path: Path) -> None:
    """There is nothing to name a file after; a TraceHook's file is there and has no events."""
    hooks = [ProfilerHook(save_steps=1, output_dir=tmp_path / "traces"), TraceHook(tmp_path / "trace.json")]
    async with monitored(Graph(), *hooks):
        pass
    assert files(tmp_path) == ["trace.json"]
    assert names(events(tmp_path / "trace.json")) == []


async def test_a_run_without_the_hook_does_not_end_the_trace(tmp_path: Path) -> None:
    """R7: a run with other hooks is recorded, and the trace waits for one that the hook takes part in."""
    hook = ProfilerHook(save_steps=10, output_dir=tmp_path)
    async with monitored(Graph(), hook) as session:
        await session.run(nothing, hooks=[])
        await session.run_without_hooks(nothing)
        await session.run(nothing)
    assert files(tmp_path) == ["timeline-3.json"]
    steps = [name for name in names(events(tmp_path / "timeline-3.json")) if name.startswith("step")]
    assert steps == ["step 1", "step 2", "step 3"]


async def test_the_next_trace_does_not_wait_for_a_step_that_takes_long(tmp_path: Path) -> None:
    """A step that is still running when the next trace is due is cut off there, and says so."""
    go_on = anyio.Event()

    async def long() -> None:
        await go_on.wait()

    async with monitored(Graph(), ProfilerHook(save_steps=3, output_dir=tmp_path)) as session:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(session.run, long)
            await anyio.wait_all_tasks_blocked()
            await run_steps(session, 4)
            go_on.set()
    assert files(tmp_path)[:2] == ["timeline-1.json", "timeline-4.json"]
    first = events(tmp_path / "timeline-1.json")
    [cut] = [event for event in first if event.get("args", {}).get("ended") and event["cat"] == "step"]
    assert cut["name"] in ("step", "step 5")  # it may be over when the file is written
    assert "step 1" in names(first)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({}, InvalidArgumentError),
        ({"save_steps": 0}, InvalidArgumentError),
        ({"save_secs": -1.0}, InvalidArgumentError),
        ({"save_steps": "3"}, InvalidTypeError),
        ({"save_steps": 1, "output_dir": None}, InvalidTypeError),
        ({"save_steps": 1, "output_dir": b"traces"}, InvalidTypeError),
        ({"save_steps": 1, "output_dir": "s3://bucket/traces"}, InvalidArgumentError),
        ({"save_steps": 1, "output_dir": "tra\0ces"}, InvalidArgumentError),
    ],
)
def test_what_it_is_given_is_checked(arguments: dict[str, Any], error: type[Exception]) -> None:
    """At construction, with the name of the hook and of the parameter."""
    with pytest.raises(error, match=r"ProfilerHook.*(save_steps|save_secs|output_dir)"):
        ProfilerHook(**arguments)


@pytest.mark.parametrize(("path", "error"), [(3, InvalidTypeError), ("", InvalidArgumentError)])
def test_the_path_of_a_whole_trace_is_checked(path: Any, error: type[Exception]) -> None:
    """At construction."""
    with pytest.raises(error, match=r"TraceHook.*path"):
        TraceHook(path)
