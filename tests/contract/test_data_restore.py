"""Contract D: how a source goes on from a checkpoint (D1, D2, D3), with states that no file has been between."""

from __future__ import annotations

import json
import operator
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from asyncstep import (
    AbortedError,
    DataLossError,
    FailedPreconditionError,
    Graph,
    MonitoredSession,
    OutOfRangeError,
    Recovery,
    Session,
    SessionCreator,
    StepContext,
    Variable,
    op,
    source,
)
from asyncstep.data import Source, SourceState

pytestmark = pytest.mark.anyio

States = dict[str, dict[str, Any]]


def numbers(items: Any = range(12), **options: Any) -> Source[Any]:
    """A source of some numbers in a graph of its own, as each process makes it anew."""
    with Graph():
        return source(items, name="numbers", **options)


@asynccontextmanager
async def restored(number: Source[Any], states: States | None = None) -> AsyncIterator[Session]:
    """A session of the source's graph that begins where `states` were made."""
    async with Session(number.graph) as session:
        session.store.restored_sources = states or {}
        yield session


def saved(session: Session) -> States:
    """The states of the session's sources; they are what any plain file can hold."""
    states: States = json.loads(json.dumps(session.store.source_states()))
    return states


async def rest(session: Session, fetch: Any) -> list[Any]:
    """Everything that is given until the data ends."""
    items = []
    while True:
        try:
            items.append(await session.run(fetch))
        except OutOfRangeError:
            return items


async def some(session: Session, fetch: Any, count: int) -> list[Any]:
    """The next items."""
    return [await session.run(fetch) for _ in range(count)]


async def fail(session: Session, number: Source[Any]) -> None:
    """A step that is given an item and fails."""

    async def poison(_: object) -> None:
        raise ValueError("boom")

    with number.graph:
        node = op(poison)(number)
    with pytest.raises(ValueError, match="boom"):
        await session.run(node)


async def read_async() -> AsyncIterator[int]:
    """Twelve numbers, from an async iterable."""
    for number in range(12):
        yield number


KINDS: dict[str, Any] = {
    "sequence": range(12),
    "iterable": lambda: iter(range(12)),
    "async iterable": read_async,
    "function of start": lambda start: iter(range(start, 12)),
}
each_kind = pytest.mark.parametrize("items", KINDS.values(), ids=KINDS)


# D1: what was not done comes first


@each_kind
async def test_pending_and_parked_items_are_given_first_after_a_restore(items: Any) -> None:
    """D1, D2: a checkpoint holds items that are given and not committed, and parked ones, as not done."""
    gates = [anyio.Event() for _ in range(6)]
    first = numbers(items)

    @op
    async def wait(item: int) -> None:
        await gates[item].wait()
        if item == 1:
            raise ValueError("boom")

    with first.graph:
        held = wait(first)

    async def run(session: Session) -> None:
        try:
            await session.run(held)
        except ValueError:
            pass

    async with restored(first) as session, anyio.create_task_group() as group:
        for _ in gates:
            group.start_soon(run, session)
            await anyio.wait_all_tasks_blocked()
        for at in (1, 2, 4):
            gates[at].set()
        await anyio.wait_all_tasks_blocked()
        assert session.source_state(first) == SourceState(position=0, pending=(0, 3, 5), parked=(1,))
        states = saved(session)
        group.cancel_scope.cancel()
    again = numbers(items)
    async with restored(again, states) as session:
        assert session.source_state(again) == SourceState(position=0, pending=(), parked=())
        assert await rest(session, again) == [0, 1, 3, 5, 6, 7, 8, 9, 10, 11]
        assert session.source_state(again).position == 12


@each_kind
async def test_what_a_cancelled_step_gave_back_is_not_done(items: Any) -> None:
    """D1: given back and not given again yet, an item is pending in a checkpoint."""
    first = numbers(items)
    with first.graph:
        stuck = op(anyio.sleep_forever)().after(first)
    async with restored(first) as session:
        async with anyio.create_task_group() as group:
            group.start_soon(session.run, stuck)
            await anyio.wait_all_tasks_blocked()
            group.cancel_scope.cancel()
        states = saved(session)
    again = numbers(items)
    async with restored(again, states) as session:
        assert await some(session, again, 2) == [0, 1]


