"""Variable: a value that lives in a session's state; the nodes that change it; the global step."""

from __future__ import annotations

import inspect
import operator
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, TypeVar, final, overload

from asyncstep._graph.graph import GLOBAL_STEP, get_default_graph
from asyncstep._graph.node import Node, own_graph
from asyncstep.errors import InvalidTypeError, NotFoundError, kind_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from asyncstep._graph.graph import Graph

T = TypeVar("T")
P = ParamSpec("P")


class Variable(Node[T], Generic[T]):
    """A value that lives in the session's state, from step to step (TensorFlow: ``tf.Variable``).

    A variable is a node: fetched, it reads as the step's own last write, else as the committed value
    (contract T1). Values are treated as immutable; a change is a new value.

    Args:
        initial: the first value, or a synchronous function without parameters that makes it when a
            session is opened.
        name: unique in the graph; checkpoints know the variable by it.
        validate_shape: whether a restored array must have the dtype and shape of the initial one.
    """

    __slots__ = ("initial", "validate_shape", "written")

    @overload
    def __init__(self, initial: Callable[[], T], *, name: str, validate_shape: bool = True) -> None: ...
    @overload
    def __init__(self, initial: T, *, name: str, validate_shape: bool = True) -> None: ...
    def __init__(self, initial: T | Callable[[], T], *, name: str, validate_shape: bool = True) -> None:
        if inspect.iscoroutinefunction(initial):
            raise InvalidTypeError(
                f"the initial value of the variable {name!r} is a coroutine function; give a value,"
                " or a plain function (Scaffold's init_fn may await)"
            )
        self.initial: T | Callable[[], T] = initial
        self.validate_shape: bool = validate_shape
        self.written: bool = False
        super().__init__(name, name=name)
        self.graph._variables[self.name] = self

    def initial_value(self) -> T:
        """The first value, made anew if it is a function's."""
        initial = self.initial
        return initial() if callable(initial) else initial

    def assign(self, value: T | Node[T]) -> Node[T]:
        """A node that sets the variable to `value`; under concurrency the last commit wins (contract T5).

        `value` is a value or a node, or lists, tuples and dicts of them.
        """
        return Assign(self, value)

    def update(self, function: Callable[Concatenate[T, P], T], *args: Any) -> Node[T]:
        """A node that sets the variable to ``function(current, *args)``; no such change is ever lost.

        `function` must be pure and synchronous: it is called again if another step commits the variable
        in between (contract T5). `args` are values or nodes, or lists, tuples and dicts of them.
        """
        return Update(self, function, args)

    def assign_add(self, delta: Any) -> Node[T]:
        """``update(operator.add, delta)``."""
        return Update(self, operator.add, (delta,))


class Write(Node[T]):
    """A node that changes a variable; its value is the new one."""

    __slots__ = ("variable",)

    def __init__(self, verb: str, variable: Variable[T], inputs: tuple[Node[Any], ...]) -> None:
        self.variable = variable
        super().__init__(f"{variable.name}_{verb}", inputs=inputs, graph=own_graph(variable, inputs))
        variable.written = True


@final
class Assign(Write[T]):
    """Sets the variable to a value, whatever it was before."""

    __slots__ = ("value",)

    def __init__(self, variable: Variable[T], value: T | Node[T]) -> None:
        from asyncstep._graph.op import as_given, nodes_in

        self.value: T | Node[T] = as_given(value)
        super().__init__("assign", variable, nodes_in(value))


@final
class Update(Write[T]):
    """Applies a function to the variable."""

    __slots__ = ("args", "function")

    def __init__(self, variable: Variable[T], function: Callable[..., T], args: tuple[Any, ...]) -> None:
        from asyncstep._graph.op import as_given, nodes_in

        if inspect.iscoroutinefunction(function):
            raise InvalidTypeError(
                f"update of the variable {variable.name!r} needs a synchronous function, but"
                f" {_name_of(function)!r} is a coroutine function; await in an op, and pass its node to update"
            )
        if not callable(function):
            raise InvalidTypeError(
                f"update of the variable {variable.name!r} needs a function, not {kind_of(function)}"
            )
        self.function = function
        self.args: tuple[Any, ...] = as_given(args)
        super().__init__("update", variable, nodes_in(args))


def _name_of(function: object) -> str:
    return getattr(function, "__qualname__", None) or repr(function)


def create_global_step(graph: Graph | None = None) -> Variable[int]:
    """Make the graph's global step; InvalidArgumentError if there is one (``tf.train.create_global_step``)."""
    with graph or get_default_graph():
        return Variable(0, name=GLOBAL_STEP)


def get_global_step(graph: Graph | None = None) -> Variable[int]:
    """The graph's global step; NotFoundError if there is none (``tf.train.get_global_step``)."""
    graph = graph or get_default_graph()
    step = graph.variables.get(GLOBAL_STEP)
    if step is None:
        raise NotFoundError(f"{graph.described} has no global step; use get_or_create_global_step()")
    return step


def get_or_create_global_step(graph: Graph | None = None) -> Variable[int]:
    """The graph's global step, made if need be (``tf.train.get_or_create_global_step``)."""
    graph = graph or get_default_graph()
    return graph.variables.get(GLOBAL_STEP) or create_global_step(graph)
