"""Bridge: plain functions called in the event loop of another thread, without either waiting for the other."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING, Any

from asyncstep._runtime.pace import runs_on_asyncio

if TYPE_CHECKING:
    from collections.abc import Callable

    Wake = Callable[[Callable[[], None]], object]

logger: logging.Logger = logging.getLogger("asyncstep")


class Bridge:
    """Calls functions in one event loop, in the order in which it was told to, from any thread.

    Calls that come after the end of the loop are dropped.

    Args:
        wake: has a function called in the loop, soon; RuntimeError when the loop has ended.
    """

    __slots__ = ("_calls", "_wake", "_woken")

    def __init__(self, wake: Wake) -> None:
        self._wake = wake
        self._calls = deque[tuple["Callable[..., object]", tuple[Any, ...]]]()
        self._woken = False

    def call(self, function: Callable[..., object], *args: Any) -> None:
        """Have a function called, which must raise nothing. Does not wait."""
        self._calls.append((function, args))
        # Waking a loop costs a system call, so it is done once for all that is told before the loop gets to it.
        # `_run` clears the flag before it counts the calls: whoever finds the flag set is among those counted.
        if not self._woken:
            self._woken = True
            try:
                self._wake(self._run)
            except RuntimeError:
                self._calls.clear()

    def _run(self) -> None:
        self._woken = False
        for _ in range(len(self._calls)):
            function, args = self._calls.popleft()
            try:
                function(*args)
            except Exception:
                logger.exception("A call between two event loops failed")


def bridge_to(loop: asyncio.AbstractEventLoop) -> Bridge:
    """A bridge to a loop of asyncio."""
    return Bridge(loop.call_soon_threadsafe)


def bridge_here() -> Bridge:
    """A bridge to the event loop that is running here, and to this context."""
    if runs_on_asyncio():
        # Without the context anyio would not know, in the functions that are called, which event loop it is.
        return Bridge(partial(asyncio.get_running_loop().call_soon_threadsafe, context=copy_context()))
    import trio

    return Bridge(trio.lowlevel.current_trio_token().run_sync_soon)
