"""Section C of the contract, on every backend: who wins, what a cancellation undoes, how an interrupt leaves.

Native cancels are in test_native_cancel.py, signals in test_signals.py.
"""

from __future__ import annotations

import ast
import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

import asyncstep
from asyncstep import (
    AbortedError,
    Graph,
    MonitoredSession,
    Recovery,
    RunOptions,
    StepContext,
    StopRequested,
    Variable,
    op,
    source,
)
from asyncstep.testing import RecordingHook

from .counting import Oops, a_counter, ended, leaves
from .life_parts import Gate, RecordingCreator, monitored

pytestmark = pytest.mark.anyio


# C1: precedence


async def meet_the_stop(session: MonitoredSession) -> StopRequested:
    """The session's own stop, caught."""
    session.request_stop()
    with pytest.raises(StopRequested) as caught:
        await session.run("count")
    return caught.value


async def test_an_error_before_a_stop() -> None:
    """C1: a stop and an error in a group: the error leaves, and the stop level stays."""
    graph, _, _ = a_counter()
    error = Oops("no")
    with pytest.raises(Oops) as caught:
        async with monitored(graph) as session:
            stop = await meet_the_stop(session)
            raise BaseExceptionGroup("both", [stop, BaseExceptionGroup("inner", [error])])
    assert caught.value is error
    assert session.should_stop()


async def test_an_interrupt_before_a_stop() -> None:
    """C1: a stop and an interrupt in a group: the interrupt leaves."""
    graph, _, _ = a_counter()
    interrupt = KeyboardInterrupt()
    hook = RecordingHook("a", [])
    with pytest.raises(KeyboardInterrupt) as caught:
        async with monitored(graph, hook) as session:
            stop = await meet_the_stop(session)
            raise BaseExceptionGroup("both", [stop, interrupt])
    assert caught.value is interrupt
    assert ended(hook)[0] is interrupt


async def test_an_interrupt_and_an_error_are_both_kept() -> None:
    """C1, S6: an interrupt, an error and a stop in one group: only the stop is taken out."""
    graph, _, _ = a_counter()
    interrupt, error = KeyboardInterrupt(), Oops("no")
    with pytest.raises(BaseExceptionGroup) as caught:
        async with monitored(graph) as session:
            stop = await meet_the_stop(session)
            raise BaseExceptionGroup("all", [error, stop, interrupt])
    assert leaves(caught.value) == [error, interrupt]


async def test_a_cancellation_before_a_stop() -> None:
    """C1, C2: the scope is cancelled and the body ends by a stop: the cancellation leaves, on every
    backend."""
    graph, _, _ = a_counter()
    journal: list[str] = []
    with anyio.CancelScope() as scope:
        async with monitored(graph) as session:

            async def step(ctx: StepContext) -> None:
                scope.cancel()
                ctx.request_stop("mine")

            await session.run_step_fn(step)
        journal.append("not reached")
    assert scope.cancelled_caught
    assert journal == []
    reason = session.stop_reason
    assert reason is not None
    assert (reason.kind, reason.message) == ("requested", "mine")


async def test_a_stop_in_the_place_of_a_cancellation() -> None:
    """C1, C2: a stop raised while a cancellation is unwound does not take its place."""
    graph, _, _ = a_counter()
    journal: list[str] = []
    with anyio.CancelScope() as scope:
        async with monitored(graph) as session:

            async def step(ctx: StepContext) -> None:
                scope.cancel()
                try:
                    await anyio.lowlevel.checkpoint()
                finally:
                    ctx.request_stop()

            await session.run_step_fn(step)
        journal.append("not reached")
    assert scope.cancelled_caught
    assert journal == []


async def test_a_child_stops_while_the_host_is_cancelled() -> None:
    """C1, C2: a child task of the body stops the session while the body is cancelled: the cancellation
    leaves."""
    graph, _, _ = a_counter()
    journal: list[str] = []
    with anyio.CancelScope() as scope:
        async with monitored(graph) as session:

            async def stop() -> None:
                try:
                    await anyio.sleep_forever()
                finally:
                    session.request_stop()
                    with anyio.CancelScope(shield=True):
                        await session.run("count")

            async with anyio.create_task_group() as group:
                group.start_soon(stop)
                await anyio.wait_all_tasks_blocked()
                scope.cancel()
        journal.append("not reached")
    assert scope.cancelled_caught
    assert journal == []


