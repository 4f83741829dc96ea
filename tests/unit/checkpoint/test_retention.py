"""Which checkpoints are deleted (contract K8)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st

from asyncstep import Graph, Variable
from asyncstep.checkpoint import KeepBest, list_checkpoints
from asyncstep.checkpoint.retention import Metric, Retention, to_delete
from asyncstep.checkpoint.writing import CheckpointWriter
from asyncstep.errors import InvalidArgumentError, InvalidTypeError

from .parts import save, state

HOUR = 3600.0


@dataclass(frozen=True)
class Saved:
    step: int
    time: float = 0.0
    metric: Metric | None = None


def losses(*values: float) -> list[Saved]:
    """Checkpoints of steps 1, 2, ... with these losses."""
    return [Saved(step, 0.0, Metric("loss", value)) for step, value in enumerate(values, 1)]


def kept(checkpoints: list[Saved], retention: Retention, in_use: tuple[int, ...] = ()) -> list[int]:
    """The steps that are not deleted."""
    gone = to_delete(checkpoints, retention, in_use)
    return [checkpoint.step for checkpoint in checkpoints if checkpoint.step not in gone]


def test_the_newest_are_kept() -> None:
    """K8: newest N by step, in whatever order they are given; the rest go, oldest first."""
    checkpoints = [Saved(step) for step in (30, 10, 20, 40, 5)]
    assert to_delete(checkpoints, Retention(max_to_keep=2)) == [5, 10, 20]
    assert to_delete(checkpoints, Retention()) == []
    assert to_delete([*checkpoints, Saved(50)], Retention()) == [5]


def test_none_keeps_all() -> None:
    """K8: without a number nothing is deleted."""
    assert to_delete(losses(*range(50)), Retention(max_to_keep=None)) == []


def test_nothing_of_nothing() -> None:
    """Where there are no checkpoints, none is deleted."""
    assert to_delete([], Retention(max_to_keep=1, keep_every_n_hours=1, keep_best=KeepBest("x"))) == []


def test_one_every_n_hours_is_kept_too() -> None:
    """K8: beside the newest the first one stays, and each that is at least n hours after the last that stays."""
    every_20_minutes = [Saved(step, step * HOUR / 3) for step in range(10)]
    retention = Retention(max_to_keep=1, keep_every_n_hours=1)
    assert kept(every_20_minutes, retention) == [0, 3, 6, 9]
    assert kept(every_20_minutes, Retention(max_to_keep=1, keep_every_n_hours=2.5)) == [0, 8, 9]


def test_a_clock_that_was_wrong_once_does_no_lasting_harm() -> None:
    """One checkpoint saved with a clock in the far future does not end the keeping of one every n hours."""
    times = [0, 1, 1e6, 2, 3, 4]
    checkpoints = [Saved(step, hours * HOUR) for step, hours in enumerate(times)]
    assert kept(checkpoints, Retention(max_to_keep=1, keep_every_n_hours=2)) == [0, 2, 3, 5]


@pytest.mark.parametrize(("mode", "expected"), [("min", [2, 4, 5]), ("max", [1, 3, 5])])
def test_the_best_are_kept_too(mode: Any, expected: list[int]) -> None:
    """K8: the best n by the metric stay beside the newest, which stays however bad it is."""
    retention = Retention(max_to_keep=1, keep_best=KeepBest("loss", n=2, mode=mode))
    assert kept(losses(9, 1, 8, 2, 5), retention) == expected


def test_of_equals_the_earlier_is_better() -> None:
    """A plateau keeps the first of its checkpoints."""
    assert kept(losses(3, 1, 1, 1), Retention(max_to_keep=1, keep_best=KeepBest("loss"))) == [2, 4]


def test_nan_is_never_best() -> None:
    """A NaN is not among the best, in either mode; infinities are numbers."""
    for mode in ("min", "max"):
        retention = Retention(max_to_keep=1, keep_best=KeepBest("loss", n=2, mode=mode))
        assert kept(losses(math.nan, 1, math.nan, 2), retention) == [2, 4]
    retention = Retention(max_to_keep=1, keep_best=KeepBest("loss", mode="max"))
    assert kept(losses(math.inf, 1, 0), retention) == [1, 3]


def test_other_metrics_do_not_count() -> None:
    """Checkpoints measured by another metric, or not at all, are not compared."""
    checkpoints = [Saved(1, 0, Metric("accuracy", 0.0)), Saved(2), *losses(0, 0, 5, 7, 9)[2:]]
    assert kept(checkpoints, Retention(max_to_keep=1, keep_best=KeepBest("loss"))) == [3, 5]


def test_those_in_use_are_kept() -> None:
    """K8: a step that somebody needs is never deleted."""
    checkpoints = [Saved(step) for step in range(5)]
    assert kept(checkpoints, Retention(max_to_keep=1), (0, 2, 99)) == [0, 2, 4]


def test_a_metric_is_named_by_its_node() -> None:
    """A node, a variable and a name are the same metric."""
    with Graph():
        loss = Variable(0.0, name="loss")
    assert KeepBest(loss).name == KeepBest("loss").name == "loss"


saved = st.lists(
    st.builds(
        Saved,
        st.integers(0, 10**6),
        st.floats(0, 1e6),
        st.none() | st.builds(Metric, st.sampled_from(["a", "b"]), st.floats()),
    ),
    unique_by=lambda checkpoint: checkpoint.step,
    max_size=20,
)
retentions = st.builds(
    Retention,
    st.none() | st.integers(1, 5),
    st.none() | st.floats(0.1, 100),
    st.none() | st.builds(KeepBest, st.just("a"), st.integers(1, 3), st.sampled_from(["min", "max"])),
)


@given(saved, retentions)
def test_the_decision_is_stable(checkpoints: list[Saved], retention: Retention) -> None:
    """K8: the newest stays, only what is there goes, and what was decided once is not decided otherwise later."""
    gone = to_delete(checkpoints, retention)
    steps = sorted(checkpoint.step for checkpoint in checkpoints)
    assert set(gone) <= set(steps[:-1])
    left = [checkpoint for checkpoint in checkpoints if checkpoint.step not in gone]
    assert to_delete(left, retention) == []
    assert to_delete(list(reversed(checkpoints)), retention) == gone


@given(saved, retentions)
def test_deciding_after_each_save_keeps_what_deciding_at_the_end_would(
    checkpoints: list[Saved], retention: Retention
) -> None:
    """K8: restarts change nothing: what is kept depends on what was saved, not on when it was decided."""
    there: list[Saved] = []
    ordered = sorted(checkpoints, key=lambda checkpoint: checkpoint.step)
    for checkpoint in ordered:
        there.append(checkpoint)
        gone = to_delete(there, retention)
        there = [one for one in there if one.step not in gone]
    assert [one.step for one in there] == kept(ordered, retention)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"max_to_keep": 0}, InvalidArgumentError),
        ({"max_to_keep": -1}, InvalidArgumentError),
        ({"max_to_keep": 1.5}, InvalidTypeError),
        ({"max_to_keep": True}, InvalidTypeError),
        ({"keep_every_n_hours": 0}, InvalidArgumentError),
        ({"keep_every_n_hours": -1.0}, InvalidArgumentError),
        ({"keep_every_n_hours": math.nan}, InvalidArgumentError),
        ({"keep_every_n_hours": "1"}, InvalidTypeError),
        ({"keep_best": "loss"}, InvalidTypeError),
    ],
    ids=str,
)
def test_impossible_retentions_are_refused(arguments: dict[str, Any], error: type[Exception]) -> None:
    """Numbers that are none or not positive are errors that name the argument."""
    with pytest.raises(error, match=next(iter(arguments))):
        Retention(**arguments)


@pytest.mark.parametrize("arguments", [{"n": 0}, {"n": "1"}, {"mode": "best"}], ids=str)
def test_impossible_bests_are_refused(arguments: dict[str, Any]) -> None:
    """KeepBest takes a positive number and one of two modes."""
    with pytest.raises(InvalidArgumentError, match=f"{next(iter(arguments))} of KeepBest"):
        KeepBest("loss", **arguments)


def test_checkpoints_of_earlier_runs_count(tmp_path: Path) -> None:
    """K8: retention is remembered across restarts: by what the manifests say, the best of a former run is kept."""
    for run in range(3):
        with CheckpointWriter(tmp_path, clock=lambda: 0.0) as writer:
            for step in range(run * 10, run * 10 + 5):
                writer.write(state(), step=step, metric=Metric("loss", abs(step - 2)))
                writer.prune(Retention(max_to_keep=2, keep_best=KeepBest("loss")))
    assert [info.step for info in list_checkpoints(tmp_path)] == [2, 23, 24]


def test_damaged_ones_are_neither_counted_nor_deleted(tmp_path: Path) -> None:
    """What is damaged does not push out what is sound, and stays to be looked at."""
    for step in range(1, 5):
        save(tmp_path, step)
    for step in (1, 4):
        (tmp_path / f"step-{step:010d}" / "MANIFEST.json").write_text("")
    with CheckpointWriter(tmp_path) as writer:
        assert writer.prune(Retention(max_to_keep=1)) == [tmp_path / "step-0000000002"]
    assert [info.step for info in list_checkpoints(tmp_path)] == [3]
    assert (tmp_path / "step-0000000001").exists()
