"""Properties of graphs: what random graphs, nestings and schedules have in common."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import anyio
import anyio.lowlevel
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from asyncstep import (
    ChiefSessionCreator,
    Graph,
    MonitoredSession,
    Node,
    RunOptions,
    Session,
    Variable,
    op,
    placeholder,
)

pytestmark = pytest.mark.anyio
reproducible = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


class Changes:
    """Tells whoever waits for a condition that something has changed."""

    def __init__(self) -> None:
        self._event = anyio.Event()

    def tell(self) -> None:
        """Something has changed."""
        self._event.set()
        self._event = anyio.Event()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for a condition, but not for ever."""
        with anyio.fail_after(10):
            while not condition():
                await self._event.wait()


@dataclass(frozen=True)
class Vertex:
    """A node to make: its inputs and control dependencies by index, and how often it suspends."""

    inputs: tuple[int, ...]
    controls: tuple[int, ...]
    suspensions: int


@st.composite
def dags(draw: st.DrawFn, max_size: int = 25) -> list[Vertex]:
    """A random acyclic graph: each vertex depends on earlier ones only."""
    vertices = []
    for index in range(draw(st.integers(1, max_size))):
        earlier = st.lists(st.integers(0, index - 1), max_size=4) if index else st.just([])
        vertices.append(Vertex(tuple(draw(earlier)), tuple(draw(earlier)), draw(st.integers(0, 2))))
    return vertices


def needed(vertices: list[Vertex], fetched: list[int], fed: set[int]) -> set[int]:
    """The vertices that an evaluation of `fetched` has to evaluate."""
    reached: set[int] = set()
    waiting = [index for index in fetched if index not in fed]
    while waiting:
        index = waiting.pop()
        if index in reached:
            continue
        reached.add(index)
        waiting += [i for i in (*vertices[index].inputs, *vertices[index].controls) if i not in fed]
    return reached


def sequentially(vertices: list[Vertex], fed: dict[int, Any]) -> list[Any]:
    """The value of each vertex, evaluated one after the other."""
    values: list[Any] = []
    for index, vertex in enumerate(vertices):
        values.append(fed[index] if index in fed else hash((index, *[values[i] for i in vertex.inputs])))
    return values


def build(vertices: list[Vertex], function: Callable[..., Any]) -> tuple[Graph, list[Node[Any]]]:
    """The graph of `vertices`, each a call of `function(index, suspensions, *inputs)`."""
    nodes: list[Node[Any]] = []
    with Graph() as graph:
        for index, vertex in enumerate(vertices):
            node: Node[Any] = op(name=f"n{index}")(function)(
                index, vertex.suspensions, *[nodes[i] for i in vertex.inputs]
            )
            nodes.append(node.after(*[nodes[i] for i in vertex.controls]) if vertex.controls else node)
    return graph, nodes


@st.composite
def requests(draw: st.DrawFn) -> tuple[list[Vertex], list[int], dict[int, int]]:
    """A graph, the vertices that are fetched, and values for those that are fed."""
    vertices = draw(dags())
    indices = st.integers(0, len(vertices) - 1)
    fetched = draw(st.lists(indices, max_size=6))
    return vertices, fetched, draw(st.dictionaries(indices, st.integers(), max_size=3))


@given(request=requests(), bound=st.none() | st.integers(1, 3))
@reproducible
async def test_a_random_graph_evaluates_as_it_would_sequentially(
    request: tuple[list[Vertex], list[int], dict[int, int]], bound: int | None
) -> None:
    """Any graph, fetches, feeds and bound: the sequential values, each needed node evaluated once."""
    vertices, fetched, fed = request
    evaluated: Counter[int] = Counter()

    async def evaluate(index: int, suspensions: int, *inputs: Any) -> int:
        evaluated[index] += 1
        for _ in range(suspensions):
            await anyio.lowlevel.checkpoint()
        return hash((index, *inputs))

    graph, nodes = build(vertices, evaluate)
    async with Session(graph) as raw:
        result = await raw.run(
            [nodes[i] for i in fetched],
            {nodes[i]: value for i, value in fed.items()},
            options=RunOptions(concurrency=bound),
        )
    values = sequentially(vertices, fed)
    assert result == [values[i] for i in fetched]
    assert evaluated == dict.fromkeys(needed(vertices, fetched, set(fed)), 1)


@st.composite
def openings(draw: st.DrawFn) -> tuple[list[Vertex], list[int]]:
    """A graph, and which of its vertices goes on before which, when both wait."""
    vertices = draw(dags(max_size=15))
    return vertices, draw(st.permutations(range(len(vertices))))


@given(graph_and_order=openings(), bound=st.none() | st.integers(1, 4))
@reproducible
async def test_whatever_is_ready_runs(
    graph_and_order: tuple[list[Vertex], list[int]], bound: int | None
) -> None:
    """At any time all nodes whose dependencies are done are under way, or as many as the bound allows."""
    vertices, opening = graph_and_order
    most = bound or len(vertices)
    gates = [anyio.Event() for _ in vertices]
    changes = Changes()
    running: set[int] = set()
    done: set[int] = set()

    def ready() -> set[int]:
        return {
            index
            for index, vertex in enumerate(vertices)
            if index not in done and done.issuperset((*vertex.inputs, *vertex.controls))
        }

    async def evaluate(index: int, suspensions: int, *inputs: Any) -> int:
        running.add(index)
        assert running <= ready() and len(running) <= most
        changes.tell()
        await gates[index].wait()
        running.remove(index)
        done.add(index)
        changes.tell()
        return index

    graph, nodes = build(vertices, evaluate)
    async with Session(graph) as raw, anyio.create_task_group() as tasks:

        async def run() -> None:
            await raw.run(nodes, options=RunOptions(concurrency=bound))

        tasks.start_soon(run)
        for count in range(len(vertices)):
            await changes.until(lambda: len(running) == min(len(ready()), most))
            gates[min(running, key=opening.index)].set()
            await changes.until(lambda count=count: len(done) > count)  # type: ignore[misc]


