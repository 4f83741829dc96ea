"""`to_mermaid`: the picture of a graph, and what a notebook shows of it."""

from __future__ import annotations

import html
import operator
import re
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, strategies as st

from asyncstep import Graph, Node, Variable, group, op, placeholder, source
from asyncstep._graph.draw import LONGEST_NAME, MOST_BOXES
from asyncstep.errors import InvalidArgumentError, InvalidTypeError, NotFoundError

BOX = re.compile(
    r'    (n\d+|rest)(\[\(|\[/|\(\[|\{\{|>|\[)"((?:[^"#`<>&%:\\$]|#\d+;)*)"(\)\]|/\]|\]\)|\}\}|\])'
)
EDGE = re.compile(r"    (n\d+|rest) (-->|-\.->|==>)(?:\|([\d,]+)\|)? (n\d+|rest)")
STYLE = re.compile(r"    classDef ([a-z]+) [a-z-]+:[#\w. ]+(,[a-z-]+:[#\w. ]+)*")
CLASS = re.compile(r"    class ((?:n\d+|rest)(?:,(?:n\d+|rest))*) ([a-z]+)")
COMMENT = re.compile(r"    %% [^\n]*")
SHAPES = {"[": "]", "[(": ")]", "[/": "/]", "([": "])", "{{": "}}", ">": "]"}


@dataclass
class Picture:
    """A flowchart taken apart: labels and classes by box, edges as (from, arrow, to) by label."""

    labels: dict[str, str]
    classes: dict[str, set[str]]
    edges: list[tuple[str, str, str]]
    counts: dict[tuple[str, str, str], int]

    def classes_of(self, label: str) -> set[str]:
        """The classes of the box of that label."""
        [box] = [box for box, other in self.labels.items() if other == label]
        return self.classes[box]


def taken_apart(text: str) -> Picture:
    """The picture that a text means; every line of it is one that Mermaid knows."""
    first, *lines = text.splitlines()
    assert first == "flowchart TD"
    assert text.endswith("\n")
    assert len(text) < 50_000
    picture = Picture({}, {}, [], {})
    styles: set[str] = set()
    for line in lines:
        if box := BOX.fullmatch(line):
            assert SHAPES[box[2]] == box[4]
            assert box[1] not in picture.labels
            picture.labels[box[1]] = html.unescape(re.sub(r"#(\d+);", r"&#\1;", box[3]))
            picture.classes[box[1]] = set()
        elif edge := EDGE.fullmatch(line):
            named = picture.labels[edge[1]], edge[2], picture.labels[edge[4]]
            picture.edges.append(named)
            picture.counts[named] = int((edge[3] or "1").replace(",", ""))
        elif style := STYLE.fullmatch(line):
            styles.add(style[1])
        elif members := CLASS.fullmatch(line):
            assert members[2] in styles
            for each in members[1].split(","):
                picture.classes[each].add(members[2])
        else:
            assert COMMENT.fullmatch(line), line
    assert len(picture.edges) < 500
    return picture


@pytest.fixture
def crawl() -> Graph:
    """A graph with a node of each kind."""
    with Graph("crawl") as graph:
        page = op(name="fetch")(lambda url, agent: url)(source(["a"], name="urls"), placeholder("agent"))
        total = Variable(0, name="words").update(operator.add, op(name="count")(len)(page))
        kept = Variable("", name="last").assign(page)
        group(total, kept.after(total), name="end")
    return graph


def test_each_kind_of_node_has_its_class(crawl: Graph) -> None:
    """Sources, placeholders, variables, what changes them, and the rest are told apart."""
    picture = taken_apart(crawl.to_mermaid())
    assert {label: picture.classes_of(label) for label in picture.labels.values()} == {
        "urls": {"source"},
        "agent": {"placeholder"},
        "fetch": {"op"},
        "count": {"op"},
        "words": {"variable"},
        "words_update": {"write"},
        "last": {"variable"},
        "last_assign": {"write"},
        "last_assign_after": {"group"},
        "end": {"group"},
    }


def test_edges_are_data_control_and_writes(crawl: Graph) -> None:
    """An arrow for each input, a dashed one for each control dependency, a thick one to the variable changed."""
    assert sorted(taken_apart(crawl.to_mermaid()).edges) == sorted(
        [
            ("urls", "-->", "fetch"),
            ("agent", "-->", "fetch"),
            ("fetch", "-->", "count"),
            ("count", "-->", "words_update"),
            ("words_update", "==>", "words"),
            ("fetch", "-->", "last_assign"),
            ("last_assign", "==>", "last"),
            ("last_assign", "-->", "last_assign_after"),
            ("words_update", "-.->", "last_assign_after"),
            ("words_update", "-->", "end"),
            ("last_assign_after", "-->", "end"),
        ]
    )


@dataclass
class Wanted:
    """Fetches in a data class."""

    total: Any


@pytest.mark.parametrize(
    "fetches", ["words_update", ["words_update"], {"total": ("words_update",)}, Wanted("words_update")]
)
def test_what_a_run_fetches_and_is_fed_is_marked(crawl: Graph, fetches: Any) -> None:
    """Fetches in any nesting, feeds as nodes, names or a feed_dict; what the run does not need is pale."""
    for feeds in ("fetch", [crawl["fetch"]], {"fetch": "a page"}):
        picture = taken_apart(crawl.to_mermaid(fetches=fetches, feeds=feeds))
        assert picture.classes_of("words_update") == {"write", "fetched"}
        assert picture.classes_of("fetch") == {"op", "fed"}
        pale = {label for box, label in picture.labels.items() if "idle" in picture.classes[box]}
        assert pale == {"urls", "agent", "last", "last_assign", "last_assign_after", "end"}


