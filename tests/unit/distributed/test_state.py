"""Contract X: the state of a chief, and the programs that take part in it, with every fault of the messages.

All programs of a job run in one event loop; what they say to each other is pickled, and lost, repeated or late as a
test wants it.
"""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
import sniffio

import asyncstep
from asyncstep import (
    AbortedError,
    ChiefSessionCreator,
    DeadlineExceededError,
    FailedPreconditionError,
    Graph,
    InvalidArgumentError,
    MonitoredSession,
    Recovery,
    SessionRunHook,
    StepContext,
    StopKind,
    Variable,
    WorkerSessionCreator,
    source,
)
from asyncstep.checkpoint import Saver
from asyncstep.data import queue
from asyncstep.distributed import TaskInfo
from asyncstep.distributed.messages import Commit, Idle, Join, Leave, Read, Take, Undo, WasCommitted
from asyncstep.testing import RecordingHook

from .loopback import LoopbackJob

pytestmark = pytest.mark.anyio

AT_ONCE = Recovery(wait_initial=0.0, jitter=0.0)


class Oops(Exception):
    """An error of the user's code."""


def session_of(
    task: TaskInfo,
    *hooks: SessionRunHook,
    directory: Path | None = None,
    max_wait: float = 5.0,
    **options: Any,
) -> MonitoredSession:
    """The session of a program, on the graph that is being built."""
    creator = (
        ChiefSessionCreator(master=task.master, checkpoint_dir=directory)
        if task.is_chief
        else WorkerSessionCreator(master=task.master, max_wait=max_wait)
    )
    return MonitoredSession(creator, hooks, **{"recovery": AT_ONCE, "stop_grace_period": 5.0, **options})


def add_item(items: tuple[int, ...], item: int) -> tuple[int, ...]:
    """The items in order, whatever the order they came in."""
    return tuple(sorted((*items, item)))


class Parts:
    """The graph of most tests, in a `with Graph()`: a source of numbers, and two variables that have what was taken.

    Attributes:
        item: the source.
        add: adds the item to `total`, and looks at the sum, and to `items`.
    """

    def __init__(self, items: int) -> None:
        self.item = source(range(items), name="numbers")
        self.total = Variable(0, name="total")
        self.items = Variable[tuple[int, ...]]((), name="items")
        self.add = asyncstep.group(
            asyncstep.op(bool)(self.total.update(lambda total, item: total + item, self.item)),
            self.items.update(add_item, self.item),
        )


async def turns(count: int = 20) -> None:
    """Give everybody else some turns."""
    for _ in range(count):
        await anyio.lowlevel.checkpoint()


def adding(
    items: int,
    *,
    workers: int = 2,
    directory: Path | None = None,
    begun: Callable[[TaskInfo, MonitoredSession, int], Awaitable[None]] | None = None,
    opened: list[MonitoredSession] | None = None,
    **options: Any,
) -> Callable[[TaskInfo], Awaitable[Any]]:
    """A program that adds items; it returns what the chief has at the end.

    `begun` is called in each step, with its item, before that is added; `opened` gets the chief's session.
    """

    async def program(task: TaskInfo) -> Any:
        with Graph():
            parts = Parts(items)
            session = session_of(task, directory=directory, **options)

        async def step(ctx: StepContext) -> None:
            item = await ctx.session.run(parts.item)
            if begun is not None:
                await begun(task, session, item)
            await ctx.run_with_hooks(parts.add, {parts.item: item})

        async with session:
            if opened is not None and task.is_chief:
                opened.append(session)
            await session.loop(step, workers=workers)
            if task.is_chief:
                return await session.run_without_hooks([parts.items, parts.total, "global_step"])
        return session.recoveries

    return program


def all_of(items: int) -> list[Any]:
    """What the chief has in the end when so many items were added, each once."""
    return [tuple(range(items)), sum(range(items)), items]


def first(kind: type, times: int = 1) -> Callable[[Any], bool]:
    """True for the first messages of a kind."""
    left = [times]

    def wanted(message: Any) -> bool:
        if type(message) is kind and left[0]:
            left[0] -= 1
            return True
        return False

    return wanted


@pytest.mark.parametrize("kind", [Join, Read, Take, Commit, Undo, Idle, Leave])
@pytest.mark.parametrize("fault", ["drop_request", "drop_answer", "repeated"])
async def test_a_message_that_is_lost_or_repeated_changes_nothing(kind: type, fault: str) -> None:
    """X: of each kind of message the first three are lost, or their answers, or arrive twice."""
    job = LoopbackJob(3)
    setattr(job, fault, first(kind, 3))
    tried: set[int] = set()

    async def begun(task: TaskInfo, session: MonitoredSession, item: int) -> None:
        await turns(3)
        if item % 4 == 1 and item not in tried:
            tried.add(item)
            raise AbortedError("once")

    async with job.running() as start:
        runs = [start(adding(20, begun=begun), index) for index in range(3)]
    assert runs[0].result == all_of(20)
    assert [run.result for run in runs[1:]] == [0, 0]
    assert any(type(message) is kind for message in job.messages)


