"""When a hook is due: the timer that all stock hooks share, and the check of the intervals given to it."""

from __future__ import annotations

import asyncio
import operator
import sys
import time
from collections.abc import Callable
from numbers import Real
from typing import SupportsIndex

from asyncstep.errors import InvalidArgumentError, InvalidTypeError, kind_of

__all__ = ["SecondOrStepTimer", "check_intervals", "check_secs", "check_steps"]


class SecondOrStepTimer:
    """Says for which steps something that is done every so often is due.

    Args:
        every_secs: seconds between two triggers, a positive number; None: time does not trigger.
        every_steps: steps between two triggers, a positive integer; None: steps do not trigger.
        clock: a monotonic clock in seconds. Inside an event loop whose time is not that of ``time.monotonic``,
            which is the default, its time is used in place of it: on trio, and in tests on virtual time.

    At least one interval is needed; with both, whichever is over first triggers. The first step asked for is
    always due, and the step that triggered last never is.

    To ask and to tell are two things, as in TensorFlow: `should_trigger_for_step` changes nothing, and
    `update_last_triggered_step` is called for the step that did trigger.

    Raises:
        InvalidArgumentError: (a ValueError) no interval, or one that is not positive.
        InvalidTypeError: (a TypeError too) an interval that is no number.

    TensorFlow: ``tf.train.SecondOrStepTimer``, which takes exactly one interval. No method waits.
    """

    __slots__ = ("_clock", "_every_secs", "_every_steps", "_follows_loop", "_last_step", "_last_time")

    def __init__(
        self,
        every_secs: float | None = None,
        every_steps: int | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        check_intervals("SecondOrStepTimer", every_steps=every_steps, every_secs=every_secs)
        self._every_secs = every_secs
        self._every_steps = every_steps
        self._clock = clock
        self._follows_loop = clock is time.monotonic
        self.reset()

    def reset(self) -> None:
        """Forget every trigger: the next question is the first one again."""
        self._last_step: int | None = None
        self._last_time = 0.0

    def should_trigger_for_step(self, step: int) -> bool:
        """Whether `step` is due. Asking changes nothing."""
        if self._last_step is None:
            return True
        if step == self._last_step:
            return False
        if self._every_steps is not None and step >= self._last_step + self._every_steps:
            return True
        return self._every_secs is not None and self._clock() >= self._last_time + self._every_secs

    def update_last_triggered_step(self, step: int) -> tuple[float | None, int | None]:
        """Record that `step` triggers now; return the seconds and the steps since the last trigger.

        Both are None for the first one.
        """
        now = self._clock()
        elapsed: tuple[float | None, int | None] = (None, None)
        if self._last_step is not None:
            elapsed = (now - self._last_time, step - self._last_step)
        if self._follows_loop:
            self._clock = _clock_of_event_loop()
            now = self._clock()
        self._last_step, self._last_time = step, now
        return elapsed

    def last_triggered_step(self) -> int | None:
        """The step that triggered last; None before the first."""
        return self._last_step


def _clock_of_event_loop() -> Callable[[], float]:
    """The clock of the event loop that is running, which may be virtual; without one, ``time.monotonic``.

    It is ``time.monotonic`` on uvloop, too, whose own time goes by milliseconds.
    """
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return _clock_of_trio() if "trio" in sys.modules else time.monotonic
    if not isinstance(loop, asyncio.BaseEventLoop) or type(loop).time is asyncio.BaseEventLoop.time:
        return time.monotonic
    return loop.time


def _clock_of_trio() -> Callable[[], float]:
    from trio.lowlevel import current_clock

    try:
        return current_clock().current_time
    except RuntimeError:
        return time.monotonic


def check_intervals(owner: str, **intervals: float | None) -> None:
    """Refuse intervals with which `owner` could never or always be due.

    Args:
        owner: whose intervals they are, for the message.
        intervals: the intervals by the names of the owner's parameters: ``...steps`` are integers, others are
            numbers of seconds; None is an interval that is not used.

    Raises:
        InvalidArgumentError: all are None, or one is not positive.
        InvalidTypeError: one is no number.
    """
    if all(interval is None for interval in intervals.values()):
        raise InvalidArgumentError(f"{owner} needs an interval: give {' or '.join(intervals)}, or both")
    for name, interval in intervals.items():
        if interval is None:
            continue
        if name.endswith("steps"):
            check_steps(owner, name, interval, least=1)
        else:
            check_secs(owner, name, interval)


def check_secs(owner: str, name: str, secs: object) -> None:
    """Refuse a time that is no number (InvalidTypeError) or not positive (InvalidArgumentError)."""
    if isinstance(secs, bool) or not isinstance(secs, Real):
        raise InvalidTypeError(f"{owner}: {name} must be a number of seconds, got {kind_of(secs)}")
    if not float(secs) > 0:
        raise InvalidArgumentError(f"{owner}: {name} must be more than 0 seconds, got {secs!r}")


def check_steps(owner: str, name: str, steps: object, *, least: int) -> None:
    """Refuse a count that is no integer (InvalidTypeError) or less than `least` (InvalidArgumentError)."""
    if isinstance(steps, bool) or not isinstance(steps, SupportsIndex):
        raise InvalidTypeError(f"{owner}: {name} must be an integer, got {kind_of(steps)}")
    if operator.index(steps) < least:
        raise InvalidArgumentError(f"{owner}: {name} must be at least {least}, got {steps!r}")
