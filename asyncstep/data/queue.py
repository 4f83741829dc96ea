"""queue: a source that is fed by the steps that take from it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Set as AbstractSet
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, cast, final, overload

from asyncstep._graph.node import Node, StateNode
from asyncstep.data.queue_reader import QueueReader, QueueSettings
from asyncstep.errors import InvalidArgumentError, InvalidTypeError, kind_of

if TYPE_CHECKING:
    from asyncstep._runtime.transaction import Transaction

T = TypeVar("T")
I = TypeVar("I")  # noqa: E741 - the item, where T is what a step is given


@final
class Queue(Node[T], Generic[T, I]):
    """A node that gives each step the next item that was put, or a list of items; made by `queue`."""

    __slots__ = ("_settings",)

    def __init__(self, settings: QueueSettings) -> None:
        self._settings = settings
        super().__init__(settings.name, name=settings.name)
        self.graph._sources[self.name] = self

    def put(self, items: Node[Iterable[I]] | Iterable[I | Node[I]]) -> Node[None]:
        """A node that adds items to the end of the queue, when its step commits (TensorFlow: ``enqueue_many``).

        `items` is an iterable, or a node whose value is one. If the step is rolled back, nothing was put;
        and the step itself cannot take them before it has committed.
        """
        return Put(self, items)

    def size(self) -> Node[int]:
        """A node whose value is the number of items that wait to be given, as committed."""
        return Size(self, "size")

    @property
    def settings(self) -> QueueSettings:
        """What it was told when it was made."""
        return self._settings

    def open(self) -> QueueReader:
        """What gives one raw session the items."""
        return QueueReader(self._settings)


@final
class Put(StateNode[None]):
    """Puts items into a queue."""

    __slots__ = ()

    def __init__(self, target: Queue[Any, Any], items: Any) -> None:
        super().__init__(target, "put", (items,))

    def apply(self, transaction: Transaction, args: tuple[Any, ...]) -> None:
        _reader(self, transaction).put(transaction, args[0])


@final
class Size(StateNode[int]):
    """Counts the items that wait in a queue."""

    __slots__ = ()

    def apply(self, transaction: Transaction, args: tuple[Any, ...]) -> int:
        return _reader(self, transaction).size()


class Fed(Protocol):
    """What puts items into a queue, and counts them: its reader, or the one of a worker whose queue is elsewhere."""

    def put(self, transaction: Transaction, items: Any) -> None:
        """Add items when the step commits; nothing if it is rolled back."""

    def size(self) -> int:
        """How many items wait to be given."""


def _reader(node: StateNode[Any], transaction: Transaction) -> Fed:
    return cast("Fed", transaction.store.reader(node.target))


@overload
def queue(
    initial: Iterable[I],
    *,
    name: str,
    batch: None = None,
    unique: bool | Callable[[I], Hashable] = False,
) -> Queue[I, I]: ...
@overload
def queue(
    initial: Iterable[I],
    *,
    name: str,
    batch: int,
    unique: bool | Callable[[I], Hashable] = False,
) -> Queue[list[I], I]: ...
def queue(
    initial: Iterable[Any],
    *,
    name: str,
    batch: int | None = None,
    unique: bool | Callable[[Any], Hashable] = False,
) -> Queue[Any, Any]:
    """A source that steps feed: the frontier of a crawl, the tasks that a task finds (``tf.queue.FIFOQueue``).

    Like an item of any source, each is given to one step, is done when that commits, and is given again or
    set aside when it is rolled back (contract D1). What a step puts belongs to it, too: it is in the queue
    when the step has committed, in the order of the commits, and never if the step is rolled back (contract T2,
    T4). A step that finds the queue empty waits for as long as another one may still put something: any step
    that has taken or put something and is not over. When there is none, the data has ended: OutOfRangeError,
    which ends the session cleanly (contract D5).

    A checkpoint has the positions, like that of any source, and the items that are not finished, because
    nobody could read them again: they must be values that a variable could have, and are never changed. A
    restore gives them in the order of their commits.

    Args:
        initial: the first items, in order; left alone where the queue is restored from a checkpoint.
        name: of the node; checkpoints know the queue by it.
        batch: give lists of at most so many items: of what is there, without waiting for more.
        unique: True to put every item once only, however often it is found; or a function that gives what
            tells an item from others (a URL without its fragment, say). All keys that were ever put are kept,
            in checkpoints, too.

    Raises:
        InvalidTypeError, InvalidArgumentError: an argument cannot be used.
    """
    if isinstance(initial, (str, bytes, bytearray, Mapping, AbstractSet, Node)) or not isinstance(
        initial, Iterable
    ):
        raise InvalidTypeError(
            f"the first items of the queue {name!r} must be a list, or another iterable that has an order, not"
            f" {kind_of(initial)}"
        )
    if batch is not None and (not isinstance(batch, int) or isinstance(batch, bool) or batch < 1):
        raise InvalidArgumentError(f"batch of the queue {name!r} must be at least 1, or None, not {batch!r}")
    if not isinstance(unique, bool) and not callable(unique):
        raise InvalidTypeError(
            f"unique of the queue {name!r} must be True, False, or a function that makes a key of an item, not"
            f" {kind_of(unique)}"
        )
    key = (_itself if unique else None) if isinstance(unique, bool) else unique
    settings = QueueSettings(name, tuple(initial), batch, key)
    settings.keyed(settings.initial)
    return Queue(settings)


def _itself(item: Any) -> Any:
    return item
