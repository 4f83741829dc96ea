"""One writer per directory (contract K9)."""

from __future__ import annotations

import errno
import json
import logging
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from asyncstep.checkpoint import list_checkpoints, lock
from asyncstep.checkpoint.lock import DirectoryLock
from asyncstep.checkpoint.writing import CheckpointWriter, write_checkpoint
from asyncstep.errors import FailedPreconditionError

from .parts import state

HOLDER = """
import sys
from asyncstep.checkpoint.writing import CheckpointWriter
with CheckpointWriter(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""

HOLDER_WITH_CHILD = """
import os, sys
from asyncstep.checkpoint.writing import CheckpointWriter
with CheckpointWriter(sys.argv[1]):
    read, write = os.pipe()
    child = os.fork()
    if child == 0:  # a process pool's worker: lives on when its parent is killed
        os.close(write)
        print(os.getpid(), flush=True)
        sys.stdin.read()
        os._exit(0)
    os.read(read, 1)
"""


def holder(program: str, directory: Path) -> subprocess.Popen[str]:
    """A process that holds the directory until its standard input ends."""
    return subprocess.Popen(
        [sys.executable, "-c", program, str(directory)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def line_of(process: subprocess.Popen[str]) -> str:
    """The next line that a process writes."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_a_second_process_is_refused_with_the_first_one_named(tmp_path: Path) -> None:
    """K9: the error says which process on which host has the directory; when that ends, the way is free."""
    with holder(HOLDER, tmp_path) as process:
        assert line_of(process) == "held"
        with pytest.raises(
            FailedPreconditionError,
            match=f"written to by the process {process.pid} on {socket.gethostname()}",
        ):
            write_checkpoint(tmp_path, state(), step=1)
        assert list_checkpoints(tmp_path) == []
    write_checkpoint(tmp_path, state(), step=1)


def test_the_lock_dies_with_its_process(tmp_path: Path) -> None:
    """K9: killed with SIGKILL, a process leaves no lock behind."""
    with holder(HOLDER, tmp_path) as process:
        assert line_of(process) == "held"
        process.kill()
    write_checkpoint(tmp_path, state(), step=1)


def test_children_do_not_keep_the_lock(tmp_path: Path) -> None:
    """K9: a child made by fork that outlives its killed parent does not hold the directory."""
    with holder(HOLDER_WITH_CHILD, tmp_path) as process:
        child = int(line_of(process))
        process.kill()
        process.wait()
        os.kill(child, 0)
        write_checkpoint(tmp_path, state(), step=1)
        os.kill(child, signal.SIGKILL)


def test_two_writers_of_one_process_are_refused_as_two_processes_are(tmp_path: Path) -> None:
    """K9: the second writer of the same process is refused, by whatever path it comes; another directory is fine."""
    (tmp_path / "link").symlink_to(tmp_path, target_is_directory=True)
    with CheckpointWriter(tmp_path), CheckpointWriter(tmp_path / "other"):
        for path in (tmp_path, tmp_path / "link"):
            with pytest.raises(
                FailedPreconditionError, match=f"another saver of this process .{os.getpid()}"
            ):
                write_checkpoint(path, state(), step=1)
        # The refused one has not taken the lock away: another process is refused still.
        with holder(HOLDER, tmp_path) as process:
            assert line_of(process) == ""
    write_checkpoint(tmp_path, state(), step=1)


def test_a_writer_may_enter_again(tmp_path: Path) -> None:
    """The holder enters and leaves as often as it likes; the directory is free when it has left for the last time."""
    with CheckpointWriter(tmp_path) as writer:
        with writer:
            writer.write(state(), step=1)
        writer.write(state(), step=2)
        with pytest.raises(FailedPreconditionError):
            write_checkpoint(tmp_path, state(), step=3)
    write_checkpoint(tmp_path, state(), step=3)


def test_entering_again_leaves_a_save_in_flight_alone(tmp_path: Path) -> None:
    """Only the first entering removes what was left unfinished."""
    with CheckpointWriter(tmp_path) as writer:
        (tmp_path / ".new-step-0000000001-1").mkdir()
        with writer:
            assert (tmp_path / ".new-step-0000000001-1").is_dir()
    with writer:
        assert not (tmp_path / ".new-step-0000000001-1").exists()


def test_a_fork_does_not_inherit_the_right(tmp_path: Path) -> None:
    """A child made by fork is another process: refused, with its parent named."""
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()

    def try_it() -> None:
        try:
            write_checkpoint(tmp_path, state(), step=1)
        except FailedPreconditionError as error:
            answers.put(str(error))

    with CheckpointWriter(tmp_path):
        child = context.Process(target=try_it)
        child.start()
        child.join()
    assert f"the process {os.getpid()} on " in answers.get()


def test_reading_the_lock_file_does_not_end_the_lock(tmp_path: Path) -> None:
    """Copying the directory, lock file and all, leaves it locked."""
    with CheckpointWriter(tmp_path):
        shutil.copytree(tmp_path, tmp_path.parent / "copy")
        with holder(HOLDER, tmp_path) as process:
            assert line_of(process) == ""


def test_the_lock_names_its_process(tmp_path: Path) -> None:
    """The file of the lock says for people who has it."""
    with DirectoryLock(tmp_path) as held:
        assert held.held
        assert json.loads((tmp_path / ".lock").read_text()) == {
            "pid": os.getpid(),
            "host": socket.gethostname(),
        }
    assert not held.held


def test_an_unreadable_name_is_another_process(tmp_path: Path) -> None:
    """A lock file whose content tells nothing does not hide that the directory is taken."""
    with holder(HOLDER, tmp_path) as process:
        assert line_of(process) == "held"
        (tmp_path / ".lock").write_text("[]")
        with pytest.raises(FailedPreconditionError, match="written to by another process"):
            write_checkpoint(tmp_path, state(), step=1)


def test_a_file_system_without_locks_is_used_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where there are no locks, saving works, and a WARNING says what is missing."""

    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock.fcntl, "flock", no_locks)
    with caplog.at_level(logging.WARNING):
        write_checkpoint(tmp_path, state(), step=1)
    assert "nothing keeps a second writer out" in caplog.text


def test_a_full_disk_does_not_keep_the_lock_from_being_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the holder's name cannot be written, the directory is locked all the same."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(lock.os, "ftruncate", full)
    with CheckpointWriter(tmp_path), pytest.raises(FailedPreconditionError):
        write_checkpoint(tmp_path, state(), step=1)


def test_other_errors_of_the_lock_are_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that says nothing of another holder is raised as it is, and the lock can be tried again."""

    def broken(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(lock.fcntl, "flock", broken)
        with pytest.raises(OSError, match="Input/output"):
            write_checkpoint(tmp_path, state(), step=1)
    write_checkpoint(tmp_path, state(), step=1)
