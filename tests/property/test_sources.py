"""Properties of sources: any life of a source, with restores in it, gives every item exactly once, in order."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from asyncstep import Graph, OutOfRangeError, Session, source
from asyncstep._runtime.transaction import Fate, Transaction
from asyncstep.data import Source, course, iterables, snapshots
from asyncstep.data.order import Permutation

pytestmark = pytest.mark.anyio
reproducible = settings(
    max_examples=120,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is meant for many items happens with a few: jumps over gaps, snapshots, turns, thinned snapshots."""
    monkeypatch.setattr(course, "FAR", 2)
    monkeypatch.setattr(iterables, "SNAPSHOT_EVERY", 3)
    monkeypatch.setattr(iterables, "READ_AT_ONCE", 4)
    monkeypatch.setattr(snapshots, "MOST", 4)


# Kinds of items: each gives the numbers from 0 on, in every epoch.


class Loader:
    """An iterable with a state, as torchdata's: it begins anew, or where `load_state_dict` has put it."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.given = 0
        self.next = 0

    def __iter__(self) -> Iterator[int]:
        self.given, self.next = self.next, 0
        while self.given < self.length:
            self.given += 1
            yield self.given - 1

    def state_dict(self) -> dict[str, int]:
        return {"given": self.given}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.next = state["given"]


class Pages:
    """An iterable whose iterators have a state, as grain's."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __iter__(self) -> PageIterator:
        return PageIterator(self.length)


