"""Contract R: one run."""

from __future__ import annotations

import contextvars
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple

import anyio
import anyio.lowlevel
import pytest

import asyncstep
from asyncstep import (
    AbortedError,
    ChiefSessionCreator,
    DeadlineExceededError,
    Graph,
    InvalidArgumentError,
    MonitoredSession,
    Node,
    NotFoundError,
    OutOfRangeError,
    Recovery,
    RunMetadata,
    RunOptions,
    Session,
    SessionClosedError,
    SessionRunArgs,
    SessionRunContext,
    SessionRunHook,
    SessionRunValues,
    StepContext,
    StopRequested,
    Variable,
    op,
    placeholder,
    source,
)

from .counting import to_the_end as monitored

pytestmark = pytest.mark.anyio


class Recorder(SessionRunHook):
    """A hook that writes down each of its calls as ``"<name>.<point>"`` and what it was given."""

    def __init__(
        self, name: str = "hook", log: list[str] | None = None, args: SessionRunArgs | None = None
    ) -> None:
        self.name = name
        self.log: list[str] = [] if log is None else log
        self.args = args
        self.results: list[Any] = []
        self.errors: list[BaseException] = []
        self.contexts: list[SessionRunContext] = []

    @property
    def calls(self) -> list[str]:
        """The points at which this very hook was called, in order."""
        own = self.name + "."
        return [entry.removeprefix(own) for entry in self.log if entry.startswith(own)]

    async def before_run(self, run_context: SessionRunContext) -> SessionRunArgs | None:
        self.log.append(f"{self.name}.before_run")
        self.contexts.append(run_context)
        return self.args

    async def before_commit(self, run_context: SessionRunContext, run_values: SessionRunValues) -> None:
        self.log.append(f"{self.name}.before_commit")

    async def after_run(self, run_context: SessionRunContext, run_values: SessionRunValues) -> None:
        self.log.append(f"{self.name}.after_run")
        self.results.append(run_values.results)

    async def on_run_error(self, run_context: SessionRunContext, error: BaseException) -> None:
        self.log.append(f"{self.name}.on_run_error")
        self.errors.append(error)


class Acting(Recorder):
    """A recorder that then does what the test says at one point."""

    def __init__(
        self,
        point: str,
        act: Callable[[], Awaitable[object]],
        name: str = "hook",
        log: list[str] | None = None,
    ) -> None:
        super().__init__(name, log)
        self.point = point
        self.act = act

    async def before_run(self, run_context: SessionRunContext) -> SessionRunArgs | None:
        await super().before_run(run_context)
        if self.point == "before_run":
            await self.act()
        return None

    async def before_commit(self, run_context: SessionRunContext, run_values: SessionRunValues) -> None:
        await super().before_commit(run_context, run_values)
        if self.point == "before_commit":
            await self.act()

    async def after_run(self, run_context: SessionRunContext, run_values: SessionRunValues) -> None:
        await super().after_run(run_context, run_values)
        if self.point == "after_run":
            await self.act()

    async def on_run_error(self, run_context: SessionRunContext, error: BaseException) -> None:
        await super().on_run_error(run_context, error)
        if self.point == "on_run_error":
            await self.act()


class Pair(NamedTuple):
    """A named tuple to fetch."""

    left: Any
    right: Any


def fed(run_context: SessionRunContext) -> Mapping[Any, Any]:
    """What the caller of a run feeds."""
    feeds = run_context.original_args.feed_dict
    assert feeds is not None
    return feeds


async def passes_once_settled(scope: anyio.CancelScope) -> None:
    """Let the deadline of a scope pass as soon as everybody waits."""
    await anyio.wait_all_tasks_blocked()
    scope.deadline = anyio.current_time()


async def raise_boom() -> None:
    """Fail as user code fails."""
    raise ValueError("boom")


@op
def constant(value: Any) -> Any:
    """A node that never suspends."""
    return value


@op
async def passing(started: list[str], gate: anyio.Event, name: str, *inputs: Any) -> str:
    """A node that says that it started and waits for `gate`."""
    started.append(name)
    await gate.wait()
    return name


# R1: the order


async def test_a_run_goes_through_its_points_in_order() -> None:
    """R1: before_run, one evaluation, before_commit, the commit, after_run; hooks in list order."""
    log: list[str] = []

    @op
    def evaluate() -> int:
        log.append("evaluate")
        return 7

    with Graph() as graph:
        fetch = evaluate()

    class Step(Recorder):
        async def before_commit(self, run_context: SessionRunContext, run_values: SessionRunValues) -> None:
            log.append(f"{self.name}.before_commit at step {session.global_step}")

        async def after_run(self, run_context: SessionRunContext, run_values: SessionRunValues) -> None:
            log.append(f"{self.name}.after_run at step {session.global_step}")

    async with monitored(graph, Step("a", log), Step("b", log)) as session:
        assert await session.run(fetch) == 7
        log.append("caller")
    assert log == [
        "a.before_run",
        "b.before_run",
        "evaluate",
        "a.before_commit at step 0",
        "b.before_commit at step 0",
        "a.after_run at step 1",
        "b.after_run at step 1",
        "caller",
    ]


async def test_a_run_checks_for_cancellation_before_any_hook() -> None:
    """R1a: a run in a cancelled scope ends there, before a hook is called or a node evaluated."""
    evaluated: list[int] = []
    with Graph() as graph:
        node = op(evaluated.append)(1)
    hook = Recorder()
    async with monitored(graph, hook) as session:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await session.run(node)
        assert scope.cancelled_caught
        assert hook.calls == [] and evaluated == []


