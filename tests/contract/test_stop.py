"""Section S: what a stop is, how it is asked for, and how the end of the data is one."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import anyio
import pytest
import tenacity

from asyncstep import (
    ChiefSessionCreator,
    MonitoredSession,
    OutOfRangeError,
    Session,
    SessionClosedError,
    SessionRunContext,
    SessionRunHook,
    SessionRunValues,
    StepContext,
    StopRequested,
    source,
)

from .counting import Counting, entire

pytestmark = pytest.mark.anyio


def stop_lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the library has logged at INFO."""
    return [
        record.getMessage()
        for record in caplog.records
        if record.name.startswith("asyncstep") and record.levelno == logging.INFO
    ]


# S1: the level and its reason


async def test_a_stop_is_set_once_and_the_first_reason_stays() -> None:
    """S1: a later request changes neither the level nor its reason."""
    made = Counting()
    async with entire(made.session) as session:
        assert session.should_stop() is False
        assert session.stop_reason is None
        session.request_stop("the first")
        reason = session.stop_reason
        session.request_stop("the second")
        assert session.should_stop() is True
        assert session.stop_reason is reason
        assert reason is not None
        assert (reason.kind, reason.message) == ("requested", "the first")


async def test_the_first_reason_is_logged_at_info(caplog: pytest.LogCaptureFixture) -> None:
    """S1: one INFO line names the reason that counts; a request that changes nothing says nothing."""
    caplog.set_level(logging.INFO, logger="asyncstep")
    made = Counting()
    async with made.session as session:
        session.request_stop("the first")
        session.request_stop("the second")
    assert len([line for line in stop_lines(caplog) if "the first" in line]) == 1
    assert [line for line in stop_lines(caplog) if "the second" in line] == []


async def test_a_step_functions_stop_is_of_kind_requested() -> None:
    """S1: `ctx.request_stop` gives a reason of kind requested, with the message and an origin."""
    made = Counting()

    async def step(ctx: StepContext) -> None:
        ctx.request_stop("enough")

    async with made.session as session:
        await session.run_step_fn(step)
    assert session.stop_reason is not None
    assert (session.stop_reason.kind, session.stop_reason.message) == ("requested", "enough")
    assert session.stop_reason.origin


class Stopper(SessionRunHook):
    """Asks for a stop at one of the points of a run."""

    def __init__(self, point: str) -> None:
        self.point = point

    async def before_run(self, run_context: SessionRunContext) -> None:
        self._stop_at("before_run", run_context)

    async def before_commit(self, run_context: SessionRunContext, run_values: SessionRunValues) -> None:
        self._stop_at("before_commit", run_context)

    async def after_run(self, run_context: SessionRunContext, run_values: SessionRunValues) -> None:
        self._stop_at("after_run", run_context)

    def _stop_at(self, point: str, run_context: SessionRunContext) -> None:
        if point == self.point:
            run_context.request_stop("the hook has seen enough")


async def test_a_hooks_stop_is_of_kind_hook() -> None:
    """S1: `run_context.request_stop` gives a reason of kind hook; its origin names the hook."""
    made = Counting(Stopper("after_run"))
    async with made.session as session:
        await session.run(made.bump)
    reason = session.stop_reason
    assert reason is not None
    assert (reason.kind, reason.message) == ("hook", "the hook has seen enough")
    assert "Stopper" in str(reason.origin)


async def test_a_coordinators_stop_is_of_kind_hook() -> None:
    """S1: `coord.request_stop()` without an error gives a reason of kind hook."""
    made = Counting()
    async with made.session as session:
        made.watcher.coord.request_stop()
    assert session.stop_reason is not None
    assert session.stop_reason.kind == "hook"


async def test_a_body_error_is_a_reason_of_kind_error() -> None:
    """S1: a session that an error ended says so, with the error in the message."""
    made = Counting()
    with pytest.raises(ValueError, match="broken"):
        async with made.session as session:
            raise ValueError("broken")
    assert session.stop_reason is not None
    assert session.stop_reason.kind == "error"
    assert "broken" in session.stop_reason.message


