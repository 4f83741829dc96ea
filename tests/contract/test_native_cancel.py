"""Rules C2, L6, L7 and S6 of the contract under asyncio's own cancellation: Task.cancel(), asyncio.timeout,
wait_for and TaskGroup, which know nothing of anyio's scopes and shields."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from typing import Any

import anyio
import pytest
import pytest_asyncio

from asyncstep import (
    AbortedError,
    Graph,
    MonitoredSession,
    Node,
    Recovery,
    SessionClosedError,
    StepContext,
    StopRequested,
    Variable,
    op,
    source,
)
from asyncstep.testing import RecordingHook

from .counting import Oops, a_counter, ended, leaves
from .life_parts import Gate, monitored

pytestmark = pytest.mark.asyncio


def this_task() -> asyncio.Task[Any]:
    """The task that runs this."""
    task = asyncio.current_task()
    assert task is not None
    return task


async def nothing(ctx: StepContext) -> None:
    """A step function that does nothing."""


async def is_cancelled(task: asyncio.Task[Any]) -> bool:
    """Whether the task, when it is done, was cancelled; its error, if it had one, is raised."""
    try:
        await asyncio.wait_for(asyncio.shield(task), 20)
    except asyncio.CancelledError:
        return task.cancelled()
    return False


# A cancel in the body


@pytest.mark.parametrize(
    "point", ["before_run", "node", "before_commit", "after_run", "step function", "loop"]
)
async def test_cancelled_in_a_run(point: str) -> None:
    """C3, C4, L4: Task.cancel() wherever a run waits ends the block with CancelledError, and the hooks are
    told."""
    gate = Gate()
    journal: list[str] = []
    hook = RecordingHook("a", journal)
    if point in {"before_run", "before_commit", "after_run"}:
        hook.acts[point] = gate

    async def fetch() -> None:
        if point == "node":
            await gate()

    async def live() -> None:
        async with monitored(Graph(), hook) as session:
            if point == "step function":
                await session.run_step_fn(gate.__call__)
            elif point == "loop":
                await session.loop(gate.__call__, workers=3)
            else:
                await session.run([fetch, nothing_to_do])
            journal.append("after the run")
        journal.append("after the block")

    async def nothing_to_do() -> None:
        pass

    task = asyncio.create_task(live())
    await gate.reached.wait()
    task.cancel()
    assert await is_cancelled(task)
    assert journal[-1] == "a.on_session_error"
    assert {"after the run", "after the block"}.isdisjoint(journal)


async def test_a_natively_cancelled_step_leaves_no_trace() -> None:
    """C4: Task.cancel() in a step: its writes and its number are gone, its items are given again, first."""
    with (graph := Graph()):
        add = Variable(0, name="count").assign_add(1)
        items = source("abc", name="items")
    gate = Gate()

    async def step(ctx: StepContext) -> None:
        await ctx.session.run([add, items])
        await gate()

    async with monitored(graph) as session:
        task = asyncio.create_task(session.run_step_fn(step))
        await gate.reached.wait()
        task.cancel()
        assert await is_cancelled(task)
        assert session.global_step == 0
        assert await session.run([add, items]) == [1, "a"]


async def test_cancelled_while_opening() -> None:
    """L3, L6: Task.cancel() while opening: on_session_error runs to its end, then CancelledError leaves."""
    gate, last = Gate(), Gate()
    journal: list[str] = []
    hook = RecordingHook("a", journal, after_create_session=gate, on_session_error=last)

    async def live() -> None:
        async with monitored(Graph(), hook):
            journal.append("body")

    task = asyncio.create_task(live())
    await gate.reached.wait()
    task.cancel()
    await last.reached.wait()
    task.cancel()
    await last.open_when_all_wait()
    assert await is_cancelled(task)
    assert journal[-1] == "a.on_session_error"
    assert "body" not in journal


async def test_cancelled_in_the_wait_before_a_retry() -> None:
    """C3, V3: Task.cancel() ends the wait before a retry."""
    failed = asyncio.Event()

    async def fail() -> None:
        failed.set()
        raise AbortedError("try again")

    async def live() -> None:
        async with monitored(Graph(), recovery=Recovery(wait_initial=1000, wait_max=1000)) as session:
            await session.run(fail)

    task = asyncio.create_task(live())
    await failed.wait()
    await anyio.wait_all_tasks_blocked()
    task.cancel()
    assert await is_cancelled(task)


# A cancel while closing


class Closing:
    """A session whose hook waits at a gate while it closes, in a task of its own."""

    def __init__(
        self, error: BaseException | None = None, closing_error: BaseException | None = None
    ) -> None:
        self.gate = Gate()
        self.journal: list[str] = []
        self.error = error
        self.closing_error = closing_error
        self.cancelling = -1

    async def wait(self, *_: object) -> None:
        await self.gate()
        self.journal.append("waited")
        if self.closing_error is not None:
            raise self.closing_error

    async def live(self) -> None:
        hook = RecordingHook("a", self.journal, end=self.wait, on_session_error=self.wait)
        try:
            async with monitored(Graph(), hook):
                if self.error is not None:
                    raise self.error
            self.journal.append("after the block")
        finally:
            self.cancelling = this_task().cancelling()


@pytest.mark.parametrize("times", [1, 3])
async def test_cancelled_while_closing(times: int) -> None:
    """L6, C2: Task.cancel(), also repeated, stops no closing; it is raised when that is done, and stays
    counted."""
    closing = Closing()
    task = asyncio.create_task(closing.live())
    await closing.gate.reached.wait()
    for _ in range(times):
        task.cancel()
        await anyio.wait_all_tasks_blocked()
    assert "waited" not in closing.journal
    closing.gate.opened.set()
    assert await is_cancelled(task)
    assert closing.journal[-2:] == ["a.end", "waited"]
    assert closing.cancelling == times


async def test_cancelled_while_closing_after_an_error() -> None:
    """L6, C1: Task.cancel() while a failed body closes: closing finishes, and the error of the body
    leaves."""
    closing = Closing(error := Oops("body"))
    task = asyncio.create_task(closing.live())
    await closing.gate.reached.wait()
    task.cancel()
    await closing.gate.open_when_all_wait()
    with pytest.raises(Oops) as caught:
        await task
    assert caught.value is error
    assert closing.journal[-1] == "waited"


async def test_cancelled_while_a_closing_fails() -> None:
    """L6, C1, E2: Task.cancel() while closing, and closing fails: the error leaves."""
    closing = Closing(closing_error=(error := Oops("end")))
    task = asyncio.create_task(closing.live())
    await closing.gate.reached.wait()
    task.cancel()
    await closing.gate.open_when_all_wait()
    with pytest.raises(Oops) as caught:
        await task
    assert caught.value is error


async def test_cancelled_twice_in_the_body_and_while_closing() -> None:
    """L6: cancelled in the body and again while on_session_error waits: that finishes, CancelledError
    leaves."""
    closing = Closing()
    body = Gate()

    async def live() -> None:
        hook = RecordingHook("a", closing.journal, on_session_error=closing.wait)
        async with monitored(Graph(), hook):
            await body()

    task = asyncio.create_task(live())
    await body.reached.wait()
    task.cancel()
    await closing.gate.reached.wait()
    task.cancel()
    await closing.gate.open_when_all_wait()
    assert await is_cancelled(task)
    assert closing.journal[-2:] == ["a.on_session_error", "waited"]


async def test_a_hook_that_awaits_a_cancelled_task() -> None:
    """L4, C3: CancelledError raised by a hook's `end` stops no other hook, and is raised when all is closed."""
    journal: list[str] = []

    async def await_a_cancelled_task(*_: object) -> None:
        task = asyncio.create_task(anyio.sleep_forever())
        await asyncio.sleep(0)
        task.cancel()
        await task

    hooks = [RecordingHook("a", journal), RecordingHook("b", journal, end=await_a_cancelled_task)]
    with pytest.raises(asyncio.CancelledError):
        async with monitored(Graph(), *hooks) as session:
            pass
    assert journal[-2:] == ["b.end", "a.end"]
    assert session.should_stop()
    with pytest.raises(SessionClosedError):
        await hooks[0].session.run(nothing_to_fetch)


