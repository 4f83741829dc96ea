"""Registry: where a job's facts are kept, in Dask's scheduler.

It is one more handler of the scheduler, ``asyncstep``, which takes the name of a call and answers with plain data.
Whoever wants to know what changes asks ``watch``, which answers when there is news; so nobody polls, and a member
that does not come back with the next ``watch`` in time is taken for lost.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from distributed.diagnostics.plugin import SchedulerPlugin

from asyncstep.distributed.job import Job, Refusal, RefusedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from distributed import Scheduler

logger: logging.Logger = logging.getLogger("asyncstep")

HANDLER = "asyncstep"
KEYS = "asyncstep-"
"""How the keys of the programs' tasks begin."""

PROTOCOL = 1
"""Raised with every change of what is said between programs, registry and launch."""


def new_registry() -> Any:
    """A registry, as a plugin of Dask's scheduler."""
    return _Registry()


class _Registry(SchedulerPlugin):  # type: ignore[misc]  # distributed has no types
    """The jobs of a cluster."""

    name = "asyncstep"
    idempotent = True

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}

    async def start(self, scheduler: Scheduler) -> None:
        """Take calls, once the scheduler has the plugin."""
        self._scheduler = scheduler
        scheduler.handlers[HANDLER] = self.handle

    async def close(self) -> None:
        """Answer all who watch, so that nothing waits any more when the scheduler's loop ends."""
        for job in list(self._entries):
            self._drop(job)

    def remove_worker(self, scheduler: Scheduler, worker: str, **_: Any) -> None:
        """A Dask worker is gone: Dask tells within milliseconds of its connection's end."""
        for name, entry in list(self._entries.items()):
            entry.job.lose_worker(worker)
            self._tell(name)
        # Dask gives a task whose preferred worker is gone to any other; but if there is no other at that moment, it
        # waits for the one that it has preferred for ever.
        waiting = [task.key for task in scheduler.unrunnable if str(task.key).startswith(KEYS)]
        scheduler.set_restrictions(dict.fromkeys(waiting))

    def remove_client(self, scheduler: Scheduler, client: str) -> None:
        """Who launched a job is gone: nobody waits for its results."""
        for name, entry in list(self._entries.items()):
            if entry.client == client:
                entry.job.cancel()
                self._tell(name)

    async def handle(self, *, call: str, job: str, **args: Any) -> dict[str, Any]:
        """One call of a program or of a launch: the method ``on_...`` of that name."""
        try:
            if call == "create":
                return self._create(job, **args)
            entry = self._entries.get(job)
            if entry is None:
                raise RefusedError(Refusal.NO_JOB)
            answer = getattr(entry, f"on_{call}")(**args)
            self._tell(job)
            if "seen" in args:
                await entry.wait_for_news(args["seen"])
            return {**answer, "view": entry.job.view()}
        except RefusedError as error:
            return {"refused": str(error.args[0])}

    def _create(self, name: str, *, protocol: int, workers: int, lease: float, client: str) -> dict[str, Any]:
        if protocol == PROTOCOL and name not in self._entries:
            self._entries[name] = Entry(Job(workers, lease), client, lambda: self._tell(name))
        # Threads of the Dask workers by their addresses; an adaptive cluster may have none yet.
        threads = {address: worker.nthreads for address, worker in self._scheduler.workers.items()}
        return {"protocol": PROTOCOL, "threads": threads}

    def _tell(self, name: str) -> None:
        """Answer all who watch a job, if there is something new; drop it if nobody will ask for it any more."""
        entry = self._entries.get(name)
        if entry is None:
            return  # it was dropped while somebody watched it
        entry.tell()
        if (
            entry.job.cancelled
            and entry.client not in self._scheduler.clients
            and not entry.job.view()["lives"]
        ):
            self._drop(name)

    def _drop(self, name: str) -> None:
        self._entries.pop(name).close()


