"""Section L of the contract, rules 6 and 7: closing is shielded and bounded, and nothing is open across the
body."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from asyncstep import (
    Graph,
    MonitoredSession,
    Node,
    SessionClosedError,
    SessionRunHook,
    StepContext,
    Variable,
    op,
)
from asyncstep.testing import RecordingHook

from .counting import Oops, a_counter, ended, leaves
from .life_parts import Gate, monitored

pytestmark = pytest.mark.anyio

SHORT = 0.4  # a grace period that a test waits for, long enough for what comes after its half


def a_gated_counter(gate: Gate) -> tuple[Graph, Variable[int], Node[int]]:
    """The same, but the node waits at the gate before it adds."""

    @op
    async def one() -> int:
        await gate()
        return 1

    with (graph := Graph()):
        count = Variable(0, name="count")
        return graph, count, count.assign_add(one())


# L6: closing in a task of its own


@pytest.mark.parametrize("fails", [False, True])
async def test_closing_runs_in_a_task_of_its_own(fails: bool) -> None:
    """L6: the hooks end in one task, which is not the task of the body."""
    graph, _, _ = a_counter()
    tasks: list[int] = []

    async def note(*_: object) -> None:
        tasks.append(anyio.get_current_task().id)

    hooks = [RecordingHook(name, [], end=note, on_session_error=note) for name in "ab"]
    try:
        async with monitored(graph, *hooks):
            if fails:
                raise Oops("no")
    except Oops:
        assert fails
    assert len(tasks) == 2
    assert tasks[0] == tasks[1] != anyio.get_current_task().id


async def test_closing_under_a_cancelled_scope() -> None:
    """L6: the cancelled body's hooks may wait in on_session_error; the cancellation is raised when they are
    done."""
    graph, _, _ = a_counter()
    journal: list[str] = []
    gate = Gate()

    async def wait(*_: object) -> None:
        await gate()
        journal.append("waited")

    async with anyio.create_task_group() as group:
        group.start_soon(gate.open_when_all_wait)
        with anyio.CancelScope() as scope:
            async with monitored(graph, RecordingHook("a", journal, on_session_error=wait)):
                scope.cancel()
                await anyio.lowlevel.checkpoint()
            journal.append("after the block")
        journal.append("after the scope")
    assert scope.cancelled_caught
    assert journal[-3:] == ["a.on_session_error", "waited", "after the scope"]


async def test_a_cancellation_during_a_clean_closing() -> None:
    """L6: a scope cancelled while a clean closing is under way: `end` is finished, then the cancellation is
    raised."""
    graph, _, _ = a_counter()
    journal: list[str] = []
    gate = Gate()

    async def wait(*_: object) -> None:
        await gate()
        journal.append("waited")

    async def cancel() -> None:
        await gate.reached.wait()
        scope.cancel()
        await gate.open_when_all_wait()

    async with anyio.create_task_group() as group:
        group.start_soon(cancel)
        with anyio.CancelScope() as scope:
            async with monitored(graph, RecordingHook("a", journal, end=wait)):
                pass
            journal.append("after the block")
        journal.append("after the scope")
    assert scope.cancelled_caught
    assert journal[-3:] == ["a.end", "waited", "after the scope"]


async def test_a_cancellation_during_aclose() -> None:
    """L6: the same for aclose(): it finishes, then the cancellation is raised out of it; hooks end once."""
    graph, _, _ = a_counter()
    journal: list[str] = []
    gate = Gate()

    async def cancel() -> None:
        await gate.reached.wait()
        scope.cancel()
        await gate.open_when_all_wait()

    async with anyio.create_task_group() as group:
        async with monitored(graph, RecordingHook("a", journal, end=gate)) as session:
            group.start_soon(cancel)
            with anyio.CancelScope() as scope:
                await session.aclose()
                journal.append("not reached")
            assert session.should_stop()
    assert scope.cancelled_caught
    assert gate.opened.is_set()
    assert journal[-1] == "a.end"


async def test_one_of_many_closers_is_cancelled() -> None:
    """L5, L6: of two tasks in aclose() one is cancelled: the closing goes on, and the other one returns."""
    graph, _, _ = a_counter()
    journal: list[str] = []
    gate = Gate()
    scope = anyio.CancelScope()

    async def close_first() -> None:
        with scope:
            await session.aclose()
            journal.append("not reached")

    async def close_second() -> None:
        await session.aclose()
        journal.append("closed")

    async with monitored(graph, RecordingHook("a", journal, end=gate)) as session:
        async with anyio.create_task_group() as group:
            group.start_soon(close_first)
            await gate.reached.wait()
            group.start_soon(close_second)
            await anyio.wait_all_tasks_blocked()
            scope.cancel()
            await anyio.wait_all_tasks_blocked()
            gate.opened.set()
    assert scope.cancelled_caught
    assert journal[-2:] == ["a.end", "closed"]


# L6: the grace period


class Stuck(RecordingHook):
    """A recording hook that never ends."""

    async def end(self, session: Any) -> None:
        await super().end(session)
        try:
            await anyio.sleep_forever()
        finally:
            self.journal.append("cancelled")

    async def on_session_error(self, session: Any, error: BaseException) -> None:
        await super().on_session_error(session, error)
        await anyio.sleep_forever()


async def test_the_grace_period_ends() -> None:
    """L6: past the grace period what is unfinished is cancelled, and a TimeoutError that names it is
    raised."""
    graph, _, _ = a_counter()
    journal: list[str] = []
    with pytest.raises(TimeoutError, match="Stuck"):
        async with monitored(graph, Stuck("a", journal), stop_grace_period=SHORT):
            pass
    assert journal[-2:] == ["a.end", "cancelled"]


async def test_every_hook_ends_although_one_is_stuck() -> None:
    """L4, L6: the hooks that come after a stuck one are called all the same, once."""
    graph, _, _ = a_counter()
    journal: list[str] = []
    hooks = [RecordingHook("a", journal), Stuck("b", journal), RecordingHook("c", journal)]
    with pytest.raises(TimeoutError):
        async with monitored(graph, *hooks, stop_grace_period=SHORT):
            pass
    assert [entry for entry in journal if entry.endswith(".end")] == ["c.end", "b.end", "a.end"]


async def test_the_timeout_is_among_the_closing_errors() -> None:
    """L6, E2: with an error of the body and one of another hook, the TimeoutError stands beside them in a
    group."""
    graph, _, _ = a_counter()
    body, closing = Oops("body"), KeyError("closing")
    hooks = [Stuck("a", []), RecordingHook("b", [], on_session_error=closing)]
    with pytest.raises(ExceptionGroup) as caught:
        async with monitored(graph, *hooks, stop_grace_period=SHORT):
            raise body
    found = leaves(caught.value)
    assert {type(leaf) for leaf in found} >= {Oops, KeyError}
    assert {body, closing} < set(found)
    assert len([leaf for leaf in found if isinstance(leaf, TimeoutError)]) == 1
    assert len(found) == 3


async def test_a_session_past_its_grace_is_closed() -> None:
    """L5, L6: a closing that ran out of time is done: the session is closed and the graph is open again."""
    graph, count, _ = a_counter()
    hook = Stuck("a", [])
    session = monitored(graph, hook, stop_grace_period=SHORT)
    with pytest.raises(TimeoutError):
        async with session:
            pass
    assert not graph.finalized
    with pytest.raises(SessionClosedError):
        await hook.session.run(count)
    await session.aclose()


async def test_an_overdue_hook_that_fails() -> None:
    """L6: a hook that raises when it is cancelled at the end of the grace period: its error, and the TimeoutError."""
    error = Oops("clean-up")

    async def fail_when_cancelled(*_: object) -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(anyio.sleep_forever)
            try:
                await anyio.sleep_forever()
            finally:
                raise error

    with pytest.raises(ExceptionGroup) as caught:
        async with monitored(
            Graph(), RecordingHook("a", [], end=fail_when_cancelled), stop_grace_period=SHORT
        ):
            pass
    found = leaves(caught.value)
    assert error in found
    assert [isinstance(leaf, TimeoutError) for leaf in found if leaf is not error] == [True]


# L6: steps in flight


async def test_closing_waits_for_steps_in_flight() -> None:
    """L6: closing waits for a step in flight in another task, which commits and sees its after_run before any
    end."""
    gate = Gate()
    graph, count, add = a_gated_counter(gate)
    journal: list[str] = []
    read: list[int] = []

    async def look(session: Any) -> None:
        read.append(await session.run(count))

    async with anyio.create_task_group() as group:
        async with monitored(graph, RecordingHook("a", journal, end=look)) as session:
            group.start_soon(session.run, add)
            await gate.reached.wait()
            group.start_soon(gate.open_when_all_wait)
    assert journal[-4:] == ["a.before_run", "a.before_commit", "a.after_run", "a.end"]
    assert read == [1]
    assert session.global_step == 1


async def test_closing_waits_for_step_functions_in_flight() -> None:
    """L6: closing waits for a step function in flight as well, and for the runs with hooks that it still
    makes."""
    graph, _, add = a_counter()
    journal: list[str] = []
    gate = Gate()

    async def step(ctx: StepContext) -> None:
        await gate()
        await ctx.run_with_hooks(add)
        await ctx.session.run(add)

    async with anyio.create_task_group() as group:
        async with monitored(graph, RecordingHook("a", journal)) as session:
            group.start_soon(session.run_step_fn, step)
            await gate.reached.wait()
            group.start_soon(gate.open_when_all_wait)
    assert journal[-2:] == ["a.after_run", "a.end"]
    assert session.global_step == 1


async def test_a_step_that_outlives_the_closing_cannot_commit() -> None:
    """L6: a step that runs past half of the grace period cannot commit: SessionClosedError, and no trace of
    it."""
    gate = Gate()
    graph, count, add = a_gated_counter(gate)
    read: list[int] = []
    refused: list[SessionClosedError] = []

    async def look(session: Any) -> None:
        read.append(await session.run(count))

    async def late() -> None:
        with pytest.raises(SessionClosedError) as caught:
            await session.run(add)
        refused.append(caught.value)

    async with anyio.create_task_group() as group:
        async with monitored(graph, RecordingHook("a", [], end=look), stop_grace_period=SHORT) as session:
            group.start_soon(late)
            await gate.reached.wait()
        assert refused == []  # it was left alone: its task belongs to the user
        gate.opened.set()
    assert len(refused) == 1
    assert read == [0]
    assert session.global_step == 0


async def test_a_late_step_cannot_commit_while_hooks_end() -> None:
    """L6: nor can it commit while the hooks end: what they see and save is final."""
    gate = Gate()
    graph, count, add = a_gated_counter(gate)
    read: list[int] = []

    async def let_it_finish(session: Any) -> None:
        gate.opened.set()
        await finished.wait()
        read.append(await session.run(count))

    finished = anyio.Event()

    async def late() -> None:
        with pytest.raises(SessionClosedError):
            await session.run(add)
        finished.set()

    async with anyio.create_task_group() as group:
        hook = RecordingHook("a", [], end=let_it_finish)
        async with monitored(graph, hook, stop_grace_period=4 * SHORT) as session:
            group.start_soon(late)
            await gate.reached.wait()
    assert read == [0]


async def test_a_late_step_function_cannot_commit() -> None:
    """L6: the same for a step function, for its raw runs and for its runs with hooks."""
    graph, _, add = a_counter()
    gate = Gate()
    refused: list[str] = []

    async def step(ctx: StepContext) -> None:
        await ctx.session.run(add)
        await gate()
        with pytest.raises(SessionClosedError):
            await ctx.run_with_hooks(add)
        refused.append("run_with_hooks")

    async def late() -> None:
        with pytest.raises(SessionClosedError):
            await session.run_step_fn(step)
        refused.append("run_step_fn")

    async with anyio.create_task_group() as group:
        async with monitored(graph, stop_grace_period=SHORT) as session:
            group.start_soon(late)
            await gate.reached.wait()
        gate.opened.set()
    assert refused == ["run_with_hooks", "run_step_fn"]
    assert session.global_step == 0


async def test_no_step_starts_while_closing() -> None:
    """L6, L1: once closing has begun, a new run from another task is refused before any hook is called."""
    graph, _, add = a_counter()
    journal: list[str] = []
    gate = Gate()

    async def run() -> None:
        await gate.reached.wait()
        with pytest.raises(SessionClosedError):
            await session.run(add)
        journal.append("refused")
        gate.opened.set()

    async with anyio.create_task_group() as group:
        async with monitored(graph, RecordingHook("a", journal, end=gate)) as session:
            group.start_soon(run)
    assert journal[-2:] == ["a.end", "refused"]


# L7: nothing is open across the body


async def test_closed_in_the_order_of_opening() -> None:
    """L7: two sessions may be closed in any order: the first opened first."""
    graphs = [a_counter() for _ in range(2)]
    first, second = (monitored(graph) for graph, _, _ in graphs)
    await first.__aenter__()
    await second.__aenter__()
    await first.__aexit__(None, None, None)
    assert await second.run(graphs[1][2]) == 1
    await second.__aexit__(None, None, None)
    assert all(session.should_stop() for session in (first, second))


async def test_opened_and_closed_in_different_tasks() -> None:
    """L7: a session is opened in one task, used in a second and closed in a third, as a fixture's is."""
    graph, _, add = a_counter()
    journal: list[str] = []
    session = monitored(graph, RecordingHook("a", journal))
    results: list[int] = []

    async def use() -> None:
        results.append(await session.run(add))

    for part in (session.__aenter__, use, lambda: session.__aexit__(None, None, None)):
        async with anyio.create_task_group() as group:
            group.start_soon(part)
    assert results == [1]
    assert journal[-1] == "a.end"


