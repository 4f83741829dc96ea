"""QueueReader: gives what was put into one queue to the steps of one raw session, each item to exactly one."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Hashable, Iterable, Mapping, Set as AbstractSet
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from asyncstep._runtime.state import SourceState
from asyncstep._runtime.transaction import Fate
from asyncstep.data.positions import Positions
from asyncstep.data.waiting import Waiting
from asyncstep.errors import (
    DataLossError,
    FailedPreconditionError,
    InvalidTypeError,
    OutOfRangeError,
    kind_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from asyncstep._runtime.state import StateStore
    from asyncstep._runtime.transaction import Transaction
    from asyncstep.data.waiting import Step, Waiter

Keyed = tuple[Any, Any]
"""(what tells an item from others, the item)."""


@dataclass(frozen=True, slots=True)
class QueueSettings:
    """What a queue was told when it was made.

    Attributes:
        name: of the node.
        initial: the items of the first life.
        batch: the most items that a step is given; None for one that is not in a list.
        key: what tells an item from others that are not to be put again; None if all are put.
    """

    name: str
    initial: tuple[Any, ...]
    batch: int | None
    key: Callable[[Any], Hashable] | None

    def keyed(self, items: Iterable[Any]) -> list[Keyed]:
        """The items with their keys; an error of the key is raised here, before anything is changed."""
        if self.key is None:
            return [(None, item) for item in items]
        return [(self._key_of(item), item) for item in items]

    def checked(self, items: Any) -> list[Keyed]:
        """What is put, with its keys; raises what tells that it cannot be put."""
        name = self.name
        if isinstance(items, AbstractSet):
            raise InvalidTypeError(
                f"what is put into the queue {name!r} is {kind_of(items)}, whose order differs from process to"
                " process; put a list, as in sorted(items), so that the loop can be gone on with (contract D3)"
            )
        if not isinstance(items, Iterable) or isinstance(items, (str, bytes, bytearray, Mapping)):
            raise InvalidTypeError(
                f"put of the queue {name!r} takes a list of items, or another iterable, not {kind_of(items)};"
                " put one item as [item]"
            )
        return self.keyed(items)

    def _key_of(self, item: Any) -> Hashable:
        assert self.key is not None
        key = self.key(item)
        try:
            hash(key)
        except TypeError as error:
            raise InvalidTypeError(
                f"the queue {self.name!r} cannot tell whether it had {kind_of(item)} before: {error};"
                " give unique= a function that makes a string, a number or a tuple of an item"
            ) from None
        return key


class QueueReader:
    """The items of one queue, for one raw session.

    Unlike those of other sources they cannot be read again: so a checkpoint has all that are not finished.
    What was put has a position from the instant of its commit on, in the order of the commits.
    """

    def __init__(self, settings: QueueSettings) -> None:
        self._settings = settings
        self._size = settings.batch or 1
        self._positions = Positions()
        self._end = 0  # the position of the next item that is put
        self._items: deque[tuple[int, Any]] = deque()
        self._again: list[tuple[int, TakenItems]] = []  # a heap, by the first position
        self._given: set[TakenItems] = set()
        self._parked: dict[int, Any] = {}
        self._seen: dict[Hashable, None] = {}
        self._waiting: Waiting | None = None
        self.waiters: dict[Waiter, None] = {}
        self._append(settings.keyed(settings.initial))

    def state(self) -> SourceState:
        """How far the queue is."""
        pending = [*self._given, *(taken for _, taken in self._again)]
        return SourceState(
            self._positions.low,
            tuple(sorted(position for taken in pending for position, _ in taken.entries)),
            tuple(sorted(self._parked)),
        )

    def size(self) -> int:
        """How many items wait to be given."""
        return len(self._items) + sum(len(taken.entries) for _, taken in self._again)

    async def take(self, transaction: Transaction) -> Any:
        """The next item, or a list of at most `batch` items, as many as there are.

        Checkpoint: only if there is something to wait for.

        Raises:
            OutOfRangeError: there is none, and no step in flight can put any.
            FailedPreconditionError: the only steps that could put any wait for their own items.
            SessionClosedError, AbortedError: the raw session was closed, or replaced, while this waited.
        """
        store = transaction.store
        store.check_open()
        waiting = self._waiting_of(store)
        waiting.join(transaction)
        taken = self._next()
        if taken is None:
            waiter = await waiting.item(self, transaction)
            taken = waiter.given
            if taken is None:
                store.check_open()
                raise self._ended(waiter)
        else:
            transaction.hold(taken)
        values = [value for _, value in taken.entries]
        return values[0] if self._settings.batch is None else values

    def _ended(self, waiter: Waiter) -> Exception:
        name = self._settings.name
        if waiter.puts_itself:
            return takes_its_own(name)
        return OutOfRangeError(f"the queue {name!r} is empty, and no step in flight can put anything into it")

    def enter(self, transaction: Transaction) -> None:
        """A step may put something; until it is over the data does not end."""
        self._waiting_of(transaction.store).join(transaction)

    def put(self, transaction: Transaction, items: Any) -> None:
        """Add items when the step commits; nothing if it is rolled back."""
        keyed = self._settings.checked(items)
        transaction.hold(PutItems(self, keyed, self._waiting_of(transaction.store).join(transaction)))

    def _waiting_of(self, store: StateStore) -> Waiting:
        """The one of all queues of the session."""
        if self._waiting is None:
            others = (reader for reader in store.readers.values() if isinstance(reader, QueueReader))
            found = next((other._waiting for other in others if other._waiting is not None), None)
            self._waiting = found or Waiting()
            self._waiting.add(self)
        return self._waiting

    def _next(self) -> TakenItems | None:
        """What was rolled back, or else what comes next, if there is something."""
        if self._again:
            taken = heapq.heappop(self._again)[1]
        elif self._items:
            items = self._items
            taken = TakenItems(self, [items.popleft() for _ in range(min(self._size, len(items)))])
        else:
            return None
        self._given.add(taken)
        return taken

    def append(self, keyed: list[Keyed]) -> None:
        """Add items at the instant of their commit, and give them to whoever waits."""
        self._append(keyed)
        self._offer()

    def _append(self, keyed: list[Keyed]) -> None:
        unique, seen = self._settings.key is not None, self._seen
        for key, item in keyed:
            if unique:
                if key in seen:
                    continue
                seen[key] = None
            self._items.append((self._end, item))
            self._end += 1

    def _offer(self) -> None:
        while self.waiters and (taken := self._next()) is not None:
            assert self._waiting is not None
            self._waiting.give(self, taken)

    def finish(self, taken: TakenItems) -> None:
        """The step that was given these has committed."""
        self._given.discard(taken)
        for position, _ in taken.entries:
            self._positions.finish(position, position + 1)

    def undo(self, taken: TakenItems, fate: Fate) -> None:
        """The step that was given these has been rolled back."""
        self._given.discard(taken)
        if fate is Fate.PARK:
            self._parked.update(taken.entries)
        else:
            heapq.heappush(self._again, (taken.entries[0][0], taken))
            self._offer()

    def snapshot(self) -> dict[str, Any]:
        """The positions, and all items that are not finished: nobody could read those again."""
        pending = [*self._given, *(taken for _, taken in self._again)]
        unfinished = [entry for taken in pending for entry in taken.entries]
        unfinished += self._parked.items()
        unfinished.sort(key=_position)
        return {
            "position": self._positions.low,
            "finished": [list(each) for each in self._positions.ranges],
            "settings": {"unique": self._settings.key is not None},
            "items": {
                "queue": [item for _, item in unfinished] + [item for _, item in self._items],
                "seen": list(self._seen),
            },
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where a snapshot was made: all that was not finished is given, in the order of its commits.

        Raises:
            FailedPreconditionError: what was saved is no queue, or one that told items apart in another way.
            DataLossError: this is no snapshot of a source.
        """
        try:
            self._restore(state)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise DataLossError(
                f"the saved state of the queue {self._settings.name!r} is damaged: {error!r}"
            ) from error

    def _restore(self, state: dict[str, Any]) -> None:
        name, unique = self._settings.name, self._settings.key is not None
        if "queue" not in state["items"]:
            raise FailedPreconditionError(
                f"{name!r} was saved as a source of items that are read, and is a queue now; give the queue"
                " another name"
            )
        saved = state["settings"]["unique"]
        if saved != unique:
            raise FailedPreconditionError(
                f"the queue {name!r} was saved {'with' if saved else 'without'} unique=, and is"
                f" {'with' if unique else 'without'} it now, so which items it had before cannot be told;"
                " make it as it was, or give it another name"
            )
        positions = Positions(state["position"], state["finished"])
        entries, position = [], positions.low
        for item in state["items"]["queue"]:
            position = positions.first_open(position)
            entries.append((position, item))
            position += 1
        self._positions, self._items = positions, deque(entries)
        self._end = max(position, positions.end)
        self._seen = dict.fromkeys(state["items"]["seen"])

    def stop(self) -> None:
        """Nothing is read ahead."""

    async def aclose(self) -> None:
        """Tell whoever waits that the session is closed."""
        if self._waiting is not None:
            self._waiting.dismiss(self)


