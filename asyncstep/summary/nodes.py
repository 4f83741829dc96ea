"""scalar, histogram, text and image: nodes whose values are summaries."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from asyncstep._graph.graph import Graph, get_default_graph
from asyncstep._graph.node import Node
from asyncstep._graph.op import Offload, OpNode, op
from asyncstep.errors import InvalidArgumentError, InvalidTypeError, kind_of
from asyncstep.summary.binning import BINS, check_bins, histogram_of
from asyncstep.summary.extras import numpy_for
from asyncstep.summary.png import image_of
from asyncstep.summary.values import Histogram, Image, Scalar, Summary, Text, number

__all__ = ["histogram", "image", "merge_all", "scalar", "text"]


def scalar(name: str, node: Node[Any]) -> Node[Scalar]:
    """A node whose value is that of `node`, a number or an array without dimensions, as a `Scalar`.

    Args:
        name: the tag under which it is written, and, if that is free, the name of the new node.
        node: in whose graph the new node is.

    Raises:
        InvalidArgumentError: the graph has a summary of that tag.
        InvalidTypeError: `name` is no string, or `node` no node. From a run: its value is no number.

    TensorFlow: ``tf.summary.scalar``.
    """
    return _summary_node("scalar", name, node, _scalar_of, None)


def histogram(name: str, node: Node[Any], *, bins: int = BINS) -> Node[Histogram]:
    """A node whose value is the distribution of the array that `node` gives, as a `Histogram`.

    Args:
        name: as that of `scalar`.
        node: gives a numpy array of numbers, or what ``numpy.asarray`` makes one of.
        bins: the number of buckets, which all have the same width.

    It is counted in a worker thread. What is no finite number is left out and counted in `skipped`.

    Raises:
        ImportError: there is no numpy (``asyncstep[numpy]``).
        InvalidArgumentError, InvalidTypeError: as `scalar`, and for `bins` that are no positive integer.

    TensorFlow: ``tf.summary.histogram``.
    """
    check_bins("summary.histogram", bins)
    numpy_for("asyncstep.summary.histogram")
    return _summary_node("histogram", name, node, partial(histogram_of, bins=bins), "thread")


def text(name: str, node: Node[Any]) -> Node[Text]:
    """A node whose value is the string that `node` gives, as a `Text`.

    Args:
        name: as that of `scalar`.
        node: gives a string; TensorBoard shows it as Markdown.

    Raises:
        InvalidArgumentError, InvalidTypeError: as `scalar`.

    TensorFlow: ``tf.summary.text``.
    """
    return _summary_node("text", name, node, _text_of, None)


def image(name: str, node: Node[Any]) -> Node[Image]:
    """A node whose value is the picture that `node` gives, as an `Image`.

    Args:
        name: as that of `scalar`.
        node: gives a numpy array, or what ``numpy.asarray`` makes one of, of the shape (height, width) or
            (height, width, channels): 1 grey, 2 grey and alpha, 3 RGB, 4 RGB and alpha. Of bytes, of booleans,
            or of floats from 0 to 1, beyond which they are clipped.

    It is made a PNG in a worker thread.

    Raises:
        ImportError: there is no numpy (``asyncstep[numpy]``).
        InvalidArgumentError, InvalidTypeError: as `scalar`. From a run: for another shape or dtype.

    TensorFlow: ``tf.summary.image``, which takes several pictures at once.
    """
    numpy_for("asyncstep.summary.image")
    return _summary_node("image", name, node, image_of, "thread")


def merge_all(graph: Graph | None = None) -> tuple[Node[Summary], ...] | None:
    """All the summary nodes of a graph, in the order of their creation; None if there are none.

    Args:
        graph: the default graph if None.

    TensorFlow: ``tf.summary.merge_all``.
    """
    if graph is not None and not isinstance(graph, Graph):
        raise InvalidTypeError(f"merge_all takes a Graph, not {kind_of(graph)}")
    return tuple(node for node, _ in _summary_nodes(graph or get_default_graph())) or None


@dataclass(frozen=True, slots=True)
class Summarize:
    """The function of a summary node, by which it is known among other nodes."""

    tag: str
    make: Callable[[str, Any], Summary]

    def __call__(self, value: Any) -> Summary:
        return self.make(self.tag, value)


def _summary_node(
    kind: str, tag: str, node: Node[Any], make: Callable[[str, Any], Summary], offload: Offload | None
) -> Node[Any]:
    if not isinstance(tag, str) or not tag:
        raise InvalidTypeError(f"summary.{kind}: the name must be a non-empty string, got {tag!r:.80}")
    if not isinstance(node, Node):
        raise InvalidTypeError(f"summary.{kind}({tag!r}) takes a node, not {kind_of(node)}")
    for other, function in _summary_nodes(node.graph):
        if function.tag == tag:
            raise InvalidArgumentError(
                f"{node.graph.described} has a summary of the name {tag!r}, {other.name!r}; give this one another"
            )
    return op(name=tag, offload=offload)(Summarize(tag, make))(node)


def _summary_nodes(graph: Graph) -> list[tuple[Node[Any], Summarize]]:
    return [
        (node, node.op.function)
        for node in graph.nodes.values()
        if isinstance(node, OpNode) and isinstance(node.op.function, Summarize)
    ]


def _scalar_of(tag: str, value: Any) -> Scalar:
    found = number(value)
    if found is None:
        raise InvalidTypeError(
            f"summary.scalar({tag!r}) needs a number, got {kind_of(value)} ({value!r:.80})"
        )
    return Scalar(tag, found)


def _text_of(tag: str, value: Any) -> Text:
    if not isinstance(value, str):
        raise InvalidTypeError(f"summary.text({tag!r}) needs a string, got {kind_of(value)} ({value!r:.80})")
    return Text(tag, value)
