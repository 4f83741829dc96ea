"""Section E of the contract: which error leaves, in what company, and that none is dropped or told twice."""

from __future__ import annotations

import logging
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from asyncstep import (
    AbortedError,
    Graph,
    MonitoredSession,
    Node,
    OutOfRangeError,
    Recovery,
    Session,
    StepContext,
    StopRequested,
    Variable,
    op,
    placeholder,
)
from asyncstep.testing import RecordingHook

from .counting import Oops, ended, leaves
from .life_parts import Gate, monitored

pytestmark = pytest.mark.anyio


def notes(error: BaseException) -> str:
    """The notes of an error, joined."""
    return "\n".join(getattr(error, "__notes__", []))


def failing_graph(error: BaseException, name: str = "the_culprit") -> tuple[Graph, Node[int]]:
    """A graph of one node, of that name, that raises that very error."""

    @op(name=name)
    async def fail() -> int:
        raise error

    with (graph := Graph()):
        return graph, fail()


# E1: the error of a node


@pytest.mark.parametrize("use", ["run", "run_without_hooks", "raw"])
async def test_one_node_failed(use: str) -> None:
    """E1: `run` raises the very exception of the node, bare, with a note that names the node."""
    error = Oops("no")
    graph, node = failing_graph(error)
    hook = RecordingHook("a", [])
    async with monitored(graph, hook) as session:
        run = hook.session.run if use == "raw" else getattr(session, use)
        with pytest.raises(Oops) as caught:
            await run(node)
    assert caught.value is error
    assert node.name in notes(error)


async def test_the_note_names_the_node_that_failed() -> None:
    """E1: the note names the node that failed, not the one that was fetched and needed it."""
    error = Oops("no")
    graph, node = failing_graph(error)

    @op(name="the_consumer")
    async def consume(x: int) -> int:
        return x

    with graph:
        fetched = consume(node)
    async with monitored(graph) as session:
        with pytest.raises(Oops):
            await session.run(fetched)
    assert node.name in notes(error)
    assert "the_consumer" not in notes(error)


async def test_an_error_raised_again_and_again_has_one_note() -> None:
    """E1, L9: the same exception object raised by many runs does not gather notes."""
    error = Oops("no")
    graph, node = failing_graph(error)
    async with monitored(graph) as session:
        for _ in range(5):
            with pytest.raises(Oops):
                await session.run(node)
    assert len(error.__notes__) == 1


async def test_an_update_that_fails_names_its_node() -> None:
    """E1, T5: an `update` function that raises is a failed node: the note names it."""
    error = Oops("no")

    def refuse(_: int) -> int:
        raise error

    with (graph := Graph()):
        node = Variable(0, name="count").update(refuse)
    async with monitored(graph) as session:
        with pytest.raises(Oops) as caught:
            await session.run(node)
    assert caught.value is error
    assert node.name in notes(error)


async def test_an_error_keeps_its_cause_and_context() -> None:
    """E1: the exception of a node keeps the cause and the context that it had, and gets no others."""
    cause, context = KeyError("cause"), LookupError("context")

    async def fail() -> None:
        try:
            raise context
        except LookupError:
            raise Oops("no") from cause

    async with monitored(Graph()) as session:
        with pytest.raises(Oops) as caught:
            await session.run(fail)
    assert (caught.value.__cause__, caught.value.__context__) == (cause, context)


async def test_two_nodes_failed_at_once() -> None:
    """E1: nodes that failed before the others were cancelled: a group of all of them, each with its note."""
    errors = [Oops("first"), KeyError("second")]
    gate = Gate()

    @op
    async def fail(i: int) -> None:
        await gate()
        raise errors[i]

    with (graph := Graph()):
        nodes = [fail(0), fail(1)]
    async with monitored(graph) as session, anyio.create_task_group() as group:
        group.start_soon(gate.open_when_all_wait)  # both wake up in the same turn
        with pytest.raises(ExceptionGroup) as caught:
            await session.run(nodes)
    assert set(leaves(caught.value)) == set(errors)
    for node, error in zip(nodes, errors, strict=True):
        assert node.name in notes(error)


