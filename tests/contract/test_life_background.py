"""Section L of the contract, rules 8 and 9: background tasks have a home, and no kind of step leaves
growth."""

from __future__ import annotations

import gc
import logging
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from asyncstep import (
    AbortedError,
    Graph,
    MonitoredSession,
    Recovery,
    RunMetadata,
    RunOptions,
    SessionRunArgs,
    StepContext,
    StopRequested,
    Variable,
    op,
    source,
)
from asyncstep.testing import HookCall, RecordingHook

from .counting import Oops, leaves
from .life_parts import Gate, monitored

pytestmark = pytest.mark.anyio


def a_graph() -> Graph:
    """A graph without nodes."""
    return Graph()


# L8: background tasks


async def test_without_a_task_group() -> None:
    """L8: without a task group, asking for a background task is a RuntimeError that says how to give one."""

    async def background() -> None:
        raise AssertionError("never started")

    hook = RecordingHook("a", [])
    async with monitored(a_graph(), hook):
        with pytest.raises(RuntimeError, match="task_group"):
            hook.coord.start_soon(background)


async def test_background_tasks_run_beside_the_body() -> None:
    """L8: with a task group, a hook's background task runs while the body does."""
    gate = Gate()

    async def start(_: Any, coord: Any) -> None:
        coord.start_soon(gate)

    async with anyio.create_task_group() as group:
        hook = RecordingHook("a", [], after_create_session=start)
        async with monitored(a_graph(), hook, task_group=group):
            with anyio.fail_after(10):
                await gate.reached.wait()
            gate.opened.set()


async def test_closing_tells_background_tasks_to_stop() -> None:
    """L8: closing sets the stop event, waits for the tasks that heed it, and cancels none of them."""
    journal: list[str] = []
    started = anyio.Event()

    async with anyio.create_task_group() as group:
        hook = RecordingHook("a", journal)
        async with monitored(a_graph(), hook, task_group=group) as session:

            async def background() -> None:
                started.set()
                await hook.coord.wait_for_stop()
                assert hook.coord.should_stop()
                await anyio.lowlevel.checkpoint()
                journal.append("stopped")

            hook.coord.start_soon(background)
            await started.wait()
        assert journal.count("stopped") == 1
    assert session.stop_reason is None


async def test_closing_cancels_what_does_not_stop() -> None:
    """L8: a background task that does not heed the stop event is cancelled by the closing; the user's group
    is not."""
    journal: list[str] = []
    started = anyio.Event()

    async def deaf() -> None:
        started.set()
        try:
            await anyio.sleep_forever()
        finally:
            journal.append("cancelled")

    async with anyio.create_task_group() as group:
        hook = RecordingHook("a", [])
        async with monitored(a_graph(), hook, task_group=group, stop_grace_period=0.5):
            hook.coord.start_soon(deaf)
            await started.wait()
        assert journal == ["cancelled"]
        await anyio.lowlevel.checkpoint()
        assert not group.cancel_scope.cancel_called


async def test_a_background_error_does_not_reach_the_users_group() -> None:
    """L8, E4: a background error comes out of the session, and the user's task group goes on."""
    error = Oops("background")
    journal: list[str] = []

    async def fail() -> None:
        raise error

    gate = Gate()
    async with anyio.create_task_group() as group:
        group.start_soon(gate)
        hook = RecordingHook("a", [])
        with pytest.raises(Oops) as caught:
            async with monitored(a_graph(), hook, task_group=group):
                hook.coord.start_soon(fail)
                await anyio.wait_all_tasks_blocked()
        assert caught.value is error
        await anyio.lowlevel.checkpoint()
        gate.opened.set()
        journal.append("the group goes on")
    assert journal == ["the group goes on"]


async def test_a_background_task_that_meets_the_stop() -> None:
    """L8: a background task that runs into the session's stop ends; the user's task group does not see it."""
    with (graph := Graph()):
        count = Variable(0, name="count")
    met: list[bool] = []

    async with anyio.create_task_group() as group:
        hook = RecordingHook("a", [])
        async with monitored(graph, hook, task_group=group) as session:

            async def background() -> None:
                await hook.coord.wait_for_stop()
                try:
                    await session.run(count)
                except StopRequested:
                    met.append(True)
                    raise

            hook.coord.start_soon(background)
            session.request_stop()
            await anyio.wait_all_tasks_blocked()
        await anyio.lowlevel.checkpoint()
    assert met == [True]


async def test_background_tasks_of_a_loop() -> None:
    """L8: inside `session.loop` background tasks have a home, which is gone when the loop has returned."""
    gate = Gate()
    hook = RecordingHook("a", [])

    async def step(ctx: StepContext) -> None:
        hook.coord.start_soon(gate)
        await gate.reached.wait()
        gate.opened.set()
        ctx.request_stop()

    async with monitored(a_graph(), hook) as session:
        with anyio.fail_after(10):
            await session.loop(step)
        with pytest.raises(RuntimeError, match="task_group"):
            hook.coord.start_soon(gate)


