"""The coordinator: a session's background tasks, and the stop as they see it (contract L8, E4)."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Self

import anyio
import pytest

from asyncstep import (
    ChiefSessionCreator,
    Coordinator,
    Graph,
    InvalidArgumentError,
    MonitoredSession,
    Session,
    SessionClosedError,
    SessionRunHook,
    StepContext,
    StopRequested,
    source,
)
from asyncstep.errors import InvalidTypeError
from asyncstep.testing import RecordingHook, virtual_backend

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def coordinated(**options: Any) -> AsyncIterator[tuple[MonitoredSession, Coordinator]]:
    """An open session with a task group around it, and its coordinator; its body must reach its end."""
    hook = RecordingHook()
    left_early = True
    async with anyio.create_task_group() as group:
        session = MonitoredSession(
            ChiefSessionCreator(graph=Graph()), hooks=[hook], task_group=group, **options
        )
        async with session:
            yield session, hook.coord
            left_early = False
        assert not left_early


class Failure:
    """Takes what leaves its block out of the groups of the task groups around it."""

    error: BaseException

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: object, error: BaseException | None, trace: object) -> bool:
        while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
            error = error.exceptions[0]
        assert error is not None, "nothing was raised"
        self.error = error
        return True


async def failing(error: BaseException) -> None:
    """A background task that fails."""
    raise error


# start_soon


async def test_a_background_task_needs_a_task_group() -> None:
    """L8: without one, asking for a task is a RuntimeError that says what to do."""
    hook = RecordingHook()
    async with MonitoredSession(ChiefSessionCreator(graph=Graph()), hooks=[hook]):
        with pytest.raises(RuntimeError, match=r"task_group=.*session\.loop"):
            hook.coord.start_soon(anyio.sleep, 0)


async def test_a_background_task_runs_with_its_arguments() -> None:
    """L8: in the group that the session was given."""
    got: list[tuple[int, str]] = []

    async def task(number: int, text: str) -> None:
        got.append((number, text))

    async with coordinated() as (_, coord):
        coord.start_soon(task, 1, "one", name="a task")
        await coord.join()
        assert got == [(1, "one")]


async def test_a_background_task_runs_in_the_group_of_a_loop() -> None:
    """L8: without a group of the user's, as long as the loop runs; it ends with the loop."""
    hook = RecordingHook()
    ended: list[bool] = []

    async def task() -> None:
        await hook.coord.wait_for_stop()
        ended.append(True)

    async def step(ctx: StepContext) -> None:
        hook.coord.start_soon(task)
        ctx.request_stop("enough")

    async with MonitoredSession(ChiefSessionCreator(graph=Graph()), hooks=[hook]) as session:
        await session.loop(step)
        assert ended == [True]
        with pytest.raises(RuntimeError, match="task_group"):
            hook.coord.start_soon(task)


async def test_background_tasks_run_in_the_group_of_any_open_loop() -> None:
    """L8: of two loops, the one that ends first does not take the group of the other away."""
    hook = RecordingHook()
    second_runs, first_is_over = anyio.Event(), anyio.Event()
    ran: list[bool] = []

    async def task() -> None:
        ran.append(True)

    async def first(ctx: StepContext) -> None:
        await second_runs.wait()

    async def run_first() -> None:
        await session.loop(first)
        first_is_over.set()

    async def second(ctx: StepContext) -> None:
        session.request_stop("enough")
        second_runs.set()
        await first_is_over.wait()
        hook.coord.start_soon(task)

    session = MonitoredSession(ChiefSessionCreator(graph=Graph()), hooks=[hook])
    async with session, anyio.create_task_group() as group:
        group.start_soon(run_first)
        await anyio.wait_all_tasks_blocked()
        await session.loop(second)
    assert ran == [True]


async def test_a_group_that_refuses_a_task_leaves_none_behind() -> None:
    """L8: the error is the group's, and closing does not wait for a task that never was."""
    hook = RecordingHook()
    async with anyio.create_task_group() as group:
        pass
    creator = ChiefSessionCreator(graph=Graph())
    async with MonitoredSession(creator, hooks=[hook], task_group=group):
        with pytest.raises(RuntimeError):
            hook.coord.start_soon(anyio.sleep_forever)
        await hook.coord.join()


async def test_a_background_task_is_a_function() -> None:
    """A wrong type is refused at once, not in the task."""
    async with coordinated() as (_, coord):
        with pytest.raises(InvalidTypeError, match="coroutine function"):
            coord.start_soon(7)  # type: ignore[arg-type]