async def test_an_error_while_being_cancelled_is_not_dropped() -> None:
    """E1: a node that raises an error of its own while it is cancelled for another's: both are in the
    group."""
    first, second = Oops("first"), KeyError("second")
    waiting = anyio.Event()

    @op
    async def clean_up_badly() -> None:
        waiting.set()
        try:
            await anyio.sleep_forever()
        finally:
            raise second

    @op
    async def fail() -> None:
        await waiting.wait()
        raise first

    with (graph := Graph()):
        nodes = [clean_up_badly(), fail()]
    async with monitored(graph) as session:
        with pytest.raises(ExceptionGroup) as caught:
            await session.run(nodes)
    assert set(leaves(caught.value)) == {first, second}


async def test_the_others_are_cancelled() -> None:
    """E1: when a node failed, the others are cancelled, and their cancellations are no errors of the run."""
    error = Oops("no")
    waiting = anyio.Event()
    cancelled: list[bool] = []

    @op
    async def wait() -> None:
        waiting.set()
        try:
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class():
            cancelled.append(True)
            raise

    @op
    async def fail() -> None:
        await waiting.wait()
        raise error

    with (graph := Graph()):
        nodes = [wait(), fail()]
    async with monitored(graph) as session:
        with pytest.raises(Oops) as caught:
            await session.run(nodes)
    assert caught.value is error
    assert cancelled == [True]


async def test_a_group_raised_by_a_node_is_that_nodes_error() -> None:
    """E1: an ExceptionGroup that a node itself raises leaves as the same object."""
    error = ExceptionGroup("mine", [Oops("a"), Oops("b")])
    graph, node = failing_graph(error)
    async with monitored(graph) as session:
        with pytest.raises(ExceptionGroup) as caught:
            await session.run(node)
    assert caught.value is error


# E2: closing errors


async def test_a_body_error_with_a_clean_closing() -> None:
    """E2: a body error leaves as the same object if closing was clean; no note, cause or context is added."""
    error = Oops("body")
    with pytest.raises(Oops) as caught:
        async with monitored(Graph(), RecordingHook("a", [])):
            raise error
    assert caught.value is error
    assert (error.__cause__, error.__context__, notes(error)) == (None, None, "")


async def test_a_group_of_the_body_with_a_clean_closing() -> None:
    """E2: a group raised by the body, with nothing of this session in it, leaves as the same object."""
    error = BaseExceptionGroup("mine", [Oops("a"), KeyError("b")])
    with pytest.raises(ExceptionGroup) as caught:
        async with monitored(Graph()):
            raise error
    assert caught.value is error


async def test_one_closing_error_after_a_clean_body() -> None:
    """E2: one closing error after a clean body leaves as itself."""
    error = Oops("end")
    with pytest.raises(Oops) as caught:
        async with monitored(Graph(), RecordingHook("a", [], end=error), RecordingHook("b", [])):
            pass
    assert caught.value is error
    assert (error.__cause__, error.__context__) == (None, None)


async def test_one_closing_error_after_a_stop() -> None:
    """E2, C1: one closing error after a stop leaves as itself; the stop is no part of it."""
    error = Oops("end")

    async def stop(ctx: StepContext) -> None:
        ctx.request_stop()

    with pytest.raises(Oops) as caught:
        async with monitored(Graph(), RecordingHook("a", [], end=error)) as session:
            await session.run_step_fn(stop)
    assert caught.value is error
    assert not isinstance(error.__context__, StopRequested)


async def test_many_closing_errors_after_a_clean_body() -> None:
    """E2: many closing errors after a clean body leave as an ExceptionGroup of all of them."""
    errors = [Oops("a"), KeyError("b")]
    hooks = [RecordingHook(str(i), [], end=error) for i, error in enumerate(errors)]
    with pytest.raises(ExceptionGroup) as caught:
        async with monitored(Graph(), *hooks):
            pass
    assert set(caught.value.exceptions) == set(errors)