async def test_a_cancel_scope_crosses_the_block() -> None:
    """L7: a scope that was opened in the body may be left after the closing."""
    graph, _, add = a_counter()
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(monitored(graph))
        scope = anyio.CancelScope()
        scope.__enter__()
        assert await session.run(add) == 1
        await session.aclose()
        scope.__exit__(None, None, None)


async def test_an_exit_stack() -> None:
    """L7: sessions on an AsyncExitStack are closed by it, and an error passes both bare."""
    graphs = [a_counter()[0] for _ in range(2)]
    journal: list[str] = []
    error = Oops("no")
    with pytest.raises(Oops) as caught:
        async with AsyncExitStack() as stack:
            for name, graph in zip("ab", graphs, strict=True):
                await stack.enter_async_context(monitored(graph, RecordingHook(name, journal)))
            raise error
    assert caught.value is error
    assert journal[-2:] == ["b.on_session_error", "a.on_session_error"]


async def test_a_lifespan_function() -> None:
    """L7: a session may live in an async generator that yields it, as a lifespan function does."""
    graph, _, add = a_counter()

    @asynccontextmanager
    async def lifespan() -> AsyncIterator[MonitoredSession]:
        async with monitored(graph) as session:
            yield session

    async with lifespan() as session:
        assert await session.run(add) == 1
    assert session.should_stop()