@pytest.mark.parametrize("seed", range(8))
async def test_any_mixture_of_faults_changes_nothing(seed: int) -> None:
    """X, T5, T6, D1: messages are lost, repeated and out of order at random, and steps fail and are run again."""
    dice = random.Random(seed)
    job = LoopbackJob(4)
    job.drop_request = job.drop_answer = job.repeated = lambda _: dice.random() < 0.15
    tried: set[int] = set()

    async def delay(_: Any) -> None:
        await turns(dice.choice([0, 0, 1, 2, 5, 20]))

    async def begun(task: TaskInfo, session: MonitoredSession, item: int) -> None:
        await turns(dice.randrange(10))
        if item % 4 == 1 and item not in tried:
            tried.add(item)
            raise AbortedError("once")

    job.delay = delay
    async with job.running() as start:
        runs = [start(adding(40, workers=3, begun=begun), index) for index in range(4)]
    assert runs[0].result == all_of(40)
    assert [run.result for run in runs[1:]] == [0, 0, 0]


async def test_a_step_goes_on_when_a_take_of_it_was_cancelled_before_the_chief_heard_of_it() -> None:
    """X, T2: the chief hears of the end of a take first; what the step commits later is not taken for a repetition."""
    job = LoopbackJob(2)
    taking = anyio.Event()

    async def program(task: TaskInfo) -> Any:
        with Graph():
            parts = Parts(3)
            extra = Variable(0, name="extra").assign_add(100)
            session = session_of(task)
        async with session:
            if task.is_chief:
                await job.until(lambda: 1 in job.view.done)
                return await session.run_without_hooks([parts.items, "extra"])

            async def step(ctx: StepContext) -> None:
                with anyio.CancelScope() as scope:
                    async with anyio.create_task_group() as group:
                        job.drop_request = lambda message: isinstance(message, Take)
                        group.start_soon(ctx.session.run, parts.item)
                        await turns()
                        scope.cancel()
                job.drop_request = lambda _: False
                await ctx.session.run(extra)
                await ctx.run_with_hooks(parts.add)

            await session.run_step_fn(step)
            taking.set()
        return session.global_step

    async with job.running() as start:
        chief, worker = start(program, 0), start(program, 1)
    assert chief.result == [(0,), 100]
    assert worker.result == 1


async def test_a_commit_whose_answer_is_lost_is_applied_once() -> None:
    """X: the answer is lost three times; the commit arrives four times and counts once."""
    job = LoopbackJob(2)
    job.drop_answer = first(Commit, 3)
    async with job.running() as start:
        chief, worker = [start(adding(1, workers=1), index) for index in range(2)][:2]
    assert chief.result == all_of(1)
    assert worker.result == 0


@pytest.mark.parametrize("saved", [True, False])
async def test_a_commit_whose_answer_was_lost_with_the_chief_is_applied_once(
    tmp_path: Path, saved: bool
) -> None:
    """X: the chief is killed before it answers a commit, which is in the newest checkpoint, or not; in both cases it
    is in the state of the next chief once."""
    job = LoopbackJob(2)
    chiefs: list[MonitoredSession] = []
    once, go_on, committed = anyio.Event(), anyio.Event(), anyio.Event()

    async def program(task: TaskInfo) -> Any:
        with Graph():
            parts = Parts(3)
            session = session_of(task, directory=tmp_path)
        async with session:
            if task.is_chief:
                chiefs.append(session)
                await job.until(lambda: 1 in job.view.done)
                return await session.run_without_hooks([parts.items, parts.total, "global_step"])
            steps = [await session.run([parts.add, parts.item]) and session.global_step]
            once.set()
            await go_on.wait()
            job.drop_answer = lambda message: isinstance(message, Commit) and not committed.set()
            steps += [await session.run([parts.add, parts.item]) and session.global_step for _ in range(2)]
            return steps, session.recoveries

    async with job.running() as start:
        chief, worker = start(program, 0), start(program, 1)
        await once.wait()
        await Saver().save(chiefs[0], tmp_path)
        go_on.set()
        await committed.wait()
        if saved:
            await Saver().save(chiefs[0], tmp_path)
        job.drop_answer = lambda _: False
        chief.kill()
        await chief.ended.wait()
        second = start(program, 0)
    assert second.result == all_of(3)
    assert worker.result == ([1, 2, 3], 1)
    asked = [message for message in job.messages if isinstance(message, WasCommitted)]
    assert len(asked) == 1


