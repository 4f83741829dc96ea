"""Runs that are recorded: the same as the others, with spans around them and around what hooks do.

A run is recorded if it asked for that (``RunOptions(trace=True)``), or if it begins while the session has a trace
open. That is found out once, when it begins; what is not recorded takes the way that it takes without this
module. A recorded run has another table of hooks: their methods are timed, and one more hook, the first, asks for
the nodes in the way in which any hook can.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from asyncstep._monitored.attempt import attempt_run
from asyncstep._monitored.hook import (
    HookTable,
    SessionRunArgs,
    SessionRunContext,
    SessionRunHook,
    SessionRunValues,
)
from asyncstep._monitored.run import run_with_retries
from asyncstep._runtime.options import RunMetadata, RunOptions
from asyncstep._runtime.trace import HOOK, STEP, active, recorded, traced

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from asyncstep._monitored.hook import Overridden
    from asyncstep._monitored.life import Life
    from asyncstep._runtime.session import Session
    from asyncstep._runtime.transaction import Transaction

_TRACED = SessionRunArgs(options=RunOptions(trace=True))


def is_recorded(life: Life, options: RunOptions | None) -> bool:
    """Whether a run that begins now is recorded: because it asks for it, or for a trace that is not full."""
    if (options is not None and options.trace) or is_wanted(life):
        return True
    for trace in life.traces:
        trace.dropped_steps += 1
    return False


def is_wanted(life: Life) -> bool:
    """Whether there is a trace to record in: an open one, or one of what the running code is part of."""
    around = active.get()
    traces = life.traces if around is None else (*life.traces, *around.traces)
    return any(trace.takes_more for trace in traces)


async def recorded_run(context: SessionRunContext) -> Any:
    """`run_with_retries`, recorded."""
    with _recorded(context):
        return await run_with_retries(context)


async def recorded_attempt(context: SessionRunContext, raw: Session, step: Transaction | None) -> Any:
    """`attempt_run` of a run inside a step function, recorded."""
    with _recorded(context):
        return await attempt_run(context, raw, step)


def _recorded(context: SessionRunContext) -> recorded:
    if context._metadata is None:
        context._metadata = RunMetadata()
    context._table = _recorded_table(context._table)
    traces = *context._life.traces, context._metadata.new_trace()
    return recorded(STEP, STEP, row=context.worker, traces=traces)


def _recorded_table(table: HookTable) -> HookTable:
    new = HookTable((_Asking(), *table.hooks))
    new.before_run = _timed("before_run", new.before_run, new.hooks)
    new.before_commit = _timed("before_commit", new.before_commit, new.hooks)
    new.after_run = _timed("after_run", new.after_run, new.hooks)
    new.on_run_error = _timed("on_run_error", new.on_run_error, new.hooks)
    return new


def _timed(point: str, methods: Overridden, hooks: Sequence[SessionRunHook]) -> Overridden:
    return tuple(
        (
            place,
            method if isinstance(hooks[place], _Asking) else _timed_method(point, hooks[place], method),
        )
        for place, method in methods
    )


def _timed_method(
    point: str, hook: SessionRunHook, method: Callable[..., Awaitable[Any]]
) -> Callable[..., Awaitable[Any]]:
    name = f"{type(hook).__name__}.{point}"

    async def timed(*args: Any) -> Any:
        with traced(name, HOOK):
            return await method(*args)

    return timed


class _Asking(SessionRunHook):
    """Asks for the nodes of a recorded run, and says in its span which step it was."""

    async def before_run(self, run_context: SessionRunContext) -> SessionRunArgs:
        span = active.get()
        if span is not None:
            span.note(attempt=run_context.attempt)
        return _TRACED

    async def after_run(self, run_context: SessionRunContext, run_values: SessionRunValues) -> None:
        span = active.get()
        if span is not None:
            span.name = f"step {run_values.global_step}"
            span.note(outcome="committed", global_step=run_values.global_step)
