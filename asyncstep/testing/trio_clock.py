"""Virtual time on trio: its mock clock, which does not jump while a thread or a worker process works."""

from __future__ import annotations

import math
from typing import Any

import trio
from trio.testing import MockClock

from asyncstep.testing.elsewhere import Elsewhere


def virtual_options() -> dict[str, Any]:
    """Options of one ``trio.run`` on virtual time."""
    clock = MockClock(autojump_threshold=0)
    return {"clock": clock, "instruments": [_Hold(clock)]}


class _Hold(trio.abc.Instrument):
    """Holds the clock while something works elsewhere, in real time."""

    def __init__(self, clock: MockClock) -> None:
        self._clock = clock
        self._elsewhere = Elsewhere(self._wake)
        self._token: trio.lowlevel.TrioToken | None = None

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if self._token is None:
            self._token = trio.lowlevel.current_trio_token()
        threshold = math.inf if self._elsewhere.works() else 0.0
        if threshold != self._clock.autojump_threshold:
            self._clock.autojump_threshold = threshold

    def _wake(self) -> None:
        """Let a task take a step, after which it is looked again."""
        try:
            if self._token is not None:
                self._token.run_sync_soon(int)
        except trio.RunFinishedError:
            pass
