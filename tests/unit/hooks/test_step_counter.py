"""`StepCounterHook`: the rate of the global step, in the log and at a writer."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import anyio
import pytest

import asyncstep.hooks.step_counter
from asyncstep import (
    AbortedError,
    Graph,
    MonitoredSession,
    Recovery,
    SessionRunContext,
    SessionRunHook,
    SessionRunValues,
    StepContext,
    Variable,
)
from asyncstep.errors import InvalidArgumentError, InvalidTypeError
from asyncstep.hooks import SecondOrStepTimer, StepCounterHook
from asyncstep.testing import LosableSessionCreator

pytestmark = pytest.mark.anyio


class Writer:
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.scalars: list[tuple[str, float, int]] = []

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        self.scalars.append((tag, scalar_value, global_step))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time in seconds, in a list of one, that the hook's timer goes by."""
    now = [0.0]
    timer = partial(SecondOrStepTimer, clock=lambda: now[0])
    monkeypatch.setattr(asyncstep.hooks.step_counter, "SecondOrStepTimer", timer)
    return now


@pytest.fixture
def writer() -> Writer:
    """A writer that keeps what it is given."""
    return Writer()


async def run_steps(session: MonitoredSession, steps: int, tick: Callable[[], None]) -> None:
    """Run steps that each take what `tick` lets pass."""

    async def step() -> None:
        tick()

    for _ in range(steps):
        await session.run(step)


async def test_the_rate_every_n_steps(
    clock: list[float], writer: Writer, caplog: pytest.LogCaptureFixture
) -> None:
    """The first step starts the clock; from there each n-th logs and writes the global steps per second."""
    caplog.set_level(logging.INFO, logger="asyncstep")

    def quarter() -> None:
        clock[0] += 0.25

    with Graph():
        Variable(10, name="global_step")
        session = MonitoredSession(hooks=[StepCounterHook(every_n_steps=4, writer=writer)])
    async with session:
        await run_steps(session, 10, quarter)
    assert writer.scalars == [("global_step/sec", 4.0, 15), ("global_step/sec", 4.0, 19)]
    lines = [record.getMessage() for record in caplog.records if record.module == "step_counter"]
    assert lines == ["global_step/sec: 4", "global_step/sec: 4"]


async def test_the_log_is_enough(clock: list[float], caplog: pytest.LogCaptureFixture) -> None:
    """Without a writer the rate is logged."""
    caplog.set_level(logging.INFO, logger="asyncstep")

    def fifth() -> None:
        clock[0] += 0.2

    with Graph():
        session = MonitoredSession(hooks=[StepCounterHook()])
    async with session:
        await run_steps(session, 101, fifth)
    assert [record.getMessage() for record in caplog.records] == ["global_step/sec: 5"]


async def test_the_rate_every_n_secs(clock: list[float], writer: Writer) -> None:
    """With seconds alone, the rate is told by the first step after they have passed."""

    def second() -> None:
        clock[0] += 1.0

    with Graph():
        session = MonitoredSession(
            hooks=[StepCounterHook(every_n_steps=None, every_n_secs=2.5, writer=writer)]
        )
    async with session:
        await run_steps(session, 8, second)
    assert writer.scalars == [("global_step/sec", 1.0, 4), ("global_step/sec", 1.0, 7)]


async def test_steps_of_others_count(clock: list[float], writer: Writer) -> None:
    """The rate is that of the global step: steps that ran without this hook are in it."""

    def second() -> None:
        clock[0] += 1.0

    async def step() -> None:
        second()

    with Graph():
        session = MonitoredSession(hooks=[StepCounterHook(every_n_steps=2, writer=writer)])
    async with session:
        await session.run(step)
        for _ in range(4):
            await session.run_without_hooks(step)
        await session.run(step)
    assert writer.scalars == [("global_step/sec", 1.0, 6)]


async def test_a_clock_that_stands_still_gives_a_number(clock: list[float], writer: Writer) -> None:
    """Steps that take no time on the clock have a finite rate."""
    with Graph():
        session = MonitoredSession(hooks=[StepCounterHook(every_n_steps=1, writer=writer)])
    async with session:
        await run_steps(session, 2, lambda: None)
    [(_, rate, step)] = writer.scalars
    assert (1.0 < rate < float("inf"), step) == (True, 2)


