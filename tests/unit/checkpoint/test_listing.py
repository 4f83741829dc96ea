"""Which checkpoints there are, and which is the newest sound one."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest

from asyncstep.checkpoint import (
    CheckpointInfo,
    latest_checkpoint,
    list_checkpoints,
    listing,
    read_checkpoint,
)
from asyncstep.checkpoint.directory import Directory
from asyncstep.checkpoint.manifest import Manifest
from asyncstep.checkpoint.retention import Metric
from asyncstep.checkpoint.writing import write_checkpoint
from asyncstep.errors import DataLossError, InvalidTypeError

from .parts import save, state


def damage(path: Path) -> None:
    """Flip a bit of a checkpoint's state, so that only a checksum can tell."""
    content = bytearray((path / "state.msgpack").read_bytes())
    content[-1] ^= 1
    (path / "state.msgpack").write_bytes(content)


def test_where_there_is_nothing_there_is_no_latest(tmp_path: Path) -> None:
    """No directory, and a directory with no checkpoints, are None and an empty list: nothing was lost."""
    (tmp_path / ".new-step-0000000001-77").mkdir()
    (tmp_path / "step-1").mkdir()
    (tmp_path / "notes.txt").write_text("")
    for directory in (tmp_path, tmp_path / "missing"):
        assert latest_checkpoint(directory) is None
        assert list_checkpoints(directory) == []


def test_checkpoints_are_listed_by_step(tmp_path: Path) -> None:
    """The list is in the order of steps, with path, step, time, size and what was measured."""
    save(tmp_path, 10**10)
    save(tmp_path, 20)
    path = write_checkpoint(tmp_path, state(), step=3, metric=Metric("loss", 0.5), clock=lambda: 12.5)
    infos = list_checkpoints(str(tmp_path))
    assert [info.step for info in infos] == [3, 20, 10**10]
    assert infos[0] == CheckpointInfo(
        path, 3, 12.5, (path / "state.msgpack").stat().st_size, Metric("loss", 0.5)
    )


@pytest.mark.parametrize("value", [0.1, -0.0, float("inf"), float("-inf"), 1e300, 3])
def test_metrics_come_back(tmp_path: Path, value: float) -> None:
    """What was measured is remembered to the bit, infinities too."""
    path = write_checkpoint(tmp_path, state(), step=1, metric=Metric("a/b", value))
    assert repr(list_checkpoints(tmp_path)[0].metric) == repr(Metric("a/b", float(value)))
    assert read_checkpoint(path).metric == Metric("a/b", value)


def test_a_metric_that_is_no_number_is_remembered_as_one(tmp_path: Path) -> None:
    """NaN comes back as NaN."""
    write_checkpoint(tmp_path, state(), step=1, metric=Metric("x", float("nan")))
    metric = list_checkpoints(tmp_path)[0].metric
    assert metric is not None
    assert repr(metric.value) == "nan"


@pytest.mark.parametrize("metric", [Metric("x", None), Metric("x", "high"), Metric("\ud800", 1.0)])  # type: ignore[arg-type]
def test_what_is_no_metric_is_refused(tmp_path: Path, metric: Metric) -> None:
    """A metric that is no number, or has a name that cannot be written, is an error before anything is written."""
    with pytest.raises(InvalidTypeError, match="must be a number"):
        write_checkpoint(tmp_path, state(), step=1, metric=metric)
    assert list_checkpoints(tmp_path) == []


def test_the_newest_is_the_latest(tmp_path: Path) -> None:
    """The latest is the one with the highest step, whatever was saved last."""
    for step in (5, 100, 7):
        save(tmp_path, step)
    assert latest_checkpoint(tmp_path) == tmp_path / "step-0000000100"


def test_a_damaged_newest_is_passed_over_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """K3: the one before is used, and a WARNING of the logger asyncstep says what is damaged."""
    for step in (1, 2, 3, 4):
        save(tmp_path, step)
    damage(tmp_path / "step-0000000004")
    shutil.rmtree(tmp_path / "step-0000000003")
    (tmp_path / "step-0000000003").write_text("not a directory")
    with caplog.at_level(logging.WARNING):
        assert latest_checkpoint(tmp_path) == tmp_path / "step-0000000002"
    assert [(record.name, record.levelname) for record in caplog.records] == [("asyncstep", "WARNING")] * 2
    assert "step-0000000004 is damaged: state.msgpack does not match its checksum" in caplog.text


def test_only_damaged_checkpoints_are_an_error(tmp_path: Path) -> None:
    """K3: where there are checkpoints and none is sound, nothing may start from scratch."""
    for step in (1, 2):
        damage(save(tmp_path, step))
    with pytest.raises(DataLossError, match=r"none of the checkpoints in .* is sound: .*000002 .*000001 "):
        latest_checkpoint(tmp_path)


def test_a_damaged_manifest_takes_one_off_the_list(tmp_path: Path) -> None:
    """What has no sound manifest or files of wrong lengths is not listed; a flipped bit in a file is not looked for."""
    for step in (1, 2, 3):
        save(tmp_path, step)
    (tmp_path / "step-0000000001" / "MANIFEST.json").write_text("{}")
    (tmp_path / "step-0000000002" / "state.msgpack").write_text("")
    damage(tmp_path / "step-0000000003")
    assert [info.step for info in list_checkpoints(tmp_path)] == [3]


def test_one_that_is_deleted_meanwhile_is_not_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A list made while a writer deletes has those that were there throughout."""
    for step in (1, 2):
        save(tmp_path, step)
    real = listing.read_manifest

    def read_manifest(directory: Directory, name: str) -> Manifest:
        shutil.rmtree(tmp_path / "step-0000000001", ignore_errors=True)
        return real(directory, name)

    monkeypatch.setattr(listing, "read_manifest", read_manifest)
    assert [info.step for info in list_checkpoints(tmp_path)] == [2]


@pytest.mark.parametrize("damaged", [False, True])
def test_one_that_is_deleted_while_it_is_checked_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, damaged: bool
) -> None:
    """A writer may delete old checkpoints while another process looks for the latest: it finds the newer one."""
    save(tmp_path, 1)
    real = listing.check

    def check(directory: Directory, name: str) -> Manifest:
        if name == "step-0000000001":
            save(tmp_path, 2)
            if damaged:
                (tmp_path / name / "state.msgpack").unlink()
            try:
                return real(directory, name) if damaged else _gone(directory, name)
            finally:
                shutil.rmtree(tmp_path / name, ignore_errors=True)
        return real(directory, name)

    def _gone(directory: Directory, name: str) -> Manifest:
        shutil.rmtree(tmp_path / name)
        return real(directory, name)

    monkeypatch.setattr(listing, "check", check)
    with caplog.at_level(logging.WARNING):
        assert latest_checkpoint(tmp_path) == tmp_path / "step-0000000002"
    assert caplog.text == ""
