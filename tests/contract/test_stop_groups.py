"""Section S, rule 6: a session takes its own stop, and nothing else, out of what leaves its body."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Coroutine
from typing import Any

import anyio
import pytest
import trio

from asyncstep import (
    ChiefSessionCreator,
    Graph,
    MonitoredSession,
    SessionRunHook,
    StepContext,
    StopRequested,
)
from asyncstep.testing import RecordingHook

from .counting import a_counter, ended, entire

pytestmark = pytest.mark.anyio


def new_session(*hooks: SessionRunHook, graph: Graph | None = None) -> MonitoredSession:
    """A session on a graph of its own."""
    return MonitoredSession(ChiefSessionCreator(graph=graph or Graph()), hooks=hooks)


async def stopping(ctx: StepContext) -> None:
    """A step function that stops."""
    ctx.request_stop("enough")


async def stop_of(session: MonitoredSession) -> StopRequested:
    """A stop that the session raised, caught."""
    with pytest.raises(StopRequested) as caught:
        await session.run_step_fn(stopping)
    return caught.value


def failed(error: Exception) -> Exception:
    """The error with notes, a cause, a context and a traceback, as after a real failure."""
    cause, context = KeyError("cause"), LookupError("context")
    try:
        try:
            raise context
        except LookupError:
            raise error from cause
    except Exception as caught:
        caught.add_note("a note")
        return caught


def assert_intact(error: BaseException) -> None:
    """Fails unless everything that `failed` gave to the error is still there."""
    assert error.__notes__ == ["a note"]
    assert isinstance(error.__cause__, KeyError)
    assert isinstance(error.__context__, LookupError)
    assert error.__context__.__context__ is None
    assert error.__suppress_context__ is True
    assert "failed" in [frame.name for frame in traceback.extract_tb(error.__traceback__)]


async def test_a_bare_stop_is_absorbed_at_the_end_of_the_block() -> None:
    """S6: a stop that leaves the body ends the block, and the hooks see a clean end."""
    ending = RecordingHook()
    async with new_session(ending) as session:
        await session.run_step_fn(stopping)
    assert ended(ending) == [None]


async def test_the_stop_of_a_plain_run_is_absorbed() -> None:
    """S6: the stop that `session.run` raised is the session's own, too."""
    ending = RecordingHook()
    graph, _, bump = a_counter()
    async with new_session(ending, graph=graph) as session:
        session.request_stop("enough")
        await session.run(bump)
    assert ended(ending) == [None]


async def test_a_loop_absorbs_the_stop_and_the_body_goes_on() -> None:
    """S6: `session.loop` returns; what follows it in the body is run."""
    after: list[bool] = []
    async with new_session() as session:
        await session.loop(stopping)
        after.append(session.should_stop())
    assert after == [True]


async def test_stops_alone_in_groups_at_any_depth_are_absorbed() -> None:
    """S6: a group of nothing but own stops is a clean end."""
    ending = RecordingHook()
    async with new_session(ending) as session:
        stop = await stop_of(session)
        again = await stop_of_a_run(session)
        raise BaseExceptionGroup("", [stop, BaseExceptionGroup("", [BaseExceptionGroup("", [again])])])
    assert ended(ending) == [None]


async def stop_of_a_run(session: MonitoredSession) -> StopRequested:
    """The stop that a run raises after the session was stopped."""
    with pytest.raises(StopRequested) as caught:
        await session.run([])
    return caught.value


async def test_one_error_left_of_a_group_is_raised_as_that_error() -> None:
    """S6: with its notes, cause, context and traceback."""
    ending = RecordingHook()
    error = failed(ValueError("real"))
    with pytest.raises(ValueError, match="real") as caught:
        async with new_session(ending) as session:
            raise BaseExceptionGroup("", [await stop_of(session), BaseExceptionGroup("", [error])])
    assert caught.value is error
    assert_intact(error)
    assert ended(ending) == [error]


