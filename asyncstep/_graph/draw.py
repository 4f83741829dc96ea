"""A graph as a picture, in Mermaid's language.

Data flows along arrows, and dashed arrows say what merely comes before. A thick arrow leads from an assignment or
an update to its variable. Colours and shapes tell the kinds of nodes apart; what a run fetches and what it is fed
has a thick frame, and what that run has no need of is pale.

Mermaid refuses texts of more than 50,000 letters and more than 500 edges. A graph that is larger is summed up: one
box for all calls of an op.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from asyncstep._graph.node import After, Group, Node, Placeholder, StateNode
from asyncstep._graph.op import OpNode
from asyncstep._graph.variable import Variable, Write
from asyncstep.errors import InvalidArgumentError, InvalidTypeError, kind_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from asyncstep._graph.graph import Graph

MOST_EDGES = 450
MOST_LETTERS = 45_000
MOST_BOXES = 100
"""Of a summary; the ops with the fewest calls share the last one."""

LONGEST_NAME = 80

DATA, CONTROL, WRITE = "-->", "-.->", "==>"
Edge = tuple[Node[Any], str, Node[Any]]

_SHAPES = {
    "op": ("[", "]"),
    "source": (">", "]"),
    "placeholder": ("[/", "/]"),
    "variable": ("[(", ")]"),
    "write": ("{{", "}}"),
    "group": ("([", "])"),
}
_STYLES = {
    "op": "fill:#eef2f7,stroke:#5b6b7f,color:#1c2733",
    "source": "fill:#d9f2e0,stroke:#2f7d4a,color:#12331e",
    "placeholder": "fill:#fff3cf,stroke:#a07a10,color:#3d2f06",
    "variable": "fill:#dce9ff,stroke:#2f5fb3,color:#12264a",
    "write": "fill:#f3e3fb,stroke:#7f3fa3,color:#331542",
    "group": "fill:#f6f6f6,stroke:#8a8a8a,color:#333333",
    "fetched": "stroke:#c2410c,stroke-width:4px",
    "fed": "stroke:#0f766e,stroke-width:4px,stroke-dasharray:6 3",
    "idle": "opacity:0.35",
}
_PLAIN = frozenset(" _-.,;!?()[]{}/+=*|~^@'")
"""What stands for itself between quotation marks, besides letters and digits of all alphabets."""


def to_mermaid(graph: Graph, fetches: Any = None, feeds: Any = None) -> str:
    """The graph as a Mermaid flowchart; see `Graph.to_mermaid`."""
    fed = frozenset(_nodes_of(feeds, graph, "feeds"))
    fetched = frozenset(_nodes_of(fetches, graph, "fetches"))
    nodes = list(graph.nodes.values())
    needed = _needed(fetched, fed) if fetched else frozenset(nodes)
    edges = list(_edges(nodes))
    if len(edges) <= MOST_EDGES:
        picture = _text(_whole(nodes, edges, fetched, fed, needed))
        if len(picture) <= MOST_LETTERS:
            return picture
    return _text(_summary(graph, nodes, edges, fetched, fed))


def _nodes_of(given: Any, graph: Graph, parameter: str) -> Iterator[Node[Any]]:
    """The nodes in a nesting of nodes and names; of a mapping of feeds, its keys."""
    pending = [] if given is None else [given]
    seen: set[int] = set()
    while pending:
        item = pending.pop()
        if isinstance(item, str):
            item = graph[item]
        elif id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, Node):
            if item.graph is not graph:
                raise InvalidArgumentError(
                    f"{parameter}: the node {item.name!r} is in {item.graph.described}, not in {graph.described}"
                )
            yield item
        elif isinstance(item, Mapping):
            pending.extend(item if parameter == "feeds" else item.values())
        elif isinstance(item, Iterable):
            pending.extend(item)
        elif dataclasses.is_dataclass(item) and not isinstance(item, type):
            pending.extend(getattr(item, field.name) for field in dataclasses.fields(item))
        else:
            raise InvalidTypeError(f"{parameter} must be nodes and names of nodes, not {kind_of(item)}")


def _needed(fetched: Iterable[Node[Any]], fed: frozenset[Node[Any]]) -> frozenset[Node[Any]]:
    """What a run evaluates that fetches and feeds these."""
    found: set[Node[Any]] = set()
    pending = list(fetched)
    while pending:
        node = pending.pop()
        if node not in found:
            found.add(node)
            if node not in fed:
                pending.extend((*node.inputs, *node.controls))
                if isinstance(node, Write):
                    pending.append(node.variable)
                elif isinstance(node, StateNode):
                    pending.append(node.target)
    return frozenset(found)


def _edges(nodes: Iterable[Node[Any]]) -> Iterator[Edge]:
    for node in nodes:
        for other in node.inputs:
            yield other, DATA, node
        for other in node.controls:
            yield other, CONTROL, node
        if isinstance(node, Write):
            yield node, WRITE, node.variable
        elif isinstance(node, StateNode):
            yield node, WRITE, node.target


def _whole(
    nodes: list[Node[Any]],
    edges: list[Edge],
    fetched: frozenset[Node[Any]],
    fed: frozenset[Node[Any]],
    needed: frozenset[Node[Any]],
) -> Iterator[str]:
    """One box a node."""
    boxes = {node: f"n{number}" for number, node in enumerate(nodes)}
    kinds: list[tuple[str, list[str]]] = []
    for node, box in boxes.items():
        kind = _kind(node)
        yield _box(box, kind, node.name)
        marks = [kind]
        marks += ["fetched"] if node in fetched else []
        marks += ["fed"] if node in fed else []
        marks += ["idle"] if node not in needed else []
        kinds.append((box, marks))
    for start, arrow, end in edges:
        yield f"{boxes[start]} {arrow} {boxes[end]}"
    yield from _classes(kinds)


def _summary(
    graph: Graph,
    nodes: list[Node[Any]],
    edges: list[Edge],
    fetched: frozenset[Node[Any]],
    fed: frozenset[Node[Any]],
) -> Iterator[str]:
    """One box for all nodes of one kind or op; an arrow says how many there are of it."""
    of_node = {node: (_kind(node), _family(node)) for node in nodes}
    sizes = Counter(of_node.values())
    shown = [family for family, _ in sizes.most_common(MOST_BOXES)]
    rest = len(sizes) - len(shown)
    boxes = {family: f"n{number}" for number, family in enumerate(shown)}
    yield f"%% {_letters(graph.described)} has {len(nodes):,} nodes: too many to be drawn one by one"
    kinds: list[tuple[str, list[str]]] = []
    marked = {of_node[node]: "fetched" for node in fetched} | {of_node[node]: "fed" for node in fed}
    for family, box in boxes.items():
        kind, name = family
        count = sizes[family]
        yield _box(box, kind, f"{name} x {count:,}" if count > 1 else name)
        kinds.append((box, [kind, marked[family]] if family in marked else [kind]))
    if rest:
        others = sum(sizes.values()) - sum(sizes[family] for family in shown)
        yield _box("rest", "op", f"{others:,} other nodes")
        kinds.append(("rest", ["op"]))
    counts = Counter(
        (boxes.get(of_node[start], "rest"), arrow, boxes.get(of_node[end], "rest"))
        for start, arrow, end in edges
    )
    for (start, arrow, end), count in counts.most_common(MOST_EDGES):
        yield f"{start} {arrow}|{count:,}| {end}" if count > 1 else f"{start} {arrow} {end}"
    yield from _classes(kinds)


def _text(lines: Iterable[str]) -> str:
    return "\n".join(("flowchart TD", *(f"    {line}" for line in lines))) + "\n"


def _kind(node: Node[Any]) -> str:
    if isinstance(node, Variable):
        return "variable"
    if isinstance(node, Placeholder):
        return "placeholder"
    if isinstance(node, (Write, StateNode)):
        return "write"
    if isinstance(node, (After, Group)):
        return "group"
    return "source" if node.name in node.graph.sources else "op"


def _family(node: Node[Any]) -> str:
    """What nodes are summed up by."""
    if isinstance(node, OpNode):
        return node.op.name
    if isinstance(node, StateNode):
        return node.verb
    if isinstance(node, (Write, After, Group)):
        return type(node).__name__.lower()
    kind = _kind(node)
    return node.name if kind in ("source", "op") else kind


def _box(box: str, kind: str, name: str) -> str:
    before, after = _SHAPES[kind]
    return f'{box}{before}"{_letters(name)}"{after}'


def _letters(name: str) -> str:
    """A name as it can stand between quotation marks: what may mean something to Mermaid, by its number."""
    if len(name) > LONGEST_NAME:
        name = f"{name[: LONGEST_NAME - 1]}…"
    return "".join(_letter(letter) for letter in name)


def _letter(letter: str) -> str:
    if letter.isalnum() or letter in _PLAIN:
        return letter
    if letter.isspace() or not letter.isprintable():
        return " " if letter.isspace() else "�"
    return f"#{ord(letter)};"


def _classes(kinds: list[tuple[str, list[str]]]) -> Iterator[str]:
    """The styles, and which box has which."""
    members: dict[str, list[str]] = {}
    for box, marks in kinds:
        for mark in marks:
            members.setdefault(mark, []).append(box)
    for mark, style in _STYLES.items():
        if mark in members:
            yield f"classDef {mark} {style}"
            yield f"class {','.join(members[mark])} {mark}"
