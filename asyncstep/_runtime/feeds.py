"""Feeds: values that a run is given in place of what nodes would compute."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from asyncstep._graph.node import Node
from asyncstep._runtime.fetches import foreign, named
from asyncstep.errors import InvalidArgumentError, InvalidTypeError, kind_of

if TYPE_CHECKING:
    from asyncstep._graph.graph import Graph

Feeds = dict[Node[Any], Any]


def add_feeds(feeds: Feeds, owners: dict[Node[Any], str], given: object, owner: str, graph: Graph) -> None:
    """Take one feed dict into `feeds`; names and nodes are the same key (contract R5).

    Raises:
        InvalidArgumentError: two feed one node (the message names both), or a foreign node.
        NotFoundError: there is no node of that name.
        InvalidTypeError: not a mapping, a key that is neither a node nor a name, a node as a value.
    """
    if not isinstance(given, Mapping):
        raise InvalidTypeError(f"the feed_dict of {owner} must be a mapping, not {kind_of(given)}")
    for key, value in given.items():
        node = _node(key, owner, graph)
        if node in feeds:
            raise InvalidArgumentError(
                f"the node {node.name!r} is fed twice: by {owners[node]} and by {owner}"
            )
        if isinstance(value, Node):
            raise InvalidTypeError(
                f"{owner} feeds the node {node.name!r} with the node {value.name!r}; feed a value"
            )
        feeds[node] = value
        owners[node] = owner


def _node(key: object, owner: str, graph: Graph) -> Node[Any]:
    if isinstance(key, str):
        return named(graph, key)
    if not isinstance(key, Node):
        raise InvalidTypeError(f"{owner} feeds {kind_of(key)} ({key!r:.80}); feed nodes, or names of nodes")
    if key.graph is not graph:
        raise foreign(key, graph)
    return key