async def nothing_to_fetch() -> None:
    """A fetch."""


async def test_a_cancel_of_every_task_while_closing() -> None:
    """L4, L6: cancelled natively in its own task, as `asyncio.Runner.close` does, closing tells every hook."""
    gate = Gate()
    journal: list[str] = []

    async def live() -> None:
        hooks = [RecordingHook(name, journal, **({"end": gate} if name == "b" else {})) for name in "abc"]
        async with monitored(Graph(), *hooks):
            pass

    others = asyncio.all_tasks()
    task = asyncio.create_task(live())
    await gate.reached.wait()
    for each in asyncio.all_tasks() - others:
        each.cancel()
    assert await is_cancelled(task)
    assert journal[-3:] == ["c.end", "b.end", "a.end"]


async def test_a_native_cancel_of_aclose() -> None:
    """L5, L6: Task.cancel() on a task in aclose() does not stop the closing, which the block's end waits
    for."""
    gate = Gate()
    journal: list[str] = []
    async with monitored(Graph(), RecordingHook("a", journal, end=gate)) as session:
        task = asyncio.create_task(session.aclose())
        await gate.reached.wait()
        task.cancel()
        await anyio.wait_all_tasks_blocked()
        opener = asyncio.create_task(gate.open_when_all_wait())
    assert gate.opened.is_set()
    assert await is_cancelled(task)
    await opener
    assert journal == ["a.begin", "a.after_create_session", "a.end"]


