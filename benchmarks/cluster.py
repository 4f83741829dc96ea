"""P12: a step against a chief in another process; and how many steps programs make, and a chief can take.

A figure is one launch, for a program has one session with its master; all are on the same two processes. Where it is
the chief that is measured, no other program of its process does anything.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cache, partial
from time import perf_counter, process_time, thread_time
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

import asyncstep as a
from asyncstep._monitored.company import current_engine
from benchmarks.crowd import Crowd
from benchmarks.measure import Figure, interleaved

if TYPE_CHECKING:
    from distributed import LocalCluster

    from asyncstep.distributed import TaskInfo

STEPS = 1_000
PROGRAMS = (1, 2, 4, 8)
MILLISECONDS = (0, 1, 10, 100)
SECONDS = 0.8
SENDERS = 8
CROWD, CROWD_MILLISECONDS = 1_000, (0, 250, 1_000)


@dataclass(frozen=True, slots=True)
class Shared:
    """The graph of the programs.

    Attributes:
        count: a step that changes a variable.
        taken: one that takes an item, too.
        began: how many programs have begun.
        begin: one more has.
    """

    count: a.Node[int]
    taken: a.Node[int]
    began: a.Variable[int]
    begin: a.Node[int]


@dataclass(frozen=True, slots=True)
class Pace:
    """What a program has done: steps, and the seconds that they took."""

    steps: int
    seconds: float


async def measure(backend: str) -> list[Figure]:
    """The figures of one backend."""
    if not installed():
        return []
    async with two_processes() as cluster:
        return [
            await _commit(backend, cluster),
            *await _throughput(backend, cluster),
            *await _crowd(backend, cluster),
            *await _of_the_chief(backend, cluster),
        ]


@cache
def installed() -> bool:
    """Whether there is a cluster to measure on; if not, one line says so, once."""
    try:
        import asyncstep.distributed  # noqa: F401
    except ImportError as error:
        print(f"cluster: skipped; {error}", file=sys.stderr)
        return False
    return True


@asynccontextmanager
async def two_processes() -> AsyncIterator[LocalCluster]:
    """Two Dask workers; of a launch there, the programs of even indices run on the first, with the chief."""
    from distributed import LocalCluster

    start = partial(LocalCluster, n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address=":0")
    cluster = await anyio.to_thread.run_sync(start)
    try:
        yield cluster
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(cluster.close)


def new_session(task: TaskInfo) -> tuple[a.MonitoredSession, Shared]:
    """A session that has nothing to do but its steps. The chief's is open until all others are closed."""
    with a.Graph():
        count = a.Variable(0, name="count").assign_add(1)
        taken = a.source(range(10**9), name="numbers").after(count)
        began = a.Variable(0, name="began")
        shared = Shared(count, taken, began, began.assign_add(1))
        session = a.MonitoredTrainingSession(
            task.master, is_chief=task.is_chief, log_step_count_steps=None, save_summaries_steps=None
        )
    return session, shared


async def _commit(backend: str, cluster: LocalCluster) -> Figure:
    from asyncstep.distributed import alaunch

    _, (asked, stepped) = await alaunch(compare, cluster, workers=2, backend=backend)
    return Figure("P12 a step of another process", backend, "step", asked, stepped, 2.0)


async def compare(task: TaskInfo) -> tuple[float, float]:
    """In the worker: steps with an update, against questions to which the chief says no."""
    from asyncstep.distributed.engine import JobEngine
    from asyncstep.distributed.messages import WasCommitted

    session, shared = new_session(task)
    times = 0.0, 0.0
    async with session:
        if not task.is_chief:
            engine = current_engine.get()
            assert isinstance(engine, JobEngine)
            assert engine.link.view.seat is not None
            ask = partial(engine.link.call, engine.link.view.seat, WasCommitted((0, 0), 0, 0))

            async def asked() -> None:
                for _ in range(STEPS):
                    await ask()

            async def stepped() -> None:
                for _ in range(STEPS):
                    await session.run(shared.count)

            times = await interleaved(asked, stepped, STEPS)
    return times


