"""Contract D and L8: sources that read ahead: where they may, how far, and what becomes of it at the end."""

from __future__ import annotations

import logging
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import anyio
import anyio.abc
import anyio.from_thread
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
    Session,
    SessionCreator,
    StepContext,
    source,
)
from asyncstep.data import Source, SourceState

pytestmark = pytest.mark.anyio


def numbers(items: Any, **options: Any) -> Source[Any]:
    """A source of some numbers, in a graph of its own."""
    with Graph():
        return source(items, name="numbers", **options)


def monitored(number: Source[Any], **options: Any) -> MonitoredSession:
    """A monitored session of the source's graph."""
    return MonitoredSession(ChiefSessionCreator(graph=number.graph), **options)


async def take(session: MonitoredSession | Session, fetch: Any, count: int) -> list[Any]:
    """What so many steps are given, one after the other."""
    return [await session.run(fetch) for _ in range(count)]


async def drain(session: MonitoredSession, fetch: Any) -> list[Any]:
    """Everything that is given until the data ends."""
    items = []
    while True:
        try:
            items.append(await session.run_without_hooks(fetch))
        except OutOfRangeError:
            return items


class Counting:
    """Async iterables of numbers that note how many were read; a gate holds each of them back."""

    def __init__(self, length: int = 100, gates: dict[int, anyio.Event] | None = None) -> None:
        self.length = length
        self.gates = gates or {}
        self.read: list[int] = []
        self.closed: list[int] = []

    async def __call__(self) -> AsyncIterator[int]:
        try:
            for number in range(self.length):
                self.read.append(number)
                if number in self.gates:
                    await self.gates[number].wait()
                yield number
        finally:
            self.closed.append(len(self.read))


# L8: where it may


async def test_an_async_iterable_is_not_read_ahead_without_a_task_group() -> None:
    """L8: asking for an item is a RuntimeError that names the source and says what to do; nothing is lost by it."""
    number = numbers(Counting(), prefetch=4)
    async with monitored(number) as session:
        for _ in range(2):
            with pytest.raises(RuntimeError, match=r"'numbers'.*task_group=.*session\.loop"):
                await session.run(number)
        assert session.source_state(number) == SourceState(0, (), ())
    async with Session(number.graph) as raw:
        with pytest.raises(RuntimeError, match="'numbers'"):
            await raw.run(number)


async def test_an_async_iterable_is_read_ahead_in_the_task_group_that_is_given() -> None:
    """L8, D4: with `MonitoredSession(task_group=)` the items are read before steps ask for them."""
    counting = Counting()
    number = numbers(counting, prefetch=4)
    async with anyio.create_task_group() as group, monitored(number, task_group=group) as session:
        assert await take(session, number, 1) == [0]
        await anyio.wait_all_tasks_blocked()
        assert counting.read == [0, 1, 2, 3]
        assert await drain(session, number) == list(range(1, 100))


async def test_an_async_iterable_is_read_ahead_inside_a_loop() -> None:
    """L8: `session.loop` opens a task group, and the loop ends though that task would read on for ever."""
    counting = Counting(10_000, {20: anyio.Event()})
    number = numbers(counting, prefetch=8)
    got: list[int] = []

    async def step(ctx: StepContext) -> None:
        got.append(await ctx.run_with_hooks(number))
        if len(got) == 5:
            await anyio.wait_all_tasks_blocked()
            assert 5 + 4 <= len(counting.read) <= 5 + 8
            ctx.request_stop()

    with anyio.fail_after(5):
        async with monitored(number) as session:
            await session.loop(step)
            assert got == [0, 1, 2, 3, 4]
            assert session.source_state(number) == SourceState(5, (), ())


@pytest.mark.parametrize("items", [range(50), lambda: iter(range(50))])
@pytest.mark.parametrize("group_given", [True, False])
async def test_other_items_are_read_by_a_worker_thread(items: Any, group_given: bool) -> None:
    """D3, D4: sequences and iterables are read off the event loop, ahead, with a task group or without."""
    threads: set[threading.Thread] = set()

    class Watched:
        def __iter__(self) -> Iterator[int]:
            for item in items() if callable(items) else items:
                threads.add(threading.current_thread())
                yield item

    class WatchedSequence(Watched):
        def __len__(self) -> int:
            return 50

        def __getitem__(self, index: int) -> int:
            threads.add(threading.current_thread())
            return index

    number = numbers(Watched() if callable(items) else WatchedSequence(), prefetch=7, batch=3, shuffle=4)
    async with anyio.create_task_group() as group:
        async with monitored(number, task_group=group if group_given else None) as session:
            batches = await drain(session, number)
    assert sorted(item for batch in batches for item in batch) == list(range(50))
    assert [len(batch) for batch in batches] == [3] * 16 + [2]
    assert threading.current_thread() not in threads


