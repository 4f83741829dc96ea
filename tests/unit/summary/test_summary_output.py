"""Where the summaries of hooks go: one writer a directory, the rate, evaluations, and MonitoredTrainingSession."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from asyncstep import Graph, MonitoredSession, MonitoredTrainingSession, Node, Scaffold, op
from asyncstep.hooks import EvaluatorHook, StepCounterHook, SummarySaverHook
from asyncstep.summary import Scalar, scalar

from .parts import events, scalars, texts, threads

pytestmark = pytest.mark.anyio


async def step() -> None:
    """A step that does nothing."""


def constant(value: Any, name: str = "constant") -> Node[Any]:
    """A node of that value."""

    @op(name=name)
    async def constant() -> Any:
        return value

    return constant()


async def test_hooks_of_one_directory_share_a_writer(tmp_path: Path) -> None:
    """Also by another name of the directory, and of sessions that overlap: one file, one thread, everything there."""
    (tmp_path / "logs").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "logs")
    with Graph():
        one = constant(1)
        inner = [SummarySaverHook({"inner": one}, save_steps=1, output_dir=tmp_path / "logs")]
        outer = [
            SummarySaverHook({"a": one}, save_steps=1, output_dir=str(tmp_path / "logs")),
            SummarySaverHook({"b": one}, save_steps=1, output_dir=tmp_path / "link" / ".." / "link"),
        ]
        sessions = [MonitoredSession(hooks=outer), MonitoredSession(hooks=inner)]
    async with sessions[0]:
        for _ in range(3):
            await sessions[0].run(step)
        async with sessions[1]:
            await sessions[1].run(step)
            running = len(threads())
        await sessions[0].run(step)
    assert (running, len(list((tmp_path / "logs").iterdir()))) == (1, 1)
    for tag in ("a", "b"):
        assert scalars(tmp_path / "logs", tag) == [(1, 1.0), (2, 1.0), (3, 1.0), (4, 1.0)]
    assert scalars(tmp_path / "logs", "inner") == [(1, 1.0)]


async def test_the_results_of_evaluations_are_written(tmp_path: Path) -> None:
    """Once, however many hooks write there, at the step of the evaluation; what is no summary is left out."""

    async def result() -> dict[str, Any]:
        return {
            "loss": 0.5,
            "by": {"day": 1},
            "matrix": np.eye(2),
            "verdict": "fine",
            "ready": Scalar("own", 3.0),
            "list": [1],
        }

    with Graph():
        hooks = [
            SummarySaverHook({"one": constant(1)}, save_steps=100, output_dir=tmp_path),
            StepCounterHook(output_dir=tmp_path),
            EvaluatorHook(result, every_n_steps=2),
        ]
        session = MonitoredSession(hooks=hooks)
    async with session:
        for _ in range(4):
            await session.run(step)
    assert set(events(tmp_path).Tags()["scalars"]) == {"one", "eval/loss", "eval/by/day", "own"}
    assert scalars(tmp_path, "eval/loss") == [(1, 0.5), (3, 0.5)]
    assert texts(tmp_path, "eval/verdict") == [(1, "fine"), (3, "fine")]


async def test_the_rate_is_written_into_event_files(tmp_path: Path) -> None:
    """TensorBoard reads the rate of StepCounterHook there when the session has ended, however it ended."""
    with Graph():
        session = MonitoredSession(hooks=[StepCounterHook(every_n_steps=4, output_dir=tmp_path)])
    with pytest.raises(ZeroDivisionError):
        async with session:
            for _ in range(10):
                await session.run(step)
            raise ZeroDivisionError
    assert [(at, rate > 0) for at, rate in scalars(tmp_path, "global_step/sec")] == [(5, True), (9, True)]


async def run_training(steps: int, **arguments: Any) -> None:
    """Run steps of a graph with a summary node, in a MonitoredTrainingSession."""
    with Graph():
        loss = constant(0.5, "loss")
        scalar("summary of loss", loss)
        if arguments.pop("scaffold_op", False):
            arguments["scaffold"] = Scaffold(summary_op=loss)
        session = MonitoredTrainingSession(**arguments)
    async with session:
        for _ in range(steps):
            await session.run(loss)


async def test_training_writes_every_summary_node_beside_the_checkpoints(tmp_path: Path) -> None:
    """All the summaries of the graph every 100 steps, and the rate, in one file, in checkpoint_dir by default."""
    await run_training(201, checkpoint_dir=tmp_path)
    assert scalars(tmp_path, "summary of loss") == [(1, 0.5), (101, 0.5), (201, 0.5)]
    assert [at for at, _ in scalars(tmp_path, "global_step/sec")] == [101, 201]
    assert len(list(tmp_path.glob("events.out.tfevents.*"))) == 1


async def test_training_writes_what_the_scaffold_says_where_it_is_told(tmp_path: Path) -> None:
    """summary_op in place of the graph's summaries, summary_dir in place of checkpoint_dir, and other intervals."""
    await run_training(
        5, checkpoint_dir=tmp_path / "a", summary_dir=tmp_path / "b", scaffold_op=True, save_summaries_steps=2
    )
    assert set(events(tmp_path / "b").Tags()["scalars"]) == {"loss"}
    assert [at for at, _ in scalars(tmp_path / "b", "loss")] == [1, 3, 5]
    assert list((tmp_path / "a").glob("events*")) == []


async def test_training_writes_by_time(tmp_path: Path) -> None:
    """With seconds alone, the first step and then when they have passed."""
    await run_training(3, summary_dir=tmp_path, save_summaries_steps=None, save_summaries_secs=1e9)
    assert scalars(tmp_path, "summary of loss") == [(1, 0.5)]


async def test_training_writes_nothing_unless_it_has_a_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a directory, and without an interval, there are no event files."""
    monkeypatch.chdir(tmp_path)
    await run_training(3)
    await run_training(3, checkpoint_dir="a", save_summaries_steps=0)
    assert list(tmp_path.rglob("events*")) == []
