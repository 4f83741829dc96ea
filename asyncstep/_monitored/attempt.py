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
from asyncstep._runtime.executor import evaluate, name_node
from asyncstep._runtime.options import RunMetadata, RunOptions, check_options, deadline, merged
from asyncstep._runtime.plan import NONE
from asyncstep._runtime.session import CALLERS_FEEDS, ends, within
from asyncstep._runtime.transaction import Fate, Transaction, current, live
from asyncstep.errors import InvalidTypeError, kind_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from anyio import CancelScope

    from asyncstep._monitored.life import Life
    from asyncstep._runtime.session import Session

    Asked = tuple[int, SessionRunArgs]  # the place of a hook, and what its before_run asked for

logger = logging.getLogger("asyncstep")


async def attempt_run(context: SessionRunContext, raw: Session, step: Transaction | None) -> Any:
    """One attempt of one monitored run: contract R1, from `before_run` to `after_run`.

    Whatever is raised before the commit has rolled it back, and `context._committed` is False.
    """
    life, table, options = context._life, context._table, context._options
    # A step goes on with the store that it began with, also when its session has been restored meanwhile.
    store = raw.store if step is None else step.store
    if store.closed:
        raw.check_open()
        store.check_open()
    before = current.get()
    if before is not None:
        before = live(before)
    transaction = Transaction(store, step, before, life)
    transaction.counts, remote = life.counts_steps, store.remote
    current.set(transaction)
    context._session = raw
    cancellation: BaseException | None = None  # came while the commit was under way to another process
    values: HookValues | None = None  # of hooks that asked for something, or are called before the commit
    try:
        try:
            if options is not None and options.timeout is not None:
                values = await _evaluate_in_time(context, transaction, options.timeout)
            else:
                asked: tuple[Asked, ...] = ()
                for place, method in table.before_run:
                    context._place = place
                    args = await method(context)
                    if args is not None:
                        asked = (*asked, (place, _checked_args(args, context)))
                context._told_all = True
                if asked or remote or options is not None or table.before_commit:
                    values = await _evaluate_for_all(context, transaction, asked, None)
                elif (request := raw.request_for(context._fetches, context._feeds)).sole is None:
                    outputs = await evaluate(request.plan, [*request.fed], request.functions, transaction)
                    context._result = request.result(outputs)
                else:  # most runs: one node, for which there is no need of the executor
                    kind, call, _ = request.sole
                    try:
                        context._result = await call() if kind == NONE else call((), transaction)
                    except Exception as error:
                        name_node(error, request.plan, 0, ())
                        raise
            if remote:
                number, cancellation = await transaction.send(GLOBAL_STEP)
            else:
                number = transaction.commit(GLOBAL_STEP)  # there is no await in it (contract R1e)
        except BaseException as error:
            if isinstance(error, Exception):
                context._final_errors = transaction.final_errors
            await _failed(context, transaction, error)  # noqa: ASYNC102 - each hook is told in a shield, within the grace period (contract R4)
            raise
        context._committed = True
        if values is not None:
            values.commit(number, context.attempt)
        elif context._metadata is not None:
            context._metadata.global_step, context._metadata.attempt = number, context.attempt
        if table.after_run:
            plain = SessionRunValues(None, None, context._metadata, number, context.attempt)
            if cancellation is not None:
                context._place = -1
                await _after_run_rest(context, plain, values, cancellation)
                raise_as_is(cancellation)
            for place, method in table.after_run:
                context._place = place
                try:
                    await method(context, plain if values is None else values.of(place))
                except BaseException as error:
                    await _after_run_rest(context, plain, values, error)  # noqa: ASYNC102 - each hook is told in a shield, within the grace period (contract R4)
                    raise
        elif cancellation is not None:
            raise_as_is(cancellation)
        return context._result
    finally:
        del cancellation
        current.set(before)
        transaction.owner = None
        if transaction.final_errors:
            transaction.final_errors = ()
        if transaction.at_end is not None:
            transaction.over()