async def test_several_errors_left_of_a_group_stay_a_group() -> None:
    """S6: the nesting, the order, the message and what the groups carried are as they were."""
    first, second, third = failed(ValueError("1")), failed(KeyError("2")), failed(OSError("3"))
    cause = RuntimeError("why")
    with pytest.raises(ExceptionGroup) as caught:
        async with new_session() as session:
            stop = await stop_of(session)
            inner = BaseExceptionGroup("inner", [second, stop, third])
            inner.add_note("inner note")
            outer = BaseExceptionGroup("outer", [stop, first, inner])
            outer.add_note("outer note")
            raise outer from cause
    left = caught.value
    assert (left.message, left.__notes__, left.__cause__) == ("outer", ["outer note"], cause)
    assert left.exceptions[0] is first
    kept = left.exceptions[1]
    assert isinstance(kept, ExceptionGroup)
    assert (kept.message, kept.__notes__) == ("inner", ["inner note"])
    assert kept.exceptions == (second, third)
    for error in (first, second, third):
        assert_intact(error)


async def test_the_error_that_is_left_does_not_drag_the_group_along() -> None:
    """S6: the context of what is raised is its own, not the group that it was taken out of."""
    error = ValueError("real")
    with pytest.raises(ValueError, match="real") as caught:
        async with new_session() as session:
            raise BaseExceptionGroup("", [await stop_of(session), error])
    assert caught.value.__context__ is None
    assert caught.value.__cause__ is None


async def test_a_group_without_an_own_stop_leaves_as_it_is() -> None:
    """S6, E2: nothing is taken out, so the same object leaves, with one error in it though it has."""
    group = ExceptionGroup("as it is", [ValueError("real")])
    with pytest.raises(ExceptionGroup) as caught:
        async with new_session():
            raise group
    assert caught.value is group


async def test_an_interrupt_beside_a_stop_is_raised() -> None:
    """S6, C1: an interrupt in a group with a stop leaves as the same object."""
    interrupt = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt) as caught:
        async with new_session() as session:
            raise BaseExceptionGroup("", [await stop_of(session), interrupt])
    assert caught.value is interrupt


async def test_a_stop_that_is_absorbed_is_followed_by_a_checkpoint() -> None:
    """S6, C2: also where the session was closed before, a cancellation is not overtaken by its stop."""
    reached: list[str] = []
    with anyio.CancelScope() as scope:
        async with new_session() as session:
            stop = await stop_of(session)
            await session.aclose()
            scope.cancel()
            raise stop
        reached.append("after the block")
    assert scope.cancelled_caught
    assert reached == []


async def test_nested_sessions_absorb_each_its_own_stop() -> None:
    """S6: the inner session's stop ends the inner block only."""
    reached: list[str] = []
    async with entire(new_session()) as outer:
        async with new_session() as inner:
            await inner.run_step_fn(stopping)
        reached.append("after the inner block")
        assert outer.should_stop() is False
    assert reached == ["after the inner block"]


async def test_the_outer_sessions_stop_passes_through_the_inner_session() -> None:
    """S6: absorbed by identity - the inner session lets the outer one's stop through."""
    reached: list[str] = []
    async with new_session() as outer:
        async with new_session() as inner:
            await outer.run_step_fn(stopping)
        reached.append("after the inner block")
    assert reached == []
    assert outer.stop_reason is not None
    assert outer.stop_reason.kind == "requested"
    assert inner.should_stop() is True


async def test_two_sessions_stops_in_one_group_are_absorbed_by_both() -> None:
    """S6: each takes out its own; nothing is left."""
    endings = RecordingHook(), RecordingHook()
    async with new_session(endings[0]) as outer, new_session(endings[1]) as inner:
        stops = [await stop_of(outer), await stop_of(inner)]
        raise BaseExceptionGroup("", stops)
    assert ended(endings[0]) == [None]


async def test_a_foreign_stop_leaves_a_loop() -> None:
    """S6: a loop absorbs its own session's stop only."""
    async with entire(new_session()) as outer:
        async with entire(new_session()) as inner:

            async def step(ctx: StepContext) -> None:
                await outer.run_step_fn(stopping)

            with pytest.raises(StopRequested) as caught:
                await inner.loop(step)
            assert caught.value.session is outer


async def children_of_anyio(*children: Callable[[], Coroutine[Any, Any, object]]) -> None:
    """Runs the children in an anyio task group."""
    async with anyio.create_task_group() as group:
        for child in children:
            group.start_soon(child)


async def test_stops_in_child_tasks_of_the_body_are_absorbed() -> None:
    """S6: steps that stop in a task group of the body end the block."""
    ending = RecordingHook()
    async with new_session(ending) as session:
        await children_of_anyio(lambda: session.run_step_fn(stopping), lambda: session.run_step_fn(stopping))
    assert ended(ending) == [None]


