"""op: a function whose calls are nodes."""

from __future__ import annotations

import functools
import inspect
import numbers
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Literal, ParamSpec, TypeVar, final, overload

from asyncstep._graph.node import Node
from asyncstep.errors import InvalidArgumentError, InvalidTypeError, kind_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    import anyio

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
P = ParamSpec("P")

Offload = Literal["thread", "process"]


@dataclass(frozen=True, slots=True)
class OpOptions:
    """How an op is called: where, how often, how long, how many at a time."""

    offload: Offload | None = None
    retry: Any = None
    timeout: float | None = None
    limiter: anyio.CapacityLimiter | None = None

    @property
    def plain(self) -> bool:
        """Whether the function can be called as it is."""
        return self.offload is None and self.retry is None and self.timeout is None and self.limiter is None


@final
class Op(Generic[P, T_co]):
    """A function made by `op`: called with nodes and values, it gives a Node, and nothing runs yet."""

    def __init__(self, function: Callable[P, Any], name: str | None, options: OpOptions) -> None:
        functools.update_wrapper(self, function)
        self.function = function
        self.is_async: bool = _is_async(function)
        self.name: str = name or getattr(function, "__name__", type(function).__name__).strip("<>")
        self.options = options
        try:
            self.signature: inspect.Signature | None = inspect.signature(function)
        except (TypeError, ValueError):  # some builtins have none
            self.signature = None

    def __repr__(self) -> str:
        return f"<op {self.name}{self.signature or '(...)'}>"

    def __call__(self, *args: Any, **kwargs: Any) -> Node[T_co]:
        """A node that calls the function with these arguments, once those of them that are nodes are known.

        Raises:
            InvalidTypeError: the function does not take such arguments; the message has its signature.
        """
        if self.signature is not None:
            try:
                self.signature.bind(*args, **kwargs)
            except TypeError as error:
                raise InvalidTypeError(f"{error}, in a call of the op {self.name}{self.signature}") from None
        return OpNode(self, args, kwargs)


@final
class OpNode(Node[T_co]):
    """One call of an op."""

    __slots__ = ("args", "kwargs", "op")

    def __init__(self, called: Op[Any, T_co], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.op = called
        self.args: tuple[Any, ...] = as_given(args)
        self.kwargs: dict[str, Any] = as_given(kwargs)
        super().__init__(called.name, inputs=nodes_in((args, kwargs)))


@overload
def op(function: Callable[P, Awaitable[T]], /) -> Op[P, T]: ...
@overload
def op(function: Callable[P, T], /) -> Op[P, T]: ...
@overload
def op(
    *,
    name: str | None = None,
    offload: Offload | None = None,
    retry: Any = None,
    timeout: float | None = None,
    limiter: anyio.CapacityLimiter | None = None,
) -> _OpDecorator: ...
def op(
    function: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    offload: Offload | None = None,
    retry: Any = None,
    timeout: float | None = None,
    limiter: anyio.CapacityLimiter | None = None,
) -> Any:
    """Make a function an op: calling it adds a node to the graph (``@op`` or ``@op(...)``).

    Args:
        function: ``async def`` or ``def``. Arguments may be nodes, plain values, or lists, tuples and
            dicts of them at any depth.
        name: of the nodes; the function's name by default.
        offload: run a ``def`` function off the event loop, in a ``"thread"`` or a ``"process"``.
        retry: attempts in all (an int, with exponential back-off), or a ``tenacity.AsyncRetrying``.
        timeout: seconds for one attempt; then DeadlineExceededError.
        limiter: an ``anyio.CapacityLimiter`` that nodes share, held for an attempt, not between them.

    Raises:
        InvalidTypeError, InvalidArgumentError: at once, for options that cannot work.
    """
    options = OpOptions(offload, retry, timeout, limiter)
    _check_options(options)
    if name is not None and (not isinstance(name, str) or not name):
        raise InvalidTypeError(f"the name of an op must be a non-empty string, not {name!r}")

    def decorate(function: Callable[..., Any]) -> Op[..., Any]:
        _check_function(function, options)
        return Op(function, name, options)

    return decorate if function is None else decorate(function)


class _OpDecorator:
    """The type of ``op(...)``."""

    @overload
    def __call__(self, function: Callable[P, Awaitable[T]], /) -> Op[P, T]: ...
    @overload
    def __call__(self, function: Callable[P, T], /) -> Op[P, T]: ...
    def __call__(self, function: Any, /) -> Any:
        """Make the op."""


def nodes_in(value: object) -> tuple[Node[Any], ...]:
    """The nodes in a nesting of lists, tuples and dicts, in order."""
    found: list[Node[Any]] = []
    seen: set[int] = set()
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, Node):
            found.append(item)
        elif isinstance(item, (list, tuple, dict)) and id(item) not in seen:
            seen.add(id(item))
            pending.extend(reversed(list(item.values()) if isinstance(item, dict) else item))
    return tuple(found)


