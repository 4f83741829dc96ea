"""source: a node whose value is the next item."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Mapping, Set as AbstractSet
from typing import TYPE_CHECKING, Any, Generic, TypeVar, final, overload

from asyncstep._graph.node import Node
from asyncstep.data.iterables import IterableStream
from asyncstep.data.opening import Opener, state_methods, takes_start
from asyncstep.data.reader import Reader
from asyncstep.data.sequences import SequenceAhead, SequenceStream
from asyncstep.data.settings import Settings, checked_settings
from asyncstep.errors import InvalidArgumentError, InvalidTypeError, kind_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from asyncstep.data.stream import Stream

T = TypeVar("T")


@final
class Source(Node[T], Generic[T]):
    """A node that gives each step the next item, or the next list of items; made by `source`."""

    __slots__ = ("_items", "_opener", "_settings")

    def __init__(self, items: Any, name: str, settings: Settings) -> None:
        self._items = items
        self._opener = None if _is_sequence(items) else Opener(items, name)
        self._settings = settings
        super().__init__(name, name=name)
        self.graph._sources[self.name] = self

    def open(self) -> Reader:
        """What gives one raw session the items."""
        return Reader(self.name, self._stream(), self._settings)

    def _stream(self) -> Stream:
        if self._opener is not None:
            return IterableStream(self._opener, self._settings, self.name)
        kind = SequenceAhead if self._settings.prefetch else SequenceStream
        return kind(self._items, self._settings, self.name)


@overload
def source(
    items: Callable[..., Iterable[T] | AsyncIterable[T]] | Iterable[T] | AsyncIterable[T],
    *,
    name: str,
    batch: None = None,
    drop_remainder: bool = False,
    prefetch: int = 0,
    shuffle: bool | int | None = None,
    seed: int = 0,
    repeat: int | None = 1,
    shard: tuple[int, int] | None = None,
) -> Source[T]: ...
@overload
def source(
    items: Callable[..., Iterable[T] | AsyncIterable[T]] | Iterable[T] | AsyncIterable[T],
    *,
    name: str,
    batch: int,
    drop_remainder: bool = False,
    prefetch: int = 0,
    shuffle: bool | int | None = None,
    seed: int = 0,
    repeat: int | None = 1,
    shard: tuple[int, int] | None = None,
) -> Source[list[T]]: ...
def source(
    items: Any,
    *,
    name: str,
    batch: int | None = None,
    drop_remainder: bool = False,
    prefetch: int = 0,
    shuffle: bool | int | None = None,
    seed: int = 0,
    repeat: int | None = 1,
    shard: tuple[int, int] | None = None,
) -> Source[Any]:
    """A node that gives every step that needs it the next item (TensorFlow: ``tf.data`` and its iterators).

    An item belongs to the step's transaction: it is done when the step commits, and given again if the
    step is cancelled or retried (contract D1). After the last item the step's run ends with
    OutOfRangeError, which ends the session cleanly (contract S7). A checkpoint keeps positions, never
    items: after a restore, what was not done is given first, and the order is the same (contract D2, D3).
    So the items have to be the same, too: a step that finds that there are more or fewer of them in an epoch
    than there were raises FailedPreconditionError.

    An error of the items is raised by the step that would have got the item. An item of a sequence is then
    parked or given again as if the step had failed (contract D1). Another iterable is opened again when the
    next step asks, up to the item at which it failed; if it fails there for good a second time, steps that
    ask get FailedPreconditionError until it is read by a new session.

    Args:
        items: where they come from, one of

            - a sequence, whose items are read by index, in the event loop unless there is a `prefetch`;
            - a function without parameters that returns an iterable or an async iterable, from its first
              item, or an iterable that can be gone through again. After a restore the items that are done
              are skipped by reading them; without a `prefetch` that, too, is in the event loop;
            - such a function with a parameter named `start`: the number of items of the epoch to leave
              out, so that nothing is skipped by reading. It gives nothing if there are no more;
            - an iterable, or one whose iterators, have ``state_dict()`` and ``load_state_dict()`` (torchdata)
              or ``get_state()`` and ``set_state()`` (grain): a checkpoint keeps a state of it, too, and a
              restore reads no more than a few items again. Such an object, unlike one that a function
              makes, can be read by one session at a time.
        name: of the node; checkpoints know the source by it.
        batch: give lists of so many items, of one epoch each; the last of an epoch may be shorter.
        drop_remainder: leave such a shorter list out.
        prefetch: read so many items before steps ask for them. Async iterables are read by a background
            task, which needs a task group (contract L8). All else is read by worker threads, one at a
            time, and in the background where there is a task group.
        shuffle: True for a permutation of a whole sequence, other in each epoch; or the size of consecutive
            windows of items, each of which is permuted. A window takes the place of the buffer of
            ``tf.data.Dataset.shuffle``: so a restore reads one window again, not all items.
        seed: another one gives other permutations.
        repeat: the number of epochs, or None for no end. It may be another one when a checkpoint is restored.
        shard: (index, count): of every `count` items give one. The shards of a sequence share its shuffled
            order, so they change with the epoch. Those of an iterable are every `count`-th item, which are
            shuffled then.

    Raises:
        InvalidTypeError: `items` can be gone through only once, or is nothing of the above.
        InvalidArgumentError: another argument is out of range, or there is no way to do what it asks for.
    """
    _check_items(items, name)
    settings = checked_settings(
        name,
        batch=batch,
        drop_remainder=drop_remainder,
        prefetch=prefetch,
        shuffle=shuffle,
        seed=seed,
        repeat=repeat,
        shard=shard,
    )
    if settings.shuffle is True and not _is_sequence(items):
        raise InvalidArgumentError(
            f"shuffle=True of the source {name!r} needs a sequence, but {kind_of(items)} is read one item after the"
            " other; give the size of a window, as in shuffle=1000"
        )
    return Source(items, name, settings)


def _is_sequence(items: object) -> bool:
    return (
        hasattr(items, "__len__")
        and hasattr(items, "__getitem__")
        and not isinstance(items, Mapping | AbstractSet)
        and not hasattr(
            items, "to_iter_dataset"
        )  # grain's MapDataset: only its iterators know what is filtered out
    )


def _check_items(items: object, name: str) -> None:
    """Refuse what cannot be begun again, and what gives no items at all."""
    if isinstance(items, Node):
        raise InvalidTypeError(f"the source {name!r} is given the node {items.name!r}; give it the items")
    if _is_sequence(items):
        return
    if isinstance(items, (set, frozenset)):
        raise InvalidTypeError(
            f"the items of the source {name!r} are {kind_of(items)}, whose order differs from process to process;"
            " give a list, as in sorted(items), so that the source can go on where it was (contract D3)"
        )
    if callable(items):
        _check_function(items, name)
    elif not isinstance(items, Iterable | AsyncIterable):
        raise InvalidTypeError(
            f"the source {name!r} needs a sequence, or a function that returns an iterable, not {kind_of(items)}"
        )
    elif state_methods(items) is None and isinstance(items, Iterator | AsyncIterator):
        raise InvalidTypeError(
            f"the items of the source {name!r} are {kind_of(items)}, which can be gone through only once;"
            " give a function that makes it, so that the source can begin again"
        )


def _check_function(function: Callable[..., Any], name: str) -> None:
    if inspect.iscoroutinefunction(function):
        raise InvalidTypeError(
            f"the function of the source {name!r} is a coroutine function; give an async generator function,"
            " or a function that returns an async iterable"
        )
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return  # a builtin that does not tell
    try:
        signature.bind(**({"start": 0} if takes_start(function) else {}))
    except TypeError as error:
        raise InvalidTypeError(
            f"the function of the source {name!r} is called without arguments, or with `start` if it has such a"
            f" parameter, but its signature is {signature}: {error}"
        ) from None