async def test_a_run_after_a_stop_or_the_close_calls_no_hook() -> None:
    """R1a: closed and stopped are checked before any hook is called."""
    with Graph() as graph:
        node = constant(1)
    hook = Recorder()
    async with monitored(graph, hook) as session:
        session.request_stop()
        with pytest.raises(StopRequested):
            await session.run(node)
    with pytest.raises(SessionClosedError):
        await session.run(node)
    assert hook.calls == []


async def test_the_fetches_of_caller_and_hooks_are_one_evaluation() -> None:
    """R1c: the caller's and the hooks' fetches are evaluated together, not one after the other."""
    started: list[str] = []
    gate = anyio.Event()
    with Graph() as graph:
        nodes = [passing(started, gate, name) for name in ("caller", "a", "b")]
    hooks = [Recorder(name, args=SessionRunArgs(node)) for name, node in zip("ab", nodes[1:], strict=True)]
    async with monitored(graph, *hooks) as session, anyio.create_task_group() as group:
        group.start_soon(session.run, nodes[0])
        await anyio.wait_all_tasks_blocked()
        assert sorted(started) == ["a", "b", "caller"]
        gate.set()
    assert [hook.results for hook in hooks] == [["a"], ["b"]]


async def test_nothing_else_runs_while_a_run_commits() -> None:
    """R1e: there is no await in the commit: whoever looks sees all of a step or nothing of it."""
    seen: set[tuple[int, ...]] = set()
    with Graph() as graph:
        variables = [Variable(0, name=f"v{i}") for i in range(20)]
        step = [variable.assign_add(1) for variable in variables]

    async def watch(raw: Session) -> None:
        while True:
            values = await raw.run([*variables, "global_step"])
            seen.add(tuple(values))
            await anyio.lowlevel.checkpoint()

    class Watch(SessionRunHook):
        async def after_create_session(self, session: Session, coord: Any) -> None:
            group.start_soon(watch, session)

        async def before_commit(self, run_context: Any, run_values: Any) -> None:
            await anyio.lowlevel.checkpoint()

        async def after_run(self, run_context: Any, run_values: Any) -> None:
            await anyio.lowlevel.checkpoint()

    with graph:
        asyncstep.get_or_create_global_step()
    async with anyio.create_task_group() as group:
        async with monitored(graph, Watch()) as session:
            for _ in range(20):
                await session.run(step)
            group.cancel_scope.cancel()
    assert len(seen) > 5
    assert all(len(set(values)) == 1 for values in seen)


async def test_a_cancellation_next_to_the_commit_leaves_all_or_nothing() -> None:
    """R1e: a step cancelled at the last moment has committed, and its hook is told so, or not at all."""
    with Graph() as graph:
        step = [Variable(0, name=name).assign_add(1) for name in "ab"]
    scope = anyio.CancelScope()

    async def cancel() -> None:
        scope.cancel()

    hook = Acting("before_commit", cancel)
    async with monitored(graph, hook) as session:
        with scope:
            await session.run(step)
        values = await session.run_without_hooks(["a", "b"])
        assert hook.calls[:2] == ["before_run", "before_commit"]
        assert (values, hook.calls[2:]) in (([1, 1], ["after_run"]), ([0, 0], ["on_run_error"]))


# R2: once each, own results only


async def test_a_node_is_evaluated_once_whoever_asks() -> None:
    """R2: one node fetched by the caller twice, by name, by two hooks and as an input is evaluated once."""
    evaluated: list[int] = []

    @op
    def count() -> int:
        evaluated.append(1)
        return len(evaluated)

    with Graph() as graph:
        node = count()
        consumers = [constant(node), constant([node])]
    hooks = [Recorder(args=SessionRunArgs([node, node])), Recorder(args=SessionRunArgs({"n": node.name}))]
    async with monitored(graph, *hooks) as session:
        assert await session.run([node, node.name, (node, consumers)]) == [1, 1, (1, [1, [1]])]
    assert evaluated == [1]
    assert [hook.results for hook in hooks] == [[[1, 1]], [{"n": 1}]]


async def test_a_coroutine_function_fetched_by_caller_and_hook_is_one_node_of_the_run() -> None:
    """R2: a coroutine function is a node of that run: evaluated once in it, and again in the next."""
    calls: list[int] = []

    async def fetch() -> int:
        calls.append(1)
        return len(calls)

    graph = Graph()
    hook = Recorder(args=SessionRunArgs(fetch))
    async with monitored(graph, hook) as session:
        nodes = set(graph.nodes)
        assert await session.run([fetch, fetch]) == [1, 1]
        assert await session.run(fetch) == 2
        assert set(graph.nodes) == nodes
    assert hook.results == [1, 2]


async def test_each_hook_sees_its_own_results_in_its_own_nesting() -> None:
    """R2: a hook's results have the nesting that it asked for; one that asked for nothing gets None."""
    with Graph() as graph:
        one, two, three = constant(1), constant(2), constant(3)
    asked = [SessionRunArgs({"x": [one, (two,)]}), SessionRunArgs(Pair(two, [three])), SessionRunArgs(), None]
    hooks = [Recorder(args=args) for args in asked]
    async with monitored(graph, *hooks) as session:
        assert await session.run(three) == 3
    assert [hook.results for hook in hooks] == [[{"x": [1, (2,)]}], [Pair(2, [3])], [None], [None]]
    assert isinstance(hooks[1].results[0], Pair)


# R3: overlap


async def test_independent_nodes_overlap() -> None:
    """R3: nodes that need nothing of each other all wait at the same time."""
    started: list[str] = []
    gate = anyio.Event()
    with Graph() as graph:
        nodes = [passing(started, gate, str(i)) for i in range(50)]
    async with monitored(graph) as session, anyio.create_task_group() as group:
        group.start_soon(session.run, nodes)
        await anyio.wait_all_tasks_blocked()
        assert len(started) == 50
        gate.set()