async def test_a_cancelled_body_is_a_reason_of_kind_cancelled() -> None:
    """S1: a session that a cancellation ended says so."""
    made = Counting()
    with anyio.CancelScope() as scope:
        async with made.session as session:
            scope.cancel()
            await anyio.sleep_forever()
    assert scope.cancelled_caught
    assert session.stop_reason is not None
    assert session.stop_reason.kind == "cancelled"


async def test_a_stop_outlives_the_error_that_comes_after_it() -> None:
    """S1: the first reason stays, also when the body then ends by an error."""
    made = Counting()
    with pytest.raises(ValueError, match="later"):
        async with made.session as session:
            session.request_stop("earlier")
            raise ValueError("later")
    assert session.stop_reason is not None
    assert (session.stop_reason.kind, session.stop_reason.message) == ("requested", "earlier")


async def test_no_coordinator_takes_a_stop_back() -> None:
    """S1: `coord.clear_stop` does not take back the stop of a session."""
    made = Counting()
    async with entire(made.session) as session:
        session.request_stop("for good")
        made.watcher.coord.clear_stop()
        assert session.should_stop() is True
        with pytest.raises(StopRequested):
            await session.run(made.bump)


# S2: what kind of exception it is


async def test_a_stop_is_a_base_exception_and_nothing_else() -> None:
    """S2: StopRequested derives from BaseException directly; it is no cancellation either."""
    assert StopRequested.__bases__ == (BaseException,)
    assert not issubclass(StopRequested, anyio.get_cancelled_exc_class())


async def test_users_cannot_make_a_stop() -> None:
    """S2: neither an instance nor a subclass can be made."""
    with pytest.raises(TypeError, match="request_stop"):
        StopRequested()
    with pytest.raises(TypeError, match="final"):
        type("Mine", (StopRequested,), {})


async def test_a_stop_carries_its_session_and_its_reason() -> None:
    """S2: whoever sees a stop can tell whose it is, and why."""
    made = Counting()
    async with entire(made.session) as session:
        session.request_stop("enough")
        with pytest.raises(StopRequested) as caught:
            await session.run(made.bump)
        assert caught.value.session is session
        assert caught.value.reason is session.stop_reason
        assert "enough" in str(caught.value)


async def test_except_exception_does_not_see_a_stop() -> None:
    """S2: a step function that forgives every Exception still stops."""
    made = Counting()
    seen: list[Exception] = []

    async def forgiving(ctx: StepContext) -> str:
        try:
            ctx.request_stop("enough")
        except Exception as error:
            seen.append(error)
        return "went on"

    async with entire(made.session) as session:
        with pytest.raises(StopRequested):
            await session.run_step_fn(forgiving)
    assert seen == []


async def test_a_retry_library_does_not_see_a_stop() -> None:
    """S2: retries around the call that stops make one attempt."""
    made = Counting()
    attempts: list[int] = []

    async def step(ctx: StepContext) -> None:
        async for attempt in tenacity.AsyncRetrying(stop=tenacity.stop_after_attempt(3), reraise=True):
            with attempt:
                attempts.append(attempt.retry_state.attempt_number)
                ctx.request_stop("enough")

    async with entire(made.session) as session:
        with pytest.raises(StopRequested):
            await session.run_step_fn(step)
    assert attempts == [1]


# S3: asked for by a step function, and swallowed


async def test_the_level_is_set_before_the_stop_is_raised() -> None:
    """S3: in the first `except` that sees the stop, the session already says that it stops."""
    made = Counting()
    levels: list[bool] = []

    async def step(ctx: StepContext) -> None:
        levels.append(ctx.should_stop())
        try:
            ctx.request_stop("enough")
        except BaseException:
            levels.append(ctx.should_stop())
            raise

    async with made.session as session:
        await session.run_step_fn(step)
    assert levels == [False, True]


