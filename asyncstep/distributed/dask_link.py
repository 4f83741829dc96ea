"""DaskLink: the connection of a program that runs on a Dask worker to its job."""

from __future__ import annotations

import logging
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any

import anyio
from anyio.lowlevel import checkpoint

from asyncstep.distributed.bridge import bridge_here, bridge_to
from asyncstep.distributed.job import RefusedError
from asyncstep.distributed.line import Claim, Line
from asyncstep.distributed.link import ChiefGoneError, JobView, Seat
from asyncstep.distributed.streams import ANSWER, ERROR, GONE, Sender
from asyncstep.distributed.wire import pack, unpack
from asyncstep.errors import Error, UnavailableError

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Awaitable, Callable

    from anyio.abc import TaskGroup

    from asyncstep.distributed.task import TaskInfo

    Receive = Callable[[Any, Callable[[Any], None]], None]

logger: logging.Logger = logging.getLogger("asyncstep")


class DaskLink:
    """A `Link` by way of a Dask worker; made and used in the program's event loop.

    Its other half, the `Line`, lives in the event loop of the Dask worker. The two tell each other things over two
    bridges.

    Args:
        task: the program's place.
        line: the program's line, which is open.
        loop: the event loop of its Dask worker.

    Attributes:
        cancelled: whether the program is to be cancelled.
        superseded: whether the program has been started elsewhere, so that nobody waits for this one.
    """

    group: TaskGroup

    def __init__(self, task: TaskInfo, line: Line, loop: asyncio.AbstractEventLoop) -> None:
        self.task = task
        self.life: int = line.life
        self.view: JobView = JobView()
        self.cancelled: bool = False
        self.superseded: bool = False
        self._failure: BaseException | None = None
        self._listeners: list[Callable[[], None]] = []
        self._line = line
        self._numbers = count(1)
        self._waiting: dict[int, Callable[..., None]] = {}
        self._seats: dict[int, Receive] = {}
        self._here = bridge_here()
        self._dask = bridge_to(loop)
        self._hear(line.life, line.view, line.failure, line.superseded)
        self._dask.call(line.listen, self._pass_on)

    @property
    def failure(self) -> BaseException | None:
        """Why nothing can be done any more."""
        return self._failure

    def listen(self, call: Callable[[], None]) -> Callable[[], None]:
        """Call a function whenever there is news."""
        listener = partial(call)  # equal to no other, so that each is ended by itself
        self._listeners.append(listener)

        def end() -> None:
            if listener in self._listeners:
                self._listeners.remove(listener)

        return end

    async def take_seat(self, receive: Receive) -> Seat:
        """Be the chief from now on."""
        claim = Claim()
        try:
            seat: Seat = await self._in_dask(self._line.take_seat, claim)
        except RefusedError as error:
            raise UnavailableError(
                f"program {self.task.index} cannot be the chief: {error.args[0]}"
            ) from error
        except BaseException:
            self._dask.call(self._line.withdraw, claim)
            raise
        self._seats[seat.epoch] = receive
        self._dask.call(self._line.open_desk, seat, self._take_batch)
        return seat

    def leave_seat(self, seat: Seat) -> None:
        """Take no more messages for a seat."""
        self._seats.pop(seat.epoch, None)
        self._dask.call(self._line.leave_seat, seat)

    async def report_stop(self, kind: str, message: str, origin: str) -> None:
        """Let all programs know of a stop."""
        await self._in_dask(partial(self._line.ask, "stop", kind=kind, message=message, origin=origin))

    async def report_end(self) -> None:
        """Let all programs know that the chief's session has ended for good."""
        await self._in_dask(self._line.ask, "end")

    def report_progress(self, step: int) -> None:
        """Let the registry know how far the job is: what makes no progress is given up some day."""
        self._dask.call(self._line.spawn, _ignore, partial(self._line.ask, "advance", step=step))

    async def call(self, seat: Seat, message: Any) -> Any:
        """Send a message, and get the answer to it."""
        packed = pack(message, in_one=self._line.in_one)
        number = next(self._numbers)
        try:
            kind, *answer = await self._wait_for(
                number, lambda answered: self._dask.call(self._line.post, number, seat, packed, answered)
            )
        except BaseException:
            self._dask.call(self._line.drop, number, seat)
            raise
        if kind == GONE:
            raise ChiefGoneError(
                f"the chief of epoch {seat.epoch} at {seat.address} is gone"
            ) from self._failure
        if kind == ERROR:
            raise Error(f"the chief at {seat.address} could not answer: {unpack(*answer)}")
        return unpack(*answer)

    def send(self, seat: Seat, message: Any) -> None:
        """Send a message, and again until it is answered or the seat is gone; does not wait for that."""
        packed = pack(message, in_one=self._line.in_one)
        self._dask.call(self._line.post, next(self._numbers), seat, packed, _ignore)

    async def _in_dask(self, function: Callable[..., Awaitable[Any]], *args: Any) -> Any:
        """Await a function in the Dask worker's loop, where it goes on if this is cancelled."""
        kind, result, error = await self._wait_for(
            next(self._numbers),
            lambda ended: self._dask.call(self._line.spawn, partial(ended, ANSWER), function, *args),
        )
        if kind == GONE:
            raise self._failure or UnavailableError("the program has ended")
        if error is not None:
            raise error
        return result

    async def _wait_for(self, number: int, start: Callable[[Callable[..., None]], None]) -> tuple[Any, ...]:
        """Start something in the Dask worker's loop, and wait until it calls what it was given.

        When the link fails, that loop may not come to it any more; then this ends with `GONE`.
        """
        if self._failure is not None:
            await checkpoint()
            return GONE, None, None
        done = anyio.Event()
        answers: list[tuple[Any, ...]] = []

        def answered(*answer: Any) -> None:
            answers.append(answer)
            done.set()

        self._waiting[number] = answered
        start(partial(self._here.call, answered))
        try:
            await done.wait()
        finally:
            del self._waiting[number]
        return answers[0]

    def _pass_on(self) -> None:
        """In Dask's loop: the line has news."""
        line = self._line
        self._here.call(self._hear, line.life, line.view, line.failure, line.superseded)

    def _hear(self, life: int, view: dict[str, Any], failure: BaseException | None, superseded: bool) -> None:
        self.life, self._failure, self.superseded, self.cancelled = (
            life,
            failure,
            superseded,
            view["cancelled"],
        )
        if view["version"] > self.view.version:
            self.view = _view_of(view)
        if failure is not None:
            for answered in list(self._waiting.values()):
                answered(GONE, None, None)
        for listener in list(self._listeners):
            listener()

    def _take_batch(self, epoch: int, sender: Sender, batch: list[Any]) -> None:
        """In Dask's loop: messages have come to a seat."""
        self._here.call(self._receive, epoch, sender, batch)

    def _receive(self, epoch: int, sender: Sender, batch: list[Any]) -> None:
        receive = self._seats.get(epoch)
        if receive is None:
            return  # it has just been left, and its desk is about to be closed
        for number, payload, buffers in batch:
            answer = partial(self._answer, sender, number)
            try:
                receive(unpack(payload, buffers), answer)
            except Exception as error:
                logger.exception("A message to the chief could not be received")
                self._answer(sender, number, repr(error), kind=ERROR)

    def _answer(self, sender: Sender, number: int, value: Any, *, kind: str = ANSWER) -> None:
        try:
            packed = pack(value, in_one=self._line.in_one)
        except Exception as error:
            kind, packed = ERROR, pack(repr(error), in_one=True)
        self._dask.call(sender.put, number, kind, *packed)


def _view_of(view: dict[str, Any]) -> JobView:
    seat, stop = view["seat"], view["stop"]
    return JobView(
        version=view["version"],
        seat=None if seat is None else Seat(*seat),
        stop=None if stop is None else tuple(stop),
        ended=view["ended"],
        lives=view["lives"],
        done=frozenset(view["done"]),
        progress=view["progress"],
    )


def _ignore(*_: object) -> None:
    """For messages whose answers nobody waits for."""
