"""X, K3, K4: processes of a cluster that are killed by SIGKILL at random instants, one of them or all.

``pytest tests/faults --kills 1000`` kills more often than the default.
"""

from __future__ import annotations

import os
import random
import re
import signal
import time
from pathlib import Path

import pytest

pytest.importorskip("distributed")

from asyncstep.checkpoint import list_checkpoints

from .processes import HERE, run, start
from .states import disagreements

BACKENDS = ["asyncio", "trio"]
PROGRAM = HERE / "cluster_job.py"
ITEMS, PROGRAMS = 120, 4
"""Those of the program."""


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_job_whose_processes_are_killed_ends_as_one_that_was_left_alone(
    tmp_path: Path, backend: str, pytestconfig: pytest.Config
) -> None:
    """X, K4: four programs on two processes, kills of the chief's and of the other: variables, positions and step
    are the same to the bit as those of a run in one process that was not disturbed."""
    kills = -(-pytestconfig.getoption("kills") // 14)
    ended = run(HERE / "cluster_lives.py", tmp_path, backend, kills, 20261123)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    done = re.match(
        r"(\d+) kills \((\d+) of the chief\) in \d+ runs, (\d+) programs started again, (\d+) recov",
        ended.stdout,
    )
    assert done, ended.stdout
    total, chiefs, restarts, recoveries = map(int, done.groups())
    assert total == kills
    assert chiefs >= 1
    assert restarts >= 2 * kills - 2  # a kill while programs start may hit none
    assert recoveries >= 2  # those of the process that was not killed with the first chief


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_launch_that_is_killed_with_all_its_processes_resumes(
    tmp_path: Path, backend: str, pytestconfig: pytest.Config
) -> None:
    """X, K3, K4: launcher, scheduler and workers are gone at once; started again, the job ends with the same state."""
    kills = -(-pytestconfig.getoption("kills") // 28)
    dice = random.Random(backend)
    place, undisturbed = tmp_path / "killed", tmp_path / "undisturbed"
    place.mkdir()
    undisturbed.mkdir()
    assert run(PROGRAM, undisturbed, backend, 1).returncode == 0
    for number in range(kills):
        aim = newest(place) + dice.randint(1, 80 // kills)
        with start(PROGRAM, place, backend, PROGRAMS, group=0) as launcher:
            until = time.monotonic() + 60
            while newest(place) < aim and launcher.poll() is None and time.monotonic() < until:
                time.sleep(0.01)
            time.sleep(dice.uniform(0, 0.1))
            os.killpg(launcher.pid, signal.SIGKILL)
            _, errors = launcher.communicate()
        assert launcher.returncode == -signal.SIGKILL, errors
        assert aim <= newest(place) < ITEMS, f"kill {number}"
    resumed = run(PROGRAM, place, backend, PROGRAMS)
    assert resumed.returncode == 0, resumed.stderr
    assert disagreements(undisturbed, place) == []


def newest(directory: Path) -> int:
    """The step of the newest checkpoint."""
    return max((each.step for each in list_checkpoints(directory)), default=0)
