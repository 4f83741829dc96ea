"""`EvaluatorHook`: when evaluations are made, what they see, and who hears of them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import anyio
import pytest

import asyncstep.hooks.evaluator
import asyncstep.hooks.shared
from asyncstep import (
    AbortedError,
    Graph,
    MonitoredSession,
    MonitoredTrainingSession,
    OutOfRangeError,
    Recovery,
    Session,
    SessionRunContext,
    SessionRunHook,
    StepContext,
    StopKind,
    StopReason,
    Variable,
    op,
    placeholder,
    source,
)
from asyncstep.checkpoint import Saver, list_checkpoints, read_checkpoint
from asyncstep.errors import FailedPreconditionError, InvalidArgumentError, InvalidTypeError
from asyncstep.hooks import (
    CheckpointSaverHook,
    EarlyStoppingHook,
    EvaluatorHook,
    SecondOrStepTimer,
    StopAtStepHook,
)
from asyncstep.hooks.evaluator import evaluations_of, tagged
from asyncstep.testing import LosableSessionCreator

pytestmark = pytest.mark.anyio


async def step() -> None:
    """A step that does nothing."""


class Results:
    """An `on_result` that keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[int, Any]] = []

    async def __call__(self, step: int, result: Any) -> None:
        self.told.append((step, result))


@pytest.fixture
def results() -> Results:
    """An `on_result` that keeps what it is told."""
    return Results()


async def test_every_n_steps_from_the_first(results: Results, caplog: pytest.LogCaptureFixture) -> None:
    """After the first step and each n-th from there the state is evaluated, kept, logged and told."""
    caplog.set_level(logging.INFO, logger="asyncstep")
    with Graph():
        total = Variable(0, name="total")
        add = total.assign_add(1)
        hook = EvaluatorHook({"total": total}, every_n_steps=3, on_result=results)
        session = MonitoredSession(hooks=[hook])
    async with session:
        for _ in range(5):
            await session.run(add)
    assert results.told == [(1, {"total": 1}), (4, {"total": 4})]
    assert hook.last_result == {"total": 4}
    lines = [record.getMessage() for record in caplog.records if record.module == "evaluator"]
    assert lines == ["eval, step 1: total = 1", "eval, step 4: total = 4"]


