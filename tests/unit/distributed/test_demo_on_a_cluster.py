"""`asyncstep demo --cluster`: the table of one machine, whatever happens to the processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

import pytest
from distributed import LocalCluster

import asyncstep
from asyncstep import cli
from asyncstep.checkpoint import list_checkpoints

FILES = 150


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some files, one of which is no Python."""
    root = tmp_path_factory.mktemp("tree")
    for number in range(FILES - 1):
        text = f"def name{number % 11}(value):\n    return value + {number}\n" * (10 * number + 1)
        root.joinpath(f"module{number:03}.py").write_text(text)
    root.joinpath("broken.py").write_text("# coding: martian\n")
    return root


@pytest.fixture(scope="module")
def table(tree: Path) -> str:
    """What the demo prints on one machine."""
    with start("demo", "--source", tree, "--no-progress") as process:
        return process.communicate(timeout=60)[0]


def start(*args: object) -> subprocess.Popen[str]:
    """``python -m asyncstep`` in a process group of its own, as a shell would start it."""
    return subprocess.Popen(
        [sys.executable, "-m", "asyncstep", *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(Path(asyncstep.__file__).parent.parent)},
    )


@pytest.fixture
def address() -> Iterator[str]:
    """A scheduler with two workers in this process."""
    with LocalCluster(
        n_workers=2, threads_per_worker=2, processes=False, host="tcp://127.0.0.1", dashboard_address=":0"
    ) as cluster:
        yield cluster.scheduler_address


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_cluster_prints_the_same_table(
    tree: Path, table: str, address: str, backend: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """With 3 programs, and the progress of them all."""
    with pytest.raises(SystemExit) as end:
        cli.main(
            ["demo", "--source", str(tree), "--cluster", address, "--workers", "3", "--backend", backend]
        )
    out, err = capfd.readouterr()
    assert (end.value.code, out) == (0, table)
    assert f"step {FILES} of {FILES}, 100%, " in err


def test_what_was_counted_is_not_counted_again(
    tree: Path, table: str, address: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """K4: all of it is in the last checkpoint; and such checkpoints are not those of other files."""
    for source, code in ((tree, 0), (tree, 0), (tree.parent, 1)):
        args = ["--source", source, "--dir", tmp_path, "--cluster", address, "--workers", 2, "--no-progress"]
        with pytest.raises(SystemExit) as end:
            cli.main(["demo", *map(str, args)])
        assert end.value.code == code
    out, err = capfd.readouterr()
    assert out == 2 * table
    assert f"Error: the checkpoint of step {FILES} is not of this graph; " in err
    assert "Traceback" not in err


def test_ctrl_c_prints_the_table_so_far_and_it_goes_on_from_there(
    tree: Path, table: str, tmp_path: Path
) -> None:
    """C6, K4: sent to all processes of the terminal; the steps in flight commit, and the exit code is 0."""
    command = ["demo", "--source", tree, "--cluster", "local", "--workers", 2, "--dir", tmp_path]
    with start(*command) as process:
        assert f" of {FILES}, " in cast("IO[str]", process.stderr).readline()
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "Traceback" not in err
    assert f"Stopped by SIGINT after {list_checkpoints(tmp_path)[-1].step} of {FILES} files.\n" in out
    assert out.endswith("\nThe same command goes on from there.\n")
    with start(*command) as process:
        assert process.communicate(timeout=60)[0] == table


def test_killed_with_all_its_processes_it_goes_on_to_the_same_table(
    tree: Path, table: str, tmp_path: Path
) -> None:
    """K4, X: the processes have no time to say anything."""
    command = ["demo", "--source", tree, "--cluster", "local", "--workers", 2, "--dir", tmp_path]
    with start(*command) as process:
        for _ in range(2):  # the second line comes after two seconds, or at the end
            assert f" of {FILES}, " in cast("IO[str]", process.stderr).readline()
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    with start(*command) as process:
        assert process.communicate(timeout=60)[0] == table
