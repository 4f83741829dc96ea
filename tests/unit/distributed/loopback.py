"""A job whose programs run in one event loop, with messages that are pickled, and lost or repeated on demand."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import cloudpickle
from anyio.abc import TaskGroup

from asyncstep._monitored.company import current_engine
from asyncstep.distributed.engine import JobEngine
from asyncstep.distributed.link import ChiefGoneError, JobView, Seat
from asyncstep.distributed.task import TaskInfo

MASTER = "loopback"
KEPT_STOPS = ("signal", "error", "cancelled")
"""The kinds of stop that another chief finds."""


class LoopbackJob:
    """The registry of one job, and the wires between its programs.

    Attributes:
        drop_request, drop_answer: are asked for each message whether it is to be lost.
        messages: all that were received, by the names of their kinds.
        partitioned: the lives whose messages do not get through.
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self.view = JobView()
        self.receivers: dict[int, tuple[LoopbackLink, Callable[..., None]]] = {}
        self.links: list[LoopbackLink] = []
        self.drop_request: Callable[[Any], bool] = lambda _: False
        self.drop_answer: Callable[[Any], bool] = lambda _: False
        self.messages: list[str] = []
        self.partitioned: set[int] = set()
        self.lives = 0
        self.epochs = 0
        self.healed = anyio.Event()

    def change(self, **changes: Any) -> None:
        """Let all programs know of a change."""
        self.view = dataclasses.replace(self.view, version=self.view.version + 1, **changes)
        for link in list(self.links):
            link.tell()

    def link(self, index: int, group: TaskGroup) -> LoopbackLink:
        """A program begins."""
        self.lives += 1
        link = LoopbackLink(self, TaskInfo(MASTER, index, self.workers), self.lives, group)
        self.links.append(link)
        self.change(lives={**self.view.lives, index: link.life})
        return link

    def lose(self, link: LoopbackLink) -> None:
        """The registry takes a program for lost."""
        lives = {index: life for index, life in self.view.lives.items() if life != link.life}
        for epoch, (other, _) in list(self.receivers.items()):
            if other is link:
                del self.receivers[epoch]
        seat = (
            self.view.seat if self.view.seat is not None and self.view.seat.epoch in self.receivers else None
        )
        self.change(lives=lives, seat=seat)

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

    async def run(
        self,
        program: Callable[[TaskInfo], Awaitable[Any]],
        index: int,
        results: dict[int, Any] | None = None,
    ) -> None:
        """Run the program of one index, to its end or until the scope around this is cancelled, as by a kill."""
        async with anyio.create_task_group() as group:
            link = self.link(index, group)
            current_engine.set(JobEngine(link))
            try:
                result = await program(link.task)
                if results is not None:
                    results[index] = result
                with anyio.CancelScope(shield=True):
                    self.change(done=self.view.done | {index})
            finally:
                self.links.remove(link)
                self.lose(link)
                group.cancel_scope.cancel()


class LoopbackLink:
    """One program's link."""

    def __init__(self, job: LoopbackJob, task: TaskInfo, life: int, group: TaskGroup) -> None:
        self.job = job
        self.task = task
        self.life = life
        self.group = group
        self.failure: BaseException | None = None
        self._calls: list[Callable[[], None]] = []

    @property
    def view(self) -> JobView:
        return self.job.view

    def listen(self, call: Callable[[], None]) -> Callable[[], None]:
        self._calls.append(call)
        return lambda: self._calls.remove(call)

    def tell(self) -> None:
        """The view has changed."""
        for call in list(self._calls):
            call()

    def fail(self, error: BaseException) -> None:
        """The engine is gone."""
        self.failure = error
        self.tell()

    async def take_seat(self, receive: Callable[..., None]) -> Seat:
        await anyio.lowlevel.checkpoint()
        self.job.epochs += 1
        seat = Seat(f"program {self.task.index}", self.job.epochs)
        self.job.receivers[seat.epoch] = (self, receive)
        stop = self.view.stop
        self.job.change(seat=seat, stop=stop if stop is not None and stop[0] in KEPT_STOPS else None)
        return seat

    def leave_seat(self, seat: Seat) -> None:
        self.job.receivers.pop(seat.epoch, None)
        if self.view.seat == seat:
            self.job.change(seat=None)

    async def report_stop(self, kind: str, message: str, origin: str) -> None:
        await anyio.lowlevel.checkpoint()
        if self.view.stop is None:
            self.job.change(stop=(kind, message, origin))

    async def report_end(self) -> None:
        await anyio.lowlevel.checkpoint()
        self.job.change(ended=True)

    def report_progress(self, step: int) -> None:
        self.job.view = dataclasses.replace(self.view, progress=max(step, self.view.progress))

    async def call(self, seat: Seat, message: Any) -> Any:
        job = self.job
        frozen = cloudpickle.dumps(message)
        while True:
            await anyio.lowlevel.checkpoint()
            while self.life in job.partitioned:
                await job.healed.wait()
            if seat.epoch not in job.receivers or job.view.seat != seat:
                raise ChiefGoneError(f"nobody holds the seat {seat}")
            if job.drop_request(message):
                continue
            answer = await self._answer(seat, frozen, type(message).__name__)
            if not job.drop_answer(message):
                return answer

    async def _answer(self, seat: Seat, frozen: bytes, kind: str) -> Any:
        answers: list[bytes] = []
        told = anyio.Event()

        def answer(reply: Any) -> None:
            answers.append(cloudpickle.dumps(reply))
            told.set()

        self.job.messages.append(kind)
        self.job.receivers[seat.epoch][1](pickle.loads(frozen), answer)
        forget = self.listen(lambda: told.set())
        try:
            while not answers:
                await told.wait()
                told = anyio.Event()
                if not answers and seat.epoch not in self.job.receivers:
                    raise ChiefGoneError(f"nobody holds the seat {seat}")
        finally:
            forget()
        return pickle.loads(answers[0])
