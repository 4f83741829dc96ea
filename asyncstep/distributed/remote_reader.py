"""DistributedReader: the items of a source that is with the chief, as the steps of a worker take and put them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anyio.lowlevel

from asyncstep._runtime.transaction import root_of
from asyncstep.data.queue_reader import takes_its_own
from asyncstep.distributed.messages import Ended, Given, Take
from asyncstep.errors import AbortedError, FailedPreconditionError, OutOfRangeError

if TYPE_CHECKING:
    from asyncstep._runtime.state import SourceState
    from asyncstep._runtime.transaction import Fate, Transaction
    from asyncstep.data.queue_reader import QueueSettings
    from asyncstep.distributed.own_steps import OwnStep
    from asyncstep.distributed.store import DistributedStateStore


class DistributedReader:
    """Gives a worker's session the items of one source.

    Args:
        store: of the session.
        name: the source's.
        settings: those of a queue; None if it is another source.
    """

    def __init__(self, store: DistributedStateStore, name: str, settings: QueueSettings | None) -> None:
        self._store = store
        self._name = name
        self._settings = settings

    async def take(self, transaction: Transaction) -> Any:
        """The next item, or a list of items. Checkpoint: always."""
        store, name = self._store, self._name
        store.check_open()
        if name in store.ahead:
            await anyio.lowlevel.checkpoint()
            store.check_open()
        inside = store.steps.around(transaction)
        begins = self._settings is None and not inside and root_of(transaction) not in store.steps
        given = store.ahead.pop(name) if begins else None
        step = store.steps.of(transaction, None if given is None else given.number)
        if begins:
            step.began_with = name
        elif self._settings is not None:
            step.entered = True
        taken = TakenAway(store, step, step.new_take())
        transaction.hold(taken)
        if given is not None:
            return given.value  # noqa: ASYNC910 - there was one above, as it was in `ahead`
        return await self._asked(transaction, taken, step, inside)

    async def _asked(self, transaction: Transaction, taken: TakenAway, step: OwnStep, inside: int) -> Any:
        store, name = self._store, self._name
        take = Take(store.member, step.number, store.steps.below(), inside, taken.number, name)
        match await store.ask(take):
            case Given(value):
                return value
            case Ended() if _puts(transaction, name):
                raise takes_its_own(name)
            case Ended(text):
                raise OutOfRangeError(text)
        store.check_open()
        raise AbortedError(f"the chief takes the step for over that asks the source {name!r} for an item")

    def put(self, transaction: Transaction, items: Any) -> None:
        """Add items to a queue when the step commits; nothing if it is rolled back."""
        assert self._settings is not None
        transaction.hold(PutAway(self._name, [item for _, item in self._settings.checked(items)]))

    def size(self) -> int:
        """How many items waited in a queue when the step began."""
        return self._store.size(self._name)

    def state(self) -> SourceState:
        """How far the source was when the chief answered last."""
        return self._store.source_state(self._name)

    def snapshot(self) -> dict[str, Any]:
        """Only the chief can."""
        raise FailedPreconditionError(f"how far the source {self._name!r} is can be saved by the chief only")

    def restore(self, state: dict[str, Any]) -> None:
        """Only the chief can."""
        raise FailedPreconditionError(f"the source {self._name!r} can be restored by the chief only")

    def stop(self) -> None:
        """Nothing is read ahead here."""

    async def aclose(self) -> None:
        """Let what was given back reach the chief. Checkpoint: if there is something."""
        await self._store.flushed()


class TakenAway:
    """An item, or a batch, that a step was given by the chief.

    Attributes:
        number: of the step's take.
        told: whether the chief knows what has become of it.
    """

    __slots__ = ("_step", "_store", "number", "told")

    def __init__(self, store: DistributedStateStore, step: OwnStep, number: int) -> None:
        self._store = store
        self._step = step
        self.number: int = number
        self.told: bool = False

    def done(self) -> None:
        """The commit has told the chief."""

    def undone(self, fate: Fate) -> None:
        """The step has been rolled back."""
        if not self.told:
            self._store.steps.give_back(self._step.number, (self.number,), fate)


class PutAway:
    """What a step puts into a queue, which the chief is told with the commit.

    Attributes:
        queue: the name.
        values: what is put.
    """

    __slots__ = ("queue", "values")

    def __init__(self, queue: str, values: list[Any]) -> None:
        self.queue: str = queue
        self.values: list[Any] = values

    def done(self) -> None:
        """The commit has told the chief."""

    def undone(self, _: Fate) -> None:
        """The chief was not told."""


def _puts(transaction: Transaction | None, queue: str) -> bool:
    """Whether a step has put something into a queue and not committed it."""
    while transaction is not None:
        if any(isinstance(each, PutAway) and each.queue == queue for each in transaction.items or ()):
            return True
        transaction = transaction.parent
    return False
