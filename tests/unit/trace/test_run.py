"""`RunOptions(trace=True)`: what a run did when, in its metadata."""

from __future__ import annotations

import errno
import gc
import weakref
from pathlib import Path
from typing import Any

import anyio
import pytest
import tenacity

from asyncstep import (
    AbortedError,
    ChiefSessionCreator,
    Graph,
    MonitoredSession,
    Node,
    Recovery,
    RunMetadata,
    RunOptions,
    Session,
    SessionRunArgs,
    SessionRunContext,
    SessionRunHook,
    SessionRunValues,
    StepContext,
    Variable,
    op,
    source,
)
from asyncstep._runtime import trace_events
from asyncstep._runtime.trace import MOST_LETTERS, active, described
from asyncstep.errors import FailedPreconditionError, InvalidArgumentError, InvalidTypeError

from .parts import Event, checked, is_inside, only, read, rows

pytestmark = pytest.mark.anyio

TRACED = RunOptions(trace=True)


def monitored(graph: Graph, *hooks: SessionRunHook, recovery: Recovery | None = None) -> MonitoredSession:
    """A monitored session of a graph."""
    recovery = recovery or Recovery(wait_initial=0.0, jitter=0.0)
    return MonitoredSession(ChiefSessionCreator(graph=graph), hooks, recovery=recovery)


def categories(events: list[Event]) -> list[tuple[str, str]]:
    """Category and name of each complete event, in order."""
    return [(event["cat"], event["name"]) for event in events if event["ph"] == "X"]


async def traced(session: MonitoredSession | Session, fetches: Any) -> list[Event]:
    """The events of a run that succeeds."""
    metadata = RunMetadata()
    await session.run(fetches, options=TRACED, run_metadata=metadata)
    events = metadata.trace_events()
    checked(events)
    return events


class Watching(SessionRunHook):
    """Has all of a run's methods."""

    async def before_run(self, run_context: SessionRunContext) -> None:
        await anyio.lowlevel.checkpoint()

    async def before_commit(self, run_context: SessionRunContext, run_values: SessionRunValues) -> None:
        await anyio.lowlevel.checkpoint()

    async def after_run(self, run_context: SessionRunContext, run_values: SessionRunValues) -> None:
        await anyio.lowlevel.checkpoint()

    async def on_run_error(self, run_context: SessionRunContext, error: BaseException) -> None:
        await anyio.lowlevel.checkpoint()


async def test_a_step_has_its_hooks_and_nodes_in_it() -> None:
    """One row: the step, in it the hooks' methods before, the nodes, and the hooks' methods after, in this order."""
    with Graph() as graph:
        value = op(name="double")(lambda x: 2 * x)(op(name="two")(lambda: 2)())
        total = Variable(0, name="total").assign_add(value)
    async with monitored(graph, Watching()) as session:
        await session.run(total)
        events = await traced(session, total)
    assert categories(events) == [
        ("step", "step 2"),
        ("hook", "Watching.before_run"),
        ("node", "two"),
        ("node", "double"),
        ("node", "total_update"),
        ("hook", "Watching.before_commit"),
        ("hook", "Watching.after_run"),
    ]
    step, *inner = checked(events)
    assert all(is_inside(event, step) for event in inner)
    assert step["args"] == {"attempt": 1, "outcome": "committed", "global_step": 2}
    assert list(rows(events)) == ["worker 0"]


async def test_nodes_that_overlap_have_rows_of_their_own() -> None:
    """Two nodes that wait at the same time are in two rows of the worker; one that comes later shares a row."""
    both = [anyio.Event(), anyio.Event()]

    @op
    async def meet(number: int) -> int:
        both[number].set()
        await both[1 - number].wait()
        return number

    @op
    async def later(*others: int) -> int:
        return len(others)

    with Graph() as graph:
        nodes = later(meet(0), meet(1))
    async with monitored(graph) as session:
        found = rows(await traced(session, nodes))
    assert [[event["name"] for event in row] for row in found.values()] == [
        ["step 1", "meet", "later"],
        ["meet_1"],
    ]
    assert list(found) == ["worker 0", "worker 0, beside 1"]


