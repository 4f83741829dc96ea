"""What a session knows of anyio's inside (contract R9)."""

from __future__ import annotations

import asyncio
import math
from collections import defaultdict
from typing import Any
from weakref import WeakKeyDictionary, ref

import anyio
import pytest
from anyio._backends import _asyncio

from asyncstep._runtime.pace import Pace, anyio_scope_states

pytestmark = pytest.mark.asyncio


class Renamed(WeakKeyDictionary[Any, Any]):
    """A record of tasks in which scopes have another name."""

    def __init__(self) -> None:
        super().__init__()
        self.data: Any = defaultdict(object)


def starts_due() -> bool:
    """Whether a run asks anyio for cancellations though its millisecond is not over, and none is to be seen."""
    pace = Pace()
    pace.start()
    pace.due = math.inf
    return pace.is_due()


async def test_this_anyio_is_laid_out_as_expected() -> None:
    """Runs look at the record of the anyio that is installed, in a scope or not; trying it leaves no trace."""
    assert starts_due() is False
    with anyio.CancelScope() as scope:
        assert starts_due() is False
        states = anyio_scope_states()
        assert states is not None
        assert states[ref(asyncio.current_task())].cancel_scope is scope


@pytest.mark.parametrize("record", [Renamed(), None], ids=["renamed", "gone"])
async def test_another_layout_is_found_out(record: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where anyio keeps its record otherwise, runs ask anyio's public function."""
    if record is None:
        monkeypatch.delattr(_asyncio, "_task_states")
    else:
        monkeypatch.setattr(_asyncio, "_task_states", record)
    assert anyio_scope_states() is None
    assert starts_due() is True


async def test_each_task_is_asked_for_its_own_scopes() -> None:
    """R9: a pace that tasks share sees a scope that its own task has cancelled, in whichever order they come."""
    pace = Pace()
    pace.start()
    pace.due = math.inf
    seen: list[bool] = []
    turns = [anyio.Event() for _ in range(3)]

    async def other() -> None:
        await turns[0].wait()
        seen.append(pace.is_due())
        with anyio.CancelScope() as scope:
            scope.cancel()
            seen.append(pace.is_due())
            with anyio.CancelScope(shield=True):
                seen.append(pace.is_due())
                turns[1].set()
                await turns[2].wait()
                seen.append(pace.is_due())

    async with anyio.create_task_group() as group:
        group.start_soon(other)
        with anyio.CancelScope() as scope:
            seen.append(pace.is_due())
            turns[0].set()
            await turns[1].wait()
            seen.append(pace.is_due())
            scope.cancel()
            seen.append(pace.is_due())
        seen.append(pace.is_due())
        turns[2].set()
    assert seen == [False, False, True, False, False, True, False, False]
