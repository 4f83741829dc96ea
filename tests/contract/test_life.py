"""Section L of the contract, rules 1 to 5: construction, opening, the end of the hooks, closing once."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from asyncstep import (
    Coordinator,
    Graph,
    InvalidArgumentError,
    MonitoredSession,
    Node,
    OutOfRangeError,
    Recovery,
    Session,
    SessionClosedError,
    SessionRunHook,
    StepContext,
    StopRequested,
    op,
    source,
)
from asyncstep.testing import RecordingHook

from .counting import Oops, a_counter, ended, leaves
from .life_parts import Gate, RecordingCreator, monitored

pytestmark = pytest.mark.anyio


async def no_step(ctx: StepContext) -> None:
    """A step function that does nothing."""


# L1: construction


async def test_constructing_does_nothing() -> None:
    """L1: constructing a session calls no hook and no creator, and leaves the graph open."""
    graph, _, _ = a_counter()
    journal: list[str] = []
    MonitoredSession(RecordingCreator(graph, journal), [RecordingHook("a", journal)])
    assert journal == []
    assert not graph.finalized


USES: dict[str, Callable[[Any, Any], Awaitable[Any]]] = {
    "run": lambda session, node: session.run(node),
    "run_without_hooks": lambda session, node: session.run_without_hooks(node),
    "run_step_fn": lambda session, node: session.run_step_fn(no_step),
    "loop": lambda session, node: session.loop(no_step),
}


@pytest.mark.parametrize("use", USES)
async def test_use_before_opening(use: str) -> None:
    """L1: any use before the opening raises SessionClosedError, which says that it has not been opened."""
    graph, _, add = a_counter()
    with pytest.raises(SessionClosedError, match="not been opened"):
        await USES[use](monitored(graph), add)


@pytest.mark.parametrize("use", USES)
async def test_use_after_closing(use: str) -> None:
    """L1: any use after the closing raises SessionClosedError, which says that it is closed."""
    graph, _, add = a_counter()
    async with monitored(graph) as session:
        pass
    with pytest.raises(SessionClosedError, match="closed") as caught:
        await USES[use](session, add)
    assert "not been opened" not in str(caught.value)


async def test_a_raw_session_is_not_used_outside_its_block() -> None:
    """L1: a raw session too refuses to run before it is opened and after it is closed, and says which."""
    graph, count, _ = a_counter()
    session = Session(graph)
    with pytest.raises(SessionClosedError, match="not been opened"):
        await session.run(count)
    async with session:
        assert await session.run(count) == 0
    with pytest.raises(SessionClosedError, match="closed"):
        await session.run(count)


async def test_what_happened_can_be_read_after_closing() -> None:
    """L1: reading what happened is no use of the session: it works after the closing."""
    graph, _, add = a_counter()
    async with monitored(graph) as session:
        await session.run(add)
        session.request_stop("enough")
    reason = session.stop_reason
    assert (session.global_step, session.recoveries, session.graph) == (1, 0, graph)
    assert reason is not None
    assert reason.message == "enough"
    assert session.should_stop()


async def test_should_stop_before_opening() -> None:
    """L1, R9: `should_stop` never raises: False before the opening."""
    graph, _, _ = a_counter()
    assert monitored(graph).should_stop() is False


async def test_opened_once() -> None:
    """L1: a session that was closed is not opened again, and nothing is called by the attempt."""
    graph, _, _ = a_counter()
    journal: list[str] = []
    async with monitored(graph, RecordingHook("a", journal)) as session:
        pass
    before = list(journal)
    with pytest.raises(SessionClosedError, match="closed"):
        await session.__aenter__()
    assert journal == before


async def test_an_open_session_is_not_opened_again() -> None:
    """L1: opening an open session is refused, and the session goes on as if nothing had been asked."""
    graph, _, add = a_counter()
    journal: list[str] = []
    async with monitored(graph, RecordingHook("a", journal)) as session:
        with pytest.raises(RuntimeError):
            await session.__aenter__()
        assert await session.run(add) == 1
    assert journal.count("a.begin") == journal.count("a.end") == 1
    assert "a.on_session_error" not in journal


async def test_two_tasks_open_one_session() -> None:
    """L1: of two tasks that open a session at the same time, one is refused, and nothing happens twice."""
    graph, _, _ = a_counter()
    journal: list[str] = []
    session = MonitoredSession(RecordingCreator(graph, journal), [RecordingHook("a", journal)])
    refused: list[SessionClosedError] = []

    async def open_it() -> None:
        try:
            await session.__aenter__()
        except SessionClosedError as error:
            refused.append(error)

    async with anyio.create_task_group() as group:
        group.start_soon(open_it)
        group.start_soon(open_it)
    await session.aclose()
    assert len(refused) == 1
    assert journal == ["a.begin", "create", "a.after_create_session", "a.end"]


# L2: hooks and opening


async def test_a_hook_of_a_wrong_type() -> None:
    """L2: a thing in `hooks` that is no SessionRunHook is a TypeError at construction."""
    graph, _, _ = a_counter()
    wrong: Any = [SessionRunHook(), "not a hook"]
    with pytest.raises(TypeError, match="str"):
        monitored(graph, *wrong)


async def test_a_hook_class_is_not_a_hook() -> None:
    """L2: a hook's class in the place of a hook is a TypeError too."""
    graph, _, _ = a_counter()
    wrong: Any = SessionRunHook
    with pytest.raises(TypeError):
        monitored(graph, wrong)


