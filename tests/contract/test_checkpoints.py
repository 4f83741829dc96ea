"""Contract K: checkpoints, as far as files alone can keep it. Each is about a directory of checkpoints on disk."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from asyncstep.checkpoint import (
    Checkpoint,
    KeepBest,
    latest_checkpoint,
    list_checkpoints,
    read_checkpoint,
    verify_checkpoint,
)
from asyncstep.checkpoint.retention import Metric, Retention
from asyncstep.checkpoint.state import CheckpointState
from asyncstep.checkpoint.writing import CheckpointWriter, write_checkpoint
from asyncstep.errors import DataLossError, FailedPreconditionError, InvalidTypeError

ran: list[str] = []


def run_me(word: str) -> None:
    """What a pickle bomb would run."""
    ran.append(word)


class Bomb:
    """Runs code of its own when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return run_me, ("boom",)


class Unregistered(NamedTuple):
    x: int


def state(step: int, **variables: Any) -> CheckpointState:
    """A state of these variables and the global step."""
    return CheckpointState(variables={"global_step": step, **variables})


def test_a_checkpoint_holds_all_of_a_state(tmp_path: Path) -> None:
    """K1: variables, global step, source positions, tracked objects and hooks come back by name, read-only."""
    saved = CheckpointState(
        variables={"global_step": 3, "scope/loss": 0.5, "weights": np.arange(3)},
        sources={"lines": {"low": 5, "ranges": [(7, 9)]}},
        tracked={"optimizer": {"lr": 0.1}},
        hooks={"StopAtStepHook": {"last": 9}},
    )
    found = read_checkpoint(write_checkpoint(tmp_path, saved, step=3, clock=lambda: 17.0))
    assert isinstance(found, Checkpoint)
    assert (found.step, found.time, found.path) == (3, 17.0, tmp_path / "step-0000000003")
    assert found.variables["weights"].tolist() == [0, 1, 2]
    assert found.variables["scope/loss"] == 0.5
    assert (found.sources, found.tracked, found.hooks) == (saved.sources, saved.tracked, saved.hooks)
    for section in (found.variables, found.sources, found.tracked, found.hooks):
        assert isinstance(section, Mapping)
        with pytest.raises(TypeError):
            section["new"] = 1  # type: ignore[index]


def test_there_is_no_pointer_file(tmp_path: Path) -> None:
    """K2: the newest directory whose manifest holds is the latest; deleting one makes the one before it the latest."""
    for step in (1, 2):
        write_checkpoint(tmp_path, state(step), step=step)
    assert {name for name in os.listdir(tmp_path) if not name.startswith(".")} == {
        "step-0000000001",
        "step-0000000002",
    }
    (tmp_path / "step-0000000002").rename(tmp_path / "elsewhere")
    assert latest_checkpoint(tmp_path) == tmp_path / "step-0000000001"


SAVE_FOR_EVER = """
import sys, numpy
from asyncstep.checkpoint.retention import Retention
from asyncstep.checkpoint.state import CheckpointState
from asyncstep.checkpoint.writing import CheckpointWriter
with CheckpointWriter(sys.argv[1]) as writer:
    for step in range(int(sys.argv[2]), 10**9):
        array = numpy.full(20_000, step)
        path = writer.write(CheckpointState(variables={"global_step": step, "array": array}), step=step)
        print(step, flush=True)
        writer.prune(Retention(max_to_keep=2))
"""