@pytest.fixture
async def lec_session(anyio_backend: Any) -> AsyncIterator[tuple[MonitoredSession, Node[int]]]:
    """A session that lives in a fixture."""
    graph, _, add = a_counter()
    async with monitored(graph) as session:
        yield session, add


async def test_a_fixture(lec_session: tuple[MonitoredSession, Node[int]]) -> None:
    """L7: a session may live in a fixture of anyio's pytest plugin."""
    session, add = lec_session
    assert await session.run(add) == 1


async def test_an_error_is_not_wrapped() -> None:
    """L7: an error of the body leaves as the same object, with the context and the cause that it had."""
    graph, _, _ = a_counter()
    cause, context = KeyError("cause"), LookupError("context")
    with pytest.raises(Oops) as caught:
        async with monitored(graph, SessionRunHook()):
            try:
                raise context
            except LookupError:
                raise Oops("no") from cause
    assert caught.value.__cause__ is cause
    assert caught.value.__context__ is context


async def test_a_task_group_in_the_body_cancels_only_itself() -> None:
    """L7: a failing task group in the body ends with its own group; the session sees that one error."""
    graph, _, _ = a_counter()
    hook = RecordingHook("a", [])
    error = Oops("child")

    async def fail() -> None:
        raise error

    with pytest.raises(ExceptionGroup) as caught:
        async with monitored(graph, hook):
            async with anyio.create_task_group() as group:
                group.start_soon(fail)
                await anyio.sleep_forever()
    assert leaves(caught.value) == [error]
    assert ended(hook)[0] is caught.value
