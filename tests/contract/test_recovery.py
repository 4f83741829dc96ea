"""Section V: steps that are run again, and raw sessions that are made again."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import anyio
import pytest

from asyncstep import (
    AbortedError,
    ChiefSessionCreator,
    FailedPreconditionError,
    Graph,
    MonitoredSession,
    Node,
    Recovery,
    RunMetadata,
    Session,
    SessionCreator,
    SessionRunContext,
    SessionRunHook,
    SessionRunValues,
    SingularMonitoredSession,
    StepContext,
    StopRequested,
    UnavailableError,
    Variable,
)

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def entire(session: MonitoredSession) -> AsyncIterator[MonitoredSession]:
    """The session, open; fails if its body is left before its end (a stop would be absorbed silently)."""
    left_early = True
    async with session:
        yield session
        left_early = False
    assert not left_early


QUICK = Recovery(wait_initial=0.0, jitter=0.0)
QUICK_ALWAYS = Recovery(wait_initial=0.0, jitter=0.0, restore="always")
FOR_EVER = Recovery(wait_initial=3600.0, wait_max=3600.0)


class Making(SessionCreator):
    """A creator that keeps what it made, and that a test can make fail or wait."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.made: list[Session] = []
        self.failures: list[Exception] = []
        self.gate = anyio.Event()
        self.gate.set()
        self.asked = 0
        self.asked_again = anyio.Event()

    async def create_session(self) -> Session:
        self.asked += 1
        if self.asked > 1:
            self.asked_again.set()
        await self.gate.wait()
        if self.failures:
            raise self.failures.pop(0)
        self.made.append(Session(self.graph))
        return self.made[-1]