async def test_the_reason_of_a_cancelled_body() -> None:
    """C1, S1: a cancelled body's session stops with the reason cancelled, a failed one's with the reason
    error."""
    sessions: list[MonitoredSession] = []
    with anyio.CancelScope() as scope:
        async with monitored(Graph()) as session:
            sessions.append(session)
            scope.cancel()
            await anyio.lowlevel.checkpoint()
    with pytest.raises(Oops):
        async with monitored(Graph()) as session:
            sessions.append(session)
            raise Oops("no")
    kinds = [session.stop_reason and session.stop_reason.kind for session in sessions]
    assert kinds == ["cancelled", "error"]


# C2: absorbing a stop


async def test_a_loop_that_absorbs_a_stop_sees_the_cancellation() -> None:
    """C2: `session.loop` absorbs the stop and executes a full checkpoint: a cancelled scope is seen there."""
    graph, _, _ = a_counter()
    journal: list[str] = []
    async with monitored(graph) as session:

        async def step(ctx: StepContext) -> None:
            scope.cancel()
            ctx.request_stop()

        with anyio.CancelScope() as scope:
            await session.loop(step)
            journal.append("not reached")
    assert scope.cancelled_caught
    assert journal == []


@pytest.mark.parametrize("where", ["block", "loop"])
async def test_no_cancellation_is_invented(where: str) -> None:
    """C2: without a cancellation, a stop ends the block and the loop normally, and the scope around is
    untouched."""
    graph, _, _ = a_counter()
    journal: list[str] = []

    async def step(ctx: StepContext) -> None:
        with anyio.CancelScope() as inner:
            inner.cancel()
            await anyio.lowlevel.checkpoint()
        with anyio.move_on_after(0):
            await anyio.sleep_forever()
        ctx.request_stop()

    with anyio.CancelScope() as scope:
        async with monitored(graph) as session:
            if where == "loop":
                await session.loop(step)
                journal.append("after the loop")
            else:
                await session.run_step_fn(step)
        await anyio.lowlevel.checkpoint()
        journal.append("after the block")
    assert not scope.cancelled_caught
    assert journal[-1] == "after the block"
    assert ("after the loop" in journal) == (where == "loop")


async def test_absorbing_a_stop_is_a_schedule_point() -> None:
    """C2: the checkpoint after absorbing a stop is a full one: loops that stop at once starve nobody."""
    graph, _, _ = a_counter()
    turns: list[int] = []
    over = anyio.Event()

    async def count_turns() -> None:
        while not over.is_set():
            turns.append(1)
            await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as group:
        async with monitored(graph) as session:
            session.request_stop()
            group.start_soon(count_turns)
            for _ in range(5):
                await session.loop(nothing)
            assert len(turns) >= 4
            over.set()


async def nothing(ctx: StepContext) -> None:
    """A step function that does nothing."""


# C3: a cancellation goes on


class Place:
    """A place at which a session waits; the test cancels it there."""

    def __init__(self) -> None:
        self.scope = anyio.CancelScope()
        self.reached = False

    async def __call__(self, *_: object) -> None:
        self.reached = True
        self.scope.cancel()
        await anyio.sleep_forever()


POINTS = [
    *("begin", "create", "after_create_session", "before_run", "node", "second node", "step function"),
    *("before_commit", "after_run", "source", "run in step", "loop", "run with timeout"),
]


@pytest.mark.parametrize("point", POINTS)
async def test_cancelled_wherever_it_waits(point: str) -> None:
    """C3: whatever the session waits for when it is cancelled, the cancellation leaves the block and ends the
    hooks."""
    place = Place()
    journal: list[str] = []
    hook = RecordingHook("a", journal)
    if point in {"begin", "after_create_session", "before_run", "before_commit", "after_run"}:
        hook.acts[point] = place

    async def items() -> Any:
        await place()
        yield 1

    with (graph := Graph()):
        Variable(0, name="count")
        source(items if point == "source" else [1], name="items")

    async def fetch() -> None:
        if "node" in point or point in {"run in step", "run with timeout"}:
            await place()

    async def step(ctx: StepContext) -> None:
        if point == "run in step":
            await ctx.run_with_hooks(fetch)
        await place()

    creator = RecordingCreator(graph, journal, place if point == "create" else None)
    with place.scope:
        async with MonitoredSession(creator, [hook]) as session:
            if point in {"step function", "run in step"}:
                await session.run_step_fn(step)
            elif point == "loop":
                await session.loop(step, workers=3)
            elif point == "source":
                await session.run("items")
            elif point == "second node":
                await session.run([fetch, fetch, "count"])
            elif point == "run with timeout":
                await session.run(fetch, options=RunOptions(timeout=1000))
            else:
                await session.run(fetch)
            journal.append("after the run")
        journal.append("after the block")
    assert place.reached
    assert place.scope.cancelled_caught
    assert journal[-1] == "a.on_session_error"
    assert {"after the run", "after the block"}.isdisjoint(journal)