async def test_a_hook_listed_twice() -> None:
    """L2: a hook listed twice is an InvalidArgumentError at construction."""
    graph, _, _ = a_counter()
    hook = RecordingHook("a", [])
    with pytest.raises(InvalidArgumentError):
        monitored(graph, hook, RecordingHook("b", []), hook)


async def test_equal_hooks_are_two_hooks() -> None:
    """L2: two hooks that compare equal, and cannot be hashed, are two hooks and not one listed twice."""

    class Equal(SessionRunHook):
        __hash__ = None  # type: ignore[assignment]

        def __eq__(self, other: object) -> bool:
            return True

    graph, _, add = a_counter()
    async with monitored(graph, Equal(), Equal()) as session:
        assert await session.run(add) == 1


async def test_order_of_opening() -> None:
    """L2: every begin in list order, the creator, every after_create_session in list order."""
    graph, _, _ = a_counter()
    journal: list[str] = []
    hooks = [RecordingHook(name, journal) for name in "abc"]
    async with MonitoredSession(RecordingCreator(graph, journal), hooks):
        assert journal == [
            *("a.begin", "b.begin", "c.begin", "create"),
            *("a.after_create_session", "b.after_create_session", "c.after_create_session"),
        ]


async def test_begin_adds_nodes() -> None:
    """L2: in `begin` the graph still accepts nodes, of the last hook too; the node can be run."""
    graph, count, _ = a_counter()
    nodes: list[Node[int]] = []

    async def add_node() -> None:
        with graph:
            nodes.append(count.assign_add(10))

    hooks = [RecordingHook("a", [], begin=add_node), RecordingHook("b", [], begin=add_node)]
    async with monitored(graph, *hooks) as session:
        assert [await session.run(node) for node in nodes] == [10, 20]


async def test_the_graph_is_finalized_before_the_creator() -> None:
    """L2: the graph is open in every begin, finalized when the creator is called, and while the session
    lives."""
    graph, _, _ = a_counter()
    seen: list[bool] = []

    async def look(*_: object) -> None:
        seen.append(graph.finalized)

    hooks = [RecordingHook(name, [], begin=look, after_create_session=look) for name in "ab"]
    async with MonitoredSession(RecordingCreator(graph, [], look), hooks):
        await look()
    assert seen == [False, False, True, True, True, True]


async def test_after_create_session_gets_an_open_session() -> None:
    """L2: `after_create_session` gets the raw session that the creator made, open, and the coordinator."""
    graph, count, _ = a_counter()
    read: list[int] = []

    async def look(session: Session, coord: Coordinator) -> None:
        assert isinstance(coord, Coordinator)
        read.append(await session.run(count))

    creator = RecordingCreator(graph, [])
    hook = RecordingHook("a", [], after_create_session=look)
    async with MonitoredSession(creator, [hook]):
        assert read == [0]
        assert hook.session is creator.created[0]


async def test_a_creator_may_open_its_session() -> None:
    """L2: what the creator makes may be open already; it is not initialized a second time."""
    graph, count, _ = a_counter()

    class Opening(RecordingCreator):
        async def create_session(self) -> Session:
            session = await super().create_session()
            await session.__aenter__()
            with graph:
                await session.run(self.write)
            return session

        write: Node[int]

    creator = Opening(graph, [])
    with graph:
        creator.write = count.assign(7)
    async with MonitoredSession(creator) as session:
        assert await session.run(count) == 7


# L3: a failing opening


