"""A job whose programs run in one event loop, with messages that are pickled, lost, repeated or late on demand."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import anyio
import cloudpickle
from anyio.abc import TaskGroup

from asyncstep._monitored.company import current_engine
from asyncstep.distributed.engine import JobEngine
from asyncstep.distributed.link import ChiefGoneError, JobView, Seat
from asyncstep.distributed.task import TaskInfo
from asyncstep.errors import UnavailableError

MASTER = "loopback"
KEPT_STOPS = ("signal", "error", "cancelled")
"""The kinds of stop that another chief finds."""

Program = Callable[[TaskInfo], Awaitable[Any]]


async def at_once(_: Any) -> None:
    """For messages that are not late."""


class LoopbackJob:
    """The registry of one job, and the wires between its programs.

    Attributes:
        drop_request, drop_answer: are asked for each message whether it is to be lost.
        repeated: is asked for each message whether it is to arrive twice.
        delay: is awaited before each message is delivered.
        messages: all that were received.
        answers: all that were given.
        partitioned: the lives whose messages do not get through.
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self.view = JobView()
        self.receivers: dict[int, tuple[LoopbackLink, Callable[..., None]]] = {}
        self.links: list[LoopbackLink] = []
        self.drop_request: Callable[[Any], bool] = lambda _: False
        self.drop_answer: Callable[[Any], bool] = lambda _: False
        self.repeated: Callable[[Any], bool] = lambda _: False
        self.delay: Callable[[Any], Awaitable[None]] = at_once
        self.messages: list[Any] = []
        self.answers: list[Any] = []
        self.partitioned: set[int] = set()
        self.lives = 0
        self.epochs = 0
        self.healed = anyio.Event()
        self._changed = anyio.Event()

    def change(self, **changes: Any) -> None:
        """Let all programs know of a change."""
        self.view = dataclasses.replace(self.view, version=self.view.version + 1, **changes)
        self.wake()
        for link in list(self.links):
            link.tell()

    def received(self, message: Any) -> None:
        """Write down a message that has arrived."""
        self.messages.append(message)
        self.wake()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for something that comes with a change of the view or with a message."""
        while not condition():
            await self._changed.wait()

    def wake(self) -> None:
        """Look again at what `until` waits for."""
        self._changed.set()
        self._changed = anyio.Event()

    def lose(self, link: LoopbackLink) -> None:
        """The registry takes a program for lost."""
        lives = {index: life for index, life in self.view.lives.items() if life != link.life}
        for epoch, (other, _) in list(self.receivers.items()):
            if other is link:
                del self.receivers[epoch]
        seat = self.view.seat
        self.change(lives=lives, seat=seat if seat is not None and seat.epoch in self.receivers else None)

    def hear_of(self, link: LoopbackLink) -> None:
        """A program that was taken for lost is heard of again."""
        self.lives += 1
        link.life = self.lives
        self.change(lives={**self.view.lives, link.task.index: link.life})

    def heal(self) -> None:
        """All messages get through again."""
        self.partitioned.clear()
        self.healed.set()
        self.healed = anyio.Event()

    @asynccontextmanager
    async def running(self, within: float = 10) -> AsyncIterator[Callable[[Program, int], Running]]:
        """A block in which programs are started: ``start(program, index)``. It ends when all of them have."""
        with anyio.fail_after(within):
            async with anyio.create_task_group() as group:
                yield partial(self._start, group)

    def _start(self, group: TaskGroup, program: Program, index: int) -> Running:
        self.lives += 1
        running = Running(self, LoopbackLink(self, TaskInfo(MASTER, index, self.workers), self.lives))
        group.start_soon(running.run, program)
        return running


class Running:
    """One start of a program.

    Attributes:
        link: the program's.
        ended: set when it has.
    """

    def __init__(self, job: LoopbackJob, link: LoopbackLink) -> None:
        self.job = job
        self.link = link
        self.ended = anyio.Event()
        self._scope = anyio.CancelScope()
        self._result: Any = None
        self._error: BaseException | None = None

    @property
    def result(self) -> Any:
        """What the program has returned; raises what it has raised."""
        assert self.ended.is_set()
        if self._error is not None:
            raise self._error
        return self._result

    @property
    def error(self) -> BaseException | None:
        """What the program has raised."""
        assert self.ended.is_set()
        return self._error

    def kill(self) -> None:
        """The process dies: nobody hears anything of the program any more, nor does it of others."""
        self.link.fail(UnavailableError("the process was killed"))  # so that what is left of it ends soon
        self.link.killed = True
        self.job.lose(self.link)
        self._scope.cancel()

    def cancel(self) -> None:
        """The program is cancelled."""
        self._scope.cancel()

    async def run(self, program: Program) -> None:
        """Run it to its end."""
        job, link = self.job, self.link
        try:
            with self._scope:
                async with anyio.create_task_group() as link.group:
                    job.links.append(link)
                    job.change(lives={**job.view.lives, link.task.index: link.life})
                    current_engine.set(JobEngine(link))
                    try:
                        self._result = await program(link.task)
                    except Exception as error:
                        self._error = error
                        link.stop("error", repr(error), f"the program of worker {link.task.index}")
                    link.group.cancel_scope.cancel()
        finally:
            job.links.remove(link)
            if link.failure is None:
                job.change(done=job.view.done | {link.task.index})
                job.lose(link)
            self.ended.set()
            job.wake()


class LoopbackLink:
    """One program's link.

    Attributes:
        killed: whether its process is dead, though this one is not.
    """

    group: TaskGroup

    def __init__(self, job: LoopbackJob, task: TaskInfo, life: int) -> None:
        self.job = job
        self.task = task
        self.life = life
        self.failure: BaseException | None = None
        self.killed = False
        self._calls: list[Callable[[], None]] = []

    @property
    def view(self) -> JobView:
        return self.job.view

    def listen(self, call: Callable[[], None]) -> Callable[[], None]:
        listener = partial(call)
        self._calls.append(listener)
        return lambda: self._calls.remove(listener)

    def tell(self) -> None:
        """The view has changed."""
        for call in list(self._calls):
            if call in self._calls and not self.killed:
                call()

    def fail(self, error: BaseException) -> None:
        """The engine is gone."""
        self.failure = error
        self.tell()

    def stop(self, kind: str, message: str, origin: str) -> None:
        """All programs are to stop."""
        if self.job.view.stop is None and self.failure is None:
            self.job.change(stop=(kind, message, origin))

    async def take_seat(self, receive: Callable[..., None]) -> Seat:
        await anyio.lowlevel.checkpoint()
        self.job.epochs += 1
        seat = Seat(f"program {self.task.index}", self.job.epochs)
        self.job.receivers[seat.epoch] = (self, receive)
        stop = self.view.stop
        self.job.change(seat=seat, stop=stop if stop is not None and stop[0] in KEPT_STOPS else None)
        return seat

    def leave_seat(self, seat: Seat) -> None:
        if not self.killed:
            self.job.receivers.pop(seat.epoch, None)
            if self.view.seat == seat:
                self.job.change(seat=None)

    async def report_stop(self, kind: str, message: str, origin: str) -> None:
        await anyio.lowlevel.checkpoint()
        self.stop(kind, message, origin)

    async def report_end(self) -> None:
        await anyio.lowlevel.checkpoint()
        if not self.killed:
            self.job.change(ended=True)

    def report_progress(self, step: int) -> None:
        self.job.view = dataclasses.replace(self.view, progress=max(step, self.view.progress))

    async def call(self, seat: Seat, message: Any) -> Any:
        job = self.job
        frozen = cloudpickle.dumps(message)
        while True:
            await anyio.lowlevel.checkpoint()
            await job.delay(message)
            while self.life in job.partitioned:
                await job.healed.wait()
            if job.drop_request(message):
                continue
            if job.repeated(message):
                self.group.start_soon(self._repeat, seat, frozen)
            answer = await self._answer(seat, frozen)
            if not job.drop_answer(message):
                return answer

    async def _repeat(self, seat: Seat, frozen: bytes) -> None:
        try:
            await self.job.delay(pickle.loads(frozen))
            await self._answer(seat, frozen)
        except ChiefGoneError:
            pass

    async def _answer(self, seat: Seat, frozen: bytes) -> Any:
        answers: list[bytes] = []
        told = anyio.Event()

        def answer(reply: Any) -> None:
            answers.append(cloudpickle.dumps(reply))
            self.job.answers.append(reply)
            told.set()

        message = pickle.loads(frozen)
        self._check(seat)
        self.job.received(message)
        self.job.receivers[seat.epoch][1](message, answer)
        forget = self.listen(lambda: told.set())
        try:
            while True:
                self._check(seat)
                if answers:
                    return pickle.loads(answers[0])
                await told.wait()
                told = anyio.Event()
        finally:
            forget()

    def _check(self, seat: Seat) -> None:
        if self.killed or self.failure is not None or seat.epoch not in self.job.receivers:
            raise ChiefGoneError(f"nobody holds the seat {seat}")
