"""How an op's function is called: off the event loop, limited, timed, retried."""

from __future__ import annotations

import functools
import signal
import sys
from types import CoroutineType
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_process
import anyio.to_thread
import tenacity

from asyncstep._runtime.trace import WAIT, active, traced
from asyncstep.errors import DeadlineExceededError, InvalidTypeError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from asyncstep._graph.op import Op, OpNode


def call_of(node: OpNode[Any]) -> tuple[Callable[..., Any], bool]:
    """What to call for a node, and whether it is to be awaited."""
    op, options = node.op, node.op.options
    if options.plain:
        return (op.function, True) if op.is_async else (_checked(op.function, node.name), False)
    call: Callable[..., Awaitable[Any]] = offloaded(op)
    if options.timeout is not None:
        call = _timed(call, options.timeout, node.name)
    if options.limiter is not None:
        call = _limited(call, options.limiter)
    if options.retry is not None:
        call = _retried(call, options.retry)
    return call, True


def _checked(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """A `def` function that must not return a coroutine, which nobody would await, nor raise StopIteration."""

    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            value = function(*args, **kwargs)
        except StopIteration as stop:
            raise RuntimeError("a function raised StopIteration, which cannot leave a coroutine") from stop
        refuse_coroutine(value, f"the op of the node {name!r}")
        return value

    return call


def refuse_coroutine(value: object, what: str) -> None:
    """Close and refuse a coroutine where a value was to be returned."""
    if isinstance(value, CoroutineType):
        value.close()
        raise InvalidTypeError(f"{what} returned a coroutine; make the function `async def`")


def offloaded(op: Op[Any, Any]) -> Callable[..., Awaitable[Any]]:
    """The op's function, called where it is to run."""
    if op.options.offload == "thread":

        async def in_thread(*args: Any, **kwargs: Any) -> Any:
            # Abandoned on cancellation: what it returns is of no use to a step that is rolled back.
            return await anyio.to_thread.run_sync(
                functools.partial(op.function, *args, **kwargs), abandon_on_cancel=True
            )

        return in_thread
    if op.options.offload == "process":
        target = _picklable(op)

        async def in_process(*args: Any, **kwargs: Any) -> Any:
            return await _run_in_process(functools.partial(_call_in_process, target, args, kwargs))

        return in_process
    if op.is_async:
        function: Callable[..., Awaitable[Any]] = op.function
        return function

    async def inline(*args: Any, **kwargs: Any) -> Any:  # noqa: ASYNC910 - it is the node of a run, which has one
        return op.function(*args, **kwargs)

    return inline


_STARTS = 3
"""How often a worker process is started for one call, if it ends before it is ready."""


async def _run_in_process(call: Callable[[], Any]) -> Any:
    """Call in a worker process. Checkpoint: always.

    A worker that ends while it starts has called nothing, so another is started: a Ctrl-C reaches it too
    early for `_call_in_process` to ignore it, and must not fail the step that waits for it (contract C6).
    """
    for start in range(1, _STARTS + 1):
        try:
            return await anyio.to_process.run_sync(call, cancellable=True)
        except anyio.BrokenWorkerProcess as error:
            if start == _STARTS or "initialization" not in str(error):
                raise


def _picklable(op: Op[Any, Any]) -> Callable[..., Any] | tuple[str, str]:
    """The function, or its address where its name now means the op that was made of it."""
    found: object = sys.modules.get(op.function.__module__)
    for part in op.function.__qualname__.split("."):
        found = getattr(found, part, None)
    return (op.function.__module__, op.function.__qualname__) if found is op else op.function


def _call_in_process(
    target: Callable[..., Any] | tuple[str, str], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    # A terminal sends Ctrl-C to the whole process group. What it means is decided in the session's process:
    # after a first one the step in flight finishes and commits (contract C6, W1), so it must not fail here.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if isinstance(target, tuple):
        module, path = target
        found: Any = sys.modules.get(module) or __import__(module, fromlist=["_"])
        for part in path.split("."):
            found = getattr(found, part)
        return found.function(*args, **kwargs)
    return target(*args, **kwargs)


def _timed(call: Callable[..., Awaitable[Any]], seconds: float, name: str) -> Callable[..., Awaitable[Any]]:
    async def timed(*args: Any, **kwargs: Any) -> Any:
        with anyio.move_on_after(seconds) as scope:
            return await call(*args, **kwargs)
        if scope.cancelled_caught:
            raise DeadlineExceededError(f"the node {name!r} took longer than its timeout of {seconds:g} s")

    return timed


def _limited(
    call: Callable[..., Awaitable[Any]], limiter: anyio.CapacityLimiter
) -> Callable[..., Awaitable[Any]]:
    async def limited(*args: Any, **kwargs: Any) -> Any:
        # On behalf of the call, not of the task: one task may evaluate several nodes with one limiter.
        borrower = object()
        async with _Borrowed(limiter, borrower):
            return await call(*args, **kwargs)

    return limited


class _Borrowed:
    """A token of a limiter for the length of a block."""

    def __init__(self, limiter: anyio.CapacityLimiter, borrower: object) -> None:
        self.limiter = limiter
        self.borrower = borrower

    async def __aenter__(self) -> None:
        with traced("wait for the limiter", WAIT):
            await self.limiter.acquire_on_behalf_of(self.borrower)

    async def __aexit__(self, *_: object) -> None:  # noqa: ASYNC910 - giving back does not wait
        self.limiter.release_on_behalf_of(self.borrower)


def _retried(call: Callable[..., Awaitable[Any]], retry: Any) -> Callable[..., Awaitable[Any]]:
    policy = (
        tenacity.AsyncRetrying(
            stop=tenacity.stop_after_attempt(retry),
            wait=tenacity.wait_exponential(multiplier=0.1, max=30.0) + tenacity.wait_random(0.0, 0.1),
            sleep=anyio.sleep,
        )
        if isinstance(retry, int)
        else retry
    )

    async def retried(*args: Any, **kwargs: Any) -> Any:
        last: tuple[Exception, Any] | None = None

        async def once() -> Any:
            nonlocal last
            last = None
            try:
                return await call(*args, **kwargs)
            except Exception as error:
                last = (error, error.__traceback__)
                raise

        try:
            attempts: Any = policy.copy()
            if active.get() is not None:
                attempts.sleep = _recorded_sleep(attempts.sleep)
            return await attempts(once)
        except Exception:
            if last is None:
                raise
        # Raised anew with the traceback of the attempt alone: the policy's own frames hold the error, and
        # would keep it alive in a cycle (contract E5).
        error, trace = last
        last = None
        try:
            raise error.with_traceback(trace)
        finally:
            del error, trace

    return retried


def _recorded_sleep(sleep: Callable[[float], Awaitable[None]]) -> Callable[[float], Awaitable[None]]:
    async def recorded_sleep(seconds: float) -> None:
        with traced("wait for the next attempt", WAIT):
            await sleep(seconds)

    return recorded_sleep
