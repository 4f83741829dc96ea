"""Where values live between steps, and how one step reads and changes them.

A `Transaction` collects what a step writes; `commit` takes all of it at one instant, without an await
(contract T2). Transactions nest: a raw run inside a step function is a transaction of its own that
merges into the step's when it succeeds, so a run that fails inside a step takes back its own writes only.

Every value carries a *stamp*, a number that no other write has. A write that came from `update` remembers
the stamp of the value that it began from. If the stamp has changed by the time of the commit (or merge),
the functions are applied again to what is there now, so that no update is lost (contract T5).
"""

from __future__ import annotations

import enum
import itertools
from contextvars import ContextVar
from dataclasses import dataclass
from types import CoroutineType
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import anyio

from asyncstep._runtime.calls import refuse_coroutine
from asyncstep.errors import AbortedError, FailedPreconditionError, SessionClosedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from asyncstep._graph.variable import Variable

_stamps = itertools.count(1)

Updates = tuple[Any, "Callable[..., Any]", tuple[Any, ...]]
"""(the updates before, function, args): a linked list, the newest first."""


class Fate(enum.Enum):
    """What becomes of the items of a transaction that is rolled back (contract D1)."""

    GIVE_AGAIN = "give again"
    PARK = "park"


class Items(Protocol):
    """Source items that a transaction holds."""

    def done(self) -> None:
        """They were committed."""

    def undone(self, fate: Fate) -> None:
        """They were rolled back."""


@dataclass(frozen=True, slots=True)
class SourceState:
    """How far a source is.

    Attributes:
        position: the low-water mark, in items: everything below it is finished.
        pending: the positions that were given and are not committed (yet, or any more).
        parked: the positions that an error rolled back; not given again in this process (contract D1).
    """

    position: int
    pending: tuple[int, ...]
    parked: tuple[int, ...]


