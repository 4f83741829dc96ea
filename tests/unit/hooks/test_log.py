"""`LoggingHook`: which steps are logged, how, and what is evaluated for it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import anyio
import pytest

import asyncstep.hooks.log
from asyncstep import Graph, MonitoredSession, Node, StepContext, Variable, get_or_create_global_step, op
from asyncstep.errors import InvalidArgumentError, InvalidTypeError, NotFoundError
from asyncstep.hooks import LoggingHook, SecondOrStepTimer

pytestmark = pytest.mark.anyio


async def step() -> None:
    """A step that does nothing."""


def probe(name: str = "loss") -> tuple[Node[int], list[int]]:
    """A node whose value is the number of times that it was evaluated, and the list of its values."""
    values: list[int] = []

    @op(name=name)
    async def evaluate() -> int:
        values.append(len(values) + 1)
        return values[-1]

    return evaluate(), values


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """The lines that LoggingHook has logged so far, without the session's own."""
    caplog.set_level(logging.INFO, logger="asyncstep")

    def logged() -> list[str]:
        return [record.getMessage() for record in caplog.records if record.module == "log"]

    return logged


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time in seconds, in a list of one, that the hook's timer goes by."""
    now = [0.0]
    timer = partial(SecondOrStepTimer, clock=lambda: now[0])
    monkeypatch.setattr(asyncstep.hooks.log, "SecondOrStepTimer", timer)
    return now


async def test_every_n_steps_from_the_first(lines: Callable[[], list[str]], clock: list[float]) -> None:
    """The first step and each n-th from there is logged, with its number and the seconds since then."""
    with Graph():
        Variable(10, name="global_step")
        loss, _ = probe()
        session = MonitoredSession(hooks=[LoggingHook([loss], every_n_steps=3)])
    async with session:
        for _ in range(5):
            await session.run(step)
            clock[0] += 0.5
    assert lines() == ["step 11: loss = 1", "step 14: loss = 2 (1.500 sec)"]


async def test_the_values_are_evaluated_only_for_a_line() -> None:
    """Steps that are not logged do not evaluate the values."""
    with Graph():
        loss, evaluated = probe()
        session = MonitoredSession(hooks=[LoggingHook([loss], every_n_steps=10)])
    async with session:
        for _ in range(15):
            await session.run(step)
    assert evaluated == [1, 2]


async def test_every_n_secs(lines: Callable[[], list[str]], clock: list[float]) -> None:
    """With seconds, the first step is logged and then the first one after the time has passed."""
    with Graph():
        loss, _ = probe()
        session = MonitoredSession(hooks=[LoggingHook([loss], every_n_secs=10)])
    async with session:
        for clock[0] in (0.0, 9.0, 10.5, 12.0, 20.5):
            await session.run(step)
    assert lines() == ["step 1: loss = 1", "step 3: loss = 2 (10.500 sec)", "step 5: loss = 3 (10.000 sec)"]


async def test_either_interval_logs(lines: Callable[[], list[str]], clock: list[float]) -> None:
    """With steps and seconds, a line comes when either is over."""
    with Graph():
        loss, _ = probe()
        session = MonitoredSession(hooks=[LoggingHook([loss], every_n_steps=3, every_n_secs=10)])
    async with session:
        for clock[0] in (0.0, 11.0, 12.0, 13.0, 14.0):
            await session.run(step)
    assert [line.split(":")[0] for line in lines()] == ["step 1", "step 2", "step 5"]


async def test_values_by_name_in_any_form(lines: Callable[[], list[str]]) -> None:
    """A mapping names its fetches, of any nesting; in a sequence each goes by its own name, in order."""

    async def rate() -> float:
        return 0.5

    with Graph():
        loss, _ = probe()
        Variable("x", name="state")
        hooks = [
            LoggingHook({"z": loss, "both": [loss, "state"]}, every_n_steps=1),
            LoggingHook([rate, "state", loss], every_n_steps=1),
        ]
        session = MonitoredSession(hooks=hooks)
    async with session:
        await session.run(step)
    assert lines() == ["step 1: z = 1, both = [1, 'x']", "step 1: rate = 0.5, state = x, loss = 1"]


