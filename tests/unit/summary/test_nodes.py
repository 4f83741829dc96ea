"""scalar, histogram, text and image as nodes of a graph, and merge_all."""

from __future__ import annotations

import sys
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from asyncstep import Graph, Node, Session, op
from asyncstep.errors import InvalidArgumentError, InvalidTypeError
from asyncstep.summary import Histogram, Image, Scalar, Text, histogram, image, merge_all, scalar, text
from asyncstep.summary.values import number, summaries_of

pytestmark = pytest.mark.anyio

MAKERS: list[Callable[..., Node[Any]]] = [scalar, histogram, text, image]


def constant(value: Any, name: str = "constant") -> Node[Any]:
    """A node of that value."""

    @op(name=name)
    async def constant() -> Any:
        return value

    return constant()


async def test_their_values_are_summaries() -> None:
    """Fetched like any node, each gives a small frozen value under its tag."""
    with Graph() as graph:
        loss = scalar("loss", constant(np.float32(0.5)))
        words = text("words", constant("many *words*"))
        weights = histogram("weights", constant(np.arange(4.0)), bins=2)
        face = image("face", constant(np.zeros((2, 3), np.uint8)))
    async with Session(graph) as session:
        values = await session.run([loss, words, weights, face])
    assert values[:2] == [Scalar("loss", 0.5), Text("words", "many *words*")]
    assert values[2] == Histogram("weights", 0.0, 3.0, 4.0, 6.0, 14.0, (1.5, 3.0), (2.0, 2.0))
    assert isinstance(values[3], Image)
    assert (values[3].tag, values[3].width, values[3].height, values[3].channels) == ("face", 3, 2, 1)


async def test_a_summary_is_in_its_nodes_graph_under_a_free_name() -> None:
    """The tag stays what it is where a node has the name already; outside of the graph's block it joins it, too."""
    with Graph() as graph:
        loss = constant(1, "loss")
    summary = scalar("loss", loss)
    assert (summary.graph, summary.name) == (graph, "loss_1")
    async with Session(graph) as session:
        assert await session.run("loss_1") == Scalar("loss", 1.0)


def test_merge_all() -> None:
    """All of a graph, in the order in which they were made; None if there are none; the default graph's by default."""
    with Graph() as graph:
        assert merge_all() is None
        one = constant(1)
        made = [scalar("b", one), text("a", one), histogram("c", one), image("d", one)]
        constant(2)
        assert merge_all() == tuple(made)
    assert merge_all(graph) == tuple(made)
    assert merge_all(Graph()) is None


@pytest.mark.parametrize("make", MAKERS)
def test_a_tag_is_used_once(make: Callable[..., Node[Any]]) -> None:
    """Two summaries of one tag in a graph could not be told apart: a ValueError that names the other."""
    with Graph("g"):
        loss = constant(1, "loss")
        scalar("loss", loss)
        with pytest.raises(
            InvalidArgumentError, match="the graph 'g' has a summary of the name 'loss', 'loss_1'"
        ):
            make("loss", loss)


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize(
    ("name", "node", "problem"),
    [
        ("", None, "non-empty string"),
        (3, None, "non-empty string"),
        ("loss", 0.5, "takes a node, not a float"),
    ],
)
def test_types_are_checked(make: Callable[..., Node[Any]], name: Any, node: Any, problem: str) -> None:
    """A name that is none, and something else than a node, are a TypeError before anything runs."""
    with Graph(), pytest.raises(InvalidTypeError, match=problem):
        make(name, constant(1) if node is None else node)


def test_merge_all_takes_a_graph() -> None:
    """Something else is a TypeError."""
    with pytest.raises(InvalidTypeError, match="merge_all takes a Graph, not a str"):
        merge_all("graph")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("make", "value", "problem"),
    [
        (scalar, [1, 2], r"summary.scalar\('x'\) needs a number, got a list"),
        (scalar, "one", r"summary.scalar\('x'\) needs a number, got a str"),
        (scalar, 10**400, r"summary.scalar\('x'\) needs a number, got an int"),
        (text, 3, r"summary.text\('x'\) needs a string, got an int"),
        (histogram, ["a"], "the histogram 'x' needs an array of real numbers"),
        (image, np.zeros(3), "the image 'x' needs the shape"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
async def test_a_value_of_another_kind_is_an_error_of_the_run(
    make: Callable[..., Node[Any]], value: Any, problem: str
) -> None:
    """The error names the summary and what it was given."""
    with Graph() as graph:
        summary = make("x", constant(value))
    async with Session(graph) as session:
        with pytest.raises(InvalidArgumentError, match=problem):
            await session.run(summary)


@pytest.mark.parametrize("make", [histogram, image])
def test_without_numpy_the_extra_is_named(
    make: Callable[..., Node[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where numpy is missing, an ImportError at construction says what to install."""
    monkeypatch.setitem(sys.modules, "numpy", None)
    with (
        Graph() as graph,
        pytest.raises(ImportError, match=rf"summary.{make.__name__} needs numpy.*asyncstep\[numpy\]"),
    ):
        make("x", constant(1))
    assert merge_all(graph) is None


@pytest.mark.parametrize("bins", [0, "auto"])
def test_bins_are_checked(bins: Any) -> None:
    """Before anything runs."""
    with Graph(), pytest.raises(ValueError, match=r"summary\.histogram: bins must be"):
        histogram("x", constant(1), bins=bins)


@pytest.mark.parametrize(
    "value",
    [3, 3.0, np.float32(3), np.int8(3), np.array(3), np.array(3, np.uint8), Fraction(3)],
    ids=lambda value: type(value).__name__,
)
def test_numbers(value: Any) -> None:
    """Python's numbers, and arrays without dimensions."""
    assert number(value) == 3.0


@pytest.mark.parametrize(
    "value", ["3", None, [3], 3j, np.array([3.0]), np.array(3j), np.array("3"), Decimal(3), 10**400], ids=repr
)
def test_no_numbers(value: Any) -> None:
    """Everything else, and a number that no float can hold."""
    assert number(value) is None


def test_summaries_of_a_value() -> None:
    """Numbers and strings under the tag of the fetch, keys of mappings added to it; summaries as they are."""
    loss, words = Scalar("loss", 1.0), Text("words", "a")
    value = {"a": 1, "b": {"c": "text"}, "d": [loss, (words,)], "e": loss, "f": []}
    assert list(summaries_of("Hook", "x", value)) == [
        Scalar("x/a", 1.0),
        Text("x/b/c", "text"),
        loss,
        words,
        loss,
    ]


@pytest.mark.parametrize(
    ("value", "described"),
    [
        (np.zeros((2, 3)), r"a ndarray of shape \(2, 3\)"),
        ([1, 2], r"a list \(\[1, 2\]\)"),
        (None, r"a NoneType \(None\)"),
    ],
    ids=["array", "list", "None"],
)
def test_what_is_no_summary(value: Any, described: str) -> None:
    """A TypeError that names who wanted it, the fetch, and what it was, and says what to fetch instead."""
    with pytest.raises(
        InvalidTypeError, match=f"Hook: the value of 'x/a' is {described}.*asyncstep.summary.scalar"
    ):
        list(summaries_of("Hook", "x", {"a": value}))