@pytest.mark.parametrize("place", [0, 1, 2])
async def test_a_failing_begin(place: int) -> None:
    """L3: the hooks whose begin was called get on_session_error, nothing else is called, the error is
    bare."""
    graph, _, _ = a_counter()
    journal: list[str] = []
    error = Oops("no")
    hooks = [
        RecordingHook(name, journal, **({"begin": error} if i == place else {}))
        for i, name in enumerate("abc")
    ]
    session = MonitoredSession(RecordingCreator(graph, journal), hooks)
    with pytest.raises(Oops) as caught:
        await session.__aenter__()
    begun = "abc"[: place + 1]
    assert caught.value is error
    assert journal == [f"{n}.begin" for n in begun] + [f"{n}.on_session_error" for n in reversed(begun)]
    assert [ended(hook)[0] for hook in hooks[: place + 1]] == [error] * (place + 1)
    assert not graph.finalized


async def test_a_failing_creator() -> None:
    """L3: a failing creator: every hook gets on_session_error, the error is bare, the graph is open again."""
    graph, _, _ = a_counter()
    journal: list[str] = []
    error = Oops("no")
    hooks = [RecordingHook(name, journal) for name in "ab"]
    session = MonitoredSession(RecordingCreator(graph, journal, error), hooks)
    with pytest.raises(Oops) as caught:
        await session.__aenter__()
    assert caught.value is error
    assert journal == ["a.begin", "b.begin", "create", "b.on_session_error", "a.on_session_error"]
    assert not graph.finalized


@pytest.mark.parametrize("place", [0, 1, 2])
async def test_a_failing_after_create_session(place: int) -> None:
    """L3, L4: every hook gets on_session_error with the raw session still open; then that is closed."""
    graph, count, _ = a_counter()
    journal: list[str] = []
    read: list[int] = []
    error = Oops("no")

    async def look(session: Session, _: BaseException) -> None:
        read.append(await session.run(count))

    hooks = [RecordingHook(name, journal, on_session_error=look) for name in "abc"]
    hooks[place].acts["after_create_session"] = error
    creator = RecordingCreator(graph, journal)
    with pytest.raises(Oops) as caught:
        await MonitoredSession(creator, hooks).__aenter__()
    assert caught.value is error
    assert journal[4:] == [
        *(f"{n}.after_create_session" for n in "abc"[: place + 1]),
        *("c.on_session_error", "b.on_session_error", "a.on_session_error"),
    ]
    assert read == [0, 0, 0]
    assert not graph.finalized
    with pytest.raises(SessionClosedError):
        await creator.created[0].run(count)


@pytest.mark.parametrize("point", ["begin", "create", "after_create_session"])
async def test_cancelled_while_opening(point: str) -> None:
    """L3, L6: cancelled while opening, the hooks get on_session_error, may wait in it, and the cancellation
    goes on."""
    graph, _, _ = a_counter()
    journal: list[str] = []
    scope = anyio.CancelScope()

    async def cancel(*_: object) -> None:
        scope.cancel()
        await anyio.lowlevel.checkpoint()

    async def wait(*_: object) -> None:
        await anyio.lowlevel.checkpoint()
        journal.append("waited")

    hook = RecordingHook("a", journal, on_session_error=wait)
    creator = RecordingCreator(graph, journal, cancel if point == "create" else None)
    if point != "create":
        hook.acts[point] = cancel
    with scope:
        async with MonitoredSession(creator, [hook]):
            journal.append("body")
    assert scope.cancelled_caught
    assert journal[-2:] == ["a.on_session_error", "waited"]
    assert "body" not in journal
    assert isinstance(ended(hook)[0], anyio.get_cancelled_exc_class())
    assert not graph.finalized


async def test_an_interrupt_while_opening() -> None:
    """L3, C5: an interrupt while opening ends the hooks and leaves as the same object."""
    graph, _, _ = a_counter()
    journal: list[str] = []
    interrupt = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt) as caught:
        await monitored(
            graph, RecordingHook("a", journal), RecordingHook("b", journal, begin=interrupt)
        ).__aenter__()
    assert caught.value is interrupt
    assert journal == ["a.begin", "b.begin", "b.on_session_error", "a.on_session_error"]


async def test_a_session_that_failed_to_open_is_closed() -> None:
    """L3, L1: after a failed opening the session is closed: it runs nothing and is not opened again."""
    graph, count, _ = a_counter()
    session = monitored(graph, RecordingHook("a", [], begin=Oops("no")))
    with pytest.raises(Oops):
        await session.__aenter__()
    with pytest.raises(SessionClosedError):
        await session.run(count)
    with pytest.raises(SessionClosedError):
        await session.__aenter__()


