"""Section V: which steps are run again, how often, and who can see it (V2, V5, V7: test_incarnations)."""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import Any

import anyio
import pytest

from asyncstep import (
    AbortedError,
    Graph,
    Recovery,
    RunMetadata,
    SessionClosedError,
    SessionRunContext,
    SessionRunHook,
    SessionRunValues,
    SingularMonitoredSession,
    StepContext,
    StopRequested,
    UnavailableError,
    source,
)

from .counting import entire
from .recovery_parts import FOR_EVER, QUICK, QUICK_ALWAYS, Counting, Failing

pytestmark = pytest.mark.anyio


# V1: retry


@pytest.mark.parametrize(
    "error",
    [
        AbortedError("given up"),
        UnavailableError("away"),
        ExceptionGroup("", [AbortedError("1"), ExceptionGroup("", [UnavailableError("2")])]),
    ],
    ids=["aborted", "unavailable", "group"],
)
async def test_a_step_that_failed_recoverably_is_run_again(error: Exception) -> None:
    """V1: rolled back and run again from the first `before_run` on, on the same raw session."""
    made = Counting()
    failing = Failing(error)
    async with entire(made.session) as session:
        assert await session.run([made.bump, failing.as_fetch()]) == [1, 2]
        assert await made.committed() == 1
        assert session.recoveries == 0
    assert made.watcher.journal == [
        "begin",
        "after_create_session",
        "before_run 1",
        "on_run_error 1",
        "before_run 2",
        "after_run 2",
        "end",
    ]
    assert len(made.creator.created) == 1


@pytest.mark.parametrize(
    "error",
    [
        ValueError("not recoverable"),
        ExceptionGroup("", [AbortedError("1"), ExceptionGroup("", [ValueError("2")])]),
    ],
    ids=["other", "group"],
)
async def test_a_step_with_any_other_leaf_is_not_run_again(error: Exception) -> None:
    """V1: every leaf must be in `recovery.on`; else the error leaves as it is."""
    made = Counting()

    async def step(ctx: StepContext) -> None:
        raise error

    async with entire(made.session) as session:
        with pytest.raises(type(error)) as caught:
            await session.run_step_fn(step)
        assert caught.value is error
    assert not hasattr(error, "__notes__")


async def test_a_stop_beside_a_recoverable_error_is_not_run_again() -> None:
    """V1: a stop is a leaf that is not in `recovery.on`."""
    made = Counting()
    calls: list[int] = []
    error = AbortedError("given up")

    async def step(ctx: StepContext) -> None:
        calls.append(ctx.attempt)
        try:
            ctx.request_stop("enough")
        except StopRequested as stop:
            raise BaseExceptionGroup("", [stop, error]) from None

    with pytest.raises(AbortedError) as caught:
        async with made.session as session:
            await session.run_step_fn(step)
    assert caught.value is error
    assert calls == [1]


async def test_the_end_of_the_data_is_not_run_again() -> None:
    """V1, S7: it is no failure, also where `recovery.on` covers every Exception."""
    made = Counting(Recovery(on=(Exception,), wait_initial=0.0, jitter=0.0))
    with made.graph:
        items = source([], name="items")
    calls: list[int] = []

    async def step(ctx: StepContext) -> None:
        calls.append(ctx.attempt)
        await ctx.run_with_hooks(items)

    async with entire(made.session) as session:
        await session.loop(step)
    assert calls == [1]


async def test_recovery_on_names_the_errors() -> None:
    """V1: `Recovery(on=...)` replaces the default errors."""
    made = Counting(Recovery(on=(KeyError,), wait_initial=0.0, jitter=0.0))
    failing, aborting = Failing(KeyError("again")), Failing(AbortedError("given up"))
    async with entire(made.session) as session:
        assert await session.run(failing.as_fetch()) == 2
        with pytest.raises(AbortedError):
            await session.run(aborting.as_fetch())
    assert aborting.calls == 1