async def test_a_node_waits_for_its_inputs_and_for_nothing_else() -> None:
    """R3: a node starts when its own inputs are there, however many other nodes still wait."""
    started: list[str] = []
    slow, fast = anyio.Event(), anyio.Event()
    fast.set()
    with Graph() as graph:
        slow_nodes = [passing(started, slow, f"slow{i}") for i in range(3)]
        chain: Node[Any] = passing(started, fast, "fast0")
        for i in (1, 2, 3):
            chain = passing(started, fast, f"fast{i}", chain)
        last = passing(started, fast, "last", chain, slow_nodes)
    async with monitored(graph) as session, anyio.create_task_group() as group:
        group.start_soon(session.run, last)
        await anyio.wait_all_tasks_blocked()
        assert sorted(started) == ["fast0", "fast1", "fast2", "fast3", "slow0", "slow1", "slow2"]
        slow.set()
    assert started[-1] == "last"


async def test_a_node_waits_for_its_control_dependencies() -> None:
    """R3: `after` orders two nodes without passing a value."""
    started: list[str] = []
    slow, fast = anyio.Event(), anyio.Event()
    fast.set()
    with Graph() as graph:
        first = passing(started, slow, "first")
        second = passing(started, fast, "second").after(first)
        third = passing(started, fast, "third")
    async with monitored(graph) as session, anyio.create_task_group() as group:
        results: list[Any] = []

        async def run() -> None:
            results.append(await session.run([second, third]))

        group.start_soon(run)
        await anyio.wait_all_tasks_blocked()
        assert sorted(started) == ["first", "third"]
        slow.set()
    assert results == [["second", "third"]]


@pytest.mark.parametrize("bound", [1, 3])
async def test_run_options_bound_how_many_nodes_run_at_once(bound: int) -> None:
    """R3: at most `RunOptions.concurrency` nodes are being evaluated at a time, and that many are."""
    running: list[int] = []
    most: list[int] = []

    @op
    async def wait(index: int) -> None:
        running.append(index)
        most.append(len(running))
        for _ in range(3):
            await anyio.lowlevel.checkpoint()
        running.remove(index)

    with Graph() as graph:
        nodes = [wait(i) for i in range(10)]
    async with monitored(graph) as session:
        await session.run(nodes, options=RunOptions(concurrency=bound))
    assert max(most) == bound and len(most) == 10


async def test_a_limiter_bounds_the_nodes_that_share_it() -> None:
    """R3: nodes of ops with one limiter take its tokens; other nodes do not wait for them."""
    started: list[str] = []
    gate = anyio.Event()
    limiter = anyio.CapacityLimiter(2)

    @op(limiter=limiter)
    async def call(name: str) -> None:
        started.append(name)
        await gate.wait()

    @op(limiter=limiter)
    async def query(name: str) -> None:
        started.append(name)
        await gate.wait()

    with Graph() as graph:
        nodes: list[Node[Any]] = [call("call0"), query("query0"), call("call1"), query("query1")]
        free = [passing(started, gate, f"free{i}") for i in range(3)]
    async with monitored(graph) as session, anyio.create_task_group() as group:
        group.start_soon(session.run, nodes + free)
        await anyio.wait_all_tasks_blocked()
        limited = [name for name in started if not name.startswith("free")]
        assert len(limited) == 2 and len(started) == 5
        gate.set()
    assert len(started) == 7


# R4: exactly one of after_run and on_run_error


async def test_a_run_that_succeeds_gives_each_hook_after_run() -> None:
    """R4: after a run that committed, after_run and not on_run_error."""
    with Graph() as graph:
        node = constant(1)
    hooks = [Recorder("a"), Recorder("b")]
    async with monitored(graph, *hooks) as session:
        await session.run(node)
    assert [hook.calls for hook in hooks] == [["before_run", "before_commit", "after_run"]] * 2


async def test_an_error_of_evaluation_is_told_to_each_hook_once() -> None:
    """R4: when a node fails, each hook gets on_run_error once, with that very error, in list order."""
    log: list[str] = []
    with Graph() as graph:
        node = op(raise_boom)()
    hooks = [Recorder("a", log), Recorder("b", log)]
    async with monitored(graph, *hooks) as session:
        with pytest.raises(ValueError, match="boom") as caught:
            await session.run(node)
    assert log == ["a.before_run", "b.before_run", "a.on_run_error", "b.on_run_error"]
    assert all(hook.errors == [caught.value] for hook in hooks)


async def test_an_error_in_before_run_is_told_to_the_hooks_that_were_called() -> None:
    """R4: the hook whose before_run failed and those before it get on_run_error; the others get nothing."""
    evaluated: list[int] = []
    with Graph() as graph:
        node = op(evaluated.append)(1)
    hooks = [Recorder("a"), Acting("before_run", raise_boom, "b"), Recorder("c")]
    async with monitored(graph, *hooks) as session:
        with pytest.raises(ValueError, match="boom"):
            await session.run(node)
    assert [hook.calls for hook in hooks] == [["before_run", "on_run_error"]] * 2 + [[]]
    assert evaluated == []


async def test_a_refusing_before_commit_is_told_to_every_hook() -> None:
    """R4: when before_commit refuses, every hook gets on_run_error, and no later before_commit is called."""
    with Graph() as graph:
        node = constant(1)
    hooks = [Recorder("a"), Acting("before_commit", raise_boom, "b"), Recorder("c")]
    async with monitored(graph, *hooks) as session:
        with pytest.raises(ValueError, match="boom"):
            await session.run(node)
    assert [hook.calls for hook in hooks] == [
        ["before_run", "before_commit", "on_run_error"],
        ["before_run", "before_commit", "on_run_error"],
        ["before_run", "on_run_error"],
    ]


