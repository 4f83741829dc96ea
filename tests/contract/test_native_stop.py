"""Sections S and C in the light of asyncio's own tools: TaskGroup, gather, timeout, Task.cancel()."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

import pytest

from asyncstep import (
    ChiefSessionCreator,
    MonitoredSession,
    Node,
    StepContext,
    StopRequested,
    Variable,
    op,
)

from .counting import a_counter, entire

pytestmark = pytest.mark.asyncio


class Counting:
    """A graph with a variable `count`, a node that adds one to it, and a session on it."""

    def __init__(self) -> None:
        self.graph, self.count, self.bump = a_counter()
        self.session = MonitoredSession(ChiefSessionCreator(graph=self.graph))

    async def committed(self) -> int:
        """The committed value of `count`; works after a stop, too."""
        return await self.session.run_without_hooks(self.count)


def running() -> asyncio.Task[object]:
    """The task that runs this test."""
    task = asyncio.current_task()
    assert task is not None
    return task


async def stopping(ctx: StepContext) -> None:
    """A step function that stops."""
    ctx.request_stop("enough")


async def failing_when_cancelled(error: BaseException) -> None:
    """Waits until it is cancelled, and then fails."""
    try:
        await asyncio.get_running_loop().create_future()
    finally:
        raise error


# Child tasks


async def test_stops_of_task_group_children_are_absorbed() -> None:
    """S6, C2: steps that stop in an `asyncio.TaskGroup` of the body end it, and nothing is cancelled."""
    async with Counting().session as session, asyncio.TaskGroup() as group:
        group.create_task(session.run_step_fn(stopping))
        group.create_task(session.run_step_fn(stopping))
    assert session.stop_reason is not None
    assert session.stop_reason.kind == "requested"


async def test_a_stop_alone_in_a_steps_task_group_is_absorbed() -> None:
    """S6, C2: so does a child of an `asyncio.TaskGroup` inside a step function, one group inside another."""

    async def step(ctx: StepContext) -> None:
        async def stop() -> None:
            ctx.request_stop("enough")

        async with asyncio.TaskGroup(), asyncio.TaskGroup() as inner:
            inner.create_task(stop())

    async with Counting().session as session:
        await session.run_step_fn(step)
    assert session.stop_reason is not None
    assert session.stop_reason.kind == "requested"


async def test_a_task_groups_cancel_does_not_hide_one_that_the_body_swallowed() -> None:
    """C2: a native cancel beside the stop of a task group's child is raised."""
    task = running()
    with pytest.raises(asyncio.CancelledError):
        async with Counting().session as session:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await asyncio.get_running_loop().create_future()
            async with asyncio.TaskGroup() as group:
                group.create_task(session.run_step_fn(stopping))
    while task.cancelling():
        task.uncancel()


async def test_a_stop_beside_an_error_in_a_steps_task_group_loses_neither() -> None:
    """S3, S6, C1: the error leaves, the stop is set, the step is rolled back."""
    made = Counting()
    error = ValueError("real")
    left: list[int] = []

    async def step(ctx: StepContext) -> None:
        async def stop() -> None:
            ctx.request_stop("enough")

        await ctx.session.run(made.bump)
        async with asyncio.TaskGroup() as group:
            group.create_task(failing_when_cancelled(error))
            group.create_task(stop())

    with pytest.raises(ValueError, match="real") as caught:
        async with made.session as session:
            try:
                await session.run_step_fn(step)
            finally:
                left.append(await made.committed())
    assert caught.value is error
    assert session.stop_reason is not None
    assert session.stop_reason.kind == "requested"
    assert left == [0]


async def test_an_error_beside_a_stop_in_the_bodys_task_group_loses_neither() -> None:
    """S6, C1: the same in a task group of the body."""
    error = ValueError("real")
    with pytest.raises(ValueError, match="real") as caught:
        async with Counting().session as session, asyncio.TaskGroup() as group:
            group.create_task(failing_when_cancelled(error))
            group.create_task(session.run_step_fn(stopping))
    assert caught.value is error
    assert session.should_stop() is True


