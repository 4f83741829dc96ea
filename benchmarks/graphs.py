"""P4 to P6 and P9: what a node costs, in a chain, in a wide graph and in a huge one, against awaiting by hand."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import anyio

import asyncstep as a
from benchmarks.measure import Figure, interleaved

WIDE, DEEP = 100, 10


async def _next(value: int) -> int:
    return value + 1


async def _sum(one: int, other: int) -> int:
    return one + other


FUNCTIONS: dict[int, Callable[..., Awaitable[int]]] = {1: _next, 2: _sum}  # by how many inputs a node has


async def measure(backend: str) -> list[Figure]:
    """The figures of one backend."""
    return [
        await _compared("P4 chain of 1,000 nodes", backend, chain()),
        await _compared("P5 100 wide, 10 deep", backend, wide()),
        await _overlapping(backend),
        await _huge(backend),
    ]


@dataclass(frozen=True, slots=True)
class Dag:
    """A graph of trivial async nodes, and what it computes as a list, for whoever computes it in another way.

    Attributes:
        name: what it looks like.
        graph: the graph.
        fetched: what a run of it fetches; all the nodes are needed for it.
        feeds: what a run is fed with.
        start: the values that are there before the first node.
        inputs: for each node, in topological order, where its one or two inputs are in the list of those values
            and of the results of the nodes before it.
        needed: where the results that `fetched` needs are in that list.
    """

    name: str
    graph: a.Graph
    fetched: a.Node[Any]
    feeds: dict[a.Node[Any], int]
    start: list[int]
    inputs: list[tuple[int, ...]]
    needed: list[int]


def chain(length: int = 1_000) -> Dag:
    """Nodes that each need the one before."""
    next_op = a.op(_next)
    with a.Graph() as graph:
        node = next_op(0)
        for _ in range(length - 1):
            node = next_op(node)
    return Dag(f"chain of {length:,}", graph, node, {}, [0], [(at,) for at in range(length)], [length])


def wide() -> Dag:
    """Layers of nodes that each need two random ones of the layer before."""
    chance, add = random.Random(0), a.op(_sum)
    inputs: list[tuple[int, ...]] = []
    with a.Graph() as graph:
        places = [a.placeholder(f"x{index}") for index in range(WIDE)]
        layer: list[tuple[a.Node[Any], int]] = [(node, index) for index, node in enumerate(places)]
        for _ in range(DEEP):
            made = []
            for _ in range(WIDE):
                (one, at), (other, other_at) = chance.choice(layer), chance.choice(layer)
                inputs.append((at, other_at))
                made.append((add(one, other), WIDE + len(inputs) - 1))
            layer = made
        fetched = a.group(*[node for node in graph.nodes.values() if node not in places])
    feeds: dict[a.Node[Any], int] = dict.fromkeys(places, 1)
    needed = list(range(WIDE, WIDE + len(inputs)))
    return Dag(f"{WIDE} wide, {DEEP} deep", graph, fetched, feeds, [1] * WIDE, inputs, needed)


async def _compared(subject: str, backend: str, dag: Dag) -> Figure:
    calls = [(FUNCTIONS[len(places)], _picker(places)) for places in dag.inputs]

    async def by_hand() -> None:
        for _ in range(10):
            values = list(dag.start)
            for call, pick in calls:
                values.append(await call(*pick(values)))

    async with a.Session(dag.graph) as session:

        async def evaluated() -> None:
            for _ in range(10):
                await session.run(dag.fetched, dag.feeds)

        times = await interleaved(by_hand, evaluated, 10 * len(calls))
    return Figure(subject, backend, "node", *times, 2.0)


def _picker(places: tuple[int, ...]) -> Callable[[list[int]], tuple[int, ...]]:
    if len(places) > 1:
        return itemgetter(*places)
    place = places[0]
    return lambda values: (values[place],)


async def _wait(*_: None) -> None:
    await anyio.sleep(0.001)


async def _overlapping(backend: str) -> Figure:
    """Ten layers of a hundred nodes that each sleep for a millisecond, against ten such sleeps."""
    chance, wait = random.Random(0), a.op(_wait)
    with a.Graph() as graph:
        layer = [wait() for _ in range(WIDE)]
        for _ in range(DEEP - 1):
            layer = [wait(chance.choice(layer), chance.choice(layer)) for _ in range(WIDE)]
        fetched = a.group(*graph.nodes.values())

    async def ten_sleeps() -> None:
        for _ in range(DEEP):
            await _wait()

    async with a.Session(graph) as session:
        times = await interleaved(ten_sleeps, lambda: session.run(fetched), 1)
    return Figure("P6 100 wide, 10 deep, of 1 ms", backend, "run", *times, 1.5)


async def _huge(backend: str) -> Figure:
    """Building, compiling and running: one graph of 100,000 nodes, against 100 of 1,000 that all live."""

    async def built_and_run(graphs: int, nodes: int) -> None:
        add, alive = a.op(_sum), []
        for _ in range(graphs):
            with a.Graph() as graph:
                one = other = add(0, 1)
                for _ in range(nodes - 1):
                    one, other = other, add(one, 1)
            session = await a.Session(graph).__aenter__()
            await session.run(other)
            alive.append(session)

    times = await interleaved(
        lambda: built_and_run(100, 1_000), lambda: built_and_run(1, 100_000), 100_000, rounds=7
    )
    return Figure("P9 one graph of 100,000 nodes", backend, "node", *times, 1.2)
