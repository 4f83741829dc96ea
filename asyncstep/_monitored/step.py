"""A step function: the context that it gets, and the call of it as one transaction (contract T3)."""

from __future__ import annotations

import inspect
import sys
from typing import TYPE_CHECKING, Any, NoReturn

from asyncstep._monitored.attempt import attempt_run, roll_back
from asyncstep._monitored.hook import ALL, SessionRunContext
from asyncstep._monitored.recording import is_recorded, is_wanted, recorded_attempt
from asyncstep._monitored.recovery import recovered
from asyncstep._monitored.run import begin_run, is_final, retried
from asyncstep._monitored.stop import (
    StopKind,
    is_own_end,
    leaves,
    name_of,
    raise_as_is,
    take_out,
)
from asyncstep._runtime.options import RunMetadata, RunOptions, check_options
from asyncstep._runtime.trace import STEP_FUNCTION, recorded
from asyncstep._runtime.transaction import Transaction, current, live
from asyncstep._runtime.typed import typed_run
from asyncstep.errors import InvalidTypeError, StopRequested, kind_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from asyncstep._monitored.life import Life
    from asyncstep._runtime.session import Session


class StepContext:
    """The first argument of a step function (TensorFlow: ``MonitoredSession.StepContext``).

    Attributes:
        session: the raw session of this attempt; its runs join the step's transaction.
        attempt: 1, or more when the step is run again.
        worker: the index of the worker in `session.loop`.
    """

    __slots__ = ("_handled", "_life", "_stopped", "_transaction", "attempt", "session", "worker")

    def __init__(
        self, life: Life, session: Session, transaction: Transaction, attempt: int, worker: int
    ) -> None:
        self._life = life
        self._transaction = transaction
        self._handled = sys.exception()
        self._stopped = False
        self.session: Session = session
        self.attempt: int = attempt
        self.worker: int = worker

    @typed_run
    async def run_with_hooks(
        self,
        fetches: Any,
        feed_dict: Any = None,
        *,
        options: RunOptions | None = None,
        run_metadata: RunMetadata | None = None,
        hooks: Any = ALL,
    ) -> Any:
        """Like `MonitoredSession.run`, as a part of this step: it commits what the step has so far (contract T3).

        Checkpoint: always a cancel point; a schedule point at least once a millisecond.
        """
        life, transaction = self._life, self._transaction
        await begin_run(life, in_step=transaction if transaction.owner is life else None)
        check_options(options, run_metadata)
        context = SessionRunContext(
            life, life.table_of(hooks), fetches, feed_dict, options, run_metadata, self.worker
        )
        context.attempt = self.attempt
        try:
            attempt = attempt_run
            if (life.recording or options is not None) and is_recorded(life, options):
                attempt = recorded_attempt
            return await attempt(context, self.session, transaction)
        except Exception as error:
            context._final_errors = ()  # the step has them, too
            if context._committed:
                transaction.final_errors += tuple(leaves(error))
            raise

    def request_stop(self, reason: str | None = None) -> NoReturn:
        """Ask the session to stop, and raise StopRequested (contract S3).

        If something that is no Exception is being handled in this step (a cancellation, an interrupt),
        that is raised again instead; the stop is set all the same.
        """
        life = self._life
        if life.sealed:
            raise life.not_open()
        self._stopped = True
        life.request_stop(StopKind.REQUESTED, reason, "a step function")
        self._transaction.stop_asked = True
        handled = sys.exception()
        if handled is not None and handled is not self._handled and not isinstance(handled, Exception):
            try:
                raise_as_is(handled)
            finally:
                del handled
        life.raise_stop()

    def should_stop(self) -> bool:
        """Whether the session has been asked to stop; never waits, never raises."""
        return self._life.closing or self._life.stop.reason is not None

    # What follows is for the session.

    @property
    def asked_to_stop(self) -> bool:
        """Whether `request_stop` was called on this context."""
        return self._stopped

    def end(self) -> None:
        """The step is over: hold on to no exception."""
        self._handled = None


