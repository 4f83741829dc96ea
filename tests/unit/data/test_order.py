"""The order of items: permutations that are the same everywhere, and what shards and windows make of them."""

from __future__ import annotations

from collections import Counter
from itertools import permutations

import pytest
from hypothesis import given, strategies as st

from asyncstep.data.order import Permutation, SequenceOrder, Windows, shard_size


def numbers(order: Permutation) -> list[int]:
    """All numbers of a permutation, in their order."""
    return [order[index] for index in range(len(order))]


def test_a_permutation_is_the_same_on_every_machine() -> None:
    """The order of a key never changes: these numbers hold for every version of Python and of asyncstep."""
    assert numbers(Permutation(10, 0, 0, 0)) == [7, 9, 5, 6, 3, 8, 0, 4, 2, 1]


def test_the_numbers_of_a_long_permutation_can_be_jumped_to() -> None:
    """Any number of a permutation of any length is there at once."""
    order = Permutation(10**15, -7, 3)
    assert [order[index] for index in (0, 1, 10**9, 10**15 - 1)] == [
        689252149910746,
        702730993635153,
        858742992870105,
        470154715816164,
    ]


@given(length=st.integers(1, 300), seed=st.integers(), epoch=st.integers(0, 5))
def test_a_permutation_has_every_number_once(length: int, seed: int, epoch: int) -> None:
    """A permutation of n numbers is a bijection of range(n), for any key."""
    order = Permutation(length, seed, epoch)
    assert sorted(numbers(order)) == list(range(length))


def test_no_order_is_more_likely_than_another() -> None:
    """Over many keys each of the 24 orders of 4 items comes about equally often, and no item has a favourite place."""
    orders = Counter(tuple(numbers(Permutation(4, seed))) for seed in range(4_800))
    assert set(orders) == set(permutations(range(4)))
    assert all(150 < count < 250 for count in orders.values())
    first = Counter(Permutation(20, 1, epoch)[0] for epoch in range(4_000))
    assert all(140 < first[number] < 260 for number in range(20))


@pytest.mark.parametrize("index", [-1, 5])
def test_a_permutation_has_no_other_numbers(index: int) -> None:
    """A place outside of the permutation is an IndexError, so that iterating over it ends."""
    with pytest.raises(IndexError, match="5 numbers"):
        Permutation(5, 1)[index]


@given(
    length=st.integers(0, 60),
    count=st.integers(1, 5),
    window=st.none() | st.integers(1, 70),
    epoch=st.integers(0, 3),
)
def test_shards_are_disjoint_and_cover_everything(
    length: int, count: int, window: int | None, epoch: int
) -> None:
    """The shards of a sequence have each item in exactly one of them, and are as equal as can be."""
    windows = None if window is None else Windows(window, seed=3)
    shards = [SequenceOrder(length, windows, (index, count)) for index in range(count)]
    items = [[shard.index(epoch, number) for number in range(shard.size)] for shard in shards]
    assert sorted(item for each in items for item in each) == list(range(length))
    assert max(map(len, items)) - min(map(len, items)) <= 1


def test_an_item_stays_in_its_window() -> None:
    """A shuffle by windows permutes each window of so many items, the short last one too, and nothing else."""
    order = SequenceOrder(10, Windows(4, seed=1), (0, 1))
    items = [order.index(0, number) for number in range(10)]
    assert [sorted(items[start : start + 4]) for start in (0, 4, 8)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert items != sorted(items)


def test_epochs_seeds_and_windows_have_orders_of_their_own() -> None:
    """Another epoch, another seed and another window are other permutations."""
    keys = [(seed, epoch, number) for seed in (0, 1, -1) for epoch in (0, 1) for number in (0, 1)]
    orders = {
        tuple(numbers(Windows(30, seed).permutation(epoch, number, 30))) for seed, epoch, number in keys
    }
    assert len(orders) == len(keys)


def test_the_shards_of_a_shuffled_sequence_change_with_the_epoch() -> None:
    """With a shuffle, a shard gets other items in another epoch; without one the same."""
    for windows, kinds in ((Windows(40, seed=0), 2), (None, 1)):
        order = SequenceOrder(40, windows, (1, 4))
        assert (
            len({frozenset(order.index(epoch, number) for number in range(10)) for epoch in (0, 1)}) == kinds
        )


@given(length=st.integers(0, 100), count=st.integers(1, 9))
def test_the_size_of_a_shard_is_the_number_of_its_items(length: int, count: int) -> None:
    """`shard_size` counts every `count`-th of the items, from the shard's own index on."""
    for index in range(count):
        assert shard_size(length, (index, count)) == len(range(index, length, count))
