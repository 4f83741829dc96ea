"""The command `asyncstep launch` as a shell sees it: what is printed where, the exit code, and what signals do."""

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

SCRIPT = Path(sys.executable).with_name("asyncstep")

PROGRAMS = """
import asyncio
import os

import anyio

import asyncstep
from asyncstep.hooks import SignalHook
from beside import double


async def place(task):
    return double(task.index) if task.index else None


async def fails(task):
    if task.index:
        raise ValueError(f"nothing for {task.index}")


async def counts(task):
    with asyncstep.Graph():
        add = asyncstep.Variable(0, name="total").assign_add(1)
        session = asyncstep.MonitoredTrainingSession(
            task.master, is_chief=task.is_chief, hooks=[SignalHook()], log_step_count_steps=None
        )

    told = []

    async def step(ctx):
        if await ctx.run_with_hooks(add) > 9 and task.is_chief and not told:
            told.append(os.write(1, b"ten\\n"))
        await anyio.sleep(0.001)

    async with session:
        await session.loop(step)
    return session.stop_reason.kind.value, session.stop_reason.origin


async def stays(task):
    if task.is_chief:
        os.write(1, b"here\\n")
    try:
        await anyio.sleep_forever()
    finally:
        os.write(1, b"cancelled\\n")


def plain(task):
    return task.index


VALUE = 1
"""


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the programs are; no process has it on its path."""
    path = tmp_path_factory.mktemp("programs")
    path.joinpath("programs.py").write_text(PROGRAMS)
    path.joinpath("beside.py").write_text("def double(value):\n    return 2 * value\n")
    return path


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A scheduler with two workers, which cannot import the programs."""
    with LocalCluster(
        n_workers=2, threads_per_worker=1, processes=False, host="tcp://127.0.0.1", dashboard_address=":0"
    ) as cluster:
        yield cluster.scheduler_address


def start(
    directory: Path, *args: object, command: tuple[str, ...] = ("-m", "asyncstep")
) -> subprocess.Popen[str]:
    """``asyncstep launch`` in that directory and in a process group of its own, as a shell would start it."""
    return subprocess.Popen(
        [sys.executable, *command, "launch", *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(Path(asyncstep.__file__).parent.parent)},
    )


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(("-m", "asyncstep"), id="module"),
        pytest.param(
            (str(SCRIPT),), marks=pytest.mark.skipif(not SCRIPT.exists(), reason="no script"), id="script"
        ),
    ],
)
def test_results_are_printed_by_index(directory: Path, address: str, command: tuple[str, ...]) -> None:
    """A line for each program that returns something; the module, and the one that it imports, are only here."""
    with start(directory, "programs:place", "--workers", 3, "--cluster", address, command=command) as process:
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (0, "1: 2\n2: 4\n", "")


def test_an_error_has_the_traceback_of_the_program(directory: Path, address: str) -> None:
    """Not that of the command; the exit code is 1."""
    with start(directory, "programs:fails", "--workers", 2, "--cluster", address) as process:
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (1, "")
    assert err.startswith("Traceback")
    assert err.count("Traceback") == 1
    assert "\nValueError: nothing for 1\nin the program of worker 1 of 2 on tcp://" in err
    assert "launch_command" not in err


def test_a_launch_that_takes_too_long_is_cancelled(directory: Path, address: str) -> None:
    """In one line, and the exit code is 1."""
    args = ("--workers", 2, "--cluster", address, "--backend", "trio", "--timeout", 0.2)
    with start(directory, "programs:stays", *args) as process:
        _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert err == "Error: the programs were cancelled after 0.2 s, launch's timeout\n"


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["programs", "--workers", "2"], 2, "'programs' is not of the form MODULE:PROGRAM"),
        (["programs:", "--workers", "2"], 2, "'programs:' is not of the form MODULE:PROGRAM"),
        (["no_such:x", "--workers", "2"], 2, "there is no module 'no_such', neither in "),
        (["programs:none", "--workers", "2"], 2, "'programs' has nothing of that name"),
        (["programs:plain", "--workers", "2"], 2, "'programs' has function 'plain'"),
        (["programs:VALUE", "--workers", "2"], 2, "'programs' has int 'VALUE'"),
        (["programs:place"], 2, "Missing option '--workers'."),
        (["programs:place", "--workers", "0"], 2, "0 is not in the range x>=1."),
        (["programs:place", "--workers", "1", "--backend", "curio"], 2, "'curio' is not one of"),
        (["programs:place", "--workers", "1", "--timeout", "0"], 2, "0.0 is not in the range x>0"),
        (["programs:place", "--workers", "1", "--cluster", "here"], 1, "such as tcp://host:8786, not 'here'"),
    ],
)
def test_wrong_arguments_are_told_in_one_sentence(
    directory: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    args: list[str],
    code: int,
    message: str,
) -> None:
    """Nothing is started, and there is no traceback."""
    monkeypatch.chdir(directory)
    monkeypatch.setattr("sys.path", sys.path.copy())
    with pytest.raises(SystemExit) as end:
        cli.main(["launch", *args])
    out, err = capsys.readouterr()
    assert (end.value.code, out) == (code, "")
    assert message in err
    assert "Traceback" not in err


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_stops_the_sessions(directory: Path, sent: signal.Signals) -> None:
    """Sent to all processes, as by a terminal: the sessions stop, the results are printed, and it is no error."""
    with start(directory, "programs:counts", "--workers", 2) as process:
        assert cast("IO[str]", process.stdout).readline() == "ten\n"
        os.killpg(process.pid, sent)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0
    assert out.splitlines() == [f"{index}: ('signal', {sent.name!r})" for index in (0, 1)]
    assert err.endswith(f"Stopped by {sent.name}.\n")
    assert "Traceback" not in err


def test_the_second_signal_cancels_the_programs(directory: Path) -> None:
    """One that hears of no stop is told at the second signal; the exit code is that of a program that it has ended."""
    with start(directory, "programs:stays", "--workers", 2) as process:
        assert cast("IO[str]", process.stdout).readline() == "here\n"
        os.killpg(process.pid, signal.SIGINT)
        os.killpg(process.pid, signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    assert process.returncode in (128 + signal.SIGINT, 128 + signal.SIGTERM)
    assert out == "cancelled\n" * 2
    assert "Traceback" not in err