async def test_a_formatter_makes_the_line(lines: Callable[[], list[str]]) -> None:
    """The formatter gets a dict of name -> value, and what it returns is the line as it is."""

    def percent(values: dict[str, Any]) -> str:
        return f"{values['loss']} %s done"

    with Graph():
        loss, _ = probe()
        session = MonitoredSession(
            hooks=[LoggingHook([loss], every_n_steps=1, at_end=True, formatter=percent)]
        )
    async with session:
        await session.run(step)
    assert lines() == ["1 %s done", "2 %s done"]


async def test_at_end_logs_the_last_values(lines: Callable[[], list[str]]) -> None:
    """With at_end the values are read once more after the last step, with or without an interval."""
    with Graph():
        total = Variable(0, name="total")
        add = total.assign_add(1)
        session = MonitoredSession(hooks=[LoggingHook({"total": total}, at_end=True)])
    async with session:
        for _ in range(3):
            await session.run(add)
    assert lines() == ["end, step 3: total = 3"]


async def test_without_a_clean_end_there_is_no_last_line(lines: Callable[[], list[str]]) -> None:
    """A session that ends with an error does not log its end."""
    with Graph():
        total = Variable(0, name="total")
        session = MonitoredSession(hooks=[LoggingHook({"total": total}, at_end=True)])
    with pytest.raises(ZeroDivisionError):
        async with session:
            raise ZeroDivisionError
    assert lines() == []


async def test_a_step_that_is_rolled_back_is_not_logged(lines: Callable[[], list[str]]) -> None:
    """The line that a failed step would have given comes from the next step."""

    async def fails() -> None:
        raise ZeroDivisionError

    with Graph():
        loss, _ = probe()
        session = MonitoredSession(hooks=[LoggingHook([loss], every_n_steps=100)])
    async with session:
        with pytest.raises(ZeroDivisionError):
            await session.run(fails)
        await session.run(step)
        await session.run(step)
    assert len(lines()) == 1
    assert lines()[0].startswith("step 1: ")


async def test_one_run_in_flight_gives_the_line_that_is_due_by_time(
    lines: Callable[[], list[str]], clock: list[float]
) -> None:
    """While a slow run is going to log because time is up, others do not evaluate the values."""
    asked, go_on = anyio.Event(), anyio.Event()
    go_on.set()
    with Graph():

        @op
        async def slow() -> str:
            asked.set()
            await go_on.wait()
            return "done"

        value = slow()
        session = MonitoredSession(hooks=[LoggingHook({"value": value}, every_n_secs=10)])
    async with session, anyio.create_task_group() as tasks:
        await session.run(step)
        clock[0], go_on, asked = 10.0, anyio.Event(), anyio.Event()
        tasks.start_soon(session.run, step)
        await asked.wait()
        await session.run(step)
        await session.run(step)
        before = lines()
        go_on.set()
    assert before == ["step 1: value = done"]
    assert lines() == [*before, "step 4: value = done (10.000 sec)"]


async def test_a_failing_run_beside_the_logging_one_takes_nothing_from_it(
    lines: Callable[[], list[str]],
) -> None:
    """A run that fails while another is going to log leaves the line to that other."""
    asked, go_on = anyio.Event(), anyio.Event()
    with Graph():

        @op
        async def slow() -> str:
            asked.set()
            await go_on.wait()
            return "done"

        async def fails() -> None:
            raise ZeroDivisionError

        value = slow()
        session = MonitoredSession(hooks=[LoggingHook({"value": value}, every_n_steps=1)])
    async with session, anyio.create_task_group() as tasks:
        tasks.start_soon(session.run, value)
        await asked.wait()
        with pytest.raises(ZeroDivisionError):
            await session.run(fails)
        go_on.set()
    assert lines() == ["step 1: value = done"]