async def test_runs_that_overlap_have_rows_of_their_own() -> None:
    """Raw runs that several tasks of a hook make overlap like nodes do."""
    both = [anyio.Event(), anyio.Event()]

    async def meet(number: int) -> None:
        both[number].set()
        await both[1 - number].wait()

    with Graph() as graph:
        nodes = [op(meet)(0), op(meet)(1)]
    metadata = RunMetadata()

    class Inside(SessionRunHook):
        async def before_run(self, run_context: SessionRunContext) -> None:
            async with anyio.create_task_group() as tasks:
                for node in nodes:
                    tasks.start_soon(run_context.session.run, node)

    async with monitored(graph, Inside()) as session:
        await session.run([], options=TRACED, run_metadata=metadata)
    found = rows(metadata.trace_events())
    first, second = ([event["name"] for event in row] for row in found.values())
    assert first[:3] == ["step 1", "Inside.before_run", "run"]
    assert second[0] == "run"
    assert {first[3], second[1]} == {"meet", "meet_1"}


async def test_a_wait_for_items_is_shown_in_the_node_of_the_source() -> None:
    """Where a source has nothing ready, the node of the source has a wait in it."""

    async def letters() -> Any:
        for letter in "ab":
            await anyio.lowlevel.checkpoint()
            yield letter

    with Graph() as graph:
        letter = source(letters, name="letters")
    async with monitored(graph) as session:
        events = await traced(session, letter)
    assert is_inside(only(events, "wait for items"), only(events, "letters"))


async def test_an_item_that_is_ready_is_no_wait() -> None:
    """A source over a list gives its items at once."""
    with Graph() as graph:
        item = source([1, 2], name="numbers")
    async with monitored(graph) as session:
        events = await traced(session, item)
    assert categories(events) == [("step", "step 1"), ("node", "numbers")]


async def test_a_wait_for_a_limiter_is_shown_in_the_node_that_waits() -> None:
    """Two nodes that share a limiter of one token: the second waits as long as the first works."""
    limiter = anyio.CapacityLimiter(1)

    @op(limiter=limiter)
    async def ask() -> None:
        if not limiter.statistics().tasks_waiting:
            await anyio.wait_all_tasks_blocked()

    with Graph() as graph:
        nodes = [ask(), ask()]
    async with monitored(graph) as session:
        events = await traced(session, nodes)
    first, second = (
        event
        for event in checked(events)
        if event["cat"] == "wait" and event["name"] == "wait for the limiter"
    )
    assert is_inside(second, only(events, "ask_1"))
    assert second["ts"] + second["dur"] >= first["ts"] + first["dur"]


@pytest.mark.parametrize(
    "retry", [2, tenacity.AsyncRetrying(stop=tenacity.stop_after_attempt(2), sleep=anyio.sleep)]
)
async def test_the_wait_between_attempts_of_a_node_is_shown_in_it(retry: Any) -> None:
    """With a number of attempts and with a policy of tenacity's: the node has the wait in it, and has succeeded."""
    tries = []

    @op(retry=retry)
    async def flaky() -> int:
        tries.append(1)
        if len(tries) == 1:
            raise ValueError("once")
        return 1

    with Graph() as graph:
        node = flaky()
    async with monitored(graph) as session:
        events = await traced(session, node)
    assert is_inside(only(events, "wait for the next attempt"), only(events, "flaky"))
    assert only(events, "flaky")["args"] == {}


async def test_a_step_that_is_tried_again_shows_what_failed_and_the_wait() -> None:
    """V1: one step: the failed node, on_run_error, the wait, and the attempt that committed."""
    plan: list[Exception | None] = [AbortedError("not yet"), None]

    async def work() -> None:
        if (failure := plan.pop(0)) is not None:
            raise failure

    with Graph() as graph:
        node = op(work)()
    async with monitored(graph, Watching()) as session:
        events = await traced(session, node)
    assert categories(events) == [
        ("step", "step 1"),
        ("hook", "Watching.before_run"),
        ("node", "work (failed)"),
        ("hook", "Watching.on_run_error"),
        ("wait", "wait for the next attempt"),
        ("hook", "Watching.before_run"),
        ("node", "work"),
        ("hook", "Watching.before_commit"),
        ("hook", "Watching.after_run"),
    ]
    assert only(events, "work (failed)")["args"] == {"outcome": "failed", "error": "AbortedError: not yet"}
    assert only(events, "step 1")["args"]["attempt"] == 2


async def test_a_recovery_is_shown() -> None:
    """V2: a recovery has its place between the attempts."""
    plan: list[Exception | None] = [AbortedError("lost"), None]

    async def work() -> None:
        if (failure := plan.pop(0)) is not None:
            raise failure

    with Graph() as graph:
        node = op(work)()
    always = Recovery(restore="always", wait_initial=0.0, jitter=0.0)
    async with monitored(graph, recovery=always) as session:
        events = await traced(session, node)
        assert session.recoveries == 1
    assert [name for _, name in categories(events)] == [
        "step 1",
        "work (failed)",
        "wait for the next attempt",
        "recovery",
        "work",
    ]