async def test_a_timeout_expires_while_closing() -> None:
    """L6: asyncio.timeout around the block that expires while closing: closing finishes, then TimeoutError
    leaves."""
    gate = Gate()
    journal: list[str] = []

    async def expire(*_: object) -> None:
        timeout.reschedule(asyncio.get_running_loop().time())
        await gate()
        journal.append("waited")

    opener = asyncio.create_task(gate.open_when_all_wait())
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(None) as timeout:
            async with monitored(Graph(), RecordingHook("a", journal, end=expire)):
                pass
            journal.append("after the block")
    await opener
    assert timeout.expired()
    assert journal[-2:] == ["a.end", "waited"]
    assert this_task().cancelling() == 0


async def test_a_timeout_expires_in_the_body() -> None:
    """C3, L4: asyncio.timeout around the block that expires in a step: TimeoutError leaves, hooks are
    told."""
    hook = RecordingHook("a", [])

    async def step(ctx: StepContext) -> None:
        timeout.reschedule(asyncio.get_running_loop().time())
        await anyio.sleep_forever()

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(None) as timeout:
            async with monitored(Graph(), hook) as session:
                await session.run_step_fn(step)
    assert isinstance(ended(hook)[0], asyncio.CancelledError)
    assert this_task().cancelling() == 0


async def test_a_timeout_inside_the_body() -> None:
    """C4: asyncio.timeout around one run rolls that run back and lets the session go on."""
    graph, count, add = a_counter()

    async def wait() -> None:
        timeout.reschedule(asyncio.get_running_loop().time())
        await anyio.sleep_forever()

    async with monitored(graph) as session:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(None) as timeout:
                await session.run([add, wait])
        assert await session.run([count, add]) == [0, 1] or await session.run(count) == 1
        assert not session.should_stop()


async def test_wait_for_around_a_session() -> None:
    """L6: asyncio.wait_for that runs out while a session closes waits for the closing."""
    closing = Closing()
    loop = asyncio.get_running_loop()
    loop.call_later(0.05, closing.gate.opened.set)  # a timer of the same loop, due after that of wait_for
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(closing.live(), 0.01)
    assert closing.journal[-2:] == ["a.end", "waited"]


async def test_wait_for_around_a_run() -> None:
    """C4: asyncio.wait_for around a run that runs out: the run is rolled back and the session goes on."""
    graph, count, add = a_counter()

    async def wait() -> None:
        await anyio.sleep_forever()

    async with monitored(graph) as session:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(session.run([add, wait]), 0.01)
        assert session.global_step == 0
        assert await session.run(count) == 0


# C2: a stop and a cancel together


