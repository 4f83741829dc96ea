"""Life: what the parts of one monitored session share, from its opening to its closing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

import anyio

from asyncstep._graph.graph import GLOBAL_STEP
from asyncstep._monitored.coordinator import Coordinator
from asyncstep._monitored.hook import ALL, HookTable, stateful
from asyncstep._monitored.stop import StopKind, StopLevel, StopReason, leaves, raise_as_is
from asyncstep._runtime.pace import Pace
from asyncstep._runtime.transaction import current
from asyncstep.errors import InvalidArgumentError, OutOfRangeError, SessionClosedError, make_stop

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from anyio.abc import TaskGroup

    from asyncstep._graph.graph import Graph
    from asyncstep._monitored.creators import SessionCreator
    from asyncstep._monitored.hook import SessionRunHook
    from asyncstep._monitored.recovery import Recovery
    from asyncstep._runtime.session import Session
    from asyncstep._runtime.state import Stateful
    from asyncstep._runtime.trace import Trace
    from asyncstep._runtime.transaction import Transaction


class Life:
    """The shared state of one monitored session.

    Attributes:
        session: the public session, which marks its own stops.
        raw: the raw session of the present incarnation; None before the first.
        began: the hooks whose `begin` was called.
        in_flight: how many steps are under way, or wait for their next attempt.
        entered, opened, closing, closed: where in its life the session is.
        sealed: whether steps can no longer commit.
        turn: the worker that has begun a step most recently.
        checked_step_fn, checked_args: the step function that was run last, and of how many arguments: it is one.
        traces: those that steps are recorded in which begin now.
        recording: how many such traces and recorded step functions there are; 0: no run is recorded unless it asks.
    """

    def __init__(
        self,
        session: Any,
        creator: SessionCreator,
        hooks: tuple[SessionRunHook, ...],
        graph: Graph,
        grace: float,
        recovery: Recovery | None,
        group: TaskGroup | None,
    ) -> None:
        self.session = session
        self.creator = creator
        self.hooks = hooks
        self.stateful_hooks: dict[str, Stateful] = stateful(hooks)
        self.graph = graph
        self.grace = grace
        self.recovery = recovery
        self.stop: StopLevel = StopLevel()
        self.coord: Coordinator = Coordinator(self, group)
        self.table: HookTable = HookTable(())
        self.pace: Pace = Pace()
        self.raw: Session | None = None
        self.began: list[SessionRunHook] = []
        self.recoveries = 0
        self.recovering: anyio.Lock = anyio.Lock()
        self.in_flight: int = 0
        self.counts_steps = True
        self.entered: bool = False
        self.opened = False
        self.closing = False
        self.closed: bool = False
        self.sealed = False
        self.turn: object = None
        self.traces: tuple[Trace, ...] = ()
        self.recording: int = 0
        self.when_closed: list[Callable[[], None]] = []
        self.before_recovery: list[Callable[[], Awaitable[None]]] = []
        self.last_global_step: int = 0
        self.checked_step_fn: object = self  # none yet
        self.checked_args: int = 0
        self.closed_event: anyio.Event = anyio.Event()
        self._holds_graph = False
        self.idle: anyio.Event | None = None
        self._tables: dict[tuple[int, ...], HookTable] = {}

    def begin_opening(self) -> None:
        """Raise SessionClosedError if the session was opened before (contract L1)."""
        if self.closing:
            raise SessionClosedError("the session is closed, and a session is opened once; make a new one")
        if self.entered:
            raise SessionClosedError(
                "the session is open already, and a session is opened once; make a new one"
            )
        self.entered = True

    def check_open(self) -> None:
        """Raise SessionClosedError unless steps may be run."""
        if self.closing or not self.opened:
            raise self.not_open()

    def accepts(self, in_step: Transaction | None) -> bool:
        """Whether a run may begin: while the session closes, only as a part of a step in flight (contract L6)."""
        return self.opened and not (self.closing if in_step is None else self.sealed)

    def not_open(self) -> SessionClosedError:
        """The error for a use before the opening or after the closing (contract L1)."""
        if self.closing or self.closed:
            return SessionClosedError("the session is closed")
        return SessionClosedError("the session has not been opened; use `async with session:`")

    def request_stop(self, kind: StopKind, message: object, origin: str) -> None:
        """Set the stop, and remember which step asked for it, if one did."""
        self.stop.set(StopReason(kind, "" if message is None else str(message), origin))
        for transaction in self._own_transactions():
            transaction.stop_asked = True

    def data_ended(self, error: BaseException) -> None:
        """The end of data came out of a run of this session: a stop (contract S7)."""
        for leaf in leaves(error):
            if isinstance(leaf, OutOfRangeError) and leaf.session is None:
                leaf.session = self.session
                self.request_stop(StopKind.END_OF_DATA, leaf, "")

    def raise_stop(self) -> NoReturn:
        """Raise StopRequested with the first reason."""
        raise make_stop(self.session, self.stop.reason)

    def raise_background_error(self) -> None:
        """Raise the error of a background task, if there is one (contract E4)."""
        if self.coord.has_errors:
            errors = self.coord.take_errors()
            error = errors[0] if len(errors) == 1 else BaseExceptionGroup("background tasks failed", errors)
            for transaction in self._own_transactions():
                transaction.final_errors += tuple(leaves(error))
            try:
                raise_as_is(error)
            finally:
                del error, errors

    def table_of(self, hooks: Any) -> HookTable:
        """The points of the hooks that a run is to call (contract R7)."""
        if hooks is ALL:
            return self.table
        return self._table_of_some(hooks)

    def _table_of_some(self, hooks: Iterable[SessionRunHook]) -> HookTable:
        chosen = list(hooks)
        for hook in chosen:
            if not any(hook is known for known in self.hooks):
                raise InvalidArgumentError(f"{hook!r} is not a hook of this session")
        places = tuple(
            place for place, known in enumerate(self.hooks) if any(known is hook for hook in chosen)
        )
        if places not in self._tables:
            self._tables[places] = HookTable([self.hooks[place] for place in places])
        return self._tables[places]

    def global_step(self) -> int:
        """The last committed value."""
        if self.raw is not None and not self.closed:
            self.last_global_step = self.raw.store.values.get(GLOBAL_STEP, self.last_global_step)
        return self.last_global_step

    def hold_graph(self) -> None:
        """Finalize the graph until the session is closed."""
        self.graph.hold()
        self._holds_graph = True

    def finish(self) -> None:
        """The closing is done."""
        if self._holds_graph:
            self.graph.release()
            self._holds_graph = False
        self.closed = True
        if self.raw is not None:
            self.raw.store.superseded = False  # it ended with the session; nothing recovers from it any more
        self.closed_event.set()

    # Steps in flight.

    def _own_transactions(self) -> list[Transaction]:
        """The steps of this session that the running code is part of, the innermost first."""
        found = []
        transaction = current.get()
        while transaction is not None:
            if transaction.owner is self:
                found.append(transaction)
            transaction = transaction.outer
        return found

    async def wait_for_steps(self, own: int) -> None:  # noqa: ASYNC910 - it waits if there is something to wait for
        """Wait until no steps are in flight but `own` ones. Checkpoint: if there are others."""
        while self.in_flight > own:
            self.idle = anyio.Event()
            await self.idle.wait()
        self.idle = None

    def own_steps(self) -> int:
        """How many steps in flight the running code is part of."""
        return sum(transaction.parent is None for transaction in self._own_transactions())