async def test_a_stop_gathered_with_its_exceptions_is_raised_by_the_next_run() -> None:
    """S3: `gather(return_exceptions=True)` makes a value of the stop; it is not lost."""
    made = Counting()
    gathered: list[object] = []

    async def step(ctx: StepContext) -> None:
        async def stop() -> None:
            ctx.request_stop("enough")

        gathered.extend(await asyncio.gather(stop(), ctx.run_with_hooks(made.bump), return_exceptions=True))
        await ctx.run_with_hooks(made.bump)

    async with made.session as session:
        await session.run_step_fn(step)
    assert isinstance(gathered[0], StopRequested)
    assert session.should_stop() is True


async def test_a_stop_in_a_task_that_nobody_awaits_is_not_lost() -> None:
    """S3: the level is set though the task's exception is only ever looked at."""
    made = Counting()

    async def step(ctx: StepContext) -> None:
        async def stop() -> None:
            ctx.request_stop("enough")

        task = asyncio.create_task(stop())
        await asyncio.wait([task])
        assert isinstance(task.exception(), StopRequested)
        await ctx.run_with_hooks(made.bump)

    async with entire(made.session) as session:
        with pytest.raises(StopRequested):
            await session.run_step_fn(step)
        assert await made.committed() == 0


# Cancellation beside a stop


async def test_a_cancel_that_waits_for_delivery_is_raised_after_a_stop_was_absorbed() -> None:
    """C2: `Task.cancel()` before the stop, no await between them: the cancellation leaves the block."""
    task = running()

    async def step(ctx: StepContext) -> None:
        task.cancel()
        ctx.request_stop("enough")

    with pytest.raises(asyncio.CancelledError):
        async with Counting().session as session:
            await session.run_step_fn(step)
    assert session.stop_reason is not None
    assert session.stop_reason.kind == "requested"
    assert task.cancelling() == 1
    task.uncancel()


async def test_a_cancel_that_the_body_swallowed_is_raised_after_a_stop_was_absorbed() -> None:
    """C2: `Task.cancelling()` has grown since the session was entered, so the cancellation leaves."""
    task = running()
    delivered: list[bool] = []
    with pytest.raises(asyncio.CancelledError):
        async with Counting().session as session:
            task.cancel()
            try:
                await asyncio.sleep(0)
            except asyncio.CancelledError:
                delivered.append(True)
            await session.run_step_fn(stopping)
    assert delivered == [True]
    assert task.cancelling() == 1
    task.uncancel()


async def test_a_stop_in_place_of_a_cancellation_does_not_hide_it() -> None:
    """C1, C2: a stop raised while the cancellation is handled leaves it to be raised."""
    task = running()
    with pytest.raises(asyncio.CancelledError):
        async with Counting().session as session:
            session.request_stop("enough")
            task.cancel()
            try:
                await asyncio.sleep(0)
            finally:
                await session.run([])
    task.uncancel()


async def test_an_older_cancel_is_not_raised_by_absorbing_a_stop() -> None:
    """C2: the session invents no cancellation; what it found at its entry was someone else's."""
    task = running()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.sleep(0)
    async with Counting().session as session:
        await session.run_step_fn(stopping)
    assert task.cancelling() == 1
    task.uncancel()


async def test_a_timeout_around_a_session_that_stops_is_a_timeout() -> None:
    """C2: `asyncio.timeout` that fires while the body stops gives its TimeoutError."""
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(None) as timeout, Counting().session as session:
            try:
                timeout.reschedule(asyncio.get_running_loop().time())
                await asyncio.get_running_loop().create_future()
            finally:
                session.request_stop("enough")
                await session.run([])
    assert session.should_stop() is True
    assert running().cancelling() == 0


async def test_a_timeout_inside_the_session_beside_a_stop_is_a_timeout() -> None:
    """S6, C2: a timeout in the body keeps its cancellation to itself; its TimeoutError is an error."""
    with pytest.raises(TimeoutError):
        async with Counting().session as session:
            async with asyncio.timeout(0):
                session.request_stop("enough")
                await asyncio.get_running_loop().create_future()
    assert running().cancelling() == 0