async def test_cancelled_in_the_wait_before_a_retry() -> None:
    """C3, V3: a cancellation ends the wait before a retry."""
    scope = anyio.CancelScope()
    attempts: list[int] = []

    async def fail() -> None:
        attempts.append(1)
        raise AbortedError("try again")

    async with anyio.create_task_group() as group:

        async def cancel() -> None:
            await anyio.wait_all_tasks_blocked()
            scope.cancel()

        with scope:
            async with monitored(Graph(), recovery=Recovery(wait_initial=1000, wait_max=1000)) as session:
                group.start_soon(cancel)
                await session.run(fail)
    assert scope.cancelled_caught
    assert attempts == [1]


async def test_cancelled_in_on_run_error() -> None:
    """C3, R4: cancelled while on_run_error waits, shielded: it finishes, and the cancellation leaves, not the
    error."""
    journal: list[str] = []

    async def wait(*_: object) -> None:
        scope.cancel()
        await anyio.lowlevel.checkpoint()
        journal.append("waited")

    async def fetch() -> None:
        scope.cancel()
        await anyio.sleep_forever()

    with anyio.CancelScope() as scope:
        async with monitored(Graph(), RecordingHook("a", journal, on_run_error=wait)) as session:
            await session.run(fetch)
    assert scope.cancelled_caught
    assert journal.index("waited") == journal.index("a.on_run_error") + 1


def jumps(tree: ast.AST, in_loop: bool = False) -> Iterator[ast.AST]:
    """The statements under a node that jump out of it, and so would swallow what is being raised."""
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.Return) or (isinstance(child, ast.Break | ast.Continue) and not in_loop):
            yield child
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
            yield from jumps(child, in_loop or isinstance(child, ast.For | ast.AsyncFor | ast.While))


def test_nothing_jumps_out_of_a_finally() -> None:
    """C3: no module of the package has a return, break or continue that leaves a `finally`."""
    found = []
    for path in Path(asyncstep.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Try):
                block = ast.Module(node.finalbody, [])
                found += [f"{path.name}:{getattr(jump, 'lineno', 0)}" for jump in jumps(block)]
    assert found == []


# C4: a cancelled step leaves no trace


@pytest.mark.parametrize("use", ["run", "run_step_fn", "loop"])
async def test_a_cancelled_step_leaves_no_trace(use: str) -> None:
    """C4: what a cancelled step wrote is gone, its number was not used, and its items are given again,
    first."""
    place = Place()

    async def wait() -> None:
        await place()

    with (graph := Graph()):
        count = Variable(0, name="count")
        add = count.assign_add(1)
        items = source("abc", name="items")
        wait_last = op(wait)().after(add, items)

    async def step(ctx: StepContext) -> None:
        await ctx.session.run([add, items])
        await ctx.session.run(items)
        await place()

    async with monitored(graph) as session:
        assert await session.run([add, items]) == [1, "a"]
        with place.scope:
            if use == "run":
                await session.run([add, items, wait_last])
            elif use == "run_step_fn":
                await session.run_step_fn(step)
            else:
                await session.loop(step)
        assert place.scope.cancelled_caught
        assert session.global_step == 1
        assert await session.run(count) == 1
        assert await session.run(items) == "b"
        assert await session.run(items) == "c"


async def test_items_of_a_cancelled_step_come_first() -> None:
    """C4, D1: items of a cancelled step are given again before items that were never given, in their
    order."""
    with (graph := Graph()):
        items = source(range(6), name="items")
    gate = Gate()
    scope = anyio.CancelScope()

    async def take_two(ctx: StepContext) -> None:
        assert [await ctx.session.run(items), await ctx.session.run(items)] == [0, 1]
        await gate()

    async def cancelled() -> None:
        with scope:
            await session.run_step_fn(take_two)

    async with monitored(graph) as session:
        async with anyio.create_task_group() as group:
            group.start_soon(cancelled)
            await gate.reached.wait()
            assert await session.run(items) == 2
            scope.cancel()
        assert [await session.run(items) for _ in range(4)] == [0, 1, 3, 4]