async def test_a_retry_has_the_same_arguments() -> None:
    """V1: a step function is called again with its arguments."""
    made = Counting()
    seen: list[tuple[int, str, int]] = []

    async def step(ctx: StepContext, text: str, number: int) -> str:
        seen.append((ctx.attempt, text, number))
        if ctx.attempt == 1:
            raise AbortedError("given up")
        return text * number

    async with entire(made.session) as session:
        assert await session.run_step_fn(step, "ab", 2) == "abab"
    assert seen == [(1, "ab", 2), (2, "ab", 2)]


async def test_a_retry_keeps_the_committed_state() -> None:
    """V1: what was committed stays, what the failed attempt wrote does not."""
    made = Counting()

    async def step(ctx: StepContext) -> None:
        await ctx.run_with_hooks(made.bump)
        await ctx.session.run(made.bump)
        if ctx.attempt == 1:
            raise AbortedError("given up")

    async with entire(made.session) as session:
        await session.run(made.bump)
        await session.run_step_fn(step)
        assert await made.committed() == 1 + 1 + 2


async def test_a_retry_does_not_disturb_other_steps_in_flight() -> None:
    """V1: while the raw session is intact, the other step commits in its first attempt."""
    made = Counting()
    started, go = anyio.Event(), anyio.Event()
    attempts: list[int] = []

    async def waiting(ctx: StepContext) -> None:
        attempts.append(ctx.attempt)
        await ctx.session.run(made.bump)
        started.set()
        await go.wait()

    async with entire(made.session) as session:
        async with anyio.create_task_group() as group:
            group.start_soon(session.run_step_fn, waiting)
            await started.wait()
            assert await session.run(Failing(AbortedError("given up")).as_fetch()) == 2
            go.set()
        assert attempts == [1]
        assert await made.committed() == 1


async def test_a_singular_session_does_not_retry() -> None:
    """V: SingularMonitoredSession raises the first error."""
    failing = Failing(AbortedError("given up"))
    async with SingularMonitoredSession(graph=Graph()) as session:
        with pytest.raises(AbortedError):
            await session.run(failing.as_fetch())
    assert failing.calls == 1


# V3: bounds


async def test_a_step_is_attempted_so_many_times() -> None:
    """V3: then the last error is raised, with a note of how many attempts there were."""
    errors = [AbortedError(f"error {attempt}") for attempt in (1, 2, 3, 4)]
    made = Counting(Recovery(max_attempts=3, wait_initial=0.0, jitter=0.0))
    failing = Failing(*errors)
    async with entire(made.session) as session:
        with pytest.raises(AbortedError) as caught:
            await session.run(failing.as_fetch())
    assert caught.value is errors[2]
    assert [note for note in errors[2].__notes__ if "3" in note and "attempt" in note]
    assert failing.calls == 3


async def test_the_bound_holds_for_recoveries_too() -> None:
    """V3: the same with a recovery before every retry."""
    made = Counting(Recovery(max_attempts=2, wait_initial=0.0, jitter=0.0, restore="always"))
    failing = Failing(*[AbortedError("given up")] * 5)
    async with entire(made.session) as session:
        with pytest.raises(AbortedError):
            await session.run(failing.as_fetch())
        assert session.recoveries == 1
    assert failing.calls == 2


async def test_every_step_has_all_its_attempts() -> None:
    """V3: the bound is a step's, not the session's."""
    made = Counting(Recovery(max_attempts=2, wait_initial=0.0, jitter=0.0))
    async with entire(made.session) as session:
        for _ in range(5):
            assert await session.run(Failing(AbortedError("given up")).as_fetch()) == 2


@pytest.mark.parametrize("restore", ["if_lost", "always"])
async def test_a_wait_ends_at_a_stop(restore: Any) -> None:
    """V3: the run that waits raises StopRequested."""
    made = Counting(Recovery(wait_initial=3600.0, wait_max=3600.0, restore=restore))
    failing = Failing(AbortedError("given up"))
    caught: list[StopRequested] = []

    async def run() -> None:
        with pytest.raises(StopRequested) as stop:
            await made.session.run(failing.as_fetch())
        caught.append(stop.value)

    async with entire(made.session) as session, anyio.create_task_group() as group:
        group.start_soon(run)
        await anyio.wait_all_tasks_blocked()
        assert failing.calls == 1
        session.request_stop("enough")
    assert [stop.session for stop in caught] == [made.session]
    assert failing.calls == 1