# D4: how far


@pytest.mark.parametrize("kind", ["async iterable", "iterable", "sequence"])
@pytest.mark.parametrize(("workers", "batch", "shuffle"), [(1, None, None), (5, 4, None), (3, 4, 6)])
async def test_no_more_items_are_held_than_prefetch_and_the_workers_need(
    kind: str, workers: int, batch: int | None, shuffle: int | None
) -> None:
    """D4: at most prefetch + (workers + 1) x batch items are read and not done, plus one window of a shuffle."""
    taken: list[int] = []
    done: list[int] = []
    most: list[int] = []

    def note(number: int) -> int:
        taken.append(number)
        most.append(len(taken) - len(done))
        return number

    async def read_async() -> AsyncIterator[int]:
        for number in range(300):
            yield note(number)

    class Sequence:
        def __len__(self) -> int:
            return 300

        def __getitem__(self, index: int) -> int:
            return note(index)

    kinds: dict[str, Any] = {
        "async iterable": read_async,
        "iterable": lambda: map(note, range(300)),
        "sequence": Sequence(),
    }
    number = numbers(kinds[kind], batch=batch, prefetch=10, shuffle=shuffle)

    async def step(ctx: StepContext) -> None:
        items = await ctx.session.run(number)
        for _ in range(5):
            await anyio.lowlevel.checkpoint()
        done.extend(items if batch else [items])

    async with monitored(number) as session:
        await session.loop(step, workers=workers)
    assert sorted(done) == list(range(300))
    assert max(most) <= 10 + (workers + 1) * (batch or 1) + (shuffle or 0)


async def test_reading_goes_on_when_half_of_what_was_read_is_taken() -> None:
    """D4: the task that reads ahead sleeps while there is enough, and fills up when there is not."""
    counting = Counting()
    number = numbers(counting, prefetch=6)
    async with anyio.create_task_group() as group, monitored(number, task_group=group) as session:
        ahead = []
        for count in range(1, 8):
            await session.run(number)
            await anyio.wait_all_tasks_blocked()
            ahead.append(len(counting.read) - count)
    assert ahead == [5, 4, 6, 5, 4, 6, 5]


async def test_an_item_is_given_as_soon_as_it_is_there() -> None:
    """D4: nobody waits until so many items are read as may be read ahead."""
    gates = {number: anyio.Event() for number in range(10)}
    number = numbers(Counting(10, gates), prefetch=8)
    got: list[int] = []

    async def run() -> None:
        got.append(await session.run(number))

    async with anyio.create_task_group() as group, monitored(number, task_group=group) as session:
        for at in range(3):
            group.start_soon(run)
            await anyio.wait_all_tasks_blocked()
            assert got == list(range(at))
            gates[at].set()
            await anyio.wait_all_tasks_blocked()
        assert got == [0, 1, 2]


async def test_batches_larger_than_prefetch_are_filled() -> None:
    """D1, D4: a batch is taken in parts where fewer items may be read ahead than it has."""
    number = numbers(Counting(25), prefetch=3, batch=10, repeat=2)
    async with anyio.create_task_group() as group, monitored(number, task_group=group) as session:
        batches = await drain(session, number)
    assert batches == [list(range(10)), list(range(10, 20)), list(range(20, 25))] * 2


@pytest.mark.parametrize("items", [range(5), lambda: iter(range(5)), Counting(5)])
async def test_epochs_are_read_ahead_too(items: Any) -> None:
    """D3, D5: reading ahead goes on in the next epoch, and ends with the last."""
    number = numbers(items, prefetch=12, repeat=3)
    async with anyio.create_task_group() as group, monitored(number, task_group=group) as session:
        assert await drain(session, number) == list(range(5)) * 3
        with pytest.raises(OutOfRangeError, match="numbers"):
            await session.run_without_hooks(number)
        assert session.source_state(number) == SourceState(15, (), ())