async def test_a_poison_item_stays_pending_through_any_number_of_restores() -> None:
    """D1: parked in one life, given again in the next, and parked again: never lost, never done."""
    states: States = {}
    for life in range(3):
        number = numbers()
        async with restored(number, states) as session:
            await fail(session, number)
            assert session.source_state(number).parked == (0,)
            assert await some(session, number, 2) == [2 * life + 1, 2 * life + 2]
            states = saved(session)
    number = numbers()
    async with restored(number, states) as session:
        assert await rest(session, number) == [0, 7, 8, 9, 10, 11]


async def test_batches_are_the_same_after_a_restore() -> None:
    """D1, D3: a batch that was not done is given again as it was, and so are those after it."""
    batches = [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9], [10, 11], [0, 1, 2, 3, 4], [5, 6, 7, 8, 9], [10, 11]]
    first = numbers(batch=5, repeat=2)
    async with restored(first) as session:
        await fail(session, first)
        assert await some(session, first, 3) == batches[1:4]
        states = saved(session)
    again = numbers(batch=5, repeat=2)
    async with restored(again, states) as session:
        assert await rest(session, again) == [batches[0], *batches[4:]]


async def test_a_source_that_was_not_opened_keeps_what_was_restored() -> None:
    """D1, K1: a checkpoint that is made before a restored source gives an item is as good as the one before."""
    first = numbers()
    async with restored(first) as session:
        await some(session, first, 5)
        states = saved(session)
    again = numbers()
    async with restored(again, states) as session:
        assert saved(session) == states
        assert session.source_state(again).position == 5
        assert saved(session) == states
    last = numbers()
    async with restored(last, states) as session:
        assert await session.run(last) == 5


async def test_sources_that_gave_nothing_yet_have_a_state_if_they_are_asked_for() -> None:
    """K1: a checkpoint can name all sources of the graph, and what begins at such a state begins at the first item."""
    first = numbers()
    async with restored(first) as session:
        assert session.store.source_states() == {}
        states = session.store.source_states(first.graph.sources.values())
        assert await session.run(first) == 0
    again = numbers()
    async with restored(again, states) as session:
        assert await session.run(again) == 0


@pytest.mark.parametrize("workers", [1, 8])
async def test_a_state_agrees_with_what_is_committed_at_that_instant(workers: int) -> None:
    """D2, K1: between any two commits, what is finished in the state is what the variables have counted."""
    states: list[tuple[int, States]] = []
    total = 300
    number = numbers(range(total), batch=3)
    with number.graph:
        done = Variable(0, name="done").update(operator.add, op(len)(number))

    async def step(ctx: StepContext) -> None:
        await ctx.session.run(done)
        for _ in range(len(states) % 5):
            await anyio.lowlevel.checkpoint()
        states.append((ctx.session.store.read("done"), saved(ctx.session)))

    with number.graph:
        async with MonitoredSession() as session:
            await session.loop(step, workers=workers)
    assert len(states) == total / 3
    for count, state in states:
        finished = state["numbers"]["finished"]
        assert state["numbers"]["position"] + sum(stop - start for start, stop in finished) == count


# D2: nothing but positions


@each_kind
async def test_a_state_has_no_items_and_does_not_grow(items: Any) -> None:
    """D2, L9: a state is a low-water mark, ranges and a few numbers, whatever has been read, however long ago."""
    number = numbers(items, repeat=None, shuffle=4)
    async with restored(number) as session:
        await some(session, number, 30)
        early = saved(session)
        await fail(session, number)
        await some(session, number, 3_000)
        assert saved(session)["numbers"]["finished"] == [[31, 3_031]]
        assert len(json.dumps(saved(session))) < len(json.dumps(early)) + 100


# D3: the order


