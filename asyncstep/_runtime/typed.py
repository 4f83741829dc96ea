"""The types of `run`: the value has the type of what is fetched."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, TypeVar, overload

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterable

    from asyncstep._graph.node import Node
    from asyncstep._runtime.options import RunMetadata, RunOptions

    Result = Coroutine[Any, Any, Any]

T = TypeVar("T")
T1 = TypeVar("T1")
T2 = TypeVar("T2")
T3 = TypeVar("T3")
K = TypeVar("K")


class Run(Protocol):
    """A bound `run` method of a session or a step context."""

    @overload
    async def __call__(
        self,
        fetches: Node[T] | Callable[[], Awaitable[T]],
        feed_dict: Any = None,
        *,
        options: RunOptions | None = None,
        run_metadata: RunMetadata | None = None,
        hooks: Iterable[Any] = ...,
    ) -> T: ...
    @overload
    async def __call__(
        self,
        fetches: tuple[Node[T1], Node[T2]],
        feed_dict: Any = None,
        *,
        options: RunOptions | None = None,
        run_metadata: RunMetadata | None = None,
        hooks: Iterable[Any] = ...,
    ) -> tuple[T1, T2]: ...
    @overload
    async def __call__(
        self,
        fetches: tuple[Node[T1], Node[T2], Node[T3]],
        feed_dict: Any = None,
        *,
        options: RunOptions | None = None,
        run_metadata: RunMetadata | None = None,
        hooks: Iterable[Any] = ...,
    ) -> tuple[T1, T2, T3]: ...
    @overload
    async def __call__(
        self,
        fetches: list[Node[T]],
        feed_dict: Any = None,
        *,
        options: RunOptions | None = None,
        run_metadata: RunMetadata | None = None,
        hooks: Iterable[Any] = ...,
    ) -> list[T]: ...
    @overload
    async def __call__(
        self,
        fetches: dict[K, Node[T]],
        feed_dict: Any = None,
        *,
        options: RunOptions | None = None,
        run_metadata: RunMetadata | None = None,
        hooks: Iterable[Any] = ...,
    ) -> dict[K, T]: ...
    @overload
    async def __call__(
        self,
        fetches: Any,
        feed_dict: Any = None,
        *,
        options: RunOptions | None = None,
        run_metadata: RunMetadata | None = None,
        hooks: Iterable[Any] = ...,
    ) -> Any: ...


class RunMethod(Protocol):
    """A `run` method of a class."""

    def __get__(self, instance: object, owner: type | None = None, /) -> Run: ...


def typed_run(method: Callable[..., Result]) -> RunMethod:
    """Give a `run` method its overloads; at run time it stays the function that it is."""
    return method