async def stop_and_be_cancelled(ctx: StepContext) -> None:
    """A step function that stops the session when a cancellation is under way but not yet delivered."""
    this_task().cancel()
    ctx.request_stop()


async def test_a_stop_does_not_swallow_a_pending_cancel() -> None:
    """C2: a cancel that is pending when the block absorbs the stop is raised by the block."""
    journal: list[str] = []

    async def live() -> None:
        async with monitored(Graph()) as session:
            await session.run_step_fn(stop_and_be_cancelled)
        journal.append("after the block")

    assert await is_cancelled(asyncio.create_task(live()))
    assert journal == []


async def test_a_loop_does_not_swallow_a_pending_cancel() -> None:
    """C2: the same for `session.loop`, when its host is cancelled."""
    journal: list[str] = []

    async def live() -> None:
        host = this_task()

        async def step(ctx: StepContext) -> None:
            host.cancel()
            ctx.request_stop()

        async with monitored(Graph()) as session:
            await session.loop(step)
            journal.append("after the loop")

    assert await is_cancelled(asyncio.create_task(live()))
    assert journal == []


async def lose_a_cancel() -> None:
    """Is cancelled and catches it without uncancel(), as careless code does."""
    this_task().cancel()
    try:
        await asyncio.sleep(0)
    except asyncio.CancelledError:
        pass


async def test_a_cancel_that_the_step_swallowed_for_a_stop() -> None:
    """C2: a cancel that was delivered and got lost for a stop is raised by the block: cancelling() has
    grown."""
    journal: list[str] = []

    async def step(ctx: StepContext) -> None:
        await lose_a_cancel()
        ctx.request_stop()

    async def live() -> None:
        async with monitored(Graph()) as session:
            await session.run_step_fn(step)
        journal.append("after the block")

    assert await is_cancelled(asyncio.create_task(live()))
    assert journal == []


async def test_a_task_group_that_lost_the_cancel_for_a_stop() -> None:
    """C2, S6: asyncio.TaskGroup drops its parent's cancellation for a child's stop; the session brings it
    back."""
    journal: list[str] = []
    waiting = asyncio.Event()

    async def live() -> None:
        async with monitored(Graph()) as session:

            async def stop_when_cancelled() -> None:
                try:
                    await anyio.sleep_forever()
                except asyncio.CancelledError:
                    session.request_stop()
                await session.run_step_fn(nothing)

            async with asyncio.TaskGroup() as group:
                group.create_task(stop_when_cancelled())
                await asyncio.sleep(0)
                waiting.set()
        journal.append("after the block")

    task = asyncio.create_task(live())
    await waiting.wait()
    await anyio.wait_all_tasks_blocked()
    task.cancel()
    assert await is_cancelled(task)
    assert journal == []


async def test_a_loop_in_a_task_whose_cancel_was_lost() -> None:
    """C2: `session.loop` too raises CancelledError when cancelling() has grown since it was entered."""
    journal: list[str] = []

    async def live() -> None:
        host = this_task()

        async def step(ctx: StepContext) -> None:
            host.cancel()
            try:
                await anyio.sleep_forever()
            except asyncio.CancelledError:
                ctx.request_stop()

        async with monitored(Graph()) as session:
            await session.loop(step)
            journal.append("after the loop")

    assert await is_cancelled(asyncio.create_task(live()))
    assert journal == []


@pytest.mark.parametrize("where", ["block", "loop"])
async def test_an_older_cancel_is_not_raised_again(where: str) -> None:
    """C2: a cancel that was dealt with before the session was entered is not invented again by a stop."""
    reached: list[str] = []

    async def stop(ctx: StepContext) -> None:
        ctx.request_stop()

    async def live() -> int:
        await lose_a_cancel()
        async with monitored(Graph()) as session:
            if where == "loop":
                await session.loop(stop)
            else:
                await session.run_step_fn(stop)
        await asyncio.sleep(0)
        reached.append("after the block")
        return this_task().cancelling()

    assert await asyncio.create_task(live()) == 1
    assert reached == ["after the block"]


