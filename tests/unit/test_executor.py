"""How a plan is evaluated: what is counted (tasks, compiles, calls), and what an op's options do."""

from __future__ import annotations

import asyncio
import os
import threading
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal
from unittest.mock import Mock

import anyio
import anyio.lowlevel
import pytest
import sniffio
import tenacity

from asyncstep import (
    DeadlineExceededError,
    Graph,
    InvalidArgumentError,
    Node,
    RunMetadata,
    RunOptions,
    Session,
    Variable,
    group,
    op,
    placeholder,
)
from asyncstep._graph.op import OpNode
from asyncstep._runtime import plan, session
from asyncstep.errors import InvalidTypeError

pytestmark = pytest.mark.anyio


@contextmanager
def tasks_started() -> Iterator[list[str]]:
    """Counts the tasks that are started on the running event loop: their names."""
    started: list[str] = []
    if sniffio.current_async_library() == "trio":
        import trio

        class Count(trio.abc.Instrument):
            def task_spawned(self, task: trio.lowlevel.Task) -> None:
                started.append(task.name)

        instrument = Count()
        trio.lowlevel.add_instrument(instrument)
        try:
            yield started
        finally:
            trio.lowlevel.remove_instrument(instrument)
        return
    loop = asyncio.get_running_loop()
    before = loop.get_task_factory()

    def start(loop: asyncio.AbstractEventLoop, coro: Any, **options: Any) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.Task(coro, loop=loop, **options)
        started.append(task.get_name())
        return task

    loop.set_task_factory(start)
    try:
        yield started
    finally:
        loop.set_task_factory(before)


@op
def add(*values: int) -> int:
    """A node that never suspends."""
    return sum(values)


@op
async def add_async(*values: int) -> int:
    """An async node that never suspends."""
    return sum(values)


@op
async def add_slowly(*values: int) -> int:
    """A node that suspends once."""
    await anyio.lowlevel.checkpoint()
    return sum(values)


@op
async def passing(started: list[Any], gate: anyio.Event, value: Any, *inputs: Any) -> Any:
    """Note the value and wait for the gate."""
    started.append(value)
    await gate.wait()
    return value


# Tasks


async def test_a_chain_that_never_suspends_starts_no_task() -> None:
    """One ready node at a time is awaited in the caller's task."""
    with Graph() as graph:
        node: Node[int] = add_async(1)
        for _ in range(999):
            node = add_async(node, 1)
    async with Session(graph) as raw:
        with tasks_started() as started:
            assert await raw.run(node) == 1000
            await anyio.lowlevel.checkpoint()
    assert started == []