async def test_a_failure_after_the_stop_is_not_waited_for() -> None:
    """V3: a wait that begins after the stop ends at once."""
    made = Counting(FOR_EVER)

    async def step(ctx: StepContext) -> None:
        made.session.request_stop("enough")
        raise AbortedError("given up")

    async with entire(made.session) as session:
        with pytest.raises(StopRequested):
            await session.run_step_fn(step)


async def test_a_wait_ends_at_a_cancellation() -> None:
    """V3: the cancellation leaves the run."""
    made = Counting(FOR_EVER)
    failing = Failing(AbortedError("given up"))
    async with entire(made.session) as session:
        async with anyio.create_task_group() as group:
            group.start_soon(session.run, failing.as_fetch())
            await anyio.wait_all_tasks_blocked()
            group.cancel_scope.cancel()
        assert failing.calls == 1
        assert session.should_stop() is False


async def test_a_retry_that_outlasts_the_closing_is_not_made() -> None:
    """V3, L6: the step ends with SessionClosedError, and no raw session is made."""
    made = Counting(Recovery(wait_initial=0.2, jitter=0.0), stop_grace_period=0.02)
    failing = anyio.Event()
    errors: list[SessionClosedError] = []

    async def step(ctx: StepContext) -> None:
        await ctx.session.aclose()
        failing.set()
        raise AbortedError("given up")

    async def run() -> None:
        with pytest.raises(SessionClosedError) as caught:
            await made.session.run_step_fn(step)
        errors.append(caught.value)

    async with anyio.create_task_group() as group:
        async with made.session:
            group.start_soon(run)
            await failing.wait()
    assert len(errors) == 1
    assert made.creator.asked == 1


async def test_a_creator_that_fails_at_the_opening_is_asked_again() -> None:
    """V3: by the same rules; `begin` is called once, and no recovery is counted."""
    made = Counting()
    made.creator.failures = [UnavailableError("1"), AbortedError("2")]
    async with entire(made.session) as session:
        assert await session.run(made.bump) == 1
        assert session.recoveries == 0
    assert made.creator.asked == 3
    assert made.watcher.journal[:3] == ["begin", "after_create_session", "before_run 1"]


async def test_the_opening_is_bounded_too() -> None:
    """V3: the last error of the creator, with a note of how many attempts; the hooks hear of it (L3)."""
    errors = [UnavailableError(f"error {attempt}") for attempt in (1, 2, 3)]
    made = Counting(Recovery(max_attempts=2, wait_initial=0.0, jitter=0.0))
    made.creator.failures = list[Exception](errors)
    with pytest.raises(UnavailableError) as caught:
        async with made.session:
            pass
    assert caught.value is errors[1]
    assert [note for note in errors[1].__notes__ if "2" in note and "attempt" in note]
    assert made.creator.asked == 2
    assert made.watcher.journal == ["begin", "on_session_error"]


async def test_an_opening_with_any_other_error_is_not_tried_again() -> None:
    """V3: the same rules - only what is in `recovery.on` is."""
    made = Counting()
    made.creator.failures = [ValueError("no such place")]
    with pytest.raises(ValueError, match="no such place"):
        async with made.session:
            pass
    assert made.creator.asked == 1


async def test_the_wait_at_the_opening_ends_at_a_cancellation() -> None:
    """V3: and what was opened is closed (L3)."""
    made = Counting(FOR_EVER)
    made.creator.failures = [UnavailableError("not yet")]

    async def body() -> None:
        async with made.session:
            pass

    async with anyio.create_task_group() as group:
        group.start_soon(body)
        await anyio.wait_all_tasks_blocked()
        group.cancel_scope.cancel()
    assert made.creator.asked == 1
    assert made.watcher.journal == ["begin", "on_session_error"]


