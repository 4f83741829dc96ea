"""One attempt of one monitored run: the hooks, the evaluation, the commit (contract R1)."""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio

from asyncstep._graph.graph import GLOBAL_STEP
from asyncstep._monitored.hook import SessionRunArgs, SessionRunContext, SessionRunValues
from asyncstep._monitored.recovery import may_retry
from asyncstep._monitored.stop import keep_errors, leaves, most_urgent, raise_as_is, take_out
from asyncstep._runtime.executor import evaluate
from asyncstep._runtime.options import RunMetadata, RunOptions, check_options, deadline, merged
from asyncstep._runtime.session import CALLERS_FEEDS, ends, within
from asyncstep._runtime.transaction import Fate, Transaction, current, live
from asyncstep.errors import InvalidTypeError, kind_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from anyio import CancelScope

    from asyncstep._monitored.hook import HookTable, SessionRunHook
    from asyncstep._monitored.life import Life
    from asyncstep._runtime.session import Session

logger = logging.getLogger("asyncstep")


class RunCall:
    """What one monitored run was asked for, the same for all of its attempts; and what it came to.

    Attributes:
        committed: whether the step is done: an error that comes then is one of `after_run`.
        result: what the caller gets, once committed.
        final_errors: those of the transaction of the last attempt, if it failed.
    """

    # No slots: what stands here costs a run nothing.
    committed: bool = False
    result: Any = None
    final_errors: tuple[BaseException, ...] = ()

    def __init__(
        self,
        table: HookTable,
        fetches: Any,
        feeds: Any,
        options: RunOptions | None,
        metadata: RunMetadata | None,
        worker: int,
    ) -> None:
        self.table: HookTable = table
        self.fetches: Any = fetches
        self.feeds: Any = feeds
        self.options: RunOptions | None = options
        self.metadata: RunMetadata | None = metadata
        self.worker: int = worker


async def attempt_run(life: Life, call: RunCall, number: int, step: Transaction | None, raw: Session) -> Any:
    """One attempt of one monitored run: contract R1, from `before_run` to `after_run`.

    Whatever is raised before the commit has rolled it back, and `call.committed` is False.
    """
    # A step goes on with the store that it began with, also when its session has been restored meanwhile.
    store, table = raw.store if step is None else step.store, call.table
    if store.closed:
        raw.check_open()
        store.check_open()
    before = current.get()
    if before is not None:
        before = live(before)
    transaction = Transaction(store, step, before, life)
    transaction.counts = life.counts_steps
    current.set(transaction)
    context: SessionRunContext | None = None
    values: HookValues | None = None
    try:
        try:
            if table.silent:
                await _evaluate_alone(call, raw, transaction)
            else:
                context = SessionRunContext(life, raw, call, number)
                if call.options is None or call.options.timeout is None:
                    values = await _evaluate_with_hooks(call, raw, transaction, context, None)
                else:
                    with deadline(call.options.timeout) as scope:
                        values = await _evaluate_with_hooks(call, raw, transaction, context, scope)
            step_number = transaction.commit(GLOBAL_STEP)  # there is no await in it (contract R1e)
        except BaseException as error:
            if isinstance(error, Exception):
                call.final_errors = transaction.final_errors
            await _failed(life, call, transaction, raw, number, context, error)  # noqa: ASYNC102 - each hook is told in a shield, within the grace period (contract R4)
            raise
        call.committed = True
        if values is not None:
            values.commit(step_number, number)
        elif call.metadata is not None:
            call.metadata.global_step, call.metadata.attempt = step_number, number
        if table.after_run:
            assert context is not None
            plain = SessionRunValues(None, None, call.metadata, step_number, number)
            for place, _, method in table.after_run:
                context._place = place
                try:
                    await method(context, plain if values is None else values.of(place))
                except BaseException as error:
                    await _after_run_rest(life, context, plain, values, error)  # noqa: ASYNC102 - each hook is told in a shield, within the grace period (contract R4)
                    raise
        return call.result
    finally:
        current.set(before)
        transaction.owner = None
        if transaction.final_errors:
            transaction.final_errors = ()


