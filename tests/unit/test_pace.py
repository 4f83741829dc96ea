"""What a session knows of anyio's inside (contract R9)."""

from __future__ import annotations

import asyncio
import math
from typing import Any
from weakref import WeakKeyDictionary

import anyio
import pytest
from anyio._backends import _asyncio

from asyncstep._runtime.pace import Pace, anyio_scope_states

pytestmark = pytest.mark.asyncio


class Renamed(WeakKeyDictionary[Any, Any]):
    """A record of tasks in which scopes have another name."""

    def get(self, key: Any, default: Any = None) -> Any:
        return object()


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
        assert states[asyncio.current_task()].cancel_scope is scope


@pytest.mark.parametrize("record", [Renamed(), None], ids=["renamed", "gone"])
async def test_another_layout_is_found_out(record: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where anyio keeps its record otherwise, runs ask anyio's public function."""
    if record is None:
        monkeypatch.delattr(_asyncio, "_task_states")
    else:
        monkeypatch.setattr(_asyncio, "_task_states", record)
    assert anyio_scope_states() is None
    assert starts_due() is True