async def test_an_error_in_after_run_takes_after_run_from_no_hook() -> None:
    """R4: a hook that fails in after_run gets no on_run_error, and the others get their after_run."""
    with Graph() as graph:
        node = constant(1)
    hooks = [Recorder("a"), Acting("after_run", raise_boom, "b"), Recorder("c")]
    async with monitored(graph, *hooks) as session:
        with pytest.raises(ValueError, match="boom"):
            await session.run(node)
    assert [hook.calls for hook in hooks] == [["before_run", "before_commit", "after_run"]] * 3


@pytest.mark.parametrize("point", ["before_run", "evaluation", "before_commit"])
async def test_a_cancelled_run_is_told_to_its_hooks_shielded(point: str) -> None:
    """R4: cancelled at any point, each hook gets on_run_error with the cancellation, and may await in it."""
    told: list[str] = []
    cancelled = anyio.get_cancelled_exc_class()
    with Graph() as graph:
        node = op(anyio.sleep_forever)() if point == "evaluation" else constant(1)

    class Slow(Acting):
        async def on_run_error(self, run_context: SessionRunContext, error: BaseException) -> None:
            await super().on_run_error(run_context, error)
            await anyio.lowlevel.checkpoint()
            told.append(self.name)

    hooks = [Slow(point, anyio.sleep_forever, "a"), Slow("never", anyio.sleep_forever, "b")]
    async with monitored(graph, *hooks) as session:
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as group:

                async def cancel() -> None:
                    await anyio.wait_all_tasks_blocked()
                    scope.cancel()

                group.start_soon(cancel)
                await session.run(node)
        assert scope.cancelled_caught
    called = hooks if point != "before_run" else hooks[:1]
    assert told == [hook.name for hook in called]
    for hook in called:
        assert hook.calls.count("on_run_error") == 1 and "after_run" not in hook.calls
        assert isinstance(hook.errors[0], cancelled)


async def test_a_hook_that_hangs_in_on_run_error_is_given_the_grace_period() -> None:
    """R4: on_run_error is shielded within the grace period only; the cancellation then goes on."""
    with Graph() as graph:
        node = op(anyio.sleep_forever)()
    hook = Acting("on_run_error", anyio.sleep_forever)
    async with monitored(graph, hook, stop_grace_period=0.05) as session:
        async with anyio.create_task_group() as group:
            with anyio.CancelScope() as scope:
                group.start_soon(passes_once_settled, scope)
                await session.run(node)
        assert scope.cancelled_caught
    assert hook.calls == ["before_run", "on_run_error"]


async def test_a_stop_that_a_hook_meets_does_not_replace_a_cancellation() -> None:
    """R4, C1: a hook that is told of a cancellation and then meets the stop leaves it a cancellation."""
    with Graph() as graph:
        node = op(anyio.sleep_forever)()

    async def meet_the_stop() -> None:
        session.request_stop()
        await session.run(node)

    async with monitored(graph, Acting("on_run_error", meet_the_stop)) as session:
        async with anyio.create_task_group() as group:
            with anyio.CancelScope() as scope:
                group.start_soon(passes_once_settled, scope)
                await session.run(node)
        assert scope.cancelled_caught


async def test_each_attempt_gives_each_hook_one_ending() -> None:
    """R4: per attempt: a step that is retried gives on_run_error for the failed attempt, then after_run."""
    attempts: list[int] = []

    @op
    def flaky() -> int:
        attempts.append(1)
        if len(attempts) < 3:
            raise AbortedError("again")
        return 7

    with Graph() as graph:
        node = flaky()
    hook = Recorder()
    async with monitored(graph, hook, recovery=Recovery(wait_initial=0.001, jitter=0.0)) as session:
        assert await session.run(node) == 7
    failed = ["before_run", "on_run_error"]
    assert hook.calls == [*failed, *failed, "before_run", "before_commit", "after_run"]
    assert [context.attempt for context in hook.contexts] == [1, 2, 3]


async def test_the_end_of_data_is_told_to_hooks_as_an_error_of_the_run() -> None:
    """R4: a run that met the end of the data did not commit: on_run_error, with OutOfRangeError."""
    with Graph() as graph:
        items: Node[Any] = source([], name="items")
    hook = Recorder()
    async with MonitoredSession(ChiefSessionCreator(graph=graph), [hook]) as session:
        await session.run(items)
    assert hook.calls == ["before_run", "on_run_error"]
    assert isinstance(hook.errors[0], OutOfRangeError)


# R5: feeds


async def test_a_fed_node_is_not_evaluated_nor_what_only_it_needs() -> None:
    """R5: feeding a node cuts the graph above it, except for what something else needs."""
    evaluated: list[str] = []

    @op
    def named(name: str, *inputs: Any) -> str:
        evaluated.append(name)
        return "".join([name, *inputs])

    with Graph() as graph:
        shared, only = named("s"), named("o")
        fed = named("f", shared, only)
        last = named("l", fed, shared)
    async with monitored(graph) as session:
        assert await session.run([last, fed], {fed: "X"}) == ["lXs", "X"]
        assert sorted(evaluated) == ["l", "s"]
        assert await session.run(last) == "lfsos"


async def test_a_fed_write_writes_nothing_and_a_fed_source_gives_nothing() -> None:
    """R5: feeding a node that has an effect takes the effect away, too."""
    with Graph() as graph:
        v = Variable(0, name="v")
        write = v.assign(source([1, 2], name="items"))
    async with monitored(graph) as session:
        assert await session.run([write, v], {write: 7}) == [7, 0]
        assert session.source_state("items").pending == () and session.source_state("items").position == 0
        assert await session.run([write, v]) == [1, 1]