async def test_a_timeout_caught_in_the_body_leaves_a_later_stop_clean() -> None:
    """C2: a timeout that came and went inside the body is no reason for a cancellation."""
    reached: list[bool] = []
    async with Counting().session as session:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await asyncio.get_running_loop().create_future()
        await session.run_step_fn(stopping)
    reached.append(True)
    assert reached == [True]
    assert running().cancelling() == 0


async def test_a_cancellation_in_a_group_beside_a_stop_goes_first() -> None:
    """C1: interrupt, error, cancellation, stop - what is left of the group is the cancellation."""
    made = Counting()
    with pytest.raises((asyncio.CancelledError, BaseExceptionGroup)) as caught:
        async with made.session as session:
            with pytest.raises(StopRequested) as stopped:
                await session.run_step_fn(stopping)
            raise BaseExceptionGroup("", [stopped.value, asyncio.CancelledError()])
    assert leaf_types(caught.value) == [asyncio.CancelledError]


async def test_an_error_in_a_group_beside_a_cancellation_and_a_stop_goes_first() -> None:
    """C1: with an error and a cancellation in one group, the error is not lost."""
    error = ValueError("real")
    with pytest.raises(BaseException) as caught:
        async with Counting().session as session:
            with pytest.raises(StopRequested) as stopped:
                await session.run_step_fn(stopping)
            raise BaseExceptionGroup("", [stopped.value, asyncio.CancelledError(), error])
    assert ValueError in leaf_types(caught.value)
    assert StopRequested not in leaf_types(caught.value)


def leaf_types(error: BaseException) -> list[type[BaseException]]:
    """The types of the leaves of a group, in order; of a bare exception, its own."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in leaf_types(inner)]
    return [type(error)]


async def test_a_cancelled_loop_raises_the_cancellation() -> None:
    """C1, C2: `session.loop` cancelled after a stop was set ends by the cancellation."""
    made = Counting()
    started = asyncio.Event()

    async def step(ctx: StepContext) -> None:
        await ctx.session.run(made.bump)
        started.set()
        await asyncio.get_running_loop().create_future()

    async def body() -> None:
        async with made.session as session:
            await session.loop(step, workers=2)

    task = asyncio.create_task(body())
    await started.wait()
    made.session.request_stop("enough")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert made.session.stop_reason is not None
    assert made.session.stop_reason.message == "enough"


# StopIteration, which cannot leave a coroutine


def raising_stop_iteration(*_: object) -> NoReturn:
    """A function of the user that ends like an iterator."""
    raise StopIteration("an iterator's end")


async def fetch_of_coroutine() -> NoReturn:
    """The same in a coroutine function: Python makes a RuntimeError of it."""
    raise StopIteration("an iterator's end")


def of_sync_op() -> Node[object]:
    """A node of a `def` op that raises StopIteration."""
    return op(raising_stop_iteration)()


def of_thread_op() -> Node[object]:
    """A node of an op off the event loop that raises StopIteration."""
    return op(offload="thread")(raising_stop_iteration)()


def of_update() -> Node[int]:
    """A node whose update function raises StopIteration."""
    variable: Variable[int] = Variable(0, name="updated")
    return variable.update(raising_stop_iteration)


@pytest.mark.parametrize("node", [of_sync_op, of_thread_op, of_update])
async def test_stop_iteration_of_a_node_is_an_error(node: Callable[[], Node[object]]) -> None:
    """S2: an iterator's end is no stop; it comes out as RuntimeError, with StopIteration as its cause."""
    made = Counting()
    with made.graph:
        fetch = node()
    with pytest.raises(RuntimeError) as caught:
        async with made.session as session:
            await session.run([made.bump, fetch])
    assert isinstance(caught.value.__cause__, StopIteration)
    assert session.stop_reason is not None
    assert session.stop_reason.kind == "error"


async def test_stop_iteration_of_a_coroutine_is_an_error() -> None:
    """S2: so it is out of a fetched coroutine function and out of a step function."""

    async def step(ctx: StepContext) -> None:
        raise StopIteration

    async with entire(Counting().session) as session:
        with pytest.raises(RuntimeError, match="StopIteration"):
            await session.run(fetch_of_coroutine)
        with pytest.raises(RuntimeError, match="StopIteration"):
            await session.run_step_fn(step)
        assert session.should_stop() is False
