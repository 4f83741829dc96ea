"""Recovery: how long a retry waits, which errors it covers, and arguments that cannot be."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
from hypothesis import given, strategies as st

from asyncstep import AbortedError, InvalidArgumentError, Recovery, StopRequested, UnavailableError
from asyncstep.errors import InvalidTypeError, make_stop


def most(low: float, high: float) -> float:
    """In place of a random number: the largest."""
    return high


def least(low: float, high: float) -> float:
    """In place of a random number: the smallest."""
    return low


def test_waits_double() -> None:
    """V3: exponential back-off from `wait_initial` on."""
    recovery = Recovery(wait_initial=0.5, wait_max=100.0)
    assert [recovery.wait(attempt, least) for attempt in (1, 2, 3, 4)] == [0.5, 1.0, 2.0, 4.0]


def test_jitter_is_added_to_a_wait() -> None:
    """V3: up to `jitter` seconds, so that many workers do not come back at one instant."""
    recovery = Recovery(wait_initial=0.5, jitter=0.25, wait_max=100.0)
    assert [recovery.wait(attempt, most) for attempt in (1, 2)] == [0.75, 1.25]


def test_a_wait_is_never_longer_than_the_most() -> None:
    """V3: `wait_max` bounds the whole wait, jitter included, at any attempt."""
    recovery = Recovery(wait_initial=1.0, wait_max=3.0, jitter=0.5)
    assert [recovery.wait(attempt, most) for attempt in (1, 2, 3, 10_000)] == [1.5, 2.5, 3.0, 3.0]


@given(st.floats(0, 1e6), st.floats(0, 1e6), st.floats(0, 1e6), st.integers(1, 10**9), st.integers(0, 2**32))
def test_every_wait_is_within_its_bounds(
    initial: float, most_of_all: float, jitter: float, attempt: int, seed: int
) -> None:
    """V3: no arguments and no attempt make a wait negative, infinite or longer than `wait_max`."""
    recovery = Recovery(wait_initial=initial, wait_max=most_of_all, jitter=jitter)
    wait = recovery.wait(attempt, random.Random(seed).uniform)
    assert math.isfinite(wait)
    assert 0 <= wait <= most_of_all
    assert wait >= min(initial, most_of_all)


def test_the_default_wait_is_random() -> None:
    """V3: two waits of one attempt differ by the jitter, and by no more."""
    recovery = Recovery(wait_initial=1.0, jitter=0.5)
    waits = {recovery.wait(1) for _ in range(20)}
    assert len(waits) > 1
    assert all(1.0 <= wait <= 1.5 for wait in waits)


STOP = make_stop(object(), None)


@pytest.mark.parametrize(
    ("on", "error", "expected"),
    [
        ((AbortedError,), AbortedError(), True),
        ((AbortedError,), UnavailableError(), False),
        ((OSError,), ConnectionResetError(), True),
        ((), AbortedError(), False),
        ((KeyError, ValueError), ExceptionGroup("", [KeyError(), ExceptionGroup("", [ValueError()])]), True),
        ((KeyError,), ExceptionGroup("", [KeyError(), ExceptionGroup("", [ValueError()])]), False),
        ((Exception,), BaseExceptionGroup("", [KeyError(), STOP]), False),
        ((Exception,), STOP, False),
        ((Exception,), KeyboardInterrupt(), False),
    ],
    ids=str,
)
def test_covered_is_what_has_only_leaves_of_its_kinds(
    on: tuple[type[Exception], ...], error: BaseException, expected: bool
) -> None:
    """V1: every leaf has to be one of `on`; a stop or an interrupt never is."""
    assert Recovery(on).covers(error) is expected


def test_the_defaults_are_those_of_the_interface() -> None:
    """api: Recovery(on=(AbortedError, UnavailableError), restore="if_lost", max_attempts=10, ...)."""
    recovery = Recovery()
    assert recovery.on == (AbortedError, UnavailableError)
    assert (recovery.restore, recovery.max_attempts) == ("if_lost", 10)
    assert (recovery.wait_initial, recovery.wait_max, recovery.jitter) == (0.1, 30.0, 0.1)


@pytest.mark.parametrize("on", [OSError, [OSError], (OSError,)])
def test_errors_may_be_given_alone_or_together(on: Any) -> None:
    """As in an `except` clause, one class needs no tuple."""
    assert Recovery(on).on == (OSError,)


@pytest.mark.parametrize("on", [StopRequested, KeyboardInterrupt, AbortedError(), "AbortedError", None, 7])
def test_only_exception_classes_can_be_retried(on: Any) -> None:
    """S2, V1: neither an instance nor what is no Exception, the stop least of all."""
    with pytest.raises(InvalidTypeError, match="exception classes"):
        Recovery(on)


@pytest.mark.parametrize("restore", ["never", "", None, True])
def test_restore_is_one_of_two_words(restore: Any) -> None:
    """The message names both."""
    with pytest.raises(InvalidArgumentError, match="'if_lost' or 'always'"):
        Recovery(restore=restore)


@pytest.mark.parametrize("attempts", [0, -1, 1.5, True, "3", None])
def test_there_is_at_least_one_attempt(attempts: Any) -> None:
    """V3: a whole number, the first attempt included."""
    with pytest.raises(InvalidArgumentError, match="max_attempts"):
        Recovery(max_attempts=attempts)


@pytest.mark.parametrize("name", ["wait_initial", "wait_max", "jitter"])
@pytest.mark.parametrize("seconds", [-0.1, math.nan, True, "1", None])
def test_waits_are_seconds(name: str, seconds: Any) -> None:
    """V3: numbers of at least 0; the message names the argument."""
    with pytest.raises(InvalidArgumentError, match=name):
        Recovery(**{name: seconds})


def test_a_recovery_cannot_be_changed() -> None:
    """One value may serve many sessions."""
    with pytest.raises(AttributeError):
        Recovery().max_attempts = 3  # type: ignore[misc]
    assert Recovery(max_attempts=3) == Recovery(max_attempts=3)
