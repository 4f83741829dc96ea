"""Job: what is known of one launch, and what each event changes of it; no waiting, no network."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

MAX_RESTARTS = 10
"""How often a program is started again while its job makes no progress."""


KEPT_STOPS = ("signal", "error", "cancelled")
"""The kinds of stop that do not come of the state, and so hold whoever has it."""


class Refusal(StrEnum):
    """Why a program was told no; the message of `RefusedError`."""

    LOST = "this life is lost"
    SUPERSEDED = "the program runs elsewhere"
    CANCELLED = "the job is cancelled"
    RESTARTS = "the program was started too often"
    NO_JOB = "there is no such job"


class RefusedError(Exception):
    """A program has asked for what it cannot have; the first argument is the `Refusal`."""


@dataclass(slots=True)
class Life:
    """One start of a program, until it ends or is lost.

    Attributes:
        index: the program's.
        address: of the Dask worker that it runs on.
        heard: when it was heard of last.
    """

    index: int
    address: str
    heard: float


class Job:
    """The facts of one job. Each method is one event, and raises `version` if it changes what is told of the job.

    Args:
        workers: how many programs there are.
        lease: seconds after which a program that was not heard of is taken for lost.

    Attributes:
        progress: the highest step that was reported.
    """

    def __init__(self, workers: int, lease: float) -> None:
        self.workers = workers
        self.lease = lease
        self.version: int = 0
        self.progress: int = 0
        self.cancelled: bool = False
        self._lives: dict[int, Life] = {}
        self._done: set[int] = set()
        self._stop: tuple[str, str, str] | None = None
        self._ended = False
        self._seat: tuple[str, int] | None = None
        self._holder: int | None = None
        self._last_life = self._last_epoch = 0
        self._starts = Counter[int]()
        self._fruitless = Counter[int]()
        self._progress_at_start: dict[int, int] = {}

    def view(self) -> dict[str, Any]:
        """The facts, as plain data: those of `JobView`, and whether the job is cancelled."""
        return {
            "version": self.version,
            "seat": self._seat,
            "stop": self._stop,
            "ended": self._ended,
            "lives": {life.index: number for number, life in self._lives.items()},
            "done": sorted(self._done),
            "cancelled": self.cancelled,
            "progress": self.progress,
        }

    def starts(self, index: int) -> int:
        """How often the program of that index was started."""
        return self._starts[index]

    def start(self, index: int, address: str, now: float) -> int:
        """A program has started: the number of its life. An older life of the index is lost.

        Raises:
            RefusedError: `Refusal.CANCELLED`, or `Refusal.RESTARTS`: it was started `MAX_RESTARTS` times after
                its first start, and the job's progress is what it was then.
        """
        self._refuse_if_cancelled()
        self._starts[index] += 1
        if self._progress_at_start.get(index) != self.progress:
            self._progress_at_start[index] = self.progress
            self._fruitless[index] = 0
        elif self._fruitless[index] == MAX_RESTARTS:
            raise RefusedError(Refusal.RESTARTS)
        else:
            self._fruitless[index] += 1
        for number in [number for number, life in self._lives.items() if life.index == index]:
            self._lose(number)
        self._done.discard(index)
        return self._begin(index, address, now)

    def revive(self, lost: int, index: int, address: str, now: float) -> int:
        """A program that was taken for lost is heard of again: the number of its new life.

        Raises:
            RefusedError: `Refusal.SUPERSEDED`: its index has been started elsewhere, or `Refusal.CANCELLED`.
        """
        self._refuse_if_cancelled()
        for number, life in self._lives.items():
            if life.index == index and number == lost:
                return number
            if life.index == index:
                raise RefusedError(Refusal.SUPERSEDED)
        if index in self._done:
            raise RefusedError(Refusal.SUPERSEDED)
        return self._begin(index, address, now)

    def hear(self, number: int, now: float) -> None:
        """A life gives a sign of itself.

        Raises:
            RefusedError: `Refusal.LOST`: it has ended.
        """
        life = self._lives.get(number)
        if life is None:
            raise RefusedError(Refusal.LOST)
        life.heard = now

    def hear_all(self, now: float) -> None:
        """Nobody could be heard until now: all leases begin anew."""
        for life in self._lives.values():
            life.heard = now

    def lose_overdue(self, now: float) -> list[int]:
        """Take the lives for lost that were not heard of for the time of the lease; their numbers."""
        overdue = [number for number, life in self._lives.items() if now - life.heard > self.lease]
        for number in overdue:
            self._lose(number)
        return overdue

    def lose_worker(self, address: str) -> None:
        """A Dask worker is gone, with all that runs on it."""
        for number in [number for number, life in self._lives.items() if life.address == address]:
            self._lose(number)

    def take_seat(self, number: int) -> int:
        """Let a life, which must have been heard of just now, hold the state; the epoch of its seat.

        What the state of the chief before had come to (the end of the data, a step at which a hook stops) is to be
        found again by this one, which may have begun with an earlier state.
        """
        if self._stop is not None and self._stop[0] not in KEPT_STOPS:
            self._stop = None
        self._last_epoch += 1
        self._seat = self._lives[number].address, self._last_epoch
        self._holder = number
        self.version += 1
        return self._last_epoch

    def leave_seat(self, epoch: int) -> None:
        """Vacate a seat, unless it is another's already."""
        if self._seat is not None and self._seat[1] == epoch:
            self._seat = self._holder = None
            self.version += 1

    def stop(self, kind: str, message: str, origin: str) -> None:
        """All sessions are to stop; the first one counts."""
        if self._stop is None:
            self._stop = kind, message, origin
            self.version += 1

    def end(self) -> None:
        """The chief's session has ended for good."""
        if not self._ended:
            self._ended = True
            self.version += 1

    def finish(self, number: int) -> None:
        """The program of a life, which must have been heard of just now, has ended for good."""
        self._done.add(self._lives[number].index)
        self._lose(number)

    def cancel(self) -> None:
        """All programs are to be cancelled, and none to be started."""
        if not self.cancelled:
            self.cancelled = True
            self.version += 1

    def advance(self, step: int) -> None:
        """The job has come to a step. That is no news: who starts later learns of it."""
        self.progress = max(self.progress, step)

    def _begin(self, index: int, address: str, now: float) -> int:
        self._last_life += 1
        self._lives[self._last_life] = Life(index, address, now)
        self.version += 1
        return self._last_life

    def _lose(self, number: int) -> None:
        del self._lives[number]
        if self._holder == number:
            self._seat = self._holder = None
        self.version += 1

    def _refuse_if_cancelled(self) -> None:
        if self.cancelled:
            raise RefusedError(Refusal.CANCELLED)