async def test_a_failed_step_says_so() -> None:
    """The node that failed, the one that was cancelled with it, and the step, each with its outcome."""

    begun = anyio.Event()

    @op
    async def fail() -> None:
        await begun.wait()
        raise ValueError("no such page")

    @op(name="forever")
    async def begin_and_wait() -> None:
        begun.set()
        await anyio.sleep_forever()

    with Graph() as graph:
        nodes = [fail(), begin_and_wait()]
    metadata = RunMetadata()
    async with monitored(graph) as session:
        with pytest.raises(ValueError, match="no such page"):
            await session.run(nodes, options=TRACED, run_metadata=metadata)
        assert active.get() is None
    events = metadata.trace_events()
    assert {name for _, name in categories(events)} == {
        "step (failed)",
        "fail (failed)",
        "forever (cancelled)",
    }
    step = only(events, "step (failed)")
    assert step["args"] == {"attempt": 1, "outcome": "failed", "error": "ValueError: no such page"}
    assert step["cname"] == "terrible"
    assert only(events, "forever (cancelled)")["cname"] == "grey"


@op
async def forever() -> None:
    """Wait until it is cancelled."""
    await anyio.sleep_forever()


async def test_a_cancelled_step_says_so() -> None:
    """T4: a step that is cancelled from outside is shown up to there."""
    with Graph() as graph:
        node = forever()
    metadata = RunMetadata()
    async with monitored(graph, Watching()) as session:
        with anyio.CancelScope() as scope:

            async def run() -> None:
                await session.run(node, options=TRACED, run_metadata=metadata)

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(run)
                await anyio.wait_all_tasks_blocked()
                scope.cancel()
    events = metadata.trace_events()
    assert [name for _, name in categories(events)] == [
        "step (cancelled)",
        "Watching.before_run",
        "forever (cancelled)",
        "Watching.on_run_error",
    ]


async def test_the_end_of_the_data_is_no_failure() -> None:
    """S7: the step that asks for an item too many ends with the data."""
    with Graph() as graph:
        item = source([1], name="numbers")
    metadata = RunMetadata()
    async with monitored(graph) as session:
        await session.run(item)
        await session.run(item, options=TRACED, run_metadata=metadata)
    assert [name for _, name in categories(metadata.trace_events())] == [
        "step (end of data)",
        "numbers (end of data)",
    ]


async def test_a_refused_step_names_the_hook() -> None:
    """A hook that refuses the step is the one that has failed, and the nodes have not."""

    class Refusing(SessionRunHook):
        async def before_commit(self, run_context: SessionRunContext, run_values: SessionRunValues) -> None:
            raise ValueError("no")

    with Graph() as graph:
        node = op(name="one")(lambda: 1)()
    metadata = RunMetadata()
    async with monitored(graph, Refusing()) as session:
        with pytest.raises(ValueError, match="no"):
            await session.run(node, options=TRACED, run_metadata=metadata)
    assert [name for _, name in categories(metadata.trace_events())] == [
        "step (failed)",
        "one",
        "Refusing.before_commit (failed)",
    ]


async def test_a_step_that_is_done_stays_committed() -> None:
    """T7: an error of after_run comes after the commit: the step has committed, and the error is told."""

    class Late(SessionRunHook):
        async def after_run(self, run_context: SessionRunContext, run_values: SessionRunValues) -> None:
            raise ValueError("late")

    with Graph() as graph:
        node = op(name="one")(lambda: 1)()
    metadata = RunMetadata()
    async with monitored(graph, Late()) as session:
        with pytest.raises(ValueError, match="late"):
            await session.run(node, options=TRACED, run_metadata=metadata)
    step = only(metadata.trace_events(), "step 1")
    assert step["args"]["outcome"] == "committed"
    assert step["args"]["error"] == "ValueError: late"


async def test_runs_of_a_step_function_are_traced_one_by_one() -> None:
    """`ctx.run_with_hooks` with a trace gives that of the run, `ctx.session.run` that of the raw run."""
    whole, raw = RunMetadata(), RunMetadata()
    with Graph() as graph:
        node = op(name="one")(lambda: 1)()

    async def step(ctx: StepContext) -> None:
        await ctx.run_with_hooks(node, options=TRACED, run_metadata=whole)
        await ctx.session.run(node, options=TRACED, run_metadata=raw)

    async with monitored(graph, Watching()) as session:
        await session.run_step_fn(step)
    assert [name for _, name in categories(whole.trace_events())] == [
        "step 1",
        "Watching.before_run",
        "one",
        "Watching.before_commit",
        "Watching.after_run",
    ]
    assert categories(raw.trace_events()) == [("run", "run"), ("node", "one")]


