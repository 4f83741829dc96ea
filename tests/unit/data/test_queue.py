"""What a queue makes of wrong arguments, and how it is drawn; what it does is in tests/contract."""

from __future__ import annotations

import pytest

from asyncstep import Graph, placeholder
from asyncstep.data import queue


def test_arguments_are_checked_when_the_queue_is_made() -> None:
    """R6: what cannot work is refused at once, and the message names the queue."""
    with Graph():
        for initial in ("urls", {"a"}, {"a": 1}, 3, placeholder("node")):
            with pytest.raises(TypeError, match="first items of the queue 'q' must be a list"):
                queue(initial, name="q")  # type: ignore[call-overload]
        for batch in (0, -1, True, 1.5):
            with pytest.raises(ValueError, match="batch of the queue 'q' must be at least 1"):
                queue([], name="q", batch=batch)
        with pytest.raises(TypeError, match="unique of the queue 'q' must be True, False, or a function"):
            queue([], name="q", unique="url")  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="cannot tell whether it had a list before"):
            queue([[1]], name="q", unique=True)
        frontier = queue([], name="q")
    with Graph():
        foreign = placeholder("foreign")
    with pytest.raises(ValueError, match="the queue 'q' is in the graph, but 'foreign' is in the graph"):
        frontier.put(foreign)


def test_a_picture_shows_what_feeds_a_queue() -> None:
    """A put points to its queue by the arrow of writes."""
    with Graph() as graph:
        frontier = queue([0], name="frontier")
        frontier.put([1])
        frontier.size()
    picture = graph.to_mermaid()
    assert '>"frontier"]' in picture
    assert "n1 ==> n0" in picture
    assert "n2 ==> n0" in picture
