"""`EarlyStoppingHook`: how patience is counted, and which metric it is counted for."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, strategies as st

from asyncstep import (
    AbortedError,
    Graph,
    MonitoredSession,
    Recovery,
    StepContext,
    StopKind,
    StopReason,
    op,
)
from asyncstep.errors import InvalidArgumentError, InvalidTypeError, NotFoundError
from asyncstep.hooks import EarlyStoppingHook, EvaluatorHook
from asyncstep.hooks.early_stopping import Trend
from asyncstep.testing import LosableSessionCreator

NAN, INF = math.nan, math.inf


def trends(
    values: list[float], *, min_delta: float = 0.0, mode: str = "min", smoothing: float = 0.0
) -> list[Trend]:
    """The trend after each of the values."""
    found = [Trend()]
    for value in values:
        found.append(found[-1].after(value, min_delta=min_delta, mode=mode, smoothing=smoothing))
    return found[1:]


@pytest.mark.parametrize(
    ("values", "options", "waited"),
    [
        ([3, 2, 2, 1, 1.5], {}, [0, 0, 1, 0, 1]),
        ([3, 2, 2, 4, 3.5], {"mode": "max"}, [0, 1, 2, 0, 1]),
        ([3, 2.9, 2.5, 2.1], {"min_delta": 0.5}, [0, 1, 2, 0]),
        ([3, 3.1, 3.5, 3.9], {"min_delta": 0.5, "mode": "max"}, [0, 1, 2, 0]),
        ([1, NAN, 0.5, NAN], {}, [0, 1, 0, 1]),
        ([NAN, 1, 2], {}, [1, 0, 1]),
        ([INF, INF, 1, INF], {}, [0, 1, 0, 1]),
        ([4, 0, 2.5, 1], {"smoothing": 0.5}, [0, 0, 1, 0]),
        ([INF, 4, NAN, 2], {"smoothing": 0.5}, [0, 0, 1, 0]),
    ],
)
def test_what_counts_as_better(values: list[float], options: dict[str, Any], waited: list[int]) -> None:
    """A value is better if it beats the best by more than delta, in the mode's direction; NaN never does."""
    assert [trend.waited for trend in trends(values, **options)] == waited


def test_the_average_is_compared() -> None:
    """With smoothing 0.5 each value weighs as much as all those before it; NaN is left out."""
    assert [trend.smoothed for trend in trends([4, 0, NAN, 3], smoothing=0.5)] == [4, 2, 2, 2.5]
    assert trends([4, 0, NAN, 3], smoothing=0.5)[-1].best == 2


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1))
def test_the_best_is_the_least_and_waiting_counts_from_it(values: list[float]) -> None:
    """Without min_delta and smoothing, best is the minimum, and waited the distance to its first place."""
    last = trends(values)[-1]
    assert last.best == min(values)
    assert last.waited == len(values) - 1 - values.index(min(values))


@given(st.lists(st.floats(-1e6, 1e6), min_size=1), st.floats(0, 10), st.floats(0, 0.99))
def test_the_modes_mirror_each_other(values: list[float], min_delta: float, smoothing: float) -> None:
    """mode="max" waits for values exactly when mode="min" waits for their negatives."""
    up = trends(values, min_delta=min_delta, mode="max", smoothing=smoothing)
    down = trends([-value for value in values], min_delta=min_delta, mode="min", smoothing=smoothing)
    assert [trend.waited for trend in up] == [trend.waited for trend in down]


def following(values: list[Any], *hooks: Any) -> MonitoredSession:
    """A session with a node ``loss`` that gives one value after the other."""
    given_values = iter(values)
    with Graph():

        @op
        async def loss() -> Any:
            return next(given_values)

        loss()
        return MonitoredSession(hooks=hooks)


async def steps_until_stop(session: MonitoredSession, most: int = 100) -> int:
    """How many steps the usual loop runs before the session stops."""

    async def step() -> None:
        pass

    steps = 0
    async with session:
        while not session.should_stop() and steps < most:
            await session.run(step)
            steps += 1
    return steps


@pytest.mark.anyio
async def test_a_fetch_is_watched_in_every_step() -> None:
    """With a node's name as metric the session stops with the step that ends the patience, and says why."""
    session = following([3, 2, 2.5, 2.2, 1], EarlyStoppingHook("loss", patience=2))
    assert await steps_until_stop(session) == 4
    assert session.global_step == 4
    assert session.stop_reason == StopReason(
        StopKind.HOOK, "loss has not been better than 2.0 for 2 evaluations", "EarlyStoppingHook"
    )


@pytest.mark.anyio
@pytest.mark.parametrize("early_first", [True, False])
async def test_an_evaluation_is_watched(early_first: bool) -> None:
    """With an evaluation's tag as metric each evaluation counts, wherever its hook stands in the list."""
    hooks: list[Any] = [
        EvaluatorHook({"loss": "loss"}, every_n_steps=10),
        EarlyStoppingHook("eval/loss", patience=2),
    ]
    session = following([3, 2, 2, 2], *(reversed(hooks) if early_first else hooks))
    assert await steps_until_stop(session) == 31
    assert session.stop_reason == StopReason(
        StopKind.HOOK, "eval/loss has not been better than 2.0 for 2 evaluations", "EarlyStoppingHook"
    )


@pytest.mark.anyio
async def test_other_evaluations_do_not_count() -> None:
    """Of several evaluations the one of the longest name that fits the tag is watched."""

    async def useless() -> int:
        return 0

    session = following(
        [3, 2, 1, 1, 1],
        EvaluatorHook("loss", every_n_steps=1, name="test/loss"),
        EvaluatorHook({"loss": useless}, every_n_steps=1, name="test"),
        EarlyStoppingHook("test/loss", patience=2),
    )
    assert await steps_until_stop(session) == 5