async def test_a_worker_killed_in_mid_step_leaves_nothing_and_its_items_go_to_others() -> None:
    """X, T4, D1: what it had written is nowhere, what it was given is given to another step."""
    job = LoopbackJob(3)
    holds, go_on = anyio.Event(), anyio.Event()

    async def begun(task: TaskInfo, session: MonitoredSession, item: int) -> None:
        if task.index == 1 and item >= 3:
            holds.set()
            await anyio.sleep_forever()
        if item >= 5:
            await go_on.wait()
        await turns(5)

    async with job.running() as start:
        program = adding(12, begun=begun, stop_grace_period=0.2)
        runs = [start(program, index) for index in range(3)]
        await holds.wait()
        runs[1].kill()
        await runs[1].ended.wait()
        go_on.set()
    assert runs[0].result == all_of(12)


async def test_a_partitioned_worker_cannot_commit_and_goes_on_in_another_life() -> None:
    """X: the registry takes it for lost; its late commit is refused, the item had been given to another."""
    job = LoopbackJob(2)
    holds, go_on = anyio.Event(), anyio.Event()
    worked: list[tuple[int, int]] = []

    async def begun(task: TaskInfo, session: MonitoredSession, item: int) -> None:
        worked.append((task.index, item))
        if task.index == 1 and not holds.is_set():
            holds.set()
            await go_on.wait()
        await turns(5)

    async with job.running() as start:
        worker = start(adding(12, workers=1, begun=begun), 1)
        chief = start(adding(12, workers=1, begun=begun), 0)
        await holds.wait()
        held = next(item for index, item in worked if index == 1)
        job.partitioned.add(worker.link.life)
        job.lose(worker.link)
        go_on.set()
        await job.until(lambda: (0, held) in worked)
        job.heal()
        job.hear_of(worker.link)
    assert chief.result == all_of(12)
    assert worker.result == 1


async def test_a_worker_taken_for_lost_whose_answer_was_lost_commits_once() -> None:
    """X: the commit was made before the life was lost; sent again by the same life, it is known."""
    job = LoopbackJob(2)
    lost = anyio.Event()

    def drop(message: Any) -> bool:
        if isinstance(message, Commit) and not lost.is_set():
            lost.set()
            job.lose(worker.link)
            job.hear_of(worker.link)
            return True
        return False

    job.drop_answer = drop

    async def program(task: TaskInfo) -> Any:
        with Graph():
            parts = Parts(3)
            session = session_of(task)
        async with session:
            if task.is_chief:
                await job.until(lambda: 1 in job.view.done)
                return await session.run_without_hooks([parts.items, parts.total, "global_step"])
            for _ in range(3):
                await session.run(parts.add)
            return session.recoveries

    async with job.running() as start:
        chief, worker = start(program, 0), start(program, 1)
    assert chief.result == all_of(3)
    assert worker.result == 1


async def test_a_chief_killed_and_started_again_resumes_and_the_workers_go_on(tmp_path: Path) -> None:
    """X, K4: three times; what was committed after the newest checkpoint is done again, and each item is there once."""
    job = LoopbackJob(3)
    chiefs: list[MonitoredSession] = []
    begun_items: list[int] = []
    limit = 10

    async def begun(task: TaskInfo, session: MonitoredSession, item: int) -> None:
        begun_items.append(item)
        number = len(begun_items)
        job.wake()
        await job.until(lambda: number < limit)

    program = adding(60, begun=begun, directory=tmp_path, opened=chiefs)
    async with job.running() as start:
        chief, *workers = [start(program, index) for index in range(3)]
        for number in range(3):
            await job.until(lambda: len(begun_items) >= limit - 4)  # noqa: B023
            await Saver().save(chiefs[number], tmp_path)
            await job.until(lambda: len(begun_items) > limit)  # noqa: B023
            chief.kill()
            await chief.ended.wait()
            limit += 15
            chief = start(program, 0)
        limit = 1000
        job.wake()
    assert chief.result == all_of(60)
    assert all(1 <= worker.result <= 3 for worker in workers)
    assert len(begun_items) > 60


