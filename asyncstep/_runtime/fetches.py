"""A nesting of fetches, and the flat tuple of what is fetched.

`flatten` walks a nesting once and gives its leaves and a function that puts values back in the same
nesting: lists, tuples, named tuples, dicts and dataclasses keep their types.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
from typing import TYPE_CHECKING, Any, final

from asyncstep._graph.graph import close_matches
from asyncstep._graph.node import Node
from asyncstep._graph.op import Op
from asyncstep.errors import InvalidArgumentError, InvalidTypeError, NotFoundError, kind_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from asyncstep._graph.graph import Graph

DEEPEST = 200


@final
class AdHoc:
    """Stands in a plan for the n-th coroutine function that a run was given."""

    __slots__ = ("index",)

    def __init__(self, index: int) -> None:
        self.index = index


_ad_hoc: list[AdHoc] = []


def ad_hoc(index: int) -> AdHoc:
    """The one marker of that index, so that plans are found by identity."""
    while len(_ad_hoc) <= index:
        _ad_hoc.append(AdHoc(len(_ad_hoc)))
    return _ad_hoc[index]


Leaf = Node[Any] | AdHoc


class Flattening:
    """The leaves of the nestings that one run was asked for.

    Attributes:
        leaves: what is fetched, in order, with repetitions.
        functions: the coroutine functions among them, each once.
    """

    __slots__ = ("_depth", "functions", "graph", "leaves")

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.leaves: list[Leaf] = []
        self.functions: list[Callable[[], Awaitable[Any]]] = []
        self._depth = 0

    def add(self, fetches: Any) -> Callable[[Iterator[Any]], Any]:
        """Take the leaves of one nesting; return what makes the nesting again from their values."""
        if isinstance(fetches, Node):
            self.leaves.append(self._own(fetches))
            return next
        if isinstance(fetches, str):
            self.leaves.append(named(self.graph, fetches))
            return next
        if isinstance(fetches, (list, tuple, dict)) or (
            dataclasses.is_dataclass(fetches) and not isinstance(fetches, type)
        ):
            return self._nesting(fetches)
        if is_step(fetches):
            self.leaves.append(self._ad_hoc(fetches))
            return next
        raise InvalidTypeError(_bad_fetch(fetches))

    def _nesting(self, fetches: Any) -> Callable[[Iterator[Any]], Any]:
        self._depth += 1
        if self._depth > DEEPEST:
            raise InvalidArgumentError(
                f"the fetches are nested more than {DEEPEST} deep; does {kind_of(fetches)} contain itself?"
            )
        try:
            if isinstance(fetches, dict):
                return self._dict(fetches)
            if isinstance(fetches, list):
                return self._list(fetches)
            return self._tuple(fetches) if isinstance(fetches, tuple) else self._dataclass(fetches)
        finally:
            self._depth -= 1

    def _dict(self, fetches: dict[Any, Any]) -> Callable[[Iterator[Any]], Any]:
        keys = list(fetches)
        parts = [self.add(fetches[key]) for key in keys]

        def rebuild(values: Iterator[Any]) -> Any:
            result: dict[Any, Any] = {} if type(fetches) is dict else copy.copy(fetches)
            for key, part in zip(keys, parts, strict=True):
                result[key] = part(values)
            return result

        return rebuild

    def _list(self, fetches: list[Any]) -> Callable[[Iterator[Any]], Any]:
        parts = [self.add(item) for item in fetches]

        def rebuild(values: Iterator[Any]) -> Any:
            result = [part(values) for part in parts]
            if type(fetches) is list:
                return result
            special = copy.copy(fetches)
            special[:] = result
            return special

        return rebuild

    def _tuple(self, fetches: tuple[Any, ...]) -> Callable[[Iterator[Any]], Any]:
        parts = [self.add(item) for item in fetches]
        kind: Any = type(fetches)
        if kind is tuple:
            return lambda values: tuple([part(values) for part in parts])
        if hasattr(kind, "_make"):
            return lambda values: kind._make([part(values) for part in parts])
        return lambda values: kind([part(values) for part in parts])

    def _dataclass(self, fetches: Any) -> Callable[[Iterator[Any]], Any]:
        names = [field.name for field in dataclasses.fields(fetches)]
        parts = [self.add(getattr(fetches, name)) for name in names]

        def rebuild(values: Iterator[Any]) -> Any:
            result = copy.copy(fetches)
            for name, part in zip(names, parts, strict=True):
                object.__setattr__(result, name, part(values))  # a frozen one has no other way
            return result

        return rebuild

    def _own(self, node: Node[Any]) -> Node[Any]:
        if node.graph is not self.graph:
            raise foreign(node, self.graph)
        return node

    def _ad_hoc(self, function: Callable[[], Awaitable[Any]]) -> AdHoc:
        for index, known in enumerate(self.functions):
            if known is function or known == function:
                return ad_hoc(index)
        self.functions.append(function)
        return ad_hoc(len(self.functions) - 1)


def is_step(fetch: object) -> bool:
    """Whether it is a coroutine function that can be called without arguments."""
    if isinstance(fetch, (Op, type)) or not callable(fetch):
        return False
    if not (
        inspect.iscoroutinefunction(fetch) or inspect.iscoroutinefunction(getattr(fetch, "__call__", None))
    ):
        return False
    try:
        inspect.signature(fetch).bind()
    except (TypeError, ValueError):
        return False
    return True


def named(graph: Graph, name: str) -> Node[Any]:
    """The node of a name; NotFoundError says what is near."""
    node = graph.nodes.get(name)
    if node is None:
        raise NotFoundError(f"{graph.described} has no node named {name!r}{close_matches(name, graph.nodes)}")
    return node


def foreign(node: Node[Any], graph: Graph) -> InvalidArgumentError:
    """The error for a node of another graph."""
    here, there = graph.described, node.graph.described
    return InvalidArgumentError(
        f"the node {node.name!r} is in {there if there != here else 'another graph'},"
        f" but the session runs {here}; build it inside `with graph:` of the session's graph"
    )


def _bad_fetch(fetch: object) -> str:
    kinds = "a node, a node's name, a coroutine function without parameters, or a nesting of them"
    if isinstance(fetch, Op):
        return (
            f"cannot fetch the op {fetch.name!r} itself: call it to get a node, {fetch.name}{fetch.signature}"
        )
    if inspect.iscoroutine(fetch):
        fetch.close()
        return (
            f"cannot fetch the coroutine {fetch.__name__!r}: give the coroutine function, without calling it"
        )
    if inspect.iscoroutinefunction(fetch):
        return (
            f"cannot fetch {fetch.__name__}{inspect.signature(fetch)}: a coroutine function that is fetched takes"
            " no parameters; bind them with functools.partial or a lambda's `async def` equal"
        )
    if callable(fetch) and not isinstance(fetch, type):
        name = getattr(fetch, "__name__", repr(fetch))
        return f"cannot fetch the function {name!r}: it is not `async def`; fetches are {kinds}"
    return f"cannot fetch {kind_of(fetch)} ({fetch!r:.80}): fetches are {kinds}"