async def test_every_n_secs(results: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    """With seconds, the step after which they have passed is evaluated."""
    clock = [0.0]
    timer = partial(SecondOrStepTimer, clock=lambda: clock[0])
    monkeypatch.setattr(asyncstep.hooks.evaluator, "SecondOrStepTimer", timer)
    with Graph():
        one = Variable(1, name="one")
        session = MonitoredSession(hooks=[EvaluatorHook(one, every_n_secs=10, on_result=results)])
    async with session:
        for clock[0] in (0.0, 9.0, 10.0, 12.0):
            await session.run(step)
    assert results.told == [(1, 1), (3, 1)]


async def test_an_evaluation_is_no_step() -> None:
    """It calls no hooks and does not count as a step; what it writes is committed."""
    called: list[str] = []

    class Watching(SessionRunHook):
        """Counts runs."""

        async def before_run(self, run_context: SessionRunContext) -> None:
            called.append("before_run")

    with Graph():
        evaluations = Variable(0, name="evaluations")
        hook = EvaluatorHook(evaluations.assign_add(1), every_n_steps=1)
        session = MonitoredSession(hooks=[Watching(), hook])
    async with session:
        for _ in range(3):
            await session.run(step)
        committed = await session.run_without_hooks(evaluations)
    assert (called, committed, session.global_step) == (["before_run"] * 3, 3, 4)


async def test_feeds_and_a_function_as_fetch(results: Results) -> None:
    """The feed dict goes to the evaluation, and a coroutine function is evaluated as any fetch."""

    async def score() -> float:
        return 0.5

    with Graph():
        hook = EvaluatorHook(
            [placeholder("x"), score], every_n_steps=1, feed_dict={"x": 2}, on_result=results
        )
        session = MonitoredSession(hooks=[hook])
    async with session:
        await session.run(step)
    assert results.told == [(1, [2, 0.5])]


async def test_one_evaluation_at_a_time(results: Results) -> None:
    """While an evaluation is under way other steps go on without; the next one due after it is evaluated."""
    begun, go_on = anyio.Event(), anyio.Event()
    with Graph():

        @op
        async def slow() -> str:
            begun.set()
            await go_on.wait()
            return "done"

        session = MonitoredSession(hooks=[EvaluatorHook(slow(), every_n_steps=1, on_result=results)])
    async with session, anyio.create_task_group() as tasks:
        tasks.start_soon(session.run, step)
        await begun.wait()
        await session.run(step)
        await session.run(step)
        go_on.set()
        await anyio.wait_all_tasks_blocked()
        await session.run(step)
    assert results.told == [(1, "done"), (4, "done")]


async def test_workers_results_come_in_order(results: Results) -> None:
    """With workers the evaluated steps grow strictly."""

    async def work(ctx: StepContext) -> None:
        await ctx.run_with_hooks(anyio.lowlevel.checkpoint)
        if session.global_step >= 1_000:
            ctx.request_stop()

    with Graph():
        hook = EvaluatorHook(anyio.lowlevel.checkpoint, every_n_steps=3, on_result=results)
        session = MonitoredSession(hooks=[hook])
    async with session:
        await session.loop(work, workers=8)
    steps = [step for step, _ in results.told]
    assert len(steps) > 5
    assert all(earlier < later for earlier, later in pairwise(steps))


async def test_an_error_of_the_evaluation_is_raised_and_the_step_stays(results: Results) -> None:
    """The run raises the evaluation's error; its step is committed, and the next due one is evaluated."""
    failures = iter([ZeroDivisionError("once")])

    async def fails_once() -> str:
        for failure in failures:
            raise failure
        return "fine"

    with Graph():
        add = Variable(0, name="total").assign_add(1)
        session = MonitoredSession(hooks=[EvaluatorHook(fails_once, every_n_steps=1, on_result=results)])
    async with session:
        with pytest.raises(ZeroDivisionError):
            await session.run(add)
        await session.run(add)
    assert results.told == [(2, "fine")]


async def test_a_source_that_has_ended_is_an_error_of_the_evaluation() -> None:
    """The end of an evaluation's data is no end of the loop's: OutOfRangeError leaves the session."""
    with Graph():
        session = MonitoredSession(hooks=[EvaluatorHook(source([1], name="items"), every_n_steps=1)])

    async def two_steps() -> None:
        async with session:
            await session.run(step)
            await session.run(step)

    with pytest.raises(OutOfRangeError):
        await two_steps()
    assert session.stop_reason is not None
    assert session.stop_reason.kind is StopKind.ERROR


async def test_after_a_recovery_the_first_step_is_evaluated(results: Results) -> None:
    """Where a recovery goes back, evaluations begin again with the first step."""

    plan: list[Exception | None] = [None, None, AbortedError("again"), None]

    async def planned() -> None:
        failure = plan.pop(0)
        if failure is not None:
            raise failure

    hook = EvaluatorHook(step, every_n_steps=100, on_result=results)
    session = MonitoredSession(
        LosableSessionCreator(Graph()), [hook], recovery=Recovery(restore="always", wait_initial=0.001)
    )
    async with session:
        for _ in range(3):
            await session.run(planned)
    assert results.told == [(1, None), (1, None)]


@pytest.mark.parametrize("stop_at", [1, 2, 3, 4, 6, 7])
async def test_a_resumed_loop_is_evaluated_after_the_same_steps(
    results: Results, tmp_path: Path, stop_at: int
) -> None:
    """K4: wherever the loop was interrupted, evaluations and what waits for them go on as if it was not."""

    async def loop(last_step: int) -> tuple[int, StopReason | None]:
        with Graph():
            score = Variable(1, name="score")
            add = score.assign_add(1)
            hooks = [
                StopAtStepHook(last_step=last_step),
                EvaluatorHook({"score": score}, every_n_steps=3, on_result=results),
                EarlyStoppingHook("eval/score", patience=3),
            ]
            session = MonitoredTrainingSession(hooks=hooks, checkpoint_dir=tmp_path)
        async with session:
            while not session.should_stop():
                await session.run(add)
        return session.global_step, session.stop_reason

    await loop(stop_at)
    step, reason = await loop(100)
    assert results.told == [(1, {"score": 2}), (4, {"score": 5}), (7, {"score": 8}), (10, {"score": 11})]
    assert reason is not None
    assert (step, reason.origin) == (10, "EarlyStoppingHook")


async def test_a_hook_evaluates_anew_in_the_next_session(results: Results) -> None:
    """One hook used for two sessions, one after the other, evaluates the first step of each."""
    with Graph() as graph:
        hook = EvaluatorHook(Variable(7, name="seven"), every_n_steps=100, on_result=results)
    before = []
    for _ in range(2):
        with graph:
            session = MonitoredSession(hooks=[hook])
        async with session:
            before.append(hook.last_result)
            await session.run(step)
    assert (before, results.told) == ([None, None], [(1, 7), (1, 7)])


async def test_two_evaluators_need_two_names() -> None:
    """Two hooks of one name would have results that cannot be told apart: an error at the opening."""
    with Graph():
        hooks = [EvaluatorHook(step, every_n_steps=1), EvaluatorHook(step, every_n_steps=1)]
        session = MonitoredSession(hooks=hooks)
    with pytest.raises(InvalidArgumentError, match="name 'eval'"):
        async with session:
            pass


async def test_a_closed_session_leaves_nothing() -> None:
    """What hooks share for a session is forgotten when it is closed."""
    coords: list[Any] = []

    class Keeping(SessionRunHook):
        """Keeps the coordinator."""

        async def after_create_session(self, session: Session, coord: Any) -> None:
            coords.append(coord)

    with Graph():
        session = MonitoredSession(hooks=[Keeping(), EvaluatorHook(step, every_n_steps=1)])
    async with session:
        during = evaluations_of(coords[0]).names
    assert (during, asyncstep.hooks.shared._of_session) == (("eval",), {})


async def test_what_is_saved_is_evaluated(results: Results, tmp_path: Path) -> None:
    """With at_saves, what each checkpoint has in it is evaluated, and at a clean end what the last one has."""
    with Graph():
        total = Variable(0, name="total")
        add = total.assign_add(1)
        saver = CheckpointSaverHook(tmp_path, save_steps=3, saver=Saver(max_to_keep=None))
        session = MonitoredSession(hooks=[EvaluatorHook(total, at_saves=True, on_result=results), saver])
    async with session:
        for _ in range(5):
            await session.run(add)
            if saver._save is not None:
                await saver._save.settled()
    checkpoints = [read_checkpoint(each.path) for each in list_checkpoints(tmp_path)]
    assert results.told == [(1, 1), (4, 4), (5, 5)]
    assert [(each.step, each.variables["total"]) for each in checkpoints] == results.told


@pytest.mark.parametrize("evaluator_first", [True, False])
async def test_a_step_is_evaluated_once(results: Results, tmp_path: Path, evaluator_first: bool) -> None:
    """A step at which an interval is over and a checkpoint is saved is evaluated once, in any order of hooks."""
    with Graph():
        hooks: list[SessionRunHook] = [
            EvaluatorHook(step, every_n_steps=2, at_saves=True, on_result=results),
            CheckpointSaverHook(tmp_path, save_secs=1000),
        ]
        session = MonitoredSession(hooks=hooks if evaluator_first else hooks[::-1])
    async with session:
        for _ in range(3):
            await session.run(step)
    assert [at for at, _ in results.told] == [1, 3]


async def test_a_failing_evaluation_does_not_cost_the_checkpoint(tmp_path: Path) -> None:
    """The state is saved, and the evaluation's error is raised."""

    async def fails() -> None:
        raise ZeroDivisionError

    with Graph():
        hooks = [EvaluatorHook(fails, at_saves=True), CheckpointSaverHook(tmp_path, save_steps=10)]
        session = MonitoredSession(hooks=hooks)

    async def one_step() -> None:
        async with session:
            await session.run(step)
            session.request_stop()

    with pytest.raises(BaseException) as caught:
        await one_step()
    errors = caught.value.exceptions if isinstance(caught.value, ExceptionGroup) else [caught.value]
    assert {type(error) for error in errors} == {ZeroDivisionError}
    assert [found.step for found in list_checkpoints(tmp_path)] == [1]


async def test_an_error_ends_the_session_without_an_evaluation(results: Results, tmp_path: Path) -> None:
    """What is saved when a session fails is not evaluated: nothing is to delay that save."""
    with Graph():
        hooks = [
            EvaluatorHook(step, at_saves=True, on_result=results),
            CheckpointSaverHook(tmp_path, save_steps=10),
        ]
        session = MonitoredSession(hooks=hooks)

    async def fail() -> None:
        async with session:
            await session.run(step)
            await session.run(step)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    assert ([at for at, _ in results.told], list_checkpoints(tmp_path)[-1].step) == ([1], 2)


async def test_at_saves_needs_saves() -> None:
    """Without a CheckpointSaverHook, which would never come, the first run says so."""
    with Graph():
        session = MonitoredSession(hooks=[EvaluatorHook(step, at_saves=True)])
    async with session:
        with pytest.raises(FailedPreconditionError, match="add a CheckpointSaverHook"):
            await session.run(step)


async def test_on_result_is_async() -> None:
    """A plain function as on_result is found out when it is called."""

    def plain(step: int, result: Any) -> None:
        pass

    with Graph():
        session = MonitoredSession(hooks=[EvaluatorHook(step, every_n_steps=1, on_result=plain)])  # type: ignore[arg-type]
    with pytest.raises(InvalidTypeError, match="on_result must be async"):
        async with session:
            await session.run(step)


@pytest.mark.parametrize("intervals", [{}, {"every_n_steps": 0}, {"every_n_secs": -1}])
def test_an_interval_is_positive(intervals: dict[str, Any]) -> None:
    """No interval, 0 and negatives are a ValueError at construction, that names the parameter."""
    with pytest.raises(ValueError, match=r"EvaluatorHook.*every_n_s") as caught:
        EvaluatorHook(step, **intervals)
    assert isinstance(caught.value, InvalidArgumentError)


@pytest.mark.parametrize(("argument", "value"), [("name", None), ("on_result", 5)])
def test_types_are_checked(argument: str, value: Any) -> None:
    """A name that is no string, and an on_result that is no function, are a TypeError that names them."""
    wrong: Callable[[], EvaluatorHook] = partial(EvaluatorHook, step, every_n_steps=1, **{argument: value})
    with pytest.raises(InvalidTypeError, match=f"{argument} must be"):
        wrong()


def test_tags() -> None:
    """A value's tag is the evaluation's name, with the keys of the mappings that it is in."""
    nested = {"loss": 0.5, "by": {"day": 1, 2: [3]}}
    assert dict(tagged("eval", nested)) == {"eval/loss": 0.5, "eval/by/day": 1, "eval/by/2": [3]}
    assert dict(tagged("eval", 0.5)) == {"eval": 0.5}