@pytest.mark.anyio
async def test_a_recovery_makes_no_evaluation_count_twice() -> None:
    """After a recovery each evaluation is taken once, as before."""

    plan: list[Exception | None] = [None, AbortedError("again")]

    async def step() -> None:
        failure = plan.pop(0) if plan else None
        if failure is not None:
            raise failure

    async def worst() -> float:
        return 1.0

    hooks = [EvaluatorHook(worst, every_n_steps=1), EarlyStoppingHook("eval", patience=4)]
    session = MonitoredSession(
        LosableSessionCreator(Graph()), hooks, recovery=Recovery(restore="always", wait_initial=0.001)
    )
    async with session:
        while not session.should_stop():
            await session.run(step)
    assert (session.recoveries, session.global_step) == (1, 4)


@pytest.mark.anyio
async def test_the_evaluations_of_all_workers_count() -> None:
    """With workers, every step of each counts."""

    async def worst() -> float:
        return 1.0

    async def work(ctx: StepContext) -> None:
        await ctx.run_with_hooks(worst)

    with Graph():
        session = MonitoredSession(hooks=[EarlyStoppingHook(worst, patience=20)])
    async with session:
        await session.loop(work, workers=4)
    assert 21 <= session.global_step <= 24


@pytest.mark.anyio
async def test_a_metric_that_nothing_makes() -> None:
    """A name that is neither a node's nor an evaluation's is an error of the first run, with what is near."""
    session = following(
        [1],
        EvaluatorHook({"loss": "loss"}, every_n_steps=1, name="test"),
        EarlyStoppingHook("lost", patience=1),
    )
    with pytest.raises(NotFoundError, match="'lost'; did you mean 'loss'"):
        await steps_until_stop(session)


@pytest.mark.anyio
async def test_a_metric_that_the_evaluation_does_not_give() -> None:
    """A tag that is not in the result of its evaluation is an error, with the tags that are."""
    session = following(
        [1], EvaluatorHook({"loss": "loss"}, every_n_steps=1), EarlyStoppingHook("eval/lost", patience=1)
    )
    with pytest.raises(NotFoundError, match="gives eval/loss, but no 'eval/lost'"):
        await steps_until_stop(session)


@pytest.mark.anyio
async def test_a_metric_that_is_never_evaluated() -> None:
    """If steps ran and the evaluation was never made, the end says so."""
    early = EarlyStoppingHook("eval/loss", patience=1)
    session = following([1], EvaluatorHook({"loss": "loss"}, every_n_steps=1), early)

    async def step() -> None:
        pass

    async def without_the_evaluator() -> None:
        async with session:
            await session.run(step, hooks=[early])

    with pytest.raises(NotFoundError, match="'eval/loss' was never evaluated"):
        await without_the_evaluator()


@pytest.mark.anyio
async def test_without_steps_nothing_is_missing() -> None:
    """A session that runs no step ends cleanly, though its metric was not evaluated."""
    session = following([], EvaluatorHook("loss", every_n_steps=1), EarlyStoppingHook("eval", patience=1))
    assert await steps_until_stop(session, most=0) == 0


@pytest.mark.anyio
async def test_a_metric_is_a_number() -> None:
    """A value that is no number is a TypeError of the run."""
    with pytest.raises(InvalidTypeError, match="loss must be a number, got a list"):
        await steps_until_stop(following([[1.0]], EarlyStoppingHook("loss", patience=1)))


@pytest.mark.anyio
async def test_the_state_survives() -> None:
    """A hook that is given another's state goes on from there; one that was out of patience stops at once."""
    first = EarlyStoppingHook("loss", patience=3)
    await steps_until_stop(following([1, 2, 2], first), most=3)
    state = first.state_dict()

    class Restoring(EarlyStoppingHook):
        """Is given the state when a checkpoint is restored, which is after begin."""

        async def begin(self) -> None:
            await super().begin()
            self.load_state_dict(state)

    second = Restoring("loss", patience=3)
    assert await steps_until_stop(following([3, 0], second)) == 1
    state = second.state_dict()
    assert await steps_until_stop(following([0], Restoring("loss", patience=3))) == 0
    assert state == {"best": 1.0, "waited": 3, "smoothed": 3.0}


@pytest.mark.anyio
async def test_a_hook_begins_anew_in_the_next_session() -> None:
    """One hook used for two sessions, one after the other, has its full patience in each."""
    hook = EarlyStoppingHook("loss", patience=2)
    assert [await steps_until_stop(following([value] * 9, hook)) for value in (1, 2)] == [3, 3]


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("patience", 0),
        ("min_delta", -0.1),
        ("min_delta", NAN),
        ("min_delta", INF),
        ("smoothing", 1),
        ("mode", "least"),
    ],
)
def test_arguments_out_of_range(argument: str, value: Any) -> None:
    """A number out of its range, and an unknown mode, are a ValueError that names the parameter."""
    with pytest.raises(InvalidArgumentError, match=f"{argument} must be"):
        EarlyStoppingHook("loss", **{"patience": 1, argument: value})


@pytest.mark.parametrize(("argument", "value"), [("patience", 1.5), ("min_delta", "0"), ("smoothing", True)])
def test_arguments_of_a_wrong_type(argument: str, value: Any) -> None:
    """What is no number is a TypeError that names the parameter."""
    with pytest.raises(InvalidTypeError, match=f"{argument} must be"):
        EarlyStoppingHook("loss", **{"patience": 1, argument: value})


def test_a_metric_is_needed() -> None:
    """None in place of the metric is a TypeError."""
    with pytest.raises(InvalidTypeError, match="metric must be"):
        EarlyStoppingHook(None, patience=1)
