"""Contract D, T, K: a queue, the source that steps feed."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import pytest

from asyncstep import (
    AbortedError,
    ChiefSessionCreator,
    FailedPreconditionError,
    Graph,
    MonitoredSession,
    OutOfRangeError,
    Recovery,
    RunOptions,
    Session,
    SessionClosedError,
    SessionRunContext,
    SessionRunHook,
    SessionRunValues,
    StepContext,
    StopKind,
    Variable,
    op,
    placeholder,
    source,
)
from asyncstep.checkpoint import Saver
from asyncstep.data import Queue, SourceState, queue

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
async def _no_deadlock() -> AsyncIterator[None]:
    """A test that waits for ever fails."""
    with anyio.fail_after(30):
        yield


@asynccontextmanager
async def monitored(graph: Graph, *hooks: SessionRunHook, **options: Any) -> AsyncIterator[MonitoredSession]:
    """A monitored session whose block is to run to its end: a stop that cuts it short is a failure."""
    ended = False
    async with MonitoredSession(ChiefSessionCreator(graph=graph), hooks, **options) as session:
        yield session
        ended = True
    assert ended, f"the block was cut short: {session.stop_reason}"


def finished(position: int) -> SourceState:
    """The state of a queue whose first `position` items are committed and no other was given."""
    return SourceState(position=position, pending=(), parked=())


@op
def children(number: int, limit: int) -> list[int]:
    """A tree: the children of a number are those that a binary heap gives it, below a limit."""
    return [child for child in (2 * number + 1, 2 * number + 2) if child < limit]


@op
async def hold(started: list[Any], gates: dict[Any, anyio.Event], item: Any) -> Any:
    """Note the item and wait until the test lets it go."""
    started.append(item)
    await gates.setdefault(item, anyio.Event()).wait()
    return item


async def with_a_turn(item: Any) -> Any:
    """The item, after a checkpoint."""
    await anyio.lowlevel.checkpoint()
    return item


def boom(*_: object) -> Any:
    """Fail as user code fails."""
    raise ValueError("boom")


def crawled(limit: int) -> tuple[Graph, Queue[int, int], Any]:
    """A graph that walks the tree of `children`, and the node of one step of it: the number taken."""
    with Graph() as graph:
        frontier = queue([0], name="frontier")
        put = frontier.put(children(frontier, limit))
        number = op(int)(frontier).after(put)
    return graph, frontier, number


# What is put, and when it appears


async def test_what_is_put_is_given_in_the_order_in_which_it_was_put() -> None:
    """D3: with one worker the order is that of the commits; a queue that grows is given to its end."""
    graph, frontier, number = crawled(20)
    given: list[int] = []

    async def step(ctx: StepContext) -> None:
        given.append(await ctx.run_with_hooks(number))

    async with monitored(graph) as session:
        await session.loop(step)
        assert given == list(range(20))
        assert session.stop_reason is not None
        assert session.stop_reason.kind is StopKind.END_OF_DATA
        assert session.source_state(frontier) == finished(20)


@pytest.mark.parametrize("workers", [2, 8, 40])
async def test_many_workers_are_given_every_item_once(workers: int) -> None:
    """D1, D5: workers that find the queue empty wait for the others, and all of them end when nothing is left."""
    graph, frontier, number = crawled(100)
    given: Counter[int] = Counter()

    async def step(ctx: StepContext) -> None:
        item = await ctx.run_with_hooks(number)
        given[item] += 1
        for _ in range(item % 5):
            await anyio.lowlevel.checkpoint()

    async with monitored(graph) as session:
        await session.loop(step, workers=workers)
        assert given == Counter(range(100))
        assert session.source_state(frontier) == finished(100)
        assert session.global_step == 100


async def test_what_is_put_appears_at_the_commit() -> None:
    """T2: nobody is given an item of a step that has not committed; then whoever waits is given it."""
    gates: dict[Any, anyio.Event] = {}
    started: list[Any] = []
    with Graph() as graph:
        frontier = queue(["first"], name="frontier")
        put = frontier.put(["second", "third"])
        held = hold(started, gates, frontier).after(put)
        size = frontier.size()
    async with monitored(graph) as session, anyio.create_task_group() as group:
        got: list[str] = []

        async def ask() -> None:
            got.append(await session.run(frontier))

        group.start_soon(session.run, held)
        await anyio.wait_all_tasks_blocked()
        group.start_soon(ask)
        await anyio.wait_all_tasks_blocked()
        assert (started, got) == (["first"], [])
        assert await session.run(size) == 0
        assert session.source_state(frontier) == SourceState(position=0, pending=(0,), parked=())
        gates["first"].set()
        await anyio.wait_all_tasks_blocked()
        assert got == ["second"]
        assert await session.run(size) == 1
        assert session.source_state(frontier) == finished(2)


async def test_a_step_that_fails_has_put_nothing() -> None:
    """T4: an error takes back what the step has put, and its item is parked (D1)."""
    with Graph() as graph:
        frontier = queue(["first"], name="frontier")
        failing = op(boom)(frontier).after(frontier.put(["never"]))
    async with monitored(graph) as session:
        with pytest.raises(ValueError, match="boom"):
            await session.run(failing)
        assert session.source_state(frontier) == SourceState(position=0, pending=(), parked=(0,))
        with pytest.raises(OutOfRangeError, match="the queue 'frontier' is empty"):
            await session.run_without_hooks(frontier)


async def test_a_step_that_a_hook_refuses_has_put_nothing() -> None:
    """T4: neither has one that `before_commit` refuses."""
    with Graph() as graph:
        frontier = queue(["first"], name="frontier")
        put = frontier.put(["never"])

    class Refuse(SessionRunHook):
        async def before_commit(self, run_context: SessionRunContext, run_values: SessionRunValues) -> None:
            boom()

    async with monitored(graph, Refuse()) as session:
        with pytest.raises(ValueError, match="boom"):
            await session.run(put)
        assert await session.run_without_hooks(frontier) == "first"
        with pytest.raises(OutOfRangeError):
            await session.run_without_hooks(frontier)


async def test_a_cancelled_step_has_put_nothing_and_gives_its_item_back() -> None:
    """T4, C4: and whoever waits is given that item."""
    gates: dict[Any, anyio.Event] = {}
    started: list[Any] = []
    with Graph() as graph:
        frontier = queue(["first"], name="frontier")
        held = hold(started, gates, frontier).after(frontier.put(["never"]))
    async with monitored(graph) as session, anyio.create_task_group() as group:
        scope = anyio.CancelScope()
        got: list[str] = []

        async def cancelled() -> None:
            with scope:
                await session.run(held)

        async def ask() -> None:
            got.append(await session.run(frontier))

        group.start_soon(cancelled)
        await anyio.wait_all_tasks_blocked()
        group.start_soon(ask)
        await anyio.wait_all_tasks_blocked()
        scope.cancel()
        await anyio.wait_all_tasks_blocked()
        assert (started, got) == (["first"], ["first"])
        assert session.source_state(frontier) == finished(1)


async def test_a_step_that_is_run_again_puts_once() -> None:
    """V1: the attempt that failed has put nothing; its item is given again."""
    attempts: list[int] = []

    async def step(ctx: StepContext) -> None:
        attempts.append(await ctx.session.run(number))
        if ctx.attempt == 1:
            raise AbortedError("once")

    graph, frontier, number = crawled(7)
    async with monitored(graph, recovery=Recovery(wait_initial=0, jitter=0)) as session:
        await session.loop(step)
        assert attempts == [each for each in range(7) for _ in range(2)]
        assert session.source_state(frontier) == finished(7)


async def test_a_raw_run_that_fails_inside_a_step_has_put_nothing() -> None:
    """T4: what it put is taken back, though the step that caught its error goes on and commits."""
    with Graph() as graph:
        frontier = queue([], name="frontier")
        good, bad = frontier.put(["good"]), op(boom)().after(frontier.put(["bad"]))

    async def step(ctx: StepContext) -> None:
        await ctx.session.run(good)
        with pytest.raises(ValueError, match="boom"):
            await ctx.session.run(bad)

    async with monitored(graph) as session:
        await session.run_step_fn(step)
        assert await session.run(frontier) == "good"
        with pytest.raises(OutOfRangeError):
            await session.run_without_hooks(frontier)


async def test_a_step_function_puts_what_it_is_fed() -> None:
    """T3: values that a step function computes go through a placeholder, and are there after its commit."""
    with Graph() as graph:
        links = placeholder("links")
        frontier = queue(["a"], name="frontier")
        put = frontier.put(links)
    given: list[str] = []

    async def step(ctx: StepContext) -> None:
        url: str = await ctx.session.run(frontier)
        given.append(url)
        await ctx.run_with_hooks(put, {links: [url + "1", url + "2"] if len(url) < 3 else []})

    async with monitored(graph) as session:
        await session.loop(step)
        assert given == ["a", "a1", "a2", "a11", "a12", "a21", "a22"]
        assert session.source_state(frontier) == finished(7)


async def test_raw_sessions_have_queues_too() -> None:
    """D1: each raw run is a transaction of its own; sessions share nothing."""
    graph, frontier, number = crawled(4)
    async with Session(graph) as one, Session(graph) as other:
        assert [await one.run(number) for _ in range(4)] == [0, 1, 2, 3]
        assert await other.run(number) == 0
        assert (one.source_state(frontier), other.source_state("frontier")) == (finished(4), finished(1))
        with pytest.raises(OutOfRangeError) as caught:
            await one.run(number)
        assert caught.value.session is None


# The end of the data, and the waiting for it


async def test_workers_that_wait_end_when_the_last_step_puts_nothing() -> None:
    """D5: the end is when the last step that could feed is over, and not before."""
    gates: dict[Any, anyio.Event] = {}
    started: list[Any] = []
    worked: list[int] = []
    ended: list[int] = []
    with Graph() as graph:
        frontier = queue(["only"], name="frontier")
        held = hold(started, gates, frontier)

    async def step(ctx: StepContext) -> None:
        try:
            await ctx.run_with_hooks(held)
        except OutOfRangeError:
            ended.append(ctx.worker)
            raise
        worked.append(ctx.worker)

    async with monitored(graph) as session, anyio.create_task_group() as group:
        group.start_soon(lambda: session.loop(step, workers=5))
        await anyio.wait_all_tasks_blocked()
        assert (started, ended, session.stop_reason) == (["only"], [], None)
        gates["only"].set()
        await anyio.wait_all_tasks_blocked()
        assert {*range(5)} - {*worked} <= {*ended}
        assert str(session.stop_reason).startswith("end_of_data: the queue 'frontier' is empty")


async def test_a_step_function_may_feed_until_it_is_over() -> None:
    """D5: also after it has committed its item, nobody is told that the data has ended."""
    gate = anyio.Event()
    with Graph() as graph:
        frontier = queue([1], name="frontier")
        put = frontier.put([2, 3])
    given: list[int] = []

    async def step(ctx: StepContext) -> None:
        item = await ctx.run_with_hooks(frontier)
        given.append(item)
        if item == 1:
            await gate.wait()
            await ctx.run_with_hooks(put)

    async with monitored(graph) as session, anyio.create_task_group() as group:
        group.start_soon(lambda: session.loop(step, workers=3))
        await anyio.wait_all_tasks_blocked()
        assert session.source_state(frontier) == finished(1)
        assert session.stop_reason is None
        gate.set()
        await anyio.wait_all_tasks_blocked()
        assert sorted(given) == [1, 2, 3]


async def test_steps_that_hold_items_and_ask_for_more_do_not_wait_for_each_other() -> None:
    """D5: no deadlock; where nobody is left who could feed, all that wait are at the end of the data."""
    ready = anyio.Event()
    with Graph() as graph:
        frontier = queue([1, 2, 3], name="frontier")
    held: list[int] = []

    async def step(ctx: StepContext) -> None:
        held.append(await ctx.session.run(frontier))
        if len(held) == 3:
            ready.set()
        await ready.wait()
        await ctx.session.run(frontier)

    async with monitored(graph) as session:
        await session.loop(step, workers=3)
        assert session.stop_reason is not None
        assert session.stop_reason.kind is StopKind.END_OF_DATA
        assert session.source_state(frontier) == SourceState(position=0, pending=(0, 1, 2), parked=())


async def test_steps_that_wait_for_two_queues_crosswise_are_at_the_end_together() -> None:
    """D5: all queues of a session are looked at together, so no step waits for one that waits for it."""
    ready = anyio.Event()
    with Graph() as graph:
        queues = [queue([1], name="first"), queue([2], name="second")]
    held: list[int] = []

    async def step(ctx: StepContext) -> None:
        held.append(await ctx.session.run(queues[ctx.worker]))
        if len(held) == 2:
            ready.set()
        await ready.wait()
        await ctx.session.run(queues[1 - ctx.worker])

    async with monitored(graph) as session:
        await session.loop(step, workers=2)
        assert sorted(held) == [1, 2]
        assert session.stop_reason is not None
        assert session.stop_reason.kind is StopKind.END_OF_DATA


async def test_a_step_may_feed_one_queue_while_others_wait_for_another() -> None:
    """D5: who has to do with any queue of the session may feed all of them."""
    gates: dict[Any, anyio.Event] = {}
    with Graph() as graph:
        first, second = queue([1], name="first"), queue([], name="second")
        held = hold([], gates, first).after(second.put([2]))
    got: list[int] = []

    async def ask() -> None:
        got.append(await session.run(second))

    async with monitored(graph) as session, anyio.create_task_group() as group:
        group.start_soon(session.run, held)
        await anyio.wait_all_tasks_blocked()
        group.start_soon(ask)
        await anyio.wait_all_tasks_blocked()
        assert got == []
        gates[1].set()
        await anyio.wait_all_tasks_blocked()
        assert got == [2]


async def test_a_run_inside_a_step_does_not_wait_for_that_step() -> None:
    """D5: a step that awaits another run of its session cannot feed it meanwhile."""
    with Graph() as graph:
        frontier = queue([1], name="frontier")

    async def step(ctx: StepContext) -> None:
        await ctx.session.run(frontier)
        async with anyio.create_task_group() as group:
            group.start_soon(inner)

    async def inner() -> None:
        with pytest.raises(OutOfRangeError):
            await session.run_without_hooks(frontier)

    async with monitored(graph) as session:
        await session.run_step_fn(step)
        assert session.source_state(frontier) == finished(1)


async def test_a_hook_may_take_after_the_commit() -> None:
    """D5: a run of `after_run` is a step of its own, and does not wait for the step that it is told of."""
    with Graph() as graph:
        frontier = queue([1], name="frontier")
    ends: list[BaseException] = []

    class Take(SessionRunHook):
        async def after_run(self, run_context: SessionRunContext, run_values: SessionRunValues) -> None:
            try:
                await run_context.session.run(frontier)
            except OutOfRangeError as error:
                ends.append(error)

    async with monitored(graph, Take()) as session:
        assert await session.run(frontier) == 1
        assert len(ends) == 1


async def test_a_step_that_waits_for_its_own_items_is_told_so() -> None:
    """T2: what a step has put is not there for itself; to wait for it is an error, never a silent end."""
    with Graph() as graph:
        frontier = queue([1], name="frontier")
        put = frontier.put([2])

    async def step(ctx: StepContext) -> None:
        await ctx.session.run((frontier, put))
        await ctx.session.run(frontier)

    async with monitored(graph) as session:
        with pytest.raises(
            FailedPreconditionError, match="has put some itself that appear only when it commits"
        ):
            await session.run_step_fn(step)
        assert session.source_state(frontier) == SourceState(position=0, pending=(), parked=(0,))


async def test_a_parked_item_keeps_nobody_waiting() -> None:
    """D1, D5: it is not given again in this process, so the others end; a checkpoint has it."""
    with Graph() as graph:
        frontier = queue(range(3), name="frontier")
        failing = op(lambda item: boom() if item == 1 else item)(frontier)
    async with monitored(graph) as session:
        assert await session.run(failing) == 0
        with pytest.raises(ValueError, match="boom"):
            await session.run(failing)
        assert await session.run(failing) == 2
        with pytest.raises(OutOfRangeError):
            await session.run_without_hooks(failing)
        assert session.source_state(frontier) == SourceState(position=1, pending=(), parked=(1,))
        snapshot = session.snapshot()
    async with Session(graph) as resumed:
        await resumed.restore(snapshot)
        assert await resumed.run(frontier) == 1
        assert resumed.source_state(frontier) == finished(3)


async def test_a_take_that_is_cancelled_as_it_is_given_an_item_gives_it_back() -> None:
    """D1: nothing is lost between the commit that feeds and the turn of the step that waits."""
    gate = anyio.Event()
    with Graph() as graph:
        frontier = queue([1], name="frontier")
        put = frontier.put([2])
        slowly = op(with_a_turn)(frontier)
    got: list[tuple[str, int]] = []
    scope = anyio.CancelScope()

    async def first(ctx: StepContext) -> None:
        await ctx.session.run(frontier)
        await gate.wait()
        await ctx.run_with_hooks(put)
        scope.cancel()

    async def cancelled() -> None:
        with scope:
            got.append(("cancelled", await session.run(slowly)))

    async def patient() -> None:
        got.append(("patient", await session.run(frontier)))

    async with monitored(graph) as session, anyio.create_task_group() as group:
        group.start_soon(session.run_step_fn, first)
        await anyio.wait_all_tasks_blocked()
        for ask in (cancelled, patient):
            group.start_soon(ask)
            await anyio.wait_all_tasks_blocked()
        gate.set()
        await anyio.wait_all_tasks_blocked()
        assert got == [("patient", 2)]
        assert session.source_state(frontier) == finished(2)


async def test_a_deadline_ends_the_waiting() -> None:
    """R10: RunOptions.timeout ends a run that waits for an item, and others are given it."""
    gates: dict[Any, anyio.Event] = {}
    with Graph() as graph:
        frontier = queue([1], name="frontier")
        held = hold([], gates, frontier).after(frontier.put([2]))
    async with monitored(graph) as session, anyio.create_task_group() as group:
        group.start_soon(session.run, held)
        await anyio.wait_all_tasks_blocked()
        with pytest.raises(TimeoutError):
            await session.run(frontier, options=RunOptions(timeout=0.01))
        gates[1].set()
        await anyio.wait_all_tasks_blocked()
        assert await session.run(frontier) == 2


async def test_closing_ends_the_waiting() -> None:
    """L6: a step that still waits for an item when the session is closed is told that it is."""
    gates: dict[Any, anyio.Event] = {}
    with Graph() as graph:
        frontier = queue([1], name="frontier")
        held = hold([], gates, frontier)
    errors: list[BaseException] = []
    raw = Session(graph)
    async with anyio.create_task_group() as group:
        await raw.__aenter__()

        async def ask() -> None:
            try:
                await raw.run(frontier)
            except SessionClosedError as error:
                errors.append(error)

        async def never_done() -> None:
            with pytest.raises(SessionClosedError):
                await raw.run(held)

        group.start_soon(never_done)
        await anyio.wait_all_tasks_blocked()
        group.start_soon(ask)
        await anyio.wait_all_tasks_blocked()
        await raw.aclose()
        await anyio.wait_all_tasks_blocked()
        assert len(errors) == 1
        gates[1].set()


async def test_a_stop_lets_the_steps_in_flight_finish() -> None:
    """S4, W1: a step that waits when the stop comes is given its item, or ends at the end of the data."""
    graph, frontier, number = crawled(50)
    given: list[int] = []

    async def step(ctx: StepContext) -> None:
        given.append(await ctx.run_with_hooks(number))
        if len(given) == 5:
            ctx.request_stop("five")

    async with monitored(graph) as session:
        await session.loop(step, workers=4)
        state = session.source_state(frontier)
        assert state.pending == ()
        assert state.position == len(given) == len(set(given))
        assert session.stop_reason is not None
        assert session.stop_reason.message == "five"


async def test_ten_thousand_items_and_a_thousand_workers() -> None:
    """W3, D1: a queue that grows from one item to ten thousand is given to all workers, each item once."""
    graph, frontier, number = crawled(10_000)
    given: Counter[int] = Counter()

    async def step(ctx: StepContext) -> None:
        given[await ctx.run_with_hooks(number)] += 1
        await anyio.lowlevel.checkpoint()

    async with monitored(graph) as session:
        await session.loop(step, workers=1_000)
        assert given == Counter(range(10_000))
        assert session.source_state(frontier) == finished(10_000)


# Batches and unique items


async def test_batches_are_what_is_there() -> None:
    """D1: a batch has at most so many items and waits for no more; rolled back it is given again as it was."""
    with Graph() as graph:
        frontier = queue([0], name="frontier", batch=4)
        more = op(
            lambda batch: [child for item in batch for child in (2 * item + 1, 2 * item + 2) if child < 20]
        )
        together = op(list)(frontier).after(frontier.put(more(frontier)))
    given: list[list[int]] = []

    async def step(ctx: StepContext) -> None:
        given.append(await ctx.session.run(together))
        if ctx.attempt == 1:
            raise AbortedError("once")

    async with monitored(graph, recovery=Recovery(wait_initial=0, jitter=0)) as session:
        await session.loop(step)
        assert given[::2] == given[1::2]
        assert given[1::2] == [
            [0],
            [1, 2],
            [3, 4, 5, 6],
            [7, 8, 9, 10],
            [11, 12, 13, 14],
            [15, 16, 17, 18],
            [19],
        ]
        assert session.source_state(frontier) == finished(20)


async def test_unique_puts_each_item_once() -> None:
    """D1: an item that was put before, in any step, or initially, is not put again; nor one twice in a put."""
    with Graph() as graph:
        frontier = queue(["a", "a"], name="frontier", unique=True)
        put = frontier.put(["a", "b", "b", "c"])
        letter = op(str)(frontier).after(put)
    given: list[str] = []

    async def step(ctx: StepContext) -> None:
        given.append(await ctx.run_with_hooks(letter))

    async with monitored(graph) as session:
        await session.loop(step, workers=3)
        assert given == ["a", "b", "c"]
        assert session.source_state(frontier) == finished(3)


async def test_unique_by_a_key() -> None:
    """D1: `unique` may be a function of what tells items apart; the first one of a key is given."""
    with Graph() as graph:
        page = queue([{"url": "x#1"}], name="pages", unique=lambda each: each["url"].split("#")[0])
        put = page.put([{"url": "x#2"}, {"url": "y#3"}])
    async with monitored(graph) as session:
        await session.run(put)
        assert [await session.run(page) for _ in range(2)] == [{"url": "x#1"}, {"url": "y#3"}]
        with pytest.raises(OutOfRangeError):
            await session.run_without_hooks(page)


async def test_what_was_not_committed_may_be_put_again() -> None:
    """T4: the items of a step that was rolled back are not taken for seen."""
    with Graph() as graph:
        frontier = queue([], name="frontier", unique=True)
        put = frontier.put(["a"])
        failing = op(boom)().after(put)
    async with monitored(graph) as session:
        with pytest.raises(ValueError, match="boom"):
            await session.run(failing)
        await session.run(put)
        assert await session.run(frontier) == "a"


# Checkpoints


async def test_a_checkpoint_has_positions_and_items(tmp_path: Path) -> None:
    """K1, D2: what is in flight, parked or waiting is given again after a restore, in the order of the commits."""
    gates: dict[Any, anyio.Event] = {}
    started: list[Any] = []
    with Graph() as graph:
        frontier = queue([("item", 0)], name="frontier", unique=True)
        put = frontier.put([("item", number) for number in range(6)])
        failing = op(boom)(frontier)
        held = hold(started, gates, frontier)
    async with monitored(graph) as session:
        await session.run(put)
        assert await session.run(frontier) == ("item", 0)
        with pytest.raises(ValueError, match="boom"):
            await session.run(failing)
        async with anyio.create_task_group() as group:
            group.start_soon(session.run, held)
            await anyio.wait_all_tasks_blocked()
            assert await session.run(frontier) == ("item", 3)
            assert session.source_state(frontier) == SourceState(position=1, pending=(2,), parked=(1,))
            path = await Saver().save(session, tmp_path)
            group.cancel_scope.cancel()
    async with Session(graph) as resumed:
        await Saver().restore(resumed, path)
        assert resumed.source_state(frontier) == finished(1)
        assert [await resumed.run(frontier) for _ in range(4)] == [("item", each) for each in (1, 2, 4, 5)]
        assert resumed.source_state(frontier) == finished(6)
        await resumed.run(put)  # all of them were put before
        with pytest.raises(OutOfRangeError):
            await resumed.run(frontier)


async def test_no_half_step_is_in_a_checkpoint(tmp_path: Path) -> None:
    """K1: at any instant the items that are finished and those in the queue are those of whole steps."""
    graph, _, number = crawled(60)
    with graph:
        done = Variable[tuple[int, ...]]((), name="done")
        step_node = done.update(lambda items, item: (*items, item), number)
    snapshots: list[Any] = []

    async def step(ctx: StepContext) -> None:
        await ctx.run_with_hooks(step_node)
        await anyio.lowlevel.checkpoint()
        snapshots.append(session.snapshot())

    async with monitored(graph) as session:
        await session.loop(step, workers=5)
    assert len(snapshots) == 60
    for snapshot in snapshots:
        items = snapshot.variables["done"]
        put = {0} | {child for item in items for child in (2 * item + 1, 2 * item + 2) if child < 60}
        assert sorted([*items, *snapshot.sources["frontier"]["items"]["queue"]]) == sorted(put)
    for snapshot in snapshots[::7]:
        async with MonitoredSession(ChiefSessionCreator(graph=graph)) as session:
            await session.restore(snapshot)
            await session.loop(step, workers=5)
            assert sorted(await session.run_without_hooks(done)) == list(range(60))


async def test_a_restore_in_the_middle_puts_the_queue_back(tmp_path: Path) -> None:
    """V2, K7: a session that goes back to a snapshot gives what was in the queue then, and steps in flight again."""
    graph, frontier, number = crawled(9)
    async with monitored(graph) as session:
        assert [await session.run(number) for _ in range(3)] == [0, 1, 2]
        snapshot = session.snapshot()
        assert [await session.run(number) for _ in range(4)] == [3, 4, 5, 6]
        await session.restore(snapshot)
        assert session.source_state(frontier) == finished(3)
        assert [await session.run(number) for _ in range(6)] == [3, 4, 5, 6, 7, 8]


async def test_a_step_that_waits_goes_on_after_a_recovery() -> None:
    """V2: a restore takes back the steps under way; one that waits for an item asks anew in the next incarnation."""
    gates: dict[Any, anyio.Event] = {}
    with Graph() as graph:
        frontier = queue([1], name="frontier")
        held = hold([], gates, frontier).after(frontier.put([2]))
    got: list[int] = []
    done = anyio.Event()
    async with monitored(graph, recovery=Recovery(wait_initial=0, jitter=0)) as session:
        snapshot = session.snapshot()
        async with anyio.create_task_group() as group:

            async def ask() -> None:
                got.append(await session.run(frontier))
                done.set()

            group.start_soon(session.run, held)
            await anyio.wait_all_tasks_blocked()
            group.start_soon(ask)
            await anyio.wait_all_tasks_blocked()
            await session.restore(snapshot)
            await done.wait()
            assert got == [1]
            group.cancel_scope.cancel()


async def test_what_was_saved_in_another_way_is_refused() -> None:
    """K7: a queue is not restored from a source, nor one with unique items from one without, nor from anything else."""

    def graph_of(**options: Any) -> Graph:
        with Graph() as graph:
            queue([1], name="items", **options)
        return graph

    with Graph() as other:
        source([1], name="items")
    snapshots = {}
    for name, graph in {"source": other, "plain": graph_of(), "unique": graph_of(unique=True)}.items():
        async with Session(graph) as session:
            snapshots[name] = session.snapshot()
    for name, options, message in (
        ("source", {}, "was saved as a source of items that are read, and is a queue now"),
        ("plain", {"unique": True}, "was saved without unique=, and is with it now"),
        ("unique", {}, "was saved with unique=, and is without it now"),
    ):
        async with Session(graph_of(**options)) as session:
            await session.restore(snapshots[name])
            with pytest.raises(FailedPreconditionError, match=message):
                await session.run("items")


# Wrong arguments


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ("url", "takes a list of items, or another iterable, not a str; put one item as"),
        (b"url", "not a bytes"),
        ({"url": 1}, "not a dict"),
        (3, "not an int"),
        (None, "not a NoneType"),
        ({"a", "b"}, "whose order differs from process to process; put a list, as in sorted"),
    ],
)
async def test_what_is_no_list_of_items_is_refused(items: Any, message: str) -> None:
    """D3: a string is not taken for a list of letters, and a set has no order."""
    with Graph() as graph:
        frontier = queue([], name="frontier")
        put = frontier.put(items)
    async with monitored(graph) as session:
        with pytest.raises(TypeError, match=message):
            await session.run(put)


async def test_items_without_a_key_are_refused() -> None:
    """D1: unique needs what can be hashed, and says so when it is put, so the step has no effect."""
    with Graph() as graph:
        frontier = queue([], name="frontier", unique=True)
        put = frontier.put([["list"]])
    async with monitored(graph) as session:
        with pytest.raises(
            TypeError, match=r"cannot tell whether it had a list before.*give unique= a function"
        ):
            await session.run(put)
