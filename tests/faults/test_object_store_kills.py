"""K2, K3, K4, K9 in an object store: processes that are killed by SIGKILL and started again until the job is done."""

from __future__ import annotations

import random
import signal
from pathlib import Path

import anyio
import pytest

from asyncstep.checkpoint import latest_checkpoint, read_checkpoint

from .job import job
from .processes import HERE, run
from .states import contents, half_steps


@pytest.mark.parametrize(("backend", "workers"), [("asyncio", 8), ("trio", 1)])
def test_a_job_killed_at_any_instant_ends_as_one_that_never_was(
    tmp_path: Path, bucket: str, backend: str, workers: int
) -> None:
    """K1 to K4, K9: no checkpoint has half a step, the lease of a killed process is taken over, the end is the same."""
    anyio.run(job(tmp_path, workers), backend=backend)
    undisturbed = latest_checkpoint(tmp_path)
    assert undisturbed is not None
    dice = random.Random(backend)
    killed = 0
    while killed < 2:
        life = run(HERE / "object_life.py", f"{bucket}/runs/a", backend, workers, dice.randint(40, 150))
        assert (life.returncode, life.stderr) == (-signal.SIGKILL, "")
        killed += 1
        if (newest := latest_checkpoint(f"{bucket}/runs/a")) is not None:
            assert half_steps(contents(read_checkpoint(newest))) == []
    last = run(HERE / "object_life.py", f"{bucket}/runs/a", backend, workers, 0)
    assert (last.returncode, last.stderr) == (0, "")
    newest = latest_checkpoint(f"{bucket}/runs/a")
    assert newest is not None
    assert repr(contents(read_checkpoint(newest))) == repr(contents(read_checkpoint(undisturbed)))
