"""ThreadWork: one function at a time in a worker thread, whatever becomes of the task that waits for it."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import anyio
import anyio.from_thread
import anyio.to_thread

if TYPE_CHECKING:
    from collections.abc import Callable

KEPT: tuple[type[BaseException], ...] = (Exception, KeyboardInterrupt, SystemExit)
"""What a function that a thread calls has to keep, because nobody may wait for it when it raises.

A cancellation is not kept. It is that of a task that waited, and must not reach another one.
"""


class ThreadWork:
    """Calls functions in worker threads, never two at a time.

    A thread cannot be cancelled, and a native cancel pierces every shield. So a call goes on when the task
    that waits for it is cancelled, or let go; the next call begins when it is over.
    """

    def __init__(self) -> None:
        self._lock = anyio.Lock(fast_acquire=True)
        self._call: _Call | None = None

    @property
    def busy(self) -> bool:
        """Whether a call is not over."""
        return self._call is not None and not self._call.ended.is_set()

    async def run(self, function: Callable[[], None]) -> None:
        """Call `function`, which has to keep its results and its errors itself.

        Returns when it is over, or calls `let_go`. Checkpoint: always.
        """
        async with self._lock:
            await self.idle()
            self._call = call = _Call(function)
            try:
                with call.scope:
                    await anyio.to_thread.run_sync(call, abandon_on_cancel=True)
            finally:
                call.leave()

    async def wait(self, for_nothing: Callable[[], bool]) -> None:
        """Wait until the call that is under way is over, or calls `let_go`. Checkpoint: if it waits.

        Args:
            for_nothing: whether there is nothing to wait for any more. It is asked when `let_go` is heard
                already: so what the call does before it calls that is not missed.
        """
        if self._call is not None:
            await self._call.wait(for_nothing)

    async def idle(self) -> None:
        """Wait until no call is under way. Checkpoint: if there is one."""
        while self.busy:
            assert self._call is not None
            await self._call.ended.wait()

    async def out(self) -> None:
        """Wait until no thread is in a call, also if the event loop in which that began has ended meanwhile.

        Nobody may be about to make another call. Checkpoint: if a thread is in one.
        """
        call = self._call
        if call is not None and call.begun and not call.out.is_set():
            await anyio.to_thread.run_sync(call.out.wait, abandon_on_cancel=True)

    def let_go(self) -> None:
        """In the call: let the task that waits for it go on."""
        assert self._call is not None
        self._call.let_go()


class _Call:
    """A call in a worker thread, which outlives the task that made it."""

    def __init__(self, function: Callable[[], None]) -> None:
        self.function = function
        self.scope: anyio.CancelScope = anyio.CancelScope()  # in which the task that made the call waits
        self.ended = anyio.Event()
        self.out = threading.Event()
        self.changing = threading.Lock()
        self.begun = False
        self.over = False
        self.left = False
        self.awaited = True  # somebody waits, and has not been let go
        self.go_on: anyio.Event | None = None

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
            self.out.set()
            if tell:
                _in_event_loop(self._end)

    def leave(self) -> None:
        """In the event loop: the task that made the call waits for it no more."""
        with self.changing:
            self.left = True
            ended = self.over or not self.begun
        if ended:
            self._end()

    async def wait(self, for_nothing: Callable[[], bool]) -> None:
        """In the event loop: wait for its end, or to be let go."""
        if not self.ended.is_set():
            self.go_on = go_on = self.go_on or anyio.Event()
            self.awaited = True
            if not for_nothing():
                await go_on.wait()

    def let_go(self) -> None:
        """In the thread: let those that wait go on, if anybody waits."""
        if self.awaited:
            self.awaited = False
            _in_event_loop(self._go_on)

    def _end(self) -> None:
        self.ended.set()
        self._go_on()

    def _go_on(self) -> None:
        if not self.left:
            self.scope.cancel()
        if self.go_on is not None:
            self.go_on.set()
            self.go_on = None


def _in_event_loop(function: Callable[[], None]) -> None:
    try:
        anyio.from_thread.run_sync(function)
    except RuntimeError:
        pass  # the event loop has ended, so nobody waits
