"""Chief: lets the sessions of other programs take part in the state of a session of this one.

A step of another program is a transaction of the local store here, like one of the session's own steps: it holds
the items that the step was given, and commits what the step has done at one instant. So whatever is promised of
steps (contract T, D) holds for them for the same reasons.

Nothing here knows how messages come and go; all of it runs in the event loop of the session.
"""

from __future__ import annotations

import logging
import pickle
from collections import Counter
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import cloudpickle

from asyncstep._graph.graph import GLOBAL_STEP
from asyncstep._runtime.state import LocalStateStore, StateStore, SupersededError
from asyncstep._runtime.transaction import Fate, Transaction, current, root_of
from asyncstep.data.reader import Reader
from asyncstep.distributed.guest import Guest, GuestStep, Taking
from asyncstep.distributed.messages import (
    Answer,
    Commit,
    Committed,
    Done,
    Ended,
    Enter,
    Failed,
    Given,
    Gone,
    Idle,
    Join,
    Known,
    Leave,
    Read,
    Take,
    Undo,
    WasCommitted,
    Watch,
)
from asyncstep.errors import FailedPreconditionError, OutOfRangeError, SessionClosedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from anyio.abc import TaskGroup

    from asyncstep._runtime.session import Session
    from asyncstep._runtime.state import SourceState
    from asyncstep._runtime.transaction import Items, Owner
    from asyncstep.distributed.guest import Answering
    from asyncstep.distributed.ledger import Ledger
    from asyncstep.distributed.messages import Member, Stamps, Stop, Values

logger: logging.Logger = logging.getLogger("asyncstep")

CLOSING = "the chief's session is being closed, and takes no more commits"


