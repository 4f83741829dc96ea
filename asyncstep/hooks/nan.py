"""NanHook: no step that computed NaN is ever committed."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from asyncstep._monitored.hook import SessionRunArgs, SessionRunContext, SessionRunHook, SessionRunValues
from asyncstep.errors import InvalidTypeError, NanLossError
from asyncstep.hooks.named import name_of_fetch

__all__ = ["NanHook"]

logger: logging.Logger = logging.getLogger("asyncstep")


class NanHook(SessionRunHook):
    """End the session in the step whose loss is NaN; that step is rolled back.

    Args:
        loss: the fetch to watch: a number, an array, or a nesting of them, in which one NaN is enough. It
            joins every run.
        fail: True: the run raises NanLossError, and the session ends with that error. False: a WARNING is
            logged and the session stops: the run raises StopRequested, which the session absorbs, and that is
            a clean end.

    Either way it is decided before the commit. What the NaN step wrote is nowhere, in no variable and in no
    checkpoint, and the global step stays that of the last sound step.

    Raises:
        InvalidTypeError: `loss` is missing.

    TensorFlow: ``tf.train.NanTensorHook``, which looks when the NaN step has been written already.
    """

    def __init__(self, loss: Any, *, fail: bool = True) -> None:
        if loss is None:
            raise InvalidTypeError("NanHook: loss must be a fetch, got None")
        self._loss = loss
        self._name = name_of_fetch(loss) or "the loss"
        self._fail = fail

    async def before_run(self, run_context: SessionRunContext) -> SessionRunArgs:
        """Ask for the loss."""
        return SessionRunArgs(self._loss)

    async def before_commit(self, run_context: SessionRunContext, run_values: SessionRunValues) -> None:
        """Refuse the step if the loss is NaN."""
        if not has_nan(run_values.results):
            return
        problem = f"{self._name} is NaN, so the step is rolled back"
        if self._fail:
            raise NanLossError(problem)
        if not run_context.stop_requested:
            logger.warning("%s and the session stops", problem)
        run_context.request_stop(problem)
        run_context.raise_stop()


def has_nan(value: Any) -> bool:
    """Whether a value is NaN, or has a NaN among its elements.

    Of numbers, of arrays of any library (they compare by element, and have ``any()``), and of the nestings
    that fetches may have. What is no number is not NaN.
    """
    if isinstance(value, Mapping):
        return any(map(has_nan, value.values()))
    if isinstance(value, (list, tuple)):
        return any(map(has_nan, value))
    if is_dataclass(value) and not isinstance(value, type):
        return any(has_nan(getattr(value, field.name)) for field in fields(value))
    unequal = value != value  # no other number differs from itself
    return bool(unequal.any() if hasattr(unequal, "any") else unequal)