async def test_one_closing_error_after_a_cancellation() -> None:
    """E2, C1: one closing error of a cancelled body leaves as itself: an error comes before a
    cancellation."""
    error = Oops("closing")
    with pytest.raises(Oops) as caught:
        with anyio.CancelScope() as scope:
            async with monitored(Graph(), RecordingHook("a", [], on_session_error=error)):
                scope.cancel()
                await anyio.lowlevel.checkpoint()
    assert caught.value is error


async def test_many_closing_errors_after_a_cancellation() -> None:
    """E2: many closing errors of a cancelled body leave as a group of errors, without the cancellation."""
    errors = [Oops("a"), KeyError("b")]
    hooks = [RecordingHook(str(i), [], on_session_error=error) for i, error in enumerate(errors)]
    with pytest.raises(ExceptionGroup) as caught:
        with anyio.CancelScope() as scope:
            async with monitored(Graph(), *hooks):
                scope.cancel()
                await anyio.lowlevel.checkpoint()
    assert set(leaves(caught.value)) == set(errors)


@pytest.mark.parametrize("count", [1, 2])
async def test_closing_errors_beside_a_body_error(count: int) -> None:
    """E2: with a body error X, a group of X and the closing errors leaves, all the same objects."""
    body = Oops("body")
    closing: list[BaseException] = [KeyError("a"), LookupError("b")][:count]
    hooks = [RecordingHook(str(i), [], on_session_error=error) for i, error in enumerate(closing)]
    with pytest.raises(ExceptionGroup) as caught:
        async with monitored(Graph(), *hooks):
            raise body
    assert caught.value.exceptions[0] is body
    assert set(leaves(caught.value)) == {body, *closing}
    assert caught.value.__context__ is None or caught.value.__suppress_context__


async def test_a_cancellation_during_a_closing_that_fails() -> None:
    """E2, C1: cancelled while closing, and closing fails: the error leaves, not the cancellation."""
    error = Oops("end")

    async def cancel(_: Session) -> None:
        scope.cancel()
        raise error

    with pytest.raises(Oops) as caught:
        with anyio.CancelScope() as scope:
            async with monitored(Graph(), RecordingHook("a", [], end=cancel)):
                pass
    assert caught.value is error


async def test_a_closing_error_after_a_group_of_cancellations() -> None:
    """E2: a body that ended by a group of nothing but cancellations is a cancelled body."""
    error = Oops("closing")
    sessions: list[MonitoredSession] = []
    with pytest.raises(Oops) as caught:
        with anyio.CancelScope() as scope:
            async with monitored(Graph(), RecordingHook("a", [], on_session_error=error)) as session:
                sessions.append(session)
                scope.cancel()
                try:
                    await anyio.lowlevel.checkpoint()
                except anyio.get_cancelled_exc_class() as cancellation:
                    raise BaseExceptionGroup("children", [cancellation]) from None
    assert caught.value is error
    reason = sessions[0].stop_reason
    assert reason is not None
    assert reason.kind == "cancelled"


# E3: logged or raised


async def test_what_is_raised_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    """E3: errors of the body and of the closing, which are raised, are not logged."""
    with pytest.raises(ExceptionGroup):
        async with monitored(Graph(), RecordingHook("a", [], on_session_error=KeyError("closing"))):
            raise Oops("body")
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_what_is_not_raised_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """E3, R4: an error in on_run_error, which is not raised, is logged once at ERROR, with its traceback."""
    error, second = Oops("no"), KeyError("in on_run_error")
    graph, node = failing_graph(error)
    async with monitored(graph, RecordingHook("a", [], on_run_error=second)) as session:
        with pytest.raises(Oops) as caught:
            await session.run(node)
    assert caught.value is error
    logged = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert [(record.name, record.levelno) for record in logged] == [("asyncstep", logging.ERROR)]
    assert "in on_run_error" in caplog.text


