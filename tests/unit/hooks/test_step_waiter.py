"""`GlobalStepWaiterHook`: what ends the waiting, and with what."""

from __future__ import annotations

import anyio
import pytest

from asyncstep import (
    AbortedError,
    DeadlineExceededError,
    Graph,
    MonitoredSession,
    Recovery,
    SessionClosedError,
    StopRequested,
    Variable,
)
from asyncstep.errors import InvalidArgumentError, InvalidTypeError
from asyncstep.hooks import GlobalStepWaiterHook
from asyncstep.testing import LosableSessionCreator

pytestmark = pytest.mark.anyio


async def step() -> None:
    """A step that does nothing."""


def waiting_session(hook: GlobalStepWaiterHook, global_step: int = 0) -> MonitoredSession:
    """A session with the hook that starts at a global step."""
    with Graph():
        Variable(global_step, name="global_step")
        return MonitoredSession(hooks=[hook])


async def test_runs_begin_when_the_step_is_reached() -> None:
    """Runs wait while others bring the global step there, and are then evaluated; later runs do not wait."""
    order: list[int] = []

    async def waited() -> None:
        order.append(session.global_step)

    session = waiting_session(GlobalStepWaiterHook(3))
    async with session, anyio.create_task_group() as tasks:
        tasks.start_soon(session.run, waited)
        tasks.start_soon(session.run, waited)
        for _ in range(3):
            await anyio.wait_all_tasks_blocked()
            order.append(-1)
            await session.run_without_hooks(step)
    assert order[:3] == [-1, -1, -1]
    assert min(order[3:]) >= 3
    assert session.global_step == 5


async def test_a_step_that_was_reached_stays_reached() -> None:
    """Runs after the one that found the step reached do not wait, whatever the global step becomes."""
    with Graph():
        back = Variable(3, name="global_step").assign(0)
        session = MonitoredSession(hooks=[GlobalStepWaiterHook(3, timeout=0.001)])
    async with session:
        await session.run(back)
        await session.run(step)
    assert session.global_step == 0


@pytest.mark.parametrize(("wait_until", "start"), [(0, 0), (5, 5), (5, 9)])
async def test_what_is_reached_is_not_waited_for(wait_until: int, start: int) -> None:
    """A session that starts at the step or past it runs at once."""
    async with waiting_session(GlobalStepWaiterHook(wait_until), start) as session:
        await session.run(step)
    assert session.global_step == start + 1


async def test_a_timeout_is_an_error_of_the_run() -> None:
    """When the time is over the run raises DeadlineExceededError, telling where the global step is."""
    evaluated: list[str] = []

    async def count() -> None:
        evaluated.append("run")

    with pytest.raises(DeadlineExceededError, match="global step 9; it is at 4"):
        async with waiting_session(GlobalStepWaiterHook(9, timeout=0.001), 4) as session:
            await session.run(count)
    assert evaluated == []


async def test_a_stop_ends_the_waiting() -> None:
    """A run that waits when the session stops raises StopRequested and is not evaluated."""
    outcome: list[str] = []

    async def count() -> None:
        outcome.append("evaluated")

    async def wait() -> None:
        try:
            await session.run(count)
        except StopRequested:
            outcome.append("stopped")

    session = waiting_session(GlobalStepWaiterHook(9))
    async with session, anyio.create_task_group() as tasks:
        tasks.start_soon(wait)
        await anyio.wait_all_tasks_blocked()
        session.request_stop()
    assert (outcome, session.global_step) == (["stopped"], 0)


async def test_closing_ends_the_waiting() -> None:
    """A run that waits when the session is closed raises SessionClosedError; closing does not wait for it."""
    outcome: list[str] = []

    async def wait() -> None:
        try:
            await session.run(step)
        except SessionClosedError:
            outcome.append("closed")

    with Graph():
        session = MonitoredSession(hooks=[GlobalStepWaiterHook(9)], stop_grace_period=0.02)
    async with anyio.create_task_group() as tasks, session:
        tasks.start_soon(wait)
        await anyio.wait_all_tasks_blocked()
        await session.aclose()
    assert outcome == ["closed"]


async def test_cancellation_ends_the_waiting() -> None:
    """A run that waits can be cancelled, and the session goes on."""
    async with waiting_session(GlobalStepWaiterHook(9)) as session:
        with anyio.move_on_after(0.001) as scope:
            await session.run(step)
        await session.run_without_hooks(step)
    assert (scope.cancelled_caught, session.global_step) == (True, 1)


async def test_the_waiting_survives_a_recovery() -> None:
    """A run that waits when the session recovers waits on in the new incarnation."""

    starts = iter([0, 5])  # of the first session, and of the one after the recovery
    with Graph() as graph:
        Variable(lambda: next(starts), name="global_step")
    failures = iter([AbortedError("once")])

    async def fails_once() -> None:
        for failure in failures:
            raise failure

    recovery = Recovery(restore="always", wait_initial=0.001)
    session = MonitoredSession(LosableSessionCreator(graph), [GlobalStepWaiterHook(5)], recovery=recovery)
    async with session, anyio.create_task_group() as tasks:
        tasks.start_soon(session.run, step)
        await anyio.wait_all_tasks_blocked()
        await session.run_without_hooks(fails_once)
    assert (session.global_step, session.recoveries) == (7, 1)


def test_the_step_and_the_timeout_are_checked() -> None:
    """A negative step and a timeout that is not positive are ValueErrors, what is no number a TypeError."""
    with pytest.raises(InvalidArgumentError, match="wait_until_step must be at least 0, got -1"):
        GlobalStepWaiterHook(-1)
    with pytest.raises(InvalidArgumentError, match="timeout must be more than 0 seconds, got 0"):
        GlobalStepWaiterHook(1, timeout=0)
    with pytest.raises(InvalidTypeError, match="wait_until_step must be an integer"):
        GlobalStepWaiterHook("5")  # type: ignore[arg-type]