async def test_a_raw_session_traces_its_runs() -> None:
    """Without a monitored session: the run and its nodes, overlapping or not."""
    with Graph() as graph:
        first = op(name="first")(lambda: 1)()
        second = op(name="second")(lambda x: x)(first)
    async with Session(graph) as session:
        events = await traced(session, second)
    assert categories(events) == [("run", "run"), ("node", "first"), ("node", "second")]


async def test_a_run_without_hooks_is_traced() -> None:
    """R7: it is a step all the same."""
    metadata = RunMetadata()
    with Graph() as graph:
        node = op(name="one")(lambda: 1)()
    async with monitored(graph, Watching()) as session:
        await session.run_without_hooks(node, options=TRACED, run_metadata=metadata)
    assert categories(metadata.trace_events()) == [("step", "step 1"), ("node", "one")]


async def test_a_raw_run_of_a_hook_is_inside_of_the_hooks_method() -> None:
    """T8: what a hook runs is shown where it runs it."""

    class Asking(SessionRunHook):
        async def before_run(self, run_context: SessionRunContext) -> None:
            await run_context.session.run(one)

    with Graph() as graph:
        one = op(name="one")(lambda: 1)()
        two = op(name="two")(lambda: 2)()
    async with monitored(graph, Asking()) as session:
        events = await traced(session, two)
    assert is_inside(only(events, "one"), only(events, "run"))
    assert is_inside(only(events, "run"), only(events, "Asking.before_run"))


async def test_a_hook_that_asks_for_a_trace_gets_the_nodes() -> None:
    """A hook's RunOptions(trace=True) fills the metadata that it is given, with no wish of the caller."""
    seen: list[list[tuple[str, str]]] = []

    class Asking(SessionRunHook):
        async def before_run(self, run_context: SessionRunContext) -> SessionRunArgs:
            return SessionRunArgs(options=TRACED)

        async def after_run(self, run_context: SessionRunContext, run_values: SessionRunValues) -> None:
            seen.append(categories(run_values.run_metadata.trace_events()))

    with Graph() as graph:
        node = op(name="one")(lambda: 1)()
    async with monitored(graph, Asking()) as session:
        await session.run(node)
    assert seen == [[("run", "run"), ("node", "one")]]


async def test_the_callers_trace_is_in_the_hooks_metadata() -> None:
    """A hook sees the trace of the run up to itself; no option is put into the caller's mouth."""
    seen: list[Any] = []

    class Looking(SessionRunHook):
        async def after_run(self, run_context: SessionRunContext, run_values: SessionRunValues) -> None:
            seen.append(run_context.original_args.options)
            seen.append(categories(run_values.run_metadata.trace_events()))

    with Graph() as graph:
        node = op(name="one")(lambda: 1)()
    async with monitored(graph, Looking()) as session:
        await session.run(node, options=TRACED)
    assert seen == [TRACED, [("step", "step 1"), ("node", "one"), ("hook", "Looking.after_run")]]


async def test_what_a_hook_asked_for_it_gets_in_a_traced_run_too() -> None:
    """R2: a traced run gives each hook its own results, in its own nesting, and the caller the caller's."""
    results: list[Any] = []

    class Fetching(SessionRunHook):
        def __init__(self, fetches: Any) -> None:
            self.fetches = fetches

        async def before_run(self, run_context: SessionRunContext) -> SessionRunArgs:
            return SessionRunArgs(self.fetches)

        async def after_run(self, run_context: SessionRunContext, run_values: SessionRunValues) -> None:
            results.append(run_values.results)

    with Graph() as graph:
        one, two = op(name="one")(lambda: 1)(), op(name="two")(lambda: 2)()
    async with monitored(graph, Fetching({"two": two}), Watching(), Fetching([one])) as session:
        assert await session.run((one, two), options=TRACED) == (1, 2)
    assert results == [{"two": 2}, [1]]