class PageIterator:
    """An iterator with a state; it is an iterable that can be gone through only once, but for that."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.state = {"next": 0}

    def __iter__(self) -> PageIterator:
        return self

    def __next__(self) -> int:
        if self.state["next"] == self.length:
            raise StopIteration
        self.state["next"] += 1
        return self.state["next"] - 1

    def get_state(self) -> dict[str, int]:
        return self.state

    def set_state(self, state: dict[str, int]) -> None:
        self.state = state


def async_numbers(length: int) -> Callable[[], AsyncIterator[int]]:
    """A function that gives an async iterable."""

    async def numbers() -> AsyncIterator[int]:
        for number in range(length):
            yield number

    return numbers


def from_start(length: int) -> Callable[[int], Iterator[int]]:
    """A function that can begin at any item."""

    def numbers(start: int) -> Iterator[int]:
        return iter(range(start, length))

    return numbers


KINDS: dict[str, Callable[[int], Any]] = {
    "sequence": range,
    "function": lambda length: lambda: iter(range(length)),
    "async function": async_numbers,
    "function of start": from_start,
    "loader": Loader,
    "pages": Pages,
    "page iterator": PageIterator,
}


@dataclass(frozen=True)
class Setup:
    """A source to be made."""

    kind: str
    length: int
    batch: int | None
    drop_remainder: bool
    prefetch: int
    shuffle: bool | int | None
    seed: int
    repeat: int
    shard: tuple[int, int]

    def make(self) -> Source[Any]:
        """The source, as a process makes it that knows nothing of an earlier one."""
        with Graph():
            return source(
                KINDS[self.kind](self.length),
                name="numbers",
                batch=self.batch,
                drop_remainder=self.drop_remainder,
                prefetch=self.prefetch,
                shuffle=self.shuffle,
                seed=self.seed,
                repeat=self.repeat,
                shard=self.shard,
            )

    def epoch(self, number: int) -> list[int]:
        """The items of one epoch in the order in which they are to be given (contract D3)."""
        index, count = self.shard
        items = list(range(self.length))
        if self.kind == "sequence":
            return self._shuffled(items, number)[index::count]
        return self._shuffled(items[index::count], number)

    def _shuffled(self, items: list[int], epoch: int) -> list[int]:
        if not self.shuffle:
            return items
        size = max(1, len(items)) if self.shuffle is True else self.shuffle
        windows = [items[start : start + size] for start in range(0, len(items), size)]
        orders = [Permutation(len(window), self.seed, epoch, at) for at, window in enumerate(windows)]
        return [
            window[order[at]]
            for window, order in zip(windows, orders, strict=True)
            for at in range(len(window))
        ]


@st.composite
def setups(draw: st.DrawFn) -> Setup:
    """Sources of all kinds, with all parameters."""
    kind = draw(st.sampled_from(sorted(KINDS)))
    batch = draw(st.none() | st.integers(1, 4))
    count = draw(st.integers(1, 3))
    return Setup(
        kind=kind,
        length=draw(st.integers(0, 13) | st.integers(30, 50)),
        batch=batch,
        drop_remainder=batch is not None and draw(st.booleans()),
        # An async iterable is read ahead by a task of a monitored session: see tests/contract.
        prefetch=0 if kind == "async function" else draw(st.sampled_from([0, 0, 1, 5])),
        shuffle=draw(st.sampled_from([None, None, 1, 4, 50, *([True] if kind == "sequence" else [])])),
        seed=draw(st.integers(-2, 2)),
        repeat=draw(st.integers(1, 3)),
        shard=(draw(st.integers(0, count - 1)), count),
    )


class Model:
    """What contract D1 to D3 say of a source."""

    def __init__(self, setup: Setup) -> None:
        self.items: list[int] = []
        self.batches: list[list[int]] = []
        size = setup.batch or 1
        self.dropped: list[list[int]] = []
        for epoch in range(setup.repeat):
            start = len(self.items)
            self.items += setup.epoch(epoch)
            batches = [
                list(range(at, min(at + size, len(self.items)))) for at in range(start, len(self.items), size)
            ]
            self.batches += batches
            self.dropped += [each for each in batches if setup.drop_remainder and len(each) < size]
        self.finished: Counter[int] = Counter()
        self.begin()

    def begin(self) -> None:
        """What is not finished is given, in its order."""
        self.new = [batch for batch in self.batches if not self.finished.keys() & set(batch)]
        self.again: list[list[int]] = []
        self.given: list[list[int]] = []
        self.parked: list[int] = []

    def take(self) -> list[int] | None:
        """What was rolled back first, else what is new."""
        while not self.again and self.new and self.new[0] in self.dropped:
            self.finished.update(self.new.pop(0))
        batch = self.again.pop(0) if self.again else self.new.pop(0) if self.new else None
        if batch is not None:
            self.given.append(batch)
        return batch

    def state(self) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
        """The low-water mark, what is pending, what is parked."""
        low = next(at for at in range(len(self.items) + 1) if at not in self.finished)
        pending = sorted(at for batch in (*self.given, *self.again) for at in batch)
        return low, tuple(pending), tuple(sorted(self.parked))


class Life:
    """A source that is read, and its model, through any number of restores."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.model = Model(setup)
        self.source = setup.make()
        self.session = Session(self.source.graph)
        self.steps: list[tuple[Transaction, list[int]]] = []
        self.saved: tuple[dict[str, Any], Counter[int]] = ({}, Counter())

    def check(self) -> None:
        """The source's state is what the model says."""
        state = self.session.source_state("numbers")
        assert (state.position, state.pending, state.parked) == self.model.state()

    async def take(self) -> bool:
        """A step begins; False if there was nothing for it."""
        batch = self.model.take()
        transaction = Transaction(self.session.store, None, None)
        try:
            value = await self.session.store.reader(self.source).take(transaction)
        except OutOfRangeError:
            assert batch is None
            return False
        assert batch is not None
        items = [self.model.items[position] for position in batch]
        assert value == (items if self.setup.batch else items[0])
        self.steps.append((transaction, batch))
        return True

    def end(self, at: int, how: str) -> None:
        """A step ends: it commits, or its items are given again or parked."""
        transaction, batch = self.steps.pop(at % len(self.steps))
        self.model.given.remove(batch)
        if how == "commit":
            transaction.commit()
            self.model.finished.update(batch)
        elif how == "park":
            transaction.roll_back(Fate.PARK)
            self.model.parked += batch
        else:
            transaction.roll_back(Fate.GIVE_AGAIN)
            self.model.again = sorted([*self.model.again, batch])

    def save(self) -> None:
        """Make a checkpoint."""
        states = json.loads(json.dumps(self.session.store.source_states()))
        self.saved = (states, self.model.finished.copy())

    async def restore(self, in_a_new_process: bool) -> None:
        """The session is lost, and another one begins at the checkpoint."""
        await self.session.aclose()
        if in_a_new_process:
            self.source = self.setup.make()
        self.session = Session(self.source.graph)
        await self.session.__aenter__()
        states, finished = self.saved
        self.session.store.restored_sources = states
        self.model.finished = finished.copy()
        self.model.begin()
        self.steps.clear()


actions = st.lists(
    st.sampled_from(
        ["take", "take", "take", "commit", "commit", "park", "again", "save", "restart", "recover"]
    ),
    max_size=60,
)


@given(setup=setups(), actions=actions, picks=st.lists(st.integers(0, 9), min_size=60, max_size=60))
@reproducible
async def test_every_item_of_each_epoch_is_done_once_in_the_right_order(
    setup: Setup, actions: list[str], picks: list[int]
) -> None:
    """D1, D2, D3: through any commits, errors, cancellations and restores, nothing is lost, doubled or out of order."""
    life = Life(setup)
    async with life.session:
        for action, pick in zip(actions, picks, strict=False):
            if action == "take":
                await life.take()
            elif action == "save":
                life.save()
            elif action in ("restart", "recover"):
                await life.restore(action == "restart")
            elif life.steps:
                life.end(pick, action)
            life.check()
        while life.steps or life.model.parked:
            while life.steps:
                life.end(0, "commit")
            life.save()
            await life.restore(in_a_new_process=True)
        while await life.take():
            life.end(0, "commit")
            life.check()
        assert life.model.finished == Counter(range(len(life.model.items)))
        await life.session.aclose()