async def test_names_and_nodes_are_the_same_key_of_a_feed() -> None:
    """R5: a feed by name is a feed of the node of that name."""
    with Graph() as graph:
        x = placeholder("x")
        double = op(lambda value: 2 * value)(x)
    async with monitored(graph) as session:
        assert await session.run(double, {"x": 3}) == 6
        assert await session.run(double, {x: 4}) == 8
        assert await session.run(x, {"x": None}) is None


async def test_a_hook_may_feed() -> None:
    """R5: the feeds of a hook reach the nodes that the caller fetched, and the other way round."""
    with Graph() as graph:
        x, y = placeholder("x"), placeholder("y")
        both = op(lambda *values: values)(x, y)
    hook = Recorder(args=SessionRunArgs(both, {"x": 1}))
    async with monitored(graph, hook) as session:
        assert await session.run(both, {y: 2}) == (1, 2)
    assert hook.results == [(1, 2)]


class FeedingLeft(Recorder):
    """A hook with a name to find in a message."""


class FeedingRight(Recorder):
    """Another one."""


@pytest.mark.parametrize("by_name", [False, True])
@pytest.mark.parametrize("value", [1, 2])
async def test_two_hooks_that_feed_one_node_are_refused(by_name: bool, value: int) -> None:
    """R5: two hooks feeding one node, also by name, also the same value: an error naming both hooks."""
    evaluated: list[int] = []
    with Graph() as graph:
        x = placeholder("the_x")
        node = op(evaluated.append)(x)
    left = FeedingLeft(args=SessionRunArgs(None, {x: 1}))
    right = FeedingRight(args=SessionRunArgs(None, {"the_x" if by_name else x: value}))
    async with monitored(graph, left, right) as session:
        with pytest.raises(InvalidArgumentError, match="the_x") as caught:
            await session.run(node)
    assert "FeedingLeft" in str(caught.value) and "FeedingRight" in str(caught.value)
    assert evaluated == []


@pytest.mark.parametrize("by_name", [False, True])
async def test_a_hook_and_the_caller_that_feed_one_node_are_refused(by_name: bool) -> None:
    """R5: a hook and the caller feeding one node is an error naming both, before anything is evaluated."""
    evaluated: list[int] = []
    with Graph() as graph:
        x = placeholder("the_x")
        node = op(evaluated.append)(1)
    hook = FeedingLeft(args=SessionRunArgs(None, {x: 1}))
    async with monitored(graph, hook) as session:
        with pytest.raises(InvalidArgumentError, match="the_x") as caught:
            await session.run(node, {"the_x" if by_name else x: 1})
    assert "FeedingLeft" in str(caught.value) and "caller" in str(caught.value)
    assert evaluated == []


async def test_no_argument_of_the_caller_is_changed() -> None:
    """R5: fetches, feeds, options and the hooks' arguments are after the run what they were before."""
    with Graph() as graph:
        x, y = placeholder("x"), placeholder("y")
    fetches: dict[str, Any] = {"xs": [x, "x"], "y": (y,)}
    feeds: dict[Any, Any] = {"x": [1]}
    options = RunOptions(timeout=60.0)
    hook_feeds: dict[Any, Any] = {y: [2]}
    hook_fetches = [y, "y"]
    args = SessionRunArgs(hook_fetches, hook_feeds, RunOptions(timeout=30.0, trace=True, concurrency=2))
    async with monitored(graph, Recorder(args=args)) as session:
        result = await session.run(fetches, feeds, options=options)
    assert result == {"xs": [[1], [1]], "y": ([2],)}
    assert fetches == {"xs": [x, "x"], "y": (y,)} and feeds == {"x": [1]}
    assert (options.timeout, options.trace, options.concurrency) == (60.0, False, None)
    assert args.fetches is hook_fetches and hook_fetches == [y, "y"]
    assert args.feed_dict is hook_feeds and hook_feeds == {y: [2]}
    assert args.options is not None and args.options.timeout == 30.0


async def test_a_hook_is_shown_what_the_caller_asked_for() -> None:
    """R5: `original_args` has the caller's own fetches, feeds and options, not the merged ones."""
    with Graph() as graph:
        x, y = placeholder("x"), placeholder("y")
    options = RunOptions(trace=True)
    hook = Recorder(args=SessionRunArgs(y, {y: 2}))
    async with monitored(graph, hook) as session:
        await session.run([x], {x: 1}, options=options)
    original = hook.contexts[0].original_args
    assert original.fetches == [x] and original.feed_dict == {x: 1} and original.options == options


async def test_options_are_merged_as_in_tensorflow() -> None:
    """R5: the longest timeout, a trace if anyone asked for one, the lowest limit of concurrency."""
    seen: list[Any] = []

    class Look(Recorder):
        async def after_run(self, run_context: SessionRunContext, run_values: SessionRunValues) -> None:
            seen.append(run_values.options)

    with Graph() as graph:
        node = constant(1)
    hooks = [
        Look(args=SessionRunArgs(None, None, RunOptions(timeout=50.0, concurrency=7))),
        Look(args=SessionRunArgs(None, None, RunOptions(trace=True, concurrency=3))),
    ]
    async with monitored(graph, *hooks) as session:
        await session.run(node, options=RunOptions(timeout=60.0))
    assert [(o.timeout, o.trace, o.concurrency) for o in seen] == [(60.0, True, 3)] * 2


# R6: specific errors before anything is evaluated


def bad_requests(graph: Graph, foreign: Node[Any]) -> list[tuple[Any, Any, type[BaseException], str]]:
    """Fetches and feeds that cannot be: with the error's type and a part of its message."""
    good = graph["good"]
    return [
        ("goood", None, NotFoundError, "good"),
        ([good, "no_such_node"], None, NotFoundError, "no_such_node"),
        (foreign, None, InvalidArgumentError, "foreign"),
        (good, {foreign: 1}, InvalidArgumentError, "foreign"),
        (good, {"goood": 1}, NotFoundError, "good"),
        ([good, "unfed"], None, InvalidArgumentError, "unfed"),
        ([good, graph["needs_unfed"]], None, InvalidArgumentError, "unfed"),
        ([good, 3], None, TypeError, "int"),
        ([good, {good, good}], None, TypeError, "set"),
        ({"good": good, "bad": lambda: 1}, None, TypeError, "function"),
        (good, {3: 1}, TypeError, "int"),
        (good, [good], TypeError, "list"),
    ]


