"""How one step reads and changes values: all of it at one instant, or nothing.

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
from types import CoroutineType
from typing import TYPE_CHECKING, Any, Protocol

from asyncstep._runtime.calls import refuse_coroutine
from asyncstep.errors import FailedPreconditionError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from asyncstep._runtime.state import StateStore

new_stamp = itertools.count(1).__next__
"""A number that no other write has."""

Updates = tuple[Any, "Callable[..., Any]", tuple[Any, ...]]
"""(the updates before, function, args): a linked list, the newest first."""


class Fate(enum.Enum):
    """What becomes of the items of a transaction that is rolled back (contract D1).

    What no step has seen, as the one did not begin that it was for, is given again as if for the first time.
    """

    GIVE_AGAIN = "give again"
    PARK = "park"
    NEVER_SEEN = "never seen"


class Items(Protocol):
    """Source items that a transaction holds."""

    def done(self) -> None:
        """They were committed."""

    def undone(self, fate: Fate) -> None:
        """They were rolled back."""


class Owner(Protocol):
    """The session whose step a transaction is."""

    sealed: bool
    """Whether its steps can no longer commit (contract L6)."""

    def data_ended(self, error: BaseException) -> None:
        """A raw run inside one of its steps met the end of data (contract S7)."""


class Unknown(enum.Enum):
    """The value of a variable that an update makes of what is in another process, as long as nobody asks for it."""

    UNKNOWN = enum.auto()


UNKNOWN = Unknown.UNKNOWN


class WriteRecord:
    """What a transaction has written to one variable; never changed, only replaced, and made known when it is read."""

    __slots__ = ("base", "stamp", "updates", "value")

    def __init__(self, value: Any, base: int, updates: Updates | None) -> None:
        self.value = value
        self.stamp = new_stamp()
        self.base = base
        self.updates = updates  # None: the value does not depend on what was there before


def resolved(name: str, record: WriteRecord, target: StateStore | Transaction) -> WriteRecord:
    """The record as it is to be written into `target`, its updates applied again if need be."""
    if record.updates is None or record.base == target.stamp(name):
        return record
    value = target.read(name)
    return WriteRecord(_updated(name, value, record.updates), target.stamp(name), record.updates)


def _updated(name: str, value: Any, updates: Updates | None) -> Any:
    for function, args in reversed(list(_unlinked(updates))):
        value = apply_update(name, function, value, args)
    return value


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
        at_end: what is called when the step is over; None for nothing.
    """

    __slots__ = (
        "at_end",
        "counts",
        "failed_items",
        "final_errors",
        "finished",
        "items",
        "outer",
        "owner",
        "parent",
        "stop_asked",
        "store",
        "writes",
    )

    def __init__(
        self,
        store: StateStore,
        parent: Transaction | None,
        outer: Transaction | None,
        owner: Owner | None = None,
    ) -> None:
        self.store: StateStore = store
        self.parent: Transaction | None = parent
        self.outer: Transaction | None = outer
        self.owner: Owner | None = owner
        self.writes: dict[str, WriteRecord] = {}
        self.items: list[Items] | None = None
        self.failed_items: list[Items] | None = None
        self.finished: bool = False
        self.counts: bool = False
        self.stop_asked: bool = False
        self.final_errors: tuple[BaseException, ...] = ()
        self.at_end: list[Callable[[], None]] | None = None

    def read(self, name: str) -> Any:
        """The transaction's own last write of a variable, else the enclosing one's, else the committed value."""
        record = self.writes.get(name)
        if record is None:
            return self.store.values[name] if self.parent is None else self.parent.read(name)
        if record.value is UNKNOWN:
            below: StateStore | Transaction = self.store if self.parent is None else self.parent
            record.value = _updated(name, below.read(name), record.updates)
            record.base = below.stamp(name)
        return record.value

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
        updates: Updates | None = (None, function, args)
        record = self.writes.get(name)
        if record is not None:
            value, base = self.read(name), record.base
            updates = record.updates and (record.updates, function, args)
        elif self.parent is None:
            value, base = self.store.values[name], self.store.stamps[name]
        else:
            value, base = self.parent.read(name), self.parent.stamp(name)
        value = apply_update(name, function, value, args)
        self.writes[name] = WriteRecord(value, base, updates)
        return value

    def update_unseen(self, name: str, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
        """Write ``function(current, *args)``, where nobody asks what that is.

        So what is current need not be here if it is in another process: the function is called there, by the commit.
        """
        record = self.writes.get(name)
        if not self.store.remote or (record is not None and record.value is not UNKNOWN):
            self.update(name, function, args)
        else:
            before = None if record is None else record.updates
            self.writes[name] = WriteRecord(UNKNOWN, 0, (before, function, args))

    def hold(self, items: Items) -> None:
        """Source items that were given to this transaction."""
        if self.items is None:
            self.items = []
        self.items.append(items)

    def call_at_end(self, function: Callable[[], None]) -> None:
        """Call a function when the step is over, whichever way: also if nothing is left to commit or roll back."""
        self.at_end = [*(self.at_end or ()), function]

    def over(self) -> None:
        """The step, or the raw run outside of any step, has ended."""
        calls, self.at_end = self.at_end, None
        for call in calls or ():
            call()

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
        before = target.writes.get(name)
        if record.value is not UNKNOWN or (before is not None and before.value is not UNKNOWN):
            record = resolved(name, record, target)
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
            self.finished = True
            if self.items is not None or self.failed_items is not None:
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

    async def send(self, step: str | None = None) -> tuple[int | None, BaseException | None]:
        """What `commit` does, where the state is in another process. Checkpoint: always, but it cannot be cancelled.

        Returns:
            The global step if its name is given; and the cancellation or interrupt that came while this waited,
            which the caller has to raise.
        """
        parent, root = self.parent, root_of(self)
        if parent is None:
            result = await self.store.send(self, root, step)
            self.finished = True
            self._settle()
            return result
        before, whole = dict(parent.writes), parent._copy()
        whole.counts = self.counts
        try:
            self.merge(whole)
            result = await self.store.send(whole, root, step)
        except BaseException:
            self.finished = False
            raise
        parent._forget(before, whole)
        whole._settle()
        return result

    def _forget(self, before: dict[str, WriteRecord], sent: Transaction) -> None:
        """What has been committed is no part of this any more; what came while it was sent stays.

        `before` is what this had written when it was sent.
        """
        for name, record in list(self.writes.items()):
            done = before.get(name)
            if done is record:
                del self.writes[name]
            elif done is not None and done.updates is not None and record.updates is not None:
                self.writes[name] = WriteRecord(record.value, 0, _later(record.updates, done.updates))
        self.items = _without(self.items, sent.items)
        self.failed_items = _without(self.failed_items, sent.failed_items)

    def _copy(self) -> Transaction:
        copy = Transaction(self.store, None, None, self.owner)
        copy.writes = dict(self.writes)
        copy.items = self.items
        copy.failed_items = self.failed_items
        copy.finished = self.finished
        return copy

    def _settle(self) -> None:
        """The commit is made: the items are done."""
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


def _later(updates: Updates, done: Updates) -> Updates | None:
    """Of a list of updates those that come after another one that it begins with."""
    later: list[tuple[Callable[..., Any], tuple[Any, ...]]] = []
    rest: Updates | None = updates
    while rest is not None and rest is not done:
        rest, function, args = rest
        later.append((function, args))
    found: Updates | None = None
    for function, args in reversed(later):
        found = (found, function, args)
    return found


def _without(items: list[Items] | None, others: list[Items] | None) -> list[Items] | None:
    """The items that are not among the others; None if there are none."""
    known = set(map(id, others or ()))
    return [each for each in items or () if id(each) not in known] or None


current: ContextVar[Transaction | None] = ContextVar("asyncstep_transaction", default=None)
"""The innermost transaction of the code that is running."""


def root_of(transaction: Transaction) -> Transaction:
    """The transaction of the step that one is a part of."""
    while transaction.parent is not None:
        transaction = transaction.parent
    return transaction


def live(transaction: Transaction | None) -> Transaction | None:
    """The innermost of a transaction and those around it that is not over, so that no chain of them grows."""
    while transaction is not None and transaction.finished and transaction.owner is None:
        transaction = transaction.outer
    return transaction


def enclosing(store: StateStore) -> Transaction | None:
    """The innermost transaction on `store` that the running code is part of, if it has not ended.

    A step that was under way when its session was restored has its transaction on the store of before.
    """
    transaction = current.get()
    while transaction is not None and transaction.store.lineage is not store.lineage:
        transaction = transaction.outer
    return None if transaction is None or transaction.finished else transaction


def in_step(store: StateStore) -> bool:
    """Whether the running code is part of a transaction on `store` that has not ended, the innermost or not."""
    transaction = current.get()
    while transaction is not None:
        if transaction.store.lineage is store.lineage and not transaction.finished:
            return True
        transaction = transaction.outer
    return False
