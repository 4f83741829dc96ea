"""How a launch ends that does not just return: errors, cancellation, time, and what cannot be sent."""

from __future__ import annotations

import logging
import sys
import threading
import types
from collections.abc import Iterator
from functools import partial
from typing import Any

import anyio
import dask
import pytest
from distributed import Client, LocalCluster
from distributed.security import Security

import asyncstep
from asyncstep import (
    DeadlineExceededError,
    FailedPreconditionError,
    InvalidArgumentError,
    UnavailableError,
)
from asyncstep.distributed import TaskInfo, alaunch, launch
from asyncstep.errors import InvalidTypeError
from asyncstep.hooks import FinalOpsHook, SignalHook

BACKENDS = ["asyncio", "uvloop", "trio"]


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    """Two Dask workers in this process, with one thread each, that speak TCP."""
    with LocalCluster(
        n_workers=2, threads_per_worker=1, processes=False, host="tcp://127.0.0.1", dashboard_address=":0"
    ) as cluster:
        yield cluster


async def index_of(task: TaskInfo) -> int:
    """The shortest program."""
    return task.index


async def rest(ctx: asyncstep.StepContext) -> None:
    """A step that does nothing for a while."""
    await anyio.sleep(0.001)


class Unsendable:
    """Cannot be pickled."""

    def __reduce__(self) -> Any:
        raise TypeError("not this one")


class UnsendableError(Exception):
    """Cannot be loaded again: its class needs two arguments."""

    def __init__(self, first: int, second: int) -> None:
        super().__init__(f"{first} and {second}")


@pytest.mark.parametrize(
    ("program", "options", "kind", "message"),
    [
        (print, {}, InvalidTypeError, "program must be an async function of a TaskInfo"),
        (anyio.sleep_forever, {}, InvalidTypeError, "program must take one argument, its TaskInfo"),
        (index_of, {"workers": 0}, InvalidArgumentError, "workers must be an int of at least 1, not 0"),
        (index_of, {"workers": True}, InvalidArgumentError, "workers must be an int of at least 1, not True"),
        (
            index_of,
            {"backend": "curio"},
            InvalidArgumentError,
            "backend must be one of asyncio, uvloop, trio",
        ),
        (index_of, {"timeout": 0}, InvalidArgumentError, "timeout must be None or a positive number"),
        (index_of, {"cluster": 7}, InvalidTypeError, "cluster must be None, the address of a Dask scheduler"),
        (index_of, {"cluster": "scheduler"}, InvalidArgumentError, "not 'scheduler': missing port number"),
    ],
)
def test_wrong_arguments_are_refused(
    program: Any, options: dict[str, Any], kind: type[Exception], message: str
) -> None:
    """Before anything is started; the error says what was expected."""
    with pytest.raises(kind, match=message):
        launch(program, **{"workers": 1, **options})


def test_a_program_that_cannot_be_sent_is_refused(cluster: LocalCluster) -> None:
    """It says what to do."""
    lock = threading.Lock()

    async def program(task: TaskInfo) -> bool:
        return lock.locked()

    with pytest.raises(
        InvalidTypeError, match=r"program cannot be sent to other processes .*make in the program"
    ):
        launch(program, cluster, workers=1)


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_error_leaves_bare(cluster: LocalCluster, backend: str) -> None:
    """With the place as a note and the traceback there as its cause; the others' sessions are stopped by it."""

    async def program(task: TaskInfo) -> Any:
        with asyncstep.Graph():
            session = asyncstep.MonitoredTrainingSession(
                task.master, is_chief=task.is_chief, log_step_count_steps=None
            )
        async with session:
            if task.index == 1:
                raise KeyError("lost")
            await session.loop(rest)

    with pytest.raises(KeyError) as caught:
        launch(program, cluster, workers=3, backend=backend)
    assert caught.value.__notes__[-1].startswith("in the program of worker 1 of 3 on tcp://")
    assert 'raise KeyError("lost")' in str(caught.value.__cause__)


def test_several_errors_are_a_group(cluster: LocalCluster) -> None:
    """In the order of the indices."""

    async def program(task: TaskInfo) -> None:
        if task.index != 1:
            raise ValueError(task.index)

    with pytest.raises(ExceptionGroup, match="2 programs have failed") as caught:
        launch(program, cluster, workers=3)
    assert [error.args for error in caught.value.exceptions] == [(0,), (2,)]


def test_what_cannot_be_sent_back_is_named(cluster: LocalCluster) -> None:
    """Results and errors alike: who has returned or raised what, and why it is not here."""

    async def program(task: TaskInfo) -> Any:
        if task.index == 0:
            return Unsendable()
        raise UnsendableError(1, 2)

    with pytest.raises(ExceptionGroup) as caught:
        launch(program, cluster, workers=2)
    result, error = map(str, caught.value.exceptions)
    assert "worker 0 of 2" in result
    assert "Unsendable" in result
    assert "worker 1 of 2" in error
    assert "1 and 2" in error


@pytest.mark.parametrize("backend", BACKENDS)
def test_after_its_timeout_the_programs_are_cancelled(cluster: LocalCluster, backend: str) -> None:
    """They are waited for, and what one raises then is the cause."""

    async def program(task: TaskInfo) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            if task.is_chief:
                raise ValueError("cancelled")

    with pytest.raises(DeadlineExceededError, match=r"after 1 s, launch's timeout") as caught:
        launch(program, cluster, workers=2, backend=backend, timeout=1)
    assert isinstance(caught.value.__cause__, ValueError)