async def test_a_swallowed_stop_is_raised_again_by_the_next_run_of_the_step() -> None:
    """S3: `except BaseException` keeps the stop from leaving, not from being there."""
    made = Counting()
    caught: list[StopRequested] = []

    async def step(ctx: StepContext) -> None:
        try:
            ctx.request_stop("enough")
        except BaseException:
            made.watcher.journal.clear()
        try:
            await ctx.run_with_hooks(made.bump)
        except StopRequested as stop:
            caught.append(stop)
            raise

    async with entire(made.session) as session:
        with pytest.raises(StopRequested) as left:
            await session.run_step_fn(step)
        assert caught == [left.value]
        assert caught[0].reason is session.stop_reason
        assert "before_run" not in made.watcher.journal
        assert await made.committed() == 0


RETURN_IN_FINALLY = """
async def step(ctx):
    try:
        ctx.request_stop("enough")
    finally:
        return "swallowed"
"""


def returning_in_finally() -> Any:
    """A step function that swallows its stop by a `return` in a `finally`, which newer Pythons warn of."""
    names: dict[str, Any] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)
        exec(compile(RETURN_IN_FINALLY, "<return in finally>", "exec"), names)
    return names["step"]


async def test_a_stop_swallowed_by_return_in_finally_is_raised_by_the_next_run() -> None:
    """S3: the step returns as if nothing had been, the next run of the session stops."""
    made = Counting()
    async with entire(made.session) as session:
        assert await session.run_step_fn(returning_in_finally()) == "swallowed"
        with pytest.raises(StopRequested):
            await session.run(made.bump)


async def test_a_loop_ends_though_its_step_function_swallows_the_stop() -> None:
    """S3: `session.loop` ends by a stop that never left the step function."""
    made = Counting()
    steps: list[int] = []

    async def step(ctx: StepContext) -> None:
        steps.append(len(steps))
        try:
            ctx.request_stop("enough")
        except BaseException:
            return

    async with entire(made.session) as session:
        await session.loop(step)
    assert steps == [0]


async def test_a_stop_in_a_child_task_swallowed_there_is_raised_by_the_parents_run() -> None:
    """S3: it does not matter in which task the stop was swallowed."""
    made = Counting()

    async def step(ctx: StepContext) -> None:
        async def child() -> None:
            try:
                ctx.request_stop("enough")
            except BaseException:
                return

        async with anyio.create_task_group() as group:
            group.start_soon(child)
        await ctx.run_with_hooks(made.bump)

    async with entire(made.session) as session:
        with pytest.raises(StopRequested):
            await session.run_step_fn(step)
        assert await made.committed() == 0


async def test_a_stop_in_a_task_of_somebody_else_is_raised_by_the_next_run_of_the_step() -> None:
    """S3: nor whether that task came of the step; it is the step's context that asked."""
    made = Counting()
    contexts: list[StepContext] = []
    given, asked = anyio.Event(), anyio.Event()

    async def somebody_else() -> None:
        await given.wait()
        with pytest.raises(StopRequested):
            contexts[0].request_stop("enough")
        asked.set()

    async def step(ctx: StepContext) -> None:
        contexts.append(ctx)
        given.set()
        await asked.wait()
        await ctx.run_with_hooks(made.bump)

    async with entire(made.session) as session, anyio.create_task_group() as group:
        group.start_soon(somebody_else)
        with pytest.raises(StopRequested):
            await session.run_step_fn(step)
        assert await made.committed() == 0


async def test_a_stop_while_a_cancellation_unwinds_raises_the_cancellation_again() -> None:
    """S3: the stop asked for in the clean-up of a cancelled step is set, and the cancellation leaves."""
    made = Counting()
    raised: list[BaseException] = []

    async def step(ctx: StepContext) -> None:
        scope.cancel()
        try:
            await anyio.sleep_forever()
        except BaseException as cancelled:
            raised.append(cancelled)
            try:
                ctx.request_stop("while cancelled")
            except BaseException as again:
                raised.append(again)
                raise

    async with entire(made.session) as session:
        with anyio.CancelScope() as scope:
            await session.run_step_fn(step)
        assert scope.cancelled_caught
        assert len(raised) == 2
        assert raised[1] is raised[0]
        assert session.should_stop() is True
        assert session.stop_reason is not None
        assert session.stop_reason.message == "while cancelled"