@pytest.mark.parametrize("workers", [1, 2, 8])
async def test_many_workers_log_the_steps_that_one_logs(lines: Callable[[], list[str]], workers: int) -> None:
    """With workers whose steps overlap, every n-th step is logged, and no other."""
    with Graph():
        number = get_or_create_global_step()
        session = MonitoredSession(hooks=[LoggingHook([number], every_n_steps=10)])

    async def work(ctx: StepContext) -> None:
        await ctx.run_with_hooks(anyio.lowlevel.checkpoint)
        if session.global_step >= 201:
            ctx.request_stop()

    async with session:
        await session.loop(work, workers=workers)
    assert [line.split(":")[0] for line in lines()] == [f"step {n}" for n in range(1, 202, 10)]


async def test_every_step_of_many_workers_is_logged_once(lines: Callable[[], list[str]]) -> None:
    """With every_n_steps=1, eight workers give one line a step, in the order of the steps."""
    with Graph():
        number = get_or_create_global_step()
        session = MonitoredSession(hooks=[LoggingHook([number], every_n_steps=1)])

    async def work(ctx: StepContext) -> None:
        await ctx.run_with_hooks(anyio.lowlevel.checkpoint)
        if session.global_step >= 100:
            ctx.request_stop()

    async with session:
        await session.loop(work, workers=8)
    steps = [int(line.removeprefix("step ").split(":")[0]) for line in lines()]
    assert steps == list(range(1, session.global_step + 1))


async def test_a_step_slower_than_all_others_moves_its_line_and_no_later_one(
    lines: Callable[[], list[str]],
) -> None:
    """Where a run that began long ago becomes the due step, the next step is logged; those due later stay."""
    go_on = anyio.Event()

    async def slow() -> None:
        await go_on.wait()

    with Graph():
        number = get_or_create_global_step()
        session = MonitoredSession(hooks=[LoggingHook([number], every_n_steps=10)])
    async with session, anyio.create_task_group() as tasks:
        await session.run(step)
        tasks.start_soon(session.run, slow)
        await anyio.wait_all_tasks_blocked()
        for _ in range(9):
            await session.run(step)
        go_on.set()
        await anyio.wait_all_tasks_blocked()
        for _ in range(15):
            await session.run(step)
    assert [line.split(":")[0] for line in lines()] == ["step 1", "step 12", "step 21"]


async def test_a_hook_logs_anew_in_the_next_session(lines: Callable[[], list[str]]) -> None:
    """One hook used for two sessions, one after the other, logs the first step of each."""
    with Graph() as graph:
        loss, _ = probe()
        hook = LoggingHook([loss], every_n_steps=100)
    for _ in range(2):
        with graph:
            session = MonitoredSession(hooks=[hook])
        async with session:
            await session.run(step)
    assert lines() == ["step 1: loss = 1", "step 1: loss = 2"]


async def test_an_unknown_name_is_an_error_of_the_run() -> None:
    """A name that no node of the graph has is found out before anything is evaluated (contract R6)."""
    with Graph():
        probe()
        session = MonitoredSession(hooks=[LoggingHook(["los"], every_n_steps=1)])
    with pytest.raises(NotFoundError, match="did you mean 'loss'"):
        async with session:
            await session.run(step)


@pytest.mark.parametrize(
    "intervals",
    [{}, {"every_n_steps": 0}, {"every_n_secs": -1}, {"every_n_steps": 0, "at_end": True}],
)
def test_an_interval_is_positive(intervals: dict[str, Any]) -> None:
    """No interval, 0 and negatives are a ValueError at construction, that names the parameter."""
    with pytest.raises(ValueError, match=r"LoggingHook.*every_n_s") as caught:
        LoggingHook(["loss"], **intervals)
    assert isinstance(caught.value, InvalidArgumentError)


@pytest.mark.parametrize("values", ["loss", {"loss"}, None, [["loss"]], [partial(step)]])
def test_values_have_names(values: Any) -> None:
    """What is neither mapping nor sequence, or holds a fetch without a name, is a TypeError."""
    with pytest.raises(InvalidTypeError, match="mapping"):
        LoggingHook(values, every_n_steps=1)


@pytest.mark.parametrize(
    ("values", "problem"), [([], "empty"), ({}, "empty"), (["loss", "loss"], "one name")]
)
def test_values_are_told_apart(values: Any, problem: str) -> None:
    """No values, and two of one name, are a ValueError."""
    with pytest.raises(InvalidArgumentError, match=problem):
        LoggingHook(values, every_n_steps=1)
