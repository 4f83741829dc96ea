"""`NanHook`: what counts as NaN, and that a step with one leaves no trace."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections import OrderedDict
from decimal import Decimal
from typing import Any

import anyio
import pytest
from hypothesis import given, strategies as st

from asyncstep import Graph, MonitoredSession, Node, StepContext, StopKind, Variable, placeholder
from asyncstep.errors import InvalidTypeError, NanLossError
from asyncstep.hooks import NanHook
from asyncstep.hooks.nan import has_nan

NAN = math.nan


class Array:
    """Compares by element and has any(), as the arrays of numpy, torch and jax do."""

    def __init__(self, *elements: Any) -> None:
        self.elements = elements

    def __ne__(self, other: object) -> Any:
        assert isinstance(other, Array)
        return Array(*(mine != theirs for mine, theirs in zip(self.elements, other.elements, strict=True)))

    def any(self) -> bool:
        """Whether one element is true."""
        return any(self.elements)


@dataclasses.dataclass
class Losses:
    """Two losses, as fetches may be nested."""

    train: Any
    test: Any


@pytest.mark.parametrize(
    "value",
    [
        NAN,
        complex(0, NAN),
        Decimal("NaN"),
        Array(1.0, NAN),
        [0.0, NAN],
        (0.0, [NAN]),
        {"loss": NAN},
        OrderedDict(loss={"train": [NAN]}),
        Losses(train=0.0, test=NAN),
    ],
)
def test_what_is_nan(value: Any) -> None:
    """NaN of any number type, in an array, and at any depth of a nesting."""
    assert has_nan(value)


@pytest.mark.parametrize(
    "value",
    [
        0,
        1.5,
        math.inf,
        -math.inf,
        Decimal("Infinity"),
        Array(1.0, 2.0),
        Array(),
        [],
        {},
        Losses(1, 2),
        Losses,
        None,
        "nan",
    ],
)
def test_what_is_not_nan(value: Any) -> None:
    """Infinity, no elements, and what is no number are not NaN."""
    assert not has_nan(value)


@given(
    st.recursive(
        st.floats(allow_nan=False) | st.none() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
    ),
    st.booleans(),
)
def test_one_nan_anywhere_is_found(nesting: Any, planted: bool) -> None:
    """A nesting has a NaN exactly if one was put into it."""
    assert has_nan([nesting, NAN] if planted else [nesting]) is planted


def watched(hook_of: Any) -> tuple[MonitoredSession, Node[float]]:
    """A session that sets the variable ``w`` to what is fed as ``loss``, watched by a hook on ``loss``."""
    with Graph():
        loss = placeholder("loss")
        train = Variable(0.0, name="w").assign(loss)
        return MonitoredSession(hooks=[hook_of(loss)]), train


@pytest.mark.anyio
async def test_a_nan_step_is_rolled_back_and_raised() -> None:
    """The run raises NanLossError, naming the fetch; the state is that of the step before."""
    session, train = watched(NanHook)
    async with session:
        await session.run(train, {"loss": 0.5})
        with pytest.raises(NanLossError, match="loss is NaN"):
            await session.run(train, {"loss": NAN})
        left = await session.run_without_hooks(["w", "global_step"])
    assert left == [0.5, 1]


@pytest.mark.anyio
async def test_a_nan_step_ends_the_session_with_its_error() -> None:
    """NanLossError that nobody catches leaves the session as it is."""
    session, train = watched(NanHook)
    with pytest.raises(NanLossError):
        async with session:
            await session.run(train, {"loss": NAN})
    assert session.stop_reason is not None
    assert session.stop_reason.kind is StopKind.ERROR


@pytest.mark.anyio
async def test_a_nan_step_is_rolled_back_and_stops(caplog: pytest.LogCaptureFixture) -> None:
    """With fail=False the NaN step is rolled back too, with a warning, and the session ends cleanly."""
    session, train = watched(lambda loss: NanHook(loss, fail=False))
    done = []
    async with session:
        for value in (0.5, NAN, 0.25):
            await session.run(train, {"loss": value})
            done.append(value)
    assert (done, session.global_step) == ([0.5], 1)
    assert session.stop_reason is not None
    assert (session.stop_reason.kind, "loss" in session.stop_reason.message) == (StopKind.HOOK, True)
    [warning] = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "loss" in warning.getMessage()


@pytest.mark.anyio
async def test_what_the_variables_hold_after_a_nan_stop() -> None:
    """The state at the end of the session, and so in the last checkpoint, is that of the last sound step."""
    session, train = watched(lambda loss: NanHook(loss, fail=False))
    async with session:
        await session.run(train, {"loss": 0.5})
        try:
            await session.run(train, {"loss": NAN})
        finally:
            left = await session.run_without_hooks(["w", "loss"], {"loss": 1.0})
    assert left == [0.5, 1.0]


@pytest.mark.anyio
async def test_a_stop_by_several_workers_warns_once(caplog: pytest.LogCaptureFixture) -> None:
    """Steps in flight that are NaN too are rolled back without another warning."""
    with Graph():
        write = Variable(0.0, name="w").assign(1.0)
        session = MonitoredSession(hooks=[NanHook("loss", fail=False)])
        placeholder("loss", default=NAN)
    evaluated = anyio.Event()
    asked = 0

    async def both_under_way() -> None:
        if asked == 2:
            evaluated.set()
        await evaluated.wait()

    async def work(ctx: StepContext) -> None:
        nonlocal asked
        asked += 1
        await ctx.run_with_hooks([write, both_under_way])

    async with session:
        await session.loop(work, workers=2)
        left = await session.run_without_hooks("w")
    assert (left, session.global_step) == (0.0, 1)
    assert len([record for record in caplog.records if record.levelno == logging.WARNING]) == 1


@pytest.mark.anyio
async def test_sound_steps_pass() -> None:
    """Steps without NaN run on, infinite ones too."""
    session, train = watched(lambda loss: NanHook({"loss": loss}))
    async with session:
        results = [await session.run(train, {"loss": value}) for value in (1.0, -1.0, math.inf)]
    assert results == [1.0, -1.0, math.inf]


def test_a_loss_is_needed() -> None:
    """None in place of the loss, with which nothing would be watched, is a TypeError at construction."""
    with pytest.raises(InvalidTypeError, match="loss must be a fetch"):
        NanHook(None)