@pytest.mark.parametrize("width", [2, 100, 1000])
async def test_a_wide_graph_that_never_suspends_starts_at_most_one_task(width: int) -> None:
    """A graph of 1,000 nodes that never suspend costs at most one spare task, however wide it is."""
    with Graph() as graph:
        layer: list[Node[int]] = [add_async(1) for _ in range(width)]
        for _ in range(1000 // width - 1):
            layer = [add_async(layer[i], layer[i - 1]) for i in range(width)]
    async with Session(graph) as raw:
        with tasks_started() as started:
            assert len(await raw.run(layer)) == width
            await anyio.lowlevel.checkpoint()
    assert len(started) <= 1


async def test_a_chain_that_suspends_starts_no_more_tasks_than_one_a_node() -> None:
    """A node that is awaited with nothing else ready needs no spare at all."""
    with Graph() as graph:
        node: Node[int] = add_slowly(1)
        for _ in range(99):
            node = add_slowly(node, 1)
    async with Session(graph) as raw:
        with tasks_started() as started:
            assert await raw.run(node) == 100
    assert len(started) <= 1


async def test_no_task_outlives_its_run() -> None:
    """When a run returns or raises, the tasks that it started are finished."""
    running: list[int] = []

    async def occupy(fails: bool) -> None:
        running.append(1)
        try:
            for _ in range(3):
                await anyio.lowlevel.checkpoint()
            if fails:
                raise ValueError("boom")
            await anyio.lowlevel.checkpoint()
        finally:
            running.pop()

    with Graph() as graph:
        well = [op(occupy)(False) for _ in range(10)]
        badly = [*well, op(occupy)(True)]
    async with Session(graph) as raw:
        await raw.run(well)
        assert running == []
        with pytest.raises(ValueError, match="boom"):
            await raw.run(badly)
        assert running == []


@pytest.mark.parametrize("suspends", [False, True])
async def test_nodes_that_wait_overlap_among_nodes_that_do_not(suspends: bool) -> None:
    """All independent waiting nodes are started, also when they alternate with nodes that never suspend."""
    started: list[Any] = []
    gate = anyio.Event()
    quick = add_slowly if suspends else add
    with Graph() as graph:
        nodes: list[Node[Any]] = []
        for i in range(100):
            nodes.append(passing(started, gate, i, quick(i)))
            nodes.append(quick(i))
    async with Session(graph) as raw, anyio.create_task_group() as tasks:
        tasks.start_soon(raw.run, nodes)
        await anyio.wait_all_tasks_blocked()
        assert sorted(started) == list(range(100))
        gate.set()


async def test_nodes_made_ready_by_a_waiting_node_overlap_too() -> None:
    """The consumers of a node that waited are all started when it is done, whoever else still waits."""
    started: list[Any] = []
    first, second, never = anyio.Event(), anyio.Event(), anyio.Event()
    with Graph() as graph:
        root = passing(started, first, "root")
        nodes = [passing(started, second, i, root) for i in range(20)]
        other = passing(started, never, "other")
    async with Session(graph) as raw, anyio.create_task_group() as tasks:
        tasks.start_soon(raw.run, [*nodes, other])
        await anyio.wait_all_tasks_blocked()
        assert set(started) == {"root", "other"}
        first.set()
        await anyio.wait_all_tasks_blocked()
        assert set(started) == {"root", "other", *range(20)}
        second.set()
        never.set()


@pytest.mark.parametrize("bound", [1, 2, 7])
async def test_concurrency_bounds_waiting_nodes(bound: int) -> None:
    """With `RunOptions(concurrency=n)` exactly n of many waiting nodes are started, then the next ones."""
    started: list[Any] = []
    gates = [anyio.Event() for _ in range(10)]
    with Graph() as graph:
        nodes = [passing(started, gate, i) for i, gate in enumerate(gates)]
    async with Session(graph) as raw, anyio.create_task_group() as tasks:

        async def run() -> None:
            await raw.run(nodes, options=RunOptions(concurrency=bound))

        tasks.start_soon(run)
        await anyio.wait_all_tasks_blocked()
        assert len(started) == bound
        gates[started[0]].set()
        await anyio.wait_all_tasks_blocked()
        assert len(started) == bound + 1
        for gate in gates:
            gate.set()
    assert sorted(started) == list(range(10))


async def test_each_run_has_a_bound_of_its_own() -> None:
    """The concurrency of one run does not hold another back."""
    started: list[Any] = []
    gate = anyio.Event()
    with Graph() as graph:
        nodes = [passing(started, gate, i) for i in range(5)]
    async with Session(graph) as raw, anyio.create_task_group() as tasks:

        async def run() -> None:
            await raw.run(nodes, options=RunOptions(concurrency=1))

        tasks.start_soon(run)
        tasks.start_soon(run)
        tasks.start_soon(raw.run, nodes)
        await anyio.wait_all_tasks_blocked()
        assert len(started) == 7
        gate.set()


async def test_a_cancelled_run_ends_all_its_nodes() -> None:
    """Cancelling a run cancels every node that waits in it."""
    started: list[Any] = []
    cancelled: list[int] = []

    async def wait(index: int) -> None:
        started.append(index)
        try:
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class():
            cancelled.append(index)
            raise

    with Graph() as graph:
        nodes = [op(wait)(i) for i in range(10)]
    async with Session(graph) as raw:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(raw.run, nodes)
            await anyio.wait_all_tasks_blocked()
            tasks.cancel_scope.cancel()
        assert sorted(cancelled) == sorted(started) == list(range(10))


async def test_a_failing_node_ends_the_others_and_leaves_bare() -> None:
    """The error of the only node that failed is raised itself, with a note; the rest are cancelled."""
    cancelled: list[int] = []
    error = ValueError("boom")

    async def wait(index: int) -> None:
        try:
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class():
            cancelled.append(index)
            raise

    async def fail() -> None:
        await gate.wait()
        raise error

    gate = anyio.Event()
    with Graph() as graph:
        nodes: list[Node[Any]] = [op(wait)(i) for i in range(5)]
        nodes.insert(2, op(name="the_failing_one")(fail)())

    async def open_gate() -> None:
        await anyio.wait_all_tasks_blocked()
        gate.set()

    async with Session(graph) as raw, anyio.create_task_group() as tasks:
        tasks.start_soon(open_gate)
        with pytest.raises(ValueError, match="boom") as caught:
            await raw.run(nodes)
    assert caught.value is error
    assert any("the_failing_one" in note for note in error.__notes__)
    assert sorted(cancelled) == list(range(5))


# Depth and size


async def test_a_deep_chain_meets_no_recursion_limit() -> None:
    """A chain of 100,000 nodes is built, compiled and run."""
    with Graph() as graph:
        node: Node[int] = add(1)
        for _ in range(99_999):
            node = add(node, 1)
    async with Session(graph) as raw:
        assert await raw.run(node) == 100_000


async def test_a_deep_chain_of_control_dependencies_meets_no_recursion_limit() -> None:
    """`after` can be chained as deep as inputs."""
    with Graph() as graph:
        node: Node[int] = add(1)
        for _ in range(20_000):
            node = add(1).after(node)
    async with Session(graph) as raw:
        assert await raw.run(node) == 1


async def test_one_node_with_very_many_inputs_and_consumers() -> None:
    """Width has no limit either."""
    with Graph() as graph:
        root = add(1)
        total = add(*[add(root) for _ in range(20_000)])
    async with Session(graph) as raw:
        assert await raw.run(total) == 20_000


# Plans


async def test_a_plan_is_compiled_once_for_the_same_fetches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs that fetch and feed the same nodes share a plan; another set of fed nodes needs its own."""
    compiled = count_compiles(monkeypatch)
    with Graph() as graph:
        x, y = placeholder("x", default=1), placeholder("y", default=2)
        nodes = [add(x, y), add(x, x)]
    async with Session(graph) as raw:
        for value in range(10):
            assert await raw.run(nodes, {x: value, "y": 1}) == [value + 1, 2 * value]
            assert await raw.run(list(nodes), {"x": value, y: 1}) == [value + 1, 2 * value]
        assert len(compiled) == 1
        assert await raw.run(nodes, {x: 5}) == [7, 10]
        assert len(compiled) == 2
        assert await raw.run(nodes[0]) == 3
        assert len(compiled) == 3
        assert await raw.run(nodes, {x: 5, y: 1}) == [6, 10]
        assert len(compiled) == 3


def count_compiles(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The plans that sessions compile from now on."""
    compiled: list[Any] = []

    class Counted(plan.Plan):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            compiled.append(self)

    monkeypatch.setattr(session, "Plan", Counted)
    return compiled


async def test_what_is_not_needed_is_not_evaluated() -> None:
    """A run evaluates what its fetches need and nothing else of the graph."""
    evaluated: list[str] = []
    note = op(lambda name, *_: evaluated.append(name))
    with Graph() as graph:
        needed = note("needed", note("input"))
        note("consumer", needed)
        note("other")
    async with Session(graph) as raw:
        await raw.run(needed)
    assert evaluated == ["input", "needed"]


async def test_a_group_evaluates_its_members_and_gives_none() -> None:
    """Fetching `group(...)` evaluates all its members; its value is None."""
    with Graph() as graph:
        both = group(Variable(0, name="a").assign(1), Variable(0, name="b").assign(2))
        nothing = group()
    async with Session(graph) as raw:
        assert await raw.run([both, nothing]) == [None, None]
        assert await raw.run(["a", "b"]) == [1, 2]


# Arguments


async def test_arguments_are_nested_nodes_and_values() -> None:
    """Nodes in lists, tuples and dicts of arguments are replaced at any depth; types are kept."""
    given: list[Any] = []

    @op
    def take(*args: Any, **kwargs: Any) -> None:
        given.append((args, kwargs))

    with Graph() as graph:
        one, two = add(1), add(2)
        node = take(one, [1, (two, {"k": [one]})], (), {"plain": {"x": 1}}, key={"deep": (one, [two])}, n=two)
    async with Session(graph) as raw:
        await raw.run(node)
    assert given == [
        ((1, [1, (2, {"k": [1]})], (), {"plain": {"x": 1}}), {"key": {"deep": (1, [2])}, "n": 2}),
    ]


async def test_default_and_keyword_only_arguments_reach_the_function() -> None:
    """An op is called as its function would be called."""

    @op
    def show(a: int, b: int = 2, /, *rest: int, c: int, d: int = 4, **more: int) -> tuple[Any, ...]:
        return a, b, rest, c, d, more

    with Graph() as graph:
        nodes = [show(1, c=3), show(1, 5, 6, c=add(7), d=8, e=add(9)), show(0, c=0)]
    async with Session(graph) as raw:
        assert await raw.run(nodes) == [
            (1, 2, (), 3, 4, {}),
            (1, 5, (6,), 7, 8, {"e": 9}),
            (0, 2, (), 0, 4, {}),
        ]


async def test_a_list_argument_may_be_changed_after_the_node_was_made() -> None:
    """The nesting of an argument is that of the moment when the node was made, if it holds nodes."""
    with Graph() as graph:
        values = [add(1), add(2)]
        total = op(lambda items: sum(items))(values)
        values.append(add(3))
    async with Session(graph) as raw:
        assert await raw.run(total) == 3


async def test_a_container_that_holds_itself_is_refused_if_it_holds_nodes() -> None:
    """A plain value may contain itself; if it holds nodes, they cannot be replaced."""
    plain: list[Any] = []
    plain.append(plain)
    with Graph() as graph:
        length = op(len)(plain)
        around: list[Any] = [add(1)]
        around.append(around)
        with pytest.raises(InvalidArgumentError, match="list"):
            op(len)(around)
    async with Session(graph) as raw:
        assert await raw.run(length) == 1


def test_a_large_plain_value_is_an_argument_like_any_other() -> None:
    """How many containers a plain argument has does not matter; it is taken as it is."""
    rows = [[index] for index in range(1_100_000)]
    with Graph():
        node = op(len)(rows)
    assert isinstance(node, OpNode) and node.args[0] is rows and node.inputs == ()


async def test_an_op_may_return_whatever_answers_to_any_attribute() -> None:
    """A value is not asked for attributes: a mock, which has them all, passes through ops and updates."""
    value = Mock()
    with Graph() as graph:
        node = op(lambda: value)()
        write = Variable(None, name="v").update(lambda _, new: new, node)
    async with Session(graph) as raw:
        results = await raw.run([node, write])
    assert results[0] is value and results[1] is value
    assert value.mock_calls == []


async def test_an_op_that_gives_a_node_like_value_is_not_evaluated_further() -> None:
    """What an op returns is a value, also a list, an awaitable function or a name."""
    with Graph() as graph:
        name = op(lambda: "other")()
        placeholder("other", default=1)
        echo = op(lambda value: value)(name)
    async with Session(graph) as raw:
        assert await raw.run([name, echo]) == ["other", "other"]


async def test_the_decorated_function_can_still_be_reached() -> None:
    """An op keeps the function's name and docstring."""
    assert getattr(add, "__name__", None) == "add"
    assert add.__doc__ == "A node that never suspends."


# Options of ops


async def test_retry_is_the_number_of_attempts() -> None:
    """`retry=3` runs the op at most three times, and a success ends it."""
    attempts: list[int] = []

    @op(retry=3)
    async def flaky(succeeds_at: int) -> int:
        attempts.append(1)
        if len(attempts) < succeeds_at:
            raise ConnectionError(f"attempt {len(attempts)}")
        return len(attempts)

    with Graph() as graph:
        well, badly = flaky(3), flaky(9)
    async with Session(graph) as raw:
        assert await raw.run(well) == 3
        attempts.clear()
        with pytest.raises(ConnectionError, match="attempt 3"):
            await raw.run(badly)
        assert len(attempts) == 3


async def test_retry_works_for_plain_functions() -> None:
    """A `def` op is retried too."""
    attempts: list[int] = []

    @op(retry=2)
    def flaky() -> int:
        attempts.append(1)
        if len(attempts) < 2:
            raise ConnectionError("again")
        return len(attempts)

    with Graph() as graph:
        node = flaky()
    async with Session(graph) as raw:
        assert await raw.run(node) == 2


async def test_retry_takes_a_policy_of_the_library() -> None:
    """A tenacity policy decides what is retried and how often; nodes that share it are independent."""
    attempts: list[str] = []
    policy = tenacity.AsyncRetrying(
        retry=tenacity.retry_if_exception_type(ConnectionError),
        stop=tenacity.stop_after_attempt(2),
        reraise=True,
    )

    @op(retry=policy)
    async def flaky(error: type[Exception]) -> None:
        attempts.append(error.__name__)
        await anyio.lowlevel.checkpoint()
        if attempts.count(error.__name__) < 2 or error is KeyError:
            raise error("again")

    with Graph() as graph:
        well, badly = [flaky(ConnectionError)], flaky(KeyError)
    async with Session(graph) as raw:
        await raw.run(well)
        with pytest.raises(KeyError):
            await raw.run(badly)
    assert attempts == ["ConnectionError", "ConnectionError", "KeyError"]


async def test_a_cancellation_is_not_retried() -> None:
    """Retrying stops at a cancellation."""
    attempts: list[int] = []

    @op(retry=5)
    async def wait() -> None:
        attempts.append(1)
        await anyio.sleep_forever()

    with Graph() as graph:
        node = wait()
    async with Session(graph) as raw:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(raw.run, node)
            await anyio.wait_all_tasks_blocked()
            tasks.cancel_scope.cancel()
    assert attempts == [1]


async def test_a_timeout_of_an_op_names_the_node() -> None:
    """`timeout` ends an op that takes too long: DeadlineExceededError, a TimeoutError, naming the node."""
    with Graph() as graph:
        node = op(name="too_slow", timeout=0.01)(anyio.sleep_forever)()
    async with Session(graph) as raw:
        with anyio.fail_after(5), pytest.raises(DeadlineExceededError, match="too_slow") as caught:
            await raw.run(node)
    assert isinstance(caught.value, TimeoutError)


async def test_a_timeout_is_for_one_attempt() -> None:
    """An op that is retried has its whole timeout in each attempt."""
    attempts: list[int] = []

    @op(timeout=0.01, retry=3)
    async def slow_at_first() -> int:
        attempts.append(1)
        if len(attempts) < 3:
            await anyio.sleep_forever()
        return len(attempts)

    with Graph() as graph:
        node = slow_at_first()
    async with Session(graph) as raw:
        with anyio.fail_after(5):
            assert await raw.run(node) == 3


async def test_an_own_timeout_error_of_an_op_is_left_alone() -> None:
    """An op with a timeout that raises TimeoutError itself keeps its own error."""
    error = TimeoutError("of the service")

    @op(timeout=60.0)
    async def fail() -> None:
        raise error

    with Graph() as graph:
        node = fail()
    async with Session(graph) as raw:
        with pytest.raises(TimeoutError) as caught:
            await raw.run(node)
    assert caught.value is error


async def test_a_limiter_is_held_for_the_call_only() -> None:
    """The tokens of a limiter are all given back, whether ops return, fail or are cancelled."""
    limiter = anyio.CapacityLimiter(2)

    @op(limiter=limiter)
    async def call(fails: bool) -> None:
        await anyio.lowlevel.checkpoint()
        if fails:
            raise ValueError("boom")

    with Graph() as graph:
        well, badly = [call(False) for _ in range(5)], [call(False), call(True), call(False)]
    async with Session(graph) as raw:
        await raw.run(well)
        with pytest.raises(ValueError, match="boom"):
            await raw.run(badly)
    assert limiter.borrowed_tokens == 0


async def test_a_limiter_is_shared_by_runs() -> None:
    """Two runs, also of two sessions, share the limiter of an op."""
    started: list[int] = []
    gate = anyio.Event()

    @op(limiter=anyio.CapacityLimiter(3))
    async def call() -> None:
        started.append(1)
        await gate.wait()

    with Graph() as graph:
        nodes = [call() for _ in range(5)]
    async with Session(graph) as one, Session(graph) as other, anyio.create_task_group() as tasks:
        tasks.start_soon(one.run, nodes)
        tasks.start_soon(other.run, nodes)
        await anyio.wait_all_tasks_blocked()
        assert len(started) == 3
        gate.set()
    assert len(started) == 10


async def test_an_op_offloaded_to_a_thread_runs_in_one() -> None:
    """`offload="thread"` calls the function in another thread; the event loop goes on."""
    with Graph() as graph:
        here, there = op(threading.get_ident)(), op(offload="thread")(threading.get_ident)()
    async with Session(graph) as raw:
        threads = await raw.run([here, there])
    assert threads[0] == threading.get_ident() != threads[1]


async def test_offloaded_ops_overlap_with_the_event_loop() -> None:
    """A thread that waits for something that only the event loop gives does not block it."""
    opened = threading.Event()

    @op
    async def opens() -> None:
        opened.set()

    with Graph() as graph:
        nodes = [op(offload="thread")(opened.wait)(5.0), opens()]
    async with Session(graph) as raw:
        assert await raw.run(nodes) == [True, None]


async def test_an_op_offloaded_to_a_process_runs_in_one() -> None:
    """`offload="process"` calls the function in another process."""
    with Graph() as graph:
        node = op(offload="process")(os.getpid)()
    async with Session(graph) as raw:
        assert await raw.run(node) != os.getpid()


async def test_the_error_of_an_offloaded_op_is_raised() -> None:
    """What the function raises in its thread leaves the run, noted with the node."""

    @op(offload="thread")
    def parse() -> int:
        return int("x")

    with Graph() as graph:
        node = parse()
    async with Session(graph) as raw:
        with pytest.raises(ValueError, match="invalid literal") as caught:
            await raw.run(node)
    assert any("parse" in note for note in caught.value.__notes__)


async def test_a_callable_object_is_an_op() -> None:
    """An object with a `__call__`, also an async one, can be an op."""

    class Add:
        def __init__(self, amount: int) -> None:
            self.amount = amount

        async def __call__(self, value: int) -> int:
            await anyio.lowlevel.checkpoint()
            return value + self.amount

    with Graph() as graph:
        node = op(name="add_two")(Add(2))(3)
    async with Session(graph) as raw:
        assert await raw.run(node) == 5


async def test_a_class_is_an_op_that_makes_objects() -> None:
    """An op of a class gives an object of it, also if such objects have an async `__call__`."""

    class Pipeline:
        async def __call__(self) -> int:
            return 1

    with Graph() as graph:
        node = op(Pipeline)()
    async with Session(graph) as raw:
        assert isinstance(await raw.run(node), Pipeline)


@pytest.mark.parametrize("offload", [None, "thread"])
async def test_a_stop_iteration_leaves_a_run_as_a_runtime_error(offload: Literal["thread"] | None) -> None:
    """StopIteration cannot leave a coroutine: Python makes it a RuntimeError, and the note names the node."""

    def exhausted() -> int:
        return next(iter(()))

    with Graph() as graph:
        node = op(offload=offload)(exhausted)()
    async with Session(graph) as raw:
        with pytest.raises(RuntimeError, match="StopIteration") as caught:
            await raw.run(node)
    assert isinstance(caught.value.__cause__, StopIteration)
    assert any("exhausted" in note for note in caught.value.__notes__)


@pytest.mark.parametrize("kind", [dict, OrderedDict, Counter, defaultdict])
async def test_a_fetched_mapping_keeps_its_kind_and_order(kind: type[dict[str, Any]]) -> None:
    """Kinds of dict come back as what they were, key by key."""
    with Graph() as graph:
        fetches = kind()
        fetches["second"], fetches["first"] = add(2), add(1)
    async with Session(graph) as raw:
        result = await raw.run(fetches)
    assert type(result) is kind and list(result.items()) == [("second", 2), ("first", 1)]


class Words(list[Any]):
    """A kind of list."""


class Triple(tuple[Any, ...]):
    """A kind of tuple without names."""

    __slots__ = ()


async def test_a_fetched_list_or_tuple_keeps_its_kind() -> None:
    """Kinds of list and tuple come back as what they were."""
    with Graph() as graph:
        one, two = add(1), add(2)
    async with Session(graph) as raw:
        words, triple = await raw.run([Words([one, two]), Triple((one, two, one))])
    assert (type(words), list(words)) == (Words, [1, 2])
    assert (type(triple), tuple(triple)) == (Triple, (1, 2, 1))


@pytest.mark.parametrize("beside", [False, True])
async def test_an_error_of_a_fetched_function_names_it(beside: bool) -> None:
    """A coroutine function that was fetched is named in the note on its error, alone or beside other nodes."""

    async def fetch_the_page() -> None:
        await anyio.lowlevel.checkpoint()
        raise ValueError("boom")

    with Graph() as graph:
        others = [add_slowly(1), add_slowly(2)] if beside else []
    async with Session(graph) as raw:
        with pytest.raises(ValueError, match="boom") as caught:
            await raw.run([fetch_the_page, *others])
    assert any("fetch_the_page" in note for note in caught.value.__notes__)


async def test_a_fetched_function_is_traced_by_its_name() -> None:
    """The timings of a traced run have fetched coroutine functions, too."""
    metadata = RunMetadata()

    async def fetch_the_page() -> int:
        return 1

    async with Session(Graph()) as raw:
        await raw.run(fetch_the_page, options=RunOptions(trace=True), run_metadata=metadata)
    assert any("fetch_the_page" in name for name in metadata.node_timings)


async def test_a_forgotten_await_is_refused() -> None:
    """A `def` op or an update function that returns a coroutine is told to be `async def`, and no task warns."""

    async def fetch() -> int:
        return 1

    with Graph() as graph:
        node = op(name="fetching")(lambda: fetch())()
        write = Variable(0, name="v").update(lambda _: fetch())  # type: ignore[arg-type, return-value]
    async with Session(graph) as raw:
        with pytest.raises(InvalidTypeError, match="fetching"):
            await raw.run(node)
        with pytest.raises(InvalidTypeError, match="'v'"):
            await raw.run(write)
        assert await raw.run("v") == 0


async def test_the_cache_of_plans_is_bounded() -> None:
    """However many different fetches a session is given, it keeps a bounded number of plans, and they all work."""
    with Graph() as graph:
        nodes = [add(i) for i in range(session.MOST_PLANS + 10)]
    async with Session(graph) as raw:
        for _ in range(2):
            for i, node in enumerate(nodes):
                assert await raw.run(node) == i
                assert await raw.run([node]) == [i]
        assert len(raw._plans) <= session.MOST_PLANS


async def test_a_traced_run_tells_when_each_node_ran() -> None:
    """`RunOptions(trace=True)` fills the metadata with a timing for each evaluated node, by name."""
    metadata = RunMetadata()
    with Graph() as graph:
        nodes = [
            op(name="first")(lambda: 1)(),
            op(name="second")(lambda value: value)(op(name="input")(lambda: 2)()),
        ]
    async with Session(graph) as raw:
        assert await raw.run(nodes, options=RunOptions(trace=True), run_metadata=metadata) == [1, 2]
    assert set(metadata.node_timings) == {"first", "second", "input"}
    first, second = metadata.node_timings["input"], metadata.node_timings["second"]
    assert first[0] <= first[1] <= second[0] <= second[1]
