"""Checkpoints in a directory of the file system: what stands there at any instant (contract K2)."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from asyncstep.checkpoint import latest_checkpoint, list_checkpoints, read_checkpoint, verify_checkpoint
from asyncstep.checkpoint.file_system import OperatingSystem
from asyncstep.checkpoint.local import LocalDirectory
from asyncstep.checkpoint.retention import Retention
from asyncstep.checkpoint.writing import CheckpointWriter, write_checkpoint
from asyncstep.errors import FailedPreconditionError, InvalidArgumentError, InvalidTypeError

from .parts import Crash, FailingDisk, ForgetfulDisk, crashing_at, full_at, save, state

ARRAY = np.arange(100.0)


def two_saves(directory: Path, disk: FailingDisk) -> None:
    """Save steps 2 and 3 beside a sound step 1, and then keep the newest only."""
    with CheckpointWriter(LocalDirectory(directory, system=disk)) as writer:
        for step in (2, 3):
            writer.write(state(global_step=step, array=ARRAY + step), step=step)
        writer.prune(Retention(max_to_keep=1))


def steps_found(directory: Path) -> list[int]:
    """The steps of the checkpoints that are listed, each of which must be sound."""
    infos = list_checkpoints(directory)
    for info in infos:
        assert read_checkpoint(info.path).variables["global_step"] == info.step
        assert np.array_equal(read_checkpoint(info.path).variables["array"], ARRAY + info.step)
    return [info.step for info in infos]


def number_of_operations(directory: Path, act: Callable[[Path, FailingDisk], None]) -> int:
    """How many operations the act needs if nothing fails."""
    disk = FailingDisk()
    save(directory, 1, array=ARRAY + 1)
    act(directory, disk)
    return disk.count


def test_a_checkpoint_has_its_files_and_nothing_else_is_there(tmp_path: Path) -> None:
    """A directory has the lock and step-N directories, each with the manifest, the state and the arrays."""
    path = save(tmp_path / "a" / "b", 12300, array=ARRAY)
    assert path == tmp_path / "a" / "b" / "step-0000012300"
    assert sorted(os.listdir(path.parent)) == [".lock", "step-0000012300"]
    assert sorted(os.listdir(path)) == ["MANIFEST.json", "arrays-00000.safetensors", "state.msgpack"]


def test_every_crash_leaves_sound_checkpoints(tmp_path: Path) -> None:
    """K2, K3: killed at any operation, the newest checkpoint is the old or the new one, and all listed are sound."""
    seen = set()
    for number in range(number_of_operations(tmp_path / "whole", two_saves)):
        place = tmp_path / str(number)
        save(place, 1, array=ARRAY + 1)
        with pytest.raises(Crash):
            two_saves(place, crashing_at(number))
        steps = steps_found(place)
        seen.add(tuple(steps))
        assert latest_checkpoint(place) == place / f"step-{steps[-1]:010d}"
        # The next writer goes on, and what was left over is gone.
        save(place, 4, array=ARRAY + 4)
        assert {name for name in os.listdir(place) if name.startswith((".new", ".old"))} == set()
        assert steps_found(place) == [*steps, 4]
    assert seen == {(1,), (1, 2), (1, 2, 3), (2, 3), (3,)}


def test_every_loss_of_power_leaves_sound_checkpoints(tmp_path: Path) -> None:
    """K2: a disk that forgets what was not fsynced still has the newest checkpoint whose save has returned."""
    for number in range(number_of_operations(tmp_path / "whole", two_saves)):
        place = tmp_path / str(number)
        save(place, 1, array=ARRAY + 1)
        disk = ForgetfulDisk(lambda count, name, number=number: Crash() if count >= number else None)
        returned = [1]
        with pytest.raises(Crash), CheckpointWriter(LocalDirectory(place, system=disk)) as writer:
            for step in (2, 3):
                writer.write(state(global_step=step, array=ARRAY + step), step=step)
                returned.append(step)
            writer.prune(Retention(max_to_keep=1))
        disk.lose_power()
        assert steps_found(place)[-1] >= returned[-1]


def test_a_new_directory_outlives_a_loss_of_power(tmp_path: Path) -> None:
    """K2: when the first save has returned, the directories that it made are durable too."""
    disk = ForgetfulDisk(lambda count, name: None)
    save(tmp_path / "a" / "b", 1, system=disk, array=ARRAY + 1)
    disk.lose_power()
    assert steps_found(tmp_path / "a" / "b") == [1]


def test_a_full_disk_leaves_the_former_checkpoint_and_no_litter(tmp_path: Path) -> None:
    """K2: an error of the disk anywhere in a save is raised; the former checkpoint is the newest, nothing is left."""

    def one_save(directory: Path, disk: FailingDisk) -> None:
        save(directory, 2, system=disk, array=ARRAY + 2)

    for number in range(number_of_operations(tmp_path / "whole", one_save)):
        place = tmp_path / str(number)
        save(place, 1, array=ARRAY + 1)
        disk = full_at(number)
        try:
            one_save(place, disk)
        except OSError as error:
            assert error.errno == errno.ENOSPC
            assert steps_found(place) == [1]
        else:
            assert steps_found(place) == [1, 2]
        assert sorted(name for name in os.listdir(place) if not name.startswith("step-")) == [".lock"]


def test_a_disk_that_cannot_even_remove_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """If what was written of a failed save cannot be removed, that is a WARNING beside the error of the save."""
    broken = OSError(errno.EIO, "Input/output error")
    disk = FailingDisk(lambda count, name: broken if name in ("sync", "remove_tree") else None)
    with pytest.raises(OSError, match="Input/output"), caplog.at_level(logging.WARNING):
        save(tmp_path, 1, system=disk)
    assert "could not be removed" in caplog.text
    assert list_checkpoints(tmp_path) == []


def test_one_that_cannot_be_removed_whole_is_gone_all_the_same(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Deleting makes a checkpoint disappear at one instant; if its files cannot be removed, that is a WARNING."""
    for step in (1, 2):
        save(tmp_path, step)
    busy = OSError(errno.EBUSY, "Device or resource busy")
    disk = FailingDisk(lambda count, name: busy if name == "remove_tree" else None)
    with CheckpointWriter(LocalDirectory(tmp_path, system=disk)) as writer, caplog.at_level(logging.WARNING):
        assert writer.prune(Retention(max_to_keep=1)) == [tmp_path / "step-0000000001"]
    assert "could not be removed" in caplog.text
    assert [info.step for info in list_checkpoints(tmp_path)] == [2]
    save(tmp_path, 3)
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".old")]