async def test_no_background_task_is_started_when_the_session_ends_its_own() -> None:
    """L8, L1: neither by a hook's end nor after the closing, for nobody would stop it."""
    hook = RecordingHook()
    refused: list[SessionClosedError] = []

    class Late(SessionRunHook):
        async def end(self, session: Session) -> None:
            with pytest.raises(SessionClosedError) as caught:
                hook.coord.start_soon(anyio.sleep_forever)
            refused.append(caught.value)

    async with anyio.create_task_group() as group:
        creator = ChiefSessionCreator(graph=Graph())
        async with MonitoredSession(creator, hooks=[hook, Late()], task_group=group):
            pass
        with pytest.raises(SessionClosedError):
            hook.coord.start_soon(anyio.sleep_forever)
    assert len(refused) == 1


# Errors of background tasks


async def test_an_error_of_a_background_task_is_raised_by_the_next_run() -> None:
    """E4, L8: it stops the session with reason error, and is the same object; the user's group goes on."""
    error = ValueError("in the background")
    async with coordinated() as (session, coord):
        coord.start_soon(failing, error, name="the failing task")
        await anyio.wait_all_tasks_blocked()
        assert session.stop_reason is not None
        assert session.stop_reason.kind == "error"
        assert "in the background" in session.stop_reason.message
        assert session.stop_reason.origin == "the failing task"
        with pytest.raises(ValueError, match="in the background") as caught:
            await session.run([])
        assert caught.value is error


async def test_an_error_of_a_background_task_is_raised_at_the_end_of_the_body() -> None:
    """E4: if no run has raised it."""
    error = ValueError("in the background")
    with Failure() as failure:
        async with coordinated() as (_, coord):
            coord.start_soon(failing, error)
            await anyio.wait_all_tasks_blocked()
    assert failure.error is error


async def test_an_error_of_a_background_task_beside_one_of_the_body_makes_a_group() -> None:
    """E4: both are in it."""
    mine, other = ValueError("in the body"), KeyError("in the background")
    with Failure() as failure:
        async with coordinated() as (_, coord):
            coord.start_soon(failing, other)
            await anyio.wait_all_tasks_blocked()
            raise mine
    assert isinstance(failure.error, ExceptionGroup)
    assert failure.error.exceptions == (mine, other)


async def test_a_raised_error_is_not_raised_again() -> None:
    """E4: what a run raised and the body handled is over; the session ends clean."""
    async with coordinated() as (session, coord):
        coord.start_soon(failing, ValueError("in the background"))
        await anyio.wait_all_tasks_blocked()
        with pytest.raises(ValueError, match="in the background"):
            await session.run([])
        with pytest.raises(StopRequested):
            await session.run([])


async def test_the_stop_of_the_session_is_no_error_of_a_background_task() -> None:
    """S6: a task that runs steps until the session stops has ended well."""
    async with coordinated() as (session, coord):

        async def evaluate() -> None:
            while True:
                await session.run([])

        coord.start_soon(evaluate)
        session.request_stop("enough")
        await coord.join()


async def test_an_error_after_the_closing_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """E3: a task that outlives the closing can raise to nobody; nor is it silent."""
    hook, release = RecordingHook(), anyio.Event()

    async def stubborn() -> None:
        with anyio.CancelScope(shield=True):
            await release.wait()
        raise ValueError("too late")

    async with anyio.create_task_group() as group:
        creator = ChiefSessionCreator(graph=Graph())
        with pytest.raises(TimeoutError, match="stubborn task"):
            async with MonitoredSession(
                creator, hooks=[hook], task_group=group, stop_grace_period=0.02
            ) as session:
                hook.coord.start_soon(stubborn, name="stubborn task")
        assert session.should_stop() is True
        release.set()
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(errors) == 1
    assert "stubborn task" in errors[0].getMessage()


async def test_an_error_given_by_a_hooks_end_is_raised() -> None:
    """E3: `request_stop(error)` at the very end is not too late."""
    hook = RecordingHook()
    error = ValueError("at the end")

    class Late(SessionRunHook):
        async def end(self, session: Session) -> None:
            hook.coord.request_stop(error)

    with pytest.raises(ValueError, match="at the end") as caught:
        async with MonitoredSession(ChiefSessionCreator(graph=Graph()), hooks=[hook, Late()]):
            pass
    assert caught.value is error


# The end of background tasks


async def test_closing_tells_background_tasks_to_end() -> None:
    """L8: the stop event first, so that a task that listens ends by itself."""
    ended: list[str] = []

    async with coordinated() as (_, coord):

        async def listening() -> None:
            await coord.wait_for_stop()
            ended.append("by itself")

        coord.start_soon(listening)
    assert ended == ["by itself"]