async def _evaluate_alone(call: RunCall, raw: Session, transaction: Transaction) -> None:
    """The evaluation of a run that no hook takes part in."""
    request = raw.request_for(call.fetches, call.feeds)
    if call.options is None:
        outputs = await evaluate(request.plan, list(request.fed), request.functions, transaction)
    else:
        with within(call.options):
            outputs = await raw.evaluate(request, transaction, call.options, call.metadata)
    call.result = request.result(outputs)


async def _evaluate_with_hooks(
    call: RunCall,
    raw: Session,
    transaction: Transaction,
    context: SessionRunContext,
    scope: CancelScope | None,
) -> HookValues | None:
    """Every before_run, one evaluation, every before_commit; `scope` has the deadline of the caller's options.

    None if no hook gets more than the others.
    """
    table = call.table
    asked: list[tuple[int, SessionRunArgs]] | None = None
    for place, hook, method in table.before_run:
        context._place = place
        args = await method(context)
        if args is not None:
            asked = asked or []
            asked.append((place, _checked_args(args, hook)))
    context._told_all = True
    if asked is None and call.options is None and not table.before_commit:
        request = raw.request_for(call.fetches, call.feeds)
        outputs = await evaluate(request.plan, list(request.fed), request.functions, transaction)
        call.result = request.result(outputs)
        return None
    return await _evaluate_for_all(call, raw, transaction, context, asked, scope)


async def _evaluate_for_all(
    call: RunCall,
    raw: Session,
    transaction: Transaction,
    context: SessionRunContext,
    asked: list[tuple[int, SessionRunArgs]] | None,
    scope: CancelScope | None,
) -> HookValues:
    """One evaluation of what the caller and the hooks want; then every before_commit."""
    hooks, options = call.table.hooks, call.options
    fetches: list[Any] = [call.fetches]
    feeds: list[tuple[Any, str]] = [(call.feeds, CALLERS_FEEDS)]
    askers: list[int] = []
    for place, args in asked or ():
        if args.fetches is not None:
            fetches.append(args.fetches)
            askers.append(place)
        feeds.append((args.feed_dict, f"the hook {type(hooks[place]).__name__}"))
        if args.options is not None:
            check_options(args.options, None)
            options = args.options if options is None else merged(options, args.options)
    request = raw.request(fetches, feeds)
    values = HookValues(options, call.metadata)
    if scope is not None:
        _extend(scope, call.options, options)
    with within(options if scope is None else None):
        outputs = await raw.evaluate(request, transaction, options, values.metadata)
        call.result, *results = request.results(outputs)
        values.results = dict(zip(askers, results, strict=True))
        for place, _, method in call.table.before_commit:
            context._place = place
            await method(context, values.of(place))
    return values


def _extend(scope: CancelScope, asked: RunOptions | None, options: RunOptions | None) -> None:
    """Let a hook's longer timeout count in place of the caller's (see `merged`)."""
    if (
        asked is not None
        and options is not None
        and asked.timeout is not None
        and options.timeout is not None
    ):
        scope.deadline += options.timeout - asked.timeout


def _checked_args(args: object, hook: SessionRunHook) -> SessionRunArgs:
    if isinstance(args, SessionRunArgs):
        return args
    raise InvalidTypeError(
        f"before_run of {type(hook).__name__} must return SessionRunArgs or None, not {kind_of(args)}"
    )


async def _after_run_rest(
    life: Life,
    context: SessionRunContext,
    plain: SessionRunValues,
    values: HookValues | None,
    first: BaseException,
) -> None:
    """One hook has raised after the commit: tell those after it all the same, shielded (contract R4, T7).

    Raises what is more urgent than `first`, if there is such.
    """
    errors = [first]
    failed = context._place
    for place, hook, method in context._call.table.after_run:
        if place > failed:
            context._place = place
            given = plain if values is None else values.of(place)
            await _shielded(
                life, f"after_run of {type(hook).__name__}", errors.append, method, context, given
            )
    final = most_urgent(errors, anyio.get_cancelled_exc_class(), "hooks failed in after_run")
    try:
        if final is not first:
            raise_as_is(final)
    finally:
        errors.clear()
        del final, first


