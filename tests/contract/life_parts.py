"""What the tests of sections L, E and C share: a hook that writes a journal, a creator that does, a gate."""

from __future__ import annotations

import gc
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import anyio

from asyncstep import (
    ChiefSessionCreator,
    Graph,
    MonitoredSession,
    Session,
    SessionCreator,
    SessionRunHook,
)

Act = BaseException | Callable[..., Awaitable[Any]]


class RecordingCreator(SessionCreator):
    """Creates raw sessions on a graph, writes ``create`` into the journal, and does its act, if it has
    one."""

    def __init__(self, graph: Graph, journal: list[str], act: Act | None = None) -> None:
        self.graph = graph
        self.journal = journal
        self.act = act
        self.created: list[Session] = []

    async def create_session(self) -> Session:
        self.journal.append("create")
        if isinstance(self.act, BaseException):
            raise self.act
        if self.act is not None:
            await self.act()
        self.created.append(Session(self.graph))
        return self.created[-1]


class Gate:
    """An act that says that it was reached and then waits until it is opened."""

    def __init__(self) -> None:
        self.reached = anyio.Event()
        self.opened = anyio.Event()

    async def __call__(self, *_: object) -> None:
        self.reached.set()
        await self.opened.wait()

    async def open_when_all_wait(self) -> None:
        """Opens the gate at a moment at which no task can go on by itself."""
        await self.reached.wait()
        await anyio.wait_all_tasks_blocked()
        self.opened.set()


def monitored(graph: Graph, *hooks: SessionRunHook, **options: Any) -> MonitoredSession:
    """A monitored session of that graph with a creator that knows no checkpoints."""
    return MonitoredSession(ChiefSessionCreator(graph=graph), hooks, **options)


@contextmanager
def no_collector() -> Iterator[None]:
    """Without the cyclic garbage collector: what is only held by a cycle stays alive inside the block."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.collect()
