"""Virtual time: a clock that stands still while anything runs, and jumps when all tasks wait for it.

On trio it is trio's own mock clock. On asyncio it is an event loop whose `time` is a number: where the loop
would sleep until the next timer is due, the number is set to when that is. What it cannot know is work that
happens elsewhere, in a thread or a worker process, so as long as there is some, it waits as any loop does.
"""

from __future__ import annotations

import asyncio
import math
import selectors
from typing import TYPE_CHECKING, Any, TypeVar, TypeVarTuple

import anyio

from asyncstep.errors import FailedPreconditionError, InvalidArgumentError
from asyncstep.testing.elsewhere import Elsewhere

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from concurrent.futures import Executor
    from contextvars import Context

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


def virtual_backend(name: str = "asyncio") -> tuple[str, dict[str, Any]]:
    """A backend of anyio on virtual time, for one run: its name and its options.

    The pair is what the fixture `anyio_backend` of anyio's pytest plugin gives, and what
    ``anyio.run(main, backend=name, backend_options=options)`` takes (on trio from anyio 4.14 on). The clock
    begins at 0 and jumps to the next deadline whenever all tasks wait, so that sleeps, timeouts, waits between
    retries and intervals of hooks take no time. Threads and worker processes that anyio runs are waited for in
    real time, and so is a checkpoint that is being written. Time does not wait for anything else outside:
    sockets, subprocesses, threads started by hand.

    Args:
        name: "asyncio" or "trio". uvloop keeps its time in C, so there is no virtual time on it.

    Raises:
        InvalidArgumentError: another name.
        FailedPreconditionError: trio is not installed.
    """
    if name == "asyncio":
        return "asyncio", {"loop_factory": _VirtualTimeLoop}
    if name == "trio":
        try:
            from asyncstep.testing.trio_clock import virtual_options
        except ImportError:
            raise FailedPreconditionError("trio is not installed: pip install 'asyncstep[trio]'") from None
        return "trio", virtual_options()
    hint = "; uvloop keeps its own time, test on 'asyncio'" if name == "uvloop" else ""
    raise InvalidArgumentError(f"there is virtual time on 'asyncio' and on 'trio', not on {name!r}{hint}")


def run_in_virtual_time(async_fn: Callable[[*Ts], Awaitable[T]], *args: *Ts, backend: str = "asyncio") -> T:
    """Run a program as ``anyio.run(async_fn, *args)`` does, on virtual time; see `virtual_backend`."""
    name, options = virtual_backend(backend)
    if name == "trio":
        import trio

        return trio.run(async_fn, *args, **options)  # anyio's own run forgot the options before 4.14
    return anyio.run(async_fn, *args, backend=name, backend_options=options)


class _VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An event loop on virtual time, in seconds since it was made."""

    def __init__(self) -> None:
        self._virtual_now = 0.0
        self._calls_in_executors = 0
        self._elsewhere = Elsewhere(self._wake)
        super().__init__(_Selector(self))
        # A timer is due if it is less than this away. It must be so much that a float of now can tell: the real
        # clock's nanosecond is too little after some days, and a clock that stands still would stay before the timer.
        self._clock_resolution = 1e-6

    def time(self) -> float:
        return self._virtual_now

    def jump(self, seconds: float) -> None:
        """Let so much time pass."""
        self._virtual_now += seconds

    def works_elsewhere(self) -> bool:
        """Whether threads or processes work for this loop, in real time."""
        return self._elsewhere.works() or self._calls_in_executors > 0

    def _wake(self) -> None:
        try:
            self.call_soon_threadsafe(int)
        except RuntimeError:
            pass  # the loop is closed

    def call_at(
        self, when: float, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """Call at a time; one that never comes is not waited for, so that the clock does not run to it."""
        if math.isinf(when):
            return asyncio.TimerHandle(when, callback, args, self, context)
        return super().call_at(when, callback, *args, context=context)

    def run_in_executor(
        self, executor: Executor | None, func: Callable[[*Ts], T], *args: *Ts
    ) -> asyncio.Future[T]:
        future = super().run_in_executor(executor, func, *args)
        self._calls_in_executors += 1
        future.add_done_callback(self._left_executor)
        return future

    def _left_executor(self, _: asyncio.Future[Any]) -> None:
        self._calls_in_executors -= 1

    async def shutdown_default_executor(self, *args: Any) -> None:
        """Wait for its threads, in real time: since Python 3.12 there is a timeout, too."""
        self._calls_in_executors += 1
        try:
            await super().shutdown_default_executor(*args)
        finally:
            self._calls_in_executors -= 1


class _Selector(selectors.DefaultSelector):
    """Jumps where another would sleep until the next timer is due."""

    def __init__(self, loop: _VirtualTimeLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None or timeout <= 0:
            return super().select(timeout)
        events = super().select(0)
        if events:
            return events
        if self._loop.works_elsewhere():
            return super().select(None)
        self._loop.jump(timeout)
        return []
