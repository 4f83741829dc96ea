"""Processes that run this directory's programs, with the asyncstep of the tests."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import asyncstep

HERE = Path(__file__).parent


def start(*args: object, group: int | None = None) -> subprocess.Popen[str]:
    """Start ``python ARG...``, in that process group: 0 for one of its own."""
    environment = {**os.environ, "PYTHONPATH": str(Path(asyncstep.__file__).parent.parent)}
    return subprocess.Popen(
        [sys.executable, *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        process_group=group,
    )


def run(*args: object) -> subprocess.CompletedProcess[str]:
    """Run ``python ARG...`` to its end."""
    with start(*args) as process:
        out, err = process.communicate(timeout=600)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)
