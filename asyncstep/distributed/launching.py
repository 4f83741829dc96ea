"""`launch` and `alaunch`: the same program on every worker of a job."""

from __future__ import annotations

import asyncio
import concurrent.futures
import inspect
import math
import time
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import anyio
import anyio.to_thread
import cloudpickle
import dask

from asyncstep.distributed.bridge import bridge_here
from asyncstep.distributed.clusters import check_cluster, connected
from asyncstep.distributed.launched import LaunchedJob
from asyncstep.distributed.outcome import Cancelled, Failed, Returned
from asyncstep.distributed.runner import BACKENDS
from asyncstep.errors import (
    DeadlineExceededError,
    InvalidArgumentError,
    InvalidTypeError,
    UnavailableError,
    kind_of,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from concurrent.futures import Future

    from distributed import Client
    from distributed.deploy import Cluster

    from asyncstep.distributed.outcome import Outcome
    from asyncstep.distributed.task import TaskInfo

    Program = Callable[[TaskInfo], Awaitable[Any]]

T = TypeVar("T")

LONGEST_WAIT = 0.2
"""Seconds that a signal may wait until it is handled."""


def launch(
    program: Callable[[TaskInfo], Awaitable[T]],
    cluster: str | Client | Cluster | None = None,
    *,
    workers: int,
    backend: str = "asyncio",
    timeout: float | None = None,
) -> list[T]:
    """Run a program once on each worker of a job, and return what each has returned, by index.

    Args:
        program: ``async def program(task: TaskInfo)``; it is sent with cloudpickle.
        cluster: the address of a Dask scheduler, a Dask client or cluster; None: processes of this machine.
        workers: how many programs there are; there may be more of them than Dask workers.
        backend: what each program's event loop is: asyncio, uvloop or trio.
        timeout: seconds from the start of the programs until they are cancelled.

    A program whose process dies is started again, with the same index. When one fails, the sessions of the others are
    stopped, and their programs waited for. On Ctrl-C the programs are cancelled and waited for; the second Ctrl-C does
    not wait.

    Raises:
        DeadlineExceededError: after `timeout`.
        UnavailableError: the cluster cannot be reached or is gone, or the processes of a program die again and again
            while the job makes no progress.
        FailedPreconditionError: the cluster has no asyncstep, or another one.
        InvalidArgumentError, InvalidTypeError: of the arguments; nothing was started.
        Exception: what one program has raised; an ExceptionGroup if several have.
    """
    check_launch(program, cluster, workers, backend, timeout)
    with connected(cluster, workers) as client:
        return Running(client, make_job(client, program, workers, backend)).finish(timeout)


class Running:
    """A launch that is under way, for the thread that waits for it.

    Args:
        client: the Dask client, which is open.
        job: the programs, which are started now.
    """

    def __init__(self, client: Client, job: LaunchedJob) -> None:
        self._client = client
        self._job = job
        self._outcomes: Future[list[Outcome]] = start(client, job.run())

    def stop(self, kind: str, message: str, origin: str) -> None:
        """Have the sessions of all programs stop. Does not wait, so a signal handler may call it."""
        start(self._client, self._job.stop(kind, message, origin))

    def finish(self, timeout: float | None) -> list[Any]:
        """Wait for the ends of the programs; what they have returned, or the error, as `launch` does it."""
        done = self._ended_within(timeout)
        if not done:
            start(self._client, self._job.cancel())
            self._ended_within(None)
        return results(self._outcomes.result(), None if done else timeout)

    def _ended_within(self, timeout: float | None) -> bool:
        try:
            return wait_for(self._outcomes, timeout)
        except BaseException:
            start(self._client, self._job.cancel())
            try:
                wait_for(self._outcomes, None)
            finally:
                self._outcomes.cancel()
            raise


async def alaunch(
    program: Callable[[TaskInfo], Awaitable[T]],
    cluster: str | Client | Cluster | None = None,
    *,
    workers: int,
    backend: str = "asyncio",
    timeout: float | None = None,  # noqa: ASYNC109 - the public name
) -> list[T]:
    """`launch`, awaited; on asyncio and trio, whatever `backend` is.

    Cancelling it cancels the programs and waits for them. Checkpoint: always.
    """
    check_launch(program, cluster, workers, backend, timeout)
    connection = connected(cluster, workers)
    client = await anyio.to_thread.run_sync(connection.__enter__)
    try:
        job = make_job(client, program, workers, backend)
        done = anyio.Event()
        here = bridge_here()
        running = start(client, job.run())
        running.add_done_callback(lambda _: here.call(done.set))
        try:
            with anyio.move_on_after(timeout) as scope:
                await done.wait()
        finally:
            if not done.is_set():
                start(client, job.cancel())
                with anyio.CancelScope(shield=True):
                    await done.wait()
        return results(running.result(), timeout if scope.cancelled_caught else None)
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(partial(connection.__exit__, None, None, None))


def check_launch(program: object, cluster: object, workers: object, backend: object, timeout: object) -> None:
    """Check the arguments of `launch`."""
    if not inspect.iscoroutinefunction(program) and not inspect.iscoroutinefunction(
        getattr(program, "__call__", None)
    ):
        raise InvalidTypeError(f"program must be an async function of a TaskInfo, not {kind_of(program)}")
    try:
        inspect.signature(program).bind(None)  # type: ignore[arg-type]
    except TypeError as error:
        raise InvalidTypeError(f"program must take one argument, its TaskInfo: {error}") from None
    except ValueError:
        pass  # it has no signature
    check_cluster(cluster)
    if type(workers) is not int or workers < 1:
        raise InvalidArgumentError(f"workers must be an int of at least 1, not {workers!r}")
    if backend not in BACKENDS:
        raise InvalidArgumentError(f"backend must be one of {', '.join(BACKENDS)}, not {backend!r}")
    if timeout is not None and (not isinstance(timeout, int | float) or not timeout > 0):
        raise InvalidArgumentError(f"timeout must be None or a positive number of seconds, not {timeout!r}")


def make_job(client: Client, program: Program, workers: int, backend: str) -> LaunchedJob:
    """The job of a launch, which is not started yet."""
    function = getattr(program, "func", program)  # of a partial
    name = getattr(function, "__name__", type(program).__name__)
    lease = float(dask.config.get("asyncstep.lease", 30))
    try:
        pickled = cloudpickle.dumps(program)
    except Exception as error:  # pickle says so in many ways
        raise InvalidTypeError(
            f"{name} cannot be sent to other processes with cloudpickle: {error}; make in the program what cannot be"
            " sent, or put the program into a module that every process can import"
        ) from error
    return LaunchedJob(client, pickled, name, workers=workers, backend=backend, lease=lease)


def start(client: Client, coroutine: Any) -> Future[Any]:
    """Have something awaited in the client's event loop."""
    return asyncio.run_coroutine_threadsafe(coroutine, client.loop.asyncio_loop)


def wait_for(future: Future[Any], timeout: float | None) -> bool:
    """Wait until a future is done; False if it is not after so many seconds.

    The system may give a signal to any thread of the process. Only the main one runs what Python has set to handle it,
    and if another one took it, not before its own waiting ends: so it waits for a short time only, again and again.
    """
    end = math.inf if timeout is None else time.monotonic() + timeout
    while not future.done():
        left = end - time.monotonic()
        if left <= 0:
            return False
        concurrent.futures.wait([future], min(left, LONGEST_WAIT))
    return True


def results(outcomes: list[Outcome], timed_out: float | None) -> list[Any]:
    """What the programs have returned, or the error of the launch."""
    errors = [outcome.error for outcome in outcomes if isinstance(outcome, Failed)]
    if timed_out is not None:
        late = DeadlineExceededError(f"the programs were cancelled after {timed_out:g} s, launch's timeout")
        raise late from (_as_one(errors) if errors else None)
    if errors:
        raise _as_one(errors)
    if any(isinstance(outcome, Cancelled) for outcome in outcomes):
        raise UnavailableError("the programs were cancelled, and not by this launch")
    return [outcome.value for outcome in outcomes if isinstance(outcome, Returned)]


def _as_one(errors: list[BaseException]) -> BaseException:
    if len(errors) == 1:
        return errors[0]
    return BaseExceptionGroup(f"{len(errors)} programs have failed", errors)
