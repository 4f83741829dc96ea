"""What is measured of a session: its steps, failures, recoveries and checkpoints, for whatever takes the figures."""

from __future__ import annotations

import time
from typing import Final, Protocol

import anyio

from asyncstep._monitored.coordinator import Coordinator
from asyncstep._monitored.hook import SessionRunContext
from asyncstep._monitored.stop import leaves
from asyncstep.errors import OutOfRangeError, StopRequested
from asyncstep.hooks.checkpoint import Checkpoints
from asyncstep.hooks.shared import shared

__all__ = ["SECONDS", "Instruments", "Measuring", "failure_of"]

SECONDS: Final = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05),
    *(0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0),
)
"""The bounds of the buckets of histograms: steps take from microseconds to minutes."""


class Instruments(Protocol):
    """What takes the figures. It is called on the event loop, so it must be quick."""

    def step_committed(self, seconds: float) -> None:
        """A step has committed, so many seconds after its first `before_run`."""

    def step_failed(self, error_type: str) -> None:
        """An attempt of a step has failed and is rolled back."""

    def session_recovered(self) -> None:
        """A raw session was made in place of one that was lost."""

    def checkpoint_saved(self, seconds: float) -> None:
        """A checkpoint is durable, which took so many seconds of writing."""


class Measuring:
    """Gives instruments the figures of one session after the other; a hook calls it at the points of its own."""

    __slots__ = ("_began", "_created", "_instruments")

    def __init__(self, instruments: Instruments) -> None:
        self._instruments = instruments
        self.session_begins()

    def session_begins(self) -> None:
        """Forget the session before."""
        self._created = False
        self._began: dict[SessionRunContext, float] = {}

    def session_created(self, coord: Coordinator) -> None:
        """A raw session was made: at the opening, or in a recovery."""
        if self._created:
            self._instruments.session_recovered()
        self._created = True
        shared(coord, Checkpoints).observe(self._saved)

    def run_begins(self, run_context: SessionRunContext) -> None:
        """An attempt of a step begins."""
        self._began[run_context] = time.monotonic()

    def run_ends(self, run_context: SessionRunContext) -> None:
        """It has committed."""
        self._instruments.step_committed(time.monotonic() - self._began.pop(run_context))

    def run_fails(self, run_context: SessionRunContext, error: BaseException) -> None:
        """It is rolled back."""
        self._began.pop(run_context, None)
        error_type = failure_of(error)
        if error_type is not None:
            self._instruments.step_failed(error_type)

    def _saved(self, step: int, seconds: float) -> None:
        self._instruments.checkpoint_saved(seconds)


def failure_of(error: BaseException) -> str | None:
    """The full name of an error's type, builtins by their names alone; None for what is no failure.

    A step that is cancelled, or ends because the session stops or its data does, has not failed.
    """
    no_failure = (StopRequested, anyio.get_cancelled_exc_class(), GeneratorExit)
    failures = [
        leaf
        for leaf in leaves(error)
        if not isinstance(leaf, no_failure)
        and not (isinstance(leaf, OutOfRangeError) and leaf.session is not None)
    ]
    if not failures:
        return None
    kind = type(failures[0] if len(failures) == 1 else error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
