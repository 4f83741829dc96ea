"""Processes of a launch that die, hang or lose their scheduler: what `launch` returns all the same."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

import pytest

import asyncstep

PROGRAM = '''
"""Each item is counted once, whichever process has died, hung or been taken for lost meanwhile."""

import os
import sys

import anyio
import dask

import asyncstep
from asyncstep.distributed import launch
from asyncstep.hooks import FinalOpsHook

ITEMS = 200


def made(directory, task):
    with asyncstep.Graph():
        item = asyncstep.source(range(ITEMS), name="items")
        seen = asyncstep.Variable((), name="seen")
        add = seen.update(lambda seen, item: tuple(sorted((*seen, item))), item)
        final = FinalOpsHook(seen)
        session = asyncstep.MonitoredTrainingSession(
            task.master,
            is_chief=task.is_chief,
            chief_only_hooks=[final],
            checkpoint_dir=directory,
            save_checkpoint_secs=None,
            save_checkpoint_steps=5,
            log_step_count_steps=None,
        )
    return session, add, final


async def work(directory, task):
    session, add, final = made(directory, task)

    async def step(ctx):
        os.write(1, f"{task.index} {os.getpid()}\\n".encode())
        await ctx.run_with_hooks(add)
        await anyio.sleep(0.02)

    async with session:
        await session.loop(step)
    return final.final_ops_values and list(final.final_ops_values) == list(range(ITEMS))


if __name__ == "__main__":
    from functools import partial

    directory, cluster, lease, backend = sys.argv[1:]
    with dask.config.set({"asyncstep.lease": float(lease)}):
        print("results", launch(partial(work, directory), cluster or None, workers=2, backend=backend, timeout=60))
'''


CLUSTER = """
import time

from distributed import LocalCluster

with LocalCluster(n_workers=2, threads_per_worker=1, processes=False, host="tcp://127.0.0.1",
                  dashboard_address=":0") as cluster:
    print(cluster.scheduler_address, flush=True)
    time.sleep(120)
"""


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """The program's file."""
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    return path


def start(*args: object) -> subprocess.Popen[str]:
    """Start ``python ARG...`` in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(Path(asyncstep.__file__).parent.parent)},
    )


def steps(process: subprocess.Popen[str]) -> Iterator[tuple[int, int]]:
    """The steps that begin: the index of the program, and its process."""
    for line in cast("IO[str]", process.stdout):
        if line.startswith("results"):
            assert line == "results [True, None]\n"
            return
        index, pid = line.split()
        yield int(index), int(pid)


@pytest.mark.parametrize("killed", [0, 1], ids=["chief", "member"])
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_killed_process_is_started_again(program: Path, tmp_path: Path, backend: str, killed: int) -> None:
    """X: SIGKILL of the chief, or of a member; every item counts once in the end."""
    with start(program, tmp_path / "saved", "", 30, backend) as process:
        pids: dict[int, list[int]] = {0: [], 1: []}
        for number, (index, pid) in enumerate(steps(process)):
            if pid not in pids[index]:
                pids[index].append(pid)
            if number >= 20 and len(pids[killed]) == 1 and index == killed:
                os.kill(pid, signal.SIGKILL)
                pids[killed].append(pid)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err


def test_a_process_that_hangs_is_taken_for_lost(program: Path, tmp_path: Path) -> None:
    """X: a member is stopped for longer than its lease: others get its items. When it goes on, what it commits of
    then is refused, and it takes part again."""
    with start(program, tmp_path / "saved", "", 0.8, "asyncio") as process:
        stopped, after, resumed = 0, 0, False
        for number, (index, pid) in enumerate(steps(process)):
            if not stopped and number >= 20 and index == 1:
                os.kill(pid, signal.SIGSTOP)
                stopped = pid
            elif stopped and not resumed:
                after += 1
                if after == 100:  # the chief alone: more than the lease
                    os.kill(stopped, signal.SIGCONT)
                    resumed = True
        _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert resumed
    assert "worker 1 is lost; its steps are rolled back, and others get its items" in err


def test_without_its_cluster_a_launch_ends(program: Path, tmp_path: Path) -> None:
    """X: with UnavailableError and a status that is not 0; launched again, the program goes on to the end."""
    with start("-c", CLUSTER) as cluster:
        address = cast("IO[str]", cluster.stdout).readline().strip()
        with start(program, tmp_path / "saved", address, 30, "asyncio") as process:
            for number, _ in enumerate(steps(cluster)):  # the programs run there
                if number == 30:
                    os.killpg(cluster.pid, signal.SIGKILL)
                    break
            _, err = process.communicate(timeout=60)
        cluster.communicate()
    assert process.returncode == 1
    assert "UnavailableError: the scheduler at " in err
    with start(program, tmp_path / "saved", "", 30, "asyncio") as process:
        assert len(list(steps(process))) < 200
        process.communicate(timeout=60)
    assert process.returncode == 0
