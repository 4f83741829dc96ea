"""Link: what the state of a job needs of the engine that runs it on several machines.

There is one link for each program that runs. All of it is used in the program's own event loop, and tells
things there; whatever else the engine has going on (threads, other event loops) stays behind it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from asyncstep.errors import UnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from anyio.abc import TaskGroup

    from asyncstep.distributed.task import TaskInfo


@dataclass(frozen=True, slots=True)
class Seat:
    """Where the state of a job is held.

    Attributes:
        address: how messages get there.
        epoch: a number that every chief of the job has for itself, higher than those of the chiefs before.
    """

    address: str
    epoch: int


@dataclass(frozen=True, slots=True)
class JobView:
    """What is known of a job, as its registry has it.

    Attributes:
        version: of two views the one with the higher number is the newer.
        seat: where the state is held; None while there is no chief.
        stop: (kind, message, origin) of the stop that one of the job's sessions was asked for first; None if none was.
        ended: whether the chief's session has ended for good, so that there will be no other chief.
        lives: of each index whose program is running: the number of that life of it, see `Link.life`.
        done: the indices whose programs have ended for good.
        progress: the highest global step that was reported when this view was made; 0 if none was.
    """

    version: int = 0
    seat: Seat | None = None
    stop: tuple[str, str, str] | None = None
    ended: bool = False
    lives: Mapping[int, int] = field(default_factory=dict)
    done: frozenset[int] = frozenset()
    progress: int = 0


class ChiefGoneError(UnavailableError):
    """A message had no answer, because nobody holds that seat any more."""


class Link(Protocol):
    """One program's connection to its job.

    Attributes:
        task: the program's place.
        life: a number that no other start of a program of this job has, or had. It changes when the registry has taken
            the program for lost (its lease ran out) and then hears of it again.
        view: the newest that is known of the job.
        group: a task group in the program's event loop that outlives the program's sessions; what is started in
            it must raise nothing.
    """

    task: TaskInfo
    life: int
    view: JobView
    group: TaskGroup

    def listen(self, call: Callable[[], None]) -> Callable[[], None]:
        """Call a function whenever `view` or `life` has changed, or `failure` is set; what it returns ends that."""

    @property
    def failure(self) -> BaseException | None:
        """Why nothing can be done any more, as UnavailableError, once the engine is gone; else None."""

    async def take_seat(self, receive: Callable[[Any, Callable[[Any], None]], None]) -> Seat:
        """Be the chief from now on: ``receive(message, answer)`` is called for each message to the seat.

        When this returns, `view` has the seat. A stop of the job that came of the former chief's state is forgotten.

        `answer` must be called once, now or later, in the program's event loop. Checkpoint: always.
        """

    def leave_seat(self, seat: Seat) -> None:
        """Take no more messages for a seat; who sends any gets ChiefGoneError, now or by its next message."""

    async def report_stop(self, kind: str, message: str, origin: str) -> None:
        """Let all programs know of a stop; the first one counts. Checkpoint: always."""

    async def report_end(self) -> None:
        """Let all programs know that the chief's session has ended for good. Checkpoint: always."""

    def report_progress(self, step: int) -> None:
        """Let the job's registry know which global step the chief has come to; does not wait."""

    async def call(self, seat: Seat, message: Any) -> Any:
        """Send a message, and get the answer to it.

        The message is sent again, by the same content, when it or its answer may be lost; so the receiver has to
        recognize repetitions. It must be plain data, or what cloudpickle takes.

        Raises:
            ChiefGoneError: the seat has been left, lost or taken by another.

        Checkpoint: always. A cancelled call may have been delivered.
        """