async def test_a_graph_can_be_opened_again_after_a_failed_opening() -> None:
    """L3: all that was opened is closed: another session opens the same graph."""
    graph, _, add = a_counter()
    with pytest.raises(Oops):
        await monitored(graph, RecordingHook("a", [], after_create_session=Oops("no"))).__aenter__()
    async with monitored(graph) as session:
        assert await session.run(add) == 1


async def test_on_session_error_that_raises_while_opening(caplog: pytest.LogCaptureFixture) -> None:
    """L3, L4, E3: it stops none of the others, and neither of the two errors is lost."""
    graph, _, _ = a_counter()
    journal: list[str] = []
    first, second = Oops("the first"), KeyError("the second")
    hooks = [
        RecordingHook("a", journal),
        RecordingHook("b", journal, on_session_error=second),
        RecordingHook("c", journal, after_create_session=first),
    ]
    with pytest.raises((Oops, ExceptionGroup)) as caught:
        await monitored(graph, *hooks).__aenter__()
    assert journal[-3:] == ["c.on_session_error", "b.on_session_error", "a.on_session_error"]
    assert first in leaves(caught.value)
    assert (second in leaves(caught.value)) != ("the second" in caplog.text)


# L4: how hooks end


def three(journal: list[str], **acts: Any) -> list[RecordingHook]:
    """Three recording hooks; the acts are those of the middle one."""
    return [RecordingHook("a", journal), RecordingHook("b", journal, **acts), RecordingHook("c", journal)]


def endings(journal: list[str]) -> list[str]:
    """What the journal says of the ends of hooks."""
    return [entry for entry in journal if entry.endswith((".end", ".on_session_error"))]


ENDS = ["c.end", "b.end", "a.end"]
ERRORS = ["c.on_session_error", "b.on_session_error", "a.on_session_error"]


async def test_the_bodys_normal_end() -> None:
    """L4: after the body's normal end each hook gets `end` once, in reverse list order."""
    graph, _, add = a_counter()
    journal: list[str] = []
    async with monitored(graph, *three(journal)) as session:
        await session.run(add)
    assert endings(journal) == ENDS


async def test_a_stop_that_leaves_the_body() -> None:
    """L4: a stop that leaves the body is a clean end."""
    graph, _, _ = a_counter()
    journal: list[str] = []

    async def stop(ctx: StepContext) -> None:
        ctx.request_stop()

    async with monitored(graph, *three(journal)) as session:
        await session.run_step_fn(stop)
        journal.append("not reached")
    assert "not reached" not in journal
    assert endings(journal) == ENDS


async def test_the_end_of_the_data_leaves_the_body() -> None:
    """L4: the end of the data is a clean end."""
    with (graph := Graph()):
        items = source([1, 2], name="items")
    journal: list[str] = []
    got: list[int] = []
    async with monitored(graph, *three(journal)) as session:
        while True:
            got.append(await session.run(items))
    assert got == [1, 2]
    assert endings(journal) == ENDS


@pytest.mark.parametrize("error", [Oops("no"), KeyboardInterrupt(), SystemExit(3), OutOfRangeError("mine")])
async def test_an_error_of_the_body(error: BaseException) -> None:
    """L4: an error or an interrupt of the body: each hook gets on_session_error with that very object,
    once."""
    graph, _, _ = a_counter()
    journal: list[str] = []
    hooks = three(journal)
    with pytest.raises(type(error)) as caught:
        async with monitored(graph, *hooks):
            raise error
    assert caught.value is error
    assert endings(journal) == ERRORS
    assert [ended(hook) for hook in hooks] == [[error]] * len(hooks)
    assert all(hook.calls[-1].session is hook.session for hook in hooks)


async def test_a_cancelled_body() -> None:
    """L4: a cancellation of the body: each hook gets on_session_error with the cancellation, once."""
    graph, _, _ = a_counter()
    journal: list[str] = []
    hooks = three(journal)
    with anyio.CancelScope() as scope:
        async with monitored(graph, *hooks):
            scope.cancel()
            await anyio.lowlevel.checkpoint()
    assert scope.cancelled_caught
    assert endings(journal) == ERRORS
    assert all(isinstance(ended(hook)[0], anyio.get_cancelled_exc_class()) for hook in hooks)