async def test_a_stop_while_an_interrupt_unwinds_raises_the_interrupt_again() -> None:
    """S3: an interrupt that is being unwound leaves as the same object."""
    made = Counting()
    interrupt = KeyboardInterrupt()

    async def step(ctx: StepContext) -> None:
        try:
            raise interrupt
        finally:
            ctx.request_stop("while interrupted")

    with pytest.raises(KeyboardInterrupt) as caught:
        async with made.session as session:
            await session.run_step_fn(step)
    assert caught.value is interrupt
    assert session.should_stop() is True


async def test_a_stop_in_place_of_a_cancellation_does_not_hide_it() -> None:
    """C2, S3: where the stop overtakes a cancellation (an error is handled in between), that is raised."""
    made = Counting()
    reached: list[bool] = []

    async def step(ctx: StepContext) -> None:
        scope.cancel()
        try:
            await anyio.sleep_forever()
        finally:
            try:
                raise ValueError("closing failed")
            except ValueError:
                ctx.request_stop("while cancelled")

    with anyio.CancelScope() as scope:
        async with made.session as session:
            await session.run_step_fn(step)
        reached.append(True)
    assert scope.cancelled_caught
    assert reached == []
    assert session.should_stop() is True


async def test_a_stop_after_a_timeout_was_handled_is_a_stop() -> None:
    """S3: a cancellation that is over, though it is the context of the error at hand, is not raised again."""
    made = Counting()

    async def step(ctx: StepContext) -> None:
        try:
            with anyio.fail_after(0):
                await anyio.sleep_forever()
        except TimeoutError:
            ctx.request_stop("too slow")

    async with entire(made.session) as session:
        with pytest.raises(StopRequested):
            await session.run_step_fn(step)


async def test_a_stop_while_an_error_is_handled_is_a_stop() -> None:
    """S3: only what is not an Exception goes before the stop."""
    made = Counting()

    async def step(ctx: StepContext) -> None:
        try:
            raise ValueError("handled")
        except ValueError:
            ctx.request_stop("after an error")

    async with entire(made.session) as session:
        with pytest.raises(StopRequested):
            await session.run_step_fn(step)


@pytest.mark.parametrize("inner", [False, True], ids=["bare", "under an error of the step"])
async def test_an_exception_unwound_outside_the_step_is_not_raised_by_it(inner: bool) -> None:
    """S3: "in this step" - what the caller of the step is handling is the caller's."""
    made = Counting()

    async def step(ctx: StepContext) -> None:
        if not inner:
            ctx.request_stop("enough")
        try:
            raise ValueError("handled")
        except ValueError:
            ctx.request_stop("enough")

    async with made.session as session:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            with pytest.raises(StopRequested):
                await session.run_step_fn(step)


async def test_a_stop_in_a_closing_generator_is_raised_by_the_next_run() -> None:
    """S3: GeneratorExit is raised again, so the generator closes; the stop is not lost."""
    made = Counting()

    async def step(ctx: StepContext) -> None:
        async def items() -> Any:
            try:
                yield 1
            finally:
                ctx.request_stop("the items were enough")

        generator = items()
        await anext(generator)
        await generator.aclose()
        assert ctx.should_stop() is True
        await ctx.run_with_hooks(made.bump)

    async with entire(made.session) as session:
        with pytest.raises(StopRequested):
            await session.run_step_fn(step)


# S4: asked for from elsewhere


async def test_a_requested_stop_lets_the_run_in_flight_commit() -> None:
    """S4: `session.request_stop` returns; the run in flight finishes, commits and gives its value."""
    made = Counting()
    started, go = anyio.Event(), anyio.Event()
    values: list[Any] = []

    async def blocked() -> str:
        started.set()
        await go.wait()
        return "done"

    async def run() -> None:
        values.append(await made.session.run([made.bump, blocked]))

    async with entire(made.session) as session, anyio.create_task_group() as group:
        group.start_soon(run)
        await started.wait()
        session.request_stop("enough")
        go.set()
        await anyio.wait_all_tasks_blocked()
        assert values == [[1, "done"]]
        assert await made.committed() == 1
    assert made.watcher.journal == [
        "begin",
        "after_create_session",
        "before_run",
        "before_commit",
        "after_run",
        "end",
    ]


