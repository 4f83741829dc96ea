"""on_step: a hook in one line."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import anyio

from asyncstep._monitored.coordinator import Coordinator
from asyncstep._monitored.hook import SessionRunArgs, SessionRunContext, SessionRunHook, SessionRunValues
from asyncstep._monitored.stop import StopKind, StopReason, name_of
from asyncstep._runtime.session import Session
from asyncstep.errors import InvalidTypeError, kind_of
from asyncstep.hooks.sampling import Sampler
from asyncstep.hooks.timer import SecondOrStepTimer, check_intervals

__all__ = ["on_step"]


def on_step(
    fn: Callable[..., Any],
    fetches: Any = None,
    *,
    every_steps: int | None = None,
    every_secs: float | None = None,
) -> SessionRunHook:
    """A hook that calls a function after the first step and then every so often.

    Args:
        fn: ``fn(step)`` with the global step, or, if there are `fetches`, ``fn(step, values)``; a plain function
            or an async one. If it returns True, the session is asked to stop.
        fetches: what to evaluate for it, in any nesting; `values` has the same nesting.
        every_steps: global steps between two calls.
        every_secs: seconds between them. With both, whichever is over first.

    ``on_step(print, every_steps=100)`` is a whole progress report. The function is called when its step is
    committed, and that step waits for it; an error of it is raised by the run, and the step stays (contract T7).
    With several workers the calls come one after the other, in the order of the steps, at the same steps as with
    one. The fetches join only the runs that may become those steps. A plain function must not block: there is
    `ThreadHook` for those that do.

    Raises:
        InvalidArgumentError: no interval, or one that is not positive.
        InvalidTypeError: `fn` cannot be called with these arguments.
    """
    check_intervals("on_step", every_steps=every_steps, every_secs=every_secs)
    _check_arguments(fn, 1 if fetches is None else 2)
    return FunctionHook(fn, fetches, SecondOrStepTimer(every_secs, every_steps), every_steps)


class FunctionHook(SessionRunHook):
    """What `on_step` makes."""

    def __init__(
        self, fn: Callable[..., Any], fetches: Any, timer: SecondOrStepTimer, every_steps: int | None
    ) -> None:
        self._fn = fn
        self._fetches = fetches
        self._timer = timer
        self._sampler = None if fetches is None else Sampler(timer, every_steps)

    async def begin(self) -> None:
        """Begin anew."""
        self._one_at_a_time = anyio.Lock()

    async def after_create_session(self, session: Session, coord: Coordinator) -> None:
        """Begin with the first step, also after a recovery."""
        self._coord = coord
        self._timer.reset()
        if self._sampler is not None:
            self._sampler.restart()

    async def before_run(self, run_context: SessionRunContext) -> SessionRunArgs | None:
        """Ask for the values if this run may become the step that they are wanted of."""
        if self._sampler is None or not self._sampler.asks(run_context):
            return None
        return SessionRunArgs(self._fetches)

    async def after_run(self, run_context: SessionRunContext, run_values: SessionRunValues) -> None:
        """Call the function if it is due."""
        step = run_values.global_step
        assert step is not None
        if self._sampler is not None:
            due, _ = self._sampler.shows(run_context, step)
        elif due := self._is_due(step):
            self._timer.update_last_triggered_step(step)
        if due:
            async with self._one_at_a_time:
                await self._call(step, run_values.results)

    async def on_run_error(self, run_context: SessionRunContext, error: BaseException) -> None:
        """Leave the call to another run."""
        if self._sampler is not None:
            self._sampler.forget(run_context)

    def _is_due(self, step: int) -> bool:
        last = self._timer.last_triggered_step()
        return (last is None or step > last) and self._timer.should_trigger_for_step(step)

    async def _call(self, step: int, values: Any) -> None:
        wish = self._fn(step) if self._sampler is None else self._fn(step, values)
        if inspect.isawaitable(wish):
            wish = await wish
        if wish is True:
            self._coord.set_stop(StopReason(StopKind.HOOK, f"at global step {step}", name_of(self._fn)))


def _check_arguments(fn: object, number: int) -> None:
    """Refuse what cannot be called with so many arguments."""
    wanted = "(step)" if number == 1 else "(step, values)"
    if not callable(fn):
        raise InvalidTypeError(f"on_step: fn must be a function of {wanted}, got {kind_of(fn)}")
    try:
        signature = inspect.signature(fn)
    except (TypeError, ValueError):
        return  # a builtin that does not tell
    try:
        signature.bind(*range(number))
    except TypeError as error:
        raise InvalidTypeError(
            f"on_step calls fn{wanted}, which {name_of(fn)}{signature} does not take: {error}"
        ) from None