async def test_a_chief_taken_for_lost_that_is_alive_goes_on_with_its_state() -> None:
    """X: it takes the seat again, and nothing that was committed is lost."""
    job = LoopbackJob(2)
    begun_items: list[int] = []

    async def begun(task: TaskInfo, session: MonitoredSession, item: int) -> None:
        begun_items.append(item)
        job.wake()
        await turns(3)

    async with job.running() as start:
        chief, worker = [start(adding(40, begun=begun), index) for index in range(2)]
        for number in (10, 20):
            await job.until(lambda number=number: len(begun_items) >= number)
            job.lose(chief.link)
            await turns(5)
            job.hear_of(chief.link)
    assert chief.result == all_of(40)
    assert 1 <= worker.result <= 2
    assert job.epochs >= 2


async def test_a_chief_whose_process_ends_is_no_stop_of_the_others(tmp_path: Path) -> None:
    """X: its Dask worker closes, say; the program is started elsewhere and goes on, the workers never stopped."""
    job = LoopbackJob(2)
    chiefs: list[MonitoredSession] = []
    begun_items: list[int] = []
    gone = anyio.Event()

    async def begun(task: TaskInfo, session: MonitoredSession, item: int) -> None:
        begun_items.append(item)
        job.wake()
        if len(begun_items) > 10:
            await gone.wait()
        await turns(3)

    program = adding(40, begun=begun, directory=tmp_path, opened=chiefs)
    async with job.running() as start:
        chief, worker = start(program, 0), start(program, 1)
        await job.until(lambda: len(begun_items) > 10)
        await Saver().save(chiefs[0], tmp_path)
        chief.link.fail(asyncstep.UnavailableError("the Dask worker is closing"))
        gone.set()
        await turns(10)
        job.lose(chief.link)
        await chief.ended.wait()
        assert isinstance(chief.error, asyncstep.UnavailableError)
        assert job.view.stop is None
        second = start(program, 0)
    assert second.result == all_of(40)
    assert worker.result == 1


async def test_a_worker_before_the_chief_waits_for_it() -> None:
    """X: and then has its share of the items."""
    job = LoopbackJob(2)
    async with job.running() as start:
        worker = start(adding(10), 1)
        await turns()
        chief = start(adding(10), 0)
    assert chief.result == all_of(10)
    assert worker.result == 0


async def test_a_worker_without_a_chief_gives_up_after_max_wait() -> None:
    """X: DeadlineExceededError, which says for whom it has waited."""
    job = LoopbackJob(2)
    async with job.running() as start:
        worker = start(adding(10, max_wait=0.05), 1)
    with pytest.raises(DeadlineExceededError, match=r"no chief of loopback after max_wait=0\.05 s"):
        assert worker.result


async def test_a_worker_that_comes_when_the_chief_has_ended_stops_at_once() -> None:
    """X: there is nothing left to be done."""
    job = LoopbackJob(2)
    reasons: list[Any] = []

    async def late(task: TaskInfo) -> None:
        with Graph():
            parts = Parts(3)
            session = session_of(task)
        async with session:
            await session.run(parts.add)
        reasons.append(session.stop_reason)

    async with job.running() as start:
        job.change(done=frozenset({1}))  # so that the chief does not wait for it
        chief = start(adding(3), 0)
        await chief.ended.wait()
        start(late, 1)
    assert chief.result == all_of(3)
    assert reasons[0].kind is StopKind.END_OF_DATA


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("how", ["session", "step", "hook"])
async def test_a_stop_reaches_every_program(index: int, how: str) -> None:
    """X, S1, S4: from the chief and from a worker; who hears of it knows why, and all that was begun is committed."""
    job = LoopbackJob(3)
    begun: list[int] = []

    class Stopper(SessionRunHook):
        async def after_run(self, run_context: Any, run_values: Any) -> None:
            if how == "hook" and run_values.global_step >= 10:
                run_context.request_stop("enough")

    async def program(task: TaskInfo) -> Any:
        with Graph():
            parts = Parts(10_000)
            session = session_of(task, *([Stopper()] if task.index == index else []))

        async def step(ctx: StepContext) -> None:
            item = await ctx.session.run(parts.item)
            begun.append(item)
            await turns(3)
            await ctx.run_with_hooks(parts.add, {parts.item: item})
            if task.index == index and session.global_step >= 10:
                if how == "session":
                    session.request_stop("enough")
                if how == "step":
                    ctx.request_stop("enough")

        async with session:
            await session.loop(step, workers=2)
            if task.is_chief:
                items = await session.run_without_hooks(parts.items)
                return session.stop_reason, items
        return session.stop_reason, None

    async with job.running() as start:
        runs = [start(program, each) for each in range(3)]
    assert [run.result[0].message for run in runs] == ["enough"] * 3
    assert runs[0].result[1] == tuple(sorted(begun))
    others = [run.result[0].origin for number, run in enumerate(runs) if number != index]
    assert all(origin.startswith(f"worker {index}") for origin in others)