class Pair(NamedTuple):
    """A named tuple to fetch."""

    left: Any
    right: Any


@dataclass
class Record:
    """A data class to fetch."""

    first: Any
    second: Any


@dataclass(frozen=True, slots=True)
class Frozen:
    """A frozen, slotted data class to fetch."""

    only: Any


def nestings() -> st.SearchStrategy[Any]:
    """Nestings of every kind, with numbers of nodes for leaves."""
    return st.recursive(
        st.integers(0, 4),
        lambda inner: st.one_of(
            st.lists(inner, max_size=3),
            st.lists(inner, max_size=3).map(tuple),
            st.dictionaries(st.text(max_size=3) | st.integers(), inner, max_size=3),
            st.builds(Pair, inner, inner),
            st.builds(Record, inner, inner),
            st.builds(Frozen, inner),
        ),
        max_leaves=12,
    )


def mapped(nesting: Any, leaf: Callable[[int], Any]) -> Any:
    """The same nesting, with each leaf replaced."""
    match nesting:
        case Pair(left, right):
            return Pair(mapped(left, leaf), mapped(right, leaf))
        case Record(first, second):
            return Record(mapped(first, leaf), mapped(second, leaf))
        case Frozen(only):
            return Frozen(mapped(only, leaf))
        case list():
            return [mapped(item, leaf) for item in nesting]
        case tuple():
            return tuple(mapped(item, leaf) for item in nesting)
        case dict():
            return {key: mapped(item, leaf) for key, item in nesting.items()}
    return leaf(nesting)


@given(nesting=nestings(), by_name=st.booleans())
@reproducible
async def test_fetches_come_back_in_their_nesting(nesting: Any, by_name: bool) -> None:
    """Lists, tuples, named tuples, dicts and data classes at any depth come back with the values."""
    with Graph() as graph:
        nodes = [placeholder(f"x{i}", default=i * 10) for i in range(5)]
    fetches = mapped(nesting, lambda i: f"x{i}" if by_name else nodes[i])
    expected = mapped(nesting, lambda i: i * 10)
    async with Session(graph) as raw:
        result = await raw.run(fetches)
    assert result == expected
    assert repr(result) == repr(expected)


@given(nesting=nestings())
@reproducible
async def test_op_arguments_come_in_their_nesting(nesting: Any) -> None:
    """Lists, tuples and dicts of nodes reach an op's function as such lists, tuples and dicts of values."""
    plain = mapped_to_builtins(nesting)
    with Graph() as graph:
        nodes = [placeholder(f"x{i}", default=i * 10) for i in range(5)]
        echo = op(lambda value: value)(mapped(plain, lambda i: nodes[i]))
    async with Session(graph) as raw:
        assert repr(await raw.run(echo)) == repr(mapped(plain, lambda i: i * 10))


def mapped_to_builtins(nesting: Any) -> Any:
    """The same nesting of lists, tuples and dicts only."""
    match nesting:
        case Pair(left, right) | Record(left, right):
            return (mapped_to_builtins(left), mapped_to_builtins(right))
        case Frozen(only):
            return [mapped_to_builtins(only)]
        case list():
            return [mapped_to_builtins(item) for item in nesting]
        case tuple():
            return tuple(mapped_to_builtins(item) for item in nesting)
        case dict():
            return {key: mapped_to_builtins(item) for key, item in nesting.items()}
    return nesting


@st.composite
def updates(draw: st.DrawFn) -> tuple[list[int], list[int]]:
    """What each of some steps adds, and an order of their reads and commits: each index comes twice."""
    deltas = draw(st.lists(st.integers(-100, 100), min_size=1, max_size=10))
    return deltas, draw(st.permutations([*range(len(deltas))] * 2))


@given(deltas_and_schedule=updates())
@reproducible
async def test_concurrent_updates_equal_the_sequential_result(
    deltas_and_schedule: tuple[list[int], list[int]],
) -> None:
    """Steps that overlap in any way and update commutatively end as if one followed the other."""
    deltas, schedule = deltas_and_schedule
    count = len(deltas)
    reads, commits = [[anyio.Event() for _ in deltas] for _ in range(2)]
    changes = Changes()
    acted: list[int] = []

    async def gate(events: list[anyio.Event], index: int) -> None:
        if events is commits:
            acted.append(index)  # it has read, and written what it will commit
            changes.tell()
        await events[index].wait()

    with Graph() as graph:
        total, largest = Variable(0, name="total"), Variable(-1000, name="largest")
        x, index = placeholder("x"), placeholder("index")
        read = op(gate)(reads, index)
        delta = op(lambda value: value)(x).after(read)
        writes = [total.assign_add(delta), largest.update(max, delta)]
        step = [*writes, op(gate)(commits, index).after(*writes)]
    async with MonitoredSession(ChiefSessionCreator(graph=graph)) as session:
        async with anyio.create_task_group() as tasks:

            async def run(number: int) -> None:
                await session.run(step, {x: deltas[number], index: number})
                acted.append(number)
                changes.tell()

            for number in range(count):
                tasks.start_soon(run, number)
            for turn, number in enumerate(schedule):
                (commits if reads[number].is_set() else reads)[number].set()
                await changes.until(lambda turn=turn: len(acted) > turn)  # type: ignore[misc]
        assert acted == schedule
        assert session.global_step == count
        assert await session.run([total, largest]) == [sum(deltas), max(deltas)]