async def test_what_a_step_function_committed_stays() -> None:
    """C4, T3: of a cancelled step function, what its runs with hooks committed stays; the rest leaves no
    trace."""
    graph, count, add = a_counter()
    place = Place()

    async def step(ctx: StepContext) -> None:
        await ctx.run_with_hooks(add)
        await ctx.session.run(add)
        await place()

    async with monitored(graph) as session:
        with place.scope:
            await session.run_step_fn(step)
        assert place.scope.cancelled_caught
        assert await session.run(count) == 1
        assert session.global_step == 2


async def test_a_cancellation_after_the_commit() -> None:
    """C4, T7: cancelled in after_run, the step is committed and stays so."""
    graph, count, add = a_counter()
    place = Place()
    async with monitored(graph, RecordingHook("a", [], after_run=place)) as session:
        with place.scope:
            await session.run(add)
        assert place.scope.cancelled_caught
        assert await session.run_without_hooks(count) == 1


# C5: interrupts

INTERRUPTS = [KeyboardInterrupt, SystemExit]


@pytest.mark.parametrize("kind", INTERRUPTS)
@pytest.mark.parametrize("place", ["body", "node", "step function", "before_run", "after_run"])
async def test_an_interrupt_leaves_as_the_same_object(kind: type[BaseException], place: str) -> None:
    """C5: an interrupt raised in the host task, wherever it is, leaves as the same object; the hooks are
    told."""
    interrupt = kind()
    hook = RecordingHook("a", [])
    if place in {"before_run", "after_run"}:
        hook.acts[place] = interrupt

    async def fail(*_: object) -> None:
        raise interrupt

    async def fetch() -> int:
        return 1

    with pytest.raises(kind) as caught:
        async with monitored(Graph(), hook) as session:
            if place == "body":
                raise interrupt
            if place == "step function":
                await session.run_step_fn(fail)
            await session.run(fail if place == "node" else fetch)
    assert caught.value is interrupt
    assert ended(hook)[0] is interrupt


