"""MonitoredSession: a session with hooks, one contract for its end, and recovery."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Self, TypeAlias, TypeVar, TypeVarTuple

import anyio

from asyncstep._graph.graph import GLOBAL_STEP, Graph, get_default_graph
from asyncstep._graph.variable import create_global_step
from asyncstep._monitored.closing import close, until_closed
from asyncstep._monitored.creators import ChiefSessionCreator, Scaffold, SessionCreator
from asyncstep._monitored.hook import ALL, HookTable, SessionRunContext, checked_hooks
from asyncstep._monitored.life import Life
from asyncstep._monitored.loop import after_absorbing, loop
from asyncstep._monitored.recording import is_recorded, recorded_run
from asyncstep._monitored.recovery import Recovery, create, remember_initial_states
from asyncstep._monitored.run import begin_run, run_with_retries
from asyncstep._monitored.step import StepContext, check_step_fn, recorded_step_fn, run_step_fn
from asyncstep._monitored.stop import (
    StopKind,
    StopReason,
    foremost,
    is_cancellation,
    is_interrupt,
    outcome,
    raise_as_is,
    take_out,
)
from asyncstep._runtime.options import RunMetadata, RunOptions, check_options
from asyncstep._runtime.pace import NativeCancels, cancels_of_task_groups
from asyncstep._runtime.typed import typed_run
from asyncstep.errors import (
    InvalidArgumentError,
    InvalidTypeError,
    StopRequested,
    kind_of,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable
    from types import TracebackType

    from anyio.abc import TaskGroup

    from asyncstep._graph.node import Node
    from asyncstep._monitored.hook import SessionRunHook
    from asyncstep._runtime.session import Session
    from asyncstep._runtime.snapshot import Snapshot
    from asyncstep._runtime.state import SourceState
    from asyncstep.checkpoint.directory import StrPath

T = TypeVar("T")
Ts = TypeVarTuple("Ts")
_Context: TypeAlias = StepContext  # inside the class, its attribute hides the name

_NO_HOOKS = HookTable(())
_DEFAULT_RECOVERY = Recovery()


class MonitoredSession:
    """Runs steps with hooks, until it is stopped (TensorFlow: ``tf.train.MonitoredSession``).

    ``async with MonitoredSession(hooks=[...]) as session:`` opens it; leaving the block closes it. Each
    `run`, and each call of a step function, is a step: a transaction that is kept as a whole or not at all.
    The stop of the session, and the end of its data, end the block silently; `stop_reason` says why.

    Args:
        session_creator: makes the raw session; `ChiefSessionCreator` if None.
        hooks: called around each run, in this order.
        stop_grace_period: seconds that closing may take, and that workers have to finish their steps.
        recovery: which errors are retried, and how; see `Recovery`.
        task_group: an anyio task group for the background tasks of hooks and sources.
    """

    StepContext: TypeAlias = _Context

    def __init__(
        self,
        session_creator: SessionCreator | None = None,
        hooks: Iterable[SessionRunHook] = (),
        *,
        stop_grace_period: float = 120.0,
        recovery: Recovery = _DEFAULT_RECOVERY,
        task_group: TaskGroup | None = None,
    ) -> None:
        creator = session_creator if session_creator is not None else ChiefSessionCreator()
        if not hasattr(creator, "create_session") or isinstance(creator, type):
            raise InvalidTypeError(f"session_creator must be a SessionCreator, not {kind_of(creator)}")
        if not isinstance(recovery, Recovery):
            raise InvalidTypeError(f"recovery must be a Recovery, not {kind_of(recovery)}")
        self._life = _new_life(self, creator, hooks, stop_grace_period, recovery, task_group)
        self._entered_with = NativeCancels()

    async def __aenter__(self) -> Self:
        """Open the session (contract L2, L3). Checkpoint: always."""
        life = self._life
        life.begin_opening()
        self._entered_with = NativeCancels()
        try:
            await _open(life)
        except BaseException as error:  # noqa: ASYNC103 - `outcome` says what is raised: it, or what goes before it (contract C1)
            self._note_reason(error)
            errors, meanwhile = await close(life, error)  # noqa: ASYNC102 - what must not be cancelled is shielded inside (contract L6)
            final = outcome(_weigh(error, meanwhile, errors), errors, anyio.get_cancelled_exc_class())
            try:
                if final is not None and final is not error:
                    raise_as_is(final)
                raise
            finally:
                del final, meanwhile, errors
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        """Close the session; absorb its own stop, raise all else (contract S6, C1, E2). Checkpoint: always."""
        life = self._life
        rest = take_out(error, self)
        if rest is None and life.raw is not None and life.raw.company is not None and not life.closing:
            try:
                await life.raw.company.all_left()  # noqa: ASYNC102 - the block has ended well
            except BaseException as cut_short:  # noqa: ASYNC103 - `outcome` says what is raised
                rest = cut_short
        self._note_reason(rest)
        errors: list[BaseException] = []
        meanwhile: BaseException | None = None
        if not life.closing:
            errors, meanwhile = await close(life, rest)  # noqa: ASYNC102 - what must not be cancelled is shielded inside (contract L6)
        else:
            meanwhile = await until_closed(life)  # noqa: ASYNC102 - what must not be cancelled is shielded inside (contract L6)
        final = outcome(_weigh(rest, meanwhile, errors), errors, anyio.get_cancelled_exc_class())
        absorbed = error is not None and final is None
        left_over = cancels_of_task_groups(error) if absorbed and error is not None else 0
        same = final is error
        try:
            if final is not None and not same:
                raise_as_is(final)
        finally:
            del final, rest, meanwhile, errors, error
        if absorbed:
            await after_absorbing(self._entered_with, left_over)  # noqa: ASYNC102 - what must not be cancelled is shielded inside (contract L6)
        return not same

    async def aclose(self) -> None:
        """Close the session inside its block; idempotent (contract L5). Checkpoint: always."""
        life = self._life
        if not life.opened and not life.closing:
            raise life.not_open()
        errors: list[BaseException] = []
        if life.closing:
            meanwhile = await until_closed(life)
        else:
            errors, meanwhile = await close(life, None)
        final = outcome(_weigh(None, meanwhile, errors), errors, anyio.get_cancelled_exc_class())
        try:
            if final is not None:
                raise final
        finally:
            del final, meanwhile, errors

    @typed_run
    async def run(
        self,
        fetches: Any,
        feed_dict: Any = None,
        *,
        options: RunOptions | None = None,
        run_metadata: RunMetadata | None = None,
        hooks: Any = ALL,
    ) -> Any:
        """Evaluate `fetches` as one step, with the hooks around it; return values in the same nesting.

        The order is that of contract R1. The step is kept as a whole, or nothing of it (contract T2, T4).

        Args:
            fetches: a Node, its name, a coroutine function without parameters, or any nesting of list,
                tuple, named tuple, dict and dataclass of them.
            feed_dict: values by node or name, used in place of what the nodes would compute.
            options: see `RunOptions`.
            run_metadata: filled in.
            hooks: call just these of the session's hooks.

        Raises:
            StopRequested: the session was asked to stop before this run began.
            SessionClosedError: the session is not open.
            OutOfRangeError: the data has ended; the session is stopped by it.
            Exception: what a node or a hook raises, once it may not be retried.

        Checkpoint: always a cancel point; a schedule point at least once a millisecond.
        """
        life = self._life
        # What begin_run would raise or wait for; an error of a background task has set a stop, too (contract E4).
        if life.stop.reason is not None or life.closing or not life.opened or life.pace.is_due():
            await begin_run(life)
        elif life.pace.cancel_point is not None:
            await life.pace.cancel_point()
        if options is not None or run_metadata is not None:
            check_options(options, run_metadata)
        table = life.table if hooks is ALL else life.table_of(hooks)
        context = SessionRunContext(life, table, fetches, feed_dict, options, run_metadata, 0)
        if (life.recording or options is not None) and is_recorded(life, options):
            return await recorded_run(context)
        return await run_with_retries(context)

    @typed_run
    async def run_without_hooks(
        self,
        fetches: Any,
        feed_dict: Any = None,
        *,
        options: RunOptions | None = None,
        run_metadata: RunMetadata | None = None,
    ) -> Any:
        """Like `run`, without any hook; works after a stop, until the session closes (contract S5, R7)."""
        life = self._life
        life.check_open()
        await life.pace.keep()
        life.check_open()
        check_options(options, run_metadata)
        context = SessionRunContext(life, _NO_HOOKS, fetches, feed_dict, options, run_metadata, 0)
        if (life.recording or options is not None) and is_recorded(life, options):
            return await recorded_run(context)
        return await run_with_retries(context)

    async def run_step_fn(self, step_fn: Callable[[_Context, *Ts], Awaitable[T]], *args: *Ts) -> T:
        """Call ``step_fn(ctx, *args)`` as one step; return what it returns (contract T3).

        `ctx` is a `StepContext`. TensorFlow: ``MonitoredSession.run_step_fn``.

        Checkpoint: always a cancel point; a schedule point at least once a millisecond.
        """
        life = self._life
        if step_fn is not life.checked_step_fn or len(args) != life.checked_args:
            check_step_fn(step_fn, args)
            life.checked_step_fn, life.checked_args = step_fn, len(args)
        await begin_run(life)
        run = recorded_step_fn if life.recording else run_step_fn
        result: T = await run(life, step_fn, args, 0)
        return result

    async def loop(
        self, step_fn: Callable[[_Context, *Ts], Awaitable[Any]], *args: *Ts, workers: int = 1
    ) -> None:
        """Run a step function in so many tasks, again and again, until the session stops (contract W).

        Each worker finishes and commits its own step; past the grace period it is cancelled. An error of
        a worker stops the session and is raised here.

        Checkpoint: always.
        """
        await loop(self._life, step_fn, args, workers)

    def should_stop(self) -> bool:
        """Whether the loop is to end; never raises, never waits. True once the session is closed."""
        return self._life.closing or self._life.stop.reason is not None

    def request_stop(self, reason: str | None = None) -> None:
        """Ask the session to stop; steps in flight finish and commit (contract S4)."""
        self._life.check_open()
        self._life.request_stop(StopKind.REQUESTED, reason, "the session's user")

    @property
    def stop_reason(self) -> StopReason | None:
        """Why the session stops; None if nothing has asked it to."""
        return self._life.stop.reason

    @property
    def global_step(self) -> int:
        """The last committed value of the global step."""
        life = self._life
        if life.raw is None and not life.closing:
            raise life.not_open()
        return life.global_step()

    @property
    def graph(self) -> Graph:
        """The graph that it runs."""
        return self._life.graph

    @property
    def recoveries(self) -> int:
        """How many times the raw session was made anew (contract V4)."""
        return self._life.recoveries

    def snapshot(self) -> Snapshot:
        """The whole state between two commits, as a checkpoint has it (contract K1). Never waits."""
        return self.incarnation().snapshot()

    async def restore(self, snapshot: Snapshot, *, strict: bool = True) -> None:
        """Go back to a snapshot; see `Session.restore`. Checkpoint: always."""
        await self.incarnation().restore(snapshot, strict=strict)

    def incarnation(self) -> Session:
        """The raw session of the present incarnation; a recovery replaces it."""
        life = self._life
        if life.raw is None or life.closed:
            raise life.not_open()
        return life.raw

    def source_state(self, source: Node[Any] | str) -> SourceState:
        """How far a source is: its low-water mark, what is pending, what is parked."""
        return self.incarnation().source_state(source)

    def _note_reason(self, error: BaseException | None) -> None:
        """The stop reason of a session that ends with an error, if it has none (contract S1)."""
        if error is None or self._life.closed:
            return
        if is_interrupt(error):
            kind = StopKind.SIGNAL if isinstance(foremost(error), KeyboardInterrupt) else StopKind.ERROR
        else:
            cancelled = is_cancellation(error, anyio.get_cancelled_exc_class())
            kind = StopKind.CANCELLED if cancelled else StopKind.ERROR
        message = "" if kind is StopKind.CANCELLED else repr(error)
        self._life.stop.set(StopReason(kind, message, "the body of the session"))


class SingularMonitoredSession(MonitoredSession):
    """A monitored session that never recovers or retries (TensorFlow: ``tf.train.SingularMonitoredSession``)."""

    def __init__(
        self,
        hooks: Iterable[SessionRunHook] = (),
        *,
        graph: Graph | None = None,
        scaffold: Scaffold | None = None,
        checkpoint_dir: StrPath | None = None,
        checkpoint_path: StrPath | None = None,
        stop_grace_period: float = 120.0,
        task_group: TaskGroup | None = None,
    ) -> None:
        creator = ChiefSessionCreator(
            graph=graph, scaffold=scaffold, checkpoint_dir=checkpoint_dir, checkpoint_path=checkpoint_path
        )
        self._life = _new_life(self, creator, hooks, stop_grace_period, None, task_group)
        self._entered_with = NativeCancels()

    @property
    def raw_session(self) -> Session:
        """The raw session."""
        if self._life.raw is None:
            raise self._life.not_open()
        return self._life.raw


def _new_life(
    session: MonitoredSession,
    creator: SessionCreator,
    hooks: Iterable[SessionRunHook],
    grace: float,
    recovery: Recovery | None,
    group: TaskGroup | None,
) -> Life:
    """What a session shares, its arguments checked (contract L1, L2)."""
    if isinstance(grace, bool) or not isinstance(grace, (int, float)) or not grace >= 0 or math.isnan(grace):
        raise InvalidArgumentError(
            f"stop_grace_period must be a number of seconds of at least 0, not {grace!r}"
        )
    if group is not None and not hasattr(group, "start_soon"):
        raise InvalidTypeError(f"task_group must be an anyio task group, not {kind_of(group)}")
    graph = getattr(creator, "graph", None) or get_default_graph()
    return Life(session, creator, checked_hooks(hooks), graph, grace, recovery, group)


async def _open(life: Life) -> None:
    """The opening, in the order of contract L2."""
    await anyio.lowlevel.checkpoint()
    life.pace.start()
    with life.graph:
        for hook in life.hooks:
            life.began.append(hook)
            await hook.begin()
    if GLOBAL_STEP not in life.graph.variables:
        with life.graph.unlocked():
            create_global_step(life.graph)
    life.hold_graph()
    life.counts_steps = not life.graph.steps_itself
    life.table = HookTable(life.hooks)
    life.raw = await create(life)
    for hook in life.hooks:
        await hook.after_create_session(life.raw, life.coord)
    remember_initial_states(life, life.raw)
    if life.raw.company is not None:
        await life.raw.company.begin(life)
    life.opened = True


def _weigh(
    rest: BaseException | None, meanwhile: BaseException | None, errors: list[BaseException]
) -> BaseException | None:
    """What the body counts as having raised, when something reached the task while it was closing (C1)."""
    if rest is None or meanwhile is None:
        return rest or meanwhile
    if is_interrupt(meanwhile) and not is_interrupt(rest):
        errors.insert(0, rest)  # it becomes a note on the interrupt
        return meanwhile
    return meanwhile if isinstance(rest, StopRequested) else rest