class Entry:
    """A job in the registry: who watches it, and the clock of its leases.

    Args:
        job: its facts.
        client: the Dask client that launched it.
        changed: called when the clock has changed the facts.
    """

    def __init__(self, job: Job, client: str, changed: Callable[[], None]) -> None:
        self.job = job
        self.client: str = client
        self._changed = changed
        self._told = job.version
        self._news = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._closed = False
        self._check_leases_soon()

    def tell(self) -> None:
        """Answer all who watch, if there is something new."""
        if self._told != self.job.version:
            self._told = self.job.version
            self._news.set()
            self._news = asyncio.Event()

    async def wait_for_news(self, seen: int) -> None:
        """Wait until there is a newer version than the one that was seen, but not for too long.

        Who waits has to come back in time to be heard of, and to learn whether the scheduler is still there.
        """
        if self.job.version <= seen and not self._closed:
            try:
                await asyncio.wait_for(self._news.wait(), self.job.lease / 3)
            except TimeoutError:
                pass

    def close(self) -> None:
        """Answer all who watch, and take nobody for lost any more."""
        self._closed = True
        self._news.set()
        self._timer.cancel()

    def on_start(self, *, index: int, address: str) -> dict[str, Any]:
        """A program starts on a Dask worker."""
        return {"life": self.job.start(index, address, self._loop.time()), "lease": self.job.lease}

    def on_revive(self, *, lost: int, index: int, address: str) -> dict[str, Any]:
        """A program goes on that was taken for lost."""
        return {"life": self.job.revive(lost, index, address, self._loop.time())}

    def on_watch(self, *, life: int, seen: int) -> dict[str, Any]:
        """A program waits for news, and so tells that it is there."""
        self._hear(life)
        return {}

    def on_follow(self, *, seen: int) -> dict[str, Any]:
        """The launch waits for news."""
        return {}

    def on_take_seat(self, *, life: int) -> dict[str, Any]:
        """A program is the chief from now on."""
        self._hear(life)
        return {"epoch": self.job.take_seat(life), "view": self.job.view()}

    def on_leave_seat(self, *, epoch: int) -> dict[str, Any]:
        """A program is the chief no more."""
        self.job.leave_seat(epoch)
        return {}

    def on_stop(self, *, kind: str, message: str, origin: str) -> dict[str, Any]:
        """The sessions are to stop."""
        self.job.stop(kind, message, origin)
        return {}

    def on_end(self) -> dict[str, Any]:
        """The chief's session has ended for good."""
        self.job.end()
        return {}

    def on_advance(self, *, step: int) -> dict[str, Any]:
        """The chief has come to a step."""
        self.job.advance(step)
        return {}

    def on_finish(self, *, life: int) -> dict[str, Any]:
        """A program has ended for good."""
        self._hear(life)
        self.job.finish(life)
        return {}

    def on_cancel(self) -> dict[str, Any]:
        """All programs are to be cancelled."""
        self.job.cancel()
        return {}

    def on_count_starts(self, *, index: int) -> dict[str, Any]:
        """How often the program of an index was started."""
        return {"starts": self.job.starts(index)}

    def on_forget(self) -> dict[str, Any]:
        """The launch has ended, with all programs."""
        self.client = ""
        self.job.cancel()
        return {}

    def _hear(self, life: int) -> None:
        self.job.hear(life, self._loop.time())

    def _check_leases_soon(self) -> None:
        interval = self.job.lease / 4
        self._timer = self._loop.call_later(interval, self._check_leases, self._loop.time() + 2 * interval)

    def _check_leases(self, latest: float) -> None:
        now = self._loop.time()
        if now > latest:
            # It is this process that did not run, and what the programs have sent in the meantime is yet to be read.
            self.job.hear_all(now)
        else:
            for number in self.job.lose_overdue(now):
                logger.warning(
                    "Start %d of a program was not heard of for %g s and is taken for lost",
                    number,
                    self.job.lease,
                )
        self._check_leases_soon()
        self._changed()