@pytest.mark.parametrize("case", range(12))
@pytest.mark.parametrize("asked_by", ["caller", "hook"])
async def test_what_cannot_be_run_is_refused_before_anything_is_evaluated(case: int, asked_by: str) -> None:
    """R6: unknown names, foreign nodes, unfed placeholders, bad nestings: an error that names the thing."""
    evaluated: list[int] = []
    with Graph():
        foreign: Node[Any] = op(name="foreign")(evaluated.append)(2)
    with Graph() as graph:
        good = op(name="good")(evaluated.append)(1)
        op(name="needs_unfed")(lambda value: value)(placeholder("unfed"))
    fetches, feeds, error, words = bad_requests(graph, foreign)[case]
    if asked_by == "hook":
        hook = Recorder(args=SessionRunArgs(fetches, feeds))
        fetches, feeds = good, None
    else:
        hook = Recorder()
    async with monitored(graph, hook) as session:
        with pytest.raises(error, match=words):
            await session.run(fetches, feeds)
        assert session.global_step == 0
    assert evaluated == []


async def test_a_wrong_type_out_of_before_run_is_refused() -> None:
    """R6: before_run gives SessionRunArgs or None; anything else is an error that names the hook."""

    class GivesAList(SessionRunHook):
        async def before_run(self, run_context: SessionRunContext) -> Any:
            return ["good"]

    evaluated: list[int] = []
    with Graph() as graph:
        good = op(name="good")(evaluated.append)(1)
    async with monitored(graph, GivesAList()) as session:
        with pytest.raises(TypeError, match="GivesAList"):
            await session.run(good)
    assert evaluated == []


# R7: run with some of the hooks


async def test_run_with_hooks_runs_just_those() -> None:
    """R7: `hooks=[...]` calls those of the session's hooks and no other; an empty list calls none."""
    with Graph() as graph:
        node = constant(1)
    hooks = [Recorder(name) for name in "abc"]
    async with monitored(graph, *hooks) as session:
        assert await session.run(node, hooks=[hooks[0], hooks[2]]) == 1
        assert [len(hook.calls) for hook in hooks] == [3, 0, 3]
        assert await session.run(node, hooks=[]) == 1
        assert await session.run_without_hooks(node) == 1
        assert [len(hook.calls) for hook in hooks] == [3, 0, 3]
        with pytest.raises(InvalidArgumentError, match="Recorder"):
            await session.run(node, hooks=[Recorder("stranger")])
        assert session.global_step == 3


async def test_a_run_without_hooks_is_a_transaction() -> None:
    """R7: a run with some or none of the hooks commits as a whole, or leaves no trace."""
    with Graph() as graph:
        write = Variable(0, name="v").assign(5)
        fail = op(raise_boom)().after(write)
    async with monitored(graph, Recorder()) as session:
        with pytest.raises(ValueError, match="boom"):
            await session.run_without_hooks([write, fail])
        with pytest.raises(ValueError, match="boom"):
            await session.run([write, fail], hooks=[])
        assert session.global_step == 0
        assert await session.run_without_hooks("v") == 0
        await session.run_without_hooks(write)
        assert await session.run("v", hooks=[]) == 5
        assert session.global_step == 3


async def test_a_run_without_hooks_is_retried() -> None:
    """R7: a run with some or none of the hooks is a step to `recovery` too."""
    failures = [AbortedError("one"), AbortedError("two")]

    @op
    def flaky() -> int:
        if failures:
            raise failures.pop()
        return 7

    with Graph() as graph:
        node = flaky()
    async with monitored(graph, recovery=Recovery(wait_initial=0.001)) as session:
        assert await session.run_without_hooks(node) == 7
        failures.append(AbortedError("three"))
        assert await session.run(node, hooks=[]) == 7
        assert session.global_step == 2


async def test_a_run_with_hooks_of_its_own_meets_the_stop() -> None:
    """R7: `run(hooks=[])` is a run that a stop ends like any other."""
    with Graph() as graph:
        node = constant(1)
    async with monitored(graph) as session:
        session.request_stop()
        with pytest.raises(StopRequested):
            await session.run(node, hooks=[])


# R8: many tasks


async def test_runs_of_many_tasks_overlap_with_a_context_each() -> None:
    """R8: runs overlap; each has its own context at all its points, with its own request and results."""
    gate = anyio.Event()
    started: list[str] = []
    seen: dict[str, list[SessionRunContext]] = {}

    class Look(SessionRunHook):
        def note(self, run_context: SessionRunContext) -> str:
            (name,) = fed(run_context).values()
            seen.setdefault(name, []).append(run_context)
            return str(name)

        async def before_run(self, run_context: SessionRunContext) -> SessionRunArgs:
            self.note(run_context)
            await anyio.lowlevel.checkpoint()
            return SessionRunArgs([x])

        async def before_commit(self, run_context: SessionRunContext, run_values: SessionRunValues) -> None:
            assert run_values.results == [self.note(run_context)]
            await anyio.lowlevel.checkpoint()

        async def after_run(self, run_context: SessionRunContext, run_values: SessionRunValues) -> None:
            assert run_values.results == [self.note(run_context)]

    with Graph() as graph:
        x = placeholder("x")
        node = passing(started, gate, x)
    names = [f"run{i}" for i in range(10)]
    results: dict[str, str] = {}
    async with monitored(graph, Look()) as session, anyio.create_task_group() as group:

        async def run(name: str) -> None:
            results[name] = await session.run(node, {x: name})

        for name in names:
            group.start_soon(run, name)
        await anyio.wait_all_tasks_blocked()
        assert sorted(started) == names
        gate.set()
    assert results == {name: name for name in names}
    assert all(len(seen[name]) == 3 and len(set(map(id, seen[name]))) == 1 for name in names)
    assert len({id(contexts[0]) for contexts in seen.values()}) == 10