async def test_a_background_task_is_no_part_of_the_step_that_starts_it() -> None:
    """What is started in the background goes on after the step, and is not in its trace."""
    seen: list[object] = []

    async def background() -> None:
        seen.append(active.get())

    class Starting(SessionRunHook):
        async def after_create_session(self, session: Session, coord: Any) -> None:
            self.coord = coord

        async def before_run(self, run_context: SessionRunContext) -> None:
            self.coord.start_soon(background)

    async with anyio.create_task_group() as tasks:
        session = MonitoredSession(ChiefSessionCreator(graph=Graph()), [Starting()], task_group=tasks)
        async with session:
            await session.run([], options=TRACED)
    assert seen == [None]


async def test_metadata_that_is_used_again_tells_of_the_last_run() -> None:
    """Each traced run takes the place of the one before."""
    metadata = RunMetadata()
    with Graph() as graph:
        first, second = op(name="first")(lambda: 1)(), op(name="second")(lambda: 2)()
    async with monitored(graph) as session, Session(graph) as raw:
        for run in (session.run, raw.run):
            await run(first, options=TRACED, run_metadata=metadata)
            await run(second, options=TRACED, run_metadata=metadata)
            assert set(metadata.node_timings) == {"second"}
            assert categories(metadata.trace_events())[-1] == ("node", "second")


async def test_a_run_that_was_not_traced_says_how_to() -> None:
    """Asking untraced metadata for a trace is an error that says what to give; it has no timings."""
    metadata = RunMetadata()
    async with monitored(Graph()) as session:
        await session.run([], run_metadata=metadata)
    assert metadata.node_timings == {}
    with pytest.raises(FailedPreconditionError, match=r"RunOptions\(trace=True\)"):
        metadata.trace_events()
    with pytest.raises(FailedPreconditionError, match=r"RunOptions\(trace=True\)"):
        await metadata.save_trace("trace.json")


async def test_a_trace_is_saved_as_a_file(tmp_path: Path) -> None:
    """`save_trace` makes the directory, writes what `trace_events` tells, and leaves nothing else there."""
    metadata = RunMetadata()
    with Graph() as graph:
        node = op(name='odd "name" ☃ \ud800')(lambda: 1)()
    async with Session(graph) as session:
        await session.run(node, options=TRACED, run_metadata=metadata)
    path = tmp_path / "deep" / "trace.json"
    await metadata.save_trace(path)
    events, about = read(path)
    assert events == metadata.trace_events()
    assert about["dropped_events"] == 0
    assert [each.name for each in path.parent.iterdir()] == ["trace.json"]


@pytest.mark.parametrize("path", [None, 3, b"trace.json", "s3://bucket/trace.json", "tra\0ce.json"])
async def test_what_is_no_path_is_refused(path: Any) -> None:
    """With what was given, and before anything is written."""
    metadata = RunMetadata()
    async with Session(Graph()) as session:
        await session.run([], options=TRACED, run_metadata=metadata)
    with pytest.raises((InvalidTypeError, InvalidArgumentError), match="the path of a trace"):
        await metadata.save_trace(path)


async def test_a_full_disk_leaves_the_former_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a trace cannot be written the error is the disk's own, and the directory is as it was."""
    metadata = RunMetadata()
    async with Session(Graph()) as session:
        await session.run([], options=TRACED, run_metadata=metadata)
    path = tmp_path / "trace.json"
    path.write_text("{}")

    def full(trace: object) -> Any:
        yield "{"
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(trace_events, "_lines", full)
    with pytest.raises(OSError, match="No space left"):
        await metadata.save_trace(path)
    assert [each.name for each in tmp_path.iterdir()] == ["trace.json"]
    assert path.read_text() == "{}"


async def test_a_failed_traced_run_keeps_nothing_alive() -> None:
    """E5: the trace has the words of an error, and neither the error nor what its traceback holds."""

    class Big:
        pass

    @op
    async def fail() -> None:
        big = Big()
        held.append(weakref.ref(big))
        raise ValueError(big)

    held: list[weakref.ref[Big]] = []
    metadata = RunMetadata()
    with Graph() as graph:
        node: Node[Any] = fail()
    gc.collect()
    gc.disable()
    try:
        async with monitored(graph, Watching()) as session:
            try:
                await session.run(node, options=TRACED, run_metadata=metadata)
            except ValueError:
                pass
            assert held[0]() is None
    finally:
        gc.enable()
    assert only(metadata.trace_events(), "fail (failed)")["args"]["error"].startswith("ValueError: <")


def test_an_error_is_described_in_a_few_words() -> None:
    """Long words are cut, and an error that cannot say what it is does no harm."""

    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    assert described(ValueError()) == "ValueError"
    assert described(Mute()) == "Mute: (which cannot say what it is)"
    assert len(described(ValueError("x" * 10_000))) == MOST_LETTERS
