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
    SessionRunArgs,
    SessionRunContext,
    SessionRunHook,
    SessionRunValues,
)

Act = BaseException | Callable[..., Awaitable[Any]]


class Oops(Exception):
    """An error of the user's code."""


class Recorder(SessionRunHook):
    """A hook that writes ``name.point`` into the journal, then does the act that it was given for that point.

    An act is an exception, which is raised, or an async function, which gets the point's arguments.
    """

    def __init__(self, name: str, journal: list[str], **acts: Act) -> None:
        self.name = name
        self.journal = journal
        self.acts = acts
        self.raw: Any = None  # what after_create_session was given
        self.coord: Any = None
        self.ended: list[tuple[Any, BaseException | None]] = []  # what end and on_session_error were given

    async def _act(self, point: str, *args: Any) -> Any:
        self.journal.append(f"{self.name}.{point}")
        act = self.acts.get(point)
        if isinstance(act, BaseException):
            raise act
        return None if act is None else await act(*args)

    async def begin(self) -> None:
        await self._act("begin")

    async def after_create_session(self, session: Any, coord: Any) -> None:
        self.raw, self.coord = session, coord
        await self._act("after_create_session", session, coord)

    async def before_run(self, run_context: SessionRunContext) -> SessionRunArgs | None:
        args: SessionRunArgs | None = await self._act("before_run", run_context)
        return args

    async def before_commit(self, run_context: SessionRunContext, run_values: SessionRunValues) -> None:
        await self._act("before_commit", run_context, run_values)

    async def after_run(self, run_context: SessionRunContext, run_values: SessionRunValues) -> None:
        await self._act("after_run", run_context, run_values)

    async def on_run_error(self, run_context: SessionRunContext, error: BaseException) -> None:
        await self._act("on_run_error", run_context, error)

    async def end(self, session: Any) -> None:
        self.ended.append((session, None))
        await self._act("end", session)

    async def on_session_error(self, session: Any, error: BaseException) -> None:
        self.ended.append((session, error))
        await self._act("on_session_error", session, error)


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


def leaves(error: BaseException) -> list[BaseException]:
    """The errors in a group at any depth, in order; of a bare error, itself."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for part in error.exceptions for leaf in leaves(part)]
    return [error]


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