@pytest.mark.parametrize("index", [0, 1])
async def test_an_error_of_one_program_stops_the_others(index: int) -> None:
    """W2, X: the others finish the steps that they have begun, and end cleanly; the error is that program's."""
    job = LoopbackJob(3)
    failing = anyio.Event()

    async def begun(task: TaskInfo, session: MonitoredSession, item: int) -> None:
        await turns(5)
        if task.index == index and item >= 10:
            failing.set()
            raise Oops("bad item")

    async with job.running() as start:
        runs = [start(adding(10_000, begun=begun, workers=1), each) for each in range(3)]
    assert isinstance(runs[index].error, Oops)
    assert [run.error for number, run in enumerate(runs) if number != index] == [None, None]
    assert job.view.stop is not None
    assert job.view.stop[0] == "error"
    assert job.view.ended


async def test_the_end_of_the_data_waits_for_steps_elsewhere() -> None:
    """D5: the chief asks for more while a worker has the last items; it ends when those are committed."""
    job = LoopbackJob(2)
    held, rest, met_end = anyio.Event(), anyio.Event(), anyio.Event()
    begun_items: dict[int, list[int]] = {0: [], 1: []}

    async def begun(task: TaskInfo, session: MonitoredSession, item: int) -> None:
        begun_items[task.index].append(item)
        if task.index == 1:
            if len(begun_items[1]) == 2:
                held.set()
            await rest.wait()
            await turns(50)
            assert job.view.stop is None
            met_end.set()
        else:
            await held.wait()
            if len(begun_items[0]) == 8:
                rest.set()
        await turns(5)

    async with job.running() as start:
        chief, worker = [start(adding(10, begun=begun), index) for index in range(2)]
    assert met_end.is_set()
    assert chief.result == all_of(10)
    assert worker.result == 0


async def test_a_queue_ends_when_no_step_of_any_program_can_put() -> None:
    """D5: a tree whose nodes are found by steps of all programs; each is visited once."""
    job = LoopbackJob(3)
    visited: dict[int, list[int]] = {0: [], 1: [], 2: []}

    async def program(task: TaskInfo) -> Any:
        with Graph():
            numbers = queue([0], name="numbers")
            children = asyncstep.placeholder("children")
            put = numbers.put(children)
            count = Variable(0, name="count").assign_add(1)
            session = session_of(task)

        async def step(ctx: StepContext) -> None:
            number = await ctx.session.run(numbers)
            await turns(5)
            found = [child for child in (2 * number + 1, 2 * number + 2) if child < 100]
            await ctx.run_with_hooks([put, count], {children: found})
            visited[task.index].append(number)

        async with session:
            await session.loop(step, workers=3)
            if task.is_chief:
                return await session.run_without_hooks("count")
        return session.stop_reason.kind  # type: ignore[union-attr]

    async with job.running() as start:
        runs = [start(program, index) for index in range(3)]
    assert [run.result for run in runs] == [100, StopKind.END_OF_DATA, StopKind.END_OF_DATA]
    assert sorted(item for items in visited.values() for item in items) == list(range(100))
    assert all(visited.values())


async def test_a_queue_does_not_wait_for_a_worker_that_was_killed() -> None:
    """D5, X: its item is given to another step, which finds what it would have found."""
    job = LoopbackJob(2)
    holds = anyio.Event()

    async def program(task: TaskInfo) -> Any:
        with Graph():
            numbers = queue([0], name="numbers")
            children = asyncstep.placeholder("children")
            put = numbers.put(children)
            count = Variable(0, name="count").assign_add(1)
            session = session_of(task, stop_grace_period=0.2)

        async def step(ctx: StepContext) -> None:
            number = await ctx.session.run(numbers)
            if task.index == 1:
                holds.set()
                await anyio.sleep_forever()
            found = [child for child in (2 * number + 1, 2 * number + 2) if child < 20]
            await ctx.run_with_hooks([put, count], {children: found})

        async with session:
            if task.is_chief:
                await holds.wait()
            await session.loop(step, workers=2)
            if task.is_chief:
                return await session.run_without_hooks("count")
        return None

    async with job.running() as start:
        chief, worker = start(program, 0), start(program, 1)
        await holds.wait()
        await turns(30)
        worker.kill()
    assert chief.result == 20