async def test_closing_cancels_background_tasks_at_half_of_the_grace_period() -> None:
    """L8: a task that does not listen is cancelled; that is no error."""
    ended: list[str] = []

    async def deaf() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            ended.append("cancelled")

    async with coordinated(stop_grace_period=1.0) as (_, coord):
        coord.start_soon(deaf)
        await anyio.wait_all_tasks_blocked()
    assert ended == ["cancelled"]


async def test_join_waits_for_all_background_tasks() -> None:
    """It returns when the last has ended."""
    release, ended = anyio.Event(), list[int]()

    async def task(number: int) -> None:
        await release.wait()
        ended.append(number)

    async with coordinated() as (_, coord):
        for number in range(3):
            coord.start_soon(task, number)
        coord.start_soon(release_when_blocked, release)
        await coord.join()
        assert sorted(ended) == [0, 1, 2]


async def release_when_blocked(release: anyio.Event) -> None:
    """Sets the event when nothing else can go on."""
    await anyio.wait_all_tasks_blocked()
    release.set()


async def test_join_raises_the_error_of_a_background_task() -> None:
    """E4: raised here, it is not raised again."""
    error = ValueError("in the background")
    async with coordinated() as (_, coord):
        coord.start_soon(failing, error)
        with pytest.raises(ValueError, match="in the background") as caught:
            await coord.join()
        assert caught.value is error


async def test_join_of_nothing_returns() -> None:
    """Without tasks there is nothing to wait for."""
    async with coordinated() as (_, coord):
        await coord.join()


async def test_requested_exceptions_are_raised_one_at_a_time() -> None:
    """In the order in which they came; then there is none."""
    first, second = ValueError("first"), ValueError("second")
    async with coordinated() as (_, coord):
        coord.raise_requested_exception()
        coord.request_stop(first)
        coord.request_stop(second)
        for error in (first, second):
            with pytest.raises(ValueError, match=str(error)) as caught:
                coord.raise_requested_exception()
            assert caught.value is error
        coord.raise_requested_exception()


# The stop, from the coordinator's side


async def test_a_coordinator_sees_the_stop_of_its_session() -> None:
    """S1: whoever asked for it."""
    async with coordinated() as (session, coord):
        assert coord.should_stop() is False
        session.request_stop("enough")
        assert coord.should_stop() is True
        await coord.wait_for_stop()


async def test_wait_for_stop_waits_for_the_stop() -> None:
    """And wakes everyone who waits."""
    woken: list[int] = []

    async with coordinated() as (session, coord):

        async def waiting(number: int) -> None:
            await coord.wait_for_stop()
            woken.append(number)

        coord.start_soon(waiting, 1)
        coord.start_soon(waiting, 2)
        await anyio.wait_all_tasks_blocked()
        assert woken == []
        session.request_stop("enough")
        await coord.join()
        assert sorted(woken) == [1, 2]


async def test_a_wait_for_the_stop_can_be_cancelled() -> None:
    """C3: and leaves nothing behind."""
    async with coordinated() as (session, coord):
        with anyio.CancelScope() as scope:
            scope.cancel()
            await coord.wait_for_stop()
        assert scope.cancelled_caught
        assert session.should_stop() is False


async def test_request_stop_without_an_error_stops_without_one() -> None:
    """S4: the level is set, and the session ends clean."""
    async with coordinated() as (session, coord):
        coord.request_stop()
        assert session.stop_reason is not None
        assert session.stop_reason.kind == "hook"
        with pytest.raises(StopRequested):
            await session.run([])


async def test_request_stop_with_an_error_stops_with_it() -> None:
    """E4: the next run raises it."""
    error = ValueError("asked for")
    async with coordinated() as (session, coord):
        coord.request_stop(error)
        assert session.stop_reason is not None
        assert session.stop_reason.kind == "error"
        with pytest.raises(ValueError, match="asked for") as caught:
            await session.run([])
        assert caught.value is error


async def test_request_stop_takes_an_exception() -> None:
    """A reason in words belongs to `session.request_stop`."""
    async with coordinated() as (session, coord):
        with pytest.raises(InvalidTypeError, match="exception"):
            coord.request_stop("enough")  # type: ignore[arg-type]
        assert session.should_stop() is False


async def test_clear_stop_clears_nothing_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    """S1: a stop is never taken back."""
    async with coordinated() as (session, coord):
        coord.clear_stop()
        assert caplog.records == []
        session.request_stop("enough")
        coord.clear_stop()
        assert coord.should_stop() is True
        assert session.should_stop() is True
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


# stop_on_exception