async def test_a_loop_does_not_wait_for_ever_for_its_background_tasks() -> None:
    """L8, W1: background tasks in the loop's own task group end with the loop, also those that heed no
    stop."""
    started = anyio.Event()
    journal: list[str] = []
    hook = RecordingHook("a", [])

    async def deaf() -> None:
        started.set()
        try:
            await anyio.sleep_forever()
        finally:
            journal.append("cancelled")

    async def step(ctx: StepContext) -> None:
        hook.coord.start_soon(deaf)
        await started.wait()
        ctx.request_stop()

    with anyio.fail_after(10):
        async with monitored(a_graph(), hook, stop_grace_period=0.5) as session:
            await session.loop(step)
            assert journal == ["cancelled"]


async def test_a_background_error_in_a_loop() -> None:
    """L8, E4, W2: a background error in a loop is raised from the loop, bare, after the step in flight."""
    error = Oops("background")
    hook = RecordingHook("a", [])

    async def fail() -> None:
        raise error

    async def step(ctx: StepContext) -> None:
        if not ctx.should_stop():
            hook.coord.start_soon(fail)
            await hook.coord.wait_for_stop()

    with anyio.fail_after(10):
        async with monitored(a_graph(), hook) as session:
            with pytest.raises(Oops) as caught:
                await session.loop(step)
            assert caught.value is error


async def test_a_background_task_may_close_the_session() -> None:
    """L5, L8: aclose() in a background task does not wait for that task, nor cancel it."""
    journal: list[str] = []

    async with anyio.create_task_group() as group:
        hook = RecordingHook("a", journal)
        with anyio.fail_after(10):
            async with monitored(a_graph(), hook, task_group=group, stop_grace_period=1) as session:

                async def close() -> None:
                    await session.aclose()
                    journal.append("closed")

                hook.coord.start_soon(close)
                await anyio.wait_all_tasks_blocked()
    assert journal[-2:] == ["a.end", "closed"]


async def test_a_background_task_that_fails_while_its_group_is_cancelled() -> None:
    """L8, C3: what fails beside a cancellation reaches the session; the cancellation goes on in the user's group."""
    error = Oops("clean-up")
    raised: list[BaseException] = []

    async def fail_when_cancelled() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            raise error

    async def background() -> None:
        async with anyio.create_task_group() as inner:
            inner.start_soon(anyio.sleep_forever)
            inner.start_soon(fail_when_cancelled)

    async with anyio.create_task_group() as group:
        hook = RecordingHook("a", [])
        try:
            async with monitored(a_graph(), hook, task_group=group):
                hook.coord.start_soon(background)
                await anyio.wait_all_tasks_blocked()
                group.cancel_scope.cancel()
                await anyio.sleep_forever()
        except ExceptionGroup as caught:
            raised.append(caught)
    assert [leaves(each) for each in raised] == [[error]]


# L9: no growth


def allocated() -> int:
    """The memory blocks in use after a full collection."""
    gc.collect()
    return sys.getallocatedblocks()


async def growth(step: Callable[[], Awaitable[object]], steps: int) -> int:
    """The memory blocks that a number of steps left behind, after a warm-up."""
    for _ in range(1_000):
        await step()
    before = allocated()
    for _ in range(steps):
        await step()
    return allocated() - before


class Watching(RecordingHook):
    """A hook that fetches and is called at every point, without keeping anything."""

    def note(self, call: HookCall) -> None:
        pass


STEPS = 4_000


def fetching_anew(session: MonitoredSession, graph: Graph) -> Callable[[], Awaitable[object]]:
    """Runs that ask for the same nodes in a nesting that is new each time."""
    nodes = list(graph.variables.values())
    return lambda: session.run({"a": [nodes[0], (nodes[1],)], "b": nodes[0]})


def fetching_functions(session: MonitoredSession, graph: Graph) -> Callable[[], Awaitable[object]]:
    """Runs that each fetch a coroutine function of their own."""

    async def run() -> None:
        async def fetch() -> int:
            return 1

        await session.run(fetch)

    return run


def fetching_subsets(session: MonitoredSession, graph: Graph) -> Callable[[], Awaitable[object]]:
    """Runs that each fetch a set of nodes that was never fetched before."""
    nodes = list(graph.variables.values())
    number = iter(range(sys.maxsize))

    async def run() -> None:
        bits = next(number)
        await session.run([node for i, node in enumerate(nodes) if bits >> i & 1])

    return run


