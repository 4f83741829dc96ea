"""JobEngine: makes the sessions of a program that is one of several: the chief's, which is served, or a worker's."""

from __future__ import annotations

import itertools
import logging
import math
from collections import Counter, deque
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio

from asyncstep._monitored.stop import StopKind, StopReason
from asyncstep._runtime.session import Session
from asyncstep._runtime.snapshot import global_step
from asyncstep.distributed.chief import Chief
from asyncstep.distributed.ledger import LEDGER, Ledger
from asyncstep.distributed.link import ChiefGoneError
from asyncstep.distributed.messages import Failed, Join, Known
from asyncstep.distributed.store import DistributedStateStore, ended
from asyncstep.errors import (
    AbortedError,
    DeadlineExceededError,
    FailedPreconditionError,
    InvalidArgumentError,
    SessionClosedError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from asyncstep._graph.graph import Graph
    from asyncstep._monitored.company import Company
    from asyncstep._monitored.life import Life
    from asyncstep.distributed.link import Link, Seat
    from asyncstep.distributed.messages import Stop

logger: logging.Logger = logging.getLogger("asyncstep")

KEPT_KINDS = (StopKind.SIGNAL, StopKind.ERROR, StopKind.CANCELLED)
"""The stops for which nobody is waited for that has not begun yet."""

CHIEF_INDEX = 0
"""The program that `TaskInfo.is_chief` is true of."""

REPORT_SECS = 1.0
"""Seconds between two reports of the job's progress."""

CHIEF_ENDED = ("requested", "the chief's session has ended", "the chief")


class JobEngine:
    """The engine of one program of a job.

    Attributes:
        link: to the job.
        ledger: of the chief's sessions.
    """

    def __init__(self, link: Link) -> None:
        self.link: Link = link
        self.master: str = link.task.master
        self.index: int = link.task.index
        self.ledger: Ledger = Ledger(link.task.master)
        self._life: Life | None = None
        self._company: Listening | None = None
        self._joined = itertools.count(1)

    def lead(self, session: Session, *, saved: bool) -> Company:
        """Let the others take part in the state of a session of this program, which is the chief."""
        if not self.link.task.is_chief:
            raise InvalidArgumentError(
                f"the program of index {self.link.task.index} is not the chief; is_chief must be TaskInfo.is_chief"
            )
        return Leading(self, session, saved)

    async def follow(self, graph: Graph, max_wait: float) -> tuple[Session, Company]:
        """A raw session whose state is with the chief. Checkpoint: always."""
        session = Session(graph)
        after = -1
        with anyio.move_on_after(max_wait):
            while not self._has_had_its_chief:
                seat = await self.next_seat(after)
                if seat is None:
                    break
                store = await self._joined_at(seat, graph, max_wait)
                if store is not None:
                    session.store = store
                    return session, Following(self, store)
                after = seat.epoch
        if self._has_had_its_chief:
            return session, Late(self, session)
        raise DeadlineExceededError(
            f"there is no chief of {self.master} after max_wait={max_wait:g} s, in which the program of index 0 has"
            " to open its session"
        )

    async def _joined_at(self, seat: Seat, graph: Graph, max_wait: float) -> DistributedStateStore | None:
        member = (self.link.life, next(self._joined))
        join = Join(
            member, self.link.task.index, self.link.view.version, tuple(graph.variables), tuple(graph.sources)
        )
        try:
            reply = (await self.link.call(seat, join)).reply
        except ChiefGoneError:
            return None
        match reply:
            case Failed(error):
                raise error
            case Known():
                return DistributedStateStore(
                    self.link, seat, member, graph, reply, partial(self._next_chief, max_wait)
                )
        return None

    async def _next_chief(self, max_wait: float, gone: Seat) -> Seat:
        """The seat of another chief than that one. Checkpoint: always."""
        with anyio.move_on_after(max_wait):
            seat = await self.next_seat(gone.epoch)
            if seat is None:
                raise SessionClosedError("the chief's session has ended")
            return seat
        raise DeadlineExceededError(f"there is no other chief of {self.master} after max_wait={max_wait:g} s")

    @property
    def _has_had_its_chief(self) -> bool:
        """Whether there will be no other one: its session has ended for good, or its program has, as by an error."""
        view = self.link.view
        return view.ended or (view.seat is None and CHIEF_INDEX in view.done)

    async def next_seat(self, after: int) -> Seat | None:
        """Wait for a chief with a higher epoch; None if there will be none any more. Checkpoint: always."""
        await anyio.lowlevel.checkpoint()
        changed = anyio.Event()
        forget = self.link.listen(lambda: changed.set())
        try:
            while True:
                if self.link.failure is not None:
                    raise self.link.failure
                view = self.link.view
                if self._has_had_its_chief:
                    return None
                if view.seat is not None and view.seat.epoch > after:
                    return view.seat
                await changed.wait()
                changed = anyio.Event()
        finally:
            forget()

    def own(self, life: Life, company: Listening) -> None:
        """A session opens, the only one of this program that shares its state; or it has recovered."""
        if self._life is not None and self._life is not life:
            raise FailedPreconditionError(
                "a program that launch runs can have one session with its master; launch another program for the"
                " next one"
            )
        self._life = life
        if self._company is not None and self._company is not company:
            self._company.part()
        self._company = company

    def report_stop(self, life: Life) -> None:
        """Let the others know that this session stops."""
        self.link.group.start_soon(self._report_stop, self.stop_of(life))

    def stop_of(self, life: Life) -> Stop:
        """The stop of this session, as the others are told of it."""
        reason = life.stop.reason
        assert reason is not None
        origin = reason.origin
        if (str(reason.kind), reason.message, origin) == self.link.view.stop:
            return self.link.view.stop  # it is the job's, as a signal that launch was sent
        if not origin.startswith("worker "):
            origin = f"worker {self.link.task.index}" + (f": {origin}" if origin else "")
        return str(reason.kind), reason.message, origin

    async def _report_stop(self, stop: Stop) -> None:
        if self.link.failure is None:
            await self.link.report_stop(*stop)


def set_stop(life: Life, stop: Stop) -> None:
    """The stop of another session of the job is that of this one, too."""
    kind, message, origin = stop
    life.stop.set(StopReason(StopKind(kind), message, origin))


class Listening:
    """What the sessions of chief and workers have in common: the job's stop is theirs, and their stop the job's."""

    def __init__(self, engine: JobEngine) -> None:
        self._engine = engine
        self._life: Life | None = None
        self._forget: list[Callable[[], None]] = []
        self._failed = False

    def _listen(self, life: Life) -> None:
        self._engine.own(life, self)
        self._life = life
        link = self._engine.link
        self._forget.append(link.listen(self._heard))
        self._heard()
        report = partial(self._stopped, life)
        life.stop.when_set(report)
        self._forget.append(lambda: life.stop.forget(report))

    def _heard(self) -> None:
        life, link = self._life, self._engine.link
        assert life is not None
        if link.view.stop is not None:
            set_stop(life, link.view.stop)
        if link.failure is not None and not self._failed:
            self._failed = True
            life.coord.fail(link.failure, "the cluster")

    def _stopped(self, life: Life) -> None:
        """This session has been asked to stop, by whomever; what becomes of its process is no stop of the others."""
        reason, link = life.stop.reason, self._engine.link
        if (
            reason is not None
            and link.failure is None
            and link.view.stop is None
            and reason.kind is not StopKind.CANCELLED
        ):
            self._engine.report_stop(life)

    def part(self) -> None:
        """The raw session has ended; its monitored session may go on with another."""
        for forget in self._forget:
            forget()
        self._forget.clear()

    def steps(self) -> Sequence[int]:
        """Nothing: the chief knows that."""
        return ()

    async def loop_ended(self) -> None:  # noqa: ASYNC910 - nobody is waited for
        """Wait for nobody."""

    async def all_left(self) -> None:  # noqa: ASYNC910 - nobody is waited for
        """Wait for nobody."""

    async def drained(self) -> None:  # noqa: ASYNC910 - nobody is waited for
        """Wait for nobody."""


class Leading(Listening):
    """The workers, as the chief's session sees them."""

    def __init__(self, engine: JobEngine, session: Session, saved: bool) -> None:
        super().__init__(engine)
        self._session = session
        self._saved = saved
        self._chief: Chief | None = None
        self._seat: Seat | None = None
        self._taking_seat = False
        self._inbox: deque[tuple[Any, Callable[[Any], None]]] = deque()
        self._arrived: anyio.Event | None = None
        self._over = False
        self._first_step = global_step(session.store)

    def steps(self) -> Sequence[int]:
        """How many steps each program has committed: those that no other one has are this one's own."""
        task = self._engine.link.task
        others = Counter[int]() if self._chief is None else self._chief.commits
        done = [others[index] for index in range(task.num_workers)]
        done[task.index] = max(global_step(self._session.store) - self._first_step - others.total(), 0)
        return done

    async def begin(self, life: Life) -> None:
        """Take the seat: workers may join. Checkpoint: always.

        Raises:
            FailedPreconditionError: the job has come further before, and this begins anew (contract V5).
        """
        engine, link = self._engine, self._engine.link
        engine.own(life, self)
        if link.view.progress and self._session.store.restored_step is None and self._saved:
            logger.warning(
                "the chief was started again after step %d, before a checkpoint was saved: it begins anew",
                link.view.progress,
            )
        elif link.view.progress and self._session.store.restored_step is None:
            raise FailedPreconditionError(
                f"the chief of {engine.master} was started again after step {link.view.progress}, and there is no"
                " checkpoint to go on from; the committed steps would be thrown away silently, so the job is not"
                " started again (give it a checkpoint_dir)"
            )
        life.stateful_hooks[LEDGER] = engine.ledger
        if LEDGER in self._session.store.restored_hooks:
            engine.ledger.load_state_dict(self._session.store.restored_hooks[LEDGER])
        self._chief = Chief(self._session, life, link.group, engine.ledger)
        self._session.store.before_end = self._chief.before_end
        link.group.start_soon(self._serve, name="the chief")
        self._seat = await link.take_seat(self._receive)
        self._listen(life)
        link.group.start_soon(self._report_progress, name="the chief's progress")

    async def _report_progress(self) -> None:
        """Tell how far the job is, at the first commit and then once a second if there are more."""
        store, reported = self._session.store, 0
        while not store.closed and self._session.store is store:
            step = global_step(store)
            if store.committed and step > reported:
                reported = step
                self._engine.link.report_progress(step)
                await anyio.sleep(REPORT_SECS)
            else:
                await store.changed()

    def _receive(self, message: Any, answer: Callable[[Any], None]) -> None:
        self._inbox.append((message, answer))
        if self._arrived is not None:
            self._arrived.set()

    async def _serve(self) -> None:
        """Answer messages, in a task: what they start needs one."""
        chief, inbox = self._chief, self._inbox
        assert chief is not None
        while True:
            while inbox:
                chief.receive(*inbox.popleft())
            self._arrived = anyio.Event()
            await self._arrived.wait()
            if self._over:
                return

    def _stopped(self, life: Life) -> None:
        assert self._chief is not None
        if self._engine.link.failure is None:
            self._chief.stop = self._engine.stop_of(life)
        self._chief.wake()
        super()._stopped(life)

    def _heard(self) -> None:
        super()._heard()
        chief, link, view, life = self._chief, self._engine.link, self._engine.link.view, self._life
        assert chief is not None and self._seat is not None and life is not None
        alive = set(view.lives.values())
        chief.expel(lambda member, guest: member[0] not in alive and guest.view <= view.version)
        chief.wake()
        if view.seat is not None and view.seat.epoch > self._seat.epoch:
            if not self._taking_seat:
                self._session.store.lose(
                    lambda: AbortedError("another chief has taken the place of this one")
                )
                if not life.closing:
                    life.coord.fail(
                        AbortedError("another chief has taken the place of this one"), "the cluster"
                    )
        elif view.seat is None and not view.ended and link.failure is None and not self._taking_seat:
            # This program was taken for lost, but it is there, and so is the state.
            self._taking_seat = True
            chief.dismiss()
            link.group.start_soon(self._take_seat_again)

    async def _take_seat_again(self) -> None:
        logger.warning("the chief was taken for lost, and goes on; the workers join it again")
        try:
            if not self._session.store.closed:
                self._seat = await self._engine.link.take_seat(self._receive)
        except Exception as error:
            assert self._life is not None
            self._life.coord.fail(error, "the cluster")
        finally:
            self._taking_seat = False

    async def loop_ended(self) -> None:
        """Wait for the steps of the others: for the grace period, but at the end of the data however long.

        Checkpoint: always.
        """
        chief, life = self._chief, self._life
        assert chief is not None and life is not None
        reason = life.stop.reason
        at_end = reason is not None and reason.kind is StopKind.END_OF_DATA
        await anyio.lowlevel.checkpoint()
        with anyio.move_on_after(math.inf if at_end else life.grace):
            await self._wait_until(lambda: all(guest.idle for guest in chief.members.values()))

    async def all_left(self) -> None:
        """Wait until every other program has taken part and left, or has ended.

        A stop ends that, unless it comes of the state: then it waits for those that take part, which may have the last
        items (contract D5), and for half of the grace period for those that are still to begin. Checkpoint: always.
        """
        life, chief = self._life, self._chief
        assert life is not None and chief is not None
        await anyio.lowlevel.checkpoint()
        await self._wait_until(lambda: life.stop.reason is not None or not self._in_sight())
        reason = life.stop.reason
        if reason is not None and reason.kind not in KEPT_KINDS:
            with anyio.move_on_after(life.grace / 2):
                await self._wait_until(lambda: not self._in_sight())
            if reason.kind is StopKind.END_OF_DATA:
                await self._wait_until(lambda: not chief.members)

    def _in_sight(self) -> bool:
        """Whether others take part, or have not taken part yet and have not ended."""
        chief, link = self._chief, self._engine.link
        assert chief is not None
        others = set(range(link.task.num_workers)) - {link.task.index}
        return bool(chief.members or others - chief.left - link.view.done)

    async def _wait_until(self, enough: Callable[[], bool]) -> None:  # noqa: ASYNC910 - it waits if there is something
        chief = self._chief
        assert chief is not None
        while not enough() and not self._session.store.closed and not self._failed:
            await chief.changed()

    async def drained(self) -> None:  # noqa: ASYNC910 - it waits if somebody takes part
        """Wait until nobody takes part. Checkpoint: if somebody does."""
        while self._chief is not None and self._chief.members and not self._failed:
            await self._chief.changed()

    def part(self) -> None:
        super().part()
        self._over = True
        if self._arrived is not None:
            self._arrived.set()
        if self._chief is not None:
            self._chief.dismiss()
        if self._seat is not None:
            self._engine.link.leave_seat(self._seat)

    async def end(self) -> None:
        """Leave the seat for good. Checkpoint: always."""
        self.part()
        link = self._engine.link
        if link.failure is None:
            await link.report_end()


class Following(Listening):
    """The chief, as a worker's session sees it."""

    def __init__(self, engine: JobEngine, store: DistributedStateStore) -> None:
        super().__init__(engine)
        self._store = store
        self._epoch = engine.link.view.seat.epoch if engine.link.view.seat is not None else 0

    async def begin(self, life: Life) -> None:  # noqa: ASYNC910 - nothing to wait for
        """The chief's stop is this session's."""
        self._store.when_stopped = partial(set_stop, life)
        self._listen(life)

    def _heard(self) -> None:
        super()._heard()
        link, store, life = self._engine.link, self._store, self._life
        assert life is not None
        if store.closed:
            return
        if link.view.ended:
            set_stop(life, CHIEF_ENDED)
            store.chief_ended()
        elif link.life != store.member[0]:
            store.lose_chief("this worker was taken for lost, and its items were given to others")

    async def end(self) -> None:  # noqa: ASYNC910 - it waits if there is something to send
        """Let the last messages reach the chief."""
        self.part()
        await self._store.flushed()

    async def loop_ended(self) -> None:  # noqa: ASYNC910 - as that of the store
        """Tell the chief, who waits for that."""
        await self._store.loop_ended()


class Late(Listening):
    """The chief, as a worker sees it that comes when the chief's session has ended."""

    def __init__(self, engine: JobEngine, session: Session) -> None:
        super().__init__(engine)
        self._session = session

    async def begin(self, life: Life) -> None:  # noqa: ASYNC910 - nothing to wait for
        """Nothing can be done any more."""
        self._listen(life)
        set_stop(life, CHIEF_ENDED)
        self._session.store.lose(lambda: ended())

    async def end(self) -> None:  # noqa: ASYNC910 - nothing to wait for
        """There is nothing to end."""
        self.part()