class Reader(Protocol):
    """What gives one raw session the items of one source."""

    async def take(self, transaction: Transaction) -> Any:
        """The next item, or batch of items; OutOfRangeError after the last."""

    def state(self) -> SourceState:
        """How far the source is."""

    def snapshot(self) -> dict[str, Any]:
        """The same for a checkpoint, as plain values."""

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where a snapshot was made; before the first item is taken."""

    def stop(self) -> None:
        """Read no further ahead: no step is going to ask."""

    async def aclose(self) -> None:
        """Close the iterators that are open."""


@runtime_checkable
class Stateful(Protocol):
    """A hook whose state is saved and restored with the variables."""

    def state_dict(self) -> Any:
        """The state, as plain values."""

    def load_state_dict(self, state: Any, /) -> Any:
        """Go back to a state that `state_dict` gave."""


class Owner(Protocol):
    """The session whose step a transaction is."""

    sealed: bool
    """Whether its steps can no longer commit (contract L6)."""

    def data_ended(self, error: BaseException) -> None:
        """A raw run inside one of its steps met the end of data (contract S7)."""


class WriteRecord:
    """What a transaction has written to one variable; never changed, only replaced."""

    __slots__ = ("base", "stamp", "updates", "value")

    def __init__(self, value: Any, base: int, updates: Updates | None) -> None:
        self.value = value
        self.stamp = next(_stamps)
        self.base = base
        self.updates = updates  # None: the value does not depend on what was there before


class LocalStateStore:
    """The values of one raw session, in a dict.

    Attributes:
        closed: the raw session has ended; nothing can be committed any more.
        committed: whether a step of a monitored session has committed (contract V5).
        superseded: it was ended by a recovery (contract V2).
        restored_sources: snapshots of sources, by name, at which they begin when they are opened.
        restored_hooks: the states of hooks in the snapshot that was put back, by the hooks' names.
        restored_step: the global step of that snapshot.
        stateful_hooks: the monitored session's hooks that have a state, by name.
        start_soon: starts a background task of the monitored session; None if there is none.
    """

    __slots__ = (
        "_changed",
        "closed",
        "committed",
        "readers",
        "restored_hooks",
        "restored_sources",
        "restored_step",
        "stamps",
        "start_soon",
        "stateful_hooks",
        "superseded",
        "values",
    )

    def __init__(self) -> None:
        self._changed: anyio.Event | None = None
        self.values: dict[str, Any] = {}
        self.stamps: dict[str, int] = {}
        self.readers: dict[str, Reader] = {}
        self.restored_sources: dict[str, Any] = {}
        self.restored_hooks: dict[str, Any] = {}
        self.restored_step: int | None = None
        self.stateful_hooks: dict[str, Stateful] = {}
        self.start_soon: Callable[..., None] | None = None
        self.closed: bool = False
        self.committed: bool = False
        self.superseded: bool = False

    def initialize(self, variables: Iterable[Variable[Any]]) -> None:
        """Give variables that have no value their initial ones."""
        for variable in variables:
            if variable.name not in self.values:
                self.values[variable.name] = variable.initial_value()
                self.stamps[variable.name] = next(_stamps)

    def restore(self, variables: Mapping[str, Any], sources: Mapping[str, Any], step: int) -> None:
        """Make these the committed values, and the sources' states."""
        for name, value in variables.items():
            self.values[name] = value
            self.stamps[name] = next(_stamps)
        self.restored_sources = dict(sources)
        self.restored_step = step

    def reader(self, source: Any) -> Reader:
        """What gives this session the items of a source."""
        reader = self.readers.get(source.name)
        if reader is None:
            reader = source.open()
            if source.name in self.restored_sources:
                reader.restore(self.restored_sources[source.name])
            self.readers[source.name] = reader
        return reader

    def source_states(self, sources: Iterable[Any] = ()) -> dict[str, dict[str, Any]]:
        """Snapshots by name of the sources that were opened, or restored, and of `sources` if they were not."""
        for source in sources:
            if source.name not in self.restored_sources:
                self.reader(source)
        opened = {name: reader.snapshot() for name, reader in self.readers.items()}
        return {**self.restored_sources, **opened}

    def stop_reading(self) -> None:
        """Let sources read no further ahead: no step is going to ask."""
        for reader in self.readers.values():
            reader.stop()

    def read(self, name: str) -> Any:
        """The committed value of a variable."""
        return self.values[name]

    def stamp(self, name: str) -> int:
        """The stamp of the committed value."""
        return self.stamps[name]

    async def changed(self) -> None:
        """Wait until something is committed, or the store is closed. Checkpoint: always."""
        if self._changed is None:
            self._changed = anyio.Event()
        await self._changed.wait()

    def close(self) -> None:
        """Take no commits from now on."""
        self.closed = True
        self._wake()

    def _wake(self) -> None:
        if self._changed is not None:
            self._changed.set()
            self._changed = None

    def check_open(self) -> None:
        """Raise what tells a step in flight that it cannot commit any more."""
        if self.superseded:
            raise SupersededError("the session recovered while this step was running; the step is run again")
        if self.closed:
            error = SessionClosedError(
                "the session is closed, so this step can no longer commit; it is rolled back"
            )
            error.session = self
            raise error

    def commit(self, transaction: Transaction, step: str | None) -> int | None:
        """Take all writes and items of a transaction at one instant; return the global step."""
        self.check_open()
        if transaction.owner is not None and transaction.owner.sealed:
            raise SessionClosedError(
                "the session is closed, so this step can no longer commit; it is rolled back"
            )
        values = [(name, resolved(name, record, self)) for name, record in transaction.writes.items()]
        for name, record in values:
            self.values[name] = record.value
            self.stamps[name] = record.stamp
        if transaction.owner is not None:
            self.committed = True
        if step is not None and transaction.counts:
            self.values[step] += 1
            self.stamps[step] = next(_stamps)
        if self._changed is not None:
            self._wake()
        return None if step is None else self.values[step]


