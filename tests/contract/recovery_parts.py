"""What the tests of section V share: sessions that recover, a creator that can be made to wait, fetches that fail."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import anyio

from asyncstep import (
    AbortedError,
    ChiefSessionCreator,
    Graph,
    MonitoredSession,
    Recovery,
    Session,
    SessionRunHook,
    StepContext,
)
from asyncstep.testing import HookCall, LosableSessionCreator, RecordingHook

from .counting import a_counter

QUICK = Recovery(wait_initial=0.0, jitter=0.0)
QUICK_ALWAYS = Recovery(wait_initial=0.0, jitter=0.0, restore="always")
FOR_EVER = Recovery(wait_initial=3600.0, wait_max=3600.0)


class Making(LosableSessionCreator):
    """A losable creator that counts how often it is asked, and that a test can make wait.

    Attributes:
        gate: closed, it holds every creation; it is open at first.
        asked: how many sessions it was asked for.
        asked_again: set when it is asked for the second.
    """

    def __init__(self, graph: Graph) -> None:
        super().__init__(graph)
        self.gate = anyio.Event()
        self.gate.set()
        self.asked = 0
        self.asked_again = anyio.Event()

    async def create_session(self) -> Session:
        self.asked += 1
        if self.asked > 1:
            self.asked_again.set()
        await self.gate.wait()
        return await super().create_session()


class Watcher(RecordingHook):
    """A recording hook whose journal has the attempts, and not `before_commit`."""

    def note(self, call: HookCall) -> None:
        self.calls.append(call)
        if call.point != "before_commit":
            self.journal.append(call.point if call.attempt is None else f"{call.point} {call.attempt}")


class Counting:
    """A graph with a variable `count`, a node that adds one, and a watched session that recovers."""

    def __init__(
        self, recovery: Recovery = QUICK, *hooks: SessionRunHook, chief: bool = False, **options: Any
    ) -> None:
        self.graph, self.count, self.bump = a_counter()
        self.creator = Making(self.graph)
        self.watcher = Watcher()
        self.session = MonitoredSession(
            ChiefSessionCreator(graph=self.graph) if chief else self.creator,
            hooks=[self.watcher, *hooks],
            recovery=recovery,
            **options,
        )

    async def committed(self) -> int:
        """The committed value of `count`."""
        return await self.session.run_without_hooks(self.count)

    def lose(self) -> AbortedError:
        """Lose the raw session, as a broken connection does, unless it is lost already; give the error to raise."""
        if self.creator.created[-1].intact:
            self.creator.lose()
        return AbortedError("the raw session is lost")


class Failing:
    """A fetch that raises the given errors, one a call, and then gives the number of its calls."""

    def __init__(self, *errors: BaseException) -> None:
        self.errors = list(errors)
        self.calls = 0

    def as_fetch(self) -> Callable[[], Awaitable[int]]:
        """The coroutine function to fetch."""

        async def fetch() -> int:
            self.calls += 1
            if self.errors:
                raise self.errors.pop(0)
            return self.calls

        return fetch


async def give_up_once(ctx: StepContext) -> int:
    """A step function that fails in its first attempt."""
    if ctx.attempt == 1:
        raise AbortedError("given up")
    return ctx.attempt