def test_a_damaged_checkpoint_of_the_same_step_is_replaced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """K3: a run that went back behind a damaged checkpoint saves that step again; killed anywhere, step 1 stays."""

    def replace(directory: Path, disk: FailingDisk) -> None:
        path = save(directory, 2)
        (path / "state.msgpack").write_bytes(b"")
        save(directory, 2, system=disk, array=ARRAY + 2)

    with caplog.at_level(logging.WARNING):
        count = number_of_operations(tmp_path / "whole", replace)
    assert steps_found(tmp_path / "whole") == [1, 2]
    assert "state.msgpack has 0 bytes" in caplog.text
    assert "it is replaced" in caplog.text
    for number in range(count):
        place = tmp_path / str(number)
        save(place, 1, array=ARRAY + 1)
        with pytest.raises(Crash):
            replace(place, crashing_at(number))
        assert steps_found(place) in ([1], [1, 2])


def test_the_same_checkpoint_is_not_written_twice(tmp_path: Path) -> None:
    """K5: saving the same state of the same step again leaves the checkpoint that is there as it is."""
    first = save(tmp_path, 1, array=ARRAY)
    inode = first.stat().st_ino
    assert save(tmp_path, 1, array=ARRAY) == first
    assert first.stat().st_ino == inode
    assert sorted(os.listdir(tmp_path)) == [".lock", "step-0000000001"]


def test_a_sound_checkpoint_of_another_run_is_never_overwritten(tmp_path: Path) -> None:
    """K3: other content for a step that has a sound checkpoint is an error, and the checkpoint stays."""
    path = save(tmp_path, 1, array=ARRAY)
    with pytest.raises(
        FailedPreconditionError, match=r"step-0000000001 is a sound checkpoint with other content"
    ):
        save(tmp_path, 1, array=ARRAY + 1)
    assert np.array_equal(read_checkpoint(path).variables["array"], ARRAY)
    assert sorted(os.listdir(tmp_path)) == [".lock", "step-0000000001"]


@pytest.mark.parametrize("step", [-1, 10**20])
def test_impossible_steps_are_refused(tmp_path: Path, step: int) -> None:
    """A step is a number from 0 on."""
    with pytest.raises(InvalidArgumentError, match="is no global step"):
        save(tmp_path, step)


@pytest.mark.parametrize("step", [0, 10**10, 10**18])
def test_all_other_steps_are_fine(tmp_path: Path, step: int) -> None:
    """Steps beyond ten digits are saved, and are newer than those before."""
    save(tmp_path, 3)
    path = save(tmp_path, step)
    verify_checkpoint(path)
    assert [info.step for info in list_checkpoints(tmp_path)] == sorted([3, step])


def test_what_cannot_be_saved_leaves_no_trace(tmp_path: Path) -> None:
    """A value that cannot be saved is an error before anything is written."""
    disk = FailingDisk()
    with pytest.raises(InvalidTypeError, match="'bad'"):
        save(tmp_path, 1, system=disk, good=ARRAY, bad=object())
    assert disk.count == 0


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("", InvalidArgumentError),
        ("a\0b", InvalidArgumentError),
        ("ftp://host/x", InvalidArgumentError),
        (3, InvalidTypeError),
        (b"x", InvalidTypeError),
    ],
)
def test_what_is_no_path_is_refused(path: str, error: type[Exception]) -> None:
    """A URL, a NUL, nothing and what is no path at all are errors, and no directories of odd names are made."""
    with pytest.raises(error, match=r"path|URL"):
        latest_checkpoint(path)


