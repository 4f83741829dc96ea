"""P1 to P3: what a monitored run costs, with hooks, with none, and with hooks that do nothing.

The row of the empty loop says how much of the figures is the harness: the reference loop without its body.
"""

from __future__ import annotations

import operator

import asyncstep as a
from benchmarks.measure import Figure, interleaved

STEPS = 2_000
HOOKS = (0, 1, 2, 5, 10)


class Watching(a.SessionRunHook):
    """Overrides both points of a run, as cheaply as can be."""

    async def before_run(self, run_context: a.SessionRunContext) -> None:
        return None

    async def after_run(self, run_context: a.SessionRunContext, run_values: a.SessionRunValues) -> None:
        return None


class Idle(a.SessionRunHook):
    """Overrides nothing that a run calls."""


async def trivial() -> int:
    """The step itself."""
    return 1


async def measure(backend: str) -> list[Figure]:
    """The figures of one backend."""
    return [
        await _empty(backend),
        await _hooks("P1 run with 5 hooks", backend, 5, 4.0),
        await _transaction(backend),
        await _idle_hooks(backend),
        *[await _hooks(f"hooks {count:2}", backend, count) for count in HOOKS],
    ]


async def _empty(backend: str) -> Figure:
    async def nothing() -> None:
        for _ in range(STEPS):
            pass

    async def one_await() -> None:
        for _ in range(STEPS):
            await trivial()

    return Figure("P0 empty loop", backend, "step", *await interleaved(one_await, nothing, STEPS), None)


async def _hooks(subject: str, backend: str, count: int, goal: float | None = None) -> Figure:
    """A run with so many hooks, against a loop that awaits the same methods."""
    hooks = [Watching() for _ in range(count)]
    with a.Graph() as graph:
        node = a.op(trivial)()

    async def by_hand() -> None:
        for _ in range(STEPS):
            for hook in hooks:
                await hook.before_run(None)  # type: ignore[arg-type]
            await trivial()
            for hook in hooks:
                await hook.after_run(None, None)  # type: ignore[arg-type]

    async with a.MonitoredSession(a.ChiefSessionCreator(graph=graph), hooks) as session:

        async def monitored() -> None:
            for _ in range(STEPS):
                await session.run(node)

        times = await interleaved(by_hand, monitored, STEPS)
    return Figure(subject, backend, "step", *times, goal)


async def _transaction(backend: str) -> Figure:
    with a.Graph() as graph:
        count = a.Variable(0, name="count").update(operator.add, 1)

    async def by_hand() -> None:
        for _ in range(STEPS):
            await trivial()

    async with a.MonitoredSession(a.ChiefSessionCreator(graph=graph)) as session:

        async def monitored() -> None:
            for _ in range(STEPS):
                await session.run(count)

        reference, subject = await interleaved(by_hand, monitored, STEPS)
    return Figure("P2 run with an update", backend, "step", reference, subject, 4.0, added=True)


async def _idle_hooks(backend: str) -> Figure:
    with a.Graph() as graph:
        node = a.op(trivial)()
    creator = a.ChiefSessionCreator(graph=graph)
    async with (
        a.MonitoredSession(creator) as without,
        a.MonitoredSession(creator, [Idle() for _ in range(5)]) as with_idle,
    ):

        async def reference() -> None:
            for _ in range(STEPS):
                await without.run(node)

        async def subject() -> None:
            for _ in range(STEPS):
                await with_idle.run(node)

        times = await interleaved(reference, subject, STEPS)
    return Figure("P3 hooks that override nothing", backend, "step", *times, 1.05)
