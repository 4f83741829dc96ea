"""The command `asyncstep` as a shell sees it: what is printed where, and the exit code."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import sysconfig
from typing import IO, TYPE_CHECKING, Protocol, cast

import pytest

from asyncstep import cli, demo
from asyncstep.checkpoint import list_checkpoints
from asyncstep.checkpoint.writing import CheckpointWriter

if TYPE_CHECKING:
    from pathlib import Path


class Run(Protocol):
    """Calls the command in this process: the exit code, what it wrote to stdout and what to stderr."""

    def __call__(self, *args: object) -> tuple[object, str, str]: ...


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """The command, called in this process."""

    def call(*args: object) -> tuple[object, str, str]:
        with pytest.raises(SystemExit) as end:
            cli.main([str(arg) for arg in args])
        return (end.value.code, *capsys.readouterr())

    return call


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """Where checkpoints may be saved; it is not there yet."""
    return tmp_path / "saved" / "here"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Three files, and one that is no Python."""
    tmp_path /= "tree"
    tmp_path.mkdir()
    (tmp_path / "one.py").write_text("class One:\n    def name(self): return self\n")
    (tmp_path / "two.py").write_text("two = one = name\n")
    (tmp_path / "empty.py").write_text("")
    (tmp_path / "broken.py").write_text("# coding: martian\n")
    return tmp_path


HEAD = """
Python files in {}

             3  files
            60  bytes
             3  lines
"""
REST = """
             1  functions
             1  classes

          uses  of the name                      bytes  in the file

             2  name                                43  one.py
             2  self                                17  two.py
             1  One                                  0  empty.py
             1  one
             1  two

Not counted (1):

  broken.py: SyntaxError: unknown encoding: martian
"""


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_the_table_has_the_sums_the_first_of_the_names_and_files_and_what_was_not_counted(
    run: Run, tree: Path, backend: str
) -> None:
    """Ties stand in the order of the alphabet, so the table is the same at every run."""
    code, out, err = run("demo", "--source", tree, "--backend", backend, "--no-progress")
    assert (code, err) == (0, "")
    assert out.startswith(HEAD.format(tree))
    assert out.endswith(REST)


def test_progress_goes_to_stderr(run: Run, tree: Path) -> None:
    """So the table alone can be written to a file."""
    code, out, err = run("demo", "--source", tree, "--workers", 1)
    assert code == 0
    assert out.endswith(REST)
    assert err.splitlines()[-1].startswith("step 4 of 4, 100%, ")