def raw_runs(session: MonitoredSession, graph: Graph) -> Callable[[], Awaitable[object]]:
    """Step functions with a raw run and a run with hooks."""
    node = graph["count0"]

    async def step(ctx: StepContext) -> None:
        await ctx.session.run(node)
        await ctx.run_with_hooks(node)

    return lambda: session.run_step_fn(step)


def new_step_functions(session: MonitoredSession, graph: Graph) -> Callable[[], Awaitable[object]]:
    """Steps that are each a function of its own."""

    async def run() -> None:
        async def step(ctx: StepContext) -> None:
            pass

        await session.run_step_fn(step)

    return run


def failing(session: MonitoredSession, graph: Graph) -> Callable[[], Awaitable[object]]:
    """Runs that fail."""

    async def fail() -> None:
        raise Oops

    async def run() -> None:
        with pytest.raises(Oops):
            await session.run(fail)

    return run


def without_hooks(session: MonitoredSession, graph: Graph) -> Callable[[], Awaitable[object]]:
    """Runs without hooks that feed a variable."""
    node = graph["count0"]
    return lambda: session.run_without_hooks(node, {node: 1})


def taking_items(session: MonitoredSession, graph: Graph) -> Callable[[], Awaitable[object]]:
    """Runs that take an item each."""
    return lambda: session.run(graph["items"])


def retried(session: MonitoredSession, graph: Graph) -> Callable[[], Awaitable[object]]:
    """Runs that fail once each, and are run again."""
    failed: list[bool] = []

    async def fail_every_other_time() -> None:
        failed.append(True)
        if len(failed) == 1:
            raise AbortedError
        failed.clear()

    return lambda: session.run([fail_every_other_time, "items"])


def cancelled(session: MonitoredSession, graph: Graph) -> Callable[[], Awaitable[object]]:
    """Runs that are cancelled after they took an item."""

    async def run() -> None:
        with anyio.CancelScope() as scope:

            async def wait() -> None:
                scope.cancel()
                await anyio.lowlevel.checkpoint()

            await session.run(["items", wait])

    return run


def overlapping(session: MonitoredSession, graph: Graph) -> Callable[[], Awaitable[object]]:
    """Runs whose nodes overlap, with the times of the nodes."""

    async def wait() -> None:
        await anyio.lowlevel.checkpoint()

    options = RunOptions(trace=True)
    return lambda: session.run([wait, wait, wait], options=options, run_metadata=RunMetadata())


@pytest.mark.parametrize(
    "kind",
    [
        fetching_anew,
        fetching_functions,
        fetching_subsets,
        raw_runs,
        new_step_functions,
        failing,
        without_hooks,
        taking_items,
        retried,
        cancelled,
        overlapping,
    ],
)
async def test_no_kind_of_step_leaves_growth(
    kind: Callable[[MonitoredSession, Graph], Callable[[], Awaitable[object]]],
) -> None:
    """L9: nothing is kept per step, whatever kind of step it is."""
    with (graph := Graph()):
        for i in range(16):
            Variable(0, name=f"count{i}")
        source(range(1_000_000), name="items")

    async def args(_: object) -> SessionRunArgs:
        return SessionRunArgs({"count": graph["count1"]})

    recovery = Recovery(wait_initial=0.0, jitter=0.0)
    logging.disable(logging.CRITICAL)  # pytest keeps the records of the log
    try:
        async with monitored(graph, Watching("a", [], before_run=args), recovery=recovery) as session:
            assert await growth(kind(session, graph), STEPS) < STEPS / 10
    finally:
        logging.disable(logging.NOTSET)


async def test_background_tasks_leave_no_growth() -> None:
    """L9: nothing is kept of a background task that has ended."""
    hook = Watching("a", [])

    async def start_one() -> None:
        ended = anyio.Event()

        async def background() -> None:
            ended.set()

        hook.coord.start_soon(background)
        await ended.wait()
        await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as group, monitored(a_graph(), hook, task_group=group):
        assert await growth(start_one, STEPS) < STEPS / 10


async def test_a_loop_leaves_no_growth() -> None:
    """L9: nothing is kept per step by a loop of many workers."""

    @op
    async def wait() -> int:
        await anyio.lowlevel.checkpoint()
        return 1

    with (graph := Graph()):
        count = Variable(0, name="count")
        add = count.assign_add(wait())
    blocks: list[int] = []

    async def step(ctx: StepContext) -> None:
        await ctx.run_with_hooks(add)
        if session.global_step >= 1_000 + len(blocks) * STEPS:
            blocks.append(allocated())
        if len(blocks) > 1:
            ctx.request_stop()

    async with monitored(graph, Watching("a", [])) as session:
        await session.loop(step, workers=8)
    assert blocks[1] - blocks[0] < STEPS / 10
