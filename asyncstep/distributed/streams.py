"""Messages between a member and the seat that the state is held at: one connection of Dask for each pair.

All of it runs in the event loops of the two Dask workers. A connection carries many messages at a time, in both
directions: what has piled up while one batch was written goes with the next. A member's messages keep their order,
and those that were not answered go over the next connection when one breaks.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any

from distributed import Status
from distributed.core import connect

from asyncstep.distributed.registry import HANDLER

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from distributed import Worker
    from distributed.comm import Comm

    from asyncstep.distributed.link import Seat
    from asyncstep.distributed.wire import Packed

QUIET = 5.0
"""Seconds without a sign of the other end, while messages are unanswered, after which it is asked for one; and as
many seconds later the connection is given up."""

FIRST_PAUSE, LONGEST_PAUSE = 0.01, 1.0
"""Seconds before another connection is tried; doubled each time."""

MESSAGE, PING = "message", "ping"
ANSWER, ERROR, PONG, GONE = "answer", "error", "pong", "gone"


class Sender:
    """Writes to a connection what it is given, in order, several things at a time."""

    def __init__(self, comm: Comm) -> None:
        self._comm = comm
        self._queue = deque[tuple[Any, ...]]()
        self._writing: asyncio.Task[None] | None = None

    def put(self, *item: Any) -> None:
        """Write an item after those before it. Does not wait; what cannot be written any more is dropped."""
        self._queue.append(item)
        if self._writing is None:
            self._writing = asyncio.create_task(self._write())

    async def flush(self) -> None:
        """Wait until all is written."""
        if self._writing is not None:
            await self._writing

    async def _write(self) -> None:
        try:
            while self._queue:
                batch = list(self._queue)
                self._queue.clear()
                await self._comm.write(batch)
        except OSError:  # whoever reads from the connection hears of it too
            self._queue.clear()
        finally:
            self._writing = None


class Desk:
    """The chief's end: takes the messages to a seat.

    Args:
        receive: called with each batch, and with what sends the answers.
    """

    def __init__(self, receive: Callable[[Sender, list[tuple[Any, ...]]], None]) -> None:
        self._receive = receive
        self._open: dict[Comm, Sender] = {}

    async def serve(self, comm: Comm) -> None:
        """Read from a member's connection until it ends."""
        self._open[comm] = sender = Sender(comm)
        try:
            while True:
                messages = []
                for number, kind, *packed in await comm.read():
                    if kind == PING:
                        sender.put(number, PONG)
                    else:
                        messages.append((number, *packed))
                if messages:
                    self._receive(sender, messages)
        except OSError:
            pass
        finally:
            self._open.pop(comm, None)

    async def close(self) -> None:
        """Tell the members that the seat is vacant."""
        for comm, sender in list(self._open.items()):
            sender.put(0, GONE)
            await sender.flush()
            await comm.close()


class PostOffice:
    """What a Dask worker needs for the programs that run on it: the desks of the seats, and who to tell of its end.

    There is one for each `Worker`, as an extension of it: Dask calls `close` when the worker closes, and waits.
    """

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self.desks: dict[tuple[str, int], Desk] = {}
        self.closers: set[Callable[[], Coroutine[Any, Any, None]]] = set()
        """Functions that end a program because the Dask worker is closing, and wait for its end."""
        worker.handlers[HANDLER] = self._connected

    async def close(self) -> None:
        """The Dask worker is closing."""
        await asyncio.gather(*(close() for close in list(self.closers)))

    async def _connected(self, comm: Comm, *, job: str, epoch: int) -> Status:
        desk = self.desks.get((job, epoch))
        try:
            if desk is None:
                await comm.write([(0, GONE)])
            else:
                await desk.serve(comm)
            await comm.close()
        except OSError:
            pass
        return Status.dont_reply


def post_office(worker: Worker) -> PostOffice:
    """The post office of a Dask worker, in whose event loop this is called."""
    office = worker.extensions.get(HANDLER)
    if office is None:
        office = worker.extensions[HANDLER] = PostOffice(worker)
    assert isinstance(office, PostOffice)
    return office


class Outbox:
    """A member's end: sends messages to a seat until each is answered.

    Args:
        worker: the Dask worker of the program that sends.
        job: the job's name.
    """

    def __init__(self, worker: Worker, job: str, seat: Seat) -> None:
        self._worker = worker
        self._job = job
        self._seat = seat
        self._waiting: dict[int, tuple[Packed, Callable[..., None]]] = {}
        self._sender: Sender | None = None
        self._comm: Comm | None = None
        self._task: asyncio.Task[None] | None = None
        self._heard = self._pinged = False
        self._timer: asyncio.TimerHandle | None = None
        self._pause = FIRST_PAUSE

    def put(self, number: int, packed: Packed, answered: Callable[..., None]) -> None:
        """Send a message; ``answered(kind, *packed)`` is called once, when it is answered or the seat is gone."""
        self._waiting[number] = packed, answered
        if self._sender is not None:
            self._sender.put(number, MESSAGE, *packed)
            self._watch()
        elif self._task is None:
            self._task = asyncio.create_task(self._run())

    def drop(self, number: int) -> None:
        """Forget a message, which may have been delivered."""
        self._waiting.pop(number, None)

    def close(self) -> None:
        """The seat is gone: all that is unanswered is so for ever."""
        waiting, self._waiting = self._waiting, {}
        for _, answered in waiting.values():
            answered(GONE)
        if self._timer is not None:
            self._timer.cancel()
        if self._comm is not None:
            self._comm.abort()
        elif self._task is not None:
            self._task.cancel()

    async def _run(self) -> None:
        """Connect, and connect again for as long as messages are unanswered."""
        try:
            while self._waiting:
                try:
                    await self._use_connection()
                except OSError:  # refused, broken, or it took too long
                    pass
                if self._waiting:
                    await asyncio.sleep(self._pause)
                    self._pause = min(2 * self._pause, LONGEST_PAUSE)
        finally:
            self._task = None

    async def _use_connection(self) -> None:
        address, args = self._seat.address, self._worker.rpc.connection_args
        comm = await asyncio.wait_for(connect(address, **args), QUIET)
        try:
            await comm.write({"op": HANDLER, "reply": False, "job": self._job, "epoch": self._seat.epoch})
            self._comm, self._sender = comm, Sender(comm)
            for number, (packed, _) in self._waiting.items():
                self._sender.put(number, MESSAGE, *packed)
            self._watch()
            gone = False
            while not gone:
                for number, kind, *packed in await comm.read():
                    gone |= kind == GONE
                    self._hear(number, kind, packed)
        finally:
            self._comm = self._sender = None
            comm.abort()

    def _hear(self, number: int, kind: str, packed: list[Any]) -> None:
        self._heard = True
        if kind in (ANSWER, ERROR):
            self._pause = FIRST_PAUSE
            waiting = self._waiting.pop(number, None)
            if waiting is not None:
                waiting[1](kind, *packed)

    def _watch(self) -> None:
        """Have `_check` look after the connection while something is unanswered."""
        if self._timer is None:
            self._heard = self._pinged = False
            self._timer = asyncio.get_running_loop().call_later(QUIET, self._check)

    def _check(self) -> None:
        self._timer = None
        if self._comm is None or self._sender is None or not self._waiting:
            return
        if self._heard:
            self._watch()
        elif self._pinged:
            self._comm.abort()
        else:
            self._sender.put(0, PING)
            self._watch()
            self._pinged = True