def test_a_terminal_is_left_with_a_line_of_its_own(
    run: Run, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bar that was drawn over and over is ended, so nothing is printed across it."""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    _, _, err = run("demo", "--source", tree)
    assert "4/4" in err.split("\r")[-1]
    assert err.endswith("\n")
    assert err.count("\n") == 1


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_trace_has_every_file_and_every_checkpoint(
    run: Run, tree: Path, saved: Path, tmp_path: Path, backend: str
) -> None:
    """What was done when goes to the file that is named; the table is printed all the same."""
    path = tmp_path / "traces" / "demo.json"
    args = ("--source", tree, "--dir", saved, "--trace", path, "--workers", 2, "--backend", backend)
    code, out, err = run("demo", "--no-progress", *args)
    assert (code, err) == (0, "")
    assert out.endswith(REST)
    events = [event for event in json.loads(path.read_text())["traceEvents"] if event["ph"] == "X"]
    steps = [event for event in events if event["cat"] == "step" and event["args"]["outcome"] == "committed"]
    assert len(steps) == 4
    assert sum(event["name"] == "examine" for event in events) == 4
    assert [event["name"] for event in events if event["cat"] == "checkpoint"][-1] == "checkpoint of step 4"


def test_a_trace_that_cannot_be_written_is_a_warning(
    run: Run, tree: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The count goes on; the log says why there is no trace, with the name of the file."""
    code, out, _ = run("demo", "--source", tree, "--no-progress", "--trace", tree / "one.py" / "trace.json")
    assert code == 0
    assert out.endswith(REST)
    assert "trace.json" in caplog.text


def test_a_directory_is_no_trace(run: Run, tree: Path) -> None:
    """What cannot be a file is refused before anything is counted."""
    code, _, err = run("demo", "--source", tree, "--trace", tree)
    assert code == 2
    assert "--trace" in err


def test_without_a_directory_it_reads_the_standard_library(
    run: Run, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it lies is for sysconfig to say."""
    monkeypatch.setattr(sysconfig, "get_path", {"stdlib": str(tree)}.get)
    code, out, _ = run("demo", "--no-progress")
    assert code == 0
    assert out.startswith(f"\nThe standard library of Python {sys.version.split()[0]}\n")
    assert out.endswith(REST)


def test_with_a_directory_of_checkpoints_it_goes_on_from_the_newest(
    run: Run, tree: Path, saved: Path
) -> None:
    """What was counted is not read again: the files may be gone, and the table is the same."""
    first = run("demo", "--source", tree, "--dir", saved, "--no-progress")
    (tree / "one.py").write_text("")
    assert run("demo", "--source", tree, "--dir", saved, "--no-progress") == first
    assert [each.step for each in list_checkpoints(saved)][-1] == 4


def test_checkpoints_of_other_files_are_refused(run: Run, tree: Path, saved: Path, tmp_path: Path) -> None:
    """Their totals would be mixed: one line says what is in the directory and what was to be counted."""
    assert run("demo", "--source", tree, "--dir", saved)[0] == 0
    other = tree.parent
    code, out, err = run("demo", "--source", other, "--dir", saved, "--no-progress")
    assert (code, out) == (1, "")
    assert err.startswith("Error: the checkpoint of step 4 is not of this graph; ")
    assert f"files in {other}" in err
    assert err.count("\n") == 1


def test_a_directory_in_use_is_refused(run: Run, tree: Path, saved: Path) -> None:
    """K9: one line names the process that saves there."""
    with CheckpointWriter(saved):
        code, out, err = run("demo", "--source", tree, "--dir", saved, "--no-progress")
    assert (code, out) == (1, "")
    assert err.startswith(f"Error: {saved} is being written to by ")


def test_damaged_checkpoints_are_named(run: Run, tree: Path, saved: Path) -> None:
    """K3: nothing begins anew over them."""
    assert run("demo", "--source", tree, "--dir", saved)[0] == 0
    for manifest in saved.glob("*/MANIFEST.json"):
        manifest.write_text("{")
    code, out, err = run("demo", "--source", tree, "--dir", saved, "--no-progress")
    assert (code, out) == (1, "")
    assert f"Error: none of the checkpoints in {saved} is sound: " in err


def test_an_empty_directory_has_a_table_of_zeros(run: Run, tmp_path: Path) -> None:
    """Nothing to count is no error."""
    code, out, err = run("demo", "--source", tmp_path, "--no-progress")
    assert (code, err) == (0, "")
    assert [line.split() for line in out.splitlines()[3:]] == [["0", what] for what in demo.SUMS]


def test_what_the_output_has_no_letters_for_is_escaped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names and paths may be in any script, the terminal may know ASCII only, a path may be no text."""
    (tmp_path / "größe.py").write_text("größe = 1\n", encoding="utf-8")
    (tmp_path / os.fsdecode(b"\xff.py")).write_text("")
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    with start("demo", "--source", tmp_path, "--no-progress") as process:
        out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    assert "gr\\xf6\\xdfe " in out
    assert "\\udcff.py" in out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--workers", "0"], "Invalid value for '--workers': 0 is not in the range x>=1."),
        (["--workers", "many"], "Invalid value for '--workers': 'many' is not a valid integer range."),
        (["--backend", "curio"], "Invalid value for '--backend': 'curio' is not one of 'asyncio', 'trio'."),
        (["--source", "/no/such"], "Invalid value for '--source': Directory '/no/such' does not exist."),
        (["--source", __file__], f"Invalid value for '--source': Directory {__file__!r} is a file."),
    ],
)
def test_a_wrong_option_is_named_with_what_was_expected(run: Run, args: list[str], message: str) -> None:
    """Exit code 2 and one sentence, before anything runs."""
    code, out, err = run("demo", *args)
    assert (code, out) == (2, "")
    assert err.endswith(f"Error: {message}\n")