class SupersededError(AbortedError):
    """A step of an incarnation that has ended tried to go on."""


def resolved(name: str, record: WriteRecord, target: LocalStateStore | Transaction) -> WriteRecord:
    """The record as it is to be written into `target`, its updates applied again if need be."""
    if record.updates is None or record.base == target.stamp(name):
        return record
    base = target.stamp(name)
    value = target.read(name)
    for function, args in reversed(list(_unlinked(record.updates))):
        value = apply_update(name, function, value, args)
    return WriteRecord(value, base, record.updates)


def _unlinked(updates: Updates | None) -> Iterable[tuple[Callable[..., Any], tuple[Any, ...]]]:
    while updates is not None:
        updates, function, args = updates
        yield function, args


def _linked(before: Updates | None, after: Updates | None) -> Updates | None:
    """One list of updates: `before`, then `after`."""
    for function, args in reversed(list(_unlinked(after))):
        before = (before, function, args)
    return before


def apply_update(name: str, function: Callable[..., Any], value: Any, args: tuple[Any, ...]) -> Any:
    """The new value of a variable; an error gets a note that names the variable."""
    try:
        new = function(value, *args)
    except StopIteration as stop:
        raise RuntimeError(f"the update of the variable {name!r} raised StopIteration") from stop
    except Exception as error:
        add_note_once(error, f"in an update of the variable {name!r}")
        raise
    if isinstance(new, CoroutineType):
        refuse_coroutine(new, f"the update function of the variable {name!r}")
    return new


def add_note_once(error: BaseException, note: str) -> None:
    """Add a note to an exception, unless it has it already."""
    if note not in getattr(error, "__notes__", ()):
        error.add_note(note)


