"""Section V, rules 2, 5 and 7: the raw session is lost and made again, once, under steps in flight."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any

import anyio
import pytest

from asyncstep import (
    AbortedError,
    ChiefSessionCreator,
    FailedPreconditionError,
    MonitoredSession,
    Recovery,
    Session,
    SessionClosedError,
    SessionRunContext,
    SessionRunHook,
    StepContext,
    StopRequested,
    UnavailableError,
    source,
)

from .counting import entire
from .recovery_parts import QUICK, QUICK_ALWAYS, Counting, Failing, give_up_once

pytestmark = pytest.mark.anyio


# V2: recovery


async def test_a_lost_raw_session_is_made_again() -> None:
    """V2: closed, created again, `after_create_session` again, `begin` not; then the retry."""
    made = Counting()

    async def losing(ctx: StepContext) -> str:
        if ctx.attempt == 1:
            raise made.lose()
        return "done"

    async with entire(made.session) as session:
        assert await session.run_step_fn(losing) == "done"
        assert session.recoveries == 1
        first, second = made.creator.created
        assert [call.session for call in made.watcher.calls_of("after_create_session")] == [first, second]
        assert (first.intact, second.intact) == (False, True)
    assert made.watcher.journal == ["begin", "after_create_session", "after_create_session", "end"]
    assert [call.session for call in made.watcher.calls_of("end")] == [second]


async def test_restore_always_recovers_an_intact_session() -> None:
    """V2: with `restore="always"` a recovery comes before every retry; the old raw session is closed."""
    made = Counting(QUICK_ALWAYS)
    async with entire(made.session) as session:
        assert await session.run(made.bump) == 1
        assert await session.run(Failing(AbortedError("1"), UnavailableError("2")).as_fetch()) == 3
        assert session.recoveries == 2
        assert [raw.intact for raw in made.creator.created] == [False, False, True]
        assert await made.committed() == 0


async def eight_steps(made: Counting, failing: Callable[[StepContext], Awaitable[None]]) -> list[Session]:
    """Eight steps in flight that all fail in their first attempt; the raw sessions of their second."""
    ready, all_ready, sessions = [0], anyio.Event(), list[Session]()

    async def step(ctx: StepContext) -> None:
        if ctx.attempt == 1:
            ready[0] += 1
            if ready[0] == 8:
                all_ready.set()
            await all_ready.wait()
            await failing(ctx)
        sessions.append(ctx.session)
        await ctx.session.run(made.bump)

    async with anyio.create_task_group() as group:
        for _ in range(8):
            group.start_soon(made.session.run_step_fn, step)
    return sessions


async def test_eight_failures_with_restore_always_are_one_recovery() -> None:
    """V2, V7: however many steps failed, one recovery; every retried step sees the new raw session."""
    made = Counting(QUICK_ALWAYS)

    async def failing(ctx: StepContext) -> None:
        raise AbortedError("given up")

    async with entire(made.session) as session:
        sessions = await eight_steps(made, failing)
        assert session.recoveries == 1
        assert sessions == [made.creator.created[1]] * 8
        assert await made.committed() == 8


async def test_eight_losses_of_the_raw_session_are_one_recovery() -> None:
    """V2, V7: the same where the raw session is lost under eight steps in flight."""
    made = Counting()

    async def losing(ctx: StepContext) -> None:
        raise made.lose()

    async with entire(made.session) as session:
        sessions = await eight_steps(made, losing)
        assert session.recoveries == 1
        assert len(made.creator.created) == 2
        assert sessions == [made.creator.created[1]] * 8
        assert await made.committed() == 8


async def in_flight_while_recovering(
    made: Counting, step: Callable[[StepContext, anyio.Event], Awaitable[Any]]
) -> Any:
    """What a step returns that is in flight, blocked, while another step makes the session recover."""
    recovered = anyio.Event()
    results: list[Any] = []

    async def run() -> None:
        results.append(await made.session.run_step_fn(step, recovered))

    async with anyio.create_task_group() as group:
        group.start_soon(run)
        await anyio.wait_all_tasks_blocked()
        await made.session.run(Failing(AbortedError("given up")).as_fetch())
        assert made.session.recoveries == 1
        recovered.set()
    return results[0]


async def test_a_step_of_the_old_incarnation_is_rolled_back_and_run_again() -> None:
    """V2: in flight during the recovery, it cannot commit; its second attempt is in the new incarnation."""
    made = Counting(QUICK_ALWAYS)
    attempts: list[int] = []

    async def step(ctx: StepContext, recovered: anyio.Event) -> int:
        attempts.append(ctx.attempt)
        value = await ctx.session.run(made.bump)
        await recovered.wait()
        return value

    async with entire(made.session) as session:
        await session.run(made.bump)
        assert await in_flight_while_recovering(made, step) == 1
        assert attempts == [1, 2]
        assert await made.committed() == 1


async def test_a_run_of_the_old_incarnation_is_rolled_back_and_run_again() -> None:
    """V2, R4: the same for a plain run; its hooks hear of the attempt that was lost."""
    made = Counting(QUICK_ALWAYS)
    recovered = anyio.Event()
    evaluations: list[bool] = []
    results: list[Any] = []

    async def waiting() -> str:
        evaluations.append(recovered.is_set())
        await recovered.wait()
        return "done"

    async def run() -> None:
        results.append(await made.session.run([made.bump, waiting]))

    async with entire(made.session) as session:
        async with anyio.create_task_group() as group:
            group.start_soon(run)
            await anyio.wait_all_tasks_blocked()
            await session.run_step_fn(give_up_once)
            recovered.set()
        assert results == [[1, "done"]]
        assert evaluations == [False, True]
        assert await made.committed() == 1
    assert made.watcher.journal == [
        "begin",
        "after_create_session",
        "before_run 1",
        "after_create_session",
        "on_run_error 1",
        "before_run 2",
        "after_run 2",
        "end",
    ]


async def test_a_stale_step_cannot_commit_through_a_run_with_hooks() -> None:
    """V2: also not bit by bit - the run inside it commits nothing into the new incarnation."""
    made = Counting(QUICK_ALWAYS)
    attempts: list[int] = []

    async def step(ctx: StepContext, recovered: anyio.Event) -> None:
        attempts.append(ctx.attempt)
        await ctx.session.run(made.bump)
        await recovered.wait()
        await ctx.run_with_hooks(made.bump)

    async with entire(made.session):
        await in_flight_while_recovering(made, step)
        assert attempts == [1, 2]
        assert await made.committed() == 2


async def test_a_stale_step_that_forgives_errors_cannot_commit() -> None:
    """V2: a step function that swallows what its stale runs raise is run again all the same."""
    made = Counting(QUICK_ALWAYS)
    attempts: list[int] = []

    async def forgiving(ctx: StepContext, recovered: anyio.Event) -> None:
        attempts.append(ctx.attempt)
        await ctx.session.run(made.bump)
        await recovered.wait()
        try:
            await ctx.run_with_hooks(made.bump)
        except Exception:
            return

    async with entire(made.session):
        await in_flight_while_recovering(made, forgiving)
        assert attempts == [1, 2]
        assert await made.committed() == 2


async def test_a_run_that_starts_while_the_session_recovers_waits_for_it() -> None:
    """V2: it runs once, in the new incarnation."""
    made = Counting(QUICK_ALWAYS)
    results: list[int] = []

    async def run() -> None:
        results.append(await made.session.run(made.bump))

    async with entire(made.session) as session:
        await session.run(made.bump)
        made.creator.gate = anyio.Event()
        async with anyio.create_task_group() as group:
            group.start_soon(session.run_step_fn, give_up_once)
            await made.creator.asked_again.wait()
            group.start_soon(run)
            await anyio.wait_all_tasks_blocked()
            assert results == []
            made.creator.gate.set()
        assert results == [1]
        assert session.recoveries == 1


async def test_a_creator_that_fails_in_a_recovery_is_asked_again() -> None:
    """V2, V3: an error in `recovery.on` out of the recovery itself is one more failed attempt."""
    made = Counting(QUICK_ALWAYS)
    async with entire(made.session) as session:
        made.creator.failures = [UnavailableError("not yet"), UnavailableError("not yet")]
        assert await session.run(Failing(AbortedError("given up")).as_fetch()) == 2
        assert session.recoveries == 1
        assert made.creator.asked == 1 + 3


async def test_a_recovery_that_fails_for_good_raises_its_error() -> None:
    """V2, E3: an error of the creator that is not in `recovery.on` leaves the run."""
    made = Counting(QUICK_ALWAYS)
    broken = ValueError("no such place")
    with pytest.raises(ValueError, match="no such place") as caught:
        async with made.session as session:
            made.creator.failures = [broken]
            await session.run(Failing(AbortedError("given up")).as_fetch())
    assert caught.value is broken
    assert made.watcher.journal[-1] == "on_session_error"


async def test_a_step_function_that_starts_while_the_session_recovers_waits_for_it() -> None:
    """V2, V7: it is called once, in its first attempt, with the new raw session."""
    made = Counting(QUICK_ALWAYS)
    seen: list[tuple[int, Session]] = []

    async def step(ctx: StepContext) -> None:
        seen.append((ctx.attempt, ctx.session))

    async with entire(made.session) as session:
        made.creator.gate = anyio.Event()
        async with anyio.create_task_group() as group:
            group.start_soon(session.run_step_fn, give_up_once)
            await made.creator.asked_again.wait()
            group.start_soon(session.run_step_fn, step)
            await anyio.wait_all_tasks_blocked()
            assert seen == []
            made.creator.gate.set()
        assert seen == [(1, made.creator.created[1])]


async def test_a_step_of_the_old_incarnation_is_run_again_whatever_recovery_on_names() -> None:
    """V2: what a stale step meets is no error of its own, so `recovery.on` has no say."""
    made = Counting(Recovery(on=(KeyError,), restore="always", wait_initial=0.0, jitter=0.0))
    recovered = anyio.Event()
    attempts: list[int] = []

    async def step(ctx: StepContext) -> None:
        attempts.append(ctx.attempt)
        await recovered.wait()
        await ctx.run_with_hooks(made.bump)

    async with entire(made.session) as session:
        async with anyio.create_task_group() as group:
            group.start_soon(session.run_step_fn, step)
            await anyio.wait_all_tasks_blocked()
            await session.run(Failing(KeyError("again")).as_fetch())
            recovered.set()
        assert attempts == [1, 2]
        assert await made.committed() == 1


async def test_a_step_that_commits_to_a_lost_session_is_run_again() -> None:
    """V2: another step lost the raw session and has not failed yet; this one makes the recovery."""
    made = Counting()
    lost, recovered = anyio.Event(), anyio.Event()
    attempts: list[int] = []

    async def losing(ctx: StepContext) -> None:
        if ctx.attempt == 1:
            await ctx.session.aclose()
            lost.set()
            await recovered.wait()
            raise AbortedError("the raw session is lost")

    async def committing(ctx: StepContext) -> None:
        attempts.append(ctx.attempt)
        await ctx.session.run(made.bump)
        if ctx.attempt == 2:
            recovered.set()
        await lost.wait()

    async with entire(made.session) as session:
        async with anyio.create_task_group() as group:
            group.start_soon(session.run_step_fn, committing)
            await anyio.wait_all_tasks_blocked()
            group.start_soon(session.run_step_fn, losing)
        assert attempts == [1, 2]
        assert session.recoveries == 1
        assert await made.committed() == 1


async def test_a_recovery_leaves_steps_that_wait_for_a_source_alone() -> None:
    """V2, D1: steps wait for a slow source; a recovery is neither an error nor an end of data for them."""
    made = Counting(QUICK_ALWAYS)
    sender, receiver = anyio.create_memory_object_stream[int](10)

    async def slow() -> AsyncIterator[int]:
        while True:
            yield await receiver.receive()

    with made.graph:
        items = source(slow, name="items")
    given: list[int] = []

    async def wait_for_item() -> None:
        given.append(await made.session.run(items))

    async with entire(made.session) as session, sender, receiver:
        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(wait_for_item)
            await anyio.wait_all_tasks_blocked()
            await session.run_step_fn(give_up_once)
            assert session.recoveries == 1
            for item in range(4):  # the first of them is taken by the old incarnation
                sender.send_nowait(item)
        assert sorted(given) == [1, 2, 3]
        assert session.should_stop() is False


async def test_a_recovery_that_is_cancelled_is_made_by_the_next_step() -> None:
    """V2, C4: the session goes on."""
    made = Counting(QUICK_ALWAYS)
    async with entire(made.session) as session:
        made.creator.gate = anyio.Event()
        async with anyio.create_task_group() as group:
            group.start_soon(session.run_step_fn, give_up_once)
            await made.creator.asked_again.wait()
            group.cancel_scope.cancel()
        assert session.recoveries == 0
        made.creator.gate.set()
        assert await session.run(made.bump) == 1
        assert session.recoveries == 1


async def test_a_recovery_that_outlasts_the_closing_is_dropped() -> None:
    """V2, L6: its raw session is closed, no hook hears of it, and the step ends with SessionClosedError."""
    made = Counting(QUICK_ALWAYS, stop_grace_period=0.02)
    errors: list[SessionClosedError] = []

    async def run() -> None:
        with pytest.raises(SessionClosedError) as caught:
            await made.session.run_step_fn(give_up_once)
        errors.append(caught.value)

    async with anyio.create_task_group() as group:
        async with made.session:
            made.creator.gate = anyio.Event()
            group.start_soon(run)
            await made.creator.asked_again.wait()
        made.creator.gate.set()
    assert len(errors) == 1
    assert made.watcher.journal == ["begin", "after_create_session", "end"]
    assert [raw.intact for raw in made.creator.created] == [False, False]


# V5: without any checkpoint


async def test_a_chief_recovers_to_the_initial_values_before_the_first_commit() -> None:
    """V5: no step has committed, so nothing is lost."""
    made = Counting(QUICK_ALWAYS, chief=True)
    async with entire(made.session) as session:
        assert await session.run([made.bump, Failing(AbortedError("given up")).as_fetch()]) == [1, 2]
        assert session.recoveries == 1
        assert await made.committed() == 1


@pytest.mark.parametrize("how", ["always", "lost"])
async def test_a_chief_does_not_throw_committed_work_away(how: str) -> None:
    """V5: FailedPreconditionError with the error as its cause, and nothing is run again."""
    made = Counting(QUICK_ALWAYS if how == "always" else QUICK, chief=True)
    attempts: list[int] = []
    error = AbortedError("given up")

    async def step(ctx: StepContext) -> None:
        attempts.append(ctx.attempt)
        if how == "lost":
            await ctx.session.aclose()
        raise error

    with pytest.raises(FailedPreconditionError) as caught:
        async with made.session as session:
            await session.run(made.bump)
            await session.run_step_fn(step)
    assert caught.value.__cause__ is error
    assert attempts == [1]
    assert made.watcher.journal[-1] == "on_session_error"


async def test_a_chief_that_cannot_recover_says_so_every_time() -> None:
    """V5: the next step does not find initial values either."""
    made = Counting(QUICK_ALWAYS, chief=True)
    async with entire(made.session) as session:
        await session.run(made.bump)
        for _ in range(2):
            with pytest.raises(FailedPreconditionError):
                await session.run_step_fn(give_up_once)


async def test_a_chief_creator_may_serve_one_session_after_another() -> None:
    """V5: a session that was closed lost nothing; only a recovery is refused."""
    made = Counting()
    creator = ChiefSessionCreator(graph=made.graph)
    for _ in range(2):
        async with entire(MonitoredSession(creator)) as session:
            assert await session.run(made.bump) == 1


# V7: what the step sees


async def test_the_raw_session_of_a_retry_without_a_recovery_is_the_same() -> None:
    """V7: `ctx.session` is the raw session of the attempt."""
    made = Counting()
    seen: list[Session] = []

    async def step(ctx: StepContext) -> None:
        seen.append(ctx.session)
        await give_up_once(ctx)

    async with made.session as session:
        await session.run_step_fn(step)
    assert seen == [made.creator.created[0]] * 2


async def test_the_raw_session_of_a_retry_after_a_recovery_is_the_new_one() -> None:
    """V7: the retried step, and its hooks, see the new raw session, which works."""
    seen: list[Session] = []

    class Seeing(SessionRunHook):
        async def before_run(self, run_context: SessionRunContext) -> None:
            seen.append(run_context.session)

    made = Counting(QUICK, Seeing())

    async def step(ctx: StepContext) -> int:
        seen.append(ctx.session)
        if ctx.attempt == 1:
            raise made.lose()
        await ctx.run_with_hooks(made.bump)
        return await ctx.session.run(made.count)

    async with entire(made.session) as session:
        assert await session.run_step_fn(step) == 1
    first, second = made.creator.created
    assert seen == [first, second, second]


async def test_should_stop_neither_recovers_nor_waits_nor_raises() -> None:
    """V7: it is plainly answered while the raw session is lost and while a recovery is being made."""
    made = Counting()
    answers: list[bool] = []

    async def step(ctx: StepContext) -> None:
        if ctx.attempt == 1:
            await ctx.session.aclose()
            answers.append(ctx.should_stop())
            answers.append(made.session.should_stop())
            assert made.creator.asked == 1
            made.creator.gate = anyio.Event()
            raise AbortedError("lost")

    async with entire(made.session) as session, anyio.create_task_group() as group:
        group.start_soon(session.run_step_fn, step)
        await made.creator.asked_again.wait()
        answers.append(session.should_stop())
        made.creator.gate.set()
    assert answers == [False, False, False]


async def test_a_stop_outlives_a_recovery() -> None:
    """S1, V2: asked for while the raw session is being made again, the stop is there afterwards."""
    made = Counting(QUICK_ALWAYS)

    async def step(ctx: StepContext) -> None:
        if ctx.attempt == 1:
            made.creator.gate = anyio.Event()
            raise AbortedError("given up")

    async def run() -> None:
        with suppress(StopRequested):
            await made.session.run_step_fn(step)

    async with entire(made.session) as session:
        async with anyio.create_task_group() as group:
            group.start_soon(run)
            await made.creator.asked_again.wait()
            session.request_stop("enough")
            made.creator.gate.set()
        assert session.recoveries == 1
        assert session.should_stop() is True
        assert session.stop_reason is not None
        assert session.stop_reason.message == "enough"