@pytest.mark.parametrize("name", [".new-step-0000000002-{pid}", ".old-step-0000000001-{pid}"])
def test_litter_of_one_s_own_is_in_nobody_s_way(tmp_path: Path, name: str) -> None:
    """What this very process could not remove before is removed when its name is needed again."""
    with CheckpointWriter(tmp_path) as writer:
        litter = tmp_path / name.format(pid=os.getpid())
        litter.mkdir()
        (litter / "state.msgpack").write_text("")
        for step in (1, 2):
            writer.write(state(global_step=step, array=ARRAY + step), step=step)
        writer.prune(Retention(max_to_keep=1))
        assert not litter.exists()
    assert steps_found(tmp_path) == [2]


def test_a_directory_that_another_process_makes_at_the_same_time_is_fine(tmp_path: Path) -> None:
    """Two processes may make the directory of checkpoints at one instant."""

    class Racing(FailingDisk):
        def make_directory(self, path: Path) -> None:
            if not path.name.startswith("."):
                path.mkdir()
            super().make_directory(path)

    save(tmp_path / "a" / "b", 1, system=Racing(), array=ARRAY + 1)
    assert steps_found(tmp_path / "a" / "b") == [1]


def test_a_file_in_place_of_the_directory_is_an_error(tmp_path: Path) -> None:
    """A file where the directory should be is an error that names it."""
    (tmp_path / "file").write_text("")
    with pytest.raises(FailedPreconditionError, match="file is not a directory"):
        list_checkpoints(tmp_path / "file")
    with pytest.raises(FailedPreconditionError, match="file is not a directory"):
        write_checkpoint(tmp_path / "file", state(), step=1)


def test_a_writer_writes_inside_its_with_only(tmp_path: Path) -> None:
    """Without the lock nothing is written and nothing deleted."""
    writer = CheckpointWriter(tmp_path)
    with pytest.raises(FailedPreconditionError, match="inside its `with`"):
        writer.write(state(), step=1)
    with pytest.raises(FailedPreconditionError, match="inside its `with`"):
        writer.prune(Retention())


@pytest.mark.parametrize("exchanges", [True, False])
def test_a_later_state_of_the_same_step_takes_its_place_at_one_instant(
    tmp_path: Path, exchanges: bool
) -> None:
    """K2: killed anywhere, one of the two is there; to every reader at once where the system exchanges names."""

    def value(directory: Path) -> list[int]:
        return [read_checkpoint(info.path).variables["value"] for info in list_checkpoints(directory)]

    def replace(directory: Path, disk: FailingDisk) -> None:
        save(directory, 1, value=1)
        disk.exchanges = exchanges
        with CheckpointWriter(LocalDirectory(directory, system=disk)) as writer:
            writer.write(state(value=2), step=1, replace=True)

    (tmp_path / "one").mkdir()
    (tmp_path / "other").mkdir()
    if exchanges and not FailingDisk().exchange(tmp_path / "one", tmp_path / "other"):
        pytest.skip("this file system cannot exchange two names")
    disk = FailingDisk()
    replace(tmp_path / "whole", disk)
    assert value(tmp_path / "whole") == [2]
    seen = set()
    for number in range(disk.count):
        place = tmp_path / str(number)
        with pytest.raises(Crash):
            replace(place, crashing_at(number))
        found = value(place)
        assert found in ([1], [2]) or (found == [] and not exchanges)
        with CheckpointWriter(place):
            assert value(place) in ([1], [2])
        seen.add(str(value(place)))
    assert seen == {"[1]", "[2]"}


def test_an_exchange_that_fails_for_another_reason_says_so(tmp_path: Path) -> None:
    """K2: what the disk says about two names that cannot be exchanged is not taken for a missing feature."""
    (tmp_path / "one").mkdir()
    if OperatingSystem().exchange(tmp_path / "one", tmp_path / "one") is False:
        pytest.skip("this file system cannot exchange two names")
    with pytest.raises(FileNotFoundError, match="other"):
        OperatingSystem().exchange(tmp_path / "one", tmp_path / "other")


def test_a_checkpoint_that_was_set_aside_for_one_that_never_came_is_put_back(tmp_path: Path) -> None:
    """K2: a process that dies while it replaces a checkpoint of the same step loses neither."""
    directory = LocalDirectory(tmp_path)
    there = tmp_path / "step-0000000003"
    there.mkdir()
    (there / "MANIFEST.json").write_text("{}")
    directory.set_aside("step-0000000003", for_another=True)
    assert directory.names() == []
    directory.clear()
    assert directory.names() == ["step-0000000003"]
    assert (there / "MANIFEST.json").read_text() == "{}"
    directory.delete("step-0000000003")
    directory.clear()
    assert directory.names() == []
