"""source: a node whose value is the next item."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterable, Iterable, Mapping, Set as AbstractSet
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast, final, overload

from asyncstep._graph.node import Node
from asyncstep.data.reader import Reader
from asyncstep.data.stream import IterableStream, SequenceStream, Stream
from asyncstep.errors import InvalidArgumentError, InvalidTypeError, kind_of

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


@final
class Source(Node[T], Generic[T]):
    """A node that gives each step the next item, or the next list of items; made by `source`."""

    __slots__ = ("_batch", "_drop_remainder", "_items", "_repeat")

    def __init__(
        self, items: Any, name: str, batch: int | None, drop_remainder: bool, repeat: int | None
    ) -> None:
        self._items = items
        self._batch = batch
        self._drop_remainder = drop_remainder
        self._repeat = repeat
        super().__init__(name, name=name)
        self.graph._sources[self.name] = self

    def open(self) -> Reader:
        """What gives one raw session the items."""
        return Reader(self.name, self._stream(), self._batch, self._drop_remainder)

    def _stream(self) -> Stream:
        items = self._items
        if _is_sequence(items):
            return SequenceStream(items, self._repeat)
        open_items = cast("Callable[[], Any]", items) if callable(items) else lambda: items
        return IterableStream(open_items, self._repeat, self.name)


@overload
def source(
    items: Callable[[], Iterable[T] | AsyncIterable[T]] | Iterable[T] | AsyncIterable[T],
    *,
    name: str,
    batch: None = None,
    drop_remainder: bool = False,
    repeat: int | None = 1,
) -> Source[T]: ...
@overload
def source(
    items: Callable[[], Iterable[T] | AsyncIterable[T]] | Iterable[T] | AsyncIterable[T],
    *,
    name: str,
    batch: int,
    drop_remainder: bool = False,
    repeat: int | None = 1,
) -> Source[list[T]]: ...
def source(
    items: Any,
    *,
    name: str,
    batch: int | None = None,
    drop_remainder: bool = False,
    repeat: int | None = 1,
) -> Source[Any]:
    """A node that gives every step that needs it the next item (TensorFlow: ``tf.data`` and its iterators).

    An item belongs to the step's transaction: it is done when the step commits, and given again if the
    step is cancelled or retried (contract D1). After the last item the step's run ends with
    OutOfRangeError, which ends the session cleanly (contract S7).

    Args:
        items: a sequence; or a function without parameters that returns an iterable or an async
            iterable, from its first item; or an iterable that can be gone through again. A synchronous
            iterable is read in the event loop, so it should not block.
        name: of the node; checkpoints know the source by it.
        batch: give lists of so many items, of one epoch each; the last of an epoch may be shorter.
        drop_remainder: leave such a shorter list out.
        repeat: the number of epochs, or None for no end.

    Raises:
        InvalidTypeError: `items` can be gone through only once, or is nothing of the above.
        InvalidArgumentError: a number is out of range.
    """
    _check_items(items, name)
    for what, number in (("batch", batch), ("repeat", repeat)):
        if number is not None and (not isinstance(number, int) or isinstance(number, bool) or number < 1):
            raise InvalidArgumentError(f"{what} of the source {name!r} must be at least 1, not {number!r}")
    if drop_remainder and batch is None:
        raise InvalidArgumentError(f"drop_remainder of the source {name!r} needs a batch")
    return Source(items, name, batch, drop_remainder, repeat)


def _is_sequence(items: object) -> bool:
    return (
        hasattr(items, "__len__")
        and hasattr(items, "__getitem__")
        and not isinstance(items, (Mapping, AbstractSet))
    )


def _check_items(items: object, name: str) -> None:
    if isinstance(items, Node):
        raise InvalidTypeError(f"the source {name!r} is given the node {items.name!r}; give it the items")
    if _is_sequence(items):
        return
    if isinstance(items, (set, frozenset)):
        raise InvalidTypeError(
            f"the items of the source {name!r} are {kind_of(items)}, whose order differs from process to process;"
            " give a list, as in sorted(items), so that the source can go on where it was (contract D3)"
        )
    if inspect.iscoroutinefunction(items):
        raise InvalidTypeError(
            f"the function of the source {name!r} is a coroutine function; give an async generator function,"
            " or a function that returns an async iterable"
        )
    if isinstance(items, Iterable):
        once = iter(items) is items
    elif isinstance(items, AsyncIterable):
        once = aiter(items) is items
    elif callable(items):
        return
    else:
        raise InvalidTypeError(
            f"the source {name!r} needs a sequence, or a function that returns an iterable, not {kind_of(items)}"
        )
    if once:
        raise InvalidTypeError(
            f"the items of the source {name!r} are {kind_of(items)}, which can be gone through only once;"
            " give a function that makes it, so that the source can begin again"
        )
