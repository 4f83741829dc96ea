"""`launch` and `alaunch`: where programs run, what they return, and how they end."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anyio
import pytest
from distributed import LocalCluster

import asyncstep
from asyncstep.distributed import TaskInfo, alaunch, launch
from asyncstep.distributed.engine import JobEngine

BACKENDS = ["asyncio", "uvloop", "trio"]


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    """Two Dask workers in this process, with one thread each, that speak TCP."""
    with LocalCluster(
        n_workers=2,
        threads_per_worker=1,
        processes=False,
        protocol="tcp",
        host="127.0.0.1",
        dashboard_address=":0",
    ) as cluster:
        yield cluster


@pytest.mark.parametrize("backend", BACKENDS)
def test_results_come_by_index(cluster: LocalCluster, backend: str) -> None:
    """Each program is told its place, and what it returns is in that place of the list."""

    async def program(task: TaskInfo) -> tuple[int, bool, int]:
        await anyio.sleep(0)
        return task.index, task.is_chief, task.num_workers

    results = launch(program, cluster, workers=3, backend=backend)
    assert results == [(0, True, 3), (1, False, 3), (2, False, 3)]


@pytest.mark.parametrize("backend", BACKENDS)
def test_programs_talk_to_the_seat(cluster: LocalCluster, backend: str) -> None:
    """What a member sends to the seat is received by the program that has taken it, and answered to the member."""

    async def program(task: TaskInfo) -> Any:
        from asyncstep._monitored.company import current_engine  # a context variable cannot be sent

        engine = current_engine.get()
        assert isinstance(engine, JobEngine)
        link = engine.link
        news = anyio.Event()

        def hear() -> None:
            nonlocal news
            news.set()
            news = anyio.Event()

        end = link.listen(hear)
        if task.is_chief:
            received = []

            def receive(message: Any, answer: Any) -> None:
                received.append(message)
                answer(message + 1)

            await link.take_seat(receive)
            while link.view.done != {1, 2}:
                await news.wait()
            end()
            return sorted(received)
        while link.view.seat is None:
            await news.wait()
        return await link.call(link.view.seat, 10 * task.index)

    assert launch(program, cluster, workers=3, backend=backend) == [[10, 20], 11, 21]


@pytest.mark.anyio
async def test_alaunch_is_launch_awaited(cluster: LocalCluster) -> None:
    """`alaunch` returns what `launch` does, on every backend."""

    async def program(task: TaskInfo) -> int:
        await anyio.sleep(0)
        return task.index

    assert await alaunch(program, cluster, workers=2, backend="trio") == [0, 1]


@pytest.mark.parametrize("backend", BACKENDS)
def test_nobody_waits_for_a_chief_that_has_failed(cluster: LocalCluster, backend: str) -> None:
    """X: where its program fails before its session is open, the others' end, and the error leaves bare."""

    async def program(task: TaskInfo) -> None:
        if task.is_chief:
            raise ValueError("no session")
        with asyncstep.Graph():
            session = asyncstep.MonitoredTrainingSession(task.master, is_chief=False)
        async with session:
            await session.run(asyncstep.group())

    with pytest.raises(ValueError, match="no session") as caught:
        launch(program, cluster, workers=3, backend=backend)
    assert caught.value.__notes__[0].startswith("in the program of worker 0 of 3 on tcp://")


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_chief_that_has_no_session_is_not_waited_for(cluster: LocalCluster, backend: str) -> None:
    """X: its program has ended well, and the others' sessions are stopped."""

    async def program(task: TaskInfo) -> str | None:
        if task.is_chief:
            return None
        with asyncstep.Graph():
            session = asyncstep.MonitoredTrainingSession(task.master, is_chief=False)
        async with session:
            await session.run(asyncstep.group())
        return str(session.stop_reason)

    results = launch(program, cluster, workers=2, backend=backend)
    assert "the chief's session has ended" in results[1]
