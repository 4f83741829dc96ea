"""What a source takes for its items, when the node is made."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from asyncstep import Graph, source
from asyncstep.errors import InvalidArgumentError, InvalidTypeError


def begin(first: int) -> Iterator[int]:
    """A function with a parameter that nobody gives."""
    return iter([first])


@pytest.mark.parametrize(
    ("items", "message"),
    [
        (begin, r"called without arguments, or with `start`.* signature is \(first: '?int'?\)"),
        (lambda start, first: [], r"signature is \(start, first\)"),
        (lambda start, /: [], r"signature is \(start, /\)"),
    ],
)
def test_a_function_that_cannot_be_called_is_refused(items: Callable[..., Any], message: str) -> None:
    """The error says how it would be called, and what it takes."""
    with Graph() as graph, pytest.raises(InvalidTypeError, match=message):
        source(items, name="letters")
    assert not graph.nodes


def test_a_full_shuffle_needs_a_sequence() -> None:
    """Nobody can permute what is read one after the other; the error says what there is instead."""
    with (
        Graph() as graph,
        pytest.raises(InvalidArgumentError, match=r"'letters' needs a sequence.*shuffle=1000"),
    ):
        source(lambda: iter("abc"), name="letters", shuffle=True)
    assert not graph.nodes


def test_a_function_that_does_not_tell_what_it_takes_is_taken() -> None:
    """Some builtins have no signature."""
    with Graph() as graph:
        source(dict, name="letters")
    assert list(graph.sources) == ["letters"]
