"""DistributedStateStore: the state of a worker's session, which is with the chief.

What a step reads is what came with the answer to the commit before, or is asked for if that was too long ago. A
commit is one message with all that the step has done. It is numbered, and sent again until it is answered: the
chief knows it when it comes a second time.
"""

from __future__ import annotations

import itertools
import math
import time
from collections import deque
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import anyio
import anyio.lowlevel
import cloudpickle

from asyncstep._graph.graph import GLOBAL_STEP
from asyncstep._graph.variable import Update
from asyncstep._monitored.company import in_loop
from asyncstep._runtime.state import SourceState, StateStore
from asyncstep._runtime.transaction import Fate, root_of
from asyncstep.data.queue_reader import takes_its_own
from asyncstep.distributed.link import ChiefGoneError
from asyncstep.distributed.messages import (
    Commit,
    Committed,
    Ended,
    Enter,
    Failed,
    Given,
    Gone,
    Idle,
    Known,
    Leave,
    Read,
    Take,
    Undo,
    WasCommitted,
    Watch,
    Write,
)
from asyncstep.errors import (
    AbortedError,
    Error,
    FailedPreconditionError,
    InvalidArgumentError,
    OutOfRangeError,
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
    from asyncstep.distributed.messages import Member, Stop, Values

FRESH = 0.01
"""For so many seconds what the chief has said is taken for what is committed."""

KEPT = 0.1
"""For so many seconds an item is kept that was given ahead; then others may have it."""


class DistributedStateStore(StateStore):
    """What one session of a worker knows of the state that is with the chief.

    Args:
        link: to the chief.
        seat: where the chief is.
        member: who this is.
        graph: of the session.
        known: what the chief has said when this joined.
        next_chief: waits for another chief than the one of this seat, when that is gone.
    """

    __slots__ = (
        "_at",
        "_expiry",
        "_functions",
        "_given",
        "_left",
        "_link",
        "_next_chief",
        "_numbers",
        "_posts",
        "_reads",
        "_seat",
        "_sizes",
        "_states",
        "_steps",
        "_told",
        "_under_way",
        "_unsent",
        "_usual",
        "member",
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
        self._numbers = itertools.count(1)
        self._steps: dict[Transaction, OwnStep] = {}
        self._under_way: dict[int, None] = {}  # the numbers of steps that are not over, in order
        self._given: dict[str, deque[GivenAhead]] = {}  # by source
        self._expiry: anyio.CancelScope | None = None
        self._usual: str | None = None  # the source that the last step took its only item of
        self._reads: dict[str, None] = {GLOBAL_STEP: None}  # the variables that runs read, in order
        self._functions: dict[int, tuple[int, Callable[..., Any]]] = {}  # by id(); the function is kept alive
        self._unsent: dict[int, bytes] = {}
        self._sizes: dict[str, int] = {}
        self._states: dict[str, SourceState] = {}
        self._told: dict[str, None] = {}  # the sources whose state is asked for
        self._at: float = -1.0
        self._posts: dict[Post, None] = {}  # those that are on their way, in order
        self._left = False
        self.member: Member = member
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
        reads = self._reads
        missing = any(name not in reads for name in plan.reads)
        queues = tuple(target.name for target in plan.targets)
        if queues:
            step = self._step_of(transaction)
            step.entered = True
            known = await self._ask(
                Enter(self.member, step.number, self._below(), self._around(transaction), queues)
            )
            self._sizes.update(known.sizes)
        if missing or (plan.reads and time.monotonic() - self._at > FRESH):
            have = {name: self.stamps.get(name, 0) for name in (*reads, *plan.reads)}
            known = await self._ask(Read(self.member, _positive(have), (), tuple(self._told)))
            reads.update(dict.fromkeys(plan.reads))
            self._learn(known.values)
            self._states.update(known.states)

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
        post = self._post(message)
        interruption = await post.settled()
        try:
            if post.error is not None:
                if interruption is not None:
                    raise interruption
                committed = await self._asked_the_next(message, post.error)
            else:
                committed = self._checked(post.reply)
        finally:
            post.error = None
        if message.over:
            self._step_of(root).over = True
        self._conclude(transaction, message, committed)
        return committed.global_step, interruption

    def _commit_of(self, transaction: Transaction, root: Transaction, step: str | None) -> Commit:
        own = self._step_of(root)
        items = transaction.items or ()
        own.commits += 1
        ahead = self._ahead_of(own)
        return Commit(
            self.member,
            own.number,
            self._below(),
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
            _positive({name: self.stamps.get(name, 0) for name in (*self._reads, *transaction.writes)}),
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
            self._keep(message.ahead, committed.given)
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

    async def changed(self) -> None:
        """Wait until the chief tells of a commit that is not known here, or the store is closed. Checkpoint: always."""
        self._link.group.start_soon(self._watch, name="watch for a commit")
        await super().changed()

    async def _watch(self) -> None:
        have = {name: self.stamps.get(name, 0) for name in self._reads}
        try:
            known = await self._ask(Watch(self.member, _positive(have)))
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

    async def _ask(self, message: Any) -> Any:
        """The answer to a message, where a cancellation may drop it. Checkpoint: always."""
        if self._posts:
            await self._gave_back()
        try:
            answer = await self._link.call(self._seat, message)
        except ChiefGoneError as error:
            self.lose_chief(error)
            self.check_open()
            raise
        if answer.stop is not None and self.when_stopped is not None:
            self.when_stopped(answer.stop)
        return self._checked(answer.reply)

    def _checked(self, reply: Any) -> Any:
        match reply:
            case Failed(error):
                raise error
            case Gone(text):
                self.lose_chief(text)
                self.check_open()
        return reply

    async def take(self, source: str, transaction: Transaction, *, queue: bool) -> Any:
        """The next item of a source. Checkpoint: always."""
        self.check_open()
        if source in self._given:
            await anyio.lowlevel.checkpoint()
            self.check_open()
        inside = self._around(transaction)
        begins = not queue and not inside and root_of(transaction) not in self._steps
        if begins:
            given = self._given_ahead(source)
            if given is not None:
                step = self._step_of(transaction, given.number)
                step.began_with = source
                transaction.hold(TakenAway(self, step, step.new_take()))
                return given.value
        step = self._step_of(transaction)
        step.entered = step.entered or queue
        if begins:
            step.began_with = source
        taken = TakenAway(self, step, step.new_take())
        transaction.hold(taken)
        reply = await self._ask(Take(self.member, step.number, self._below(), inside, taken.number, source))
        match reply:
            case Given(value):
                return value
            case Ended() if _puts(transaction, source):
                raise takes_its_own(source)
            case Ended(text):
                raise OutOfRangeError(text)
        self.check_open()
        raise AbortedError(f"the chief takes the step for over that asks the source {source!r} for an item")

    def size(self, queue: str) -> int:
        """How many items waited in a queue when the chief was asked last."""
        return self._sizes[queue]

    def source_state(self, source: str) -> SourceState:
        """How far a source was when the chief was asked last; from now on it is asked."""
        self._told[source] = None
        return self._states[source]

    # What is given ahead: an item for a step that begins as the one did with whose commit it came.

    def _ahead_of(self, own: OwnStep) -> Take | None:
        """What the next step of a loop is going to ask for, if it is like this one and the one before."""
        source = own.began_with
        if source is None or source != self._usual or not own.took_one or not in_loop.get():
            return None
        return Take(self.member, self._new_number(), self._below(), 0, 1, source)

    def _keep(self, take: Take, given: Given | None) -> None:
        if given is None or self.closed:
            del self._under_way[take.step]
            return
        ahead = GivenAhead(take.step, given.value, time.monotonic())
        self._given.setdefault(take.source, deque()).append(ahead)
        if self._expiry is None:
            self._expiry = anyio.CancelScope()
            self._link.group.start_soon(self._return_late, self._expiry, name="return what was given ahead")

    def _given_ahead(self, source: str) -> GivenAhead | None:
        """What was given ahead of a source, for the step that begins."""
        waiting = self._given.get(source)
        if waiting is None:
            return None
        given = waiting.popleft()
        if not waiting:
            del self._given[source]
        return given

    async def _return_late(self, scope: anyio.CancelScope) -> None:
        """Give back what no step has wanted in time."""
        with scope:
            while self._given:
                first = min(waiting[0].at for waiting in self._given.values())
                await anyio.sleep(max(0.0, first + KEPT - time.monotonic()))
                self.return_given(time.monotonic() - KEPT)
        if self._expiry is scope:
            self._expiry = None

    def return_given(self, until: float = math.inf) -> None:
        """Give back what was given ahead, no later than that."""
        for source, waiting in list(self._given.items()):
            while waiting and waiting[0].at <= until:
                step = OwnStep(waiting.popleft().number)
                del self._under_way[step.number]
                self.give_back(step, (1,), Fate.NEVER_SEEN, over=True)
            if not waiting:
                del self._given[source]

    # Messages that nobody waits for, or whose sending no cancellation may end.

    def _post(self, message: Any) -> Post:
        post = Post(message)
        self._posts[post] = None
        name = f"{type(message).__name__} to the chief"
        self._link.group.start_soon(self._deliver, message, post, name=name)
        return post

    async def _deliver(self, message: Any, post: Post) -> None:
        try:
            answer = await self._link.call(self._seat, message)
        except ChiefGoneError as error:
            post.error = error
        else:
            post.reply = answer.reply
            if answer.stop is not None and self.when_stopped is not None:
                self.when_stopped(answer.stop)
        finally:
            if post.reply is None and post.error is None:
                post.error = ChiefGoneError("the program has been cancelled")
            self._posts.pop(post, None)
            post.ended.set()

    async def flushed(self) -> None:  # noqa: ASYNC910 - it waits if there is something to wait for
        """Wait until the chief has what was posted so far. Checkpoint: if something has not arrived."""
        for post in list(self._posts):
            await post.ended.wait()

    async def _gave_back(self) -> None:  # noqa: ASYNC910 - it waits if there is something to wait for
        """Wait until the chief has what was given back so far, so that the next item is one of that."""
        for post in [post for post in self._posts if post.step is not None]:
            await post.ended.wait()

    def close(self) -> None:
        if not self._left:
            self._left = True
            self._post(Leave(self.member))
        self._given.clear()  # the chief gives it to others, with all else that this one has
        if self._expiry is not None:
            self._expiry.cancel()
        super().close()

    async def loop_ended(self) -> None:  # noqa: ASYNC910 - it waits if the chief is to be asked
        """Tell the chief, who waits for that; give back what was given ahead. Checkpoint: if there was something."""
        returned = bool(self._given)
        self.return_given()
        if self.closed:
            return
        self._post(Idle(self.member))
        if returned and self._told:
            known = await self._ask(Read(self.member, {}, (), tuple(self._told)))
            self._states.update(known.states)

    def give_back(self, step: OwnStep, numbers: tuple[int, ...], fate: Fate, *, over: bool = False) -> None:
        """A step has been rolled back, or is over."""
        if not self.closed:
            message = Undo(self.member, step.number, self._below(), numbers, fate, over)
            self._post(message)

    # Steps and functions.

    def _step_of(self, transaction: Transaction, number: int | None = None) -> OwnStep:
        """The step of a transaction; if it has none yet it gets a number, which may be one that was kept for it."""
        transaction = root_of(transaction)
        step = self._steps.get(transaction)
        if step is None:
            step = self._steps[transaction] = OwnStep(self._new_number() if number is None else number)
            if transaction.finished:  # it has ended without waiting for this run
                del self._steps[transaction], self._under_way[step.number]
            else:
                transaction.call_at_end(lambda: self._leave_step(transaction))
        return step

    def _new_number(self) -> int:
        number = next(self._numbers)
        self._under_way[number] = None
        return number

    def _around(self, transaction: Transaction) -> int:
        """The number of the step that the step of a transaction is run in; 0 if there is none."""
        root = root_of(transaction)
        outer = root.outer
        while outer is not None:
            step = self._steps.get(root_of(outer))
            if step is not None and root_of(outer) is not root:
                return step.number
            outer = outer.outer
        return 0

    def _leave_step(self, root: Transaction) -> None:
        step = self._steps.pop(root)
        del self._under_way[step.number]
        self._usual = step.began_with if step.took_one else None
        if step.entered and not step.over:
            self.give_back(step, (), Fate.GIVE_AGAIN, over=True)

    def _below(self) -> int:
        """The lowest number of a step that is under way, or of which the chief may not know yet that it is not.

        What a step has given back may be on its way longer than what a later step sends.
        """
        lowest = [post.step for post in self._posts if post.step is not None]
        lowest += itertools.islice(self._under_way, 1)
        return min(lowest) if lowest else next(self._numbers)

    def _number_of(self, name: str, function: Callable[..., Any]) -> int:
        known = self._functions.get(id(function))
        if known is None:
            known = self._functions[id(function)] = (len(self._functions) + 1, function)
            self._unsent[known[0]] = _pickled(name, function)
        return known[0]


class OwnStep:
    """A step of this session, as the chief is told of it.

    Attributes:
        number: of the step.
        commits, takes: count those of the step.
        began_with: the source that it asked for an item before anything else.
        entered: whether the chief waits for its end, because it may feed a queue.
        over: whether the chief knows that it is over.
    """

    __slots__ = ("began_with", "commits", "entered", "number", "over", "takes")

    def __init__(self, number: int) -> None:
        self.number: int = number
        self.commits: int = 0
        self.takes: int = 0
        self.began_with: str | None = None
        self.entered: bool = False
        self.over: bool = False

    def new_take(self) -> int:
        """The number of one more take."""
        self.takes += 1
        return self.takes

    @property
    def took_one(self) -> bool:
        """Whether it began with an item, has asked for no other, and has committed that at once."""
        return self.began_with is not None and self.takes == self.commits == 1


class GivenAhead(NamedTuple):
    """An item for a step that has not begun.

    Attributes:
        number: the step's.
        value: the item.
        at: when it came.
    """

    number: int
    value: Any
    at: float


class Post:
    """A message that is sent whatever becomes of who sends it.

    Attributes:
        step: the number of the step that gives something back by it; None if it is no such message.
        ended: set when it is answered, or cannot be.
        reply, error: one of them is there then.
    """

    __slots__ = ("ended", "error", "reply", "step")

    def __init__(self, message: Any) -> None:
        self.step: int | None = message.step if isinstance(message, Undo) else None
        self.ended: anyio.Event = anyio.Event()
        self.reply: Any = None
        self.error: BaseException | None = None

    async def settled(self) -> BaseException | None:
        """Wait for the answer, come what may; return the cancellation or interrupt that came. Checkpoint: always."""
        interruption: BaseException | None = None
        with anyio.CancelScope(shield=True):
            while not self.ended.is_set():
                try:
                    await self.ended.wait()
                except BaseException as error:  # noqa: ASYNC103 - a native cancel; the caller raises it
                    interruption = interruption or error
        try:
            return interruption  # noqa: ASYNC910 - it has waited
        finally:
            del interruption


class DistributedReader:
    """Gives a worker's session the items of one source, which are with the chief."""

    def __init__(self, store: DistributedStateStore, name: str, settings: QueueSettings | None) -> None:
        self._store = store
        self._name = name
        self._settings = settings

    async def take(self, transaction: Transaction) -> Any:
        """The next item, or a list of items. Checkpoint: always."""
        return await self._store.take(self._name, transaction, queue=self._settings is not None)

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
            self._store.give_back(self._step, (self.number,), fate)


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


def ended(store: StateStore | None = None) -> SessionClosedError:
    """What tells that the chief's session has ended; a step of the store that meets it is tried again, or stops."""
    error = SessionClosedError("the chief's session has ended, and the state with it")
    error.session = store
    return error


def _positive(stamps: dict[str, int]) -> dict[str, int]:
    """The chief's stamps: here they are negative, so that none is that of a write of this process."""
    return {name: -stamp for name, stamp in stamps.items()}


def _pickled(name: str, function: Callable[..., Any]) -> bytes:
    try:
        pickled: bytes = cloudpickle.dumps(function)
    except Exception as error:
        raise InvalidArgumentError(
            f"the update function of the variable {name!r} cannot be sent to the chief, which applies it to what is"
            f" committed there: {error}; let it take what it needs as arguments, not from around it"
        ) from error
    return pickled
