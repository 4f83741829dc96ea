"""How far a job is, as its registry knows it: work is never thrown away silently (contract V5)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import pytest

import asyncstep
from asyncstep import FailedPreconditionError
from asyncstep.distributed import TaskInfo

from .loopback import LoopbackJob


def chief(directory: Path | None, *, steps: int, checked: list[Any], then: anyio.Event | None = None) -> Any:
    """A chief's program of so many steps, which then sets the event and stays until it is killed."""

    async def program(task: TaskInfo) -> None:
        with asyncstep.Graph():
            add = asyncstep.Variable(0, name="total").assign_add(1)
            session = asyncstep.MonitoredTrainingSession(
                task.master,
                checkpoint_dir=directory,
                save_checkpoint_secs=None,
                save_checkpoint_steps=1,
                log_step_count_steps=None,
            )
        async with session:
            checked.append(session.global_step)
            for _ in range(steps):
                await session.run(add)
            if then is not None:
                then.set()
                await anyio.sleep_forever()

    return program


async def killed(job: LoopbackJob, program: Any, when: anyio.Event) -> None:
    """Run a program until the event, and end it as by a kill."""
    async with job.running() as start:
        running = start(program, 0)
        await when.wait()
        await anyio.wait_all_tasks_blocked()
        running.kill()


async def ran(job: LoopbackJob, program: Any) -> None:
    """Run a program to its end."""
    async with job.running() as start:
        running = start(program, 0)
    assert running.result is None


@pytest.mark.anyio
async def test_a_chief_does_not_begin_anew_what_was_committed() -> None:
    """V5: without a checkpoint the chief that is started again fails, and says how far the job was."""
    job, checked, done = LoopbackJob(1), list[Any](), anyio.Event()
    await killed(job, chief(None, steps=3, checked=checked, then=done), done)
    assert job.view.progress > 0
    with pytest.raises(FailedPreconditionError) as caught:
        await ran(job, chief(None, steps=3, checked=checked))
    assert f"after step {job.view.progress}, and there is no checkpoint" in str(caught.value)
    assert checked == [0]


@pytest.mark.anyio
async def test_a_chief_that_has_committed_nothing_begins_again() -> None:
    """V5: nothing is lost by that."""
    job, checked, opened = LoopbackJob(1), list[Any](), anyio.Event()
    await killed(job, chief(None, steps=0, checked=checked, then=opened), opened)
    assert job.view.progress == 0
    await ran(job, chief(None, steps=3, checked=checked))
    assert checked == [0, 0]


@pytest.mark.anyio
async def test_a_chief_goes_on_from_a_checkpoint(tmp_path: Path) -> None:
    """X, V5: the newest one is where the chief begins that is started again."""
    job, checked, done = LoopbackJob(1), list[Any](), anyio.Event()
    await killed(job, chief(tmp_path, steps=3, checked=checked, then=done), done)
    await ran(job, chief(tmp_path, steps=3, checked=checked))
    assert checked == [0, 3]
    assert job.view.progress > 0