@pytest.mark.parametrize("where", ["block", "loop"])
async def test_a_cancel_that_the_body_dealt_with_is_not_raised(where: str) -> None:
    """C2: what asyncio.timeout or a TaskGroup in a step cancelled and uncancelled is no cancellation of the
    block."""

    async def step(ctx: StepContext) -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await anyio.sleep_forever()
        with pytest.raises(ExceptionGroup):
            async with asyncio.TaskGroup() as group:
                group.create_task(fail(Oops("child")))
                await anyio.sleep_forever()
        ctx.request_stop()

    async def live() -> int:
        async with monitored(Graph()) as session:
            if where == "loop":
                await session.loop(step)
            else:
                await session.run_step_fn(step)
        await asyncio.sleep(0)
        return this_task().cancelling()

    assert await asyncio.create_task(live()) == 0


async def test_a_cancel_lost_by_the_body_stays_lost_without_a_stop() -> None:
    """C2: a body that ends normally, after it caught a cancel itself, is not cancelled by the session."""

    async def live() -> str:
        async with monitored(Graph()):
            await lose_a_cancel()
        return "after the block"

    assert await asyncio.create_task(live()) == "after the block"


async def fail(error: BaseException) -> None:
    """Raises that error."""
    raise error


# S6: asyncio.TaskGroup and its siblings


@pytest.mark.parametrize("uses_hooks", [False, True])
async def test_a_stop_in_a_child_of_a_step(uses_hooks: bool) -> None:
    """S6, T3: a stop raised in a child of a TaskGroup in a step function is absorbed; the step's work is
    committed."""
    graph, _, add = a_counter()

    async def step(ctx: StepContext) -> None:
        async def child() -> None:
            await (ctx.run_with_hooks(add) if uses_hooks else ctx.session.run(add))
            ctx.request_stop("child")

        async with asyncio.TaskGroup() as group:
            group.create_task(child())
            group.create_task(anyio.sleep_forever())

    async with monitored(graph) as session:
        await session.run_step_fn(step)
    reason = session.stop_reason
    assert reason is not None
    assert reason.message == "child"
    assert session.global_step == (1 if uses_hooks else 0)
    await asyncio.sleep(0)  # nothing is left to be raised here


async def test_a_stop_and_an_error_in_children() -> None:
    """S6, C1: a stop in one child and an error in its sibling: the error leaves bare, and the stop stays."""
    error = Oops("sibling")

    async def step(ctx: StepContext) -> None:
        async def stop() -> None:
            ctx.request_stop()

        async with asyncio.TaskGroup() as group:
            group.create_task(stop())
            group.create_task(fail(error))

    with pytest.raises((Oops, ExceptionGroup)) as caught:
        async with monitored(Graph()) as session:
            await session.run_step_fn(step)
    assert leaves(caught.value) == [error]
    assert session.should_stop()


async def test_a_sibling_of_the_session_fails() -> None:
    """L4, L6: a sibling of the session's task fails: the session is cancelled, closes in peace, and adds
    nothing."""
    gate = Gate()
    journal: list[str] = []
    error = Oops("sibling")

    async def wait(*_: object) -> None:
        await asyncio.sleep(0)
        journal.append("waited")

    async def live() -> None:
        async with monitored(Graph(), RecordingHook("a", journal, on_session_error=wait)):
            await gate()

    async def sibling() -> None:
        await gate.reached.wait()
        raise error

    with pytest.raises(ExceptionGroup) as caught:
        async with asyncio.TaskGroup() as group:
            group.create_task(live())
            group.create_task(sibling())
    assert leaves(caught.value) == [error]
    assert journal[-2:] == ["a.on_session_error", "waited"]


async def test_the_session_stops_and_its_siblings_go_on() -> None:
    """S6: a session's own stop does not touch its siblings in a TaskGroup."""
    done: list[str] = []

    async def stop(ctx: StepContext) -> None:
        ctx.request_stop()

    async def live() -> None:
        async with monitored(Graph()) as session:
            await session.loop(stop)
        done.append("session")
        released.set()

    async def sibling() -> None:
        await released.wait()
        done.append("sibling")

    released = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        group.create_task(live())
        group.create_task(sibling())
    assert done == ["session", "sibling"]


