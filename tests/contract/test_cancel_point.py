"""Contract R9: a run is a cancel point always, whichever scope is cancelled, and however that is found out.

On asyncio a session looks at anyio's record of scopes where the record is as expected, and asks anyio where it is
not. So each test runs both ways.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest

from asyncstep import Graph, Node, Session, StepContext, op
from asyncstep._runtime import pace
from asyncstep.testing import RecordingHook

from .life_parts import monitored

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["looks", "asks"], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the sessions of a test look at anyio's record of scopes, or ask anyio."""
    if request.param == "asks":
        monkeypatch.setattr(pace, "anyio_scope_states", lambda: None)


def counted() -> tuple[Graph, Node[Any], list[int]]:
    """A graph, a node of it, and a list that grows when the node is evaluated."""
    evaluated: list[int] = []
    with (graph := Graph()):
        return graph, op(evaluated.append)(1), evaluated


@pytest.mark.parametrize("kind", ["run", "some hooks", "without hooks", "step", "raw", "raw step"])
async def test_every_kind_of_run_is_a_cancel_point(kind: str) -> None:
    """R9: in a cancelled scope a run evaluates nothing, also right after one that gave the others a turn."""
    graph, node, evaluated = counted()

    async def step(ctx: StepContext) -> None:
        await ctx.run_with_hooks(node)
        scope.cancel()
        await ctx.run_with_hooks(node)

    async def raw_step(ctx: StepContext) -> None:
        await ctx.session.run(node)
        scope.cancel()
        await ctx.session.run(node)

    async with monitored(graph, RecordingHook("hook", [])) as session, Session(graph) as raw:
        runs: dict[str, Callable[[], Awaitable[Any]]] = {
            "run": lambda: session.run(node),
            "some hooks": lambda: session.run(node, hooks=[]),
            "without hooks": lambda: session.run_without_hooks(node),
            "raw": lambda: raw.run(node),
            "step": lambda: session.run_step_fn(step),
            "raw step": lambda: session.run_step_fn(raw_step),
        }
        with anyio.CancelScope() as scope:
            if "step" not in kind:
                await runs[kind]()
                scope.cancel()
            await runs[kind]()
        assert scope.cancelled_caught
    assert evaluated == [1]


@pytest.mark.parametrize("shielded", [False, True])
@pytest.mark.parametrize("depth", [0, 1, 5])
async def test_a_scope_around_that_the_task_itself_cancels(depth: int, shielded: bool) -> None:
    """R9: seen at any depth by the next run, though the loop had no turn; a shield is no shield from its own
    scope's cancellation."""
    graph, node, evaluated = counted()

    async def inside(depth: int) -> None:
        if depth:
            with anyio.CancelScope():
                await inside(depth - 1)
        else:
            await session.run(node)
            scope.cancel()
            await session.run(node)

    async with monitored(graph) as session:
        with anyio.CancelScope(shield=shielded) as scope:
            await inside(depth)
        assert scope.cancelled_caught
        await session.run(node)
    assert evaluated == [1, 1]


async def test_a_shield_keeps_a_cancellation_from_runs_inside_it() -> None:
    """R9: in a shield runs go on; out of it the next run is cancelled."""
    graph, node, evaluated = counted()
    async with monitored(graph) as session:
        with anyio.CancelScope() as scope:
            with anyio.CancelScope(shield=True), anyio.CancelScope():
                scope.cancel()
                for _ in range(3):
                    await session.run(node)
            await session.run(node)
        assert scope.cancelled_caught
    assert evaluated == [1, 1, 1]


async def test_a_shield_that_is_taken_away() -> None:
    """R9: a scope that ceases to be a shield lets the cancellation around it through to the next run."""
    graph, node, evaluated = counted()
    async with monitored(graph) as session:
        with anyio.CancelScope() as scope, anyio.CancelScope(shield=True) as shield:
            scope.cancel()
            await session.run(node)
            shield.shield = False
            await session.run(node)
        assert scope.cancelled_caught
    assert evaluated == [1]


async def test_a_cancellation_that_was_swallowed_is_seen_again() -> None:
    """R9: a scope stays cancelled: each run in it raises, however often that is caught."""
    graph, node, evaluated = counted()
    raised = 0
    async with monitored(graph) as session:
        with anyio.CancelScope() as scope:
            scope.cancel()
            for _ in range(3):
                try:
                    await session.run(node)
                except anyio.get_cancelled_exc_class():
                    raised += 1
    assert raised == 3 and evaluated == []


async def test_a_child_task_in_a_cancelled_group() -> None:
    """R9: a task is cancelled by the scopes of the tasks above it."""
    graph, node, evaluated = counted()

    async def child() -> None:
        await session.run(node)
        scope.cancel()
        await session.run(node)

    async with monitored(graph) as session:
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as group:
                group.start_soon(child)
        assert scope.cancelled_caught
    assert evaluated == [1]


async def test_a_deadline_that_is_moved_into_the_past() -> None:
    """R9: a deadline is seen at the next turn of the loop, a millisecond later at most."""
    graph, node, _ = counted()
    async with monitored(graph) as session:
        with anyio.CancelScope() as scope:
            await session.run(node)
            scope.deadline = anyio.current_time() - 1.0
            for _ in range(1_000_000):
                await session.run(node)
        assert scope.cancelled_caught