async def test_a_coordinators_stop_lets_the_run_in_flight_commit() -> None:
    """S4: `coord.request_stop` inside a run returns; that run commits."""
    made = Counting()

    async def stopping() -> bool:
        made.watcher.coord.request_stop()
        return made.watcher.coord.should_stop()

    async with entire(made.session) as session:
        assert await session.run([made.bump, stopping]) == [1, True]
        assert session.should_stop() is True
        assert await made.committed() == 1


@pytest.mark.parametrize("point", ["before_run", "before_commit", "after_run"])
async def test_a_hooks_stop_lets_its_own_run_commit(point: str) -> None:
    """S4: `run_context.request_stop` returns at every point; the run it was asked in commits."""
    made = Counting(Stopper(point))
    async with entire(made.session) as session:
        assert await session.run(made.bump) == 1
        assert session.should_stop() is True
        assert await made.committed() == 1
        with pytest.raises(StopRequested):
            await session.run(made.bump)


async def test_a_step_function_in_flight_goes_on_after_a_stop_from_elsewhere() -> None:
    """S4: the step in flight, its further runs with hooks included, finishes and commits."""
    made = Counting()
    started, go = anyio.Event(), anyio.Event()

    async def step(ctx: StepContext) -> None:
        started.set()
        await go.wait()
        await ctx.run_with_hooks(made.bump)
        await ctx.session.run(made.bump)

    async with entire(made.session) as session, anyio.create_task_group() as group:
        group.start_soon(session.run_step_fn, step)
        await started.wait()
        session.request_stop("enough")
        go.set()
        await anyio.wait_all_tasks_blocked()
        assert await made.committed() == 2


# S5: what starts after the stop


async def test_a_run_after_the_stop_calls_no_hook() -> None:
    """S5: it raises StopRequested before any hook is called and before anything is evaluated."""
    made = Counting()
    evaluated: list[bool] = []

    async def fetch() -> None:
        evaluated.append(True)

    async with entire(made.session) as session:
        session.request_stop("enough")
        with pytest.raises(StopRequested):
            await session.run(fetch)
        with pytest.raises(StopRequested):
            await session.run(fetch, hooks=[made.watcher])
        assert made.watcher.journal == ["begin", "after_create_session"]
        assert evaluated == []


async def test_a_run_after_the_stop_that_its_own_step_brought_about_calls_no_hook() -> None:
    """S5: a hook stopped in the step's first run; the step starts no second one."""
    made = Counting(Stopper("after_run"))

    async def step(ctx: StepContext) -> None:
        await ctx.run_with_hooks(made.bump)
        made.watcher.journal.clear()
        await ctx.run_with_hooks(made.bump)

    async with entire(made.session) as session:
        with pytest.raises(StopRequested):
            await session.run_step_fn(step)
        assert made.watcher.journal == []
        assert await made.committed() == 1


async def test_a_step_function_after_the_stop_is_not_called() -> None:
    """S5: a step that starts after the stop does not start."""
    made = Counting()
    called: list[bool] = []

    async def step(ctx: StepContext) -> None:
        called.append(True)

    async with entire(made.session) as session:
        session.request_stop("enough")
        with pytest.raises(StopRequested):
            await session.run_step_fn(step)
    assert called == []


async def test_runs_without_hooks_and_raw_runs_work_after_the_stop() -> None:
    """S5: both evaluate and commit until the session closes, and not after."""
    made = Counting()
    async with entire(made.session) as session:
        session.request_stop("enough")
        assert await session.run_without_hooks(made.bump) == 1
        assert await made.watcher.session.run(made.bump) == 2
        assert await made.committed() == 2
        assert made.watcher.journal == ["begin", "after_create_session"]
    with pytest.raises(SessionClosedError):
        await session.run_without_hooks(made.bump)
    with pytest.raises(SessionClosedError):
        await made.watcher.session.run(made.bump)