async def test_gather_with_exceptions_returned_keeps_the_stop() -> None:
    """S3: a stop that gather(return_exceptions=True) has put into a list is raised by the next run."""
    journal: list[str] = []

    async def step(ctx: StepContext) -> None:
        async def stop() -> None:
            ctx.request_stop()

        results = await asyncio.gather(stop(), return_exceptions=True)
        assert isinstance(results[0], StopRequested)
        await ctx.run_with_hooks("count")
        journal.append("not reached")

    graph, _, _ = a_counter()
    async with monitored(graph) as session:
        await session.run_step_fn(step)
    assert journal == []


async def test_nodes_that_overlap_are_cancelled_natively() -> None:
    """C3, E1: Task.cancel() of a run whose nodes overlap cancels them all, and nothing else leaves than
    that."""
    cancelled: list[int] = []
    waiting = asyncio.Semaphore(0)

    @op
    async def wait(i: int) -> None:
        waiting.release()
        try:
            await anyio.sleep_forever()
        except asyncio.CancelledError:
            cancelled.append(i)
            raise

    with (graph := Graph()):
        nodes = [wait(i) for i in range(3)]
    async with monitored(graph) as session:
        task = asyncio.create_task(session.run(nodes))
        for _ in nodes:
            await waiting.acquire()
        task.cancel()
        assert await is_cancelled(task)
    assert sorted(cancelled) == [0, 1, 2]


# L7: pytest-asyncio fixtures


@pytest_asyncio.fixture
async def lec_asyncio_session() -> AsyncIterator[tuple[MonitoredSession, Node[int], list[str]]]:
    """A session in a fixture that pytest-asyncio opens in one task and closes in another."""
    graph, _, add = a_counter()
    journal: list[str] = []
    async with monitored(graph, RecordingHook("a", journal)) as session:
        yield session, add, journal
    assert journal[-1] == "a.end"


async def test_a_session_in_a_pytest_asyncio_fixture(
    lec_asyncio_session: tuple[MonitoredSession, Node[int], list[str]],
) -> None:
    """L7: a session may live in a pytest-asyncio fixture."""
    session, add, _ = lec_asyncio_session
    assert await session.run(add) == 1


async def test_a_stop_in_another_task_than_the_one_that_opened() -> None:
    """L7, C2: opened in one task and closed in another, a stop is absorbed, and no cancellation is
    invented."""

    async def in_a_task(part: Coroutine[Any, Any, Any]) -> Any:
        return await asyncio.create_task(part)

    async def open_after_a_lost_cancel() -> None:
        await lose_a_cancel()
        await lose_a_cancel()
        await session.__aenter__()

    async def use_and_close() -> bool | None:
        session.request_stop()
        with pytest.raises(StopRequested) as caught:
            await session.run_step_fn(nothing)
        return await session.__aexit__(StopRequested, caught.value, caught.value.__traceback__)

    session = monitored(Graph())
    await in_a_task(open_after_a_lost_cancel())
    assert await in_a_task(use_and_close()) is True


async def test_closed_in_a_task_with_an_older_cancel() -> None:
    """L7, C2: closed in a task that dealt with a cancel before, a stop is absorbed; that cancel is not raised."""

    async def use_and_close() -> bool | None:
        await lose_a_cancel()
        session.request_stop()
        with pytest.raises(StopRequested) as caught:
            await session.run_step_fn(nothing)
        return await session.__aexit__(StopRequested, caught.value, caught.value.__traceback__)

    session = monitored(Graph())
    await asyncio.create_task(session.__aenter__())  # type: ignore[arg-type]
    assert await asyncio.create_task(use_and_close()) is True


# Nothing is left


async def test_no_task_is_left() -> None:
    """L6: whichever way a session ends, no task of its own is left behind, not even after a cancelled
    closing."""
    before = asyncio.all_tasks()
    closing = Closing()
    task = asyncio.create_task(closing.live())
    await closing.gate.reached.wait()
    task.cancel()
    await closing.gate.open_when_all_wait()
    assert await is_cancelled(task)
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == before
