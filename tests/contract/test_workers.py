"""Section W, and rule D5: the workers of `session.loop`, how they end, and that all of them get on."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest

from asyncstep import (
    AbortedError,
    ChiefSessionCreator,
    InvalidArgumentError,
    MonitoredSession,
    Recovery,
    Session,
    SessionClosedError,
    SessionRunHook,
    StepContext,
    source,
)
from asyncstep.errors import InvalidTypeError

from .counting import Counting, ended, entire

pytestmark = pytest.mark.anyio


class Meeting:
    """A place where a known number of workers wait for one another."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.here = 0
        self.full, self.go = anyio.Event(), anyio.Event()

    async def wait(self) -> None:
        """Waits until the test says go."""
        self.here += 1
        if self.here == self.size:
            self.full.set()
        await self.go.wait()


# W1: a loop returns when the session stops


async def test_a_loop_runs_its_step_function_until_the_session_stops() -> None:
    """W1: with the arguments that follow it."""
    made = Counting()

    async def step(ctx: StepContext, limit: int) -> None:
        if await ctx.run_with_hooks(made.bump) == limit:
            ctx.request_stop("the limit")

    async with entire(made.session) as session:
        await session.loop(step, 5)
        assert await made.committed() == 5
    assert ended(made.watcher) == [None]


async def test_each_worker_finishes_and_commits_its_own_step() -> None:
    """W1: the stop finds four steps in flight; all of them commit, and none starts after it."""
    made = Counting()
    meeting = Meeting(4)
    calls: Counter[int] = Counter()

    async def step(ctx: StepContext) -> None:
        calls[ctx.worker] += 1
        await ctx.session.run(made.bump)
        await meeting.wait()
        await ctx.run_with_hooks(made.bump)

    async def stop() -> None:
        await meeting.full.wait()
        made.session.request_stop("enough")
        meeting.go.set()

    async with entire(made.session) as session, anyio.create_task_group() as group:
        group.start_soon(stop)
        await session.loop(step, workers=4)
        assert calls == {0: 1, 1: 1, 2: 1, 3: 1}
        assert await made.committed() == 8


async def test_one_workers_stop_lets_the_others_finish() -> None:
    """W1: a worker that stops commits what it did so far; the others commit theirs."""
    made = Counting()
    meeting = Meeting(2)

    async def step(ctx: StepContext) -> None:
        await ctx.session.run(made.bump)
        if ctx.worker == 0:
            await meeting.full.wait()
            meeting.go.set()
            ctx.request_stop("enough")
        await meeting.wait()

    async with entire(made.session) as session:
        await session.loop(step, workers=3)
        assert await made.committed() == 3


async def test_a_loop_does_not_return_before_the_last_step() -> None:
    """W1: the loop waits for a step in flight, and returns when it is done."""
    made = Counting()
    meeting = Meeting(2)
    returned: list[int] = []

    async def step(ctx: StepContext) -> None:
        await ctx.session.run(made.bump)
        await meeting.wait()

    async def loop() -> None:
        await made.session.loop(step, workers=2)
        returned.append(await made.committed())

    async with entire(made.session) as session, anyio.create_task_group() as group:
        group.start_soon(loop)
        await meeting.full.wait()
        session.request_stop("enough")
        await anyio.wait_all_tasks_blocked()
        assert returned == []
        meeting.go.set()
    assert returned == [2]