async def test_many_workers_steps_are_told_as_one_workers_are(writer: Writer) -> None:
    """With workers the rate is told at the first step and every n-th after it, once each."""

    async def work(ctx: StepContext) -> None:
        await ctx.run_with_hooks(anyio.lowlevel.checkpoint)
        if session.global_step >= 100:
            ctx.request_stop()

    with Graph():
        session = MonitoredSession(hooks=[StepCounterHook(every_n_steps=3, writer=writer)])
    async with session:
        await session.loop(work, workers=8)
    assert [step for _, _, step in writer.scalars] == list(range(4, session.global_step + 1, 3))


async def test_a_step_that_is_told_late_is_not_told_again(clock: list[float], writer: Writer) -> None:
    """A step whose after_run comes after that of a later step gives no line: it is counted already."""
    later_is_told = anyio.Event()

    class Late(SessionRunHook):
        """Holds back what comes after it for the second step, until the third has been told."""

        async def after_run(self, run_context: SessionRunContext, run_values: SessionRunValues) -> None:
            if run_values.global_step == 2:
                await later_is_told.wait()

    async def step() -> None:
        clock[0] += 1.0

    with Graph():
        session = MonitoredSession(hooks=[Late(), StepCounterHook(every_n_steps=1, writer=writer)])
    async with session, anyio.create_task_group() as tasks:
        await session.run(step)
        tasks.start_soon(session.run, step)
        await anyio.wait_all_tasks_blocked()
        await session.run(step)
        later_is_told.set()
    assert writer.scalars == [("global_step/sec", 1.0, 3)]


async def test_a_recovery_starts_the_clock_anew(clock: list[float], writer: Writer) -> None:
    """Steps that a recovery makes run again are not progress: measuring starts anew."""

    plan: list[BaseException | None] = [None, None, AbortedError("again"), None, None, None]

    async def step() -> None:
        clock[0] += 1.0
        failure = plan.pop(0)
        if failure is not None:
            raise failure

    recovery = Recovery(restore="always", wait_initial=0.001)
    session = MonitoredSession(
        LosableSessionCreator(Graph()), [StepCounterHook(every_n_steps=2, writer=writer)], recovery=recovery
    )
    async with session:
        for _ in range(5):
            await session.run(step)
    assert writer.scalars == [("global_step/sec", 1.0, 3)]


@pytest.mark.parametrize(
    "intervals",
    [{"every_n_steps": None}, {"every_n_steps": 0}, {"every_n_steps": None, "every_n_secs": -1.0}],
)
def test_an_interval_is_positive(intervals: dict[str, Any]) -> None:
    """No interval, 0 and negatives are a ValueError at construction, that names the parameter."""
    with pytest.raises(ValueError, match=r"StepCounterHook.*every_n_s") as caught:
        StepCounterHook(**intervals)
    assert isinstance(caught.value, InvalidArgumentError)


async def test_a_writer_is_flushed_at_the_end_if_it_can_be() -> None:
    """A method `flush` is called in the end; a writer needs none."""
    flushed: list[str] = []

    class Flushed(Writer):
        def flush(self) -> None:
            flushed.append("flush")

    for writer in (Flushed(), Writer()):
        with Graph():
            session = MonitoredSession(hooks=[StepCounterHook(writer=writer)])
        async with session:
            await run_steps(session, 1, lambda: None)
    assert flushed == ["flush"]


def test_one_place_at_most() -> None:
    """Both output_dir and writer are a ValueError."""
    with pytest.raises(InvalidArgumentError, match="exactly one of output_dir and writer"):
        StepCounterHook(output_dir="logs", writer=Writer())


def test_a_writer_takes_scalars() -> None:
    """Something without add_scalar is a TypeError."""
    with pytest.raises(InvalidTypeError, match="writer must have add_scalar"):
        StepCounterHook(writer="logs")  # type: ignore[arg-type]