def test_kill_9_loses_nothing_whose_save_had_finished(tmp_path: Path) -> None:
    """K2, K3: killed while it saves and deletes, again and again, each run leaves its newest finished save."""
    step = 0
    for round_number in range(8):
        with subprocess.Popen(
            [sys.executable, "-c", SAVE_FOR_EVER, str(tmp_path), str(step + 1)],
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdout is not None
            for _ in range(3 + round_number):
                finished = int(process.stdout.readline())
            process.send_signal(signal.SIGKILL)
        newest = latest_checkpoint(tmp_path)
        assert newest is not None
        found = read_checkpoint(newest)
        assert found.step >= finished
        assert set(found.variables["array"].tolist()) == {found.step}
        for info in list_checkpoints(tmp_path):
            verify_checkpoint(info.path)
        step = found.step
    with CheckpointWriter(tmp_path):
        assert all(name == ".lock" or name.startswith("step-") for name in os.listdir(tmp_path))


def test_a_damaged_checkpoint_is_reported_and_the_one_before_is_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """K3: WARNING where the latest is looked for, DataLossError where the damaged one is asked for by name."""
    paths = [write_checkpoint(tmp_path, state(step, text="abc"), step=step) for step in (1, 2)]
    content = (paths[1] / "state.msgpack").read_bytes()
    (paths[1] / "state.msgpack").write_bytes(content.replace(b"abc", b"abd"))
    with caplog.at_level(logging.WARNING, logger="asyncstep"):
        assert latest_checkpoint(tmp_path) == paths[0]
    assert "step-0000000002 is damaged: state.msgpack does not match its checksum" in caplog.text
    for examine in (verify_checkpoint, read_checkpoint):
        with pytest.raises(DataLossError, match=r"state.msgpack does not match its checksum"):
            examine(paths[1])


def test_nothing_starts_from_scratch_over_damaged_work(tmp_path: Path) -> None:
    """K3: checkpoints of which none is sound are DataLossError, not None; and nothing is deleted."""
    for step in (1, 2):
        (write_checkpoint(tmp_path, state(step), step=step) / "state.msgpack").write_bytes(b"")
    with pytest.raises(DataLossError, match="none of the checkpoints"):
        latest_checkpoint(tmp_path)
    with CheckpointWriter(tmp_path) as writer:
        writer.prune(Retention(max_to_keep=1))
    assert sorted(name for name in os.listdir(tmp_path) if name.startswith("step")) == [
        "step-0000000001",
        "step-0000000002",
    ]


@pytest.mark.parametrize("bad", [threading.Lock(), Unregistered(1), {"deep": [object()]}])
def test_what_cannot_be_saved_is_said_before_anything_is_written(tmp_path: Path, bad: object) -> None:
    """K5, K6: the error names the variable and the type; no directory and no file appears."""
    with pytest.raises(InvalidTypeError, match=r"the variable 'bad' cannot be saved: .*there is an? "):
        write_checkpoint(tmp_path / "new", state(1, good=1, bad=bad), step=1)
    assert list_checkpoints(tmp_path / "new") == []


def test_nothing_is_unpickled_unless_both_ends_ask_for_it(tmp_path: Path) -> None:
    """K6: pickle takes allow_pickle=True at the save and at the restore; a bomb does not run before that."""
    ran.clear()
    with pytest.raises(InvalidTypeError, match="Bomb"):
        write_checkpoint(tmp_path, state(1, bomb=Bomb()), step=1)
    path = write_checkpoint(tmp_path, state(1, bomb=Bomb()), step=1, allow_pickle=True)
    verify_checkpoint(path)
    assert latest_checkpoint(tmp_path) == path
    with pytest.raises(FailedPreconditionError, match="'bomb' cannot be restored: it was saved with pickle"):
        read_checkpoint(path)
    assert ran == []
    read_checkpoint(path, allow_pickle=True)
    assert ran == ["boom"]


def test_retention_composes_and_is_remembered_across_restarts(tmp_path: Path) -> None:
    """K8: newest N, every n hours and best n add up, for the checkpoints of earlier runs as for those of this one."""
    retention = Retention(max_to_keep=2, keep_every_n_hours=3, keep_best=KeepBest("loss", n=1))
    for step in range(10):
        with CheckpointWriter(tmp_path, clock=lambda step=step: 3600.0 * step) as writer:
            writer.write(state(step), step=step, metric=Metric("loss", abs(step - 4)))
            writer.prune(retention, in_use=[5])
    assert [info.step for info in list_checkpoints(tmp_path)] == [0, 3, 4, 5, 6, 8, 9]


def test_the_newest_and_the_one_in_use_are_never_deleted(tmp_path: Path) -> None:
    """K8: whatever the rules say: the newest is the worst, and the oldest is in use, and both stay."""
    with CheckpointWriter(tmp_path) as writer:
        for step in range(4):
            writer.write(state(step), step=step, metric=Metric("loss", step))
        deleted = writer.prune(Retention(max_to_keep=1, keep_best=KeepBest("loss", mode="min")), in_use=[1])
    assert deleted == [tmp_path / "step-0000000002"]


def test_one_writer_a_directory(tmp_path: Path) -> None:
    """K9: a second writer is refused, in this process as in another, and the error names the process."""
    with CheckpointWriter(tmp_path) as writer:
        writer.write(state(1), step=1)
        with pytest.raises(FailedPreconditionError, match=f"another saver of this process .{os.getpid()}"):
            write_checkpoint(tmp_path, state(2), step=2)
        refused = subprocess.run(
            [sys.executable, "-c", SAVE_FOR_EVER, str(tmp_path), "2"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert f"is being written to by the process {os.getpid()} on " in refused.stderr
        assert [info.step for info in list_checkpoints(tmp_path)] == [1]