# D1: nothing is lost


@pytest.mark.parametrize("kind", ["async iterable", "iterable"])
async def test_an_error_of_the_items_is_raised_by_the_step_that_would_get_the_item(kind: str) -> None:
    """D1: the items before it are given first; then the error, once; then the items after it."""
    error = OSError("no connection")
    left = [error]

    def flaky() -> Iterator[int]:
        for number in range(6):
            if number == 3 and left:
                raise left.pop()
            yield number

    async def async_flaky() -> AsyncIterator[int]:
        for number in flaky():
            yield number

    number = numbers(async_flaky if kind == "async iterable" else flaky, prefetch=5)
    async with anyio.create_task_group() as group, monitored(number, task_group=group) as session:
        assert await take(session, number, 3) == [0, 1, 2]
        with pytest.raises(OSError, match="no connection") as caught:
            await session.run(number)
        assert caught.value is error
        assert not session.should_stop()
        assert await drain(session, number) == [3, 4, 5]
        assert session.source_state(number) == SourceState(6, (), ())


async def test_an_error_that_no_step_met_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """E3: items that fail beyond where the session ends fail visibly."""

    async def flaky() -> AsyncIterator[int]:
        yield 0
        raise OSError("no connection")

    number = numbers(flaky, prefetch=5)
    with caplog.at_level(logging.ERROR, "asyncstep"):
        async with anyio.create_task_group() as group, monitored(number, task_group=group) as session:
            await session.run(number)
    assert ["'numbers'" in record.getMessage() for record in caplog.records] == [True]
    assert "no connection" in caplog.text


@pytest.mark.parametrize("retried", [True, False])
async def test_an_item_of_a_sequence_that_cannot_be_loaded_is_that_of_its_step(retried: bool) -> None:
    """D1: it is parked, or loaded again for the step that is run again; the items around it are given."""
    calls: list[tuple[int, threading.Thread]] = []

    class Files:
        def __len__(self) -> int:
            return 6

        def __getitem__(self, index: int) -> int:
            calls.append((index, threading.current_thread()))
            if index == 2 and [at for at, _ in calls].count(2) == 1:
                raise AbortedError("damaged") if retried else OSError("damaged")
            return index

    number = numbers(Files(), prefetch=4, batch=2)
    async with anyio.create_task_group() as group:
        recovery = Recovery(wait_initial=0.0, jitter=0.0)
        async with monitored(number, task_group=group, recovery=recovery) as session:
            assert await session.run(number) == [0, 1]
            if retried:
                assert await drain(session, number) == [[2, 3], [4, 5]]
                assert session.source_state(number) == SourceState(6, (), ())
            else:
                with pytest.raises(OSError, match="damaged"):
                    await session.run(number)
                assert await drain(session, number) == [[4, 5]]
                assert session.source_state(number) == SourceState(2, (), (2, 3))
    assert sorted(at for at, _ in calls) == [0, 1, 2, *([2] if retried else []), 3, 4, 5]
    assert threading.current_thread() not in {thread for _, thread in calls}


@pytest.mark.parametrize("kind", ["iterable", "sequence"])
async def test_an_interrupt_in_a_thread_is_raised_by_the_step_that_would_get_the_item(kind: str) -> None:
    """C5: what a thread raises while nobody waits for it is not lost, and it leaves as the same object."""
    interrupt = SystemExit(3)

    def read(index: int) -> int:
        if index == 2:
            raise interrupt
        return index

    class Numbers:
        def __len__(self) -> int:
            return 4

        def __getitem__(self, index: int) -> int:
            return read(index)

    number = numbers(Numbers() if kind == "sequence" else lambda: map(read, range(4)), prefetch=4)
    async with anyio.create_task_group() as group:
        with pytest.raises(SystemExit) as caught:
            async with monitored(number, task_group=group) as session:
                assert await take(session, number, 2) == [0, 1]
                await session.run(number)
    assert caught.value is interrupt


