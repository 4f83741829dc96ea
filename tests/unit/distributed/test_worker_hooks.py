"""Hooks in the programs of workers: they see the state that is with the chief."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from asyncstep import Graph, MonitoredTrainingSession, StepContext, Variable
from asyncstep.distributed import TaskInfo
from asyncstep.hooks import GlobalStepWaiterHook, StopAtStepHook

from .loopback import LoopbackJob

pytestmark = pytest.mark.anyio


async def run_all(program: Any, workers: int) -> dict[int, Any]:
    """What the programs of a job return, by index."""
    async with LoopbackJob(workers).running() as start:
        running = [start(program, index) for index in range(workers)]
    return {index: each.result for index, each in enumerate(running)}


async def test_a_worker_waits_for_a_step_that_others_make() -> None:
    """GlobalStepWaiterHook hears of the chief's commits, though its own session makes none."""

    async def program(task: TaskInfo) -> int:
        hooks = [] if task.is_chief else [GlobalStepWaiterHook(5)]
        began: list[int] = []
        with Graph():
            bump = Variable(0, name="count").assign_add(1)
            session = MonitoredTrainingSession(
                task.master, is_chief=task.is_chief, hooks=hooks, log_step_count_steps=None
            )

        async def step(ctx: StepContext) -> None:
            began.append(await ctx.run_with_hooks(bump))
            if not task.is_chief:
                ctx.request_stop()
            await anyio.sleep(0.001)

        async with session:
            await session.loop(step)
        return began[0]

    results = await run_all(program, 2)
    assert results[0] == 1
    assert results[1] > 5


async def test_a_hook_that_stops_at_a_step_stops_all() -> None:
    """S1: whoever sees the step first; nobody makes steps on."""

    async def program(task: TaskInfo) -> tuple[int, str]:
        with Graph():
            bump = Variable(0, name="count").assign_add(1)
            session = MonitoredTrainingSession(
                task.master,
                is_chief=task.is_chief,
                hooks=[StopAtStepHook(last_step=30)],
                log_step_count_steps=None,
            )

        async def step(ctx: StepContext) -> None:
            await ctx.run_with_hooks(bump)
            await anyio.sleep(0.001)

        async with session:
            await session.loop(step)
        assert session.stop_reason is not None
        return session.global_step, str(session.stop_reason.kind)

    results = await run_all(program, 3)
    assert {kind for _, kind in results.values()} == {"hook"}
    assert 30 <= results[0][0] <= 32  # the steps that were under way