def as_given(value: Any, inside: tuple[int, ...] = ()) -> Any:
    """A nesting as it is now: what holds nodes is copied, so that later changes to it do not matter.

    Raises:
        InvalidArgumentError: a container that holds nodes also holds itself.
    """
    if not isinstance(value, (list, tuple, dict)) or not nodes_in(value):
        return value
    if id(value) in inside:
        raise InvalidArgumentError(f"{kind_of(value)} among the arguments of a node contains itself")
    inside = (*inside, id(value))
    if isinstance(value, dict):
        return {key: as_given(item, inside) for key, item in value.items()}
    parts = [as_given(item, inside) for item in value]
    return parts if isinstance(value, list) else getattr(type(value), "_make", tuple)(parts)


def _is_async(function: object) -> bool:
    if isinstance(function, functools.partial):
        return _is_async(function.func)
    if isinstance(function, type):
        return False  # it makes an object, which may have an async __call__
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)
    )


def _check_function(function: object, options: OpOptions) -> None:
    if not callable(function):
        raise InvalidTypeError(f"op() makes ops of functions, not of {kind_of(function)}")
    if isinstance(function, Op):
        raise InvalidTypeError(f"{function.name} is an op already")
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise InvalidTypeError(
            f"{getattr(function, '__name__', function)} is a generator function; an op returns one value (see source)"
        )
    if options.offload is not None and _is_async(function):
        raise InvalidTypeError(
            f"offload={options.offload!r} needs a def function;"
            f" {getattr(function, '__name__', function)!r} is async"
        )
    if options.timeout is not None and options.offload is None and not _is_async(function):
        raise InvalidTypeError(
            f"timeout={options.timeout!r} cannot interrupt {getattr(function, '__name__', function)!r}, a def"
            " function in the event loop; make it async, or give offload as well"
        )


def _check_options(options: OpOptions) -> None:
    if options.offload not in (None, "thread", "process"):
        raise InvalidArgumentError(f"offload must be 'thread' or 'process', not {options.offload!r}")
    if options.timeout is not None and not (_is_number(options.timeout) and options.timeout > 0):
        raise InvalidArgumentError(f"timeout must be a positive number of seconds, not {options.timeout!r}")
    retry = options.retry
    if isinstance(retry, int):
        if isinstance(retry, bool) or retry < 1:
            raise InvalidArgumentError(f"retry must be at least 1 attempt, not {retry!r}")
    elif retry is not None and not hasattr(retry, "__aiter__"):
        raise InvalidTypeError(
            f"retry must be a number of attempts or a tenacity.AsyncRetrying, not {kind_of(retry)}"
        )
    limiter = options.limiter
    if limiter is not None and not hasattr(limiter, "acquire_on_behalf_of"):
        raise InvalidTypeError(f"limiter must be an anyio.CapacityLimiter, not {kind_of(limiter)}")


def _is_number(value: object) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)