async def test_a_step_that_is_cancelled_while_it_waits_takes_nothing_with_it() -> None:
    """D1, C4: reading ahead goes on for the steps that come after it."""
    gates = {1: anyio.Event()}
    counting = Counting(4, gates)
    number = numbers(counting, prefetch=2)
    async with anyio.create_task_group() as group, monitored(number, task_group=group) as session:
        assert await take(session, number, 1) == [0]
        async with anyio.create_task_group() as cancelled:
            cancelled.start_soon(session.run, number)
            await anyio.wait_all_tasks_blocked()
            cancelled.cancel_scope.cancel()
        gates[1].set()
        assert await drain(session, number) == [1, 2, 3]
    assert counting.read == [0, 1, 2, 3]


class Held:
    """An iterable for a thread, which it holds before one item; two threads in it at a time are an error."""

    def __init__(self, at: int, length: int = 6) -> None:
        self.at = at
        self.length = length
        self.reached = anyio.Event()
        self.go_on = threading.Event()
        self.used = threading.Lock()
        self.opened = 0

    def __iter__(self) -> Iterator[int]:
        self.opened += 1
        return map(self.read, range(self.length))

    def read(self, number: int) -> int:
        """The item of that number."""
        assert self.used.acquire(blocking=False), "two threads read one iterator"
        try:
            if number == self.at:
                anyio.from_thread.run_sync(self.reached.set)
                assert self.go_on.wait(5)
            return number
        finally:
            self.used.release()


@pytest.mark.parametrize("group_given", [True, False])
@pytest.mark.parametrize("at", [1, 2, 5])
async def test_what_a_thread_has_read_is_given_while_it_waits_for_more(group_given: bool, at: int) -> None:
    """D4: nobody waits for an item because the one after it takes its time."""
    held = Held(at)
    number = numbers(held, prefetch=4)
    async with anyio.create_task_group() as group:
        async with monitored(number, task_group=group if group_given else None) as session:
            with anyio.fail_after(5):
                assert await take(session, number, at) == list(range(at))
                await held.reached.wait()
                held.go_on.set()
                assert await drain(session, number) == list(range(at, 6))


async def test_a_thread_reads_ahead_without_a_task_group_too() -> None:
    """D4: the thread that was asked for one item goes on to read as many as may be read ahead."""
    held = Held(at=4, length=10)
    number = numbers(held, prefetch=5)
    async with monitored(number) as session:
        assert await take(session, number, 1) == [0]
        with anyio.fail_after(5):
            await held.reached.wait()
            held.go_on.set()
            assert await drain(session, number) == list(range(1, 10))


@pytest.mark.parametrize("group_given", [True, False])
async def test_a_thread_that_reads_for_a_cancelled_step_reads_for_the_next(group_given: bool) -> None:
    """D1, C3: a cancellation does not wait for the thread, and what that reads is given; it is the only reader."""
    held = Held(at=2)
    number = numbers(held, prefetch=4)
    async with anyio.create_task_group() as group:
        async with monitored(number, task_group=group if group_given else None) as session:
            async with anyio.create_task_group() as steps:
                got: list[int] = []

                async def run() -> None:
                    for _ in range(3):
                        got.append(await session.run(number))

                steps.start_soon(run)
                await held.reached.wait()
                await anyio.wait_all_tasks_blocked()
                steps.cancel_scope.cancel()
            before = list(got)
            async with anyio.create_task_group() as steps:
                steps.start_soon(run)
                await anyio.wait_all_tasks_blocked()
                held.go_on.set()
            assert got == [0, 1, 2, 3, 4][: len(got)]
            assert got + await drain(session, number) == [0, 1, 2, 3, 4, 5]
            assert session.source_state(number) == SourceState(6, (), ())
    assert before in ([], [0], [0, 1])
    assert held.opened == 1


# The end


@pytest.mark.parametrize("at", [0, 3])
async def test_closing_ends_reading_ahead_at_once(at: int) -> None:
    """L8: a source that waits for its next item for ever does not keep the session open; its generator is closed."""
    counting = Counting(10, {at: anyio.Event()})
    number = numbers(counting, prefetch=5)
    with anyio.fail_after(5):
        async with anyio.create_task_group() as group, monitored(number, task_group=group) as session:
            async with anyio.create_task_group() as steps:
                steps.start_soon(take, session, number, 6)
                await anyio.wait_all_tasks_blocked()
                steps.cancel_scope.cancel()
            assert session.source_state(number).position == at
    assert counting.closed == [at + 1]


