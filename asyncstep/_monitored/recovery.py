"""Recovery: which errors are retried, how long a retry waits, and a new incarnation of the raw session."""

from __future__ import annotations

import logging
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import anyio

from asyncstep._monitored.stop import StopKind, is_own_end, leaves
from asyncstep._runtime.session import Session
from asyncstep._runtime.snapshot import load_states, states_of
from asyncstep._runtime.state import SupersededError
from asyncstep._runtime.trace import WAIT, traced
from asyncstep._runtime.transaction import add_note_once
from asyncstep.errors import (
    AbortedError,
    FailedPreconditionError,
    InvalidArgumentError,
    InvalidTypeError,
    SessionClosedError,
    UnavailableError,
    kind_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from asyncstep._monitored.life import Life

logger = logging.getLogger("asyncstep")


@dataclass(frozen=True, slots=True)
class Recovery:
    """What a session does when a step fails with an error that may pass (contract V).

    Args:
        on: the errors after which a step is run again; every leaf of what it raised must be one of them.
        restore: "if_lost": a new raw session only if the state is lost; "always": before every retry.
        max_attempts: of one step, the first included.
        wait_initial: seconds before the second attempt; doubled for each further one.
        wait_max: the most seconds of a wait.
        jitter: up to so many seconds are added at random.
    """

    on: tuple[type[Exception], ...] = (AbortedError, UnavailableError)
    restore: Literal["if_lost", "always"] = "if_lost"
    max_attempts: int = 10
    wait_initial: float = 0.1
    wait_max: float = 30.0
    jitter: float = 0.1

    def __init__(
        self,
        on: type[Exception] | tuple[type[Exception], ...] = (AbortedError, UnavailableError),
        *,
        restore: Literal["if_lost", "always"] = "if_lost",
        max_attempts: int = 10,
        wait_initial: float = 0.1,
        wait_max: float = 30.0,
        jitter: float = 0.1,
    ) -> None:
        set_field = object.__setattr__
        set_field(self, "on", on if isinstance(on, tuple) else tuple(on) if isinstance(on, list) else (on,))
        set_field(self, "restore", restore)
        set_field(self, "max_attempts", max_attempts)
        set_field(self, "wait_initial", wait_initial)
        set_field(self, "wait_max", wait_max)
        set_field(self, "jitter", jitter)
        self._check()

    def _check(self) -> None:
        for kind in self.on:
            if not (isinstance(kind, type) and issubclass(kind, Exception)):
                raise InvalidTypeError(f"Recovery(on=...) takes exception classes, not {kind!r}")
        if self.restore not in ("if_lost", "always"):
            raise InvalidArgumentError(f"restore must be 'if_lost' or 'always', not {self.restore!r}")
        if (
            not isinstance(self.max_attempts, int)
            or isinstance(self.max_attempts, bool)
            or self.max_attempts < 1
        ):
            raise InvalidArgumentError(
                f"max_attempts must be an int of at least 1, not {self.max_attempts!r}"
            )
        for name in ("wait_initial", "wait_max", "jitter"):
            seconds = getattr(self, name)
            if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not seconds >= 0:
                raise InvalidArgumentError(
                    f"{name} must be a number of seconds of at least 0, not {seconds!r}"
                )

    def wait(self, attempt: int, uniform: Callable[[float, float], float] = random.uniform) -> float:
        """Seconds to wait after the failure of an attempt (1, 2, ...)."""
        exponent = min(attempt - 1, 64)  # beyond, every wait is wait_max
        wanted = self.wait_initial * 2.0**exponent + uniform(0.0, self.jitter)
        return min(self.wait_max, wanted)

    def covers(self, error: BaseException) -> bool:
        """Whether every leaf of an error is one of `on`."""
        return all(isinstance(leaf, self.on) for leaf in leaves(error))


def may_retry(life: Life, error: BaseException, attempt: int, raw: Session) -> bool:
    """Whether a step that failed with this error is run again (contract V1, V3)."""
    recovery = life.recovery
    if recovery is None or attempt >= recovery.max_attempts or life.sealed:
        return False
    return is_transient(life, error, raw)


def is_transient(life: Life, error: BaseException, raw: Session) -> bool:
    """Whether an error is one that a retry may cure, an attempt on a lost raw session included."""
    recovery = life.recovery
    return recovery is not None and all(
        (isinstance(leaf, (*recovery.on, SupersededError)) and not is_own_end(leaf, life.session))
        or (isinstance(leaf, SessionClosedError) and leaf.session in (raw, raw.store) and not raw.intact)
        for leaf in leaves(error)
    )


def note_attempts(error: BaseException, attempts: int) -> None:
    """Note on the last error of a step how often it was tried (contract V3)."""
    add_note_once(error, f"gave up after {attempts} attempts")


async def prepare_retry(life: Life, error: Exception, attempt: int, raw: Session) -> None:
    """Wait, and recover if need be; then the step can be run again.

    Raises:
        StopRequested: the session was asked to stop (but not by the end of its data: a step in flight
            then still has the items that it was given).
        SessionClosedError: the session was closed meanwhile.

    Checkpoint: always.
    """
    recovery = life.recovery
    assert recovery is not None
    superseded = all(isinstance(leaf, SupersededError) for leaf in leaves(error))
    seconds = 0.0 if superseded else recovery.wait(attempt)
    if not superseded:
        logger.warning(
            "attempt %d of a step failed and is tried again in %.3g s: %r",
            attempt, seconds, error,
        )  # fmt: skip
    await wait_or_stop(life, seconds)
    _check_not_sealed(life)
    if life.raw is raw and (recovery.restore == "always" or not raw.intact):
        with traced("recovery", WAIT):
            await recover(life, raw, error)


async def recovered(life: Life) -> Session:
    """The raw session for a new attempt, when a recovery that is under way is made. Checkpoint: always."""
    with traced("recovery", WAIT):
        async with life.recovering:
            pass
    assert life.raw is not None
    return life.raw


def _check_not_sealed(life: Life) -> None:
    """Refuse to go on with a step that the closing did not wait for (contract L6)."""
    if life.sealed:
        raise life.not_open()


async def wait_or_stop(life: Life, seconds: float) -> None:
    """Wait; a stop ends the wait with StopRequested (contract V3). Checkpoint: always."""
    if _ends_wait(life):
        life.raise_stop()
    woken = anyio.Event()
    life.stop.when_set(woken.set)
    try:
        with traced("wait for the next attempt", WAIT):
            if life.stop.reason is None:
                with anyio.move_on_after(seconds):
                    await woken.wait()
            else:
                await anyio.sleep(seconds)
    finally:
        life.stop.forget(woken.set)
    if _ends_wait(life):
        life.raise_stop()


def _ends_wait(life: Life) -> bool:
    reason = life.stop.reason
    return reason is not None and reason.kind is not StopKind.END_OF_DATA


async def recover(life: Life, lost: Session, error: BaseException) -> None:
    """Close a raw session and make the next one, once, however many steps failed (contract V2)."""
    async with life.recovering:
        if life.raw is not lost:
            return
        logger.warning("recovering the session after %r", error)
        lost.store.superseded = True
        await lost.aclose()
        for call in life.before_recovery:
            await call()
        try:
            raw = await create(life)
        except FailedPreconditionError as failed:
            if failed.__cause__ is None:
                failed.__cause__ = error  # contract V5
            raise
        try:
            _check_not_sealed(life)
            for hook in life.hooks:
                await hook.after_create_session(raw, life.coord)
            _check_not_sealed(life)
            if raw.company is not None:
                await raw.company.begin(life)
        except BaseException:
            await raw.aclose()
            raise
        life.raw = raw
        life.recoveries += 1


async def create(life: Life) -> Session:
    """A new, open raw session from the creator; transient errors of it are retried (contract V3)."""
    attempt = 1
    while True:
        try:
            return await _created(life)
        except Exception as error:
            recovery = life.recovery
            if recovery is None or not recovery.covers(error):
                raise
            if attempt >= recovery.max_attempts:
                note_attempts(error, attempt)
                raise
            seconds = recovery.wait(attempt)
            logger.warning(
                "attempt %d to create the session failed and is made again in %.3g s: %r",
                attempt,
                seconds,
                error,
            )
        await wait_or_stop(life, seconds)
        attempt += 1


async def _created(life: Life) -> Session:
    raw: Any = await life.creator.create_session()
    if not isinstance(raw, Session):
        raise InvalidTypeError(f"create_session() must return a Session, not {kind_of(raw)}")
    if raw.graph is not life.graph:
        raise FailedPreconditionError(
            "the creator made a session of another graph than the one that the hooks were shown;"
            " give the creator an attribute `graph`, or build the monitored session inside `with graph:`"
        )
    if not raw.opened:
        await raw.__aenter__()
    try:
        raw.store.initialize(life.graph.variables.values())
        raw.store.start_soon = life.coord.start_soon
        raw.store.stateful_hooks = life.stateful_hooks
        load_states("the hook", raw.store.stateful_hooks, raw.store.restored_hooks)
        if life.raw is not None:
            _take_over_initial_states(life, life.raw, raw)
    except BaseException:
        with anyio.CancelScope(shield=True):
            await raw.aclose()
        raise
    return raw


def remember_initial_states(life: Life, raw: Session) -> None:
    """Keep what a recovery to initial values gives back, until a step has committed (contract V5)."""
    if life.recovery is not None and raw.store.restored_step is None:
        raw.store.initial_states = states_of(life.graph.tracked), states_of(life.stateful_hooks)


def _take_over_initial_states(life: Life, lost: Session, raw: Session) -> None:
    """A recovery to initial values is one of tracked objects and hooks, too."""
    initial = lost.store.initial_states
    if raw.store.restored_step is None and initial is not None:
        tracked, hooks = initial
        load_states("the tracked object", life.graph.tracked, tracked)
        load_states("the hook", life.stateful_hooks, hooks)
        raw.store.initial_states = initial
