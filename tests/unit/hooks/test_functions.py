"""`on_step`: when a function is called, with what, and what its answer does."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import anyio
import pytest

import asyncstep.hooks.functions
from asyncstep import Graph, MonitoredSession, StepContext, StopKind, StopReason, Variable, op
from asyncstep.errors import InvalidArgumentError, InvalidTypeError
from asyncstep.hooks import SecondOrStepTimer, on_step

pytestmark = pytest.mark.anyio


async def step() -> None:
    """A step that does nothing."""


async def test_a_function_of_the_step() -> None:
    """It is called with the global step, after the first step and then every n-th."""
    steps: list[int] = []
    with Graph():
        Variable(10, name="global_step")
        session = MonitoredSession(hooks=[on_step(steps.append, every_steps=3)])
    async with session:
        for _ in range(5):
            await session.run(step)
    assert steps == [11, 14]


async def test_a_function_of_the_step_and_values() -> None:
    """With fetches it gets their values in their nesting; they are evaluated only when it is called."""
    calls: list[tuple[int, Any]] = []
    evaluated: list[int] = []
    with Graph():

        @op
        async def loss() -> float:
            evaluated.append(1)
            return 0.5

        total = Variable(7, name="total")

        def note(step: int, values: Any) -> None:
            calls.append((step, values))

        session = MonitoredSession(hooks=[on_step(note, {"loss": loss(), "all": [total]}, every_steps=4)])
    async with session:
        for _ in range(7):
            await session.run(step)
    assert calls == [(1, {"loss": 0.5, "all": [7]}), (5, {"loss": 0.5, "all": [7]})]
    assert len(evaluated) == 2


async def test_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """With seconds, the first step is told, and then the first one after they have passed."""
    clock, steps = [0.0], list[int]()
    timer = partial(SecondOrStepTimer, clock=lambda: clock[0])
    monkeypatch.setattr(asyncstep.hooks.functions, "SecondOrStepTimer", timer)
    with Graph():
        session = MonitoredSession(hooks=[on_step(steps.append, every_secs=10)])
    async with session:
        for clock[0] in (0.0, 9.0, 10.5, 12.0, 20.5):
            await session.run(step)
    assert steps == [1, 3, 5]


async def test_an_async_function_is_awaited() -> None:
    """The step waits for it."""
    steps: list[int] = []

    async def note(step: int) -> None:
        await anyio.lowlevel.checkpoint()
        steps.append(step)

    with Graph():
        session = MonitoredSession(hooks=[on_step(note, every_steps=1)])
    async with session:
        await session.run(step)
        assert steps == [1]


@pytest.mark.parametrize("fetches", [None, "global_step"])
async def test_true_stops_the_session(fetches: str | None) -> None:
    """A function that returns True, and nothing less, asks for a stop in its name."""
    answers = iter([1, "yes", None, False, True])

    def enough(step: int, values: Any = None) -> object:
        return next(answers)

    with Graph():
        session = MonitoredSession(hooks=[on_step(enough, fetches, every_steps=1)])
    async with session:
        while not session.should_stop():
            await session.run(step)
    assert session.global_step == 5
    assert session.stop_reason == StopReason(
        StopKind.HOOK, "at global step 5", "test_true_stops_the_session.<locals>.enough"
    )


async def test_an_error_of_the_function_is_raised_and_the_step_stays() -> None:
    """The run raises it after the commit (contract T7)."""

    def fail(step: int) -> None:
        raise ZeroDivisionError

    with Graph():
        add = Variable(0, name="total").assign_add(1)
        session = MonitoredSession(hooks=[on_step(fail, every_steps=10)])
    async with session:
        with pytest.raises(ZeroDivisionError):
            await session.run(add)
        assert await session.run(add) == 2


@pytest.mark.parametrize("fetches", [None, "global_step"])
async def test_many_workers_calls_come_in_order_and_one_at_a_time(fetches: str | None) -> None:
    """With eight workers an async function is called for the steps of one worker, and no call overlaps another."""
    steps: list[int] = []
    under_way: list[int] = []
    most = 0

    async def note(step: int, values: Any = None) -> None:
        nonlocal most
        under_way.append(step)
        most = max(most, len(under_way))
        for _ in range(20):
            await anyio.lowlevel.checkpoint()
        under_way.remove(step)
        steps.append(step)

    async def work(ctx: StepContext) -> None:
        await ctx.run_with_hooks(anyio.lowlevel.checkpoint)
        if session.global_step >= 200:
            ctx.request_stop()

    with Graph():
        session = MonitoredSession(hooks=[on_step(note, fetches, every_steps=5)])
    async with session:
        await session.loop(work, workers=8)
    assert steps == list(range(1, session.global_step + 1, 5))
    assert most == 1


async def test_a_step_that_is_rolled_back_is_not_told() -> None:
    """The function is called for the next step that commits."""
    steps: list[int] = []

    async def fails() -> None:
        raise ZeroDivisionError

    def note(step: int, values: Any) -> None:
        steps.append(step)

    with Graph():
        session = MonitoredSession(hooks=[on_step(note, "global_step", every_steps=100)])
    async with session:
        with pytest.raises(ZeroDivisionError):
            await session.run(fails)
        await session.run(step)
        await session.run(step)
    assert steps == [1]


@pytest.mark.parametrize("intervals", [{}, {"every_steps": 0}, {"every_secs": -1.0}])
def test_an_interval_is_positive(intervals: dict[str, Any]) -> None:
    """No interval, 0 and negatives are a ValueError at construction, that names the parameter."""
    with pytest.raises(ValueError, match=r"on_step.*every_s") as caught:
        on_step(print, **intervals)
    assert isinstance(caught.value, InvalidArgumentError)


def no_arguments() -> None:
    """A function of nothing."""


def two(step: int, values: Any) -> None:
    """A function of the step and values."""


@pytest.mark.parametrize(
    ("fn", "fetches", "message"),
    [
        (None, None, "function of .step."),
        (3, "x", "function of .step, values."),
        (no_arguments, None, "no_arguments"),
        (two, None, "values"),
        (lambda step: None, "x", "step, values"),
    ],
)
def test_a_function_that_does_not_fit_is_refused(fn: Callable[..., Any], fetches: Any, message: str) -> None:
    """What cannot be called with what it is going to be given is a TypeError at construction."""
    with pytest.raises(InvalidTypeError, match=message):
        on_step(fn, fetches, every_steps=1)
