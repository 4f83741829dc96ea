"""The same step and the same graphs in other people's programs: what those take is the reference.

A peer that is not installed is one line on stderr. The dependency group ``peers`` installs all of them. A peer that is
synchronous is measured once, beside asyncstep on asyncio; one that needs asyncio, there and on uvloop.
"""

from __future__ import annotations

import asyncio
import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import asyncstep as a
from benchmarks import programs
from benchmarks.graphs import FUNCTIONS, Dag, chain, wide
from benchmarks.measure import ROUNDS, Figure, Timed, interleaved
from benchmarks.steps import Watching, trivial

ASYNCIO = ("asyncio", "uvloop")


@dataclass(frozen=True, slots=True)
class Peer:
    """Another program that can do the same work.

    Attributes:
        name: in the table.
        module: what must be importable.
        loops: on which its work is measured.
        step: given a number of steps and of hooks around each, makes what takes these steps.
        evaluate: given a graph, makes what evaluates it once.
        steps: how many a round has.
        rounds: how many rounds there are.
    """

    name: str
    module: str
    loops: tuple[str, ...] = ("asyncio",)
    step: Callable[[int, int], Timed] | None = None
    evaluate: Callable[[Dag], Timed] | None = None
    steps: int = 200
    rounds: int = ROUNDS


async def measure(backend: str) -> list[Figure]:
    """The figures of one backend."""
    figures = []
    for peer in PEERS:
        if backend not in peer.loops or not installed(peer.name, peer.module):
            continue
        if peer.step:
            figures += [await _stepped(peer, backend, peer.step, hooks) for hooks in (0, 5)]
        if peer.evaluate:
            figures += [await _evaluated(peer, backend, peer.evaluate, dag) for dag in (chain(), wide())]
    return figures


@functools.cache
def installed(name: str, module: str) -> bool:
    """Whether a peer can be imported; if not, one line says so, once."""
    try:
        import_module(module)
    except ImportError as error:
        print(f"{name} is left out: {error}", file=sys.stderr)
        return False
    return True


async def _stepped(peer: Peer, backend: str, make: Callable[[int, int], Timed], hooks: int) -> Figure:
    with a.Graph() as graph:
        node = a.op(trivial)()
    watching = [Watching() for _ in range(hooks)]
    async with a.MonitoredSession(a.ChiefSessionCreator(graph=graph), watching) as session:

        async def monitored() -> None:
            for _ in range(peer.steps):
                await session.run(node)

        times = await interleaved(make(peer.steps, hooks), monitored, peer.steps, peer.rounds)
    return Figure(f"peer {peer.name}, {hooks} hooks", backend, "step", *times, 1.0)


async def _evaluated(peer: Peer, backend: str, make: Callable[[Dag], Timed], dag: Dag) -> Figure:
    async with a.Session(dag.graph) as session:
        times = await interleaved(
            make(dag), lambda: session.run(dag.fetched, dag.feeds), len(dag.inputs), peer.rounds
        )
    return Figure(f"peer {peer.name}, {dag.name}", backend, "node", *times, 1.0)


def _task_a_step(steps: int, hooks: int) -> Timed:
    watching = [Watching() for _ in range(hooks)]

    async def stepped() -> None:
        for _ in range(steps):
            if watching:
                await asyncio.gather(*[hook.before_run(None) for hook in watching])  # type: ignore[arg-type]
            task = asyncio.create_task(trivial())
            await task
            if watching:
                await asyncio.gather(*[hook.after_run(None, None) for hook in watching])  # type: ignore[arg-type]

    return stepped


def _task_a_node(dag: Dag) -> Timed:
    """All tasks at once; each awaits those of its inputs."""

    async def evaluated() -> None:
        awaited: list[asyncio.Future[int]] = []

        async def node(inputs: tuple[int, ...]) -> int:
            return await FUNCTIONS[len(inputs)](*[await awaited[at] for at in inputs])

        for value in dag.start:
            future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
            future.set_result(value)
            awaited.append(future)
        for inputs in dag.inputs:
            awaited.append(asyncio.create_task(node(inputs)))
        await asyncio.gather(*awaited)

    return evaluated


def _group_a_layer(dag: Dag) -> Timed:
    """A TaskGroup for the nodes whose inputs are all there, then one for the next."""
    layers: list[list[tuple[int, tuple[int, ...]]]] = []
    depths = [0] * len(dag.start)
    for at, inputs in enumerate(dag.inputs, len(dag.start)):
        depths.append(1 + max(depths[place] for place in inputs))
        if depths[-1] > len(layers):
            layers.append([])
        layers[depths[-1] - 1].append((at, inputs))

    async def evaluated() -> None:
        values = dag.start + [0] * len(dag.inputs)

        async def node(at: int, inputs: tuple[int, ...]) -> None:
            values[at] = await FUNCTIONS[len(inputs)](*[values[place] for place in inputs])

        for layer in layers:
            async with asyncio.TaskGroup() as group:
                for at, inputs in layer:
                    group.create_task(node(at, inputs))

    return evaluated


def _nursery(dag: Dag) -> Timed:
    """A task a node in one nursery; each waits for the events of its inputs."""
    trio: Any = import_module("trio")

    async def evaluated() -> None:
        values = dag.start + [0] * len(dag.inputs)
        done = [trio.Event() for _ in values]

        async def node(at: int, inputs: tuple[int, ...]) -> None:
            for place in inputs:
                if not done[place].is_set():
                    await done[place].wait()
            values[at] = await FUNCTIONS[len(inputs)](*[values[place] for place in inputs])
            done[at].set()

        for at in range(len(dag.start)):
            done[at].set()
        async with trio.open_nursery() as nursery:
            for at, inputs in enumerate(dag.inputs, len(dag.start)):
                nursery.start_soon(node, at, inputs)

    return evaluated


PEERS = (
    Peer("asyncio, a task a step", "asyncio", ASYNCIO, step=_task_a_step, steps=1_000),
    Peer("asyncio, a task a node", "asyncio", ASYNCIO, evaluate=_task_a_node),
    Peer("asyncio, a TaskGroup a layer", "asyncio", ASYNCIO, evaluate=_group_a_layer),
    Peer("trio, a nursery", "trio", ("trio",), evaluate=_nursery),
    Peer("pytorch-ignite", "ignite.engine", step=programs.ignite, steps=2_000),
    Peer("Burr", "burr.core", step=programs.burr),
    Peer("dask.get", "dask", step=programs.dask, evaluate=programs.dask_graph),
    Peer(
        "Hamilton", "hamilton.async_driver", ASYNCIO, step=programs.hamilton, evaluate=programs.hamilton_graph
    ),
    Peer(
        "LangGraph",
        "langgraph.graph",
        ASYNCIO,
        step=programs.langgraph,
        evaluate=programs.langgraph_graph,
        steps=20,
        rounds=7,
    ),
    Peer("TensorFlow", "tensorflow", step=programs.monitored_session, evaluate=programs.tensorflow_graph),
)