def takes_its_own(queue: str) -> FailedPreconditionError:
    """What tells a step that it asks for an item when only it could put another one."""
    return FailedPreconditionError(
        f"the step asks the queue {queue!r} for an item after the last one, and has put some itself that appear only"
        " when it commits; take them in another step, or commit in between by ctx.run_with_hooks"
    )


def _position(entry: tuple[int, Any]) -> int:
    return entry[0]


class TakenItems:
    """What one transaction was given at a time.

    Attributes:
        entries: the positions with their items, in order.
    """

    __slots__ = ("_reader", "entries")

    def __init__(self, reader: QueueReader, entries: list[tuple[int, Any]]) -> None:
        self._reader = reader
        self.entries: list[tuple[int, Any]] = entries

    def done(self) -> None:
        """The step has committed."""
        self._reader.finish(self)

    def undone(self, fate: Fate) -> None:
        """The step has been rolled back."""
        self._reader.undo(self, fate)


class PutItems:
    """What one transaction has put, which is in the queue once it commits."""

    __slots__ = ("_keyed", "_reader", "_step")

    def __init__(self, reader: QueueReader, keyed: list[Keyed], step: Step) -> None:
        self._reader = reader
        self._keyed = keyed
        self._step = step
        step.puts += 1

    def done(self) -> None:
        """The step has committed."""
        self._step.puts -= 1
        self._reader.append(self._keyed)

    def undone(self, _: Fate) -> None:
        """The step has been rolled back, so nothing was put."""
        self._step.puts -= 1
