"""When a run gives the event loop a turn (contract R9)."""

from __future__ import annotations

from asyncio import current_task
from time import monotonic

import anyio.lowlevel
from anyio.lowlevel import checkpoint_if_cancelled

TURN_EVERY = 0.001
"""Seconds that a loop of runs may go on without giving the event loop a turn."""


class Pace:
    """A cancel point at every run, a schedule point at least once a millisecond.

    Shared by all runs of a session: whichever run comes after the millisecond gives the turn for all.
    """

    __slots__ = ("_native", "due")

    def __init__(self) -> None:
        self.due = 0.0
        self._native = runs_on_asyncio()

    def is_due(self) -> bool:
        """Whether the event loop is to be given a turn, so that `turn` has to be awaited."""
        # anyio's cheap check does not see a native cancel: where there is one, only a real yield does.
        return monotonic() >= self.due or (self._native and current_task().cancelling() > 0)  # type: ignore[union-attr]

    async def turn(self) -> None:
        """Give the event loop a turn. Checkpoint: always."""
        await anyio.lowlevel.checkpoint()
        self.due = monotonic() + TURN_EVERY

    async def keep(self) -> None:
        """Checkpoint: always a cancel point; a schedule point if one is due."""
        if self.is_due():
            await self.turn()
        else:
            await checkpoint_if_cancelled()


def runs_on_asyncio() -> bool:
    """Whether the code that is running is a task of asyncio (uvloop included)."""
    try:
        return current_task() is not None
    except RuntimeError:
        return False


def native_cancels() -> int:
    """How many native cancels the task has been sent and has not taken back; 0 off asyncio."""
    try:
        task = current_task()
    except RuntimeError:
        return 0
    return 0 if task is None else task.cancelling()
