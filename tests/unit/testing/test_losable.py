"""`LosableSessionCreator`: a state that is lost when a test says so."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from asyncstep import (
    AbortedError,
    ChiefSessionCreator,
    FailedPreconditionError,
    Graph,
    InvalidArgumentError,
    MonitoredSession,
    Node,
    Recovery,
    Session,
    SessionClosedError,
    StepContext,
    UnavailableError,
    Variable,
    source,
)
from asyncstep.checkpoint import Saver
from asyncstep.errors import InvalidTypeError
from asyncstep.testing import LosableSessionCreator

QUICK = Recovery(wait_initial=0.0, jitter=0.0)


def counter() -> tuple[Graph, Node[int]]:
    """A graph, and a node of it that adds one to the variable `count`."""
    with Graph() as graph:
        return graph, Variable(0, name="count").assign_add(1)


@pytest.mark.anyio
@pytest.mark.parametrize(
    "error", [None, UnavailableError("away"), UnavailableError, lambda: AbortedError("x")]
)
async def test_a_session_recovers_from_a_loss_between_steps(error: Any) -> None:
    """V2: the next step meets the loss, a new session is made, and the step is run again there."""
    graph, bump = counter()
    creator = LosableSessionCreator(graph)
    async with MonitoredSession(creator, recovery=QUICK) as session:
        assert await session.run(bump) == 1
        creator.lose(error)
        assert await session.run(bump) == 1
        assert session.recoveries == 1
    assert [each.intact for each in creator.created] == [False, False]


@pytest.mark.anyio
async def test_a_step_under_way_cannot_commit() -> None:
    """V2: what it did is lost with the state, and it is run again."""
    graph, bump = counter()
    creator = LosableSessionCreator(graph)
    attempts: list[int] = []

    async def step(ctx: StepContext) -> None:
        attempts.append(ctx.attempt)
        await ctx.session.run(bump)
        if ctx.attempt == 1:
            creator.lose()

    async with MonitoredSession(creator, recovery=QUICK) as session:
        await session.run_step_fn(step)
        assert (attempts, session.recoveries) == ([1, 2], 1)
        assert await session.run_without_hooks("count") == 1


@pytest.mark.anyio
async def test_every_step_meets_an_error_of_its_own() -> None:
    """A function makes one for each; eight steps that lost their session are one recovery."""
    graph, bump = counter()
    creator = LosableSessionCreator(graph)
    made: list[Exception] = []
    lost = anyio.Event()

    def away() -> Exception:
        made.append(UnavailableError(f"number {len(made)}"))
        return made[-1]

    async def step(ctx: StepContext) -> None:
        if ctx.attempt == 1:
            await lost.wait()
        await ctx.session.run(bump)

    async with MonitoredSession(creator, recovery=QUICK) as session:
        async with anyio.create_task_group() as group:
            for _ in range(8):
                group.start_soon(session.run_step_fn, step)
            await anyio.wait_all_tasks_blocked()
            creator.lose(away)
            lost.set()
        assert (len(made), session.recoveries) == (8, 1)
        assert await session.run_without_hooks("count") == 8


@pytest.mark.anyio
async def test_an_error_that_is_not_covered_ends_the_session() -> None:
    """V1: the loss is told by the error that the test gave, so `Recovery` decides."""
    graph, bump = counter()
    creator = LosableSessionCreator(graph)
    error = OSError("broken pipe")
    with pytest.raises(OSError, match="broken pipe") as caught:
        async with MonitoredSession(creator, recovery=QUICK) as session:
            creator.lose(error)
            await session.run(bump)
    assert caught.value is error


@pytest.mark.anyio
async def test_a_loss_goes_back_to_a_checkpoint(tmp_path: Path) -> None:
    """V2: over a creator that restores, the next session begins with the newest checkpoint."""
    graph, bump = counter()
    creator = LosableSessionCreator(creator=ChiefSessionCreator(graph=graph, checkpoint_dir=tmp_path))
    async with MonitoredSession(creator, recovery=QUICK) as session:
        await session.run(bump)
        await Saver().save(session, tmp_path)
        await session.run(bump)
        creator.lose(UnavailableError("the chief is gone"))
        assert await session.run(bump) == 2
        assert session.global_step == 2


@pytest.mark.anyio
async def test_the_next_session_may_take_some_attempts() -> None:
    """V3: `failures` are raised by the creator, one each."""
    graph, bump = counter()
    creator = LosableSessionCreator(graph)
    async with MonitoredSession(creator, recovery=QUICK) as session:
        creator.failures = [UnavailableError("not yet"), UnavailableError]
        creator.lose()
        assert await session.run(bump) == 1
        assert (creator.failures, session.recoveries, len(creator.created)) == ([], 1, 2)


@pytest.mark.anyio
@pytest.mark.parametrize("recovers", [True, False])
async def test_the_sources_of_a_lost_session_are_closed(recovers: bool) -> None:
    """L5: by the recovery, or, where there is none, by the end of the session."""
    closed: list[bool] = []

    def numbers() -> Iterator[int]:
        try:
            yield from range(10)
        finally:
            closed.append(True)

    with Graph() as graph:
        items = source(numbers, name="numbers")
    creator = LosableSessionCreator(graph)
    async with MonitoredSession(creator, recovery=QUICK) as session:
        await session.run(items)
        creator.lose()
        if recovers:
            await session.run(items)
            assert closed == [True]
    assert closed == [True] * len(creator.created)


@pytest.mark.anyio
async def test_there_must_be_something_to_lose() -> None:
    """A loss that would have no effect is an error of the test, and says why."""
    graph, bump = counter()
    creator = LosableSessionCreator(graph)
    with pytest.raises(FailedPreconditionError, match="none was made yet"):
        creator.lose()
    creator.created.append(Session(graph))
    with pytest.raises(FailedPreconditionError, match="the newest is not open yet"):
        creator.lose()
    async with MonitoredSession(creator) as session:
        await session.run(bump)
        creator.lose()
        with pytest.raises(FailedPreconditionError, match="the newest is lost or closed already"):
            creator.lose()


@pytest.mark.anyio
async def test_a_raw_session_can_be_lost_too() -> None:
    """Then nobody recovers, and its runs raise what tells of the loss."""
    graph, bump = counter()
    creator = LosableSessionCreator(graph)
    async with await creator.create_session() as raw:
        await raw.run(bump)
        creator.lose()
        assert raw.intact is False
        with pytest.raises(SessionClosedError):
            await raw.run(bump)
    async with await creator.create_session() as raw:
        creator.lose(UnavailableError("away"))
        with pytest.raises(UnavailableError, match="away"):
            await raw.run(bump)


def test_arguments_are_checked() -> None:
    """A graph or a creator; an exception, or what makes one."""
    with pytest.raises(InvalidArgumentError, match="a graph or a creator, not both"):
        LosableSessionCreator(Graph(), creator=ChiefSessionCreator())
    with pytest.raises(InvalidTypeError, match="graph must be a Graph, not a dict"):
        LosableSessionCreator({})  # type: ignore[arg-type]
    with pytest.raises(InvalidTypeError, match="creator must be a SessionCreator, not an ABCMeta"):
        LosableSessionCreator(creator=ChiefSessionCreator)  # type: ignore[arg-type]
    with pytest.raises(InvalidTypeError, match=r"error must be an exception, or a function.*not a str"):
        LosableSessionCreator(Graph()).lose("gone")  # type: ignore[arg-type]


def test_the_graph_is_the_default_one() -> None:
    """As that of other creators."""
    with Graph() as graph:
        assert LosableSessionCreator().graph is graph
