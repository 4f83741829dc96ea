"""Node: a value that a run computes, and the plain kinds of node."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar, final

from asyncstep._graph.graph import get_default_graph
from asyncstep.errors import InvalidArgumentError, InvalidTypeError, kind_of

if TYPE_CHECKING:
    from asyncstep._graph.graph import Graph

T_co = TypeVar("T_co", covariant=True)


@final
class Missing:
    """The type of `MISSING`."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "MISSING"


MISSING: Final = Missing()
"""Stands where no value was given, so that None can be a value."""


class Node(Generic[T_co]):
    """A value that each run computes at most once (TensorFlow: a Tensor and the op that makes it).

    Attributes:
        name: unique in the graph.
        graph: the graph that it belongs to.
        inputs: the nodes whose values it needs, without repetitions.
        controls: the nodes that must be evaluated before it, for their effect only.
    """

    __slots__ = ("__weakref__", "controls", "graph", "inputs", "name")

    name: str
    graph: Graph
    inputs: tuple[Node[Any], ...]
    controls: tuple[Node[Any], ...]

    def __init__(
        self,
        default: str,
        *,
        name: str | None = None,
        inputs: tuple[Node[Any], ...] = (),
        controls: tuple[Node[Any], ...] = (),
        graph: Graph | None = None,
    ) -> None:
        self.inputs = tuple(dict.fromkeys(inputs))
        self.controls = tuple(dict.fromkeys(controls))
        self.graph = graph or _common_graph((*self.inputs, *self.controls), name or default)
        self.name = self.graph.add(self, name, default)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}>"

    def after(self, *others: Node[Any]) -> Node[T_co]:
        """The same value, evaluated after `others` (TensorFlow: ``tf.control_dependencies``).

        The new node waits for `others`; this node does too, in runs where nothing else needs its value.
        A variable is read after them.
        """
        _check_nodes(others, "after")
        return After(self, others)


@final
class After(Node[T_co]):
    """The value of `target`, once other nodes have been evaluated."""

    __slots__ = ("target",)

    def __init__(self, target: Node[T_co], others: tuple[Node[Any], ...]) -> None:
        self.target = target
        super().__init__(f"{target.name}_after", inputs=(target,), controls=others)


class StateNode(Node[T_co]):
    """A node of a floor above that reads or changes, without waiting, what a session has of another node.

    Attributes:
        target: the other node.
        verb: what this does to it, for pictures.
        args: values, or nodes, in nestings of lists, tuples and dicts.
    """

    __slots__ = ("args", "target", "verb")

    def __init__(self, target: Node[Any], verb: str, args: tuple[Any, ...] = ()) -> None:
        from asyncstep._graph.op import as_given, nodes_in

        self.target: Node[Any] = target
        self.verb: str = verb
        self.args: tuple[Any, ...] = as_given(args)
        inputs = nodes_in(args)
        super().__init__(f"{target.name}_{verb}", inputs=inputs, graph=own_graph(target, inputs))

    @abstractmethod
    def apply(self, transaction: Any, args: tuple[Any, ...]) -> T_co:
        """The node's value in a run; `args` are the values of its own."""


@final
class Group(Node[None]):
    """None, once other nodes have been evaluated."""

    __slots__ = ()


@final
class Placeholder(Node[Any]):
    """A value that a run must feed, unless there is a default."""

    __slots__ = ("default",)

    def __init__(self, name: str, default: object) -> None:
        self.default = default
        super().__init__(name, name=name)


def group(*nodes: Node[Any], name: str | None = None) -> Node[None]:
    """A node that is done when all of `nodes` are (TensorFlow: ``tf.group``)."""
    _check_nodes(nodes, "group")
    return Group("group", name=name, inputs=nodes)


def placeholder(name: str, *, default: Any = MISSING) -> Node[Any]:
    """A value that a run must feed, by ``feed_dict={node_or_name: value}``; else `default`, if given."""
    return Placeholder(name, default)


def own_graph(owner: Node[Any], inputs: tuple[Node[Any], ...]) -> Graph:
    """The graph of a node that others are made from; InvalidArgumentError if their inputs are in another."""
    for node in inputs:
        if node.graph is not owner.graph:
            raise InvalidArgumentError(
                f"the {type(owner).__name__.lower()} {owner.name!r} is in {owner.graph.described},"
                f" but {node.name!r} is in {node.graph.described}"
            )
    return owner.graph


def _check_nodes(nodes: tuple[object, ...], where: str) -> None:
    for node in nodes:
        if not isinstance(node, Node):
            raise InvalidTypeError(f"{where}() takes nodes, not {kind_of(node)}")


def _common_graph(nodes: tuple[Node[Any], ...], name: str) -> Graph:
    """The graph that all inputs are of; the default graph if there are none."""
    if not nodes:
        return get_default_graph()
    graph = nodes[0].graph
    for node in nodes:
        if node.graph is not graph:
            raise InvalidArgumentError(
                f"the node {name!r} has inputs in two graphs: {nodes[0].name!r} is in {graph.described},"
                f" {node.name!r} in {node.graph.described}"
            )
    return graph
