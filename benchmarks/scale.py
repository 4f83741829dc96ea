"""P7 and P8: a million steps in one session, and as many as 10,000 workers."""

from __future__ import annotations

import gc
from pathlib import Path
from time import perf_counter

import anyio

import asyncstep as a
from benchmarks.measure import Figure, interleaved

CHUNK, CHUNKS, COMPARED = 10_000, 100, 9
WORKERS = (10, 100, 1_000, 10_000)


async def measure(backend: str) -> list[Figure]:
    """The figures of one backend."""
    return [*await _a_million_steps(backend), *[await _workers(backend, count) for count in WORKERS]]


async def _a_million_steps(backend: str) -> list[Figure]:
    """The last of a million steps against the first, in time and in memory."""
    with a.Graph() as graph:
        count = a.Variable(0, name="count").assign_add(1)
    taken, resident = [], []
    async with a.MonitoredSession(a.ChiefSessionCreator(graph=graph)) as session:
        for _ in range(CHUNKS):
            began = perf_counter()
            for _ in range(CHUNK):
                await session.run(count)
            taken.append((perf_counter() - began) / CHUNK * 1e6)
            gc.collect()
            resident.append(resident_mib())
    first, last = min(taken[:COMPARED]), min(taken[-COMPARED:])
    return [
        Figure("P7 the millionth step", backend, "step", first, last, 1.1),
        Figure("P7 memory of a million steps", backend, "session", resident[0], resident[-1], 1, True, "MiB"),
    ]


def resident_mib() -> float:
    """The memory of this process that is not swapped out; 0 where the system does not say (it is Linux's)."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * 4096 / 2**20 if statm.exists() else 0.0


async def _workers(backend: str, workers: int) -> Figure:
    """Steps that do nothing but give way, in so many workers, against loops in a task group."""
    steps = max(10_000, 4 * workers)
    left = 0

    async def by_hand() -> None:
        nonlocal left
        left = steps

        async def work() -> None:
            nonlocal left
            while left > 0:
                await anyio.sleep(0)  # noqa: ASYNC115 - it is what the subject is said to be
                left -= 1

        async with anyio.create_task_group() as group:
            for _ in range(workers):
                group.start_soon(work)

    async def step(ctx: a.StepContext) -> None:
        nonlocal left
        await anyio.sleep(0)  # noqa: ASYNC115 - it is what the subject is said to be
        left -= 1
        if left <= 0:
            ctx.request_stop()

    async def looped() -> None:
        nonlocal left
        left = steps
        async with a.MonitoredSession() as session:
            await session.loop(step, workers=workers)

    times = await interleaved(by_hand, looped, steps, rounds=7)
    return Figure(f"P8 {workers:6,} workers", backend, "step", *times, 3.0)