async def test_raw_runs_work_in_end() -> None:
    """S5: a hook may still evaluate and commit at the end of a stopped session."""
    made = Counting()
    last: list[int] = []

    class Last(SessionRunHook):
        async def end(self, session: Session) -> None:
            last.append(await session.run(made.bump))

    session = MonitoredSession(ChiefSessionCreator(graph=made.graph), hooks=[Last()])
    async with session:
        session.request_stop("enough")
    assert last == [1]


# S7: the end of the data


class Items(Counting):
    """`Counting` with a source of so many items."""

    def __init__(self, number: int) -> None:
        super().__init__()
        with self.graph:
            self.items = source(list(range(number)), name="items")


async def test_the_end_of_the_data_is_a_clean_end() -> None:
    """S7: OutOfRangeError out of the session's run ends the block without an error."""
    made = Items(2)
    async with made.session as session:
        while True:
            await session.run([made.items, made.bump])
    assert session.stop_reason is not None
    assert session.stop_reason.kind == "end_of_data"
    assert made.watcher.journal[-1] == "end"
    assert "on_session_error" not in made.watcher.journal
    assert session.global_step == 2


async def test_the_end_of_the_data_ends_a_loop() -> None:
    """S7: `session.loop` returns at the end of the data, and the body goes on."""
    made = Items(3)
    given: list[int] = []

    async def step(ctx: StepContext) -> None:
        given.append(await ctx.run_with_hooks(made.items))

    async with entire(made.session) as session:
        await session.loop(step)
        assert session.should_stop() is True
        assert given == [0, 1, 2]


async def test_the_end_of_the_data_out_of_a_raw_run_in_a_step_is_a_clean_end() -> None:
    """S7: monitored or raw inside a step, it is the end of this session's data."""
    made = Items(0)

    async def step(ctx: StepContext) -> None:
        await ctx.session.run(made.items)

    async with made.session as session:
        await session.run_step_fn(step)
    assert session.stop_reason is not None
    assert session.stop_reason.kind == "end_of_data"
    assert made.watcher.journal[-1] == "end"


async def test_a_swallowed_end_of_the_data_is_a_stop() -> None:
    """S7, S3: the same rules - caught by the user, the end is set, and the next run stops."""
    made = Items(0)
    async with entire(made.session) as session:
        with pytest.raises(OutOfRangeError):
            await session.run(made.items)
        assert session.should_stop() is True
        with pytest.raises(StopRequested):
            await session.run(made.bump)
    assert session.stop_reason is not None
    assert session.stop_reason.kind == "end_of_data"


async def test_an_end_of_the_data_in_a_group_is_taken_out_of_it() -> None:
    """S7, S6: the same rules - what else is in the group is raised."""
    made = Items(0)
    error = ValueError("real")
    with pytest.raises(ValueError, match="real") as caught:
        async with made.session as session:
            with pytest.raises(OutOfRangeError) as ended:
                await session.run(made.items)
            raise ExceptionGroup("both", [ended.value, error])
    assert caught.value is error


async def test_an_end_of_data_made_by_other_code_is_an_error() -> None:
    """S7: OutOfRangeError raised by the body is an ordinary error."""
    made = Counting()
    mine = OutOfRangeError("mine")
    with pytest.raises(OutOfRangeError) as caught:
        async with made.session:
            raise mine
    assert caught.value is mine
    assert made.watcher.journal == ["begin", "after_create_session", "on_session_error"]


async def test_an_end_of_data_made_by_a_step_function_is_an_error() -> None:
    """S7: raised by the step function itself, it came out of no run of the session."""
    made = Counting()
    mine = OutOfRangeError("mine")

    async def step(ctx: StepContext) -> None:
        raise mine

    with pytest.raises(OutOfRangeError) as caught:
        async with entire(made.session) as session:
            await session.loop(step)
    assert caught.value is mine
    assert made.watcher.journal[-1] == "on_session_error"


async def test_the_end_of_another_sessions_data_is_an_error() -> None:
    """S7: only this session's data can end this session."""
    made, other = Items(0), Items(0)
    with pytest.raises(OutOfRangeError):
        async with made.session, Session(other.graph) as raw:
            await raw.run(other.items)
    assert made.watcher.journal == ["begin", "after_create_session", "on_session_error"]