@each_kind
@pytest.mark.parametrize("shuffle", [5, True])
@pytest.mark.parametrize("shard", [None, (1, 3)])
async def test_the_order_is_the_same_after_a_restore(
    items: Any, shuffle: bool | int, shard: tuple[int, int] | None
) -> None:
    """D3: wherever a life ends, the next one gives what the first would have given."""
    if shuffle is True and items is not KINDS["sequence"]:
        shuffle = 50  # a window of which an epoch does not fill one
    options: dict[str, Any] = {"shuffle": shuffle, "seed": 3, "repeat": 3, "shard": shard}
    undisturbed = numbers(items, **options)
    async with restored(undisturbed) as session:
        expected = await rest(session, undisturbed)
    given: list[int] = []
    states: States = {}
    while len(given) < len(expected):
        number = numbers(items, **options)
        async with restored(number, states) as session:
            given += await some(session, number, min(7, len(expected) - len(given)))
            states = saved(session)
    assert given == expected
    epochs = [expected[at : at + len(expected) // 3] for at in range(0, len(expected), len(expected) // 3)]
    assert len({tuple(epoch) for epoch in epochs}) == 3
    if shard is None:
        assert [sorted(epoch) for epoch in epochs] == [list(range(12))] * 3


@each_kind
async def test_shards_give_each_item_to_one_of_them(items: Any) -> None:
    """D3: `shard` splits an epoch into disjoint parts that cover it, with or without a shuffle."""
    for shuffle in (None, 5):
        given = []
        for index in range(5):
            number = numbers(items, shuffle=shuffle, shard=(index, 5))
            async with restored(number) as session:
                given += await rest(session, number)
        assert sorted(given) == list(range(12))


async def test_another_seed_is_another_order() -> None:
    """D3: the seed, and nothing else of the process, decides on the order."""
    orders = []
    for seed in (1, 1, 2):
        number = numbers(range(50), shuffle=True, seed=seed)
        async with restored(number) as session:
            orders.append(await rest(session, number))
    assert orders[0] == orders[1] != orders[2]
    assert all(sorted(order) == list(range(50)) for order in orders)


# What has changed since


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shuffle": 4, "seed": 1}, "shuffle=5, seed=0.*shuffle=4, seed=1"),
        ({"shuffle": None}, "shuffle=5"),
        ({"shard": (1, 2)}, r"shard=\[0, 1\].*shard=\[1, 2\]"),
        ({"batch": 4}, "batch=3.*batch=4"),
        ({"batch": None}, "batch=3.*batch=None"),
    ],
)
async def test_a_source_that_means_other_items_now_is_refused(change: dict[str, Any], message: str) -> None:
    """D3: what the meaning of positions depends on must not change; the error says what it was and is."""
    options: dict[str, Any] = {"shuffle": 5, "batch": 3}
    first = numbers(**options)
    async with restored(first) as session:
        await session.run(first)
        states = saved(session)
    changed = numbers(**{**options, **change})
    async with restored(changed, states) as session:
        for _ in range(2):
            with pytest.raises(FailedPreconditionError, match=f"'numbers' was saved with .*{message}"):
                await session.run(changed)


async def test_what_positions_do_not_depend_on_may_change() -> None:
    """D3: more epochs, reading ahead, and the seed of no shuffle are no other items."""
    first = numbers(batch=6)
    async with restored(first) as session:
        assert await rest(session, first) == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11]]
        states = saved(session)
    more = numbers(batch=6, repeat=2, seed=9, prefetch=4)
    async with restored(more, states) as session:
        assert await rest(session, more) == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11]]


@pytest.mark.parametrize("length", [11, 13])
async def test_a_sequence_of_another_length_is_refused(length: int) -> None:
    """D3: positions of a sequence that was longer or shorter may mean other items."""
    first = numbers()
    async with restored(first) as session:
        await session.run(first)
        states = saved(session)
    changed = numbers(range(length))
    async with restored(changed, states) as session:
        with pytest.raises(FailedPreconditionError, match=f"sequence of 12 items.*sequence of {length}"):
            await session.run(changed)


def of_length(length: int) -> Callable[[], Iterator[int]]:
    """An iterable whose length nobody knows before it is read."""
    return lambda: iter(range(length))


async def of_length_async(length: int) -> AsyncIterator[int]:
    """An async one."""
    for number in range(length):
        yield number


@pytest.mark.parametrize("length", [3, 11, 13])
@pytest.mark.parametrize("kind", [of_length, lambda length: lambda: of_length_async(length)])
async def test_an_iterable_of_another_length_is_refused_where_that_is_seen(
    kind: Callable[[int], Any], length: int
) -> None:
    """D3: an epoch that was read to its end must have the same end when it is read again."""
    first = numbers(kind(12), repeat=2)
    async with restored(first) as session:
        await some(session, first, 11)
        await fail(session, first)
        await some(session, first, 3)
        states = saved(session)
    changed = numbers(kind(length), repeat=2)
    async with restored(changed, states) as session:
        with pytest.raises(FailedPreconditionError, match=r"epoch 0 had 12 items .* now has"):
            await rest(session, changed)


