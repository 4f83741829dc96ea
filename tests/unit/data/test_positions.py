"""Finished positions as a low-water mark and ranges, against a plain set."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given, strategies as st

from asyncstep.data.positions import Positions

spans = st.lists(st.tuples(st.integers(0, 30), st.integers(1, 5)), max_size=20)


@given(spans=spans)
def test_positions_are_the_set_of_what_was_finished(spans: list[tuple[int, int]]) -> None:
    """D2: in whatever order and however often positions are finished, the mark and the ranges are the set of them."""
    positions, model = Positions(), set[int]()
    for start, length in spans:
        positions.finish(start, start + length)
        model.update(range(start, start + length))
    held = {*range(positions.low), *(each for span in positions.ranges for each in range(*span))}
    assert held == model
    assert positions.low not in model
    edges = [positions.low, *(edge for span in positions.ranges for edge in span)]
    assert all(before < after for before, after in pairwise(edges))


@given(spans=spans, position=st.integers(0, 40))
def test_the_first_open_position_is_the_next_that_is_not_finished(
    spans: list[tuple[int, int]], position: int
) -> None:
    """`first_open` goes over what is finished, and `end` is behind all of it."""
    positions = Positions()
    for start, length in spans:
        positions.finish(start, start + length)
    finished = {each for start, length in spans for each in range(start, start + length)}
    assert positions.first_open(position) == next(
        each for each in range(position, 99) if each not in finished
    )
    assert positions.first_open(positions.end) == positions.end


@given(spans=spans)
def test_positions_are_made_again_from_their_mark_and_ranges(spans: list[tuple[int, int]]) -> None:
    """D2: a checkpoint keeps the low-water mark and the ranges above it, and that is enough."""
    positions = Positions()
    for start, length in spans:
        positions.finish(start, start + length)
    again = Positions(positions.low, positions.ranges)
    assert (again.low, again.ranges) == (positions.low, positions.ranges)


def test_positions_finished_in_order_cost_nothing() -> None:
    """L9: the mark moves, and no range stays behind it."""
    positions = Positions()
    for position in [*range(1, 100), 0, *range(100, 200)]:
        positions.finish(position, position + 1)
    assert (positions.low, positions.ranges) == (200, [])
