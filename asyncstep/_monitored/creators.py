"""Session creators: what makes the raw session of each incarnation."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread

from asyncstep._graph.graph import Graph, get_default_graph
from asyncstep._monitored.company import engine_of
from asyncstep._runtime.session import Session
from asyncstep.checkpoint import Saver, latest_checkpoint
from asyncstep.checkpoint.directory import check_path
from asyncstep.errors import FailedPreconditionError, InvalidArgumentError, InvalidTypeError, kind_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from asyncstep._monitored.company import Engine
    from asyncstep.checkpoint.directory import StrPath


class SessionCreator(ABC):
    """Makes the raw session, once for each incarnation (TensorFlow: ``tf.train.SessionCreator``).

    A creator that has an attribute `graph` decides which graph the monitored session runs.
    """

    @abstractmethod
    async def create_session(self) -> Session:
        """A new raw session, opened or not."""


class Scaffold:
    """What is done to make a raw session ready (TensorFlow: ``tf.train.Scaffold``).

    Args:
        init_op: fetches that are run once a session without a checkpoint is made.
        init_feed_dict: fed to them.
        init_fn: called then as ``init_fn(scaffold, session)``; may be a coroutine function.
        ready_op: a fetch that gives the names of what is not ready; something else than an empty list is
            an error.
        local_init_op: fetches that are run after every creation.
        saver: restores checkpoints, and saves them where nothing else is said; `Saver()` if None.
        summary_op: fetches whose values are summaries.
    """

    def __init__(
        self,
        *,
        init_op: Any = None,
        init_feed_dict: Mapping[Any, Any] | None = None,
        init_fn: Callable[[Scaffold, Session], Any] | None = None,
        ready_op: Any = None,
        local_init_op: Any = None,
        saver: Saver | None = None,
        summary_op: Any = None,
    ) -> None:
        if saver is not None and not isinstance(saver, Saver):
            raise InvalidTypeError(f"saver must be a Saver, not {kind_of(saver)}")
        if init_fn is not None and not callable(init_fn):
            raise InvalidTypeError(
                f"init_fn must be a function of (scaffold, session), not {kind_of(init_fn)}"
            )
        self.init_op = init_op
        self.init_feed_dict = init_feed_dict
        self.init_fn = init_fn
        self.ready_op = ready_op
        self.local_init_op = local_init_op
        self.saver: Saver = Saver() if saver is None else saver
        self.summary_op: Any = summary_op

    async def initialize(self, session: Session) -> None:  # noqa: ASYNC910 - it waits if there is something to do
        """Give a session that was not restored its first values."""
        if self.init_op is not None:
            await session.run(self.init_op, self.init_feed_dict)
        if self.init_fn is not None:
            made = self.init_fn(self, session)
            if inspect.isawaitable(made):
                await made

    async def make_ready(self, session: Session) -> None:  # noqa: ASYNC910 - it waits if there is something to do
        """Run what every new session needs, and see that it is ready."""
        if self.local_init_op is not None:
            await session.run(self.local_init_op)
        if self.ready_op is not None:
            missing = await session.run(self.ready_op)
            if missing is not None and len(missing):
                raise FailedPreconditionError(f"the session is not ready: {', '.join(map(str, missing))}")


class ChiefSessionCreator(SessionCreator):
    """Makes sessions whose state is in this program (TensorFlow: ``tf.train.ChiefSessionCreator``).

    Args:
        graph: what to run; the default graph at the time of construction if None.
        scaffold: what is done to make a session ready.
        master: `TaskInfo.master`, so that the other programs of a `launch` take part; "" for this process alone.
        checkpoint_dir: every session begins with the newest sound checkpoint there, if there is one.
        checkpoint_path: the first session begins with this checkpoint.
    """

    def __init__(
        self,
        *,
        graph: Graph | None = None,
        scaffold: Scaffold | None = None,
        master: str = "",
        checkpoint_dir: StrPath | None = None,
        checkpoint_path: StrPath | None = None,
    ) -> None:
        if graph is not None and not isinstance(graph, Graph):
            raise InvalidTypeError(f"graph must be a Graph, not {kind_of(graph)}")
        if scaffold is not None and not isinstance(scaffold, Scaffold):
            raise InvalidTypeError(f"scaffold must be a Scaffold, not {kind_of(scaffold)}")
        self._engine: Engine | None = engine_of(master, "ChiefSessionCreator") if master else None
        if checkpoint_dir is not None and checkpoint_path is not None:
            raise InvalidArgumentError("give checkpoint_dir or checkpoint_path, not both")
        for path in (checkpoint_dir, checkpoint_path):
            if path is not None:
                check_path(path)
        self.graph: Graph = graph or get_default_graph()
        self.scaffold: Scaffold = scaffold or Scaffold()
        self._directory = checkpoint_dir
        self._path = checkpoint_path
        self._last: Session | None = None

    async def create_session(self) -> Session:
        """A session with the state of a checkpoint, else with initial values.

        Raises:
            FailedPreconditionError: the session before had committed steps, and there is no checkpoint to
                go on from (contract V5).
            DataLossError: there are checkpoints, and none is sound (contract K3).
            NotFoundError, InvalidArgumentError: the checkpoint is not of this graph (contract K7).
        """
        checkpoint = await self._checkpoint()
        session = Session(self.graph)
        await session.__aenter__()
        try:
            if checkpoint is None:
                await self.scaffold.initialize(session)
            else:
                await self.scaffold.saver.restore(session, checkpoint)
            await self.scaffold.make_ready(session)
            if self._engine is not None:
                session.company = self._engine.lead(session, saved=self._directory is not None)
        except BaseException:
            with anyio.CancelScope(shield=True):
                await session.aclose()
            raise
        self._last = session
        return session

    async def _checkpoint(self) -> StrPath | None:  # noqa: ASYNC910 - it waits if there is a directory
        """The checkpoint that the next session begins with; None for initial values."""
        lost = self._last.store if self._last is not None and self._last.store.superseded else None
        worked = lost is not None and lost.committed
        if self._directory is not None:
            found = await anyio.to_thread.run_sync(latest_checkpoint, self._directory)
            if found is not None:
                return found
            # It began with a checkpoint that is gone by now: steps before it had committed.
            worked = worked or (lost is not None and lost.restored_step is not None)
        if worked:
            raise FailedPreconditionError(
                "the session is lost and there is no checkpoint to recover from; its committed steps"
                " would be thrown away silently, so it is not started again"
            )
        return self._path  # noqa: ASYNC910 - it waits if there is a directory to look into


class WorkerSessionCreator(SessionCreator):
    """Makes sessions whose state is with the chief (TensorFlow: ``tf.train.WorkerSessionCreator``).

    The chief is the program of index 0 of a `launch`, which makes or restores the state; it is waited for. The
    `init_op` and `init_fn` of the scaffold are the chief's business, its `local_init_op` is run here, too.

    Args:
        graph: what to run, the same as the chief's; the default graph at the time of construction if None.
        scaffold: what is done to make a session ready.
        master: `TaskInfo.master`.
        max_wait: for how many seconds to wait for the chief, be it the first time, or when it was lost.

    Raises:
        InvalidArgumentError: `master` is not that of the program that is running.
    """

    def __init__(
        self,
        *,
        graph: Graph | None = None,
        scaffold: Scaffold | None = None,
        master: str,
        max_wait: float = 1800.0,
    ) -> None:
        if graph is not None and not isinstance(graph, Graph):
            raise InvalidTypeError(f"graph must be a Graph, not {kind_of(graph)}")
        if scaffold is not None and not isinstance(scaffold, Scaffold):
            raise InvalidTypeError(f"scaffold must be a Scaffold, not {kind_of(scaffold)}")
        if isinstance(max_wait, bool) or not isinstance(max_wait, (int, float)) or not max_wait > 0:
            raise InvalidArgumentError(f"max_wait must be a positive number of seconds, not {max_wait!r}")
        self._engine: Engine = engine_of(master, "WorkerSessionCreator")
        self.graph: Graph = graph or get_default_graph()
        self.scaffold: Scaffold = scaffold or Scaffold()
        self._max_wait = max_wait

    async def create_session(self) -> Session:
        """A session that takes part in the chief's state.

        Raises:
            DeadlineExceededError: there was no chief within `max_wait`.
            FailedPreconditionError: the chief's graph lacks something that this one has.
        """
        session, company = await self._engine.follow(self.graph, self._max_wait)
        session.company = company
        await session.__aenter__()
        if session.store.remote:
            try:
                await self.scaffold.make_ready(session)
            except BaseException:
                with anyio.CancelScope(shield=True):
                    await session.aclose()
                raise
        return session
