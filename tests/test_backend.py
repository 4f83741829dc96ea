"""A guard: a test that says it runs on a backend runs on that backend."""

from __future__ import annotations

import asyncio
import sys

import pytest
import sniffio


@pytest.mark.anyio
async def test_the_backend_that_runs_is_the_one_that_was_asked_for(
    request: pytest.FixtureRequest,
) -> None:
    """With two async plugins installed, `[trio]` in a test's name must mean that trio runs it."""
    asked = request.node.callspec.id
    if asked == "trio":
        assert sniffio.current_async_library() == "trio"
        return
    assert sniffio.current_async_library() == "asyncio"
    loop = type(asyncio.get_running_loop()).__module__
    assert ("uvloop" in sys.modules and loop.startswith("uvloop")) == (asked == "uvloop")


@pytest.mark.asyncio
async def test_native_tests_run_on_plain_asyncio() -> None:
    """The tests for native cancels (pytest-asyncio, strict mode) run on asyncio's own loop."""
    assert sniffio.current_async_library() == "asyncio"
    assert type(asyncio.get_running_loop()).__module__.startswith("asyncio")