async def test_conflicting_updates_of_many_programs_are_never_lost() -> None:
    """T5, T6: each is applied to what is committed then; global steps are unique and without gaps."""
    job = LoopbackJob(4)
    steps: list[int] = []

    class Watch(SessionRunHook):
        async def after_run(self, run_context: Any, run_values: Any) -> None:
            steps.append(run_values.global_step)

    async def program(task: TaskInfo) -> Any:
        with Graph():
            word = Variable("", name="word").update(lambda word, letter: word + letter, "abcd"[task.index])
            session = session_of(task, Watch())
        async with session:
            async with anyio.create_task_group() as group:
                for _ in range(15):
                    group.start_soon(session.run, word)
            if task.is_chief:
                await job.until(lambda: job.view.done == {1, 2, 3})
                return await session.run_without_hooks("word")
        return None

    async with job.running() as start:
        chief, *_ = [start(program, index) for index in range(4)]
    assert sorted(chief.result) == sorted("abcd" * 15)
    assert sorted(steps) == list(range(1, 61))


def alone_with_chief(
    work: Callable[[MonitoredSession, Parts], Awaitable[Any]],
    *hooks: SessionRunHook,
    items: int = 5,
    **options: Any,
) -> Callable[[TaskInfo], Awaitable[Any]]:
    """A program of two: the worker does the work, and returns what that does; the chief returns the state then."""

    async def program(task: TaskInfo) -> Any:
        with Graph():
            parts = Parts(items)
            session = session_of(task, *(() if task.is_chief else hooks), **options)
        async with session:
            if not task.is_chief:
                return await work(session, parts)
            company: Any = session.incarnation().company
            await company.all_left()
            values = await session.run_without_hooks([parts.items, parts.total, "global_step"])
            return values, session.source_state("numbers")

    return program


async def in_two(
    program: Callable[[TaskInfo], Awaitable[Any]], job: LoopbackJob | None = None
) -> tuple[Any, Any]:
    """What the chief and the worker of a program return."""
    job = job or LoopbackJob(2)
    async with job.running() as start:
        chief, worker = start(program, 0), start(program, 1)
    return chief.result, worker.result


async def test_an_update_that_raises_at_the_chief_rolls_the_step_back() -> None:
    """T5: it raises only with what another step has committed in between; the error is the worker's."""

    def refuse(total: int) -> int:
        if total == 100:
            raise Oops("not on 100")
        return total + 1

    async def program(task: TaskInfo) -> Any:
        with Graph():
            total = Variable(0, name="total")
            hundred, refusing = total.assign(100), total.update(refuse)
            other = Variable(0, name="other").assign_add(1)
            session = session_of(task)
        async with session:
            if task.is_chief:
                await job.until(lambda: 1 in job.view.done)
                return await session.run_without_hooks([total, "other", "global_step"])

            async def step(ctx: StepContext) -> None:
                await ctx.session.run([refusing, other])
                await anyio.lowlevel.checkpoint()
                go_on.set()
                await disturbed.wait()

            async def disturb() -> None:
                await go_on.wait()
                await session.run(hundred)
                disturbed.set()

            go_on, disturbed = anyio.Event(), anyio.Event()
            async with anyio.create_task_group() as group:
                group.start_soon(disturb)
                with pytest.raises(Oops, match="not on 100") as error:
                    await session.run_step_fn(step)
        return error.value.__notes__

    chief, notes = await in_two(program, job := LoopbackJob(2))
    assert chief == [100, 0, 1]
    assert "in an update of the variable 'total'" in notes


async def test_a_function_that_cannot_be_sent_is_refused_by_name() -> None:
    """The error names the variable and what to do; nothing was begun."""
    lock = threading.Lock()

    async def program(task: TaskInfo) -> None:
        with Graph():
            Variable(0, name="total").update(lambda total: total + bool(lock))
            session = session_of(task)
        async with session:
            pass

    job = LoopbackJob(2)
    async with job.running() as start:
        start(program, 0)
        worker = start(program, 1)
    assert isinstance(worker.error, InvalidArgumentError)
    assert "variable 'total' cannot be sent to the chief" in str(worker.error)


async def test_graphs_that_differ_are_refused_by_name() -> None:
    """The error says what the chief's graph lacks."""

    async def program(task: TaskInfo) -> None:
        with Graph():
            Variable(0, name="both")
            if not task.is_chief:
                Variable(0, name="mine")
            session = session_of(task)
        async with session:
            pass

    job = LoopbackJob(2)
    async with job.running() as start:
        start(program, 0)
        worker = start(program, 1)
    assert isinstance(worker.error, FailedPreconditionError)
    assert "has no variables 'mine'" in str(worker.error)