# V4: visible


async def test_each_failed_attempt_is_logged_at_warning(caplog: pytest.LogCaptureFixture) -> None:
    """V4: with the error and the attempt."""
    made = Counting()
    async with made.session as session:
        await session.run(Failing(AbortedError("first trouble"), UnavailableError("more")).as_fetch())
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    lines = [record.getMessage() for record in warnings]
    assert len(lines) == 2
    assert "first trouble" in lines[0]
    assert "1" in lines[0]
    assert "more" in lines[1]
    assert "2" in lines[1]
    assert all(record.name.startswith("asyncstep") for record in warnings)


async def test_a_retry_at_the_opening_is_logged_at_warning(caplog: pytest.LogCaptureFixture) -> None:
    """V4, E3: an error of the creator that was retried is not silent."""
    made = Counting()
    made.creator.failures = [UnavailableError("not yet")]
    async with made.session:
        pass
    lines = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert [line for line in lines if "not yet" in line]


async def test_the_attempt_can_be_read_everywhere() -> None:
    """V4: `run_metadata`, `run_context` and `ctx` count the attempts of the step."""
    made = Counting()
    metadata = RunMetadata()
    seen: list[int] = []

    async def step(ctx: StepContext) -> None:
        seen.append(ctx.attempt)
        await ctx.run_with_hooks(made.bump)
        if ctx.attempt < 3:
            raise AbortedError("given up")

    async with entire(made.session) as session:
        await session.run(Failing(AbortedError("given up")).as_fetch(), run_metadata=metadata)
        assert metadata.attempt == 2
        await session.run(made.bump, run_metadata=metadata)
        assert metadata.attempt == 1
        made.watcher.journal.clear()
        await session.run_step_fn(step)
    assert seen == [1, 2, 3]
    assert [call for call in made.watcher.journal if call.startswith("before_run")] == [
        "before_run 1",
        "before_run 2",
        "before_run 3",
    ]


# V6: where the error came from


class FailingOnce(SessionRunHook):
    """Fails at one point of the first attempt."""

    def __init__(self, point: str) -> None:
        self.point = point

    def _fail_at(self, point: str, run_context: SessionRunContext) -> None:
        if point == self.point and run_context.attempt == 1:
            raise AbortedError(f"in {point}")

    async def before_run(self, run_context: SessionRunContext) -> None:
        self._fail_at("before_run", run_context)

    async def before_commit(self, run_context: SessionRunContext, run_values: SessionRunValues) -> None:
        self._fail_at("before_commit", run_context)

    async def after_run(self, run_context: SessionRunContext, run_values: SessionRunValues) -> None:
        self._fail_at("after_run", run_context)


@pytest.mark.parametrize("point", ["before_run", "before_commit"])
async def test_an_error_of_a_hook_before_the_commit_is_retried(point: str) -> None:
    """V6: as one from the evaluation or the step function is (see V1)."""
    made = Counting(QUICK, FailingOnce(point))
    async with entire(made.session) as session:
        assert await session.run(made.bump) == 1
        assert session.global_step == 1
    assert made.watcher.journal[2:5] == ["before_run 1", "on_run_error 1", "before_run 2"]


@pytest.mark.parametrize("point", ["before_run", "before_commit"])
async def test_an_error_of_a_hook_inside_a_step_function_runs_it_again(point: str) -> None:
    """V6: the step is the call of the step function."""
    made = Counting(QUICK, FailingOnce(point))
    attempts: list[int] = []

    async def step(ctx: StepContext) -> int:
        attempts.append(ctx.attempt)
        return await ctx.run_with_hooks(made.bump)

    async with entire(made.session) as session:
        assert await session.run_step_fn(step) == 1
    assert attempts == [1, 2]


