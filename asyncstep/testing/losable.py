"""LosableSessionCreator: sessions whose state is lost when a test says so."""

from __future__ import annotations

from typing import TYPE_CHECKING

from asyncstep._graph.graph import Graph, get_default_graph
from asyncstep._monitored.creators import SessionCreator
from asyncstep._runtime.session import Session
from asyncstep.errors import FailedPreconditionError, InvalidArgumentError, InvalidTypeError, kind_of
from asyncstep.testing.raising import maker_of

if TYPE_CHECKING:
    from asyncstep.testing.raising import Raised


class LosableSessionCreator(SessionCreator):
    """Makes raw sessions that lose their state when `lose` is called, as if the process that held it had died.

    A `MonitoredSession` then recovers as it would from a real loss: it closes the raw session, asks this
    creator for the next one, and runs the steps that were under way again.

    Args:
        graph: what the sessions run; the default graph at the time of construction if None. Each begins with
            the initial values of the variables.
        creator: makes the sessions in place of that: a ``ChiefSessionCreator(checkpoint_dir=...)``, say, whose
            sessions begin with the newest checkpoint.

    Attributes:
        graph: what the sessions run.
        created: the sessions that were made, the newest last.
        failures: raised by the next calls of `create_session`, one each: exceptions, or functions that make them.

    Raises:
        InvalidArgumentError: both a graph and a creator are given.
        InvalidTypeError: one of them is none.
    """

    def __init__(self, graph: Graph | None = None, *, creator: SessionCreator | None = None) -> None:
        if graph is not None and not isinstance(graph, Graph):
            raise InvalidTypeError(f"graph must be a Graph, not {kind_of(graph)}")
        if creator is not None and (not hasattr(creator, "create_session") or isinstance(creator, type)):
            raise InvalidTypeError(f"creator must be a SessionCreator, not {kind_of(creator)}")
        if graph is not None and creator is not None:
            raise InvalidArgumentError("give a graph or a creator, not both: a creator has its graph")
        self.graph: Graph = graph or getattr(creator, "graph", None) or get_default_graph()
        self.created: list[Session] = []
        self.failures: list[Raised] = []
        self._creator = creator

    async def create_session(self) -> Session:
        """The next raw session. Checkpoint: if that of the creator given to this one is."""
        if self.failures:
            raise maker_of("failures", self.failures.pop(0))()
        session = Session(self.graph) if self._creator is None else await self._creator.create_session()
        self.created.append(session)
        return session

    def lose(self, error: Raised | None = None) -> None:
        """Let the state of the newest session be lost, now. Does not wait.

        From here on nothing can be committed to it. A step that is under way goes on until it runs something
        or commits; then it meets `error`, which the monitored session retries if its `Recovery` covers it.

        Args:
            error: what tells of the loss: an exception, which every step meets, or a function that makes one
                for each, as an exception class is. If None it is the SessionClosedError of the raw session,
                which is retried whatever the `Recovery`.

        Raises:
            FailedPreconditionError: there is no session that could be lost: none was made or opened yet, or
                the newest is lost or closed already.
        """
        loss = None if error is None else maker_of("error", error)
        session = self.created[-1] if self.created else None
        if session is None or not session.opened or not session.intact:
            state = (
                "is lost or closed already" if session is not None and session.opened else "is not open yet"
            )
            raise FailedPreconditionError(
                f"there is no session to lose: {'the newest ' + state if session else 'none was made yet'}"
            )
        session.store.lose(loss)
