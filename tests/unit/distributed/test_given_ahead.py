"""Contract X: the item of the next step comes with the answer to a commit; nothing of that is seen but its speed.

The programs run in one event loop, see `loopback`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import anyio
import pytest

from asyncstep import (
    AbortedError,
    ChiefSessionCreator,
    Graph,
    MonitoredSession,
    Recovery,
    StepContext,
    Variable,
    WorkerSessionCreator,
    source,
)
from asyncstep._runtime.state import SourceState
from asyncstep.data import queue
from asyncstep.distributed import TaskInfo
from asyncstep.distributed.messages import Commit, Take, Undo

from .loopback import LoopbackJob, Program

pytestmark = pytest.mark.anyio


def append(done: tuple[Any, ...], item: Any) -> tuple[Any, ...]:
    """How most tests change the variable."""
    return (*done, item)


class Parts:
    """The graph of the tests, in a `with Graph()`: a source, and a variable that lists what was taken."""

    def __init__(self, items: Any, *, change: Callable[..., Any] = append, **settings: Any) -> None:
        self.item = source(items, name="items", **settings)
        self.done = Variable[tuple[Any, ...]]((), name="done")
        self.add = self.done.update(change, self.item)


def session_of(task: TaskInfo) -> MonitoredSession:
    """A session whose steps are tried again at once."""
    creator = (
        ChiefSessionCreator(master=task.master) if task.is_chief else WorkerSessionCreator(master=task.master)
    )
    return MonitoredSession(creator, recovery=Recovery(wait_initial=0.0, jitter=0.0), stop_grace_period=5.0)


Step = Callable[[StepContext, Parts, MonitoredSession], Any]


async def add(ctx: StepContext, parts: Parts, _: MonitoredSession) -> None:
    """The step of most tests."""
    await ctx.run_with_hooks(parts.add)


def looping(job: LoopbackJob, items: Any, step: Step = add, *, workers: int = 1, **settings: Any) -> Program:
    """A program whose worker runs the loop, while the chief only waits; what is done, and how far the source is."""

    async def program(task: TaskInfo) -> Any:
        with Graph():
            parts = Parts(items, **settings)
            session = session_of(task)
        async with session:
            if task.is_chief:
                await job.until(lambda: 1 in job.view.done)
                return await session.run_without_hooks("done"), session.source_state(parts.item)
            await session.loop(step, parts, session, workers=workers)
        return session.recoveries

    return program


async def run(job: LoopbackJob, program: Program) -> Any:
    """What the chief has seen."""
    async with job.running() as start:
        chief, worker = start(program, 0), start(program, 1)
    assert worker.result == 0
    return chief.result


def count(job: LoopbackJob) -> Counter[type]:
    """How many messages of each kind have arrived."""
    return Counter(type(message) for message in job.messages)


@pytest.mark.parametrize(
    "settings", [{}, {"batch": 3}, {"batch": 3, "prefetch": 12}, {"shuffle": True, "seed": 7}]
)
async def test_a_step_of_a_loop_is_one_message(settings: dict[str, Any]) -> None:
    """Only the first two steps, and those that meet an end, ask for their items; these are as in one process."""
    with Graph():
        parts = Parts(range(31), **settings)
        alone = MonitoredSession()
    async with alone:
        await alone.loop(add_alone, parts)
        expected = await alone.run_without_hooks("done")
    job = LoopbackJob(2)
    done, state = await run(job, looping(job, range(31), **settings))
    assert done == expected
    assert state == SourceState(31, (), ())
    if "prefetch" not in settings:  # else it depends on a thread what is at hand
        assert count(job)[Take] == 3 + ("batch" in settings)  # the remainder is no whole batch


async def add_alone(ctx: StepContext, parts: Parts) -> None:
    """The step without the session."""
    await ctx.run_with_hooks(parts.add)


@pytest.mark.parametrize("fault", ["drop_request", "drop_answer", "repeated"])
async def test_a_commit_that_is_lost_or_repeated_gives_its_item_once(fault: str) -> None:
    """X: the same answer comes again, with the same item."""
    job = LoopbackJob(2)
    seen: set[int] = set()

    def once(message: Any) -> bool:
        if not isinstance(message, Commit) or message.step in seen:
            return False
        seen.add(message.step)
        return True

    setattr(job, fault, once)
    done, state = await run(job, looping(job, range(20)))
    assert done == tuple(range(20))
    assert state == SourceState(20, (), ())
    assert count(job)[Take] == 3


async def test_every_epoch_has_all_items() -> None:
    """A mark between two epochs is not given ahead."""
    job = LoopbackJob(2)
    done, state = await run(job, looping(job, range(7), batch=3, repeat=2))
    assert done == ([0, 1, 2], [3, 4, 5], [6], [0, 1, 2], [3, 4, 5], [6])
    assert state == SourceState(14, (), ())


async def test_what_is_given_ahead_of_a_step_that_fails_is_given_again() -> None:
    """T4, D1: the step is run again, with its item, before any other."""
    job = LoopbackJob(2)
    failed: set[int] = set()

    async def step(ctx: StepContext, parts: Parts, session: MonitoredSession) -> None:
        item = await ctx.session.run(parts.item)
        if item % 3 == 2 and item not in failed:
            failed.add(item)
            raise AbortedError("once")
        await ctx.run_with_hooks(parts.add, {parts.item: item})

    done, state = await run(job, looping(job, range(20), step))
    assert failed == {2, 5, 8, 11, 14, 17}
    assert done == tuple(range(20))
    assert state == SourceState(20, (), ())


CALLS: Counter[int] = Counter()
"""How often `add_the_third_time` was called for each item."""


def add_the_third_time(done: tuple[Any, ...], item: int) -> tuple[Any, ...]:
    """Works where the worker calls it, fails where the chief does, and works when the step is run again."""
    CALLS[item] += 1
    if item % 3 == 2 and CALLS[item] == 2:
        raise AbortedError("once")
    return (*done, item)


async def test_nothing_is_kept_of_what_was_asked_for_with_a_commit_that_failed() -> None:
    """L9: the chief hears that all steps before the last one are over, also where it has refused some."""
    CALLS.clear()
    job = LoopbackJob(2)
    done, state = await run(job, looping(job, range(20), change=add_the_third_time))
    assert done == tuple(range(20))
    assert state == SourceState(20, (), ())
    assert CALLS[19] == 2
    assert CALLS[17] == 4
    last = [message for message in job.messages if isinstance(message, Commit)][-1]
    assert last.below == last.step


async def test_what_no_step_has_seen_is_not_pending_after_the_loop() -> None:
    """S4, D2: a stop leaves nothing of what was given ahead, neither with the chief nor as the worker sees it."""
    job = LoopbackJob(2)
    seen: list[SourceState] = []

    async def program(task: TaskInfo) -> Any:
        with Graph():
            parts = Parts(range(20))
            session = session_of(task)

        async def step(ctx: StepContext) -> None:
            await ctx.run_with_hooks(parts.add)
            seen.append(session.source_state(parts.item))
            if session.global_step == 5:
                ctx.request_stop()

        async with session:
            if task.is_chief:
                await job.until(lambda: 1 in job.view.done)
                return session.source_state(parts.item)
            await session.loop(step)
            return session.source_state(parts.item)

    async with job.running() as start:
        chief, worker = start(program, 0), start(program, 1)
    assert chief.result == worker.result == SourceState(5, (), ())
    assert [message for message in job.messages if isinstance(message, Commit) and message.ahead is not None]


async def test_an_item_that_no_step_takes_goes_to_others() -> None:
    """D5: nobody waits for a step that does without, neither for the item nor for the end of the data."""
    job = LoopbackJob(2)
    all_done = anyio.Event()

    async def program(task: TaskInfo) -> Any:
        with Graph():
            parts = Parts(range(6))
            session = session_of(task)

        async def step(ctx: StepContext) -> None:
            if not task.is_chief and session.global_step == 3:
                await all_done.wait()
                return
            await ctx.run_with_hooks(parts.add)

        async with session:
            if task.is_chief:
                await job.until(
                    lambda: any(
                        isinstance(message, Commit) and message.ahead is not None for message in job.messages
                    )
                )
                rest = [(await session.run(parts.add))[-1] for _ in range(3)]
                all_done.set()
                await session.loop(step)
                return rest, await session.run_without_hooks("done")
            await session.loop(step)
        return None

    async with job.running() as start:
        chief, _ = start(program, 0), start(program, 1)
    rest, done = chief.result
    assert sorted(rest) == [3, 4, 5]
    assert sorted(done) == list(range(6))


async def test_what_a_worker_was_given_ahead_is_given_to_others_when_it_dies() -> None:
    """X, D1: no step of it has begun with that item."""
    job = LoopbackJob(2)
    waits = anyio.Event()

    async def program(task: TaskInfo) -> Any:
        with Graph():
            parts = Parts(range(6))
            session = session_of(task)

        async def step(ctx: StepContext) -> None:
            if not task.is_chief and session.global_step == 3:
                waits.set()
                await anyio.sleep_forever()
            await ctx.run_with_hooks(parts.add)

        async with session:
            if task.is_chief:
                await job.until(lambda: 1 not in job.view.lives and waits.is_set())
            await session.loop(step)
            return await session.run_without_hooks("done")

    async with job.running() as start:
        chief, worker = start(program, 0), start(program, 1)
        await waits.wait()
        worker.kill()
    assert sorted(chief.result) == list(range(6))


async def test_an_error_of_the_items_meets_the_step_that_asks() -> None:
    """D1, E1: an item that cannot be loaded, or read, is not given ahead; the error is that of its step, once."""

    class Items:
        def __init__(self) -> None:
            self.broken = {4}

        def __len__(self) -> int:
            return 8

        def __getitem__(self, index: int) -> int:
            if index in self.broken:
                raise AbortedError(f"item {index}")
            return index

    items = Items()
    met: list[str] = []
    job = LoopbackJob(2)

    async def step(ctx: StepContext, parts: Parts, session: MonitoredSession) -> None:
        try:
            await ctx.run_with_hooks(parts.add)
        except AbortedError as error:
            met.append(str(error))
            items.broken.clear()
            raise

    done, state = await run(job, looping(job, items, step))
    assert met == ["item 4"]
    assert done == tuple(range(8))
    assert state == SourceState(8, (), ())


async def test_a_step_that_takes_twice_gets_items_that_follow_each_other() -> None:
    """D3: only a step that takes one item, and commits once, has the next one's given ahead."""
    job = LoopbackJob(2)

    async def step(ctx: StepContext, parts: Parts, session: MonitoredSession) -> None:
        first = await ctx.session.run(parts.item)
        second = await ctx.session.run(parts.item)
        assert second == first + 1
        await ctx.run_with_hooks(parts.add, {parts.item: (first, second)})

    done, _ = await run(job, looping(job, range(20), step))
    assert done == tuple((first, first + 1) for first in range(0, 20, 2))
    assert not any(isinstance(message, Commit) and message.ahead is not None for message in job.messages)


