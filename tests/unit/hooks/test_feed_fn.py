"""`FeedFnHook`: feeds that are made for every run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anyio
import pytest

from asyncstep import Graph, MonitoredSession, placeholder
from asyncstep.errors import InvalidArgumentError, InvalidTypeError
from asyncstep.hooks import FeedFnHook

pytestmark = pytest.mark.anyio


def fed_by(feed_fn: Any) -> MonitoredSession:
    """A session with a placeholder ``x`` that a function feeds."""
    with Graph():
        placeholder("x")
        return MonitoredSession(hooks=[FeedFnHook(feed_fn)])


async def test_each_run_is_fed_anew() -> None:
    """feed_fn is called once before each run."""
    numbers = iter(range(10))
    async with fed_by(lambda: {"x": next(numbers)}) as session:
        results = [await session.run("x") for _ in range(3)]
    assert results == [0, 1, 2]


async def test_an_async_feed_fn_is_awaited() -> None:
    """feed_fn may be a coroutine function."""

    async def read() -> dict[str, int]:
        await anyio.lowlevel.checkpoint()
        return {"x": 5}

    async with fed_by(read) as session:
        assert await session.run("x") == 5


async def test_calls_overlap_with_their_runs() -> None:
    """Two runs that overlap are fed each by its own call, whichever is done first."""
    first_asked, go_on = anyio.Event(), anyio.Event()
    calls: Iterator[int] = iter([1, 2])
    results: dict[str, int] = {}

    async def read() -> dict[str, int]:
        number = next(calls)
        if number == 1:
            first_asked.set()
            await go_on.wait()
        return {"x": number}

    async def run(name: str) -> None:
        results[name] = await session.run("x")

    async with fed_by(read) as session, anyio.create_task_group() as tasks:
        tasks.start_soon(run, "first")
        await first_asked.wait()
        await run("second")
        go_on.set()
    assert results == {"second": 2, "first": 1}


async def test_a_feed_of_the_caller_conflicts() -> None:
    """A node fed by the caller and by feed_fn is an error that names it (contract R5)."""
    with pytest.raises(InvalidArgumentError, match="'x'"):
        async with fed_by(lambda: {"x": 1}) as session:
            await session.run("x", {"x": 2})


async def test_what_is_no_feed_dict_is_refused() -> None:
    """A feed_fn that forgets to return its dict is told so."""
    with pytest.raises(InvalidTypeError, match="feed_fn must give a feed dict, got a NoneType"):
        async with fed_by(lambda: None) as session:
            await session.run("x")


def test_feed_fn_is_a_function() -> None:
    """A dict in place of the function is a TypeError at construction."""
    with pytest.raises(InvalidTypeError, match="feed_fn must be a function"):
        FeedFnHook({"x": 1})  # type: ignore[arg-type]
