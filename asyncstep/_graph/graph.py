"""Graph: a set of named nodes, and the default graph that new nodes join."""

from __future__ import annotations

import difflib
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol, Self, runtime_checkable

from asyncstep.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    InvalidTypeError,
    NotFoundError,
    kind_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from types import TracebackType

    from asyncstep._graph.node import Node
    from asyncstep._graph.variable import Variable

GLOBAL_STEP = "global_step"


@runtime_checkable
class Trackable(Protocol):
    """An object whose state is saved and restored with the variables."""

    def state_dict(self) -> Any:
        """The object's state, as plain values."""

    def load_state_dict(self, state: Any, /) -> Any:
        """Go back to a state that `state_dict` gave."""


class Graph:
    """A set of named nodes that a session evaluates (TensorFlow: ``tf.Graph``).

    Inside ``with graph:`` new nodes join this graph. A graph that a session has opened is finalized: it
    takes no new nodes until the session is closed.
    """

    def __init__(self, name: str | None = None) -> None:
        if name is not None and not isinstance(name, str):
            raise InvalidTypeError(f"a graph's name must be a string, not {kind_of(name)}")
        self.name = name
        self._nodes: dict[str, Node[Any]] = {}
        self._variables: dict[str, Variable[Any]] = {}
        self._sources: dict[str, Any] = {}
        self._tracked: dict[str, Trackable] = {}
        self._next_suffix: dict[str, int] = {}
        self._closed_for_good = False
        self._holders = 0

    def __repr__(self) -> str:
        name = f" {self.name!r}" if self.name else ""
        return f"<Graph{name} of {len(self._nodes)} nodes>"

    def __enter__(self) -> Self:
        _stack.set((*_stack.get(), self))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        stack = list(_stack.get())
        if self in stack:
            del stack[len(stack) - 1 - stack[::-1].index(self)]
        _stack.set(tuple(stack))

    def __getitem__(self, name: str) -> Node[Any]:
        """The node of that name; NotFoundError (a LookupError) names close matches."""
        try:
            return self._nodes[name]
        except KeyError:
            raise NotFoundError(
                f"{self.described} has no node named {name!r}{close_matches(name, self._nodes)}"
            ) from None

    def __contains__(self, name: object) -> bool:
        return name in self._nodes

    @property
    def nodes(self) -> Mapping[str, Node[Any]]:
        """Every node by its name, in the order of creation (read-only)."""
        return MappingProxyType(self._nodes)

    @property
    def variables(self) -> Mapping[str, Variable[Any]]:
        """The variables by name (read-only)."""
        return MappingProxyType(self._variables)

    @property
    def sources(self) -> Mapping[str, Any]:
        """The data sources by name (read-only)."""
        return MappingProxyType(self._sources)

    @property
    def tracked(self) -> Mapping[str, Trackable]:
        """The objects given to `track`, by name (read-only)."""
        return MappingProxyType(self._tracked)

    @property
    def finalized(self) -> bool:
        """Whether new nodes are refused, by `finalize` or by an open session."""
        return self._closed_for_good or self._holders > 0

    def finalize(self) -> None:
        """Refuse new nodes from now on (FailedPreconditionError, a RuntimeError)."""
        self._closed_for_good = True

    def track(self, name: str, obj: Trackable) -> None:
        """Save and restore `obj` together with the variables, under `name`.

        Raises:
            InvalidTypeError: `obj` lacks ``state_dict()`` or ``load_state_dict()``.
            InvalidArgumentError: the name is taken.
        """
        if not isinstance(obj, Trackable):
            raise InvalidTypeError(
                f"cannot track {name!r}: {kind_of(obj)} has no state_dict() and load_state_dict()"
            )
        if name in self._tracked:
            raise InvalidArgumentError(f"{self.described} already tracks an object named {name!r}")
        self.check_open(f"the tracked object {name!r}")
        self._tracked[name] = obj

    def to_mermaid(self, *, fetches: Any = None, feeds: Any = None) -> str:
        """A picture of the graph in Mermaid's language, for docs and notebooks.

        Sources, placeholders, variables, what changes a variable, and ops have shapes and colours of their own;
        control dependencies are dashed. A graph that Mermaid would refuse, by its limits of 500 edges and 50,000
        letters, is summed up: one box for all calls of an op, with their number.

        Args:
            fetches: nodes and names in any nesting, as a run would fetch them: they get a thick frame, and what that
                run has no need of is pale.
            feeds: nodes and names that the run would be fed, or its feed_dict: they get a thick dashed frame.

        Raises:
            NotFoundError, InvalidArgumentError, InvalidTypeError: `fetches` or `feeds` are not of this graph.
        """
        from asyncstep._graph.draw import to_mermaid

        return to_mermaid(self, fetches, feeds)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        """What a notebook shows: the picture where it can draw one, else a line of text."""
        picture = self.to_mermaid()
        return {
            "text/plain": repr(self),
            "text/markdown": f"```mermaid\n{picture}```\n",
            "text/vnd.mermaid": picture,
        }

    @property
    def described(self) -> str:
        """The graph's name for messages."""
        return f"the graph {self.name!r}" if self.name else "the graph"

    @property
    def steps_itself(self) -> bool:
        """Whether a node of the graph changes the global step, so that runs do not."""
        step = self._variables.get(GLOBAL_STEP)
        return step is not None and step.written

    def check_open(self, what: str) -> None:
        """Raise FailedPreconditionError if the graph is finalized."""
        if self.finalized:
            raise FailedPreconditionError(
                f"{self.described} is finalized, so {what} cannot be added to it;"
                " build the graph before the session is opened (or in a hook's begin)"
            )

    @contextmanager
    def unlocked(self) -> Iterator[None]:
        """Inside the block the graph takes nodes although it is finalized: for its global step."""
        closed, self._closed_for_good = self._closed_for_good, False
        try:
            yield
        finally:
            self._closed_for_good = closed

    def hold(self) -> None:
        """An open session finalizes the graph; each `hold` needs one `release`."""
        self._holders += 1

    def release(self) -> None:
        """The end of one `hold`."""
        self._holders -= 1

    def add(self, node: Node[Any], name: str | None, default: str) -> str:
        """Take a new node under `name`, or under `default` made unique; return its name."""
        wanted = default if name is None else name
        if not isinstance(wanted, str) or not wanted:
            raise InvalidTypeError(f"a node's name must be a non-empty string, not {wanted!r}")
        self.check_open(f"the node {wanted!r}")
        if name is None:
            name = self._unique(default)
        elif name in self._nodes:
            raise InvalidArgumentError(
                f"{self.described} already has a node named {name!r}; give this one another"
            )
        self._nodes[name] = node
        return name

    def _unique(self, name: str) -> str:
        if name not in self._nodes:
            return name
        number = self._next_suffix.get(name, 1)
        while f"{name}_{number}" in self._nodes:
            number += 1
        self._next_suffix[name] = number + 1
        return f"{name}_{number}"


def close_matches(name: object, names: Iterable[str]) -> str:
    """``; did you mean 'a' or 'b'?`` for an error message, or nothing."""
    found = difflib.get_close_matches(str(name), list(names), n=3)
    return f"; did you mean {' or '.join(map(repr, found))}?" if found else ""


_stack: ContextVar[tuple[Graph, ...]] = ContextVar("asyncstep_graphs", default=())
_process_graph = Graph("default")


def get_default_graph() -> Graph:
    """The graph of the innermost ``with graph:`` block, else one per process."""
    stack = _stack.get()
    return stack[-1] if stack else _process_graph