class Transaction:
    """What one step, or one raw run inside it, has read and changed so far.

    Attributes:
        store: the state that it will be committed to.
        parent: the transaction of the step that a raw run inside it belongs to.
        outer: the transaction that was current when this one began, of whatever session.
        owner: the monitored session whose step it is, until the step is over; else None.
        writes: the newest record of each variable written.
        finished: committed for good, or rolled back.
        counts: whether its commit adds one to the global step.
        final_errors: errors met inside this step that no retry may take for its failure: those that hooks
            raised after a commit, and those of background tasks. Forgotten when the attempt ends.
        stop_asked: whether the session was asked to stop by this very step.
    """

    # No slots: what few transactions need stands here, and costs the others nothing.
    items: list[Items] | None = None
    failed_items: list[Items] | None = None
    finished: bool = False
    counts: bool = False
    stop_asked: bool = False
    final_errors: tuple[BaseException, ...] = ()

    def __init__(
        self,
        store: LocalStateStore,
        parent: Transaction | None,
        outer: Transaction | None,
        owner: Owner | None = None,
    ) -> None:
        self.store = store
        self.parent = parent
        self.outer = outer
        self.owner = owner
        self.writes: dict[str, WriteRecord] = {}

    def read(self, name: str) -> Any:
        """The transaction's own last write of a variable, else the enclosing one's, else the committed value."""
        record = self.writes.get(name)
        if record is not None:
            return record.value
        return self.store.values[name] if self.parent is None else self.parent.read(name)

    def stamp(self, name: str) -> int:
        """The stamp of what `read` gives."""
        record = self.writes.get(name)
        if record is not None:
            return record.stamp
        return self.store.stamps[name] if self.parent is None else self.parent.stamp(name)

    def assign(self, name: str, value: Any) -> Any:
        """Write a value, whatever is there."""
        self.writes[name] = WriteRecord(value, 0, None)
        return value

    def update(self, name: str, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """Write ``function(current, *args)``."""
        record = self.writes.get(name)
        if record is None:
            new = WriteRecord(
                apply_update(name, function, self.read(name), args), self.stamp(name), (None, function, args)
            )
        else:
            value = apply_update(name, function, record.value, args)
            new = WriteRecord(value, record.base, record.updates and (record.updates, function, args))
        self.writes[name] = new
        return new.value

    def hold(self, items: Items) -> None:
        """Source items that were given to this transaction."""
        if self.items is None:
            self.items = []
        self.items.append(items)

    def merge(self, target: Transaction) -> None:
        """Make all of this part of `target`, the enclosing transaction."""
        if target.finished:
            raise FailedPreconditionError(
                "the step that this run belongs to has ended, so what the run wrote has no place to go;"
                " await the runs of a step inside it"
            )
        records = [(name, self._over(target, name, record)) for name, record in self.writes.items()]
        target.writes.update(records)
        if self.items is not None:
            target.items = [*(target.items or ()), *self.items]
        self._add_failed_items(target)
        self.finished = True

    def _over(self, target: Transaction, name: str, record: WriteRecord) -> WriteRecord:
        """This record, as a continuation of what `target` has written."""
        record = resolved(name, record, target)
        before = target.writes.get(name)
        if before is None or record.updates is None:
            return record
        updates = None if before.updates is None else _linked(before.updates, record.updates)
        return WriteRecord(record.value, before.base, updates)

    def _add_failed_items(self, target: Transaction) -> None:
        if self.failed_items is not None:
            target.failed_items = [*(target.failed_items or ()), *self.failed_items]

    def commit(self, step: str | None = None) -> int | None:
        """Commit to the store, together with what the enclosing transaction has so far (contract T3).

        Returns the value of the global step if its name is given.
        """
        parent = self.parent
        if parent is None:
            number = self.store.commit(self, step)
            self._settle()
            return number
        # Merged into a copy of the enclosing transaction, which stays as it is if the commit fails.
        whole = parent._copy()
        whole.counts = self.counts
        try:
            self.merge(whole)
            number = self.store.commit(whole, step)
        except BaseException:
            self.finished = False
            raise
        whole._settle()
        parent.writes = {}
        parent.items = parent.failed_items = None
        return number

    def _copy(self) -> Transaction:
        copy = Transaction(self.store, None, None, self.owner)
        copy.writes = dict(self.writes)
        copy.items = self.items
        copy.failed_items = self.failed_items
        copy.finished = self.finished
        return copy

    def _settle(self) -> None:
        """The commit is made: the items are done."""
        self.finished = True
        if self.items is not None:
            for items in self.items:
                items.done()
        self._give_up_failed(Fate.PARK)

    def roll_back(self, fate: Fate) -> None:
        """Forget all writes; the items are given again or parked.

        Inside a step, items that an error rolled back wait for the end of the step: a step that is run
        again gets them again.
        """
        if self.finished:
            return
        self.finished = True
        items, self.items = self.items, None
        parent = self.parent
        if parent is not None and not parent.finished and fate is Fate.PARK:
            self.failed_items = [*(self.failed_items or ()), *(items or ())] or None
            self._add_failed_items(parent)
            return
        for held in items or ():
            held.undone(fate)
        self._give_up_failed(fate)

    def _give_up_failed(self, fate: Fate) -> None:
        failed, self.failed_items = self.failed_items, None
        for held in failed or ():
            held.undone(fate)


current: ContextVar[Transaction | None] = ContextVar("asyncstep_transaction", default=None)
"""The innermost transaction of the code that is running."""


def live(transaction: Transaction | None) -> Transaction | None:
    """The innermost of a transaction and those around it that is not over, so that no chain of them grows."""
    while transaction is not None and transaction.finished and transaction.owner is None:
        transaction = transaction.outer
    return transaction


def enclosing(store: LocalStateStore) -> Transaction | None:
    """The innermost transaction on `store` that the running code is part of and that has not ended."""
    transaction = current.get()
    while transaction is not None and transaction.store is not store:
        transaction = transaction.outer
    return None if transaction is None or transaction.finished else transaction
