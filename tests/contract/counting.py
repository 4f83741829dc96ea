"""What the tests of many sections share: a graph that counts, a body that has to reach its end, how a session ended."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from asyncstep import ChiefSessionCreator, Graph, MonitoredSession, Node, SessionRunHook, Variable
from asyncstep.testing import RecordingHook


class Oops(Exception):
    """An error of the user's code."""


@asynccontextmanager
async def entire(session: MonitoredSession) -> AsyncIterator[MonitoredSession]:
    """The session, open; fails if its body is left before its end (a stop would be absorbed silently)."""
    left_early = True
    async with session:
        yield session
        left_early = False
    assert not left_early, f"the body was left early: {session.stop_reason}"


def to_the_end(
    graph: Graph, *hooks: SessionRunHook, **options: Any
) -> AbstractAsyncContextManager[MonitoredSession]:
    """A monitored session of that graph, whose body is to reach its end."""
    return entire(MonitoredSession(ChiefSessionCreator(graph=graph), hooks, **options))


def a_counter() -> tuple[Graph, Variable[int], Node[int]]:
    """A graph of one variable, `count`, and one node that adds one to it."""
    with (graph := Graph()):
        count = Variable(0, name="count")
        return graph, count, count.assign_add(1)


class Counting:
    """A counting graph, and a session on it with a hook that watches."""

    def __init__(self, *hooks: SessionRunHook, **options: Any) -> None:
        self.graph, self.count, self.bump = a_counter()
        self.watcher = RecordingHook()
        self.session = MonitoredSession(
            ChiefSessionCreator(graph=self.graph), hooks=[self.watcher, *hooks], **options
        )

    async def committed(self) -> int:
        """The committed value of `count`; works after a stop, too."""
        return await self.session.run_without_hooks(self.count)


def ended(hook: RecordingHook) -> list[BaseException | None]:
    """What ended the session, each time that the hook was told of its end; None for a clean one."""
    return [call.error for call in hook.calls if call.point in ("end", "on_session_error")]


def leaves(error: BaseException) -> list[BaseException]:
    """The errors in a group at any depth, in order; of a bare error, itself."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for part in error.exceptions for leaf in leaves(part)]
    return [error]