async def failing_when_cancelled(error: Exception) -> None:
    """Waits until it is cancelled, and then fails."""
    try:
        await anyio.sleep_forever()
    finally:
        raise error


async def test_a_stop_beside_an_error_in_the_bodys_task_group_loses_neither() -> None:
    """S3, S6: the error leaves the block, and the session has the stop as its reason."""
    error = ValueError("real")
    with pytest.raises(ValueError, match="real") as caught:
        async with new_session() as session:
            await children_of_anyio(
                lambda: failing_when_cancelled(error), lambda: session.run_step_fn(stopping)
            )
    assert caught.value is error
    assert session.stop_reason is not None
    assert session.stop_reason.kind == "requested"


async def test_a_stop_beside_an_error_inside_a_step_loses_neither() -> None:
    """S3, S6, T4: the step is rolled back for its error, the error leaves, the stop is set."""
    ending = RecordingHook()
    graph, count, bump = a_counter()
    error = ValueError("real")
    left: list[int] = []

    async def step(ctx: StepContext) -> None:
        async def stop() -> None:
            ctx.request_stop("enough")

        await ctx.session.run(bump)
        await children_of_anyio(lambda: failing_when_cancelled(error), stop)

    with pytest.raises(ValueError, match="real") as caught:
        async with new_session(ending, graph=graph) as session:
            try:
                await session.run_step_fn(step)
            finally:
                left.append(await session.run_without_hooks(count))
    assert caught.value is error
    assert session.should_stop() is True
    assert left == [0]
    assert ended(ending) == [error]


async def test_a_stop_in_the_clean_up_of_an_error_inside_a_step_loses_neither() -> None:
    """S3: the child that stops was being cancelled for the error: the error leaves, the stop is set."""
    error = ValueError("real")

    async def step(ctx: StepContext) -> None:
        waiting = anyio.Event()

        async def stop_when_cancelled() -> None:
            try:
                waiting.set()
                await anyio.sleep_forever()
            finally:
                ctx.request_stop("on the way out")

        async def fail() -> None:
            await waiting.wait()
            raise error

        await children_of_anyio(stop_when_cancelled, fail)

    with pytest.raises(ExceptionGroup) as caught:
        async with new_session() as session:
            await session.run_step_fn(step)
    assert caught.value.exceptions == (error,)
    assert session.stop_reason is not None
    assert session.stop_reason.message == "on the way out"


async def test_a_stop_beside_an_error_in_a_loops_step_loses_neither() -> None:
    """S6: `session.loop` raises what is left when its own stop is taken out."""
    error = ValueError("real")

    async def step(ctx: StepContext) -> None:
        async def stop() -> None:
            ctx.request_stop("enough")

        await children_of_anyio(lambda: failing_when_cancelled(error), stop)

    async with entire(new_session()) as session:
        with pytest.raises(ValueError, match="real") as caught:
            await session.loop(step)
        assert caught.value is error


async def test_a_stop_alone_in_a_steps_task_group_commits_the_step() -> None:
    """S6, T3: a stop that arrives in a group ends the step like a bare one: what it did commits."""
    graph, count, bump = a_counter()

    async def step(ctx: StepContext) -> None:
        async def stop() -> None:
            ctx.request_stop("enough")

        await ctx.session.run(bump)
        await children_of_anyio(stop)

    async with entire(new_session(graph=graph)) as session:
        await session.loop(step)
        assert await session.run_without_hooks(count) == 1


@pytest.mark.parametrize("anyio_backend", [("trio", {})], ids=["trio"])
async def test_a_stop_beside_an_error_in_a_trio_nursery_loses_neither(
    anyio_backend: tuple[str, dict[str, Any]],
) -> None:
    """S3, S6: the same in a nursery inside a step function."""
    error = ValueError("real")

    async def step(ctx: StepContext) -> None:
        async def stop() -> None:
            ctx.request_stop("enough")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(failing_when_cancelled, error)
            nursery.start_soon(stop)

    with pytest.raises(ValueError, match="real") as caught:
        async with new_session() as session:
            await session.run_step_fn(step)
    assert caught.value is error
    assert session.stop_reason is not None
    assert session.stop_reason.kind == "requested"
