"""Properties of sources that read ahead: whatever becomes of the steps and the lives, each item is done once."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import anyio
import anyio.lowlevel
import pytest
import sniffio
from hypothesis import HealthCheck, given, settings, strategies as st

from asyncstep import (
    AbortedError,
    Graph,
    MonitoredSession,
    OutOfRangeError,
    Recovery,
    Session,
    SessionCreator,
    StepContext,
    StopRequested,
    Variable,
    source,
)
from asyncstep._runtime.snapshot import Snapshot
from asyncstep.data import course, iterables, snapshots

pytestmark = pytest.mark.anyio
reproducible = settings(
    max_examples=120,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
Step = Callable[[StepContext, Any], Awaitable[None]]
TOO_LONG = 20.0  # seconds; so long lasts what hangs


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is meant for many items happens with a few: jumps over gaps, snapshots, turns."""
    monkeypatch.setattr(course, "FAR", 2)
    monkeypatch.setattr(iterables, "SNAPSHOT_EVERY", 3)
    monkeypatch.setattr(iterables, "READ_AT_ONCE", 4)
    monkeypatch.setattr(snapshots, "MOST", 4)


class ReadError(Exception):
    """An item could not be read, this time."""


class Numbers:
    """The numbers below `length`; some are slow to read, and some fail when they are read for the first time."""

    def __init__(self, length: int, slow: frozenset[int], flaky: frozenset[int]) -> None:
        self.length = length
        self.slow = slow
        self.left = set(flaky)

    def read(self, index: int) -> int:
        """One of them."""
        if index in self.left:
            self.left.remove(index)
            raise ReadError(index)
        return index

    def read_slowly(self, index: int) -> int:
        """One of them, in a worker thread."""
        if index in self.slow:
            time.sleep(0.0003)
        return self.read(index)

    def iterable(self) -> Iterator[int]:
        """All of them."""
        return self.iterable_from(0)

    def iterable_from(self, start: int) -> Iterator[int]:
        """Those from a number on."""
        for index in range(start, self.length):
            yield self.read_slowly(index)

    def async_iterable(self) -> AsyncIterator[int]:
        """All of them, from an async generator."""
        return self.async_iterable_from(0)

    async def async_iterable_from(self, start: int) -> AsyncIterator[int]:
        """Those from a number on, from an async generator."""
        for index in range(start, self.length):
            for _ in range(3 * (index in self.slow)):
                await anyio.lowlevel.checkpoint()
            yield self.read(index)


class Sequence:
    """The numbers as a sequence."""

    def __init__(self, numbers: Numbers) -> None:
        self.numbers = numbers

    def __len__(self) -> int:
        return self.numbers.length

    def __getitem__(self, index: int) -> int:
        return self.numbers.read_slowly(index)


class Loader:
    """The numbers as an iterable with a state."""

    def __init__(self, numbers: Numbers) -> None:
        self.numbers = numbers
        self.given = 0
        self.next = 0

    def __iter__(self) -> Iterator[int]:
        self.given, self.next = self.next, 0
        while self.given < self.numbers.length:
            item = self.numbers.read_slowly(self.given)
            self.given += 1
            yield item

    def state_dict(self) -> dict[str, int]:
        return {"given": self.given}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.next = state["given"]


KINDS: dict[str, Callable[[Numbers], Any]] = {
    "sequence": Sequence,
    "function": lambda numbers: numbers.iterable,
    "function of start": lambda numbers: lambda start: numbers.iterable_from(start),
    "async function": lambda numbers: numbers.async_iterable,
    "async function of start": lambda numbers: lambda start: numbers.async_iterable_from(start),
    "loader": Loader,
}


@dataclass(frozen=True)
class Setup:
    """A source, and who reads it."""

    kind: str
    length: int
    batch: int | None
    drop_remainder: bool
    prefetch: int
    shuffle: int | None
    repeat: int
    workers: int
    slow: frozenset[int]


@dataclass(frozen=True)
class Fate:
    """What becomes of a step, after how many turns of the event loop."""

    kind: str  # commit, fail, retry, cancel, native cancel
    turns: int


