"""A job for the programs of a launch: ``program(directory)`` is what each of them runs.

Its variables are changed by commutative functions only. Some steps fail at the first attempt when half of their
writes are made, and are run again. What happens to the programs is written into a diary beside the checkpoints.

``python cluster_job.py DIRECTORY BACKEND PROGRAMS`` goes on from the newest checkpoint there to the end of the data:
with so many programs, on processes of its own, or with one that is in no launch.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import numpy as np
from job import add_digest, add_item, add_to_vector

import asyncstep
from asyncstep.distributed import TaskInfo, launch
from asyncstep.hooks import CheckpointSaverHook

ITEMS = 120
PROGRAMS = 4
ALONE = TaskInfo("", 0, 1)
"""For a run in one process, without any cluster."""

BEGUN, JOINED = "begun", "joined"


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of the diary.

    Attributes:
        index: of the program.
        process: that it runs in.
        event: `BEGUN`: the program has started, `JOINED`: its session has a state, at first or by a recovery.
    """

    index: int
    process: int
    event: str


def diary(directory: Path) -> list[Entry]:
    """What has happened to the programs of a run."""
    file = directory / "diary"
    lines = file.read_text().splitlines() if file.exists() else []
    return [Entry(int(index), int(process), event) for index, process, event in map(str.split, lines)]


class Diarist(asyncstep.SessionRunHook):
    """Writes the diary."""

    def __init__(self, directory: Path, index: int) -> None:
        self._file = directory / "diary"
        self._index = index

    async def begin(self) -> None:
        """The program has started."""
        self._write(BEGUN)

    async def after_create_session(
        self, session: asyncstep.Session, coord: asyncstep.SessionCoordinator
    ) -> None:
        """Its session has a state."""
        self._write(JOINED)

    def _write(self, event: str) -> None:
        with self._file.open("a") as file:
            file.write(f"{self._index} {os.getpid()} {event}\n")


def program(directory: Path) -> Callable[[TaskInfo], Coroutine[Any, Any, None]]:
    """The async function that goes on from the newest checkpoint to the end of the data.

    Args:
        directory: of the checkpoints; the chief saves one after every third step, if it has a step then.
    """

    async def run(task: TaskInfo) -> None:
        hooks: list[asyncstep.SessionRunHook] = [Diarist(directory, task.index)]
        recovery = asyncstep.Recovery(wait_initial=0.0, jitter=0.0)
        creator: asyncstep.SessionCreator
        with asyncstep.Graph():
            step = _step()
            if task.is_chief:
                hooks.append(CheckpointSaverHook(directory, save_steps=3))
                creator = asyncstep.ChiefSessionCreator(master=task.master, checkpoint_dir=directory)
            else:
                creator = asyncstep.WorkerSessionCreator(master=task.master, max_wait=60)
        async with asyncstep.MonitoredSession(creator, hooks, recovery=recovery) as session:
            await session.loop(step, workers=2)

    return run


def _step() -> Callable[[asyncstep.StepContext], Coroutine[Any, Any, None]]:
    """Builds the graph, and returns the step function."""

    @asyncstep.op
    async def work(item: int) -> int:
        """Wait for as long as it takes to write some small checkpoints."""
        await anyio.sleep((item * 7 % 5 + 1) / 40)
        return item

    item = asyncstep.source(range(ITEMS), name="numbers")
    done = work(item)
    begun = asyncstep.Variable(0, name="begun").update(lambda total, new: total + new, item)
    rest = asyncstep.group(
        asyncstep.Variable[tuple[int, ...]]((), name="items").update(add_item, done),
        asyncstep.Variable(np.zeros(7), name="vector").update(add_to_vector, done),
        asyncstep.Variable(bytes(32), name="digest").update(add_digest, done),
    )

    async def step(ctx: asyncstep.StepContext) -> None:
        """One item in two runs, which are one transaction; some fail in between, and are run again."""
        number, _ = await ctx.session.run([item, begun])
        if ctx.attempt == 1 and number % 6 == 0:
            raise asyncstep.AbortedError("once")
        await ctx.run_with_hooks(rest, {item: number})

    return step


if __name__ == "__main__":
    where, which, programs = sys.argv[1:]
    if programs == "1":
        anyio.run(program(Path(where)), ALONE, backend=which)
    else:
        launch(program(Path(where)), workers=int(programs), backend=which, timeout=60)
