"""ThreadWork: one function at a time in a worker thread, whatever becomes of the task that waits for it."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import anyio
import anyio.from_thread
import anyio.to_thread

if TYPE_CHECKING:
    from collections.abc import Callable


class ThreadWork:
    """Calls functions in worker threads, never two at a time.

    A thread cannot be cancelled, and a native cancel pierces every shield. So a call goes on when the task
    that waits for it is cancelled; the next call begins when it is over.
    """

    def __init__(self) -> None:
        self._lock = anyio.Lock(fast_acquire=True)
        self._left: _Call | None = None

    async def run(self, function: Callable[[], None]) -> None:
        """Call `function`, which has to keep its results and its errors itself. Checkpoint: always."""
        async with self._lock:
            await self.idle()
            call = _Call(function)
            try:
                await anyio.to_thread.run_sync(call, abandon_on_cancel=True)
            except BaseException:
                call.leave()
                self._left = call
                raise

    async def idle(self) -> None:
        """Wait for the end of a call that nobody waits for any more. Checkpoint: if there is one."""
        if self._left is not None:
            await self._left.over_event.wait()
            self._left = None


class _Call:
    """A call that tells the event loop when it is over, if the task that waited for it has gone."""

    def __init__(self, function: Callable[[], None]) -> None:
        self.function = function
        self.over_event = anyio.Event()
        self.changing = threading.Lock()
        self.begun = False
        self.over = False
        self.left = False

    def __call__(self) -> None:
        with self.changing:
            if self.left:
                return
            self.begun = True
        try:
            self.function()
        finally:
            with self.changing:
                self.over = True
                tell = self.left
            if tell:
                try:
                    anyio.from_thread.run_sync(self.over_event.set)
                except RuntimeError:
                    pass  # the event loop has ended, so nobody waits

    def leave(self) -> None:
        """The task that waited for it has gone."""
        with self.changing:
            self.left = True
            if self.over or not self.begun:
                self.over_event.set()