@pytest.mark.anyio
async def test_alaunch_is_cancelled_with_its_programs(cluster: LocalCluster) -> None:
    """C3: whoever cancels it gets on when the programs have ended; asyncio and trio."""
    ended: list[int] = []
    started = threading.Semaphore(0)
    key = id(ended)
    running[key] = started, ended

    async def program(task: TaskInfo) -> None:
        from tests_running import running

        begun, over = running[key]
        begun.release()
        try:
            await anyio.sleep_forever()
        finally:
            over.append(task.index)

    async with anyio.create_task_group() as group:
        group.start_soon(partial(alaunch, program, cluster, workers=2, backend="trio"))
        for _ in range(2):
            await anyio.to_thread.run_sync(started.acquire)
        group.cancel_scope.cancel()
    assert sorted(ended) == [0, 1]


running: dict[int, tuple[threading.Semaphore, list[int]]] = {}
"""What programs that run in this process share with the test: they are sent by value, so not their globals."""


@pytest.fixture(autouse=True)
def shared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let programs import `running`."""
    module: Any = types.ModuleType("tests_running")
    module.running = running
    monkeypatch.setitem(sys.modules, "tests_running", module)


def test_a_scheduler_that_is_not_there_is_told() -> None:
    """After the time that Dask's configuration has for it."""
    with dask.config.set({"distributed.comm.timeouts.connect": 0.3}):
        with pytest.raises(UnavailableError, match="no Dask scheduler could be reached"):
            launch(index_of, "tcp://127.0.0.1:1", workers=1)


def test_a_client_is_left_open(cluster: LocalCluster) -> None:
    """And may launch again; what launch has not opened it does not close."""
    with Client(cluster, set_as_default=False) as client:
        assert [launch(index_of, client, workers=2) for _ in range(2)] == [[0, 1], [0, 1]]
        assert client.status == "running"


def test_a_cluster_may_speak_tls() -> None:
    """The connections between programs are those of Dask, with its security."""
    pytest.importorskip("cryptography")
    with LocalCluster(
        n_workers=2,
        threads_per_worker=1,
        processes=False,
        protocol="tls",
        host="127.0.0.1",
        security=Security.temporary(),
        dashboard_address=":0",
    ) as cluster:
        assert cluster.scheduler_address.startswith("tls://")
        assert launch(total_of_ten, cluster, workers=2) == [10, None]


async def total_of_ten(task: TaskInfo) -> int | None:
    """Each item counts once, whoever does it."""
    with asyncstep.Graph():
        item = asyncstep.source(range(10), name="items")
        total = asyncstep.Variable(0, name="total")
        add = total.update(lambda value, _: value + 1, item)
        seen = FinalOpsHook(total)
        session = asyncstep.MonitoredTrainingSession(
            task.master,
            is_chief=task.is_chief,
            log_step_count_steps=None,
            hooks=[SignalHook()],
            chief_only_hooks=[seen],
        )

    async def step(ctx: asyncstep.StepContext) -> None:
        await ctx.run_with_hooks(add)

    async with session:
        await session.loop(step)
    return seen.final_ops_values


def test_a_signal_hook_is_no_error_in_a_program(
    cluster: LocalCluster, caplog: pytest.LogCaptureFixture
) -> None:
    """C6: nothing changes but how it is started; it says that launch takes the signals."""
    with caplog.at_level(logging.INFO, logger="asyncstep"):
        assert launch(total_of_ten, cluster, workers=2) == [10, None]
    assert "SignalHook takes none here" in caplog.text


@pytest.mark.parametrize("workers", [1, 20])
def test_there_may_be_more_programs_than_threads(cluster: LocalCluster, workers: int) -> None:
    """All of them run at the same time."""

    async def program(task: TaskInfo) -> int:
        with asyncstep.Graph():
            session = asyncstep.MonitoredTrainingSession(
                task.master, is_chief=task.is_chief, log_step_count_steps=None
            )
            count = asyncstep.Variable(0, name="count")
            add = count.assign_add(1)
        async with session:
            await session.run(add)
            while await session.run(count) < task.num_workers:
                await anyio.sleep(0.01)
            return task.index

    assert launch(program, cluster, workers=workers) == list(range(workers))


def test_another_sessions_master_is_refused(cluster: LocalCluster) -> None:
    """What a program is given is what its sessions need."""

    async def program(task: TaskInfo) -> None:
        if not task.is_chief:
            asyncstep.MonitoredTrainingSession(task.master + "x", is_chief=False)

    with pytest.raises(InvalidArgumentError, match=r"must be TaskInfo\.master"):
        launch(program, cluster, workers=2)


def test_a_second_session_is_refused(cluster: LocalCluster) -> None:
    """A program has one that takes part in the state."""

    async def program(task: TaskInfo) -> None:
        for _ in range(2):
            with asyncstep.Graph():
                session = asyncstep.MonitoredTrainingSession(task.master, log_step_count_steps=None)
            async with session:
                pass

    with pytest.raises(FailedPreconditionError, match="launch another program for the next one"):
        launch(program, cluster, workers=1)