async def _throughput(backend: str, cluster: LocalCluster) -> list[Figure]:
    """How long a step takes of so many programs, against that of one divided by their number."""
    from asyncstep.distributed import alaunch

    figures = []
    for milliseconds in MILLISECONDS:
        alone = 0.0
        for programs in PROGRAMS:
            paces = await alaunch(partial(work, milliseconds), cluster, workers=programs, backend=backend)
            took = 1e6 / sum(pace.steps / pace.seconds for pace in paces)
            alone = alone or took
            subject = f"cluster {milliseconds:5,} ms, {programs:5,} program{'s'[: programs > 1]}"
            figures.append(Figure(subject, backend, "step", alone / programs, took, None))
    return figures


async def work(milliseconds: int, task: TaskInfo) -> Pace:
    """Step for some time, once all programs have begun."""
    session, shared = new_session(task)

    async def step(ctx: a.StepContext) -> None:
        await anyio.sleep(milliseconds / 1e3)
        await ctx.session.run(shared.count)

    async with session:
        await all_began(session, shared, task.num_workers)
        steps, took, began = 0, 0.0, perf_counter()
        while took < SECONDS:
            await session.run_step_fn(step)
            steps, took = steps + 1, perf_counter() - began
    return Pace(steps, took)


async def all_began(session: a.MonitoredSession, shared: Shared, programs: int) -> None:
    """Begin, and wait until so many programs have."""
    await session.run(shared.begin)
    while await session.run_without_hooks(shared.began) < programs:  # noqa: ASYNC110 - no event gets there
        await anyio.sleep(0.02)  # what a worker has read is taken for the newest for 10 ms


async def _crowd(backend: str, cluster: LocalCluster) -> list[Figure]:
    """The same for so many members that are simulated, against steps whose commit takes no time."""
    from asyncstep.distributed import alaunch

    _, rates = await alaunch(crowded, cluster, workers=2, backend=backend)
    figures = []
    for milliseconds, rate in zip(CROWD_MILLISECONDS, rates, strict=True):
        subject = f"cluster {milliseconds:5,} ms, {CROWD:5,} simulated"
        took = 1e6 / rate
        figures.append(Figure(subject, backend, "step", milliseconds * 1e3 / CROWD or took, took, None))
    return figures


async def crowded(task: TaskInfo) -> list[float]:
    """Commits a second of a crowd in one process, when each member sleeps for so long between two of them."""
    session, _ = new_session(task)
    rates: list[float] = []
    async with session:
        if not task.is_chief:
            async with Crowd.joined(CROWD, "count") as crowd:
                for milliseconds in CROWD_MILLISECONDS:
                    rates.append(await crowd.rate(milliseconds / 1e3, SECONDS))
    return rates


async def _of_the_chief(backend: str, cluster: LocalCluster) -> list[Figure]:
    """Processor time that the chief spends on a step of another program, against that of a step of its own."""
    from asyncstep.distributed import alaunch

    figures = []
    for subject, taking in (("a commit", False), ("an item, and a commit", True)):
        (own, others), *_ = await alaunch(
            partial(serve, taking), cluster, workers=2 * SENDERS, backend=backend
        )
        figures.append(Figure(f"chief {subject}", backend, "step", own, others, None))
    return figures


async def serve(taking: bool, task: TaskInfo) -> tuple[float, float]:
    """The chief's microseconds of processor time for a step of its own, and for one of the others."""
    session, shared = new_session(task)
    fetched = shared.taken if taking else shared.count
    own = others = 0.0

    async def step(ctx: a.StepContext) -> None:
        await ctx.run_with_hooks(fetched)

    async with session:
        if task.is_chief:
            began = thread_time()
            for _ in range(STEPS):
                await session.run(fetched)
            own = (thread_time() - began) / STEPS
            await all_began(session, shared, 1 + SENDERS)
            began, first = process_time(), session.global_step
            await anyio.sleep(SECONDS)
            others = (process_time() - began) / (session.global_step - first)
            session.request_stop("it is measured")
        elif task.index % 2:  # it is in the other process
            await all_began(session, shared, 1 + SENDERS)
            await session.loop(step)
    return own * 1e6, others * 1e6
