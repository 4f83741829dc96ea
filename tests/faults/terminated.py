"""``python terminated.py DIRECTORY BACKEND WORKERS`` runs the job of job.py with SignalHook.

It prints each step that it commits, and at its end why it stopped. The file JOURNAL in the directory gets a
line for each item that is worked on.
"""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path

import anyio
from job import job

from asyncstep import SessionRunContext, SessionRunHook, SessionRunValues
from asyncstep.hooks import SignalHook


class Commits(SessionRunHook):
    """Prints the number of each step."""

    async def after_run(self, run_context: SessionRunContext, run_values: SessionRunValues) -> None:
        """The step is committed."""
        write_line(1, run_values.global_step)


def write_line(descriptor: int, content: object) -> None:
    """Write it at once."""
    os.write(descriptor, f"{content}\n".encode())


if __name__ == "__main__":
    where, which, number = sys.argv[1:]
    Path(where).mkdir(exist_ok=True)
    journal = os.open(Path(where, "JOURNAL"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    run = job(Path(where), int(number), begin=partial(write_line, journal), hooks=[SignalHook(), Commits()])
    write_line(1, anyio.run(run, backend=which))
