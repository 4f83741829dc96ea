"""A graph as a picture."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from asyncstep._graph.node import Placeholder, StateNode
from asyncstep._graph.variable import Variable, Write

if TYPE_CHECKING:
    from asyncstep._graph.graph import Graph
    from asyncstep._graph.node import Node


def to_mermaid(graph: Graph) -> str:
    """The graph as a Mermaid flowchart: data flows along arrows, control and writes along dotted ones."""
    ids = {node: f"n{number}" for number, node in enumerate(graph.nodes.values())}
    lines = ["flowchart TD"]
    for node, key in ids.items():
        lines.append(f"    {key}{_shape(node)}")
    for node, key in ids.items():
        lines.extend(f"    {ids[other]} --> {key}" for other in node.inputs)
        lines.extend(f"    {ids[other]} -.-> {key}" for other in node.controls)
        if isinstance(node, Write):
            lines.append(f"    {key} -.->|writes| {ids[node.variable]}")
        elif isinstance(node, StateNode):
            lines.append(f"    {key} -.->|{node.verb}| {ids[node.target]}")
    return "\n".join(lines) + "\n"


def _shape(node: Node[Any]) -> str:
    label = '"' + node.name.replace('"', "#quot;") + '"'
    if isinstance(node, Variable):
        return f"[({label})]"
    if isinstance(node, Placeholder):
        return f"[/{label}/]"
    if node.name in node.graph.sources:
        return f">{label}]"
    return f"[{label}]"
