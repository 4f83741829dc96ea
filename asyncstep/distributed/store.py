"""DistributedStateStore: the state of a worker's session, which is with the chief.

What a step reads is what came with the answer to the commit before, or is asked for if that was too long ago. A
commit is one message with all that the step has done. It is numbered, and sent again until it is answered: the
chief knows it when it comes a second time.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any, ClassVar

import cloudpickle

from asyncstep._graph.graph import GLOBAL_STEP
from asyncstep._graph.variable import Update
from asyncstep._runtime.state import SourceState, StateStore
from asyncstep.distributed.ahead import Ahead
from asyncstep.distributed.link import ChiefGoneError
from asyncstep.distributed.messages import (
    Commit,
    Committed,
    Enter,
    Failed,
    Gone,
    Idle,
    Known,
    Leave,
    Read,
    WasCommitted,
    Watch,
    Write,
)
from asyncstep.distributed.outbox import Outbox
from asyncstep.distributed.own_steps import OwnSteps
from asyncstep.distributed.remote_reader import DistributedReader, PutAway, TakenAway
from asyncstep.errors import (
    AbortedError,
    Error,
    InvalidArgumentError,
    SessionClosedError,
    UnavailableError,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from asyncstep._graph.graph import Graph
    from asyncstep._graph.variable import Variable
    from asyncstep._runtime.plan import Plan
    from asyncstep._runtime.state import Reader
    from asyncstep._runtime.transaction import Transaction, WriteRecord
    from asyncstep.data.queue_reader import QueueSettings
    from asyncstep.distributed.link import Link, Seat
    from asyncstep.distributed.messages import Answer, Member, Stamps, Stop, Values

FRESH = 0.01
"""For so many seconds what the chief has said is taken for what is committed."""

WANTED = 1.0
"""For so many seconds after a run has read a variable its newer values come with the answers to commits."""


class DistributedStateStore(StateStore):
    """What one session of a worker knows of the state that is with the chief.

    Args:
        link: to the chief.
        seat: where the chief is.
        member: who this is.
        graph: of the session.
        known: what the chief has said when this joined.
        next_chief: waits for another chief than the one of this seat, when that is gone.

    Attributes:
        steps: those under way.
        ahead: the items that were given to steps which have not begun.
        when_stopped: is called with the stop of the chief's session.
    """

    __slots__ = (
        "_at",
        "_functions",
        "_left",
        "_link",
        "_next_chief",
        "_outbox",
        "_reads",
        "_seat",
        "_sizes",
        "_states",
        "_told",
        "_unsent",
        "ahead",
        "member",
        "steps",
        "when_stopped",
    )

    remote: ClassVar[bool] = True

    def __init__(
        self,
        link: Link,
        seat: Seat,
        member: Member,
        graph: Graph,
        known: Known,
        next_chief: Callable[[Seat], Awaitable[Seat]],
    ) -> None:
        super().__init__()
        self._link = link
        self._seat = seat
        self._next_chief = next_chief
        self._reads: dict[str, float] = {
            GLOBAL_STEP: math.inf
        }  # the variables that runs read, and when the last did
        self._functions: dict[int, tuple[int, Callable[..., Any]]] = {}  # by id(); the function is kept alive
        self._unsent: dict[int, bytes] = {}
        self._sizes: dict[str, int] = {}
        self._states: dict[str, SourceState] = {}
        self._told: dict[str, None] = {}  # the sources whose state is asked for
        self._at: float = -1.0
        self._left = False
        self._outbox = Outbox(link, seat, self._heard)
        self.member: Member = member
        self.steps: OwnSteps = OwnSteps(member, self._outbox)
        self.ahead: Ahead = Ahead(member, self.steps, link.group)
        self.when_stopped: Callable[[Stop], None] | None = None
        self._learn(known.values)
        self._states.update(known.states)
        self.restored_step: int | None = self.values.get(GLOBAL_STEP)
        for node in graph.nodes.values():
            if isinstance(node, Update):
                self._number_of(node.variable.name, node.function)

    # What runs do.

    def initialize(self, variables: Iterable[Variable[Any]]) -> None:
        """The chief does that."""

    async def prepare(self, plan: Plan, transaction: Transaction) -> None:
        self.check_open()
        missing = any(name not in self._reads for name in plan.reads)
        queues = tuple(target.name for target in plan.targets)
        if queues:
            step = self.steps.of(transaction)
            step.entered = True
            known = await self.ask(
                Enter(self.member, step.number, self.steps.below(), self.steps.around(transaction), queues)
            )
            self._sizes.update(known.sizes)
        if not plan.reads:
            return
        now = time.monotonic()
        if missing or now - self._at > FRESH:
            known = await self.ask(Read(self.member, self._have(plan.reads), (), tuple(self._told)))
            self._learn(known.values)
            self._states.update(known.states)
        for name in plan.reads:
            if name != GLOBAL_STEP:
                self._reads[name] = now

    def reader(self, source: Any) -> Reader:
        reader = self.readers.get(source.name)
        if reader is None:
            settings: QueueSettings | None = getattr(source, "settings", None)
            reader = self.readers[source.name] = DistributedReader(self, source.name, settings)
        return reader

    async def send(
        self, transaction: Transaction, root: Transaction, step: str | None
    ) -> tuple[int | None, BaseException | None]:
        self.check_accepts(transaction)
        message = self._commit_of(transaction, root, step)
        post = self._outbox.post(message)
        interruption = await post.settled()
        try:
            if post.error is not None:
                if interruption is not None:
                    raise interruption
                committed = await self._asked_the_next(message, post.error)
            else:
                committed = self._checked(post.reply)
        except BaseException:
            if message.ahead is not None:
                self.steps.drop(message.ahead.step)
            raise
        finally:
            post.error = None
        if message.over:
            self.steps.of(root).over = True
        self._conclude(transaction, message, committed)
        return committed.global_step, interruption

    def _commit_of(self, transaction: Transaction, root: Transaction, step: str | None) -> Commit:
        own = self.steps.of(root)
        items = transaction.items or ()
        own.commits += 1
        ahead = self.ahead.asked_for(own)
        return Commit(
            self.member,
            own.number,
            self.steps.below(),
            own.commits,
            transaction is root,
            transaction.owner is not None,
            step is not None,
            transaction.counts,
            {name: self._write(name, record) for name, record in transaction.writes.items()},
            tuple(each.number for each in items if isinstance(each, TakenAway)),
            tuple(each.number for each in transaction.failed_items or () if isinstance(each, TakenAway)),
            tuple((each.queue, each.values) for each in items if isinstance(each, PutAway)),
            dict(self._unsent),
            self._have(),
            tuple(self._told),
            ahead,
        )

    def _write(self, name: str, record: WriteRecord) -> Write:
        updates: list[tuple[int, tuple[Any, ...]]] = []
        rest = record.updates
        if rest is None:
            return Write(record.value, 0, None)
        while rest is not None:
            rest, function, args = rest
            updates.append((self._number_of(name, function), args))
        return Write(None, -record.base, tuple(reversed(updates)))

    def _conclude(self, transaction: Transaction, message: Commit, committed: Committed) -> None:
        """The chief has committed this."""
        for key in message.functions:
            self._unsent.pop(key, None)
        for name, stamp in committed.kept.items():
            if -self.stamps.get(name, 0) < stamp:
                self.values[name], self.stamps[name] = transaction.writes[name].value, -stamp
        self._learn(committed.values)
        self._states.update(committed.states)
        for each in transaction.failed_items or ():
            if isinstance(each, TakenAway):
                each.told = True
        if message.ahead is not None:
            if committed.given is None or self.closed:
                self.steps.drop(message.ahead.step)
            else:
                self.ahead.keep(message.ahead, committed.given)
        if committed.global_step is not None:
            self.values[GLOBAL_STEP] = max(committed.global_step, self.values[GLOBAL_STEP])
        self.committed = True
        self.changes: int = self.changes + 1
        self._wake()

    async def _asked_the_next(self, message: Commit, error: BaseException) -> Committed:
        """The chief is gone: it may have committed, and saved that. Checkpoint: always."""
        self.lose_chief(error)
        seat = await self._next_chief(self._seat)
        question = WasCommitted(message.member, message.step, message.number)
        try:
            answer = await self._link.call(seat, question)
        except ChiefGoneError:
            self.raise_loss()
            raise
        if isinstance(answer.reply, Committed):
            return answer.reply
        self.raise_loss()
        raise error

    # What the chief says.

    def _learn(self, values: Values) -> None:
        self._at = time.monotonic()
        for name, (stamp, value) in values.items():
            if -self.stamps.get(name, 0) < stamp:  # answers may overtake each other
                self.values[name], self.stamps[name] = value, -stamp
                self._wake()

    def _have(self, names: Iterable[str] = ()) -> Stamps:
        """What is here of the variables whose newer values are wanted: those of some names, and what runs read."""
        too_long_ago = time.monotonic() - WANTED
        for name in [name for name, at in self._reads.items() if at < too_long_ago]:
            del self._reads[name]
        # The chief's stamps: here they are negative, so that none is that of a write of this process.
        return {name: -self.stamps.get(name, 0) for name in (*self._reads, *names)}

    async def changed(self) -> None:
        """Wait until the chief tells of a commit that is not known here, or the store is closed. Checkpoint: always."""
        self._link.group.start_soon(self._watch, name="watch for a commit")
        await super().changed()

    async def _watch(self) -> None:
        try:
            known = await self.ask(Watch(self.member, self._have()))
            self._learn(known.values)
        except Error:
            if not self.closed:  # else that is what is waited for
                raise
        self._wake()

    def lose_chief(self, error: BaseException | str) -> None:
        """The state is gone, or this has no part in it any more; a recovery joins the next chief."""
        text = str(error)
        kind = UnavailableError if isinstance(error, ChiefGoneError) else AbortedError
        self._part(lambda: kind(text))

    def chief_ended(self) -> None:
        """The chief's session has ended, and the state with it."""
        self._part(lambda: ended(self))

    def _part(self, loss: Callable[[], BaseException]) -> None:
        if not self.closed:
            self._left = True
            self.lose(loss)

    async def ask(self, message: Any) -> Any:
        """The answer to a message, where a cancellation may drop it. Checkpoint: always."""
        try:
            reply = await self._outbox.ask(message)
        except ChiefGoneError as error:
            self.lose_chief(error)
            self.check_open()
            raise
        return self._checked(reply)

    def _heard(self, answer: Answer) -> None:
        if answer.stop is not None and self.when_stopped is not None:
            self.when_stopped(answer.stop)

    def _checked(self, reply: Any) -> Any:
        match reply:
            case Failed(error):
                raise error
            case Gone(text):
                self.lose_chief(text)
                self.check_open()
        return reply

    def size(self, queue: str) -> int:
        """How many items waited in a queue when the chief was asked last."""
        return self._sizes[queue]

    def source_state(self, source: str) -> SourceState:
        """How far a source was when the chief was asked last; from now on it is asked."""
        self._told[source] = None
        return self._states[source]

    async def flushed(self) -> None:  # noqa: ASYNC910 - it waits if there is something to wait for
        """Wait until the chief has what was posted so far. Checkpoint: if something has not arrived."""
        await self._outbox.flushed()

    def close(self) -> None:
        if not self._left:
            self._left = True
            self._outbox.post(Leave(self.member))
        self.ahead.forget()
        self.steps.silent = True
        super().close()

    async def loop_ended(self) -> None:  # noqa: ASYNC910 - it waits if the chief is to be asked
        """Tell the chief, who waits for that; give back what was given ahead. Checkpoint: if there was something."""
        returned = bool(self.ahead)
        self.ahead.return_all()
        if self.closed:
            return
        self._outbox.post(Idle(self.member))
        if returned and self._told:
            known = await self.ask(Read(self.member, {}, (), tuple(self._told)))
            self._states.update(known.states)

    # Functions.

    def _number_of(self, name: str, function: Callable[..., Any]) -> int:
        known = self._functions.get(id(function))
        if known is None:
            known = self._functions[id(function)] = (len(self._functions) + 1, function)
            self._unsent[known[0]] = _pickled(name, function)
        return known[0]


def ended(store: StateStore | None = None) -> SessionClosedError:
    """What tells that the chief's session has ended; a step of the store that meets it is tried again, or stops."""
    error = SessionClosedError("the chief's session has ended, and the state with it")
    error.session = store
    return error


def _pickled(name: str, function: Callable[..., Any]) -> bytes:
    try:
        pickled: bytes = cloudpickle.dumps(function)
    except Exception as error:
        raise InvalidArgumentError(
            f"the update function of the variable {name!r} cannot be sent to the chief, which applies it to what is"
            f" committed there: {error}; let it take what it needs as arguments, not from around it"
        ) from error
    return pickled