async def test_an_end_that_raises() -> None:
    """L4: an `end` that raises stops none of the others, and its hook gets no on_session_error on top."""
    graph, _, _ = a_counter()
    journal: list[str] = []
    error = Oops("end")
    with pytest.raises(Oops) as caught:
        async with monitored(graph, *three(journal, end=error)):
            pass
    assert caught.value is error
    assert endings(journal) == ENDS


async def test_an_on_session_error_that_raises() -> None:
    """L4: an on_session_error that raises stops none of the others."""
    graph, _, _ = a_counter()
    journal: list[str] = []
    with pytest.raises(ExceptionGroup):
        async with monitored(graph, *three(journal, on_session_error=KeyError("second"))):
            raise Oops("first")
    assert endings(journal) == ERRORS


@pytest.mark.parametrize("fails", [False, True])
async def test_the_raw_session_is_open_at_the_end(fails: bool) -> None:
    """L4: `end` and on_session_error get the raw session, still open: it reads and writes; afterwards it is
    closed."""
    graph, count, add = a_counter()
    read: list[int] = []

    async def use(session: Session, *_: object) -> None:
        read.append(await session.run(add))

    hooks = [RecordingHook(name, [], end=use, on_session_error=use) for name in "ab"]
    session = monitored(graph, *hooks)
    try:
        async with session:
            await session.run(add)
            if fails:
                raise Oops("no")
    except Oops:
        assert fails
    assert read == [2, 3]
    for hook in hooks:
        assert hook.calls[-1].session is hook.session
        with pytest.raises(SessionClosedError):
            await hook.session.run(count)


async def test_a_hook_that_never_began_never_ends() -> None:
    """L4: a hook whose begin was not called gets neither of the two."""
    graph, _, _ = a_counter()
    journal: list[str] = []
    hooks = [RecordingHook("a", journal, begin=Oops("no")), RecordingHook("b", journal)]
    with pytest.raises(Oops):
        await monitored(graph, *hooks).__aenter__()
    assert ended(hooks[1]) == []


async def test_a_stop_beside_an_error_is_no_clean_end() -> None:
    """L4, C1, S6: an error in a group beside the session's own stop: on_session_error with that error."""
    graph, _, _ = a_counter()
    journal: list[str] = []
    hooks = three(journal)
    error = Oops("no")
    with pytest.raises(Oops) as caught:
        async with monitored(graph, *hooks) as session:
            session.request_stop()
            try:
                await session.run(a_fetch)
            except StopRequested as stop:
                raise BaseExceptionGroup("both", [stop, error]) from None
    assert caught.value is error
    assert endings(journal) == ERRORS
    assert ended(hooks[0])[0] is error


async def a_fetch() -> int:
    """A fetch that is a coroutine function."""
    return 1


# L5: closing happens once


async def test_aclose_in_the_body() -> None:
    """L5: `aclose()` in the body closes: hooks end, should_stop() is True, a run is refused, the graph is
    open."""
    graph, _, add = a_counter()
    journal: list[str] = []
    async with monitored(graph, RecordingHook("a", journal)) as session:
        await session.aclose()
        assert endings(journal) == ["a.end"]
        assert session.should_stop()
        assert not graph.finalized
        with pytest.raises(SessionClosedError):
            await session.run(add)
    assert endings(journal) == ["a.end"]


async def test_aclose_again() -> None:
    """L5: closing is idempotent: a second and a third aclose(), and one after the block, change nothing."""
    graph, _, _ = a_counter()
    journal: list[str] = []
    async with monitored(graph, RecordingHook("a", journal)) as session:
        await session.aclose()
        await session.aclose()
    await session.aclose()
    assert endings(journal) == ["a.end"]


async def test_an_error_after_aclose() -> None:
    """L5: closing happened once: an error of the body after aclose() leaves as it is, and calls no hook
    again."""
    graph, _, _ = a_counter()
    journal: list[str] = []
    error = Oops("late")
    with pytest.raises(Oops) as caught:
        async with monitored(graph, RecordingHook("a", journal)) as session:
            await session.aclose()
            raise error
    assert caught.value is error
    assert endings(journal) == ["a.end"]


async def test_an_error_under_a_cancelled_scope_after_aclose() -> None:
    """L5, C1: an error of the body after aclose() leaves, also when the scope around is cancelled."""
    graph, _, _ = a_counter()
    error = Oops("late")
    with pytest.raises(Oops) as caught:
        with anyio.CancelScope() as scope:
            async with monitored(graph) as session:
                await session.aclose()
                scope.cancel()
                raise error
    assert caught.value is error


