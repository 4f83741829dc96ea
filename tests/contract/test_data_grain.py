"""Contract D1 to D3: sources over datasets of grain, through checkpoints on disk."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from asyncstep import ChiefSessionCreator, Graph, MonitoredSession, OutOfRangeError, op, source
from asyncstep.checkpoint import Saver
from asyncstep.data import Source

grain = pytest.importorskip("grain", reason="grain is not installed: it is the extra asyncstep[grain]")
np = pytest.importorskip("numpy")

pytestmark = pytest.mark.anyio


def shuffled() -> Any:
    """A map dataset."""
    return grain.MapDataset.range(40).shuffle(seed=3).map(lambda number: number * 2)


def filtered() -> Any:
    """A map dataset that has fewer items than its length says."""
    return shuffled().filter(lambda number: number % 3 == 0)


def batched() -> Any:
    """One that gives arrays."""
    return shuffled().repeat(2).batch(3)


def mixed() -> Any:
    """Two in one."""
    return grain.MapDataset.mix([shuffled(), grain.MapDataset.range(1_000, 1_040)], [1, 2])


def iterable() -> Any:
    """An iter dataset, which knows no length and no index."""
    return shuffled().to_iter_dataset().filter(lambda number: number % 3 == 0).batch(2)


def windows() -> Any:
    """One whose state is nested."""
    return grain.experimental.WindowShuffleIterDataset(shuffled().to_iter_dataset(), window_size=20, seed=4)


def packed() -> Any:
    """One that keeps parts of several items."""
    return grain.experimental.FirstFitPackIterDataset(
        grain.MapDataset.range(40).map(lambda number: {"x": np.arange(number % 7 + 1)}).to_iter_dataset(),
        length_struct={"x": 16},
        num_packing_bins=4,
    )


def loader() -> Any:
    """A data loader, whose state is bytes."""
    sampler = grain.samplers.IndexSampler(
        100, grain.sharding.NoSharding(), seed=1, shuffle=True, num_epochs=1
    )
    return grain.DataLoader(data_source=list(range(40)), sampler=sampler, worker_count=0)


def function() -> Any:
    """A function that makes one."""
    return shuffled


def iterator() -> Any:
    """An iterator, which can be gone through again because it has a state."""
    return iter(shuffled())


KINDS = [shuffled, filtered, batched, mixed, iterable, windows, packed, loader, function, iterator]


def plain(item: Any) -> Any:
    """An item without arrays, so that it can be compared."""
    if isinstance(item, dict):
        return {key: plain(value) for key, value in item.items()}
    return np.asarray(item).tolist()


def directly(make: Callable[[], Any]) -> list[Any]:
    """What grain itself gives."""
    items = make()
    return [plain(item) for item in (items() if callable(items) else items)]


def numbers(items: Any, **options: Any) -> Source[Any]:
    """A source of a dataset, in a graph of its own, as each process makes it anew."""
    with Graph():
        return source(items, name="numbers", **options)


def session_in(directory: Path, number: Source[Any]) -> MonitoredSession:
    """A session that goes on from the newest checkpoint."""
    return MonitoredSession(ChiefSessionCreator(graph=number.graph, checkpoint_dir=directory))


async def take(session: MonitoredSession, fetch: Any, most: int) -> list[Any]:
    """What so many steps are given; fewer, if the data ends."""
    items: list[Any] = []
    while len(items) < most:
        try:
            items.append(plain(await session.run_without_hooks(fetch)))
        except OutOfRangeError:
            break
    return items


@pytest.mark.parametrize("make", KINDS)
@pytest.mark.parametrize("prefetch", [0, 3])
async def test_a_dataset_goes_on_from_a_checkpoint(
    make: Callable[[], Any], prefetch: int, tmp_path: Path
) -> None:
    """D3, K4: in however many lives it is read, for however many epochs, a dataset gives what grain gives."""
    expected = directly(make) * 2
    given: list[Any] = []
    while len(given) < len(expected):
        number = numbers(make(), prefetch=prefetch, repeat=2)
        async with session_in(tmp_path, number) as session:
            given += await take(session, number, len(expected) // 4 + 1)
            await Saver().save(session, tmp_path)
    assert given == expected
    number = numbers(make(), prefetch=prefetch, repeat=2)
    async with session_in(tmp_path, number) as session:
        assert await take(session, number, 1) == []


@pytest.mark.parametrize("make", [shuffled, iterable, loader])
async def test_an_item_that_was_not_done_is_given_first(make: Callable[[], Any], tmp_path: Path) -> None:
    """D1: an item that a failing step was given is given again after the restore, and those after it are not."""
    expected = directly(make)
    number = numbers(make())

    async def poison(_: object) -> None:
        raise ValueError("boom")

    with number.graph:
        node = op(poison)(number)
    async with session_in(tmp_path, number) as session:
        assert await take(session, number, 2) == expected[:2]
        with pytest.raises(ValueError, match="boom"):
            await session.run(node)
        assert await take(session, number, 8) == expected[3:11]
        await Saver().save(session, tmp_path)
    number = numbers(make())
    async with session_in(tmp_path, number) as session:
        assert session.source_state(number).position == 2
        assert await take(session, number, 1_000) == [expected[2], *expected[11:]]


async def test_few_items_are_read_again(tmp_path: Path) -> None:
    """D3: a restore goes to where grain was, and does not read all that is done."""
    read: list[int] = []

    def note(number: int) -> int:
        read.append(number)
        return number

    def dataset() -> Any:
        options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)
        return grain.MapDataset.range(1_000).map(note).to_iter_dataset(options)

    number = numbers(dataset())
    async with session_in(tmp_path, number) as session:
        assert await take(session, number, 900) == list(range(900))
        await Saver().save(session, tmp_path)
    read.clear()
    number = numbers(dataset())
    async with session_in(tmp_path, number) as session:
        assert await take(session, number, 1) == [900]
    assert len(read) <= 40


async def test_the_threads_of_an_iterator_end_with_the_session() -> None:
    """L6: what grain reads with ends when the epoch, or the session, does."""
    iterators: list[Any] = []

    class Kept:
        def __iter__(self) -> Any:
            iterators.append(iter(shuffled()))
            return iterators[-1]

    before = set(threading.enumerate())
    number = numbers(Kept(), repeat=2, prefetch=4)
    with number.graph:
        async with MonitoredSession() as session:
            await take(session, number, 60)
            assert len(iterators) == 2
    for thread in set(threading.enumerate()) - before:
        if thread.name.startswith("grain"):
            thread.join(10)
            assert not thread.is_alive()
    for each in iterators:
        with pytest.raises(ValueError, match="closed"):
            next(each)
