"""A run: what it begins with, and its attempts until one succeeds or may not be repeated (contract R1a, V)."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import anyio

from asyncstep._monitored.attempt import attempt_run
from asyncstep._monitored.recovery import (
    is_transient,
    may_retry,
    note_attempts,
    prepare_retry,
    recover,
    recovered,
)
from asyncstep._monitored.stop import leaves
from asyncstep._runtime.transaction import Transaction

if TYPE_CHECKING:
    from asyncstep._monitored.hook import SessionRunContext
    from asyncstep._monitored.life import Life
    from asyncstep._runtime.session import Session

logger = logging.getLogger("asyncstep")


async def begin_run(life: Life, in_step: Transaction | None = None) -> None:
    """What every run begins with: contract R1a, E4, S5.

    A step in flight may go on after a stop that came from elsewhere, so that it can finish (contract W1);
    a step that asked for the stop itself, or met the end of data, may not.
    """
    if not life.accepts(in_step):
        raise life.not_open()
    if life.pace.is_due():
        await life.pace.turn()
        if not life.accepts(in_step):
            raise life.not_open()
    elif life.pace.cancel_point is not None:
        await life.pace.cancel_point()
    if life.coord.has_errors:
        life.raise_background_error()
    if life.stop.reason is not None and (in_step is None or in_step.stop_asked):
        life.raise_stop()


async def run_with_retries(context: SessionRunContext) -> Any:
    """A run of its own: attempts until one succeeds or may not be repeated (contract V1)."""
    life = context._life
    life.in_flight += 1
    try:
        while True:
            raw = life.raw
            assert raw is not None
            if raw.store.superseded:
                raw = await recovered(life)
            try:
                return await attempt_run(context, raw, None)
            except Exception as error:
                if context._committed:
                    if await _recovered_after_commit(life, error, raw):  # noqa: ASYNC120 - a cancellation goes before an error (contract C1)
                        return context._result
                    raise
                final = is_final(error, context._final_errors)
                context._final_errors = ()
                if final or not await retried(life, error, context.attempt, raw):  # noqa: ASYNC120 - a cancellation goes before an error (contract C1)
                    raise
            context = context.again()
    finally:
        life.in_flight -= 1
        if life.idle is not None:
            life.idle.set()


async def _recovered_after_commit(life: Life, error: Exception, raw: Session) -> bool:
    """Recover if an error of `after_run` tells that the raw session is lost; else it is to be raised (V6)."""
    if raw.intact or not is_transient(life, error, raw):
        await anyio.lowlevel.checkpoint_if_cancelled()
        return False
    logger.warning("a hook failed after the commit because the session is lost: %r", error)
    await recover(life, raw, error)
    return True


def is_final(error: BaseException, final_errors: tuple[BaseException, ...]) -> bool:
    """Whether it is, or has in it, an error that no retry may take for a failure of the step.

    Contract V6, E4: what the step had done is committed, or the error is that of a background task.
    """
    return any(leaf is final for final in final_errors for leaf in leaves(error))


async def retried(life: Life, error: Exception, number: int, raw: Session) -> bool:
    """Prepare the next attempt; False if there is to be none."""
    if may_retry(life, error, number, raw):
        await prepare_retry(life, error, number, raw)
        return True
    if number > 1:
        note_attempts(error, number)
    return False