async def test_past_the_grace_period_the_rest_is_cancelled_and_named(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """W1, T4: the worker that does not end is cancelled, rolled back and named at WARNING."""
    made = Counting(stop_grace_period=0.05)
    meeting = Meeting(3)
    cancelled: list[int] = []

    async def step(ctx: StepContext) -> None:
        await ctx.session.run(made.bump)
        if ctx.worker != 1:
            await meeting.wait()
            return
        try:
            await meeting.wait()
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class():
            cancelled.append(ctx.worker)
            raise

    async def stop() -> None:
        await meeting.full.wait()
        made.session.request_stop("enough")
        meeting.go.set()

    async with entire(made.session) as session:
        async with anyio.create_task_group() as group:
            group.start_soon(stop)
            await session.loop(step, workers=3)
        assert cancelled == [1]
        assert await made.committed() == 2
    lines = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(lines) == 1
    assert "worker" in lines[0]
    assert "1" in lines[0]
    assert ended(made.watcher) == [None]


async def test_a_loop_of_a_stopped_session_returns_at_once() -> None:
    """W1, S5: no step starts after the stop."""
    made = Counting()
    calls: list[int] = []

    async def step(ctx: StepContext) -> None:
        calls.append(ctx.worker)

    async with entire(made.session) as session:
        session.request_stop("enough")
        await session.loop(step, workers=3)
    assert calls == []


async def test_a_loop_returns_when_its_session_is_closed() -> None:
    """W1, L5: closed by another task, the session has stopped; the step in flight commits."""
    made = Counting()
    meeting = Meeting(2)
    returned: list[bool] = []

    async def step(ctx: StepContext) -> None:
        await ctx.session.run(made.bump)
        await meeting.wait()

    async def loop() -> None:
        await made.session.loop(step, workers=2)
        returned.append(True)

    class Reading(SessionRunHook):
        async def end(self, session: Session) -> None:
            last.append(await session.run(made.count))

    last: list[int] = []
    made.session = MonitoredSession(ChiefSessionCreator(graph=made.graph), hooks=[Reading()])
    async with entire(made.session) as session, anyio.create_task_group() as group:
        group.start_soon(loop)
        await meeting.full.wait()
        group.start_soon(session.aclose)
        await anyio.wait_all_tasks_blocked()
        meeting.go.set()
    assert returned == [True]
    assert last == [2]


async def test_a_cancelled_loop_rolls_its_steps_back() -> None:
    """W1, T4: a cancellation from outside ends the workers, and leaves the loop."""
    made = Counting()
    meeting = Meeting(3)
    returned: list[bool] = []

    async def step(ctx: StepContext) -> None:
        await ctx.session.run(made.bump)
        await meeting.wait()

    async def loop() -> None:
        await made.session.loop(step, workers=3)
        returned.append(True)

    async with entire(made.session):
        async with anyio.create_task_group() as group:
            group.start_soon(loop)
            await meeting.full.wait()
            group.cancel_scope.cancel()
        assert returned == []
        assert await made.committed() == 0


async def test_the_workers_of_a_loop_are_counted_from_zero() -> None:
    """W1: `ctx.worker` is the index of the worker in the loop."""
    made = Counting()
    meeting = Meeting(5)
    workers: set[int] = set()

    async def step(ctx: StepContext) -> None:
        workers.add(ctx.worker)
        if len(workers) == 5:
            meeting.go.set()
            made.session.request_stop("all are here")
        await meeting.wait()

    async with entire(made.session) as session:
        await session.loop(step, workers=5)
    assert workers == {0, 1, 2, 3, 4}


@pytest.mark.parametrize("workers", [0, -1, 1.5, True])
async def test_a_loop_needs_a_worker(workers: Any) -> None:
    """W1: anything but a whole number of at least one is refused before anything runs."""
    made = Counting()

    async def step(ctx: StepContext) -> None:
        raise AssertionError("not reached")

    async with entire(made.session) as session:
        with pytest.raises(InvalidArgumentError, match="workers"):
            await session.loop(step, workers=workers)


async def test_a_loop_needs_an_async_step_function_with_an_argument() -> None:
    """W1, R6: a function that is not async, or takes no argument, is refused before anything runs."""
    made = Counting()
    called: list[bool] = []

    def not_async(ctx: StepContext) -> None:
        called.append(True)

    async def no_argument() -> None:
        called.append(True)

    async with entire(made.session) as session:
        for wrong in (not_async, no_argument):
            with pytest.raises(InvalidTypeError, match=wrong.__name__):
                await session.loop(wrong)  # type: ignore[arg-type]
    assert called == []


# W2: a worker's error


async def test_a_workers_error_stops_the_session_and_leaves_the_loop() -> None:
    """W2: the same object is raised, when the others have finished and committed their steps."""
    made = Counting()
    meeting = Meeting(2)
    error = ValueError("real")

    async def step(ctx: StepContext) -> None:
        await ctx.session.run(made.bump)
        if ctx.worker == 2:
            await meeting.full.wait()
            raise error
        await meeting.wait()

    async def release() -> None:
        await meeting.full.wait()
        await anyio.wait_all_tasks_blocked()
        assert made.session.should_stop() is True
        meeting.go.set()

    async with entire(made.session) as session:
        async with anyio.create_task_group() as group:
            group.start_soon(release)
            with pytest.raises(ValueError, match="real") as caught:
                await session.loop(step, workers=3)
        assert caught.value is error
        assert session.stop_reason is not None
        assert session.stop_reason.kind == "error"
        assert await made.committed() == 2


async def test_two_workers_errors_leave_the_loop_as_a_group() -> None:
    """W2, E1: the second worker fails while it finishes its step; neither error is lost."""
    made = Counting()
    meeting = Meeting(2)
    errors = {0: ValueError("first"), 1: KeyError("second")}

    async def step(ctx: StepContext) -> None:
        meeting.here += 1
        if meeting.here == 2:
            meeting.go.set()
        await meeting.go.wait()
        raise errors[ctx.worker]

    async with entire(made.session) as session:
        with pytest.raises(ExceptionGroup) as caught:
            await session.loop(step, workers=2)
    assert set(caught.value.exceptions) == set(errors.values())


async def test_a_workers_error_ends_the_session_by_the_error() -> None:
    """W2: uncaught, it leaves the body as the same object, and the hooks hear of it."""
    made = Counting()
    error = ValueError("real")

    async def step(ctx: StepContext) -> None:
        raise error

    with pytest.raises(ValueError, match="real") as caught:
        async with entire(made.session) as session:
            await session.loop(step, workers=2)
    assert error in (caught.value, *getattr(caught.value, "exceptions", ()))
    assert len(ended(made.watcher)) == 1
    assert ended(made.watcher)[0] is caught.value


async def test_a_workers_error_is_raised_though_another_worker_does_not_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """W2, W1: the other one is cancelled and named when the grace period is over."""
    made = Counting(stop_grace_period=0.02)
    meeting = Meeting(1)
    error = ValueError("real")

    async def step(ctx: StepContext) -> None:
        if ctx.worker == 0:
            await meeting.full.wait()
            raise error
        await meeting.wait()

    async with entire(made.session) as session:
        with pytest.raises(ValueError, match="real") as caught:
            await session.loop(step, workers=2)
        assert caught.value is error
    lines = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(lines) == 1
    assert "worker 1" in lines[0]


async def test_a_workers_interrupt_leaves_the_loop_at_once() -> None:
    """W2, C1: the same object; the other workers are cancelled and rolled back."""
    made = Counting()
    meeting = Meeting(2)
    interrupt = KeyboardInterrupt()

    async def step(ctx: StepContext) -> None:
        await ctx.session.run(made.bump)
        if ctx.worker == 0:
            await meeting.full.wait()
            raise interrupt
        await meeting.wait()

    async with entire(made.session) as session:
        with pytest.raises(KeyboardInterrupt) as caught:
            await session.loop(step, workers=3)
        assert caught.value is interrupt
        assert await made.committed() == 0


async def test_a_step_that_handles_its_own_cancellation_is_not_the_end_of_its_worker() -> None:
    """W1: a cancel scope inside a step function is the step's own business."""
    made = Counting()

    async def step(ctx: StepContext) -> None:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await anyio.sleep_forever()
        if await ctx.run_with_hooks(made.bump) == 3:
            ctx.request_stop("enough")

    async with entire(made.session) as session:
        await session.loop(step, workers=2)
        assert await made.committed() >= 3
        assert session.stop_reason is not None
        assert session.stop_reason.kind == "requested"


# W3: progress


async def test_ten_thousand_workers_all_make_progress() -> None:
    """W3: with steps that wait for one turn of the event loop, every worker gets to its third step."""
    steps: Counter[int] = Counter()
    behind = 10_000

    async def step(ctx: StepContext) -> None:
        nonlocal behind
        steps[ctx.worker] += 1
        if steps[ctx.worker] == 3:
            behind -= 1
        if behind == 0:
            ctx.request_stop("all got on")
        await anyio.sleep(0)

    async with entire(Counting().session) as session:
        await session.loop(step, workers=10_000)
    assert len(steps) == 10_000
    assert min(steps.values()) >= 3
    assert max(steps.values()) <= 10


async def test_workers_that_never_wait_do_not_starve_the_others() -> None:
    """W3, R9: steps in which nothing suspends give the event loop its turns all the same."""
    made = Counting()
    steps: Counter[int] = Counter()

    async def step(ctx: StepContext) -> None:
        await ctx.run_with_hooks(made.bump)
        steps[ctx.worker] += 1
        if len(steps) == 100:
            ctx.request_stop("all got a turn")

    async with entire(made.session) as session:
        await session.loop(step, workers=100)
        assert await made.committed() == sum(steps.values())
    assert len(steps) == 100


# D5: the end of the data


class SlowSource:
    """Gives an item each time that the test says so, and ends when it says so."""

    def __init__(self) -> None:
        self.sender, self.receiver = anyio.create_memory_object_stream[str](100)

    async def items(self) -> AsyncIterator[str]:
        """What the source reads."""
        async with self.receiver:
            async for item in self.receiver:
                yield item


async def test_the_end_of_the_data_waits_for_the_steps_in_flight() -> None:
    """D5: six workers wait for a slow source that ends; the loop ends when the two steps have committed."""
    made, slow, meeting = Counting(), SlowSource(), Meeting(2)
    with made.graph:
        items = source(slow.items, name="items")
    taken: list[str] = []
    returned: list[int] = []

    async def step(ctx: StepContext) -> None:
        taken.append(await ctx.session.run(items))
        await meeting.wait()
        await ctx.run_with_hooks(made.bump)

    async def loop() -> None:
        await made.session.loop(step, workers=6)
        returned.append(await made.committed())

    async with entire(made.session) as session, anyio.create_task_group() as group:
        group.start_soon(loop)
        await anyio.wait_all_tasks_blocked()
        assert taken == []
        slow.sender.send_nowait("one")
        slow.sender.send_nowait("two")
        await meeting.full.wait()
        slow.sender.close()
        await anyio.wait_all_tasks_blocked()
        assert returned == []
        meeting.go.set()
        await anyio.wait_all_tasks_blocked()
        assert session.stop_reason is not None
        assert session.stop_reason.kind == "end_of_data"
    assert sorted(taken) == ["one", "two"]
    assert returned == [2]
    assert ended(made.watcher) == [None]


async def test_an_item_given_back_after_the_end_was_seen_is_given_again() -> None:
    """D5, D1: the last step is retried while other workers have met the end; its item is not lost."""
    made = Counting(recovery=Recovery(wait_initial=0.0, jitter=0.0))
    slow, meeting = SlowSource(), Meeting(1)
    with made.graph:
        items = source(slow.items, name="items")
    attempts: list[tuple[str, int]] = []

    async def step(ctx: StepContext) -> None:
        item = await ctx.session.run(items)
        attempts.append((item, ctx.attempt))
        if len(attempts) == 1:
            await meeting.wait()
            raise AbortedError("given up")
        await ctx.session.run(made.bump)

    async def loop() -> None:
        await made.session.loop(step, workers=3)

    async with entire(made.session):
        async with anyio.create_task_group() as group:
            group.start_soon(loop)
            slow.sender.send_nowait("one")
            slow.sender.close()
            await meeting.full.wait()
            await anyio.wait_all_tasks_blocked()
            meeting.go.set()
        assert [item for item, _ in attempts] == ["one", "one"]
        assert await made.committed() == 1


async def test_every_item_is_given_to_exactly_one_worker() -> None:
    """D5, D1: a hundred items, eight workers - each item once, and then a clean end."""
    made = Counting()
    with made.graph:
        items = source(list(range(100)), name="items")
    taken: list[int] = []

    async def step(ctx: StepContext) -> None:
        item, _ = await ctx.run_with_hooks([items, made.bump])
        taken.append(item)
        await anyio.sleep(0)

    async with entire(made.session) as session:
        await session.loop(step, workers=8)
        assert await made.committed() == 100
        assert session.stop_reason is not None
        assert session.stop_reason.kind == "end_of_data"
    assert sorted(taken) == list(range(100))


async def test_a_session_closes_under_a_step_that_waits_for_a_source() -> None:
    """D5, L6: that is no error of the closing; the step ends when the source gives it something."""
    made, slow = Counting(stop_grace_period=0.02), SlowSource()
    with made.graph:
        items = source(slow.items, name="items")
    errors: list[SessionClosedError] = []

    async def run() -> None:
        with pytest.raises(SessionClosedError) as caught:
            await made.session.run(items)
        errors.append(caught.value)

    async with anyio.create_task_group() as group:
        async with entire(made.session):
            group.start_soon(run)
            await anyio.wait_all_tasks_blocked()
        assert ended(made.watcher) == [None]
        slow.sender.send_nowait("too late")
    assert len(errors) == 1
    assert made.session.stop_reason is None
    slow.sender.close()
