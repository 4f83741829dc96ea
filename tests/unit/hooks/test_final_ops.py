"""`FinalOpsHook`: what is evaluated when a session ends."""

from __future__ import annotations

import pytest

from asyncstep import Graph, MonitoredSession, OutOfRangeError, Variable, placeholder, source
from asyncstep.hooks import FinalOpsHook

pytestmark = pytest.mark.anyio


async def step() -> None:
    """A step that does nothing."""


async def test_the_values_at_the_end() -> None:
    """Fetches are evaluated once after the last step, in their nesting; before that there are no values."""
    with Graph():
        total = Variable(0, name="total")
        add = total.assign_add(2)
        hook = FinalOpsHook({"total": total, "again": ["total"]})
        session = MonitoredSession(hooks=[hook])
    async with session:
        await session.run(add)
        await session.run(add)
        before = hook.final_ops_values
    assert (before, hook.final_ops_values) == (None, {"total": 4, "again": [4]})


async def test_the_end_is_no_step() -> None:
    """The evaluation calls no hooks and does not count as a step, and what it writes is committed."""
    with Graph():
        total = Variable(0, name="total")
        later = FinalOpsHook(total)
        session = MonitoredSession(hooks=[later, FinalOpsHook(total.assign_add(5))])
    async with session:
        await session.run(step)
    assert (session.global_step, later.final_ops_values) == (1, 5)


async def test_feeds() -> None:
    """The feed dict is given to the evaluation, by node or name."""
    with Graph():
        number = placeholder("number")
        hook = FinalOpsHook(number, {"number": 7})
        session = MonitoredSession(hooks=[hook])
    async with session:
        pass
    assert hook.final_ops_values == 7


async def test_an_error_leaves_no_values() -> None:
    """A session that ends with an error evaluates nothing."""
    with Graph():
        hook = FinalOpsHook(Variable(1, name="one"))
        session = MonitoredSession(hooks=[hook])
    with pytest.raises(ZeroDivisionError):
        async with session:
            raise ZeroDivisionError
    assert hook.final_ops_values is None


async def test_values_are_of_the_latest_session() -> None:
    """A hook that is used again forgets the values of the session before."""
    with Graph() as graph:
        hook = FinalOpsHook(Variable(1, name="one"))
    seen = []
    for _ in range(2):
        with graph:
            session = MonitoredSession(hooks=[hook])
        async with session:
            seen.append(hook.final_ops_values)
    assert (seen, hook.final_ops_values) == ([None, None], 1)


async def test_data_that_has_ended_is_said_so() -> None:
    """final_ops that take from a source that has ended raise OutOfRangeError, with a note that says so."""
    with Graph():
        items = source([1], name="items")
        session = MonitoredSession(hooks=[FinalOpsHook(items)])

    async def take_all() -> None:
        async with session:
            while True:
                await session.run(items)

    with pytest.raises(OutOfRangeError) as caught:
        await take_all()
    assert any("FinalOpsHook" in note for note in caught.value.__notes__)