def test_what_is_no_node_of_the_graph_is_refused(crawl: Graph) -> None:
    """Unknown names, nodes of other graphs and other things: an error that names them and the parameter."""
    with Graph("other"):
        foreign = placeholder("foreign")
    with pytest.raises(NotFoundError, match=r"fecth.*did you mean 'fetch'"):
        crawl.to_mermaid(fetches="fecth")
    with pytest.raises(InvalidArgumentError, match=r"feeds.*'foreign'.*'other'.*'crawl'"):
        crawl.to_mermaid(feeds={foreign: 1})
    with pytest.raises(InvalidTypeError, match="fetches must be nodes"):
        crawl.to_mermaid(fetches=[3])


def test_a_nesting_that_contains_itself_ends(crawl: Graph) -> None:
    """A list in itself is gone through once."""
    fetches: list[Any] = ["count"]
    fetches.append(fetches)
    assert taken_apart(crawl.to_mermaid(fetches=fetches)).classes_of("count") == {"op", "fetched"}


@given(st.lists(st.text(min_size=1, max_size=LONGEST_NAME), unique=True, max_size=20))
def test_any_name_is_shown_as_it_is(names: list[str]) -> None:
    """Whatever is in a name, it breaks out of no label; what can be seen of it is shown letter for letter."""
    with Graph() as graph:
        for name in names:
            placeholder(name)
    shown = list(taken_apart(graph.to_mermaid()).labels.values())
    for name, label in zip(names, shown, strict=True):
        visible = [(a, b) for a, b in zip(name, label, strict=True) if a.isprintable()]
        assert all(a == b or a.isspace() for a, b in visible)


@pytest.mark.parametrize(
    "name",
    [
        "end",
        "graph",
        "class",
        "%%{init: {}}%%",
        "fa:fa-car",
        "$$x$$",
        "`code`",
        "1. first",
        "a-->b",
        "%% no comment",
        '";',
    ],
)
def test_words_of_mermaid_are_names_like_others(name: str) -> None:
    """Keywords and markup stand in the label, and never as an id."""
    with Graph() as graph:
        placeholder(name)
    assert taken_apart(graph.to_mermaid()).labels == {"n0": name}


def test_a_long_name_is_cut() -> None:
    """A box is no wider than a few words."""
    with Graph() as graph:
        placeholder("x" * 1000)
    [label] = taken_apart(graph.to_mermaid()).labels.values()
    assert label == "x" * (LONGEST_NAME - 1) + "…"


def test_an_empty_graph_has_an_empty_picture() -> None:
    """No node is no error."""
    assert Graph().to_mermaid() == "flowchart TD\n"


def test_a_huge_graph_is_summed_up() -> None:
    """10,000 nodes of a few ops: a box an op with the number of its calls, and arrows with theirs."""
    with Graph("huge") as graph:
        value: Node[Any] = source(range(3), name="items")
        for number in range(10_000):
            value = op(name="even" if number % 2 else "odd")(lambda x: x)(value)
        Variable(0, name="total").assign_add(value)
    text = graph.to_mermaid(fetches="total_update")
    picture = taken_apart(text)
    assert "10,003 nodes" in text
    assert set(picture.labels.values()) == {"items", "odd x 5,000", "even x 5,000", "variable", "update"}
    assert picture.counts == {
        ("items", "-->", "odd x 5,000"): 1,
        ("odd x 5,000", "-->", "even x 5,000"): 5000,
        ("even x 5,000", "-->", "odd x 5,000"): 4999,
        ("even x 5,000", "-->", "update"): 1,
        ("update", "==>", "variable"): 1,
    }
    assert picture.classes_of("update") == {"write", "fetched"}


def test_a_huge_graph_of_different_ops_is_bounded() -> None:
    """Where every op has a name of its own, the last box has all that are not shown."""
    with Graph() as graph:
        value: Node[Any] = placeholder("first")
        for number in range(10_000):
            value = op(name=f"op number {number}")(lambda x: x)(value)
    labels = list(taken_apart(graph.to_mermaid()).labels.values())
    assert len(labels) == MOST_BOXES + 1
    assert labels[-1] == f"{10_001 - MOST_BOXES:,} other nodes"


def test_a_graph_of_many_edges_is_summed_up() -> None:
    """It is Mermaid's limits that count: few nodes with many edges are too many as well."""
    with Graph() as graph:
        nodes = [op(name="one")(lambda: 1)() for _ in range(30)]
        for _ in range(30):
            op(name="all")(lambda xs: xs)(nodes)
    picture = taken_apart(graph.to_mermaid())
    assert picture.counts == {("one x 30", "-->", "all x 30"): 900}


def test_a_notebook_shows_the_picture(crawl: Graph) -> None:
    """JupyterLab draws `text/vnd.mermaid`, others a fenced block of Markdown, a terminal the line of text."""
    bundle = crawl._repr_mimebundle_(include=None, exclude=None)
    assert bundle == {
        "text/plain": "<Graph 'crawl' of 10 nodes>",
        "text/markdown": f"```mermaid\n{crawl.to_mermaid()}```\n",
        "text/vnd.mermaid": crawl.to_mermaid(),
    }