async def _failed(
    life: Life,
    call: RunCall,
    transaction: Transaction,
    raw: Session,
    number: int,
    context: SessionRunContext | None,
    error: BaseException,
) -> None:
    """Roll back; tell the hooks that were told of the run (contract R4)."""
    if any(ends(leaf) for leaf in leaves(error)):
        life.data_ended(error)
    roll_back(life, transaction, error, number, raw)
    if context is None:
        return
    raised = [error]
    last = len(call.table.hooks) if context._told_all else context._place
    for place, hook, method in call.table.on_run_error:
        if place > last:
            break
        context._place = place
        name = f"on_run_error of {type(hook).__name__}"
        await _shielded(life, name, partial(_log_or_keep, name, raised), method, context, error)
    final = most_urgent(raised, anyio.get_cancelled_exc_class(), "hooks were told of the failure of a run")
    try:
        if final is not error:
            raise_as_is(final)
    finally:
        raised.clear()
        del error, final


def _log_or_keep(name: str, raised: list[BaseException], failure: BaseException) -> None:
    """An error of a hook that is told of an error is logged; an interrupt or a cancellation is raised."""
    if isinstance(failure, Exception):
        logger.error("%s failed, after %r", name, raised[0], exc_info=failure)
    else:
        raised.append(failure)


async def _shielded(
    life: Life,
    name: str,
    keep: Callable[[BaseException], None],
    method: Callable[..., Awaitable[Any]],
    *args: Any,
) -> None:
    """Call a hook shielded, within the grace period; `keep` gets what it raised, or what came in between."""
    try:
        with anyio.move_on_after(life.grace, shield=True) as scope:
            try:
                await method(*args)
            except BaseException as error:  # noqa: ASYNC103 - `keep_errors` raises a cancellation
                keep_errors(error, anyio.get_cancelled_exc_class(), keep)
    except anyio.get_cancelled_exc_class() as error:  # noqa: ASYNC103 - a native cancel; the caller raises it
        keep(error)
    if scope.cancelled_caught:
        logger.error("%s was cancelled after the stop_grace_period of %g s", name, life.grace)


class HookValues:
    """The values that each hook sees: its own results only (contract R2)."""

    __slots__ = ("_plain", "global_step", "metadata", "options", "results")

    def __init__(self, options: RunOptions | None, metadata: RunMetadata | None) -> None:
        self.results: dict[int, Any] = {}
        self.options = options
        self.metadata = RunMetadata() if metadata is None else metadata
        self.global_step: int | None = None
        self._plain = SessionRunValues(None, options, self.metadata, None)

    def commit(self, global_step: int | None, attempt: int) -> None:
        """The run has committed."""
        self.metadata.global_step = self.global_step = global_step
        self.metadata.attempt = attempt
        self._plain = SessionRunValues(None, self.options, self.metadata, global_step)

    def of(self, place: int) -> SessionRunValues:
        """What the hook at this place is given."""
        if place in self.results:
            return SessionRunValues(self.results[place], self.options, self.metadata, self.global_step)
        return self._plain


def roll_back(life: Life, transaction: Transaction, error: BaseException, attempt: int, raw: Session) -> None:
    """Roll back what raised an error, if it has not committed; its items are given again or parked (contract D1).

    A run inside a step function is not what is retried: its items wait until the step has ended.
    """
    rest = take_out(error, life.session)
    retried = transaction.parent is None and rest is not None and may_retry(life, rest, attempt, raw)
    transaction.roll_back(Fate.PARK if isinstance(rest, Exception) and not retried else Fate.GIVE_AGAIN)
