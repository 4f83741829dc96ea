"""Line: the half of a program's link that lives in the event loop of its Dask worker."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from asyncstep.distributed.job import Refusal, RefusedError
from asyncstep.distributed.link import Seat
from asyncstep.distributed.streams import GONE, Desk, Outbox, post_office
from asyncstep.errors import UnavailableError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Ended = Callable[[Any, BaseException | None], None]

    from distributed import Worker

    from asyncstep.distributed.streams import Sender
    from asyncstep.distributed.wire import Packed

PATIENCE = 3.0
"""Seconds for which a scheduler that does not answer is tried again."""

CLOSING = 15.0
"""Seconds for which a Dask worker that closes waits for its programs to end."""

PAUSE = 0.1
"""Seconds between two of these tries."""


@dataclass(slots=True)
class Claim:
    """A seat that is asked for.

    Attributes:
        withdrawn: whether it is not wanted any more.
        seat: once it is given.
    """

    withdrawn: bool = False
    seat: Seat | None = None


class Line:
    """What a program says to the registry and to the chief, and hears of them; used in the Dask worker's loop.

    Args:
        worker: the Dask worker that the program runs on.
        job: the job's name.
        index: the program's.

    Attributes:
        life: the number of this start of the program; 0 before `open`.
        view: what is known of the job, as the registry sends it.
        failure: why nothing can be done any more.
        superseded: whether that is because the program has been started elsewhere.
        in_one: whether programs of the job may share this process, see `pack`.
    """

    def __init__(self, worker: Worker, job: str, index: int) -> None:
        self.life: int = 0
        self.view: dict[str, Any] = {"version": -1, "seat": None, "cancelled": False}
        self.failure: UnavailableError | None = None
        self.superseded: bool = False
        self.in_one: bool = worker.contact_address.startswith("inproc:")
        self._worker = worker
        self._job = job
        self._index = index
        self._hearers: list[Callable[[], None]] = []
        self._desks: dict[int, Desk] = {}
        self._closed = asyncio.Event()
        self._lease = 0.0
        self._reviving = asyncio.Lock()
        self._tasks = set[asyncio.Task[Any]]()
        self._outboxes: dict[int, Outbox] = {}

    async def open(self) -> None:
        """Register, and hear of the job from now on.

        Raises:
            RefusedError: the program is not to run.
            UnavailableError: the scheduler is gone.
        """
        answer = await self.ask("start", index=self._index, address=self._worker.contact_address)
        self.life, self._lease = answer["life"], answer["lease"]
        self._tell()
        self.spawn(_ignore, self._watch)
        post_office(self._worker).closers.add(self._worker_closes)

    def listen(self, hear: Callable[[], None]) -> None:
        """Call a function whenever something of the attributes has changed, and once now."""
        self._hearers.append(hear)
        hear()

    async def close(self) -> None:
        """The program has ended: its seats are left, and nothing is heard any more."""
        for task in self._tasks:
            task.cancel()
        for outbox in self._outboxes.values():
            outbox.close()
        self._outboxes.clear()
        post_office(self._worker).closers.discard(self._worker_closes)
        self._closed.set()
        for epoch in list(self._desks):
            await self._close_desk(epoch)

    def fail(self, error: UnavailableError) -> None:
        """Nothing can be done any more."""
        if self.failure is None:
            self.failure = error
            for task in self._tasks:
                task.cancel()
            for outbox in self._outboxes.values():
                outbox.close()
            self._tell()

    def spawn(
        self, ended: Ended, function: Callable[..., Awaitable[Any]], *args: Any, **options: Any
    ) -> None:
        """Start a task that ends with the line; ``ended(result, error)`` is called once."""

        async def run() -> None:
            try:
                result = await function(*args, **options)
            except asyncio.CancelledError:
                ended(None, self.failure or UnavailableError("the program has ended"))
                raise
            except Exception as error:
                ended(None, error)
            else:
                ended(result, None)

        if self.failure is not None:
            ended(None, self.failure)
            return
        task = asyncio.create_task(run())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def ask(self, call: str, **args: Any) -> dict[str, Any]:
        """Ask the registry; again if the connection breaks, until the scheduler is given up.

        Raises:
            RefusedError: the registry refuses it.
            UnavailableError: the scheduler is gone.
        """
        while True:
            try:
                return await self._ask_once(call, **args)
            except OSError as error:
                if not self.life:  # nothing watches yet, so nothing gives the scheduler up
                    raise self._scheduler_lost(error) from error
                await asyncio.sleep(PAUSE)

    async def ask_as_life(self, call: str, **args: Any) -> dict[str, Any]:
        """Ask the registry for what only a program that is alive may have."""
        while True:
            life = self.life
            try:
                return await self.ask(call, life=life, **args)
            except RefusedError as error:
                if error.args[0] is not Refusal.LOST:
                    raise
                await self._revive(life)

    async def finish(self) -> None:
        """Let the registry know that the program has ended for good."""
        await self.ask_as_life("finish")

    async def take_seat(self, claim: Claim) -> Seat:
        """Be the chief, unless the claim is withdrawn."""
        answer = await self.ask_as_life("take_seat")
        claim.seat = Seat(self._worker.contact_address, answer["epoch"])
        if answer["view"]["version"] > self.view["version"]:
            self.view = answer["view"]
            self._tell()
        if claim.withdrawn:
            self.leave_seat(claim.seat)
        return claim.seat

    def withdraw(self, claim: Claim) -> None:
        """Leave a seat that may be about to be taken."""
        claim.withdrawn = True
        if claim.seat is not None:
            self.leave_seat(claim.seat)

    def open_desk(self, seat: Seat, receive: Callable[[int, Sender, list[Any]], None]) -> None:
        """Take messages to a seat; `receive` is given its epoch, where the answers go, and several messages.

        Those that come before are sent again, for the registry says that there is a chief.
        """
        desk = self._desks[seat.epoch] = Desk(lambda sender, batch: receive(seat.epoch, sender, batch))
        post_office(self._worker).desks[self._job, seat.epoch] = desk

    def leave_seat(self, seat: Seat) -> None:
        """Be the chief no more."""
        self.spawn(_ignore, self.ask, "leave_seat", epoch=seat.epoch)
        if seat.epoch in self._desks:
            self.spawn(_ignore, self._close_desk, seat.epoch)

    def post(self, number: int, seat: Seat, packed: Packed, answered: Callable[..., None]) -> None:
        """Send a message; ``answered(kind, *packed)`` is called once."""
        if self.failure is not None or self._is_gone(seat.epoch):
            answered(GONE)
            return
        outbox = self._outboxes.get(seat.epoch)
        if outbox is None:
            outbox = self._outboxes[seat.epoch] = Outbox(self._worker, self._job, seat)
        outbox.put(number, packed, answered)

    def drop(self, number: int, seat: Seat) -> None:
        """Forget a message, which may have been delivered."""
        outbox = self._outboxes.get(seat.epoch)
        if outbox is not None:
            outbox.drop(number)

    async def _watch(self) -> None:
        """Hear of what changes, and tell so that the program is there."""
        while self.failure is None and not self.view["cancelled"]:
            life = self.life
            try:
                await self._watch_once(life)
            except RefusedError as error:
                if error.args[0] is Refusal.LOST:
                    await self._revive(life)
                else:
                    self._refused(error.args[0])
            except Exception as error:
                self.fail(self._scheduler_lost(error))

    async def _watch_once(self, life: int) -> None:
        longest = self._lease / 3 + max(self._lease, PATIENCE)
        try:
            await asyncio.wait_for(self._ask_once("watch", life=life, seen=self.view["version"]), longest)
        except OSError:
            await asyncio.wait_for(self._watch_again(life), PATIENCE)

    async def _watch_again(self, life: int) -> None:
        while True:
            try:
                await self._ask_once("watch", life=life, seen=-1)
                return
            except OSError:
                await asyncio.sleep(PAUSE)

    async def _revive(self, lost: int) -> None:
        """Go on under another number, unless that has been done in the meantime."""
        async with self._reviving:
            if self.life != lost:
                return
            address = self._worker.contact_address
            try:
                answer = await self.ask("revive", lost=lost, index=self._index, address=address)
            except RefusedError as error:
                self._refused(error.args[0])
            else:
                self.life = answer["life"]
                self._tell()

    def _refused(self, refusal: Refusal) -> None:
        """The program cannot go on."""
        if refusal is Refusal.CANCELLED:
            self.view = {**self.view, "cancelled": True}
            self._tell()
            return
        self.superseded = refusal is Refusal.SUPERSEDED
        self.fail(UnavailableError(f"the registry of {self._job} at {self._scheduler}: {refusal}"))

    async def _ask_once(self, call: str, **args: Any) -> dict[str, Any]:
        answer = await self._worker.scheduler.asyncstep(call=call, job=self._job, **args)
        refusal = Refusal.NO_JOB if answer is None else answer.get("refused")
        if refusal is not None:
            raise RefusedError(Refusal(refusal))
        view = answer["view"]
        if view["version"] > self.view["version"]:
            self.view = view
            for epoch in [epoch for epoch in self._outboxes if self._is_gone(epoch)]:
                self._outboxes.pop(epoch).close()
            self._tell()
        return answer  # type: ignore[no-any-return]

    def _is_gone(self, epoch: int) -> bool:
        seat = self.view["seat"]
        return seat is None or seat[1] > epoch

    async def _close_desk(self, epoch: int) -> None:
        post_office(self._worker).desks.pop((self._job, epoch), None)
        await self._desks.pop(epoch).close()

    async def _worker_closes(self) -> None:
        """The Dask worker is closing: it waits for a while until the program has ended."""
        self.fail(
            UnavailableError(
                f"the Dask worker at {self._worker.contact_address} is closing, as it does when its scheduler"
                f" ({self._scheduler}) is gone"
            )
        )
        try:
            await asyncio.wait_for(self._closed.wait(), CLOSING)
        except TimeoutError:
            pass

    def _tell(self) -> None:
        for hear in self._hearers:
            hear()

    @property
    def _scheduler(self) -> str:
        return str(self._worker.scheduler.address)

    def _scheduler_lost(self, error: BaseException) -> UnavailableError:
        lost = UnavailableError(f"the scheduler at {self._scheduler} is gone: {error!r}")
        lost.__cause__ = error
        return lost


def _ignore(*_: object) -> None:
    """For tasks whose outcome nobody waits for."""
