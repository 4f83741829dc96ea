"""P4 and P5: what a node costs, in a chain and in a wide graph, against awaiting by hand in order."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Sequence
from operator import itemgetter
from typing import Any

import asyncstep as a
from benchmarks.measure import Figure, interleaved

WIDE, DEEP = 100, 10


async def _next(value: int) -> int:
    return value + 1


async def _sum(one: int, other: int) -> int:
    return one + other


async def measure(backend: str) -> list[Figure]:
    """The figures of one backend."""
    return [await _chain(backend), await _wide(backend)]


async def _chain(backend: str) -> Figure:
    length = 1_000
    next_op = a.op(_next)
    with a.Graph() as graph:
        node = next_op(0)
        for _ in range(length - 1):
            node = next_op(node)
    last: Callable[[list[Any]], Any] = lambda values: (values[-1],)  # noqa: E731
    calls = [(_next, last)] * length
    return await _compared("P4 chain of 1,000 nodes", backend, graph, node, calls, [0])


async def _wide(backend: str) -> Figure:
    chance = random.Random(0)
    add = a.op(_sum)
    calls: list[tuple[Callable[..., Awaitable[int]], Callable[[list[Any]], Any]]] = []
    with a.Graph() as graph:
        places = [a.placeholder(f"x{index}") for index in range(WIDE)]
        layer: list[tuple[a.Node[Any], int]] = [(node, index) for index, node in enumerate(places)]
        for _ in range(DEEP):
            made = []
            for _ in range(WIDE):
                (one, at), (other, other_at) = chance.choice(layer), chance.choice(layer)
                calls.append((_sum, itemgetter(at, other_at)))
                made.append((add(one, other), WIDE + len(calls) - 1))
            layer = made
        fetched = a.group(*[node for node in graph.nodes.values() if node not in places])
    feeds = dict.fromkeys(places, 1)
    return await _compared(
        "P5 100 wide, 10 deep", backend, graph, fetched, calls, list(feeds.values()), feeds
    )


async def _compared(
    subject: str,
    backend: str,
    graph: a.Graph,
    fetched: a.Node[Any],
    calls: Sequence[tuple[Callable[..., Awaitable[int]], Callable[[list[Any]], Any]]],
    start: list[Any],
    feeds: dict[a.Node[Any], Any] | None = None,
) -> Figure:
    async def by_hand() -> None:
        for _ in range(10):
            values = list(start)
            for call, pick in calls:
                values.append(await call(*pick(values)))

    async with a.Session(graph) as session:

        async def evaluated() -> None:
            for _ in range(10):
                await session.run(fetched, feeds)

        times = await interleaved(by_hand, evaluated, 10 * len(calls))
    return Figure(subject, backend, "node", *times, 2.0)