async def test_a_raised_background_error_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    """E3: a background error that is raised is not logged as an error too."""

    async def fail() -> None:
        raise Oops("background")

    async with anyio.create_task_group() as group:
        hook = RecordingHook("a", [])
        with pytest.raises(Oops):
            async with monitored(Graph(), hook, task_group=group):
                hook.coord.start_soon(fail)
                await anyio.wait_all_tasks_blocked()
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_an_error_that_a_hook_reports_while_closing() -> None:
    """E3: an error given to the coordinator by a hook's `end` is raised with the closing errors."""
    error = Oops("reported")
    hook = RecordingHook("a", [])

    async def report(_: Session) -> None:
        hook.coord.request_stop(error)

    hook.acts["end"] = report
    with pytest.raises(Oops) as caught:
        async with monitored(Graph(), hook):
            pass
    assert caught.value is error


async def test_an_error_that_is_reported_after_the_closing(caplog: pytest.LogCaptureFixture) -> None:
    """E3: an error given to the coordinator of a closed session, which can raise nothing, is logged."""
    hook = RecordingHook("a", [])
    async with monitored(Graph(), hook):
        pass
    hook.coord.request_stop(Oops("too late"))
    assert [record.levelno for record in caplog.records if "too late" in str(record.exc_info)] == [
        logging.ERROR
    ]


# E4: background errors


async def background_error(session: MonitoredSession, hook: RecordingHook, error: BaseException) -> None:
    """Lets a background task of the session raise that error, and waits until it has."""

    async def fail() -> None:
        raise error

    hook.coord.start_soon(fail)
    await hook.coord.wait_for_stop()
    assert session.should_stop()


async def test_a_background_error_is_raised_by_the_next_run() -> None:
    """E4: a background error stops the session (reason: error) and is raised by the next run, bare and
    once."""
    error = Oops("background")
    graph, count = Graph(), None
    with graph:
        count = Variable(0, name="count")
    async with anyio.create_task_group() as group:
        hook = RecordingHook("a", [])
        async with monitored(graph, hook, task_group=group) as session:
            await background_error(session, hook, error)
            with pytest.raises(Oops) as caught:
                await session.run(count)
            assert caught.value is error
            with pytest.raises(StopRequested):
                await session.run(count)
    reason = session.stop_reason
    assert reason is not None
    assert reason.kind == "error"
    assert "a.before_run" not in hook.journal
    assert ended(hook)[0] is None  # the body handled it: a clean end


async def test_a_background_error_is_raised_by_the_run_in_flight_or_the_next() -> None:
    """E4: with a run in flight, exactly one of this run and the next raises the background error."""
    error = Oops("background")
    gate = Gate()
    raised: list[BaseException] = []

    async with anyio.create_task_group() as group:
        hook = RecordingHook("a", [])
        async with monitored(Graph(), hook, task_group=group) as session:

            async def run() -> None:
                try:
                    await session.run(gate.__call__)
                except Oops as caught:
                    raised.append(caught)

            async with anyio.create_task_group() as runs:
                runs.start_soon(run)
                await gate.reached.wait()
                await background_error(session, hook, error)
                gate.opened.set()
            if not raised:
                await run()
            with pytest.raises(StopRequested):
                await session.run(gate.__call__)
    assert raised == [error]


async def test_a_background_error_is_raised_once_among_many_runs() -> None:
    """E4, E3: of many runs in flight one raises the background error; the others go on or meet the stop."""
    error = Oops("background")
    gate = Gate()
    raised: list[BaseException] = []

    async with anyio.create_task_group() as group:
        hook = RecordingHook("a", [])
        async with monitored(Graph(), hook, task_group=group) as session:

            async def run() -> None:
                try:
                    while True:
                        await session.run(gate.__call__)
                except (Oops, StopRequested) as caught:
                    raised.append(caught)

            async with anyio.create_task_group() as runs:
                for _ in range(4):
                    runs.start_soon(run)
                await gate.reached.wait()
                await background_error(session, hook, error)
                gate.opened.set()
    assert len(raised) == 4
    assert [caught for caught in raised if caught is error] == [error]


async def test_a_background_error_is_raised_at_the_end_of_the_body() -> None:
    """E4, L4: without another run it is raised at the end of the body, bare, and the hooks get
    on_session_error."""
    error = Oops("background")
    async with anyio.create_task_group() as group:
        hook = RecordingHook("a", [])
        with pytest.raises(Oops) as caught:
            async with monitored(Graph(), hook, task_group=group) as session:
                await background_error(session, hook, error)
    assert caught.value is error
    assert ended(hook)[0] is error


