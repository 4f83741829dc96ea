"""examples/cluster.py: each model has one score, by however many programs, and after a kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("distributed", reason="examples/cluster.py needs Dask")
pytest.importorskip("sklearn", reason="examples/cluster.py needs scikit-learn")

from distributed import LocalCluster

from asyncstep.checkpoint import latest_checkpoint, read_checkpoint
from asyncstep.distributed import launch
from asyncstep.hooks import StopAtStepHook

ROOT = Path(__file__).parent.parent.parent
MODELS = 5


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    """A Dask worker in this process."""
    with LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=":0") as cluster:
        yield cluster


@pytest.fixture
def example(load: Callable[[str], Any]) -> Any:
    """The program."""
    return load("cluster")


def arguments(directory: Path | None = None) -> Namespace:
    """Options that take a second."""
    return Namespace(dir=directory, models=MODELS, folds=2)


@pytest.mark.parametrize("backend", ["asyncio", "uvloop", "trio"])
def test_any_number_of_workers_finds_the_same(example: Any, cluster: LocalCluster, backend: str) -> None:
    """X: the scores are those of one program, by any number of them, on any event loop."""
    alone = launch(partial(example.program, arguments()), cluster, workers=1, backend=backend)[0]
    assert len(alone) == MODELS
    assert all(0.9 < score < 1 for score in alone.values())
    first, *others = launch(partial(example.program, arguments()), cluster, workers=3, backend=backend)
    assert first == alone
    assert others == [None, None]


def test_it_goes_on_in_the_middle(
    example: Any, cluster: LocalCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """K4: another launch with the same directory validates the models that are missing, and no other."""
    plain = example.MonitoredTrainingSession

    def stopped(*args: Any, chief_only_hooks: Any, **options: Any) -> Any:
        return plain(*args, chief_only_hooks=[*chief_only_hooks, StopAtStepHook(num_steps=2)], **options)

    monkeypatch.setattr(example, "MonitoredTrainingSession", stopped)
    some = launch(partial(example.program, arguments(tmp_path)), cluster, workers=1)[0]
    assert len(some) == 2
    monkeypatch.undo()
    found = launch(partial(example.program, arguments(tmp_path)), cluster, workers=2)[0]
    assert len(found) == MODELS
    assert found.items() >= some.items()
    assert read_checkpoint(latest_checkpoint(tmp_path)).step == MODELS


@pytest.mark.skipif(os.name == "nt", reason="kill -9 is of POSIX")
def test_killed_and_started_again_it_ends(tmp_path: Path) -> None:
    """X: after a kill -9 of the launch the same command goes on, in two processes, and prints all models."""
    command = [sys.executable, str(ROOT / "examples" / "cluster.py"), "--dir", str(tmp_path)]
    command += ["--models", str(MODELS), "--folds", "2"]
    killed = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while latest_checkpoint(tmp_path) is None and time.monotonic() < deadline:
        time.sleep(0.05)
    killed.kill()
    assert killed.wait() == -signal.SIGKILL
    ended = subprocess.run(command, capture_output=True, text=True, timeout=90)
    assert ended.returncode == 0, ended.stderr
    *rows, last = ended.stdout.splitlines()
    assert len(rows) == MODELS
    assert last.startswith(f"{MODELS} models in ")
    assert read_checkpoint(latest_checkpoint(tmp_path)).step == MODELS
