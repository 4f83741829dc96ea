"""`SecondOrStepTimer`: which steps are due, on a clock that the test moves."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, strategies as st

from asyncstep.errors import InvalidArgumentError, InvalidTypeError
from asyncstep.hooks import SecondOrStepTimer


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def due_steps(timer: SecondOrStepTimer, steps: range) -> list[int]:
    """The steps for which the timer was due, each of them recorded as triggered."""
    due = []
    for step in steps:
        if timer.should_trigger_for_step(step):
            timer.update_last_triggered_step(step)
            due.append(step)
    return due


def test_the_first_call_triggers_whatever_the_step() -> None:
    """The first question is answered with yes, also in a run that is resumed at a late step."""
    assert SecondOrStepTimer(every_steps=100).should_trigger_for_step(42)
    assert SecondOrStepTimer(every_secs=100).should_trigger_for_step(42)


def test_asking_changes_nothing() -> None:
    """A step stays due until it is recorded as triggered."""
    timer = SecondOrStepTimer(every_steps=3)
    assert [timer.should_trigger_for_step(1) for _ in range(3)] == [True, True, True]
    assert timer.last_triggered_step() is None


def test_a_step_that_triggered_is_not_due_again() -> None:
    """The step that triggered last is never due again, not even when its seconds have passed."""
    clock = Clock()
    timer = SecondOrStepTimer(every_secs=1, every_steps=1, clock=clock)
    timer.update_last_triggered_step(7)
    clock.now += 10
    assert not timer.should_trigger_for_step(7)


def test_steps_are_due_after_the_interval() -> None:
    """With every_steps=3, each third step from the first one asked for is due."""
    assert due_steps(SecondOrStepTimer(every_steps=3), range(5, 15)) == [5, 8, 11, 14]


def test_seconds_are_due_after_the_interval() -> None:
    """With every_secs=2 a step is due from the instant on that is two seconds after the last trigger."""
    clock = Clock()
    timer = SecondOrStepTimer(every_secs=2, clock=clock)
    timer.update_last_triggered_step(1)
    answers = []
    for clock.now in (1000.0, 1001.5, 1002.0, 1003.0):
        answers.append(timer.should_trigger_for_step(2))
    assert answers == [False, False, True, True]


def test_either_interval_triggers() -> None:
    """With both intervals, the one that is over first triggers, and both begin anew."""
    clock = Clock()
    timer = SecondOrStepTimer(every_secs=10, every_steps=5, clock=clock)
    timer.update_last_triggered_step(0)
    by_steps = [timer.should_trigger_for_step(4), timer.should_trigger_for_step(5)]
    clock.now += 10
    by_secs = timer.should_trigger_for_step(1)
    timer.update_last_triggered_step(1)
    assert (by_steps, by_secs) == ([False, True], True)
    assert [timer.should_trigger_for_step(step) for step in (5, 6)] == [False, True]


def test_a_trigger_tells_what_has_passed() -> None:
    """Recording a trigger gives the seconds and steps since the one before it, if there is one."""
    clock = Clock()
    timer = SecondOrStepTimer(every_steps=1, clock=clock)
    first = timer.update_last_triggered_step(10)
    clock.now += 2.5
    second = timer.update_last_triggered_step(14)
    assert (first, second, timer.last_triggered_step()) == ((None, None), (2.5, 4), 14)


def test_reset_makes_the_next_call_the_first() -> None:
    """After reset() the timer is due at once and has nothing to measure from."""
    timer = SecondOrStepTimer(every_steps=10)
    timer.update_last_triggered_step(3)
    timer.reset()
    assert timer.last_triggered_step() is None
    assert timer.should_trigger_for_step(3)
    assert timer.update_last_triggered_step(3) == (None, None)


def test_an_interval_is_needed() -> None:
    """Without an interval nothing could ever trigger: a ValueError that names both."""
    with pytest.raises(ValueError, match="every_steps or every_secs") as caught:
        SecondOrStepTimer()
    assert isinstance(caught.value, InvalidArgumentError)


@pytest.mark.parametrize("steps", [0, -1])
def test_a_number_of_steps_is_positive(steps: int) -> None:
    """0 or fewer steps are a ValueError, also beside good seconds."""
    with pytest.raises(ValueError, match=f"every_steps must be at least 1, got {steps}"):
        SecondOrStepTimer(every_secs=1, every_steps=steps)


@pytest.mark.parametrize("secs", [0, 0.0, -0.5, math.nan])
def test_a_number_of_seconds_is_positive(secs: float) -> None:
    """0, negative and not-a-number seconds are a ValueError, also beside good steps."""
    with pytest.raises(ValueError, match="every_secs must be more than 0 seconds"):
        SecondOrStepTimer(every_secs=secs, every_steps=1)


@pytest.mark.parametrize(
    "intervals", [{"every_steps": 2.5}, {"every_steps": True}, {"every_secs": "5"}, {"every_secs": True}]
)
def test_an_interval_is_a_number(intervals: dict[str, Any]) -> None:
    """An interval of a wrong type is a TypeError that names it."""
    with pytest.raises(InvalidTypeError, match=next(iter(intervals))) as caught:
        SecondOrStepTimer(**intervals)
    assert isinstance(caught.value, TypeError)


@given(
    every=st.integers(1, 50), first=st.integers(0, 1000), strides=st.lists(st.integers(0, 20), max_size=200)
)
def test_steps_trigger_as_early_as_allowed(every: int, first: int, strides: list[int]) -> None:
    """However the steps grow, triggers are the interval apart or more, and none is later than it could be."""
    timer = SecondOrStepTimer(every_steps=every)
    step, triggered = first, []
    for stride in [0, *strides]:
        step += stride
        if timer.should_trigger_for_step(step):
            timer.update_last_triggered_step(step)
            triggered.append(step)
        assert step - triggered[-1] < every
    assert all(later - earlier >= every for earlier, later in pairwise(triggered))
