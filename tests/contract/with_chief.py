"""Lets the sessions of tests have their state with a chief: all that a step does goes through messages.

The raw session that the creator makes becomes the chief's; the monitored session gets another one, which takes part
in its state as a worker's does. Saving, restoring and the states of sources are the chief's business, so they are
asked of its session.
"""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import anyio
import anyio.lowlevel
import cloudpickle
import sniffio

from asyncstep import Session
from asyncstep._monitored.life import Life
from asyncstep._runtime.snapshot import Snapshot
from asyncstep._runtime.state import SourceState
from asyncstep.distributed.chief import Chief
from asyncstep.distributed.ledger import Ledger
from asyncstep.distributed.link import ChiefGoneError, JobView, Seat
from asyncstep.distributed.messages import Join, Known, Undo
from asyncstep.distributed.store import DistributedStateStore
from asyncstep.distributed.task import TaskInfo
from asyncstep.testing import LosableSessionCreator

SEAT = Seat("here", 1)
joined = itertools.count(1)


class Tasks:
    """Starts tasks that nothing in a test cancels, as those of the program around it are.

    What is given back arrives at once, so that tests can look at the state of a source without waiting for that.
    """

    def start_soon(self, function: Callable[..., Awaitable[Any]], *args: Any, name: object = None) -> None:
        if args and isinstance(args[0], Undo):
            try:
                function(*args).__await__().__next__()
            except StopIteration:
                return
            raise AssertionError("what is given back needs no waiting")
        if sniffio.current_async_library() == "trio":
            import trio

            trio.lowlevel.spawn_system_task(partial(function, *args))
        else:
            import asyncio

            task = asyncio.ensure_future(function(*args))
            kept.add(task)
            task.add_done_callback(kept.discard)


kept: set[Any] = set()


def sent(message: Any) -> Any:
    """What arrives of a message; what has no meaning in another process is passed as it is."""
    try:
        return pickle.loads(cloudpickle.dumps(message))
    except Exception:
        return message


class DirectLink:
    """Brings messages to a chief in the same event loop."""

    life = 1
    view = JobView(seat=SEAT)
    task = TaskInfo("direct", 1, 2)
    failure = None

    def __init__(self, chief: Chief, group: Any) -> None:
        self._chief = chief
        self.group = group

    async def call(self, seat: Seat, message: Any) -> Any:
        if not isinstance(message, Undo):
            await anyio.lowlevel.checkpoint()
        answers: list[Any] = []
        answered = anyio.Event()

        def answer(reply: Any) -> None:
            answers.append(reply)
            answered.set()

        self._chief.receive(sent(message), answer)
        if not answers:
            await answered.wait()
        return sent(answers[0])


class FarStore(DistributedStateStore):
    """A state whose sources are told by this very session that nobody is going to ask."""

    __slots__ = ("chief",)

    def stop_reading(self) -> None:
        self.chief.store.stop_reading()

    def source_states(self, sources: Any = ()) -> Any:
        return self.chief.store.source_states(sources)


class FarSession(Session):
    """A session whose state is with the session of a chief."""

    def __init__(self, chief: Session, life: Life) -> None:
        super().__init__(chief.graph)
        group: Any = Tasks()
        self.chief = chief
        serving = Chief(chief, life, group, Ledger("direct"))
        link: Any = DirectLink(serving, group)
        chief.store.before_end = serving.before_end
        member = (1, next(joined))
        replies: list[Any] = []
        serving.receive(
            Join(member, 1, 0, tuple(self.graph.variables), tuple(self.graph.sources)), replies.append
        )
        known = replies[0].reply
        assert isinstance(known, Known), known
        self.store = store = FarStore(link, SEAT, member, self.graph, known, self._next)
        store.chief = chief
        self.store.restored_step = chief.store.restored_step
        self.store.restored_hooks = chief.store.restored_hooks

    async def _next(self, gone: Seat) -> Seat:
        raise ChiefGoneError("there is no other one")

    def snapshot(self) -> Snapshot:
        self.check_open()
        return self.chief.snapshot()

    async def restore(self, snapshot: Snapshot, *, strict: bool = True) -> None:
        await self.chief.restore(snapshot, strict=strict)

    def source_state(self, source: Any) -> SourceState:
        self.store.ahead.return_all()  # as when a loop ends, and soon after if no other step has begun
        return self.chief.source_state(source)

    async def aclose(self) -> None:
        self.chief.store.superseded = self.store.superseded
        try:
            await super().aclose()
        finally:
            await self.chief.aclose()


def with_a_chief(created: Callable[[Life], Awaitable[Session]]) -> Callable[[Life], Awaitable[Session]]:
    """Of the function that makes raw sessions one that makes them take part in the state of a chief."""

    async def create(life: Life) -> Session:
        raw = await created(life)
        if life.sealed:
            return raw  # nobody can join any more; it is about to be closed
        far = FarSession(raw, life)
        await far.__aenter__()
        far.store.start_soon, far.store.stateful_hooks = raw.store.start_soon, raw.store.stateful_hooks
        far.store.initial_states = raw.store.initial_states
        if isinstance(life.creator, LosableSessionCreator):
            life.creator.created[-1] = far
        return far

    return create
