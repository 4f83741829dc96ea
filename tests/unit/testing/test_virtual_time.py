"""Virtual time: hours that pass at once, in the right order, and not while something works elsewhere."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import anyio
import anyio.to_process
import anyio.to_thread
import pytest
import trio

from asyncstep import (
    AbortedError,
    ChiefSessionCreator,
    DeadlineExceededError,
    Graph,
    InvalidArgumentError,
    MonitoredSession,
    Recovery,
    StepContext,
    Variable,
    op,
)
from asyncstep.checkpoint import list_checkpoints
from asyncstep.hooks import CheckpointSaverHook, SecondOrStepTimer
from asyncstep.testing import run_in_virtual_time, virtual_backend

both = pytest.mark.parametrize("backend", ["asyncio", "trio"])

HOUR = 3600.0


@pytest.fixture
def anyio_backend(virtual_time_backend: tuple[str, dict[str, Any]]) -> tuple[str, dict[str, Any]]:
    """All tests of this module are on virtual time."""
    return virtual_time_backend


@pytest.mark.anyio
async def test_time_begins_at_zero_and_jumps() -> None:
    """To the very end of a sleep, and no further."""
    assert anyio.current_time() == 0.0
    await anyio.sleep(HOUR)
    assert anyio.current_time() == HOUR


@pytest.mark.anyio
async def test_time_stands_still_while_something_runs() -> None:
    """Computing takes no time at all."""
    await anyio.sleep(1.0)
    time.sleep(0.01)
    await anyio.lowlevel.checkpoint()
    assert anyio.current_time() == 1.0


@pytest.mark.anyio
async def test_sleepers_wake_in_the_order_of_their_deadlines() -> None:
    """Each at its own time."""
    woken: list[tuple[str, float]] = []

    async def sleeper(name: str, seconds: float) -> None:
        await anyio.sleep(seconds)
        woken.append((name, anyio.current_time()))

    async with anyio.create_task_group() as group:
        group.start_soon(sleeper, "last", 3 * HOUR)
        group.start_soon(sleeper, "first", 0.5)
        group.start_soon(sleeper, "second", HOUR)
    assert woken == [("first", 0.5), ("second", HOUR), ("last", 3 * HOUR)]


@pytest.mark.anyio
async def test_timeouts_are_on_virtual_time() -> None:
    """One passes at once where nothing else can happen, and does not where something can."""
    with anyio.move_on_after(HOUR) as passed:
        await anyio.sleep_forever()
    with anyio.move_on_after(HOUR) as kept:
        await anyio.sleep(HOUR - 1)
    assert (passed.cancelled_caught, kept.cancelled_caught) == (True, False)
    assert anyio.current_time() == 2 * HOUR - 1


@pytest.mark.anyio
async def test_who_waits_for_ever_does_not_wind_the_clock() -> None:
    """Time goes to the next deadline, and there is none at the end of time."""

    async def wait_for_ever(scope: anyio.CancelScope) -> None:
        with scope:
            await anyio.sleep_forever()

    scope = anyio.CancelScope()
    async with anyio.create_task_group() as group:
        group.start_soon(wait_for_ever, scope)
        await anyio.sleep(HOUR)
        scope.cancel()
    assert anyio.current_time() == HOUR


@pytest.mark.anyio
async def test_a_thread_is_waited_for() -> None:
    """No time passes while a thread works: a timeout around it does not pass by itself."""
    gate = threading.Event()

    async def open_later() -> None:
        await anyio.sleep(HOUR)  # after the thread, whose work takes no time
        gate.set()

    def work() -> bool:
        return gate.wait(0.05)

    async with anyio.create_task_group() as group:
        group.start_soon(open_later)
        with anyio.fail_after(1):
            assert await anyio.to_thread.run_sync(work) is False
    assert anyio.current_time() == HOUR


@pytest.mark.anyio
async def test_a_worker_process_is_waited_for() -> None:
    """As a thread is."""
    with anyio.fail_after(1):
        assert await anyio.to_process.run_sync(abs, -7) == 7
    assert anyio.current_time() == 0.0


@pytest.mark.anyio
async def test_retries_wait_in_virtual_time() -> None:
    """V3: exponential back-off as `Recovery` says, to the second."""
    times: list[float] = []

    async def flaky() -> None:
        times.append(anyio.current_time())
        if len(times) < 5:
            raise AbortedError("again")

    recovery = Recovery(wait_initial=1.0, wait_max=5.0, jitter=0.0)
    async with MonitoredSession(ChiefSessionCreator(graph=Graph()), recovery=recovery) as session:
        await session.run(flaky)
    assert times == [0.0, 1.0, 3.0, 7.0, 12.0]


@pytest.mark.anyio
async def test_the_timeout_of_an_op_passes() -> None:
    """An op that hangs is ended by its timeout, an hour later and at once."""

    @op(timeout=HOUR)
    async def hang() -> None:
        await anyio.sleep_forever()

    with Graph() as graph:
        node = hang()
    async with MonitoredSession(ChiefSessionCreator(graph=graph)) as session:
        with pytest.raises(DeadlineExceededError):
            await session.run(node)
    assert anyio.current_time() == HOUR


@pytest.mark.anyio
async def test_hooks_that_go_by_seconds_go_by_virtual_ones(tmp_path: Path) -> None:
    """A checkpoint every ten minutes of a loop that takes an hour; the disk is waited for in real time."""
    with Graph() as graph:
        bump = Variable(0, name="count").assign_add(1)

    async def step(ctx: StepContext) -> None:
        await anyio.sleep(60)
        if await ctx.run_with_hooks(bump) == 61:
            ctx.request_stop("an hour")

    hook = CheckpointSaverHook(tmp_path, save_secs=600)
    async with MonitoredSession(ChiefSessionCreator(graph=graph), [hook]) as session:
        await session.loop(step)
    assert [found.step for found in list_checkpoints(tmp_path)] == [21, 31, 41, 51, 61]
    assert anyio.current_time() == 61 * 60


@pytest.mark.anyio
async def test_a_timer_begins_with_the_time_of_the_loop_that_it_is_used_in() -> None:
    """One that was used outside of any loop measures nothing across the two clocks."""
    timer = await anyio.to_thread.run_sync(lambda: SecondOrStepTimer(every_secs=10))
    assert timer.should_trigger_for_step(1)
    timer.update_last_triggered_step(1)
    await anyio.sleep(9)
    assert not timer.should_trigger_for_step(2)
    await anyio.sleep(1)
    assert timer.should_trigger_for_step(3)
    assert timer.update_last_triggered_step(3) == (10.0, 2)


@both
def test_a_program_runs_in_virtual_time(backend: str) -> None:
    """With its arguments; what it returns is returned. Each run begins at 0."""

    async def main(seconds: float) -> float:
        await anyio.sleep(seconds)
        return anyio.current_time()

    assert run_in_virtual_time(main, HOUR, backend=backend) == HOUR
    assert run_in_virtual_time(main, 1.0, backend=backend) == 1.0


def test_the_default_executor_of_asyncio_is_waited_for() -> None:
    """asyncio.to_thread and the end of its threads take no virtual time either."""

    async def main() -> float:
        async with asyncio.timeout(1):
            await asyncio.to_thread(time.sleep, 0.02)
        await asyncio.sleep(1e9)
        return asyncio.get_running_loop().time()

    assert run_in_virtual_time(main) == 1e9


def test_the_events_of_a_socket_are_seen() -> None:
    """What is ready goes before any jump."""

    async def main() -> float:
        loop = asyncio.get_running_loop()
        done = asyncio.Event()
        loop.call_later(HOUR, done.set)
        loop.call_soon(lambda: loop.call_soon_threadsafe(done.set))
        await done.wait()
        return loop.time()

    assert run_in_virtual_time(main) == 0.0


def test_an_error_leaves_as_it_is() -> None:
    """On asyncio and on trio."""

    async def main() -> None:
        raise KeyError("mine")

    for backend in ("asyncio", "trio"):
        with pytest.raises(KeyError, match="mine"):
            run_in_virtual_time(main, backend=backend)


@pytest.mark.parametrize("name", ["uvloop", "curio", "", None])
def test_there_is_no_virtual_time_elsewhere(name: Any) -> None:
    """The message names the two, and says why uvloop is none of them."""
    with pytest.raises(InvalidArgumentError, match="on 'asyncio' and on 'trio', not on") as caught:
        virtual_backend(name)
    assert ("uvloop keeps its own time" in str(caught.value)) == (name == "uvloop")


def test_a_clock_is_for_one_run() -> None:
    """Each call makes a new one."""
    _, first = virtual_backend("trio")
    _, second = virtual_backend("trio")
    assert first["clock"] is not second["clock"]
    trio.run(trio.sleep, HOUR, clock=first["clock"], instruments=first["instruments"])
    assert (first["clock"].current_time(), second["clock"].current_time()) == (HOUR, 0.0)


def test_neither_pytest_nor_trio_is_imported() -> None:
    """By the kit, until one is asked for."""
    code = "import sys, asyncstep.testing; assert not {'pytest', 'trio'} & set(sys.modules)"
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