@dataclass(frozen=True)
class Life:
    """What happens in a process.

    Attributes:
        fates: of its steps.
        saved_after: so many steps are given items before the snapshot is made that outlives it.
        killed: whether it ends in the middle of steps.
        group_given: whether there is a task group to read in.
        flaky: items that fail when they are read for the first time.
        on: which errors are retried, besides those of the fate "retry".
        restore: whether a retry goes back to the snapshot.
    """

    fates: list[Fate]
    saved_after: int
    killed: bool
    group_given: bool
    flaky: frozenset[int]
    on: tuple[type[Exception], ...]
    restore: Literal["if_lost", "always"]


@st.composite
def setups(draw: st.DrawFn) -> Setup:
    """Sources that read ahead, of all kinds."""
    batch = draw(st.none() | st.integers(1, 4))
    length = draw(st.integers(0, 12) | st.integers(20, 40))
    return Setup(
        kind=draw(st.sampled_from(sorted(KINDS))),
        length=length,
        batch=batch,
        drop_remainder=batch is not None and draw(st.booleans()),
        prefetch=draw(st.integers(1, 7)),
        shuffle=draw(st.sampled_from([None, None, 4, 50])),
        repeat=draw(st.integers(1, 2)),
        workers=draw(st.sampled_from([1, 1, 2, 4])),
        slow=frozenset(draw(st.sets(st.integers(0, 20), max_size=4))),
    )


FATES = st.builds(
    Fate,
    st.sampled_from(["commit", "commit", "commit", "fail", "retry", "cancel", "native cancel"]),
    st.integers(0, 6),
)
LIVES = st.builds(
    Life,
    st.lists(FATES, max_size=14),
    st.integers(0, 14),
    st.booleans(),
    st.booleans(),
    st.frozensets(st.integers(0, 20), max_size=2),
    st.sampled_from([(), (ReadError,)]),
    st.sampled_from(["if_lost", "always"]),
)
LAST = Life([], 0, False, False, frozenset(), (), "if_lost")


class Process(SessionCreator):
    """One life of the session, from a snapshot of the one before to the next."""

    def __init__(self, setup: Setup, life: Life, before: Snapshot | None) -> None:
        self.setup = setup
        self.life = life
        self.before = before
        self.after: Snapshot | None = None
        self.count = 0
        numbers = Numbers(setup.length, setup.slow, life.flaky)
        with Graph() as self.graph:
            self.item: Any = source(
                KINDS[setup.kind](numbers),
                name="numbers",
                batch=setup.batch,
                drop_remainder=setup.drop_remainder,
                prefetch=setup.prefetch,
                shuffle=setup.shuffle,
                repeat=setup.repeat,
            )
            self.done = Variable[tuple[Any, ...]]((), name="done").update(
                lambda done, item: (*done, item), self.item
            )

    async def create_session(self) -> Session:
        """A raw session that goes on at the newest snapshot."""
        raw = await Session(self.graph).__aenter__()
        snapshot = self.after or self.before
        if snapshot is not None:
            await raw.restore(snapshot)
        return raw

    async def step(self, ctx: StepContext, fate: Fate = Fate("commit", 1)) -> None:
        """Take items, wait some turns, and end as the fate says."""
        await ctx.session.run(self.done)
        if self.setup.workers == 1:
            state = ctx.session.source_state(self.item)
            batches = open_batches(self.setup, ctx.session.snapshot())
            assert state.pending == next(batch for batch in batches if batch[0] not in state.parked)
        self.count += 1
        for _ in range(fate.turns):
            await anyio.lowlevel.checkpoint()
        if self.count >= self.life.saved_after and self.after is None:
            self.after = ctx.session.snapshot()
        if fate.kind == "fail":
            raise ValueError("boom")
        if fate.kind == "retry" and ctx.attempt == 1:
            raise AbortedError("once")

    async def work(self, session: MonitoredSession, fates: Iterator[Fate]) -> None:
        """Be a worker: one step for each fate."""
        for fate in fates:
            try:
                await CANCELS.get(fate.kind, undisturbed)(session, self.step, fate)
            except (OutOfRangeError, StopRequested):
                return  # the data has ended, for this worker or for another
            except (ValueError, ReadError):
                pass

    async def steps(self, session: MonitoredSession) -> None:
        """Run the steps, shared by the workers."""
        fates = iter(self.life.fates)
        async with anyio.create_task_group() as workers:

            async def work() -> None:
                await self.work(session, fates)
                if self.life.killed:
                    workers.cancel_scope.cancel()

            for _ in range(self.setup.workers):
                workers.start_soon(work)

    async def live(self) -> Snapshot:
        """Live, and return the snapshot to go on from."""
        group_given = self.life.group_given or "async" in self.setup.kind
        recovery = Recovery(
            on=(AbortedError, *self.life.on), restore=self.life.restore, wait_initial=0.0, jitter=0.0
        )
        async with anyio.create_task_group() as background:
            group = background if group_given and self.life is not LAST else None
            async with MonitoredSession(self, recovery=recovery, task_group=group) as session:
                if self.life is LAST:
                    await session.loop(self.step, workers=self.setup.workers)
                    return session.snapshot()
                self.before = self.before or session.snapshot()
                await self.steps(session)
                try:
                    return self.after or session.snapshot()
                except AbortedError:
                    return self.before  # the life ended in the middle of a recovery
        raise AssertionError("the session ended before its block")


