"""Section L of the contract, rule 9, at its full size.

The steps run in a process of their own that no coverage is measured in, for that takes ten times as long.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import gc, sys
import anyio
import asyncstep


class Watching(asyncstep.SessionRunHook):
    async def before_run(self, run_context):
        return asyncstep.SessionRunArgs("count")

    async def after_run(self, run_context, run_values):
        assert run_values.results == run_values.global_step


def allocated():
    gc.collect()
    return sys.getallocatedblocks()


async def main():
    with asyncstep.Graph():
        add = asyncstep.Variable(0, name="count").assign_add(1)
        session = asyncstep.MonitoredSession(hooks=[Watching()])
    async with session:
        for _ in range(2_000):
            await session.run(add)
        before = allocated()
        for _ in range(1_000_000):
            await session.run(add)
        print(session.global_step, allocated() - before)


anyio.run(main)
"""


def test_a_million_steps_leave_no_growth() -> None:
    """L9: a million steps with a hook leave nothing behind: not an object for every thousand steps."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=Path(__file__).parents[2],
        env={name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    steps, growth = map(int, done.stdout.split())
    assert steps == 1_002_000
    assert growth < 1_000