async def test_a_background_error_beside_an_error_of_the_body() -> None:
    """E4: with an error of the body, a group of both is raised."""
    error, body = Oops("background"), KeyError("body")
    async with anyio.create_task_group() as group:
        hook = RecordingHook("a", [])
        with pytest.raises(ExceptionGroup) as caught:
            async with monitored(Graph(), hook, task_group=group) as session:
                await background_error(session, hook, error)
                raise body
    assert set(leaves(caught.value)) == {error, body}
    assert caught.value.exceptions[0] is body


async def test_two_background_errors() -> None:
    """E4, E3: two background errors: neither is dropped."""
    errors = [Oops("first"), KeyError("second")]
    go = anyio.Event()

    async def fail(i: int) -> None:
        await go.wait()
        raise errors[i]

    async with anyio.create_task_group() as group:
        hook = RecordingHook("a", [])
        with pytest.raises(ExceptionGroup) as caught:
            async with monitored(Graph(), hook, task_group=group):
                hook.coord.start_soon(fail, 0)
                hook.coord.start_soon(fail, 1)
                go.set()
                await anyio.wait_all_tasks_blocked()
    assert set(leaves(caught.value)) == set(errors)


async def test_a_background_error_while_closing() -> None:
    """E4, E2: a background task that fails while it is being stopped: its error is among the closing
    errors."""
    error = Oops("background")

    async with anyio.create_task_group() as group:
        hook = RecordingHook("a", [])
        with pytest.raises(Oops) as caught:
            async with monitored(Graph(), hook, task_group=group):

                async def fail_late() -> None:
                    await hook.coord.wait_for_stop()
                    raise error

                hook.coord.start_soon(fail_late)
                await anyio.wait_all_tasks_blocked()
    assert caught.value is error


async def test_a_background_error_that_recovery_would_retry() -> None:
    """E4, V1: a background error of a type in `recovery.on` is not the step's: it stops the session and is
    raised."""
    error = AbortedError("background")
    with (graph := Graph()):
        count = Variable(0, name="count")
    async with anyio.create_task_group() as group:
        hook = RecordingHook("a", [])
        with anyio.fail_after(10):
            async with monitored(
                graph, hook, task_group=group, recovery=Recovery(wait_initial=0.0)
            ) as session:
                await background_error(session, hook, error)
                with pytest.raises(AbortedError) as caught:
                    await session.run(count)
    assert caught.value is error


async def test_a_background_end_of_data_is_an_error() -> None:
    """E4, S7: OutOfRangeError made by a background task is an ordinary error, not the end of the data."""
    error = OutOfRangeError("background")
    async with anyio.create_task_group() as group:
        hook = RecordingHook("a", [])
        with pytest.raises(OutOfRangeError) as caught:
            async with monitored(Graph(), hook, task_group=group) as session:
                await background_error(session, hook, error)
    assert caught.value is error
    reason = session.stop_reason
    assert reason is not None
    assert reason.kind == "error"


async def test_an_error_given_to_the_coordinator() -> None:
    """E4: `coord.request_stop(error)` and `coord.stop_on_exception()` report an error like a background
    task's."""
    error = Oops("reported")
    with (graph := Graph()):
        count = Variable(0, name="count")
    hook = RecordingHook("a", [])
    async with monitored(graph, hook) as session:
        async with hook.coord.stop_on_exception():
            raise error
        assert session.should_stop()
        with pytest.raises(Oops) as caught:
            await session.run(count)
    assert caught.value is error


# Bad feeds do not count as failed nodes


async def test_an_error_before_the_evaluation_names_the_placeholder() -> None:
    """E1, R6: an unfed placeholder is the run's own error: it names it, and the session goes on."""
    with (graph := Graph()):
        number: Node[Any] = placeholder("number")
    async with monitored(graph) as session:
        with pytest.raises(ValueError, match="number"):
            await session.run(number)
        assert await session.run(number, {number: 3}) == 3