async def test_stop_on_exception_reports_an_error_and_absorbs_it() -> None:
    """E4: the session stops, and its next run raises the error."""
    error = ValueError("reported")
    async with coordinated() as (session, coord):
        async with coord.stop_on_exception():
            raise error
        assert session.stop_reason is not None
        assert session.stop_reason.kind == "error"
        with pytest.raises(ValueError, match="reported") as caught:
            await session.run([])
        assert caught.value is error


async def test_stop_on_exception_does_nothing_without_one() -> None:
    """A block that ends normally stops nothing."""
    async with coordinated() as (session, coord):
        async with coord.stop_on_exception():
            await session.run([])
        assert session.should_stop() is False


async def test_stop_on_exception_keeps_no_end_of_data() -> None:
    """S7: the end of the session's data is a stop already, and no error."""
    hook = RecordingHook()
    graph = Graph()
    with graph:
        items = source([], name="items")
    async with MonitoredSession(ChiefSessionCreator(graph=graph), hooks=[hook]) as session:
        async with hook.coord.stop_on_exception():
            await session.run(items)
    assert session.stop_reason is not None
    assert session.stop_reason.kind == "end_of_data"


async def test_stop_on_exception_absorbs_no_interrupt() -> None:
    """C1: only an Exception is reported; what is more passes, as the same object."""
    interrupt = KeyboardInterrupt()
    async with coordinated() as (session, coord):
        with pytest.raises(KeyboardInterrupt) as caught:
            async with coord.stop_on_exception():
                raise interrupt
        assert caught.value is interrupt
        assert session.should_stop() is False


async def test_stop_on_exception_absorbs_no_cancellation() -> None:
    """C3: a cancellation passes."""
    async with coordinated() as (session, coord):
        with anyio.CancelScope() as scope:
            scope.cancel()
            async with coord.stop_on_exception():
                await anyio.sleep_forever()
        assert scope.cancelled_caught
        assert session.should_stop() is False


async def test_stop_on_exception_absorbs_no_stop() -> None:
    """S2: a stop is no Exception."""
    async with coordinated() as (session, coord):
        session.request_stop("enough")
        with pytest.raises(StopRequested):
            async with coord.stop_on_exception():
                await session.run([])


# every


async def test_every_calls_until_the_stop() -> None:
    """With its arguments, again and again; the stop ends it, so that closing does not wait."""
    ticks: list[str] = []

    async with coordinated() as (session, coord):

        async def tick(text: str) -> None:
            ticks.append(text)
            if len(ticks) == 3:
                session.request_stop("enough")

        coord.every(0.001, tick, "tick")
        await coord.join()
    assert ticks == ["tick"] * 3


@pytest.mark.parametrize(
    "anyio_backend", [virtual_backend("asyncio"), virtual_backend("trio")], ids=["asyncio", "trio"]
)
async def test_late_ticks_are_skipped(anyio_backend: tuple[str, dict[str, Any]]) -> None:
    """The clock does not drift, and a call that takes long makes no calls pile up."""
    times: list[float] = []

    async with coordinated() as (session, coord):
        began = anyio.current_time()

        async def tick() -> None:
            times.append(anyio.current_time() - began)
            if len(times) == 2:
                await anyio.sleep(25)  # over the ticks at 30 and 40
            if len(times) == 4:
                session.request_stop("enough")

        coord.every(10, tick)
        await coord.join()
    assert times == pytest.approx([10, 20, 50, 60])


async def test_an_error_of_every_is_an_error_of_a_background_task() -> None:
    """E4: the first one ends the ticking and stops the session."""
    error = ValueError("on a tick")
    async with coordinated() as (session, coord):
        coord.every(0.001, failing, error)
        with pytest.raises(ValueError, match="on a tick"):
            await coord.join()
        assert session.should_stop() is True


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf")])
async def test_every_needs_a_positive_number_of_seconds(seconds: float) -> None:
    """Refused at once."""
    async with coordinated() as (_, coord):
        with pytest.raises(InvalidArgumentError, match="positive"):
            coord.every(seconds, anyio.sleep_forever)


# The end


async def test_a_function_is_called_when_all_is_closed() -> None:
    """L6: after every hook's end, in whatever way the session ended."""
    hook = RecordingHook()
    order: list[str] = []

    class Ending(SessionRunHook):
        async def end(self, session: Session) -> None:
            order.append("end")

    async with MonitoredSession(ChiefSessionCreator(graph=Graph()), hooks=[hook, Ending()]):
        hook.coord.call_when_closed(lambda: order.append("closed"))
    assert order == ["end", "closed"]


def test_a_task_group_is_one() -> None:
    """L1: what is no task group is refused at construction."""
    with pytest.raises(InvalidTypeError, match="task_group"):
        MonitoredSession(ChiefSessionCreator(graph=Graph()), task_group=7)  # type: ignore[arg-type]