async def run_step_fn(
    life: Life, step_fn: Callable[..., Awaitable[Any]], args: tuple[Any, ...], worker: int
) -> Any:
    """One step, after `begin_run`: a call of a step function, with its retries."""
    number = 1
    life.in_flight += 1
    try:
        while True:
            raw = life.raw
            assert raw is not None
            if raw.store.superseded:
                raw = await recovered(life)
            transaction = Transaction(raw.store, None, live(current.get()), life)
            try:
                raw.check_open()
                return await _attempt_step_fn(life, raw, transaction, step_fn, args, number, worker)
            except Exception as error:
                final = is_final(error, transaction.final_errors)
                if final or not await retried(life, error, number, raw):  # noqa: ASYNC120 - a cancellation goes before an error (contract C1)
                    raise
            finally:
                transaction.final_errors = ()
            number += 1
    finally:
        life.in_flight -= 1
        if life.idle is not None:
            life.idle.set()


async def recorded_step_fn(
    life: Life, step_fn: Callable[..., Awaitable[Any]], args: tuple[Any, ...], worker: int
) -> Any:
    """`run_step_fn`, recorded if there is a trace to do so in."""
    if not is_wanted(life):
        return await run_step_fn(life, step_fn, args, worker)
    life.recording += 1  # so that its runs are recorded to its end
    try:
        name = name_of(step_fn).rpartition("<locals>.")[2]
        with recorded(name, STEP_FUNCTION, row=worker, traces=life.traces):
            return await run_step_fn(life, step_fn, args, worker)
    finally:
        life.recording -= 1


async def _attempt_step_fn(
    life: Life,
    raw: Session,
    transaction: Transaction,
    step_fn: Callable[..., Awaitable[Any]],
    args: tuple[Any, ...],
    number: int,
    worker: int,
) -> Any:
    context = StepContext(life, raw, transaction, number, worker)
    before = current.get()
    current.set(transaction)
    try:
        try:
            try:
                result = await step_fn(context, *args)
            except BaseException as error:
                if (
                    context.asked_to_stop
                    and take_out(error, life.session) is None
                    and not _is_end_of_data(error, life)
                ):
                    await _commit_rest(transaction)  # noqa: ASYNC102 - contract T3; a commit that is sent is shielded
                raise
            await _commit_rest(transaction)
            return result
        except BaseException as error:
            roll_back(life, transaction, error, number, raw)
            raise
    finally:
        current.set(before)
        context.end()
        transaction.owner = None
        if transaction.at_end is not None:
            transaction.over()


async def _commit_rest(transaction: Transaction) -> None:  # noqa: ASYNC910 - it waits if the state is elsewhere
    """Commit what the step has written since its last run with hooks."""
    if not (transaction.writes or transaction.items is not None or transaction.failed_items is not None):
        transaction.finished = True
    elif not transaction.store.remote:
        transaction.commit()
    else:
        _, cancellation = await transaction.send()
        try:
            if cancellation is not None:
                raise_as_is(cancellation)
        finally:
            del cancellation


def _is_end_of_data(error: BaseException, life: Life) -> bool:
    return any(
        is_own_end(leaf, life.session) and not isinstance(leaf, StopRequested) for leaf in leaves(error)
    )


def check_step_fn(step_fn: object, args: tuple[Any, ...]) -> None:
    """Refuse what is no coroutine function of a step context (and `args`)."""
    name = name_of(step_fn)
    if not callable(step_fn):
        raise InvalidTypeError(
            f"a step function must be an async function of a StepContext, not {kind_of(step_fn)}"
        )
    if not (
        inspect.iscoroutinefunction(step_fn)
        or inspect.iscoroutinefunction(getattr(step_fn, "__call__", None))
    ):
        raise InvalidTypeError(f"the step function {name} is not `async def`")
    try:
        signature = inspect.signature(step_fn)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(object(), *args)
    except TypeError as error:
        raise InvalidTypeError(
            f"the step function {name}{signature} must take a StepContext and {len(args)} more arguments: {error}"
        ) from None