async def test_a_run_that_fails_or_is_cancelled_disturbs_no_other() -> None:
    """R8, R11: each hook call is told of its own run: the failed, the cancelled and the one that succeeds."""
    gate = anyio.Event()
    endings: dict[str, Any] = {}

    @op
    async def act(name: str) -> str:
        if name == "fails":
            raise ValueError("boom")
        await gate.wait()
        return name

    class Look(SessionRunHook):
        async def before_run(self, run_context: SessionRunContext) -> SessionRunArgs:
            return SessionRunArgs(x)

        async def after_run(self, run_context: SessionRunContext, run_values: SessionRunValues) -> None:
            endings[fed(run_context)["x"]] = run_values.results

        async def on_run_error(self, run_context: SessionRunContext, error: BaseException) -> None:
            endings[fed(run_context)["x"]] = error

    with Graph() as graph:
        x = placeholder("x")
        node = act(x)
    async with monitored(graph, Look()) as session, anyio.create_task_group() as group:
        scope = anyio.CancelScope()

        async def run_cancelled() -> None:
            with scope:
                await session.run(node, {"x": "cancelled"})

        async def run_failing() -> None:
            with pytest.raises(ValueError, match="boom"):
                await session.run(node, {"x": "fails"})

        group.start_soon(run_cancelled)
        group.start_soon(session.run, node, {"x": "succeeds"})
        await anyio.wait_all_tasks_blocked()
        await run_failing()
        scope.cancel()
        await anyio.wait_all_tasks_blocked()
        gate.set()
    assert endings["succeeds"] == "succeeds"
    assert isinstance(endings["fails"], ValueError)
    assert isinstance(endings["cancelled"], anyio.get_cancelled_exc_class())


# R9: schedule point (for the cancel point see test_cancel_point.py)


async def test_a_loop_of_steps_that_never_suspend_sees_its_deadline() -> None:
    """R9: steps that never suspend still let the event loop reach a deadline."""
    with Graph() as graph:
        node = constant(1)
    async with monitored(graph) as session:
        with anyio.move_on_after(0.02) as scope:
            for _ in range(1_000_000):
                await session.run(node)
        assert scope.cancelled_caught


@pytest.mark.parametrize("kind", ["monitored", "raw", "step function"])
async def test_a_run_gives_the_event_loop_a_turn_after_a_millisecond(kind: str) -> None:
    """R9: if the task has held the event loop for 1 ms, the run lets the others go first."""
    turns: list[int] = []

    async def count_turns() -> None:
        while True:
            turns.append(1)
            await anyio.lowlevel.checkpoint()

    @op
    def hold() -> None:
        until = time.perf_counter() + 0.002
        while time.perf_counter() < until:
            pass

    with Graph() as graph:
        node = hold()

    async def step(ctx: StepContext) -> None:
        await ctx.session.run(node)

    async with monitored(graph) as session, Session(graph) as raw, anyio.create_task_group() as group:
        group.start_soon(count_turns)
        await anyio.lowlevel.checkpoint()
        before = len(turns)
        for _ in range(20):
            if kind == "monitored":
                await session.run(node)
            elif kind == "raw":
                await raw.run(node)
            else:
                await session.run_step_fn(step)
        assert len(turns) - before >= 15
        group.cancel_scope.cancel()


async def test_what_never_waits_needs_no_event_loop() -> None:
    """R9: should_stop, request_stop, stop_reason and global_step are plain calls that answer at once."""
    with Graph() as graph:
        node = constant(1)
    turns: list[int] = []

    async def other() -> None:
        turns.append(1)

    async with monitored(graph) as session, anyio.create_task_group() as group:
        await session.run(node)
        group.start_soon(other)
        assert session.global_step == 1 and session.should_stop() is False and session.stop_reason is None
        session.request_stop("enough")
        assert session.should_stop() is True
        assert session.stop_reason is not None and session.stop_reason.message == "enough"
        assert turns == []


# R10: timeout


@pytest.mark.parametrize("given_by", ["caller", "hook"])
async def test_a_timeout_ends_the_run_and_rolls_it_back(given_by: str) -> None:
    """R10: the timeout ends the run with DeadlineExceededError; nothing of it stays; hooks are told."""
    options = RunOptions(timeout=0.01)
    with Graph() as graph:
        write = Variable(0, name="v").assign(5)
        wait = op(anyio.sleep_forever)().after(write)
    hook = Recorder(args=SessionRunArgs(None, None, options) if given_by == "hook" else None)
    async with monitored(graph, hook) as session:
        with anyio.fail_after(5), pytest.raises(DeadlineExceededError) as caught:
            await session.run([write, wait], options=options if given_by == "caller" else None)
        assert session.global_step == 0
        assert await session.run_without_hooks("v") == 0
    assert isinstance(caught.value, TimeoutError)
    assert hook.calls == ["before_run", "on_run_error"] and hook.errors == [caught.value]


@pytest.mark.parametrize("point", ["before_run", "before_commit"])
async def test_a_timeout_counts_the_hooks_of_the_run(point: str) -> None:
    """R10: it is the run that the timeout ends, also while a hook of it waits."""
    with Graph() as graph:
        write = Variable(0, name="v").assign(5)
    hook = Acting(point, anyio.sleep_forever)
    async with monitored(graph, hook) as session:
        with anyio.fail_after(5), pytest.raises(DeadlineExceededError):
            await session.run(write, options=RunOptions(timeout=0.01))
        assert await session.run_without_hooks("v") == 0
    assert hook.calls[-1] == "on_run_error"