async def test_nothing_is_given_ahead_outside_of_a_loop() -> None:
    """A run outside of a loop need not be followed by another."""
    job = LoopbackJob(2)

    async def program(task: TaskInfo) -> Any:
        with Graph():
            parts = Parts(range(20))
            session = session_of(task)
        async with session:
            if task.is_chief:
                await job.until(lambda: 1 in job.view.done)
                return session.source_state(parts.item)
            for _ in range(5):
                await session.run(parts.add)
        return session.recoveries

    assert await run(job, program) == SourceState(5, (), ())
    assert count(job)[Take] == 5
    assert count(job)[Undo] == 0


async def test_workers_of_one_program_share_what_is_given_ahead() -> None:
    """W1, D5: each item goes to one step, whichever of the workers begins first."""
    job = LoopbackJob(2)
    done, state = await run(job, looping(job, range(100), workers=8))
    assert sorted(done) == list(range(100))
    assert state == SourceState(100, (), ())
    assert count(job)[Commit] == 100
    assert count(job)[Take] < 40


async def test_a_queue_gives_nothing_ahead() -> None:
    """What comes of a queue depends on who puts, and when: each item is asked for."""
    job = LoopbackJob(2)

    async def program(task: TaskInfo) -> Any:
        with Graph():
            waiting = queue([], name="waiting")
            done = Variable[tuple[int, ...]]((), name="done")
            take = done.update(lambda done, item: (*done, item), waiting)
            put = [waiting.put([number]) for number in range(10)]
            session = session_of(task)
        async with session:
            if task.is_chief:
                for each in put:
                    await session.run(each)
                await job.until(lambda: 1 in job.view.done)
                return await session.run_without_hooks("done")

            async def step(ctx: StepContext) -> None:
                if len(await ctx.run_with_hooks(take)) == 10:
                    ctx.request_stop()

            await session.loop(step)
        return session.recoveries

    assert await run(job, program) == tuple(range(10))
    assert not any(isinstance(message, Commit) and message.ahead is not None for message in job.messages)