@pytest.mark.parametrize("kind", [Take, Read, Commit])
@pytest.mark.parametrize("late", [0, 1, 2, 5])
async def test_a_cancelled_step_is_committed_or_not_but_never_half(kind: type, late: int) -> None:
    """T4, C4: cancelled while a message is under way; its item is given again if it has not committed."""
    job = LoopbackJob(2)
    scope = anyio.CancelScope()
    cancelled: list[bool] = []

    async def delay(message: Any) -> None:
        if type(message) is kind and not scope.cancel_called:
            scope.cancel()
            with anyio.CancelScope(shield=True):
                await turns(late)
        await turns(2)

    async def work(session: MonitoredSession, parts: Parts) -> int:
        job.delay = delay
        with scope:
            await session.run(parts.add)
        cancelled.append(scope.cancelled_caught)
        job.delay = lambda _: turns(0)
        for _ in range(3):
            await session.run(parts.add)
        return session.global_step

    (values, source_state), steps = await in_two(alone_with_chief(work), job)
    done = 4 if kind is Commit else 3
    assert cancelled == [kind is not Commit]  # what is committed is not taken back by what comes later
    assert values == all_of(done)
    assert steps == done
    assert source_state.position == done
    assert source_state.pending == ()


@pytest.mark.parametrize("kind", [Take, Read, Commit])
async def test_a_step_that_a_native_cancel_meets_is_committed_or_not_but_never_half(kind: type) -> None:
    """C2, T4: the cancellation leaves the step in any case; a commit that is under way is made."""
    if sniffio.current_async_library() != "asyncio":
        pytest.skip("there are no native cancellations on trio")
    job = LoopbackJob(2)
    at_work: list[asyncio.Task[Any]] = []

    async def delay(message: Any) -> None:
        if type(message) is kind and at_work:
            at_work.pop().cancel()
        await turns(2)

    async def work(session: MonitoredSession, parts: Parts) -> int:
        job.delay = delay
        task = asyncio.ensure_future(session.run(parts.add))
        at_work.append(task)
        with pytest.raises(asyncio.CancelledError):
            await task
        for _ in range(3):
            await session.run(parts.add)
        return session.global_step

    (values, source_state), steps = await in_two(alone_with_chief(work), job)
    done = 4 if kind is Commit else 3
    assert (values, steps) == (all_of(done), done)
    assert (source_state.position, source_state.pending) == (done, ())


async def test_a_step_function_commits_in_parts() -> None:
    """T3: each run with hooks commits what there is; what comes after it is rolled back by an error alone."""

    async def work(session: MonitoredSession, parts: Parts) -> int:
        async def step(ctx: StepContext) -> None:
            await ctx.run_with_hooks(parts.add)
            await ctx.run_with_hooks(parts.add)
            await ctx.session.run(parts.add)
            raise Oops

        with pytest.raises(Oops):
            await session.run_step_fn(step)
        return session.global_step

    (values, source_state), steps = await in_two(alone_with_chief(work))
    assert values == [(0, 1), 1, 2]
    assert steps == 2
    assert (source_state.position, source_state.parked) == (2, (2,))


async def test_runs_of_one_step_may_overlap() -> None:
    """T3: five of them at once take five items, and commit together."""

    async def work(session: MonitoredSession, parts: Parts) -> int:
        async def step(ctx: StepContext) -> None:
            async with anyio.create_task_group() as group:
                for _ in range(5):
                    group.start_soon(ctx.session.run, parts.add)

        await session.run_step_fn(step)
        return session.global_step

    (values, source_state), _ = await in_two(alone_with_chief(work))
    assert values[:2] == [(0, 1, 2, 3, 4), 10]
    assert source_state.position == 5


async def test_an_item_of_a_failed_step_is_parked() -> None:
    """D1: an ordinary error of a worker's step; the chief says so, and so does the worker."""

    async def work(session: MonitoredSession, parts: Parts) -> Any:
        async def step(ctx: StepContext) -> None:
            await ctx.session.run(parts.item)
            raise Oops

        await session.run(parts.add)
        session.source_state(parts.item)
        with pytest.raises(Oops):
            await session.run_step_fn(step)
        await session.run(parts.add)
        return session.source_state(parts.item)

    (values, source_state), known = await in_two(alone_with_chief(work))
    assert values[0] == (0, 2)
    assert (source_state.position, source_state.parked) == (1, (1,))
    assert known == source_state


async def test_only_the_chief_saves_and_restores() -> None:
    """A worker is told where it can be done."""
    refused: list[str] = []

    async def work(session: MonitoredSession, parts: Parts) -> None:
        with pytest.raises(FailedPreconditionError) as error:
            session.snapshot()
        refused.append(str(error.value))

    await in_two(alone_with_chief(work))
    assert "it can be saved only there" in refused[0]