async def test_an_error_of_after_run_is_raised_and_not_retried() -> None:
    """V6, T7: the raw session is intact: the step is done, and its error is raised."""
    made = Counting(QUICK, FailingOnce("after_run"))
    async with entire(made.session) as session:
        with pytest.raises(AbortedError, match="in after_run"):
            await session.run(made.bump)
        assert session.global_step == 1
        assert session.recoveries == 0
        assert await made.committed() == 1
    assert made.watcher.journal.count("before_run 1") == 1


async def test_an_error_of_after_run_inside_a_step_function_does_not_run_it_again() -> None:
    """V6, T7: what the run inside it committed counts, and the error leaves the step function."""
    made = Counting(QUICK, FailingOnce("after_run"))
    attempts: list[int] = []

    async def step(ctx: StepContext) -> None:
        attempts.append(ctx.attempt)
        await ctx.run_with_hooks(made.bump)

    async with entire(made.session) as session:
        with pytest.raises(AbortedError, match="in after_run"):
            await session.run_step_fn(step)
        assert attempts == [1]
        assert await made.committed() == 1


async def test_a_new_error_after_a_swallowed_one_of_after_run_is_retried() -> None:
    """V6, V1: it is the step function's own."""
    made = Counting(QUICK, FailingOnce("after_run"))
    attempts: list[int] = []

    async def step(ctx: StepContext) -> None:
        attempts.append(ctx.attempt)
        with suppress(AbortedError):
            await ctx.run_with_hooks(made.bump)
        if ctx.attempt == 1:
            raise AbortedError("its own")

    async with entire(made.session) as session:
        await session.run_step_fn(step)
    assert attempts == [1, 2]


async def test_a_background_error_met_by_a_step_is_not_retried() -> None:
    """V6, E4: it is no error of the step; it is raised, and not lost in the stop."""
    made = Counting()
    error = UnavailableError("in the background")

    async def step(ctx: StepContext) -> None:
        made.watcher.coord.request_stop(error)
        await ctx.run_with_hooks(made.bump)

    with pytest.raises(UnavailableError) as caught:
        async with made.session as session:
            await session.run_step_fn(step)
    assert caught.value is error


async def test_a_background_error_met_by_a_run_inside_a_run_is_not_retried() -> None:
    """V6, E4: here a run of an op's own met it; the run around it is not repeated for it either."""
    made = Counting()
    error = UnavailableError("in the background")
    calls: list[int] = []

    async def fetch() -> None:
        calls.append(1)
        made.watcher.coord.request_stop(error)
        await made.session.run(made.bump)

    with pytest.raises(UnavailableError) as caught:
        async with made.session as session:
            await session.run(fetch)
    assert caught.value is error
    assert calls == [1]


class LosingAfterRun(SessionRunHook):
    """Loses the raw session after the first step."""

    def __init__(self, lost: bool = True) -> None:
        self.lost = lost
        self.done = False

    async def after_run(self, run_context: SessionRunContext, run_values: SessionRunValues) -> None:
        if self.done:
            return
        self.done = True
        if self.lost:
            await run_context.session.aclose()
        raise AbortedError("after the step")


async def test_a_loss_in_after_run_is_recovered_and_the_result_is_returned() -> None:
    """V6: the step is done; the recovery is made, and the step is not run again."""
    made = Counting(QUICK, LosingAfterRun())
    evaluations = Failing()
    async with entire(made.session) as session:
        assert await session.run(evaluations.as_fetch()) == 1
        assert session.recoveries == 1
        assert evaluations.calls == 1
        assert await session.run(evaluations.as_fetch()) == 2
    assert len(made.creator.created) == 2


async def test_an_error_of_after_run_on_an_intact_session_is_raised_with_restore_always_too() -> None:
    """V6: "while the raw session is intact it is raised", and no retry needs a recovery before it."""
    made = Counting(QUICK_ALWAYS, LosingAfterRun(lost=False))
    async with entire(made.session) as session:
        with pytest.raises(AbortedError, match="after the step"):
            await session.run(made.bump)
        assert session.recoveries == 0
        assert await made.committed() == 1