def test_a_directory_that_may_not_be_read_is_named(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told before anything runs, not as a table of zeros."""
    monkeypatch.setattr(os, "access", lambda *_, **__: False)
    code, out, err = run("demo", "--source", tmp_path)
    assert (code, out) == (2, "")
    assert err.endswith(
        f"Error: Invalid value for '--source': Directory {str(tmp_path)!r} is not readable.\n"
    )


def test_trio_is_an_extra_and_how_to_get_it_is_said(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line, not a traceback, if it is not installed."""
    monkeypatch.setattr(cli, "find_spec", {"asyncio": object()}.get)
    assert run("demo", "--backend", "trio") == (
        1,
        "",
        "Error: trio is not installed; try: pip install 'asyncstep[trio]'\n",
    )


def test_an_interrupt_before_the_session_is_open_ends_it_quietly(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is nothing to print then, and no traceback."""

    def interrupted(root: Path) -> list[str]:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "python_files", interrupted)
    assert run("demo") == (130, "", "")


def start(*args: object) -> subprocess.Popen[str]:
    """``python -m asyncstep`` in a process group of its own, as a shell would start it."""
    return subprocess.Popen(
        [sys.executable, "-m", "asyncstep", *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_with_the_table_of_what_was_done(
    tmp_path: Path, backend: str, sent: signal.Signals
) -> None:
    """As Ctrl-C in a terminal does it: sent to the whole process group; the steps in flight commit."""
    (tmp_path / "n0.py").write_text("value = [1, 2, 3]\n" * 2000)
    for number in range(1, 500):
        os.link(tmp_path / "n0.py", tmp_path / f"n{number}.py")
    with start("demo", "--source", tmp_path, "--backend", backend) as process:
        first = cast("IO[str]", process.stderr).readline()
        assert first.startswith("step 1 of 500, ")
        os.killpg(process.pid, sent)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + sent
    assert "Traceback" not in err
    lines = out.splitlines()
    files = int(lines[3].split()[0])
    assert 1 <= files < 500
    assert lines[5] == f"{files * 2000:>14,}  lines"
    assert lines[-1] == f"Stopped by {sent.name} after {files} of 500 files."


def test_what_a_signal_stopped_is_gone_on_with(tmp_path: Path) -> None:
    """C6, K4: it says so, and the second run counts the rest: all files once."""
    (tmp_path / "n0.py").write_text("value = [1, 2, 3]\n" * 2000)
    for number in range(1, 200):
        os.link(tmp_path / "n0.py", tmp_path / f"n{number}.py")
    command = ["demo", "--source", tmp_path, "--dir", tmp_path / "saved"]
    with start(*command) as process:
        assert "step 1 of 200, " in cast("IO[str]", process.stderr).readline()
        os.killpg(process.pid, signal.SIGINT)
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out.endswith(" of 200 files.\nThe same command goes on from there.\n")
    with start(*command) as process:
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0
    assert [line.split() for line in out.splitlines()[3:6]] == [
        ["200", "files"],
        [f"{200 * 18 * 2000:,}", "bytes"],
        ["400,000", "lines"],
    ]
    assert "step 200 of 200, 100%, " in err


def test_a_reader_that_goes_away_is_no_traceback(tree: Path) -> None:
    """``asyncstep demo | head -1`` ends quietly."""
    with start("demo", "--source", tree, "--no-progress") as process:
        cast("IO[str]", process.stdout).close()
        assert cast("IO[str]", process.stderr).read() == ""
    assert process.returncode == 1