class Watcher(SessionRunHook):
    """Notes what is called, with the attempt where there is one."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.created: list[Session] = []
        self.errors: list[BaseException] = []
        self.ended: list[Session] = []

    async def begin(self) -> None:
        self.calls.append("begin")

    async def after_create_session(self, session: Session, coord: object) -> None:
        self.calls.append("after_create_session")
        self.created.append(session)

    async def before_run(self, run_context: SessionRunContext) -> None:
        self.calls.append(f"before_run {run_context.attempt}")

    async def after_run(self, run_context: SessionRunContext, run_values: SessionRunValues) -> None:
        self.calls.append(f"after_run {run_context.attempt}")

    async def on_run_error(self, run_context: SessionRunContext, error: BaseException) -> None:
        self.calls.append(f"on_run_error {run_context.attempt}")
        self.errors.append(error)

    async def end(self, session: Session) -> None:
        self.calls.append("end")
        self.ended.append(session)

    async def on_session_error(self, session: Session, error: BaseException) -> None:
        self.calls.append("on_session_error")
        self.ended.append(session)


class Counting:
    """A graph with a variable `count`, a node that adds one, and a watched session that recovers."""

    def __init__(self, recovery: Recovery = QUICK, *hooks: SessionRunHook, chief: bool = False) -> None:
        self.graph = Graph()
        with self.graph:
            self.count: Variable[int] = Variable(0, name="count")
            self.bump: Node[int] = self.count.assign_add(1)
        self.creator = Making(self.graph)
        self.watcher = Watcher()
        creator: SessionCreator = ChiefSessionCreator(graph=self.graph) if chief else self.creator
        self.session = MonitoredSession(creator, hooks=[self.watcher, *hooks], recovery=recovery)

    async def committed(self) -> int:
        """The committed value of `count`."""
        return await self.session.run_without_hooks(self.count)


class Failing:
    """A fetch that raises the given errors, one a call, and then gives the number of its calls."""

    def __init__(self, *errors: BaseException) -> None:
        self.errors = list(errors)
        self.calls = 0

    def as_fetch(self) -> Callable[[], Awaitable[int]]:
        """The coroutine function to fetch."""

        async def fetch() -> int:
            self.calls += 1
            if self.errors:
                raise self.errors.pop(0)
            return self.calls

        return fetch


async def lose(raw: Session) -> None:
    """Loses the raw session, as a broken connection would, and fails."""
    await raw.aclose()
    raise AbortedError("the raw session is lost")


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
    assert made.watcher.calls == [
        "begin",
        "after_create_session",
        "before_run 1",
        "on_run_error 1",
        "before_run 2",
        "after_run 2",
        "end",
    ]
    assert len(made.creator.made) == 1


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


# V2: recovery


async def test_a_lost_raw_session_is_made_again() -> None:
    """V2: closed, created again, `after_create_session` again, `begin` not; then the retry."""
    made = Counting()

    async def losing(ctx: StepContext) -> str:
        if ctx.attempt == 1:
            await lose(ctx.session)
        return "done"

    async with entire(made.session) as session:
        assert await session.run_step_fn(losing) == "done"
        assert session.recoveries == 1
        first, second = made.creator.made
        assert made.watcher.created == [first, second]
        assert (first.intact, second.intact) == (False, True)
    assert made.watcher.calls == ["begin", "after_create_session", "after_create_session", "end"]
    assert made.watcher.ended == [second]


async def test_restore_always_recovers_an_intact_session() -> None:
    """V2: with `restore="always"` a recovery comes before every retry; the old raw session is closed."""
    made = Counting(QUICK_ALWAYS)
    async with entire(made.session) as session:
        assert await session.run(made.bump) == 1
        assert await session.run(Failing(AbortedError("1"), UnavailableError("2")).as_fetch()) == 3
        assert session.recoveries == 2
        assert [raw.intact for raw in made.creator.made] == [False, False, True]
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
        assert sessions == [made.creator.made[1]] * 8
        assert await made.committed() == 8


async def test_eight_losses_of_the_raw_session_are_one_recovery() -> None:
    """V2, V7: the same where the raw session is lost under eight steps in flight."""
    made = Counting()

    async def losing(ctx: StepContext) -> None:
        await lose(ctx.session)

    async with entire(made.session) as session:
        sessions = await eight_steps(made, losing)
        assert session.recoveries == 1
        assert len(made.creator.made) == 2
        assert sessions == [made.creator.made[1]] * 8
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
    assert made.watcher.calls == [
        "begin",
        "after_create_session",
        "before_run 1",
        "after_create_session",
        "on_run_error 1",
        "before_run 2",
        "after_run 2",
        "end",
    ]


async def give_up_once(ctx: StepContext) -> int:
    """A step function that fails in its first attempt."""
    if ctx.attempt == 1:
        raise AbortedError("given up")
    return ctx.attempt


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
    assert made.watcher.calls[-1] == "on_session_error"


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


async def test_a_creator_that_fails_at_the_opening_is_asked_again() -> None:
    """V3: by the same rules; `begin` is called once, and no recovery is counted."""
    made = Counting()
    made.creator.failures = [UnavailableError("1"), AbortedError("2")]
    async with entire(made.session) as session:
        assert await session.run(made.bump) == 1
        assert session.recoveries == 0
    assert made.creator.asked == 3
    assert made.watcher.calls[:3] == ["begin", "after_create_session", "before_run 1"]


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
    assert made.watcher.calls == ["begin", "on_session_error"]


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
    assert made.watcher.calls == ["begin", "on_session_error"]


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
        made.watcher.calls.clear()
        await session.run_step_fn(step)
    assert seen == [1, 2, 3]
    assert [call for call in made.watcher.calls if call.startswith("before_run")] == [
        "before_run 1",
        "before_run 2",
        "before_run 3",
    ]


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
    assert made.watcher.calls[-1] == "on_session_error"


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
    assert made.watcher.calls[2:5] == ["before_run 1", "on_run_error 1", "before_run 2"]


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
    assert made.watcher.calls.count("before_run 1") == 1


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
    assert len(made.creator.made) == 2


async def test_an_error_of_after_run_on_an_intact_session_is_raised_with_restore_always_too() -> None:
    """V6: "while the raw session is intact it is raised", and no retry needs a recovery before it."""
    made = Counting(QUICK_ALWAYS, LosingAfterRun(lost=False))
    async with entire(made.session) as session:
        with pytest.raises(AbortedError, match="after the step"):
            await session.run(made.bump)
        assert session.recoveries == 0
        assert await made.committed() == 1


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
    assert seen == [made.creator.made[0]] * 2


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
            await lose(ctx.session)
        await ctx.run_with_hooks(made.bump)
        return await ctx.session.run(made.count)

    async with entire(made.session) as session:
        assert await session.run_step_fn(step) == 1
    first, second = made.creator.made
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