def open_batches(setup: Setup, snapshot: Snapshot) -> list[tuple[int, ...]]:
    """The positions of the batches that are to be given, in order, to a life that begins at a snapshot."""
    state = snapshot.sources["numbers"]
    size = setup.batch or 1
    batches = []
    for start in range(0, setup.repeat * setup.length, setup.length or 1):
        for at in range(start, start + setup.length, size):
            batch = tuple(range(at, min(at + size, start + setup.length)))
            dropped = setup.drop_remainder and len(batch) < size
            done = at < state["position"] or any(first <= at < stop for first, stop in state["finished"])
            if not (dropped or done):
                batches.append(batch)
    return batches


async def undisturbed(session: MonitoredSession, step: Step, fate: Fate) -> None:
    """A step that nobody cancels."""
    await session.run_step_fn(step, fate)


async def cancelled(session: MonitoredSession, step: Step, fate: Fate) -> None:
    """A step whose scope is cancelled after some turns, wherever it is then."""
    errors: list[BaseException] = []
    async with anyio.create_task_group() as group:

        async def run() -> None:
            try:
                await session.run_step_fn(step, fate)
            except (Exception, StopRequested) as error:
                errors.append(error)
            group.cancel_scope.cancel()

        group.start_soon(run)
        for _ in range(fate.turns):
            await anyio.lowlevel.checkpoint()
        group.cancel_scope.cancel()
    for error in errors:
        raise error


async def cancelled_natively(session: MonitoredSession, step: Step, fate: Fate) -> None:
    """A step whose task is cancelled on asyncio, which no shield of anyio's keeps off; trio knows no such thing."""
    if sniffio.current_async_library() == "trio":
        await cancelled(session, step, fate)
        return
    task = asyncio.ensure_future(session.run_step_fn(step, fate))
    try:
        for _ in range(fate.turns):
            await anyio.lowlevel.checkpoint()
    finally:
        task.cancel()
        await asyncio.wait([task])
    if not task.cancelled():
        await task


CANCELS = {"cancel": cancelled, "native cancel": cancelled_natively}


@given(setup=setups(), lives=st.lists(LIVES, max_size=3))
@reproducible
async def test_each_item_is_done_once_however_it_was_read_ahead(setup: Setup, lives: list[Life]) -> None:
    """D1, D3, L8: through cancelled and failing steps and any number of lives, each item goes to one committed
    step; one worker gets them in order; and nothing waits for ever."""
    snapshot = None
    with anyio.fail_after(TOO_LONG):
        for life in (*lives, LAST):
            snapshot = await Process(setup, life, snapshot).live()
    assert snapshot is not None
    assert not open_batches(setup, snapshot)
    dropped = setup.length % setup.batch if setup.drop_remainder and setup.batch else 0
    done = Counter(flat(setup, snapshot.variables["done"]))
    if not dropped:
        assert done == Counter(dict.fromkeys(range(setup.length), setup.repeat))
    assert done.total() == setup.repeat * (setup.length - dropped)
    assert all(times <= setup.repeat for times in done.values())


def flat(setup: Setup, given: Any) -> list[int]:
    """All items of what steps were given."""
    return [item for batch in given for item in batch] if setup.batch else list(given)
