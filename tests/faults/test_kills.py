"""K2, K3, K4: processes that are killed by SIGKILL at random instants, and started again until the job is done.

``pytest tests/faults --kills 1000`` kills more often than the default.
"""

from __future__ import annotations

import random
import signal
from pathlib import Path

import pytest

from asyncstep.checkpoint import list_checkpoints

from .processes import HERE, run


@pytest.mark.parametrize("workers", [1, 8])
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_job_killed_at_any_instant_ends_as_one_that_never_was(
    tmp_path: Path, backend: str, workers: int, pytestconfig: pytest.Config
) -> None:
    """K1, K2, K3, K4: variables, tracked object, hook, positions and step are the same to the bit; after each
    kill the newest checkpoint has no half step and is not older than what was said to be durable."""
    kills = -(-pytestconfig.getoption("kills") // 4)
    ended = run(HERE / "lives.py", tmp_path, backend, workers, kills, 20261123)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stdout.startswith(f"{kills} kills in ")


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_the_demo_killed_and_started_again_prints_the_same_table(tmp_path: Path, backend: str) -> None:
    """K4: the command of the README, killed at random points and started again until it prints its table."""
    source, checkpoints = tmp_path / "source", tmp_path / "checkpoints"
    for number in range(100):
        file = source / f"part{number % 7}" / f"module{number:02}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"def name{number % 11}(value):\n    return value + {number}\n" * (number + 1))
    (source / "broken.py").write_text("# coding: martian\n")
    demo = ["demo", "--source", source, "--backend", backend, "--no-progress"]
    undisturbed = run("-m", "asyncstep", *demo)
    assert undisturbed.returncode == 0, undisturbed.stderr
    dice = random.Random(backend)
    for _ in range(2):
        killed = run(HERE / "run_killed.py", dice.randint(30, 120), *demo, "--dir", checkpoints)
        assert (killed.returncode, killed.stdout, killed.stderr) == (-signal.SIGKILL, "", "")
    done = max(each.step for each in list_checkpoints(checkpoints))
    assert 0 < done < 101
    resumed = run("-m", "asyncstep", *demo, "--dir", checkpoints)
    assert (resumed.returncode, resumed.stderr) == (0, "")
    assert resumed.stdout == undisturbed.stdout