async def _evaluate_in_time(
    context: SessionRunContext, transaction: Transaction, seconds: float
) -> HookValues:
    """Every before_run, the evaluation and every before_commit, within the deadline of the caller's options.

    The loop over before_run is that of `attempt_run`, where it stands once more so that a run without a
    deadline, that is nearly every one, awaits no further coroutine for it.
    """
    asked: list[Asked] = []
    with deadline(seconds) as scope:
        for place, method in context._table.before_run:
            context._place = place
            args = await method(context)
            if args is not None:
                asked.append((place, _checked_args(args, context)))
        context._told_all = True
        values = await _evaluate_for_all(context, transaction, asked, scope)
    return values  # noqa: RET504 - a type checker takes it that `deadline` may swallow what is raised in it


async def _evaluate_for_all(
    context: SessionRunContext,
    transaction: Transaction,
    asked: Sequence[Asked],
    scope: CancelScope | None,
) -> HookValues:
    """One evaluation of what the caller and the hooks want; then every before_commit.

    `scope` has the deadline of the caller's options, if they have one.
    """
    raw, hooks, options = context._session, context._table.hooks, context._options
    fetches: list[Any] = [context._fetches]
    feeds: list[tuple[Any, str]] = [(context._feeds, CALLERS_FEEDS)]
    askers: list[int] = []
    for place, args in asked:
        if args.fetches is not None:
            fetches.append(args.fetches)
            askers.append(place)
        feeds.append((args.feed_dict, f"the hook {type(hooks[place]).__name__}"))
        if args.options is not None:
            check_options(args.options, None)
            options = args.options if options is None else merged(options, args.options)
    request = raw.request(fetches, feeds) if asked else raw.request_for(context._fetches, context._feeds)
    values = HookValues(options, context._metadata)
    if scope is not None:
        _extend(scope, context._options, options)
    with within(options if scope is None else None):
        outputs = await raw.evaluate(request, transaction, options, values.metadata)
        context._result, *results = request.results(outputs)
        values.results = dict(zip(askers, results, strict=True))
        for place, method in context._table.before_commit:
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


def _checked_args(args: object, context: SessionRunContext) -> SessionRunArgs:
    if isinstance(args, SessionRunArgs):
        return args
    raise InvalidTypeError(
        f"before_run of {_hook_name(context)} must return SessionRunArgs or None, not {kind_of(args)}"
    )


def _hook_name(context: SessionRunContext) -> str:
    """The class of the hook that is being called."""
    return type(context._table.hooks[context._place]).__name__


async def _after_run_rest(
    context: SessionRunContext, plain: SessionRunValues, values: HookValues | None, first: BaseException
) -> None:
    """One hook has raised after the commit: tell those after it all the same, shielded (contract R4, T7).

    Raises what is more urgent than `first`, if there is such.
    """
    errors = [first]
    failed = context._place
    for place, method in context._table.after_run:
        if place > failed:
            context._place = place
            name = f"after_run of {_hook_name(context)}"
            given = plain if values is None else values.of(place)
            await _shielded(context._life, name, errors.append, method, context, given)
    final = most_urgent(errors, anyio.get_cancelled_exc_class(), "hooks failed in after_run")
    try:
        if final is not first:
            raise_as_is(final)
    finally:
        errors.clear()
        del final, first


async def _failed(context: SessionRunContext, transaction: Transaction, error: BaseException) -> None:
    """Roll back; tell the hooks that were told of the run (contract R4)."""
    life, table = context._life, context._table
    if any(ends(leaf) for leaf in leaves(error)):
        life.data_ended(error)
    roll_back(life, transaction, error, context.attempt, context._session)
    if not table.on_run_error:
        return
    raised = [error]
    last = len(table.hooks) if context._told_all else context._place
    for place, method in table.on_run_error:
        if place > last:
            break
        context._place = place
        name = f"on_run_error of {_hook_name(context)}"
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
