"""Which checkpoints are kept and which are deleted (contract K8), decided by what their manifests say.

Each rule names checkpoints to keep; what no rule keeps is deleted. Nothing is remembered between two
decisions but the checkpoints themselves, so checkpoints of earlier runs count as those of this one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

from asyncstep.errors import InvalidArgumentError, InvalidTypeError, kind_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence


class Metric(NamedTuple):
    """What a checkpoint was measured by."""

    name: str
    value: float


class Kept(Protocol):
    """What the decision needs to know of a checkpoint."""

    @property
    def step(self) -> int:
        """Its global step."""

    @property
    def time(self) -> float:
        """When it was saved, in seconds."""

    @property
    def metric(self) -> Metric | None:
        """What it was measured by, if it was."""


@dataclass(frozen=True, slots=True)
class KeepBest:
    """Keep the best checkpoints by a metric, beside the newest ones.

    Of equal ones the earlier is better; a NaN is never among the best.

    Args:
        metric: a fetch, evaluated at the save; its value is a number.
        n: how many are kept.
        mode: "min" if less is better, "max" if more is.

    Raises:
        InvalidArgumentError: `n` is no positive number, or `mode` neither of the two.
    """

    metric: Any
    n: int = 1
    mode: Literal["min", "max"] = "min"

    def __post_init__(self) -> None:
        _check_number("n of KeepBest", self.n)
        if self.mode not in ("min", "max"):
            raise InvalidArgumentError(f"mode of KeepBest must be 'min' or 'max', not {self.mode!r}")

    @property
    def name(self) -> str:
        """What the metric is called in manifests: the name of the node or function, the same in every run."""
        if isinstance(self.metric, str):
            return self.metric
        return str(getattr(self.metric, "name", None) or getattr(self.metric, "__qualname__", self.metric))


@dataclass(frozen=True, slots=True)
class Retention:
    """What to keep; each rule adds to the others.

    Args:
        max_to_keep: how many of the newest; None: all.
        keep_every_n_hours: also the oldest one, the first that is at least so much newer, and so on.
        keep_best: also the best ones.

    Raises:
        InvalidArgumentError: a number is not positive.
    """

    max_to_keep: int | None = 5
    keep_every_n_hours: float | None = None
    keep_best: KeepBest | None = None

    def __post_init__(self) -> None:
        if self.max_to_keep is not None:
            _check_number("max_to_keep", self.max_to_keep)
        hours = self.keep_every_n_hours
        if hours is not None and (isinstance(hours, bool) or not isinstance(hours, (int, float))):
            raise InvalidTypeError(f"keep_every_n_hours must be a number of hours, not {kind_of(hours)}")
        if hours is not None and not hours > 0:
            raise InvalidArgumentError(f"keep_every_n_hours must be positive, not {hours!r}")
        if self.keep_best is not None and not isinstance(self.keep_best, KeepBest):
            raise InvalidTypeError(f"keep_best must be a KeepBest, not {kind_of(self.keep_best)}")


def to_delete(checkpoints: Iterable[Kept], retention: Retention, in_use: Collection[int] = ()) -> list[int]:
    """The steps whose checkpoints are not kept, oldest first.

    The newest is always kept, and so are those in use. Call it when the newest is durable.

    Args:
        checkpoints: all that there are, in any order.
        retention: what to keep.
        in_use: steps that somebody needs, as that from which a session was restored.
    """
    there = sorted(checkpoints, key=lambda checkpoint: checkpoint.step)
    if retention.max_to_keep is None or not there:
        return []
    kept = {checkpoint.step for checkpoint in there[-retention.max_to_keep :]} | set(in_use)
    if retention.keep_every_n_hours is not None:
        kept |= _apart(there, retention.keep_every_n_hours * 3600.0)
    if retention.keep_best is not None:
        kept |= _best(there, retention.keep_best)
    return [checkpoint.step for checkpoint in there if checkpoint.step not in kept]


def _apart(there: Sequence[Kept], seconds: float) -> set[int]:
    """The first, and each that is this far from the last one so kept.

    The distance has no sign, so a clock that was wrong once does not end the rule.
    """
    kept = [there[0]]
    for checkpoint in there:
        if abs(checkpoint.time - kept[-1].time) >= seconds:
            kept.append(checkpoint)
    return {checkpoint.step for checkpoint in kept}


def _best(there: Sequence[Kept], rule: KeepBest) -> set[int]:
    sign = 1.0 if rule.mode == "min" else -1.0
    measured = [
        (sign * checkpoint.metric.value, checkpoint.step)
        for checkpoint in there
        if checkpoint.metric is not None
        and checkpoint.metric.name == rule.name
        and not math.isnan(checkpoint.metric.value)
    ]
    return {step for _, step in sorted(measured)[: rule.n]}


def _check_number(what: str, number: object) -> None:
    if isinstance(number, bool) or not isinstance(number, int):
        raise InvalidTypeError(f"{what} must be an int, not {kind_of(number)}")
    if number < 1:
        raise InvalidArgumentError(f"{what} must be at least 1, not {number}")
