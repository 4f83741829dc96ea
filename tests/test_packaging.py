"""What a person gets who installs asyncstep: its names, its types, and a README that tells the truth."""

from __future__ import annotations

import importlib.resources
import re
import subprocess
import sys
from pathlib import Path

import pytest

import asyncstep
from asyncstep.checkpoint import list_checkpoints

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"

PUBLIC_NAMES = [
    "ALL",
    "MISSING",
    "AbortedError",
    "ChiefSessionCreator",
    "Coordinator",
    "DataLossError",
    "DeadlineExceededError",
    "Error",
    "FailedPreconditionError",
    "Graph",
    "InvalidArgumentError",
    "MonitoredSession",
    "MonitoredTrainingSession",
    "NanLossError",
    "Node",
    "NotFoundError",
    "OutOfRangeError",
    "Recovery",
    "RunMetadata",
    "RunOptions",
    "Scaffold",
    "Session",
    "SessionClosedError",
    "SessionCreator",
    "SessionRunArgs",
    "SessionRunContext",
    "SessionRunHook",
    "SessionRunValues",
    "SingularMonitoredSession",
    "StepContext",
    "StopKind",
    "StopReason",
    "StopRequested",
    "UnavailableError",
    "Variable",
    "WorkerSessionCreator",
    "create_global_step",
    "get_default_graph",
    "get_global_step",
    "get_or_create_global_step",
    "group",
    "op",
    "placeholder",
    "source",
]


def blocks(language: str) -> list[str]:
    """The README's code blocks in one language, in order."""
    return re.findall(
        rf"^```{language}\n(.*?)^```$", README.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )


def test_the_public_names_are_these() -> None:
    """`asyncstep.__all__` holds the names of the first section of the API, and no others."""
    assert sorted(asyncstep.__all__) == sorted(PUBLIC_NAMES)


@pytest.mark.parametrize("name", PUBLIC_NAMES)
def test_a_public_name_exists(name: str) -> None:
    """Each name in `asyncstep.__all__` can be had from `asyncstep`."""
    assert hasattr(asyncstep, name)


def test_types_ship() -> None:
    """`py.typed` is installed, so type checkers read the package's own annotations."""
    assert importlib.resources.files(asyncstep).joinpath("py.typed").is_file()


def run(program: str, folder: Path) -> str:
    """What a program prints."""
    path = folder / "example.py"
    path.write_text(program, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-W", "error", path],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_readme_example_runs_as_pasted(tmp_path: Path) -> None:
    """The README's first Python block is a complete program: it counts every word and says why it ended."""
    printed = run(blocks("python")[0], tmp_path)
    assert printed.startswith("19900 words: end_of_data")


def test_the_readme_example_resumes(tmp_path: Path) -> None:
    """The second block, in place of the first one's loop, leaves a checkpoint and goes on from it."""
    example, resumable, _ = blocks("python")
    head, _, _ = example.partition("async def main")
    assert run(head + resumable, tmp_path) == run(head + resumable, tmp_path) == "200 pages\n"
    assert [found.step for found in list_checkpoints(tmp_path / "checkpoints")][-1] == 200


def test_the_readme_example_runs_in_two_processes(tmp_path: Path) -> None:
    """X: the third block, in place of the first one's loop, does the same in processes of a local cluster."""
    pytest.importorskip("distributed")
    example, _, launched = blocks("python")
    head, _, _ = example.partition("async def main")
    assert run(head + launched, tmp_path) == "200 pages\n"


def test_ci_runs_the_readmes_test_command() -> None:
    """`.ci/run` ends with the very command that the README gives for the tests."""
    commands = [line for block in blocks("sh") for line in block.splitlines()]
    last = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()[-1]
    assert last in commands
