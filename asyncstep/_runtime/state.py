"""Where values live between steps: the state of one raw session (see `transaction` for how it changes)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

import anyio

from asyncstep._runtime.transaction import new_stamp, resolved
from asyncstep.errors import AbortedError, SessionClosedError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping

    from asyncstep._graph.variable import Variable
    from asyncstep._runtime.plan import Plan
    from asyncstep._runtime.transaction import Transaction


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


@dataclass(frozen=True, slots=True)
class ArrayForm:
    """What a variable's arrays have in common, whatever their values (contract K7)."""

    dtype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.dtype}{list(self.shape)}"


def form_of(value: Any) -> ArrayForm | None:
    """The dtype and the shape of an array; None of anything else."""
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return ArrayForm(str(value.dtype), tuple(value.shape))
    return None


class StateStore:
    """The state of one raw session, wherever it is: what `LocalStateStore` and the one of `distributed` share.

    Attributes:
        remote: whether it is in another process, so that a run has to wait for it: then `prepare` comes before
            an evaluation, and `send` takes the place of `commit`.
        values: by the variables' names, as far as they are known here.
        stamps: a number for each of them that no other value of the variable has.
        changes: how many commits have changed something.
        closed: the raw session has ended; nothing can be committed any more.
        committed: whether a step of a monitored session has committed (contract V5).
        superseded: a recovery or a restore has put another in its place (contract V2).
        lineage: the same object in all stores that took each other's place by a restore.
        loss: makes the error that tells of the loss of the state, if there is one of its own.
        readers: give the items of the sources, by their names.
        initial_forms: the dtypes and shapes of the variables' initial arrays, by name.
        initial_states: the states that tracked objects and hooks had at the opening, for a recovery to initial
            values; None once a step has committed, or if there can be no such recovery (contract V5).
        restored_hooks: the states of hooks in the snapshot that was put back, by the hooks' names.
        restored_step: the global step of that snapshot.
        stateful_hooks: the monitored session's hooks that have a state, by name.
        start_soon: starts a background task of the monitored session; None if there is none.
        before_end: is awaited before a step is told of the end of the data; False if there may be more by then, as
            when what another program was given has come back. None if nobody else takes part.
    """

    __slots__ = (
        "_changed",
        "before_end",
        "changes",
        "closed",
        "committed",
        "initial_forms",
        "initial_states",
        "lineage",
        "loss",
        "readers",
        "restored_hooks",
        "restored_step",
        "stamps",
        "start_soon",
        "stateful_hooks",
        "superseded",
        "values",
    )

    remote: ClassVar[bool] = False

    def __init__(self) -> None:
        self._changed: anyio.Event | None = None
        self.values: dict[str, Any] = {}
        self.stamps: dict[str, int] = {}
        self.readers: dict[str, Reader] = {}
        self.restored_hooks: Mapping[str, Any] = {}
        self.restored_step: int | None = None
        self.stateful_hooks: dict[str, Stateful] = {}
        self.start_soon: Callable[..., None] | None = None
        self.before_end: Callable[[Transaction], Awaitable[bool]] | None = None
        self.changes: int = 0
        self.closed: bool = False
        self.committed: bool = False
        self.superseded: bool = False
        self.lineage: object = object()
        self.loss: Callable[[], BaseException] | None = None
        self.initial_forms: dict[str, ArrayForm] = {}
        self.initial_states: tuple[Mapping[str, Any], Mapping[str, Any]] | None = None

    def initialize(self, variables: Iterable[Variable[Any]]) -> None:
        """Give variables that have no value their initial ones."""
        raise NotImplementedError

    def reader(self, source: Any) -> Reader:
        """What gives this session the items of a source."""
        raise NotImplementedError

    def commit(self, transaction: Transaction, step: str | None) -> int | None:
        """Take all writes and items of a transaction at one instant; return the global step, if `step` names it."""
        raise NotImplementedError

    async def send(
        self, transaction: Transaction, root: Transaction, step: str | None
    ) -> tuple[int | None, BaseException | None]:
        """Commit to a state in another process; the transaction is that of the step `root`, or a part of it.

        Returns:
            The global step, if `step` names it; and the cancellation or interrupt that came while this waited,
            which the caller has to raise: it takes nothing of the commit back.
        """
        raise NotImplementedError

    async def prepare(self, plan: Plan, transaction: Transaction) -> None:
        """Have here, of a state in another process, what the evaluation of a plan reads."""
        raise NotImplementedError

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

    def lose(self, loss: Callable[[], BaseException] | None) -> None:
        """The values are gone, as with the process that held them; what `loss` makes tells of it."""
        self.loss = loss
        self.close()

    def _wake(self) -> None:
        if self._changed is not None:
            self._changed.set()
            self._changed = None

    def check_open(self) -> None:
        """Raise what tells a step in flight that it cannot commit any more."""
        if self.superseded:
            raise SupersededError(
                "the session recovered, or was restored, while this step was running; what it did is taken back"
            )
        if self.closed:
            self.raise_loss()
            error = SessionClosedError(
                "the session is closed, so this step can no longer commit; it is rolled back"
            )
            error.session = self
            raise error

    def raise_loss(self) -> None:
        """Raise what tells that the state is lost, where there is an error of its own for that."""
        if self.loss is not None:
            raise self.loss()

    def check_accepts(self, transaction: Transaction) -> None:
        """Raise what tells that a transaction cannot be committed, if it cannot."""
        if self.closed or self.superseded:
            self.check_open()
        owner = transaction.owner
        if owner is not None and owner.sealed:
            raise SessionClosedError(
                "the session is closed, so this step can no longer commit; it is rolled back"
            )