@pytest.mark.parametrize("kind", INTERRUPTS)
async def test_closing_errors_beside_an_interrupt(
    kind: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    """C5: closing errors beside an interrupt become notes on it and are logged; the object is the same, and
    bare."""
    interrupt = kind("first")
    hooks = [
        RecordingHook("a", [], on_session_error=Oops("closing one")),
        RecordingHook("b", [], on_session_error=KeyError("closing two")),
    ]
    with pytest.raises(kind) as caught:
        async with monitored(Graph(), *hooks):
            raise interrupt
    assert caught.value is interrupt
    noted = "\n".join(interrupt.__notes__)
    for message in ("closing one", "closing two"):
        assert message in noted
        assert message in caplog.text
    assert [ended(hook)[0] for hook in hooks] == [interrupt, interrupt]


async def test_closing_errors_beside_a_group_with_an_interrupt(caplog: pytest.LogCaptureFixture) -> None:
    """C5: a group with an interrupt in it, as a cancelled nursery raises it, leaves as the same object too."""
    group = BaseExceptionGroup("a nursery", [KeyboardInterrupt(), Oops("body")])
    with pytest.raises(BaseExceptionGroup) as caught:
        async with monitored(Graph(), RecordingHook("a", [], on_session_error=Oops("closing"))) as session:
            raise group
    assert caught.value is group
    assert "closing" in "".join(group.__notes__)
    assert "closing" in caplog.text
    reason = session.stop_reason
    assert reason is not None
    assert reason.kind == "signal"


async def test_an_interrupt_in_a_group_of_one_worker_ends_the_loop_at_once() -> None:
    """C5, W2: an interrupt in a group, out of one worker, does not wait for the steps of the others."""
    group = BaseExceptionGroup("a nursery", [KeyboardInterrupt()])
    deaf = anyio.Event()

    async def step(ctx: StepContext) -> None:
        if ctx.worker == 0:
            await deaf.wait()
            raise group
        deaf.set()
        await anyio.sleep_forever()

    with anyio.fail_after(10):
        async with monitored(Graph()) as session:
            with pytest.raises(BaseExceptionGroup) as caught:
                await session.loop(step, workers=2)
    assert caught.value is group


async def test_a_stuck_hook_beside_an_interrupt(caplog: pytest.LogCaptureFixture) -> None:
    """C5, L6: the TimeoutError of a closing beside an interrupt is a note on it as well."""
    interrupt = KeyboardInterrupt()

    async def stuck(*_: object) -> None:
        await anyio.sleep_forever()

    with pytest.raises(KeyboardInterrupt) as caught:
        async with monitored(Graph(), RecordingHook("a", [], on_session_error=stuck), stop_grace_period=0.1):
            raise interrupt
    assert caught.value is interrupt
    for told in ("\n".join(interrupt.__notes__), caplog.text):
        assert "stop_grace_period" in told
        assert "on_session_error" in told


@pytest.mark.parametrize("point", ["on_run_error", "after_run"])
async def test_an_interrupt_beside_an_error_of_a_run(point: str, caplog: pytest.LogCaptureFixture) -> None:
    """C1, C5, E3: an interrupt in a hook goes before the error of the run, which is noted on it and logged."""
    interrupt, error = KeyboardInterrupt(), Oops("the run")
    first = RecordingHook("a", [], **({"after_run": error} if point == "after_run" else {}))
    second = RecordingHook("b", [], **{point: interrupt})

    async def fetch() -> None:
        if point == "on_run_error":
            raise error

    with pytest.raises(KeyboardInterrupt) as caught:
        async with monitored(Graph(), first, second) as session:
            await session.run(fetch)
    assert caught.value is interrupt
    assert "the run" in "".join(interrupt.__notes__)
    assert "the run" in caplog.text


async def test_a_hook_that_is_stuck_in_on_run_error(caplog: pytest.LogCaptureFixture) -> None:
    """R4, E3: a hook that does not end when it is told of an error is cancelled after the grace period, and logged."""
    journal: list[str] = []
    error = Oops("the run")

    async def stuck(*_: object) -> None:
        await anyio.sleep_forever()

    async def fail() -> None:
        raise error

    hooks = [RecordingHook("a", journal, on_run_error=stuck), RecordingHook("b", journal)]
    async with monitored(Graph(), *hooks, stop_grace_period=0.1) as session:
        with pytest.raises(Oops) as caught:
            await session.run(fail)
    assert caught.value is error
    assert journal[-4:-2] == ["a.on_run_error", "b.on_run_error"]
    assert "on_run_error of RecordingHook" in caplog.text


async def test_a_cancellation_beside_a_stop_of_a_run() -> None:
    """C1: of a hook that is cancelled in after_run and one that meets the stop there, the cancellation leaves."""
    graph, _, _ = a_counter()
    place = Place()
    journal: list[str] = []

    async def meet_stop(*_: object) -> None:
        session.request_stop()
        await session.run("count")

    with place.scope:
        async with monitored(
            graph, RecordingHook("a", [], after_run=place), RecordingHook("b", [], after_run=meet_stop)
        ) as session:
            await session.run("count")
        journal.append("not reached")
    assert place.scope.cancelled_caught
    assert journal == []


async def test_an_interrupt_rolls_the_step_back() -> None:
    """C5, T4: an interrupted step leaves no trace."""
    graph, count, add = a_counter()

    async def step(ctx: StepContext) -> None:
        await ctx.session.run(add)
        raise KeyboardInterrupt

    async with monitored(graph) as session:
        with pytest.raises(KeyboardInterrupt):
            await session.run_step_fn(step)
        assert session.global_step == 0
        assert await session.run(count) == 0


# C6: signal handlers


async def test_no_signal_handler_is_installed() -> None:
    """C6: the library installs no signal handler by itself: not to open, not to run, not to close."""
    graph, _, add = a_counter()
    signals = [signal.SIGINT, signal.SIGTERM]
    before = [signal.getsignal(number) for number in signals]
    seen: list[Any] = []

    async def look(*_: object) -> None:
        seen.append([signal.getsignal(number) for number in signals])

    points = ["begin", "after_create_session", "before_run", "after_run", "end"]
    hook = RecordingHook("a", [], **dict.fromkeys(points, look))
    async with monitored(graph, hook) as session:
        await session.run(add)
        with contextlib.suppress(StopRequested):
            await session.loop(stop_at_once)
    await look()
    assert len(seen) >= 6
    assert all(handlers == before for handlers in seen)


async def stop_at_once(ctx: StepContext) -> None:
    """A step function that asks for a stop."""
    ctx.request_stop()
