"""Crowd: a thousand members of a job in one process, which do nothing but commit.

A member is what the chief sees of a worker: a connection of its own, and one commit after the other. What a session
costs its program is left out, so that one process can keep a chief busy.
"""

from __future__ import annotations

import asyncio
import operator
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from time import perf_counter
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
import cloudpickle

from asyncstep._graph.graph import GLOBAL_STEP
from asyncstep._monitored.company import current_engine

if TYPE_CHECKING:
    from distributed import Worker

    from asyncstep.distributed.link import Link, Seat

AT_ONCE = 50
WARM_UP = 0.3


class Member:
    """A member of a job; used in the event loop of a Dask worker."""

    def __init__(self, worker: Worker, link: Link, seat: Seat, number: int) -> None:
        from asyncstep.distributed.streams import Outbox

        self._outbox = Outbox(worker, link.task.master.rpartition("/")[2], seat)
        self._member = link.life, number
        self._numbers = count(1)
        self._steps = count(1)

    async def join(self) -> None:
        """Take part."""
        from asyncstep.distributed.messages import Join

        await self._ask(Join(self._member, 1, 0, (), ()))

    async def commit(self, variable: str) -> None:
        """Add one to a variable in a step of its own."""
        from asyncstep.distributed.messages import Commit, Committed, Write

        step = next(self._steps)
        functions = {1: cloudpickle.dumps(operator.add)} if step == 1 else {}
        writes = {variable: Write(None, 0, ((1, (1,)),))}
        have = {GLOBAL_STEP: 0, variable: 0}
        reply = await self._ask(
            Commit(
                self._member,
                step,
                below=step,
                number=1,
                over=True,
                owned=True,
                monitored=True,
                counts=True,
                writes=writes,
                items=(),
                parked=(),
                puts=(),
                functions=functions,
                have=have,
                states=(),
            )
        )
        assert isinstance(reply, Committed), reply

    async def leave(self) -> None:
        """Take part no more."""
        from asyncstep.distributed.messages import Leave

        await self._ask(Leave(self._member))
        self._outbox.close()

    async def _ask(self, message: Any) -> Any:
        from asyncstep.distributed.wire import pack, unpack

        answered = asyncio.get_running_loop().create_future()

        def answer(_: str, payload: bytes, buffers: Any) -> None:
            answered.set_result(unpack(payload, buffers))

        self._outbox.put(next(self._numbers), pack(message, in_one=False), answer)
        return (await answered).reply


class Crowd:
    """Members of the job of the program that is running; they live in the event loop of its Dask worker."""

    def __init__(self, members: list[Member], variable: str, loop: asyncio.AbstractEventLoop) -> None:
        self._members = members
        self._variable = variable
        self._loop = loop

    @classmethod
    @asynccontextmanager
    async def joined(cls, size: int, variable: str) -> AsyncIterator[Crowd]:
        """A crowd that takes part for as long as the block lasts, while the session of the program is open."""
        from distributed import get_worker

        from asyncstep.distributed.engine import JobEngine

        engine = current_engine.get()
        assert isinstance(engine, JobEngine)
        link, seat, worker = engine.link, engine.link.view.seat, get_worker()
        assert seat is not None
        members = [Member(worker, link, seat, 1_000 + number) for number in range(size)]
        crowd = cls(members, variable, worker.loop.asyncio_loop)
        await crowd._in_dask(crowd._each("join"))
        try:
            yield crowd
        finally:
            with anyio.CancelScope(shield=True):
                await crowd._in_dask(crowd._each("leave"))

    async def rate(self, pause: float, seconds: float) -> float:
        """Commits a second, if each member sleeps for `pause` between two."""
        rate: float = await self._in_dask(self._rate(pause, max(seconds, 2 * pause)))
        return rate

    async def _each(self, method: str) -> None:
        for first in range(0, len(self._members), AT_ONCE):
            some = self._members[first : first + AT_ONCE]
            await asyncio.gather(*[getattr(member, method)() for member in some])

    async def _rate(self, pause: float, seconds: float) -> float:
        committed, going = 0, True

        async def step(member: Member) -> None:
            nonlocal committed
            await asyncio.sleep(pause * random.random())  # so that they do not come all at once
            while going:
                await member.commit(self._variable)
                committed += 1
                await asyncio.sleep(pause)

        steps = [asyncio.create_task(step(member)) for member in self._members]
        await asyncio.sleep(pause + WARM_UP)
        first, began = committed, perf_counter()
        await asyncio.sleep(seconds)
        rate = (committed - first) / (perf_counter() - began)
        going = False
        await asyncio.gather(*steps)
        return rate

    async def _in_dask(self, coroutine: Any) -> Any:
        return await anyio.to_thread.run_sync(asyncio.run_coroutine_threadsafe(coroutine, self._loop).result)