class LocalStateStore(StateStore):
    """The values of one raw session, in a dict.

    Attributes:
        restored_sources: snapshots of sources, by name, at which they begin when they are opened.
    """

    __slots__ = ("restored_sources",)

    def __init__(self) -> None:
        super().__init__()
        self.restored_sources: dict[str, Any] = {}

    def initialize(self, variables: Iterable[Variable[Any]]) -> None:
        for variable in variables:
            if variable.name not in self.values:
                value = self.values[variable.name] = variable.initial_value()
                self.stamps[variable.name] = new_stamp()
                form = form_of(value)
                if form is not None:
                    self.initial_forms[variable.name] = form

    def restored(
        self, variables: Mapping[str, Any], sources: Mapping[str, Any], hooks: Mapping[str, Any], step: int
    ) -> LocalStateStore:
        """Another store like this, with these values in place of its own, and no source opened yet."""
        new = LocalStateStore()
        new.values = {**self.values, **variables}
        new.stamps = {name: new_stamp() for name in new.values}
        new.lineage, new.initial_forms = self.lineage, self.initial_forms
        new.restored_sources, new.restored_hooks, new.restored_step = dict(sources), hooks, step
        new.stateful_hooks, new.start_soon = self.stateful_hooks, self.start_soon
        new.before_end = self.before_end
        new.changes = self.changes + 1
        new.committed = self.committed
        return new

    def reader(self, source: Any) -> Reader:
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

    def commit(self, transaction: Transaction, step: str | None) -> int | None:
        owner, writes = transaction.owner, transaction.writes
        if self.closed or self.superseded or (owner is not None and owner.sealed):
            self.check_accepts(transaction)
        if writes:  # all new values before the first is written (contract T5)
            for name, record in writes.items():
                if record.updates is not None and record.base != self.stamps[name]:
                    writes[name] = resolved(name, record, self)
            for name, record in writes.items():
                self.values[name] = record.value
                self.stamps[name] = record.stamp
        if owner is not None:
            self.committed = True
            self.initial_states = None
        if writes or transaction.counts or transaction.items:
            self.changes += 1
        if self._changed is not None:
            self._wake()
        if step is None:
            return None
        number: int = self.values[step]
        if transaction.counts:
            self.values[step] = number = number + 1
            self.stamps[step] = new_stamp()
        return number


class SupersededError(AbortedError):
    """A step of an incarnation that has ended tried to go on."""