async def test_aclose_from_many_tasks() -> None:
    """L5: aclose() called by many tasks at once closes once, and each returns when it is closed."""
    graph, _, _ = a_counter()
    journal: list[str] = []
    gate = Gate()

    async def close() -> None:
        await session.aclose()
        journal.append("closed")

    async with monitored(graph, RecordingHook("a", journal, end=gate)) as session:
        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(close)
            await gate.reached.wait()
            await anyio.wait_all_tasks_blocked()
            assert "closed" not in journal
            gate.opened.set()
    assert journal[-4:] == ["a.end", "closed", "closed", "closed"]


async def test_the_body_ends_while_another_task_closes() -> None:
    """L5: a body that ends while another task closes the session waits for that closing; hooks end once."""
    graph, _, _ = a_counter()
    journal: list[str] = []
    gate = Gate()
    async with anyio.create_task_group() as group:
        async with monitored(graph, RecordingHook("a", journal, end=gate)) as session:
            group.start_soon(session.aclose)
            await gate.reached.wait()
            group.start_soon(gate.open_when_all_wait)
        assert gate.opened.is_set()
        journal.append("after the block")
    assert journal[-2:] == ["a.end", "after the block"]


async def test_aclose_that_fails_is_not_repeated() -> None:
    """L5, E3: what closing raised out of aclose() is not raised a second time by the end of the block."""
    graph, _, _ = a_counter()
    journal: list[str] = []
    error = Oops("end")
    async with monitored(graph, RecordingHook("a", journal, end=error)) as session:
        with pytest.raises(Oops) as caught:
            await session.aclose()
        assert caught.value is error
        await session.aclose()
    assert endings(journal) == ["a.end"]
    assert session.should_stop()


async def test_aclose_in_an_end_does_not_deadlock() -> None:
    """L5: aclose() called by a hook's own `end` does not wait for itself."""
    graph, _, _ = a_counter()
    journal: list[str] = []

    async def close(_: Session) -> None:
        await session.aclose()

    with anyio.fail_after(10):
        hooks = [RecordingHook("a", journal, end=close), RecordingHook("b", journal)]
        async with monitored(graph, *hooks, stop_grace_period=1) as session:
            pass
    assert endings(journal) == ["b.end", "a.end"]


async def test_aclose_in_a_step() -> None:
    """L5, L6: aclose() in a step function does not wait for that very step, which can no longer commit."""
    graph, _, add = a_counter()

    async def close(ctx: StepContext) -> None:
        await ctx.session.run(add)
        await session.aclose()

    with anyio.fail_after(10):
        async with monitored(graph, stop_grace_period=1) as session:
            with pytest.raises(SessionClosedError):
                await session.run_step_fn(close)
    assert session.global_step == 0


async def test_aclose_in_after_run() -> None:
    """L5: aclose() in a hook's after_run closes; the step is committed and the caller gets its value."""
    graph, _, add = a_counter()
    journal: list[str] = []

    async def close(*_: object) -> None:
        await session.aclose()

    with anyio.fail_after(10):
        async with monitored(
            graph, RecordingHook("a", journal, after_run=close), stop_grace_period=1
        ) as session:
            assert await session.run(add) == 1
    assert endings(journal) == ["a.end"]
    assert session.global_step == 1


@pytest.mark.parametrize("fails", [False, True])
async def test_a_graph_that_was_finalized_stays_so(fails: bool) -> None:
    """L5: the session un-finalizes only what it finalized itself, whichever way the body ends."""
    mine, _, _ = a_counter()
    theirs, _, _ = a_counter()
    theirs.finalize()
    for graph in (mine, theirs):
        try:
            async with monitored(graph):
                assert graph.finalized
                if fails:
                    raise Oops("no")
        except Oops:
            assert fails
    assert (mine.finalized, theirs.finalized) == (False, True)


async def test_a_graph_is_used_by_one_session_after_the_other() -> None:
    """L5: a session leaves the graph as it found it: nodes can be added, and the next session starts anew."""
    graph, count, add = a_counter()
    async with monitored(graph) as first:
        assert await first.run(add) == 1

    @op
    async def double(x: int) -> int:
        return 2 * x

    with graph:
        twice = double(add)
    async with monitored(graph, recovery=Recovery()) as second:
        assert await second.run(twice) == 2
        assert await second.run(count) == 1