async def test_a_restore_of_the_chief_rolls_back_the_steps_of_workers() -> None:
    """V2, T4: a step in flight is run again on what was restored; nothing of before is in it."""
    job = LoopbackJob(2)
    holds, restored, done = anyio.Event(), anyio.Event(), anyio.Event()
    worked: list[int] = []

    async def program(task: TaskInfo) -> Any:
        with Graph():
            parts = Parts(6)
            session = session_of(task)
        async with session:
            if task.is_chief:
                before = session.snapshot()
                await holds.wait()
                await session.restore(before)
                restored.set()
                await done.wait()
                return await session.run_without_hooks([parts.items, parts.total, "global_step"])

            async def step(ctx: StepContext) -> None:
                item = await ctx.session.run(parts.item)
                worked.append(item)
                if item == 2 and not restored.is_set():
                    holds.set()
                    await restored.wait()
                await ctx.run_with_hooks(parts.add, {parts.item: item})

            for _ in range(5):
                await session.run_step_fn(step)
            done.set()
            return session.recoveries

    async with job.running() as start:
        chief, worker = start(program, 0), start(program, 1)
    assert worked == [0, 1, 2, 0, 1, 2]
    assert worker.result == 1
    assert chief.result == all_of(3)


async def test_the_hooks_of_a_worker_are_called_in_order() -> None:
    """R1: around the evaluation and the commit at the chief, whose global step they see."""
    journal: list[str] = []
    hooks = [RecordingHook("one", journal), RecordingHook("two", journal)]

    async def work(session: MonitoredSession, parts: Parts) -> None:
        journal.clear()
        await session.run(parts.add)
        journal.append("done")

    await in_two(alone_with_chief(work, *hooks))
    run = ["one.before_run", "two.before_run", "one.before_commit", "two.before_commit", "one.after_run"]
    assert journal == [*run, "two.after_run", "done", "two.end", "one.end"]
    assert [call.global_step for call in hooks[0].calls if call.point == "after_run"] == [1]


async def test_the_closing_of_the_chief_waits_for_others_but_not_for_ever() -> None:
    """L6, W1: a worker's step that goes on and on is refused by the chief, which has ended."""
    job = LoopbackJob(2)
    holds, chief_ended = anyio.Event(), anyio.Event()

    async def program(task: TaskInfo) -> Any:
        with Graph():
            parts = Parts(5)
            session = session_of(task, stop_grace_period=0.2 if task.is_chief else 5.0)
        async with session:
            if task.is_chief:
                await holds.wait()
                session.request_stop("enough")
            else:

                async def step(ctx: StepContext) -> None:
                    await ctx.session.run(parts.add)
                    holds.set()
                    await chief_ended.wait()

                await session.run_step_fn(step)
        return session.stop_reason.message  # type: ignore[union-attr]

    async with job.running() as start:
        chief, worker = start(program, 0), start(program, 1)
        await chief.ended.wait()
        chief_ended.set()
    assert chief.result == "enough"
    assert worker.result == "enough"


async def test_the_last_item_of_a_worker_that_dies_is_given_to_the_chief() -> None:
    """X, D5: the data has not ended while a worker that may die has an item of it."""
    job = LoopbackJob(2)
    holds, alone = anyio.Event(), anyio.Event()
    begun_items: list[int] = []

    async def begun(task: TaskInfo, session: MonitoredSession, item: int) -> None:
        if task.index == 1:
            holds.set()
            await anyio.sleep_forever()
        await holds.wait()
        begun_items.append(item)
        if len(begun_items) == 5:
            alone.set()

    async with job.running() as start:
        program = adding(6, begun=begun, workers=1)
        chief, worker = start(program, 0), start(program, 1)
        await alone.wait()
        await anyio.wait_all_tasks_blocked()  # the chief's step asks for an item after the last one
        assert job.view.stop is None
        worker.kill()
    items, total, _ = chief.result
    assert (sorted(items), total) == (list(range(6)), sum(range(6)))


async def test_steps_that_hold_an_item_and_wait_at_the_end_of_another_source_do_not_wait_for_each_other() -> (
    None
):
    """D5: the end is told to all of them when nobody else has an item."""

    async def program(task: TaskInfo) -> Any:
        with Graph():
            pair = [source(range(10), name="long"), source(range(3), name="short")]
            session = session_of(task)

        async def step(ctx: StepContext) -> None:
            await ctx.run_with_hooks(pair)

        async with session:
            await session.loop(step, workers=3)
        assert session.stop_reason is not None
        return session.stop_reason.kind

    job = LoopbackJob(2)
    async with job.running() as start:
        runs = [start(program, index) for index in range(2)]
    assert [run.result for run in runs] == [StopKind.END_OF_DATA] * 2
