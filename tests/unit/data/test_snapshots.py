"""Which states of an iterable are kept."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given, strategies as st

from asyncstep.data.snapshots import MOST, Snapshot, Snapshots

places = st.tuples(st.integers(0, 3), st.integers(0, 9))


def kept(*taken: tuple[int, int]) -> Snapshots:
    """Snapshots of these places, in turn, whose states name them."""
    snapshots = Snapshots()
    for epoch, index in taken:
        snapshots.add(Snapshot(epoch, index, f"{epoch}/{index}"))
    return snapshots


@given(taken=st.lists(places, max_size=15).map(sorted), wanted=places)
def test_the_nearest_snapshot_is_the_last_at_or_before_a_place(
    taken: list[tuple[int, int]], wanted: tuple[int, int]
) -> None:
    """A restore loads the newest state that is not beyond the wanted item."""
    nearest = kept(*taken).nearest(*wanted)
    before = [place for place in taken if place <= wanted]
    assert (nearest and nearest.place) == (before[-1] if before else None)


@given(taken=st.lists(places, max_size=15).map(sorted), low=places)
def test_what_is_forgotten_is_needed_no_more(taken: list[tuple[int, int]], low: tuple[int, int]) -> None:
    """Of the snapshots below the low-water mark only the newest is kept, and none above is lost."""
    snapshots = kept(*taken)
    before = [snapshots.nearest(*place) for place in sorted({*taken, low}) if place >= low]
    snapshots.forget(*low)
    assert [snapshots.nearest(*place) for place in sorted({*taken, low}) if place >= low] == before
    assert sum((epoch, index) <= low for epoch, index, _ in snapshots.state()) <= 1


def test_a_place_that_is_passed_again_is_not_kept_twice() -> None:
    """An iterable that was opened again gives the same states again; the order of places stays."""
    snapshots = kept((0, 0), (0, 16), (0, 32), (0, 16), (0, 32), (1, 0))
    assert snapshots.state() == [[0, 0, "0/0"], [0, 16, "0/16"], [0, 32, "0/32"], [1, 0, "1/0"]]
    assert Snapshots(snapshots.state()).state() == snapshots.state()


def test_there_are_never_many_snapshots() -> None:
    """L9: however long the low-water mark stays, few are kept: the first, and the closer the newer."""
    snapshots = kept(*((0, index) for index in range(0, 16_000, 16)))
    places = [index for _, index, _ in snapshots.state()]
    assert len(places) <= MOST
    assert (places[0], places[-1]) == (0, 15_984)
    gaps = [after - before for before, after in pairwise(places[1:])]
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[-1] <= 64
