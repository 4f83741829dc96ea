"""Which items of an iterable are given, at which positions, and how a change of length is seen."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given, strategies as st

from asyncstep.data.course import FAR, Course, proof
from asyncstep.data.epochs import Epochs
from asyncstep.data.order import Permutation, shard_size
from asyncstep.data.positions import Positions
from asyncstep.data.settings import Settings, checked_settings
from asyncstep.data.stream import END_OF_DATA, END_OF_EPOCH, Entry
from asyncstep.errors import FailedPreconditionError


def with_settings(
    repeat: int | None = 1, shuffle: int | None = None, shard: tuple[int, int] | None = None
) -> Settings:
    """Settings of a source, of those that a course looks at."""
    return checked_settings(
        "letters",
        batch=None,
        drop_remainder=False,
        prefetch=0,
        shuffle=shuffle,
        seed=5,
        repeat=repeat,
        shard=shard,
    )


def ended(lengths: Iterable[int]) -> Epochs:
    """Epochs of these lengths are known to have ended."""
    epochs = Epochs()
    for length in lengths:
        epochs.end(length)
    return epochs


def finished(positions: Iterable[int]) -> Positions:
    """These positions are finished."""
    return Positions(0, [(position, position + 1) for position in positions])


def read(course: Course, lengths: list[int], *, starts: bool) -> list[Entry]:
    """What is given when each epoch has so many items, which are (epoch, index).

    Args:
        starts: whether an iterator can begin at any item; else each begins at the first of its epoch.
    """
    opened = False
    while not course.over:
        if not opened or course.far:
            index = (course.proof if course.doubtful else course.target) if starts else 0
            if not opened or (course.reading, course.index) < (course.epoch, index):
                course.opened(course.epoch, index)
            course.far = False
            opened = True
        if course.index < lengths[course.reading]:
            course.accept((course.reading, course.index))
        else:
            opened = course.end() and not starts
            if opened:
                course.opened(course.reading, 0)
    return course.out


def expected(lengths: list[int], settings: Settings) -> list[Any]:
    """All items of all epochs, in the order of their positions."""
    items: list[Any] = []
    first, count = settings.shard
    for epoch, length in enumerate(lengths):
        numbers = list(range(first, length, count))
        size = int(settings.shuffle or 1)
        for start in range(0, len(numbers), size):
            window = numbers[start : start + size]
            order = Permutation(len(window), settings.seed, epoch, start // size)
            places = [order[at] for at in range(len(window))] if settings.shuffle else range(len(window))
            items += [(epoch, window[place]) for place in places]
    return items


@st.composite
def lives(draw: st.DrawFn) -> tuple[list[int], int, set[int], Settings]:
    """Lengths of epochs, how many of them an earlier life has seen the end of, what it finished, and settings."""
    count = draw(st.integers(1, 3))
    shard = (draw(st.integers(0, count - 1)), count)
    lengths = draw(st.lists(st.integers(count, 9), min_size=1, max_size=4))
    known = draw(st.integers(0, len(lengths) - 1))
    read = sum(shard_size(length, shard) for length in lengths[: known + 1])
    everything = set(range(read))
    some = st.sets(st.integers(0, read - 1))
    all_but_some = st.sets(st.integers(0, read - 1), max_size=2).map(everything.difference)
    done = draw(some | all_but_some)
    return lengths, known, done, with_settings(len(lengths), draw(st.none() | st.integers(1, 4)), shard)


@given(life=lives(), starts=st.booleans())
def test_what_is_not_finished_is_given_in_order(
    life: tuple[list[int], int, set[int], Settings], starts: bool
) -> None:
    """D1, D3: whatever an earlier life has finished, the rest is given at its positions, and then the end."""
    lengths, known, done, settings = life
    epochs = ended(shard_size(length, settings.shard) for length in lengths[:known])
    out = read(Course("letters", settings, finished(done), epochs), lengths, starts=starts)
    items = expected(lengths, settings)
    assert [entry for entry in out if entry[0] >= 0] == [
        (position, items[position]) for position in range(len(items)) if position not in done
    ]
    marks = [entry for entry in out if entry[0] < 0]
    begun = epochs.find(finished(done).low)[0]
    assert [mark for mark, _ in marks] == [END_OF_EPOCH] * (len(lengths) - begun - 1) + [END_OF_DATA]
    assert [length for _, length in marks] == [
        (epoch, shard_size(lengths[epoch], settings.shard)) for epoch in range(begun, len(lengths))
    ]


def test_a_course_whose_epochs_are_all_done_is_over_at_once() -> None:
    """D5: also where `repeat` has become smaller than what was read."""
    course = Course("letters", with_settings(2), finished(range(9)), ended([3, 3, 3]))
    assert course.over
    assert course.out == [(END_OF_DATA, None)]


def test_an_empty_epoch_ends_the_data() -> None:
    """D5: an iterable without items is not read for ever, though it is to be repeated for ever."""
    course = Course("letters", with_settings(None), finished(()), Epochs())
    assert read(course, [0], starts=False) == [(END_OF_DATA, (0, 0))]


def test_an_iterator_that_begins_in_an_earlier_epoch_is_read_on_to_the_wanted_one() -> None:
    """D3: what can go on only from a state that it had gives nothing before the wanted item."""
    course = Course("letters", with_settings(3), finished(range(7)), ended([3, 3]))
    assert (course.epoch, course.target) == (2, 1)
    course.opened(0, 2)
    for epoch, first in ((0, 2), (1, 0)):
        for index in range(first, 3):
            course.accept((epoch, index))
        assert course.end()
    for index in range(3):
        course.accept((2, index))
    assert course.out == [(7, (2, 1)), (8, (2, 2))]


@pytest.mark.parametrize(("gap", "far"), [(FAR - 1, False), (FAR + 1, True)])
def test_a_long_gap_is_worth_opening_anew(gap: int, far: bool) -> None:
    """D3: a few finished items are read and dropped, many are jumped over."""
    course = Course("letters", with_settings(), finished(range(1, 1 + gap)), Epochs())
    course.opened(0, 0)
    course.accept("a")
    assert course.target == gap + 1
    assert course.far is far


@pytest.mark.parametrize(
    ("number", "shard", "index"), [(0, (0, 1), 0), (5, (0, 1), 4), (0, (1, 3), 1), (5, (1, 3), 13)]
)
def test_the_proof_is_the_item_of_the_shard_before(number: int, shard: tuple[int, int], index: int) -> None:
    """D3: it is there if the epoch is as long as it was."""
    assert proof(number, shard) == index


# Another length


@pytest.mark.parametrize("starts", [True, False])
@pytest.mark.parametrize("shard", [(0, 1), (1, 3)])
@pytest.mark.parametrize("shuffle", [None, 4])
@pytest.mark.parametrize("change", [-9, -3, 3])
@pytest.mark.parametrize("left", [{0}, {2, 3}, {9}])
def test_an_epoch_of_another_length_is_refused(
    starts: bool, shard: tuple[int, int], shuffle: int | None, change: int, left: set[int]
) -> None:
    """D3: of an epoch that had ended something is given again, and then it has more items, or fewer."""
    count = shard[1]
    settings = with_settings(2, shuffle, shard)
    course = Course("letters", settings, finished(set(range(13)) - left), ended([10]))
    length = 10 * count + change * count
    with pytest.raises(
        FailedPreconditionError, match=r"'letters' have changed: epoch 0 had 10 items .* now has"
    ):
        read(course, [length, 10 * count], starts=starts)


@pytest.mark.parametrize(("starts", "found"), [(True, "at most 6"), (False, "only 5")])
def test_an_epoch_that_is_shorter_than_what_is_done_is_refused(starts: bool, found: str) -> None:
    """D3: its end was not met before; but so many items as are done there must be."""
    course = Course("letters", with_settings(), finished(range(7)), Epochs())
    with pytest.raises(FailedPreconditionError, match=rf"at least 7 items .* now has {found}"):
        read(course, [5], starts=starts)
    gap = Course("letters", with_settings(), finished([0, 1, 6]), Epochs())
    with pytest.raises(FailedPreconditionError, match=r"at least 7 items .* now has only 5"):
        read(gap, [5], starts=starts)


def test_an_iterator_that_gives_nothing_behind_what_is_done_is_doubted() -> None:
    """D3: it is opened again before an item that has to be there; if that is given, the epoch has ended."""
    course = Course("letters", with_settings(), finished(range(7)), Epochs())
    course.opened(0, 7)
    assert not course.end()
    assert course.doubtful
    assert (course.proof, course.target) == (6, 7)
    course.opened(0, 6)
    assert not course.doubtful
    course.accept("g")
    assert course.end()
    assert course.out == [(END_OF_DATA, (0, 7))]