async def test_closing_waits_for_a_thread_that_reads() -> None:
    """L8, L6: nothing reads the items any more when the session is closed."""
    held = Held(at=3, length=1_000_000)
    number = numbers(held, prefetch=1_000)
    async with anyio.create_task_group() as group:
        async with monitored(number, task_group=group) as session:
            assert await take(session, number, 3) == [0, 1, 2]
            await held.reached.wait()
            held.go_on.set()
        assert held.used.acquire(blocking=False)


async def test_closing_does_not_wait_for_a_thread_for_ever() -> None:
    """L6: a thread that is stuck in the items is left behind after the grace period, with an error."""
    held = Held(at=3)
    number = numbers(held, prefetch=2)
    async with anyio.create_task_group() as group:
        with pytest.raises(TimeoutError, match="stop_grace_period"):
            async with monitored(number, task_group=group, stop_grace_period=0.1) as session:
                await take(session, number, 3)
                await held.reached.wait()
    held.go_on.set()


async def test_a_closing_that_was_cancelled_is_finished_by_the_next() -> None:
    """L8, C3: a raw session, lost or not, is closed again after a cancellation; the thread is out of it then."""
    held = Held(at=1)
    number = numbers(held, prefetch=2)
    closed: list[bool] = []

    async def close(session: Session) -> None:
        await session.aclose()
        closed.append(held.used.locked())

    async with Session(number.graph) as session:
        assert await take(session, number, 1) == [0]
        await held.reached.wait()
        for end in (lambda group: group.cancel_scope.cancel(), lambda _: held.go_on.set()):
            async with anyio.create_task_group() as closing:
                closing.start_soon(close, session)
                await anyio.wait_all_tasks_blocked()
                assert closed == []
                end(closing)
        assert closed == [False]


async def test_a_step_in_flight_gets_further_items_after_a_stop() -> None:
    """W1, S4: reading ahead goes on until no step is left that could ask."""
    counting = Counting(20)
    number = numbers(counting, prefetch=2)
    got: list[int] = []
    begun, stopped = anyio.Event(), anyio.Event()

    async def step(ctx: StepContext) -> None:
        got.append(await ctx.run_with_hooks(number))
        begun.set()
        await stopped.wait()
        for _ in range(6):
            got.append(await ctx.run_with_hooks(number))

    async def stop_when_begun() -> None:
        await begun.wait()
        session.request_stop()
        stopped.set()

    async with monitored(number) as session, anyio.create_task_group() as group:
        group.start_soon(stop_when_begun)
        await session.loop(step)
        assert session.source_state(number).position == 7
    assert got == list(range(7))


async def test_reading_ahead_goes_on_in_the_next_incarnation() -> None:
    """V2, D1: a recovery stops the reader of the lost session, and the next one reads ahead anew."""
    counting = Counting(12)
    number = numbers(counting, prefetch=3)
    failures = [2, 7]
    got: list[int] = []

    class Restoring(SessionCreator):
        def __init__(self) -> None:
            self.graph = number.graph
            self.states: dict[str, Any] = {}

        async def create_session(self) -> Session:
            session = Session(self.graph)
            session.store.restored_sources = self.states
            return session

    creator = Restoring()

    async def step(ctx: StepContext) -> None:
        item = await ctx.session.run(number)
        if item in failures:
            failures.remove(item)
            creator.states = ctx.session.store.source_states()
            raise AbortedError(str(item))
        got.append(item)

    recovery = Recovery(restore="always", wait_initial=0.0, jitter=0.0)
    async with MonitoredSession(creator, recovery=recovery) as session:
        await session.loop(step)
        assert session.recoveries == 2
    assert got == list(range(12))
    assert len(counting.closed) == 3


async def test_a_task_group_that_is_cancelled_under_a_session_is_told() -> None:
    """L8: a step that waits for an item that nobody reads any more gets an error, not silence."""
    number = numbers(Counting(10, {3: anyio.Event()}), prefetch=2)
    groups: list[anyio.abc.TaskGroup] = []
    opened = anyio.Event()

    async def hold_group() -> None:
        async with anyio.create_task_group() as group:
            groups.append(group)
            opened.set()
            await anyio.sleep_forever()

    async with anyio.create_task_group() as outer:
        outer.start_soon(hold_group)
        await opened.wait()
        async with monitored(number, task_group=groups[0]) as session:
            assert await take(session, number, 3) == [0, 1, 2]

            async def run() -> None:
                with pytest.raises(RuntimeError, match="'numbers' was cancelled with its task group"):
                    await session.run(number)

            outer.start_soon(run)
            await anyio.wait_all_tasks_blocked()
            groups[0].cancel_scope.cancel()
            await anyio.wait_all_tasks_blocked()
            with pytest.raises(RuntimeError, match="task group"):
                await session.run(number)


