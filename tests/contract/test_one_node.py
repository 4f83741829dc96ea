"""Contract R, T, E: a run for one node that nothing is fed to spares itself the executor, and is like any other.

So each test fetches the node by itself, and in a list, which the executor evaluates.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from asyncstep import Graph, Node, RunOptions, SessionRunArgs, StepContext, Variable, op, source
from asyncstep.testing import RecordingHook

from .counting import Oops
from .life_parts import monitored

pytestmark = pytest.mark.anyio

KINDS = ["async", "plain", "update"]


@pytest.fixture(params=["alone", "in a list"])
def fetch(request: pytest.FixtureRequest) -> Callable[[Any], Any]:
    """How a node is fetched."""
    if request.param == "alone":
        return lambda node: node
    return lambda node: [node]


def node_of(kind: str, function: Callable[[], Any]) -> Node[Any]:
    """A node that calls a function when it is evaluated."""
    if kind == "update":
        return Variable(0, name="v").update(lambda _: function())
    if kind == "plain":
        return op(lambda: function(), name="one")()

    async def call() -> Any:
        await anyio.lowlevel.checkpoint()
        return function()

    return op(call, name="one")()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("hooked", [False, True])
async def test_its_value_is_the_result(kind: str, hooked: bool, fetch: Callable[[Any], Any]) -> None:
    """R1: with hooks or without, again and again, with options or without, the caller gets the value."""
    with Graph() as graph:
        node = node_of(kind, lambda: 7)
    hooks = [RecordingHook("hook", [])] if hooked else []
    async with monitored(graph, *hooks) as session:
        for _ in range(3):
            assert await session.run(fetch(node)) == fetch(7)
        assert await session.run(fetch(node), options=RunOptions(timeout=60.0)) == fetch(7)
        assert session.global_step == 4


@pytest.mark.parametrize("kind", KINDS)
async def test_a_feed_of_it_and_a_fetch_of_a_hook_count(kind: str, fetch: Callable[[Any], Any]) -> None:
    """R2, R5: fed, it is not evaluated; fetched by a hook too, it is evaluated once."""
    calls: list[int] = []

    def evaluated() -> int:
        calls.append(1)
        return 7

    with Graph() as graph:
        node = node_of(kind, evaluated)

    async def ask(*_: Any) -> SessionRunArgs:
        return SessionRunArgs(node)

    async with monitored(graph, RecordingHook("hook", [], before_run=ask)) as session:
        assert await session.run(fetch(node), {node: 8}, hooks=[]) == fetch(8)
        assert calls == []
        assert await session.run(fetch(node)) == fetch(7)
        assert calls == [1]


@pytest.mark.parametrize("kind", KINDS)
async def test_its_error_is_raised_as_it_is_with_a_note(kind: str, fetch: Callable[[Any], Any]) -> None:
    """E1, T4: the very error, with one note that names the node; nothing of the step is kept."""
    error = Oops()

    def fail() -> None:
        raise error

    with Graph() as graph:
        node = node_of(kind, fail)
    async with monitored(graph) as session:
        with pytest.raises(Oops) as caught:
            await session.run(fetch(node))
        assert caught.value is error
        assert error.__notes__.count(f"in the node {node.name!r}") == 1
        assert session.global_step == 0


async def test_a_cancellation_goes_through_it(fetch: Callable[[Any], Any]) -> None:
    """E1, C3: a cancellation goes through, and what it undoes is undone."""
    with Graph() as graph:
        node = op(anyio.sleep_forever, name="one")()
    async with monitored(graph) as session:
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as group:
                group.start_soon(session.run, fetch(node))
                await anyio.wait_all_tasks_blocked()
                scope.cancel()
        assert scope.cancelled_caught and session.global_step == 0


async def test_its_write_is_kept_or_rolled_back_as_a_whole(fetch: Callable[[Any], Any]) -> None:
    """T2, T4: a write commits with the run; a step function that fails after it takes it back."""
    with Graph() as graph:
        v = Variable(0, name="v")
        add, put = v.assign_add(1), v.assign(5)

    async def failing(ctx: StepContext) -> None:
        await ctx.session.run(fetch(add))
        raise Oops

    async with monitored(graph) as session:
        assert await session.run(fetch(add)) == fetch(1)
        with pytest.raises(Oops):
            await session.run_step_fn(failing)
        assert await session.run(fetch(v)) == fetch(1)
        assert await session.run(fetch(put)) == fetch(5)
        assert await session.run(fetch(v)) == fetch(5)


async def test_a_raw_run_inside_it_joins_the_step(fetch: Callable[[Any], Any]) -> None:
    """T8: an op's raw run is part of the step; if the op then fails, it is rolled back with it."""
    with Graph() as graph:
        v = Variable(0, name="v")
        add = v.assign_add(1)

        @op
        async def works() -> None:
            await session.incarnation().run(add)

        @op
        async def fails() -> None:
            await session.incarnation().run(add)
            raise Oops

        good, bad = works(), fails()
    async with monitored(graph) as session:
        await session.run(fetch(good))
        with pytest.raises(Oops):
            await session.run(fetch(bad))
        assert await session.run(fetch(v)) == fetch(1)


async def test_a_source_by_itself(fetch: Callable[[Any], Any]) -> None:
    """D1, S7: a source gives each item to one step, and its end stops the session."""
    with Graph() as graph:
        items: Node[Any] = source([1, 2], name="items")
    got: list[Any] = []
    async with monitored(graph) as session:
        while True:
            got.append(await session.run(fetch(items)))
    assert got == [fetch(1), fetch(2)]
    assert session.stop_reason is not None and session.stop_reason.kind == "end_of_data"
