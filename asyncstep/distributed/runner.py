"""What one task of Dask does: run a program in an event loop of its own, in the task's thread."""

from __future__ import annotations

import asyncio
import math
import threading
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import cloudpickle
from distributed import get_worker, secede

from asyncstep._monitored.company import current_engine
from asyncstep.distributed.dask_link import DaskLink
from asyncstep.distributed.engine import JobEngine
from asyncstep.distributed.job import MAX_RESTARTS, Refusal, RefusedError
from asyncstep.distributed.line import Line
from asyncstep.distributed.outcome import Cancelled, Failed, Outcome, Returned, dump_outcome
from asyncstep.errors import UnavailableError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from distributed import Worker

    from asyncstep.distributed.task import TaskInfo

GRACE = 10.0
"""Seconds that a program has, once nothing can be done any more, to end by itself."""

BACKENDS: dict[str, tuple[str, dict[str, Any]]] = {
    "asyncio": ("asyncio", {"use_uvloop": False}),
    "uvloop": ("asyncio", {"use_uvloop": True}),
    "trio": ("trio", {}),
}


def run_program(program: bytes, job: str, task: TaskInfo, backend: str) -> bytes:
    """Run a program to its end.

    It is a plain function: Dask runs coroutine functions in the worker's own loop, which is always asyncio's, and where
    they would get in the way of its heartbeats.

    Args:
        program: the async function, pickled.
        job: the job's name.
        task: the program's place.
        backend: a key of `BACKENDS`.

    Returns:
        the `Outcome`, by `dump_outcome`.
    """
    # Without this the task would hold one of the worker's threads: as many programs as there are threads would run,
    # and the others wait for them to end.
    worker = get_worker()
    secede()
    where = f"the program of worker {task.index} of {task.num_workers} on {worker.contact_address}"
    thread = threading.current_thread()
    former, thread.name = thread.name, f"{job}-{task.index}"  # for %(threadName)s in the format of log lines
    try:
        return dump_outcome(_run(worker, program, job, task, backend, where), where)
    finally:
        thread.name = former


def _run(worker: Worker, program: bytes, job: str, task: TaskInfo, backend: str, where: str) -> Outcome:
    loop = worker.loop.asyncio_loop
    line = Line(worker, job, task.index)
    try:
        _in_dask(loop, line.open)
    except RefusedError as error:
        if error.args[0] is not Refusal.RESTARTS:
            return Cancelled()
        return Failed(
            UnavailableError(
                f"{where} was started again {MAX_RESTARTS} times, as its processes had died, and the job has made no"
                " progress in that time"
            )
        )
    except UnavailableError as error:
        return Failed(error)
    try:
        outcome = _run_in_loop(program, task, line, loop, backend)
        _report(outcome, task, line, loop)
    finally:
        _in_dask(loop, line.close)
    return outcome


def _run_in_loop(
    program: bytes, task: TaskInfo, line: Line, loop: asyncio.AbstractEventLoop, backend: str
) -> Outcome:
    name, options = BACKENDS[backend]
    try:
        function = cloudpickle.loads(program)
        return anyio.run(_main, function, task, line, loop, backend=name, backend_options=options)
    except BaseException as error:  # noqa: ASYNC103 - of loading it, or of the loop; the thread is Dask's
        return Failed(error)  # noqa: ASYNC104


async def _main(
    program: Callable[[TaskInfo], Awaitable[Any]], task: TaskInfo, line: Line, loop: asyncio.AbstractEventLoop
) -> Outcome:
    link = DaskLink(task, line, loop)
    outcome: Outcome | None = None
    async with anyio.create_task_group() as link.group:
        current_engine.set(JobEngine(link))
        try:
            with anyio.CancelScope() as scope:
                attend = partial(_attend, link, scope)
                link.listen(attend)
                attend()
                outcome = Returned(await program(task))
        except BaseException as error:  # noqa: ASYNC103 - a cancellation of the scope has ended there
            outcome = Failed(error)
        link.group.cancel_scope.cancel()
    if outcome is None:
        outcome = Cancelled() if link.failure is None else Failed(link.failure)
    return outcome


def _attend(link: DaskLink, scope: anyio.CancelScope) -> None:
    """Cancel the program if its job is cancelled, and some time after nothing can be done any more."""
    if link.cancelled or link.superseded:
        scope.cancel()
    elif link.failure is not None and scope.deadline == math.inf:
        scope.deadline = anyio.current_time() + GRACE


def _report(outcome: Outcome, task: TaskInfo, line: Line, loop: asyncio.AbstractEventLoop) -> None:
    """Tell the registry how a program has ended, unless that is because its Dask worker ends: it is started again."""
    if line.failure is not None:
        return
    try:
        if isinstance(outcome, Failed):
            message, origin = repr(outcome.error), f"the program of worker {task.index}"
            _in_dask(loop, partial(line.ask, "stop", kind="error", message=message, origin=origin))
        _in_dask(loop, line.finish)
    except (RefusedError, UnavailableError):
        pass  # nobody is there who would want to know


def _in_dask(loop: asyncio.AbstractEventLoop, function: Callable[[], Coroutine[Any, Any, Any]]) -> None:
    """Wait, in this thread, for a function in the Dask worker's loop."""
    coroutine = function()
    try:
        asyncio.run_coroutine_threadsafe(coroutine, loop).result()
    except RuntimeError as error:
        coroutine.close()
        raise UnavailableError(f"the Dask worker has ended: {error}") from error