class Chief:
    """What other programs do to the state of one raw session.

    Args:
        session: the raw session; its state is local.
        owner: the monitored session whose steps they are.
        group: where takes wait for their items.
        ledger: remembers commits.

    Attributes:
        stop: of the monitored session, once it has been asked to stop.
        members: who takes part.
        left: the indices of programs that took part and have left.
        commits: how many steps each program has committed, by index.
    """

    def __init__(self, session: Session, owner: Owner | None, group: TaskGroup, ledger: Ledger) -> None:
        self._session = session
        self._store: StateStore = session.store
        self._owner = owner
        self._group = group
        self._ledger = ledger
        self._changed: anyio.Event | None = None
        self._at_end: list[Transaction] = []  # of the steps that wait in `before_end`
        self._returned = 0  # how often items were given back
        self._settled: anyio.Event | None = None
        self.stop: Stop | None = None
        self.members: dict[Member, Guest] = {}
        self.left: set[int] = set()
        self.commits: Counter[int] = Counter()

    def receive(self, message: Any, answer: Answering) -> None:
        """Do what a message asks for, and answer it, now or later."""
        try:
            reply = self._reply(message, answer)
        except Exception as error:
            reply = self._failure(error)
        if self._settled is not None:
            self._returned += isinstance(message, Undo)
            self._look_again()
        if reply is not None:
            answer(Answer(self.stop, reply))

    def expel(self, lost: Callable[[Member, Guest], bool]) -> None:
        """Roll back the steps of those that are lost; their items are given to others."""
        for member, guest in list(self.members.items()):
            if lost(member, guest):
                logger.warning(
                    "worker %d is lost; its steps are rolled back, and others get its items", guest.index
                )
                self._part_with(member, guest)

    def dismiss(self) -> None:
        """Nobody takes part any more."""
        for member, guest in list(self.members.items()):
            self._part_with(member, guest)

    async def changed(self) -> None:
        """Wait until somebody has joined or left, or `wake` was called. Checkpoint: always."""
        if self._changed is None:
            self._changed = anyio.Event()
        await self._changed.wait()

    async def before_end(self, transaction: Transaction) -> bool:
        """Wait until no other program has items that it could give back, as one does that dies.

        A step that waits here itself, and has items, gives none back before it has an answer: so it is not waited for.
        Returns False if items were given back: then there are more, perhaps. Checkpoint: always.
        """
        await anyio.lowlevel.checkpoint()
        root, before = root_of(transaction), self._returned
        self._at_end.append(root)
        self._look_again()
        try:
            while self._others_hold_items() and not self._store.closed:
                if self._settled is None:
                    self._settled = anyio.Event()
                await self._settled.wait()
                if self._returned != before:
                    return False
            return True
        finally:
            self._at_end.remove(root)

    def _others_hold_items(self) -> bool:
        return any(
            step.root not in self._at_end and any(taking.holds_items for taking in step.takes.values())
            for guest in self.members.values()
            for step in guest.steps.values()
        )

    def _look_again(self) -> None:
        """Something has changed of which steps have items."""
        if self._settled is not None:
            self._settled.set()
            self._settled = None

    def wake(self) -> None:
        """Let those go on that wait for a change."""
        if self._changed is not None:
            self._changed.set()
            self._changed = None

    def _reply(self, message: Any, answer: Answering) -> Any:
        store = self._session.store
        if store is not self._store:  # the session was restored
            self.dismiss()
            self._store = store
        if store.closed or store.superseded or not isinstance(store, LocalStateStore):
            return Gone("the chief's session has been closed, or was recovered")
        if isinstance(message, Join):
            return self._join(message, store)
        if isinstance(message, WasCommitted):
            found = self._ledger.find(message.member, message.step, message.number)
            return Done() if found is None else Committed(found[0], {}, {}, {})
        if isinstance(message, Leave):
            guest = self.members.get(message.member)
            if guest is not None:
                self._part_with(message.member, guest)
                self._ledger.leave(message.member)
                self.left.add(guest.index)
                self.wake()
            return Done()
        guest = self.members.get(message.member)
        if guest is None:
            if isinstance(message, Commit):  # it may be one of before the sender was taken for lost
                found = self._ledger.find(message.member, message.step, message.number)
                if found is not None:
                    return Committed(found[0], {}, {}, {})
            return Gone("the chief takes this worker for lost, and has given its items to others")
        match message:
            case Commit():
                return self._commit(message, guest, store)
            case Take():
                return self._take(message, guest, store, answer)
            case Read():
                return Known(
                    _newer(store, message.have),
                    {name: self._queue(name, store).size() for name in message.sizes},
                    self._states(message.states),
                )
            case Watch():
                newer = _newer(store, message.have)
                if newer:
                    return Known(newer, {}, {})
                self._group.start_soon(self._tell_of_change, message, store, answer, name="watch")
                return None
            case Enter():
                return self._enter(message, guest, store)
            case Undo():
                return self._undo(message, guest)
            case Idle():
                guest.idle = True
                self.wake()
                return Done()
        raise FailedPreconditionError(f"the chief does not know the message {message!r}")

    def _join(self, message: Join, store: LocalStateStore) -> Known | Gone:
        graph = self._session.graph
        if self._is_sealed:
            return Gone(CLOSING)
        for kind, wanted, known in (
            ("variables", message.variables, graph.variables),
            ("sources", message.sources, graph.sources),
        ):
            missing = sorted(set(wanted) - set(known))
            if missing:
                raise FailedPreconditionError(
                    f"{graph.described} of the chief has no {kind} {', '.join(map(repr, missing))}; every"
                    " program has to build the same graph (what only one of them needs, too)"
                )
        if message.member not in self.members:
            self.members[message.member] = Guest(message.program, message.view)
            self.wake()
        return Known(_newer(store, {GLOBAL_STEP: 0}), {}, self._states(message.sources))

    @property
    def _is_sealed(self) -> bool:
        """Whether nothing can be committed any more, so that who wants to has to wait for the next chief."""
        return self._owner is not None and self._owner.sealed

    def _part_with(self, member: Member, guest: Guest) -> None:
        del self.members[member]
        for step in guest.steps.values():
            step.abandon()
        guest.steps.clear()
        self._returned += 1
        self._look_again()
        self.wake()

    def _step(self, message: Commit | Take | Enter, guest: Guest) -> GuestStep | None:
        """The step that a message is of; None if it is over, so that the message is a late repetition."""
        if message.below > guest.below:
            guest.below = message.below
            guest.over = {number for number in guest.over if number >= message.below}
            self._ledger.forget(message.member, message.below)
            for number in [number for number in guest.steps if number < message.below]:
                guest.steps.pop(number).abandon()
        if message.step < guest.below or message.step in guest.over:
            return None
        step = guest.steps.get(message.step)
        if step is None:
            around = None if isinstance(message, Commit) else guest.steps.get(message.inside)
            root = Transaction(self._store, None, None if around is None else around.root)
            step = guest.steps[message.step] = GuestStep(root)
        return step

    def _commit(self, message: Commit, guest: Guest, store: LocalStateStore) -> Any:
        found = self._ledger.find(message.member, message.step, message.number)
        step = self._step(message, guest)
        if found is not None:
            given = _given_before(message.ahead, guest)
            return Committed(found[0], {}, _newer(store, message.have), self._states(message.states), given)
        if step is None:
            return Gone("the chief takes the step for over that is committed")
        if message.owned and self._is_sealed:
            return Gone(CLOSING)
        for key, pickled in message.functions.items():
            guest.functions[key] = pickle.loads(pickled)
        part = Transaction(store, step.root, None, None)
        part.counts = message.counts
        step.root.owner = self._owner if message.owned else None
        part.items = [items for number in message.items for items in step.takes[number].items] or None
        conflicts = {name for name, write in message.writes.items() if _conflicts(write, name, store)}
        puts: list[Items] = []
        try:
            for name, write in message.writes.items():
                if write.updates is None:
                    part.assign(name, write.value)
                for key, args in write.updates or ():
                    part.update(name, guest.functions[key], args)
            for name, items in message.puts:
                self._queue(name, store).put(part, items)
                assert part.items is not None
                puts.append(part.items[-1])
            number = part.commit(GLOBAL_STEP if message.monitored else None)
        except BaseException:
            for put in puts:
                put.undone(Fate.GIVE_AGAIN)
            raise
        for taken in message.items:
            step.takes[taken].items = []
        for failed in message.parked:
            step.takes[failed].undo(Fate.PARK)
        self._ledger.add(message.member, message.step, message.number, number)
        if message.monitored:
            self.commits[guest.index] += 1
        if message.over:
            guest.steps.pop(message.step).abandon()
            guest.over.add(message.step)
        kept = {name: store.stamps[name] for name in message.writes if name not in conflicts}
        have = {name: stamp for name, stamp in message.have.items() if name not in kept}
        given = None if message.ahead is None else self._give_ahead(message.ahead, guest, store)
        return Committed(number, kept, _newer(store, have), self._states(message.states), given)

    def _give_ahead(self, take: Take, guest: Guest, store: LocalStateStore) -> Given | None:
        """Give a step that is yet to begin what it is going to take, if that is at hand."""
        if self.stop is not None or self._is_sealed:
            return None
        reader = store.reader(self._session.graph.sources[take.source])
        if not isinstance(reader, Reader):
            return None
        step = GuestStep(Transaction(store, None, None))
        taking = Taking(Transaction(store, step.root, None))
        found = reader.take_now(taking.transaction)
        if found is None:
            return None
        taking.items = taking.transaction.items or []
        given = taking.reply = Given(found[0])
        step.takes[take.number] = taking
        guest.steps[take.step] = step
        return given

    def _take(self, message: Take, guest: Guest, store: LocalStateStore, answer: Answering) -> Any:
        step = self._step(message, guest)
        if step is None or message.number in step.undone:
            return Done()
        taking = step.takes.get(message.number)
        if taking is None:
            taking = step.takes[message.number] = Taking(Transaction(store, step.root, None))
            source = self._session.graph.sources[message.source]
            step.fetching += 1
            self._group.start_soon(
                self._fetch, step, taking, source, store, name=f"take from {message.source}"
            )
        if taking.reply is not None:
            return taking.reply
        taking.answers.append(answer)
        return None

    async def _fetch(self, step: GuestStep, taking: Taking, source: Any, store: LocalStateStore) -> None:  # noqa: ASYNC910 - as `take`
        """Have an item given to a step, in a task of its own."""
        current.set(None)
        with taking.scope:
            try:
                taking.reply = Given(await store.reader(source).take(taking.transaction))
            except Exception as error:
                taking.reply = self._failure(error)
        taking.items = taking.transaction.items or []
        if taking.reply is None:
            taking.reply = Done()
        if taking.abandoned:
            taking.undo(Fate.GIVE_AGAIN)
            self._returned += 1
            self._look_again()
        step.fetched()
        answers, taking.answers = taking.answers, []
        for answer in answers:
            answer(Answer(self.stop, taking.reply))

    async def _tell_of_change(self, message: Watch, store: LocalStateStore, answer: Answering) -> None:
        """Wait for the next commit, and tell of it."""
        await store.changed()
        self.receive(message, lambda told: answer(told))

    def _enter(self, message: Enter, guest: Guest, store: LocalStateStore) -> Known:
        step = self._step(message, guest)
        queues = {name: self._queue(name, store) for name in message.queues}
        if step is not None:
            for queue in queues.values():
                queue.enter(step.root)
        return Known({}, {name: queue.size() for name, queue in queues.items()}, {})

    def _undo(self, message: Undo, guest: Guest) -> Done:
        if message.step < guest.below or message.step in guest.over:
            return Done()
        step = guest.steps.get(message.step)
        if step is None:  # what it took is still on its way here
            step = guest.steps[message.step] = GuestStep(Transaction(self._store, None, None))
        for number in message.numbers:
            step.undone.add(number)
            taking = step.takes.get(number)
            if taking is not None:
                taking.undo(message.fate)
        if message.over:
            guest.steps.pop(message.step).abandon()
            guest.over.add(message.step)
        return Done()

    def _queue(self, name: str, store: LocalStateStore) -> Any:
        return store.reader(self._session.graph.sources[name])

    def _states(self, names: Iterable[str]) -> dict[str, SourceState]:
        return {name: self._session.source_state(name) for name in names}

    def _failure(self, error: Exception) -> Any:
        if isinstance(error, OutOfRangeError):
            return Ended(str(error))
        if isinstance(error, SupersededError) or (
            isinstance(error, SessionClosedError) and error.session is self._store
        ):
            return Gone(str(error))
        return Failed(_portable(error))


def _given_before(take: Take | None, guest: Guest) -> Given | None:
    """What was given ahead with an answer that may have been lost."""
    step = None if take is None else guest.steps.get(take.step)
    if take is None or step is None:
        return None
    taking = step.takes.get(take.number)
    return taking.reply if taking is not None and isinstance(taking.reply, Given) else None


def _newer(store: LocalStateStore, have: Stamps) -> Values:
    """The values of which a worker has other ones, or none."""
    try:
        return {
            name: (store.stamps[name], store.values[name])
            for name, stamp in have.items()
            if stamp != store.stamps[name]
        }
    except KeyError as error:
        raise FailedPreconditionError(
            f"the chief's graph has no variable {error.args[0]!r}; every program has to build the same graph"
        ) from None


def _conflicts(write: Any, name: str, store: LocalStateStore) -> bool:
    """Whether the chief makes another value of an update than the worker did, or may do so."""
    return write.updates is not None and write.base != store.stamps.get(name)


def _portable(error: Exception) -> Exception:
    """The error as it can be sent."""
    try:
        pickle.loads(cloudpickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__} (which cannot be sent to another process): {error}")
    return error