async def test_a_timeout_of_a_raw_run_ends_it() -> None:
    """R10: a raw session's run has its timeout too."""
    with Graph() as graph:
        node = op(anyio.sleep_forever)()
    async with Session(graph) as raw:
        with anyio.fail_after(5), pytest.raises(DeadlineExceededError):
            await raw.run(node, options=RunOptions(timeout=0.01))


async def test_an_outer_deadline_is_no_timeout_of_the_run() -> None:
    """R10, R11: a deadline around the run is a cancellation, and the hook is told so."""
    with Graph() as graph:
        node = op(anyio.sleep_forever)()
    hook = Recorder()
    async with monitored(graph, hook) as session:
        async with anyio.create_task_group() as group:
            with anyio.CancelScope() as scope:
                group.start_soon(passes_once_settled, scope)
                await session.run(node, options=RunOptions(timeout=60.0))
        assert scope.cancelled_caught
    assert isinstance(hook.errors[0], anyio.get_cancelled_exc_class())


async def test_a_timeout_error_of_an_op_is_its_own() -> None:
    """R10, R11: an op's own TimeoutError is not taken for the run's timeout."""
    error = TimeoutError("mine")

    async def fail() -> None:
        raise error

    with Graph() as graph:
        node = op(fail)()
    hook = Recorder()
    async with monitored(graph, hook) as session:
        with pytest.raises(TimeoutError) as caught:
            await session.run(node, options=RunOptions(timeout=60.0))
    assert caught.value is error and hook.errors == [error]


# R11: the step's own task


async def test_a_context_variable_of_before_run_is_seen_by_ops_and_later_points() -> None:
    """R11: what before_run sets is seen by every op of the step, on whichever task, and by later points."""
    span: contextvars.ContextVar[str] = contextvars.ContextVar("span", default="none")
    seen: Counter[str] = Counter()

    async def look_async() -> None:
        await anyio.lowlevel.checkpoint()
        seen[f"async {span.get()}"] += 1

    def look_sync() -> None:
        seen[f"sync {span.get()}"] += 1

    class Trace(SessionRunHook):
        async def before_run(self, run_context: SessionRunContext) -> None:
            span.set("step")

        async def before_commit(self, run_context: SessionRunContext, run_values: SessionRunValues) -> None:
            seen[f"before_commit {span.get()}"] += 1

        async def after_run(self, run_context: SessionRunContext, run_values: SessionRunValues) -> None:
            seen[f"after_run {span.get()}"] += 1

    with Graph() as graph:
        nodes: list[Node[Any]] = [op(look_async)() for _ in range(5)]
        nodes += [op(look_sync)() for _ in range(5)]
        nodes += [op(offload="thread")(look_sync)() for _ in range(5)]
    async with monitored(graph, Trace()) as session:
        await session.run(nodes)
    assert seen == {"async step": 5, "sync step": 10, "before_commit step": 1, "after_run step": 1}


@pytest.mark.parametrize("ending", ["success", "error", "cancellation"])
async def test_hooks_run_in_the_task_of_the_step(ending: str) -> None:
    """R11: every point of a run is awaited in the task that called run, however it ends."""
    tasks: list[int] = []

    class Look(SessionRunHook):
        async def before_run(self, run_context: SessionRunContext) -> None:
            tasks.append(anyio.get_current_task().id)

        async def before_commit(self, run_context: SessionRunContext, run_values: SessionRunValues) -> None:
            tasks.append(anyio.get_current_task().id)

        async def after_run(self, run_context: SessionRunContext, run_values: SessionRunValues) -> None:
            tasks.append(anyio.get_current_task().id)

        async def on_run_error(self, run_context: SessionRunContext, error: BaseException) -> None:
            tasks.append(anyio.get_current_task().id)

    async def act() -> None:
        await anyio.lowlevel.checkpoint()
        if ending == "error":
            raise ValueError("boom")
        if ending == "cancellation":
            scope.cancel()
            await anyio.sleep_forever()

    with Graph() as graph:
        nodes = [op(act)(), op(anyio.lowlevel.checkpoint)()]
    async with monitored(graph, Look()) as session:
        with anyio.CancelScope() as scope:
            try:
                await session.run(nodes)
            except ValueError:
                assert ending == "error"
    assert len(tasks) == (3 if ending == "success" else 2)
    assert set(tasks) == {anyio.get_current_task().id}


async def test_an_op_runs_wholly_in_one_task() -> None:
    """R11: a cancel scope that an op enters is left in the same task, also when it suspended in between."""

    async def scoped() -> bool:
        before = anyio.get_current_task().id
        with anyio.CancelScope():
            await anyio.lowlevel.checkpoint()
        return anyio.get_current_task().id == before

    with Graph() as graph:
        nodes = [op(scoped)() for _ in range(20)]
    async with monitored(graph) as session:
        assert await session.run(nodes) == [True] * 20


async def test_metadata_tells_the_step_and_the_attempt() -> None:
    """R11: the caller's RunMetadata says which global step the run was and which attempt of it succeeded."""
    failures = [AbortedError("again")]

    @op
    def flaky() -> None:
        if failures:
            raise failures.pop()

    with Graph() as graph:
        node = flaky()
    async with monitored(graph, recovery=Recovery(wait_initial=0.001)) as session:
        first, second = RunMetadata(), RunMetadata()
        await session.run(node, run_metadata=first)
        await session.run(node, run_metadata=second)
    assert (first.global_step, first.attempt) == (1, 2)
    assert (second.global_step, second.attempt) == (2, 1)