async def test_an_iterable_that_ends_before_what_is_done_is_refused() -> None:
    """D3: an epoch must be at least as long as it is known to have been."""
    first = numbers(of_length(12))
    async with restored(first) as session:
        await some(session, first, 7)
        states = saved(session)
    changed = numbers(of_length(5))
    async with restored(changed, states) as session:
        with pytest.raises(FailedPreconditionError, match=r"at least 7 items .* now has only 5"):
            await session.run(changed)


def of_length_from_start(length: int) -> Callable[[int], Iterator[int]]:
    """One that can begin at any item; behind its end it gives nothing."""
    return lambda start: iter(range(start, length))


def loader_of_length(length: int) -> Loader:
    """One with a state, which it takes whatever its length is."""
    return Loader(length)


of_any_kind = pytest.mark.parametrize(
    "kind",
    [of_length, lambda length: lambda: of_length_async(length), of_length_from_start, loader_of_length],
    ids=["iterable", "async iterable", "function of start", "loader"],
)


@pytest.mark.parametrize("length", [20, 39, 41])
@pytest.mark.parametrize("options", [{}, {"shuffle": 7}, {"batch": 3}])
@of_any_kind
async def test_a_change_of_length_is_seen_where_the_rest_of_an_epoch_is_done(
    kind: Callable[[int], Any], options: dict[str, Any], length: int
) -> None:
    """D3: an epoch of which something is given again is read to its end, to see that this is where it was."""
    first = numbers(kind(40), repeat=3, **options)
    async with restored(first) as session:
        await some(session, first, 2)
        await fail(session, first)
        await some(session, first, 40 // options.get("batch", 1))
        states = saved(session)
    same = numbers(kind(40), repeat=3, **options)
    async with restored(same, states) as session:
        assert session.source_state(same).position == 2 * options.get("batch", 1)
        await rest(session, same)
        assert session.source_state(same).position == 120
    changed = numbers(kind(length), repeat=3, **options)
    async with restored(changed, states) as session:
        for _ in range(2):
            with pytest.raises(
                FailedPreconditionError, match=r"'numbers' have changed: epoch \d had .*40 items"
            ):
                await rest(session, changed)


@pytest.mark.parametrize("length", [1, 9, 16])
@of_any_kind
async def test_an_iterable_that_begins_past_its_end_is_refused(
    kind: Callable[[int], Any], length: int
) -> None:
    """D3: what gives nothing behind the items that are done must have those; it is not taken for the end."""
    first = numbers(kind(40))
    async with restored(first) as session:
        await some(session, first, 17)
        states = saved(session)
    changed = numbers(kind(length))
    async with restored(changed, states) as session:
        for _ in range(2):
            with pytest.raises(FailedPreconditionError, match=r"at least 17 items .* (only|at most) \d+"):
                await session.run(changed)


@pytest.mark.parametrize("shard", [None, (0, 3), (1, 3), (2, 3)])
@pytest.mark.parametrize("length", [17, 33])
@of_any_kind
async def test_an_iterable_that_is_as_long_as_what_is_done_has_ended(
    kind: Callable[[int], Any], length: int, shard: tuple[int, int] | None
) -> None:
    """D3, D5: where all is done, but nobody has met the end yet, the next life meets it."""
    first = numbers(kind(length), shard=shard)
    index, count = shard or (0, 1)
    async with restored(first) as session:
        await some(session, first, len(range(index, length, count)))
        states = saved(session)
    again = numbers(kind(length), shard=shard)
    async with restored(again, states) as session:
        assert await rest(session, again) == []


async def test_a_function_of_start_that_gives_nothing_is_asked_for_the_item_before() -> None:
    """D3: only then is it seen whether the items end there, or have become fewer."""
    asked: list[int] = []

    def read(start: int) -> Iterator[int]:
        asked.append(start)
        return iter(range(start, 12))

    first = numbers(read)
    async with restored(first) as session:
        await some(session, first, 12)
        states = saved(session)
    asked.clear()
    again = numbers(read)
    async with restored(again, states) as session:
        assert await rest(session, again) == []
    assert asked == [12, 11]


async def test_a_sequence_cannot_become_an_iterable_nor_the_reverse() -> None:
    """D3: what a state says of a sequence says nothing of an iterable; the error says which it was."""
    for before, now, message in (
        (range(12), of_length(12), "were a sequence"),
        (of_length(12), range(12), "were no sequence"),
    ):
        first = numbers(before)
        async with restored(first) as session:
            await session.run(first)
            states = saved(session)
        changed = numbers(now)
        async with restored(changed, states) as session:
            with pytest.raises(FailedPreconditionError, match=message):
                await session.run(changed)


@pytest.mark.parametrize("damage", [{"position": None}, {"finished": [[1]]}, {"settings": {}}, {"items": 3}])
@pytest.mark.parametrize("items", [range(12), of_length(12)])
async def test_a_damaged_state_is_told_as_such(items: Any, damage: dict[str, Any]) -> None:
    """K3: what is no state of a source is DataLossError, and nothing is given."""
    number = numbers(items)
    async with restored(number) as session:
        await session.run(number)
        states = saved(session)
    states["numbers"].update(damage)
    again = numbers(items)
    async with restored(again, states) as session:
        with pytest.raises(DataLossError, match="numbers"):
            await session.run(again)


# Where reading begins


async def test_a_function_of_start_is_told_how_many_items_to_leave_out() -> None:
    """D3: nothing is read that is done; `start` counts the items of the epoch, before they are sharded."""
    asked: list[int] = []

    def read(start: int = 0) -> Iterator[int]:
        asked.append(start)
        return iter(range(start, 12))

    first = numbers(read, repeat=2, shard=(1, 2))
    async with restored(first) as session:
        assert await some(session, first, 8) == [1, 3, 5, 7, 9, 11, 1, 3]
        states = saved(session)
    asked.clear()
    again = numbers(read, repeat=2, shard=(1, 2))
    async with restored(again, states) as session:
        assert await rest(session, again) == [5, 7, 9, 11]
    assert asked == [5]


async def test_a_function_of_start_begins_behind_a_long_gap() -> None:
    """D3: items that are done behind one that is not are left out, too, if there are many."""
    asked: list[int] = []

    def read(*, start: int) -> Iterator[int]:
        asked.append(start)
        return iter(range(start, 1_000))

    first = numbers(read)
    async with restored(first) as session:
        await fail(session, first)
        await some(session, first, 900)
        states = saved(session)
    asked.clear()
    again = numbers(read)
    async with restored(again, states) as session:
        assert await some(session, again, 2) == [0, 901]
    assert asked == [0, 901]


class Loader:
    """An iterable with a state of its own, as torchdata's StatefulDataLoader: it goes on from what it was given."""

    def __init__(self, length: int = 1_000) -> None:
        self.length = length
        self.read: list[int] = []
        self.given = 0
        self.loaded: int | None = None

    def __iter__(self) -> Iterator[int]:
        self.given = self.loaded or 0
        self.loaded = None
        return self._rest()

    def _rest(self) -> Iterator[int]:
        while self.given < self.length:
            self.given += 1
            self.read.append(self.given - 1)
            yield self.given - 1

    def state_dict(self) -> dict[str, int]:
        return {"given": self.given}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.loaded = state["given"]


async def test_an_iterable_with_a_state_goes_on_from_it() -> None:
    """D3: of an iterable with `state_dict` and `load_state_dict` a restore reads a few items again, not all."""
    first = numbers(Loader())
    async with restored(first) as session:
        await some(session, first, 500)
        states = saved(session)
    loader = Loader()
    again = numbers(loader)
    async with restored(again, states) as session:
        assert await session.run(again) == 500
    assert len(loader.read) <= 20


async def test_an_iterable_with_a_state_is_not_read_through_behind_a_poison_item() -> None:
    """D1, D3: one item that was parked long ago does not make a restore read all that was done since."""
    first = numbers(Loader())
    async with restored(first) as session:
        await fail(session, first)
        await some(session, first, 900)
        states = saved(session)
    loader = Loader()
    again = numbers(loader)
    async with restored(again, states) as session:
        assert await some(session, again, 2) == [0, 901]
    assert len(loader.read) <= 150


async def test_the_state_of_a_loader_is_the_one_it_had() -> None:
    """D3: a state that the iterable goes on changing is kept as it was."""

    class Changing(Loader):
        def __init__(self) -> None:
            super().__init__()
            self.state = {"given": 0}

        def state_dict(self) -> dict[str, int]:
            self.state["given"] = self.given
            return self.state

    first = numbers(Changing())
    async with restored(first) as session:
        await some(session, first, 40)
        states = session.store.source_states()
        await some(session, first, 40)
    again = numbers(Changing())
    async with restored(again, states) as session:
        assert await session.run(again) == 40


async def test_an_iterator_with_a_state_can_begin_again() -> None:
    """D3: an iterator is refused because it can be gone through only once; with a state it can be repeated."""

    class Once:
        def __init__(self) -> None:
            self.next = 0

        def __iter__(self) -> Once:
            return self

        def __next__(self) -> int:
            if self.next == 3:
                raise StopIteration
            self.next += 1
            return self.next - 1

        def get_state(self) -> int:
            return self.next

        def set_state(self, state: int) -> None:
            self.next = state

    number = numbers(Once(), repeat=2)
    for _ in range(2):
        async with restored(number) as session:
            assert await rest(session, number) == [0, 1, 2, 0, 1, 2]


async def test_of_two_sessions_that_share_a_loader_only_the_later_one_reads_it() -> None:
    """D1: an object with a state cannot be read by two sessions; the one that loses it is told what to do."""
    number = numbers(Loader())
    async with restored(number) as one, restored(number) as other:
        assert await some(one, number, 2) == [0, 1]
        assert await some(other, number, 3) == [0, 1, 2]
        with pytest.raises(FailedPreconditionError, match=r"another session .* give a function"):
            await one.run(number)
        assert await other.run(number) == 3


async def test_a_loader_that_lost_its_state_is_read_from_the_beginning() -> None:
    """D3: if the items have no state any more, what is done is skipped by reading it."""

    class Pages:
        def __iter__(self) -> Iterator[int]:
            return Loader(100)._rest()

    class StatefulPages:
        def __iter__(self) -> Any:
            loader = Loader(100)

            class Pages:
                get_state, set_state = loader.state_dict, loader.load_state_dict
                items = iter(loader)

                def __iter__(self) -> Pages:
                    return self

                def __next__(self) -> int:
                    return next(self.items)

            return Pages()

    first = numbers(StatefulPages())
    async with restored(first) as session:
        await some(session, first, 30)
        states = saved(session)
    again = numbers(Pages())
    async with restored(again, states) as session:
        assert await session.run(again) == 30


# Recovery


@pytest.mark.parametrize("prefetch", [0, 3])
@pytest.mark.parametrize("make", [lambda: range(12), lambda: of_length(12), lambda: Loader(12)])
async def test_a_recovery_goes_on_at_the_checkpoint(make: Callable[[], Any], prefetch: int) -> None:
    """D1, V2: the next incarnation begins where its checkpoint was made; the readers of the last are closed."""
    done: list[int] = []
    failures = [5, 9]
    number = numbers(make(), prefetch=prefetch)

    class Restoring(SessionCreator):
        def __init__(self) -> None:
            self.graph = number.graph
            self.states: States = {}

        async def create_session(self) -> Session:
            session = Session(self.graph)
            session.store.restored_sources = self.states
            return session

    creator = Restoring()

    @op
    async def check(item: int) -> int:
        if item in failures:
            failures.remove(item)
            raise AbortedError(str(item))
        return item

    with number.graph:
        checked = check(number)

    async def step(ctx: StepContext) -> None:
        done.append(await ctx.run_with_hooks(checked))
        if len(done) in (3, 8):
            creator.states = saved(ctx.session)

    recovery = Recovery(restore="always", wait_initial=0.0, jitter=0.0)
    async with MonitoredSession(creator, recovery=recovery) as session:
        await session.loop(step)
    assert session.recoveries == 2
    assert done == [0, 1, 2, 3, 4, 3, 4, 5, 6, 7, 8, 6, 7, 8, 9, 10, 11]
