"""What a monitored session needs of the engine by which it shares its state with others."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Protocol

from asyncstep.errors import InvalidArgumentError, InvalidTypeError, kind_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from asyncstep._graph.graph import Graph
    from asyncstep._monitored.life import Life
    from asyncstep._runtime.session import Session


class Company(Protocol):
    """The other programs that take part in the state of a raw session, as its monitored session sees them."""

    async def begin(self, life: Life) -> None:
        """The session is open: its stop is theirs from now on, and theirs is its."""

    async def loop_ended(self) -> None:
        """The session's workers have ended: the chief's session waits for the steps of the others (contract W1)."""

    async def all_left(self) -> None:
        """Wait until none of them will do anything any more, or the session stops. Checkpoint: always."""

    async def drained(self) -> None:
        """Wait until none takes part, where the session stops."""

    async def end(self) -> None:
        """The session has ended for good."""

    def steps(self) -> Sequence[int]:
        """How many steps each program has committed since the raw session began, by index; empty for a worker's."""


class Engine(Protocol):
    """What runs this program as one of several.

    Attributes:
        master: its name, as `TaskInfo.master`.
        index: the program's, as `TaskInfo.index`.
    """

    master: str
    index: int

    def lead(self, session: Session, *, saved: bool) -> Company:
        """Let others take part in the state of a session of this program; `saved`: checkpoints of it are saved."""

    async def follow(self, graph: Graph, max_wait: float) -> tuple[Session, Company]:
        """A raw session whose state is with the chief. Checkpoint: always.

        Raises:
            DeadlineExceededError: there was no chief within so many seconds.
        """


current_engine: ContextVar[Engine | None] = ContextVar("asyncstep_engine", default=None)
"""The engine of the program that is running."""


in_loop: ContextVar[bool] = ContextVar("asyncstep_in_loop", default=False)
"""Whether a worker of `session.loop` runs here, so that a step like this one is likely to follow it."""


def program_index() -> int | None:
    """Which of the programs of a launch is running here; None if none is."""
    engine = current_engine.get()
    return None if engine is None else engine.index


def engine_of(master: object, whose: str) -> Engine:
    """The engine of that name; InvalidArgumentError if this program does not run on it."""
    if not isinstance(master, str):
        raise InvalidTypeError(
            f"master of {whose} must be a str, as TaskInfo.master is one, not {kind_of(master)}"
        )
    engine = current_engine.get()
    if engine is None or engine.master != master:
        raise InvalidArgumentError(
            f"master of {whose} must be TaskInfo.master, inside a program that asyncstep.distributed.launch runs,"
            f" not {master!r}" + ("" if engine is None else f"; here it is {engine.master!r}")
        )
    return engine
