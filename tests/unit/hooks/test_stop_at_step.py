"""`StopAtStepHook`: where a loop ends, from the start, resumed, recovered, and with many workers."""

from __future__ import annotations

from typing import Any

import pytest

from asyncstep import (
    AbortedError,
    Graph,
    MonitoredSession,
    Recovery,
    StepContext,
    StopKind,
    StopReason,
    Variable,
    get_or_create_global_step,
)
from asyncstep.errors import InvalidArgumentError, InvalidTypeError
from asyncstep.hooks import StopAtStepHook
from asyncstep.testing import LosableSessionCreator

pytestmark = pytest.mark.anyio


async def step() -> None:
    """A step that does nothing."""


def session_at(global_step: int, *hooks: Any) -> MonitoredSession:
    """A session that starts at a global step, as if restored there."""
    with Graph():
        Variable(global_step, name="global_step")
        return MonitoredSession(hooks=hooks)


async def steps_until_stop(session: MonitoredSession) -> int:
    """How many steps the usual loop runs before the session stops."""
    steps = 0
    async with session:
        while not session.should_stop():
            await session.run(step)
            steps += 1
    return steps


async def test_num_steps_counts_from_the_start() -> None:
    """num_steps=3 from global step 5 runs three steps and ends at 8, with a reason that says so."""
    session = session_at(5, StopAtStepHook(num_steps=3))
    assert await steps_until_stop(session) == 3
    assert session.global_step == 8
    assert session.stop_reason == StopReason(StopKind.HOOK, "global step 8 has reached 8", "StopAtStepHook")


async def test_last_step_is_a_global_step() -> None:
    """last_step=8 from global step 5 runs three steps."""
    assert await steps_until_stop(session_at(5, StopAtStepHook(last_step=8))) == 3


@pytest.mark.parametrize("start", [8, 9])
async def test_resumed_at_its_target_no_step_runs(start: int) -> None:
    """A session that starts at its target, or past it, runs not one step more, and has a reason to stop."""
    session = session_at(start, StopAtStepHook(last_step=8))
    assert await steps_until_stop(session) == 0
    assert session.global_step == start
    assert session.stop_reason == StopReason(
        StopKind.HOOK, f"global step {start} has reached 8", "StopAtStepHook"
    )


async def test_resumed_at_its_target_a_run_is_refused() -> None:
    """A loop that does not ask should_stop() is ended by its first run."""
    evaluated: list[str] = []

    async def count() -> None:
        evaluated.append("run")

    async with session_at(8, StopAtStepHook(last_step=8)) as session:
        await session.run(count)
        evaluated.append("after the run")
    assert evaluated == []


async def test_zero_steps_are_none() -> None:
    """num_steps=0 is a loop of no steps: what is left to do may be nothing."""
    assert await steps_until_stop(session_at(5, StopAtStepHook(num_steps=0))) == 0


async def test_a_recovery_does_not_count_anew() -> None:
    """num_steps counts from where the session was opened, wherever a recovery goes on from."""

    starts = iter([0, 2])  # of the first session, and of the one after the recovery
    with Graph() as graph:
        Variable(lambda: next(starts), name="global_step")
    failures = iter([AbortedError("once")])

    async def fails_once() -> None:
        for failure in failures:
            raise failure

    recovery = Recovery(restore="always", wait_initial=0.001)
    session = MonitoredSession(
        LosableSessionCreator(graph), hooks=[StopAtStepHook(num_steps=4)], recovery=recovery
    )
    async with session:
        while not session.should_stop():
            await session.run(fails_once)
    assert (session.global_step, session.recoveries) == (4, 1)


async def test_the_graph_may_step_itself() -> None:
    """Where a node of the graph changes the global step, it is that step which is compared."""
    with Graph():
        by_ten = get_or_create_global_step().assign_add(10)
        session = MonitoredSession(hooks=[StopAtStepHook(last_step=25)])
    async with session:
        while not session.should_stop():
            await session.run(by_ten)
    assert session.global_step == 30


async def test_a_hook_counts_anew_in_the_next_session() -> None:
    """One hook used for two sessions, one after the other, gives each of them its number of steps."""
    hook = StopAtStepHook(num_steps=2)
    assert [await steps_until_stop(session_at(start, hook)) for start in (0, 7)] == [2, 2]


async def test_workers_overshoot_by_their_steps_in_flight_only() -> None:
    """With workers the loop ends at the target or later by less than one step a worker (contract S4)."""

    async def work(ctx: StepContext) -> None:
        await ctx.run_with_hooks(step)

    async with session_at(0, StopAtStepHook(last_step=20)) as session:
        await session.loop(work, workers=4)
    assert 20 <= session.global_step < 24


@pytest.mark.parametrize("targets", [{}, {"num_steps": 1, "last_step": 2}])
def test_exactly_one_target_is_given(targets: dict[str, int]) -> None:
    """Neither or both of num_steps and last_step are a ValueError that names them."""
    with pytest.raises(InvalidArgumentError, match="num_steps or last_step"):
        StopAtStepHook(**targets)


@pytest.mark.parametrize("target", ["num_steps", "last_step"])
def test_a_target_is_a_count(target: str) -> None:
    """A negative target is a ValueError, one that is no integer a TypeError."""
    with pytest.raises(InvalidArgumentError, match=f"{target} must be at least 0, got -1"):
        StopAtStepHook(**{target: -1})
    with pytest.raises(InvalidTypeError, match=f"{target} must be an integer"):
        StopAtStepHook(**{target: 1.5})  # type: ignore[arg-type]
