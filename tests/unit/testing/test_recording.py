"""`RecordingHook`: what it writes down, and what it does where a test wants it."""

from __future__ import annotations

from typing import Any

import pytest

from asyncstep import (
    ChiefSessionCreator,
    FailedPreconditionError,
    Graph,
    InvalidArgumentError,
    MonitoredSession,
    Node,
    SessionRunArgs,
    SessionRunContext,
    SessionRunHook,
    StepContext,
    Variable,
)
from asyncstep.errors import InvalidTypeError
from asyncstep.testing import RecordingHook


def counting(*hooks: SessionRunHook) -> tuple[MonitoredSession, Node[int]]:
    """A session with these hooks, and a node that adds one to a variable."""
    with Graph() as graph:
        bump = Variable(0, name="count").assign_add(1)
    return MonitoredSession(ChiefSessionCreator(graph=graph), hooks), bump


@pytest.mark.anyio
async def test_every_call_is_written_down_in_order(recording_hook: RecordingHook) -> None:
    """Points in the order of contract L2, R1 and L4."""
    session, bump = counting(recording_hook)
    async with session:
        await session.run(bump)
    assert recording_hook.points == recording_hook.journal
    assert recording_hook.points == [
        "begin",
        "after_create_session",
        "before_run",
        "before_commit",
        "after_run",
        "end",
    ]


@pytest.mark.anyio
async def test_hooks_may_share_a_journal() -> None:
    """One list has the calls of all, with their names; each hook has its own as well."""
    journal: list[str] = []
    first, second = RecordingHook("first", journal), RecordingHook("second", journal)
    session, bump = counting(first, second)
    async with session:
        del journal[:]
        await session.run(bump)
        assert journal == [
            "first.before_run",
            "second.before_run",
            "first.before_commit",
            "second.before_commit",
            "first.after_run",
            "second.after_run",
        ]
    assert first.points == second.points


@pytest.mark.anyio
async def test_a_call_knows_what_the_hook_was_told() -> None:
    """The raw session, attempt, worker, results and the global step of the commit."""
    hook = RecordingHook("hook", before_run=SessionRunArgs("count"))
    session, bump = counting(hook)

    async def step(ctx: StepContext) -> None:
        await ctx.run_with_hooks(bump)
        ctx.request_stop("enough")

    async with session:
        await session.loop(step, workers=1)
    [call] = hook.calls_of("after_run")
    assert (call.hook, call.point, call.attempt, call.worker) == ("hook", "after_run", 1, 0)
    assert (call.results, call.global_step, call.error) == (1, 1, None)
    assert call.session is hook.session
    assert str(call) == "hook.after_run"
    assert [call.results for call in hook.calls_of("before_commit")] == [1]
    assert [call.session for call in hook.calls_of("begin")] == [None]


@pytest.mark.anyio
async def test_errors_are_in_the_calls(recording_hook: RecordingHook) -> None:
    """That of a run, and that of the session, as the very objects."""
    session, _ = counting(recording_hook)
    error = ValueError("no")

    async def fail() -> None:
        raise error

    with pytest.raises(ValueError, match="no"):
        async with session:
            await session.run(fail)
    assert [call.error for call in recording_hook.calls[-2:]] == [error, error]
    assert recording_hook.points[-2:] == ["on_run_error", "on_session_error"]


@pytest.mark.anyio
async def test_an_act_may_raise() -> None:
    """An exception given for a point is raised there, after the call was written down."""
    hook = RecordingHook(before_commit=ValueError("refused"))
    session, bump = counting(hook)
    async with session:
        with pytest.raises(ValueError, match="refused"):
            await session.run(bump)
        assert hook.points[-3:] == ["before_run", "before_commit", "on_run_error"]
        assert session.global_step == 0


@pytest.mark.anyio
async def test_an_act_may_be_a_function() -> None:
    """It is given what the point is given; what it returns is returned."""
    given: list[Any] = []

    async def ask(run_context: SessionRunContext) -> SessionRunArgs:
        given.append(run_context.original_args.fetches)
        return SessionRunArgs(["count"])

    hook = RecordingHook(before_run=ask)
    session, bump = counting(hook)
    async with session:
        await session.run(bump)
        assert given == [bump]
        assert [call.results for call in hook.calls_of("after_run")] == [[1]]


@pytest.mark.anyio
async def test_a_subclass_may_write_down_something_else() -> None:
    """`note` is called with each call."""

    class Errors(RecordingHook):
        def note(self, call: Any) -> None:
            if call.error is not None:
                self.calls.append(call)

    hook = Errors()
    session, bump = counting(hook)
    async with session:
        await session.run(bump)
    assert hook.calls == []


@pytest.mark.anyio
async def test_the_coordinator_is_kept(recording_hook: RecordingHook) -> None:
    """It is the session's."""
    session, _ = counting(recording_hook)
    async with session:
        recording_hook.coord.request_stop()
    assert session.stop_reason is not None


@pytest.mark.parametrize("attribute", ["session", "coord"])
def test_before_a_session_there_is_none(attribute: str) -> None:
    """The error says when there is."""
    with pytest.raises(FailedPreconditionError, match=r"RecordingHook\('early'\).*after_create_session"):
        getattr(RecordingHook("early"), attribute)


def test_a_point_must_exist() -> None:
    """The message lists the points."""
    with pytest.raises(InvalidArgumentError, match="no point 'after_commit'; there are begin, after_create"):
        RecordingHook(after_commit=ValueError())
    with pytest.raises(InvalidArgumentError, match="no point 'run'"):
        RecordingHook().calls_of("run")


@pytest.mark.parametrize("act", [3, ValueError, None, SessionRunArgs()], ids=str)
def test_an_act_is_an_exception_or_a_function(act: Any) -> None:
    """Also arguments of a run, but for before_run only."""
    with pytest.raises(InvalidTypeError, match="the act at end must be"):
        RecordingHook(end=act)