async def test_a_function_that_fails_is_an_error_of_the_step() -> None:
    """D1: a function that cannot open its items raises in the step that asks, which may ask again."""
    left = [OSError("not there")]

    def opened() -> AsyncIterator[int]:
        if left:
            raise left.pop()
        return Counting(3)()

    number = numbers(opened, prefetch=2)
    async with anyio.create_task_group() as group, monitored(number, task_group=group) as session:
        with pytest.raises(OSError, match="not there"):
            await session.run(number)
        assert await drain(session, number) == [0, 1, 2]


# Objects with a state, which one incarnation reads after the other


ALWAYS = Recovery(restore="always", wait_initial=0.0, jitter=0.0)


class Shared:
    """Numbers as an iterable with a state, which is taken to that when it is asked for its first item.

    The item `at` is waited for when it is read for the first time.

    Attributes:
        reached: set when that begins.
        go_on: what it waits for.
        disturbed: whether it was read, or taken to a state, while it gave an item already.
    """

    def __init__(self, at: int, length: int = 6) -> None:
        self.at = at
        self.length = length
        self.given = 0
        self.begins_at = 0
        self.reached = anyio.Event()
        self.go_on = threading.Event()
        self.disturbed = False
        self._used = threading.Lock()
        self._waits = True

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Note if there is another one."""
        alone = self._used.acquire(blocking=False)
        self.disturbed = self.disturbed or not alone
        try:
            yield
        finally:
            if alone:
                self._used.release()

    def at_gate(self) -> bool:
        """Whether the item that is read now is waited for."""
        if self.given != self.at or not self._waits:
            return False
        self._waits = False
        return True

    def __iter__(self) -> Iterator[int]:
        self.given, self.begins_at = self.begins_at, 0
        while self.given < self.length:
            with self.alone():
                if self.at_gate():
                    anyio.from_thread.run_sync(self.reached.set)
                    assert self.go_on.wait(5)
                self.given += 1
            yield self.given - 1

    def state_dict(self) -> int:
        return self.given

    def load_state_dict(self, state: int) -> None:
        with self.alone():
            self.begins_at = state


class SharedAsync:
    """The same as an async iterable."""

    def __init__(self, at: int) -> None:
        self.shared = Shared(at)
        self.state_dict = self.shared.state_dict
        self.load_state_dict = self.shared.load_state_dict
        self.go_on = anyio.Event()

    async def __aiter__(self) -> AsyncIterator[int]:
        shared = self.shared
        shared.given, shared.begins_at = shared.begins_at, 0
        while shared.given < shared.length:
            with shared.alone():
                if shared.at_gate():
                    shared.reached.set()
                    await self.go_on.wait()
                shared.given += 1
            yield shared.given - 1


async def lose_while_a_step_reads(
    session: MonitoredSession, number: Source[Any], shared: Shared, look: Callable[[], None]
) -> list[int]:
    """Two steps; one fails once when it has item 0 while the other waits for item 1. What they got in the end."""
    got: list[int] = []
    fail = anyio.Event()
    lost: list[Session] = []

    async def failing(ctx: StepContext) -> None:
        item = await ctx.session.run(number)
        if ctx.attempt == 1:
            lost.append(ctx.session)
            await fail.wait()
            raise AbortedError("once")
        got.append(item)

    async def waiting(ctx: StepContext) -> None:
        got.append(await ctx.session.run(number))

    async with anyio.create_task_group() as steps:
        steps.start_soon(session.run_step_fn, failing)
        await anyio.wait_all_tasks_blocked()
        steps.start_soon(session.run_step_fn, waiting)
        await shared.reached.wait()
        fail.set()
        await lost[0].store.changed()  # it is closed
        await anyio.wait_all_tasks_blocked()
        look()
    return sorted(got)


async def test_a_recovery_waits_for_the_thread_that_reads_for_a_step() -> None:
    """V2, D1: steps that read themselves do so by a thread, which is out of a shared object when it is read anew."""
    shared = Shared(at=1)
    number = numbers(shared, prefetch=1)

    def look() -> None:
        assert session.recoveries == 0
        shared.go_on.set()

    async with monitored(number, recovery=ALWAYS) as session:
        with anyio.fail_after(5):
            assert await lose_while_a_step_reads(session, number, shared, look) == [0, 1]
            assert session.recoveries == 1
            assert await drain(session, number) == [2, 3, 4, 5]
    assert not shared.disturbed


async def test_an_async_object_is_read_anew_when_a_step_of_the_lost_session_has_left_it() -> None:
    """V2, D1: a recovery does not wait for the item of a step in flight, but who reads the same object does."""
    shared = SharedAsync(at=1)
    number = numbers(shared)

    def look() -> None:
        assert session.recoveries == 1
        shared.go_on.set()

    async with monitored(number, recovery=ALWAYS) as session:
        with anyio.fail_after(5):
            assert await lose_while_a_step_reads(session, number, shared.shared, look) == [0, 1]
            assert await drain(session, number) == [2, 3, 4, 5]
    assert not shared.shared.disturbed


async def test_a_restore_that_is_cancelled_while_it_closes_does_not_share_the_object() -> None:
    """D1, C3: what is read after it waits for the thread that has read before it."""
    shared = Shared(at=1)
    number = numbers(shared, prefetch=2)
    got: list[int] = []

    async def run() -> None:
        got.append(await session.run(number))

    async with Session(number.graph) as session:
        snapshot = session.snapshot()
        await run()
        await shared.reached.wait()
        async with anyio.create_task_group() as steps:
            steps.start_soon(session.restore, snapshot)
            await anyio.wait_all_tasks_blocked()
            steps.cancel_scope.cancel()
        with anyio.fail_after(5):
            async with anyio.create_task_group() as steps:
                steps.start_soon(run)
                await anyio.wait_all_tasks_blocked()
                assert got == [0]
                shared.go_on.set()
            assert got + await take(session, number, 5) == [0, 0, 1, 2, 3, 4, 5]
    assert not shared.disturbed


async def test_a_session_that_has_lost_an_object_while_it_read_does_not_take_it_back() -> None:
    """D1: the session that opens a shared object waits until the other is out of it, which then gets an error."""
    shared = Shared(at=2)
    number = numbers(shared, prefetch=1)
    got: list[int] = []

    async def lose() -> None:
        for _ in range(2):
            with pytest.raises(FailedPreconditionError, match="another session"):
                await one.run(number)

    async def take_over() -> None:
        got.extend(await take(other, number, 3))

    async with Session(number.graph) as one, Session(number.graph) as other:
        assert await take(one, number, 2) == [0, 1]
        with anyio.fail_after(5):
            async with anyio.create_task_group() as steps:
                steps.start_soon(take, one, number, 1)
                await shared.reached.wait()
                steps.start_soon(take_over)
                await anyio.wait_all_tasks_blocked()
                assert got == []
                shared.go_on.set()
            await lose()
            assert got + await take(other, number, 3) == [0, 1, 2, 3, 4, 5]
    assert not shared.disturbed


def test_an_object_is_read_in_another_event_loop_when_the_thread_of_the_last_has_left_it(
    anyio_backend: tuple[str, dict[str, Any]],
) -> None:
    """D1: a thread that was left behind by an event loop that has ended keeps nobody waiting longer than it reads."""
    backend, options = anyio_backend
    shared = Shared(at=1)
    number = numbers(shared, prefetch=2)

    async def leave_behind() -> None:
        with anyio.CancelScope() as scope:
            async with Session(number.graph) as session:
                assert await take(session, number, 1) == [0]
                await shared.reached.wait()
                scope.cancel()
                await anyio.lowlevel.checkpoint()

    async def read_again() -> None:
        async with Session(number.graph) as session, anyio.create_task_group() as steps:
            got: list[int] = []

            async def run() -> None:
                got.extend(await take(session, number, 6))

            steps.start_soon(run)
            await anyio.wait_all_tasks_blocked()
            shared.go_on.set()
            steps.cancel_scope.deadline = anyio.current_time() + 5
        assert got == [0, 1, 2, 3, 4, 5]

    for run in (leave_behind, read_again):
        anyio.run(run, backend=backend, backend_options=options)
    assert not shared.disturbed
