"""MonitoredTrainingSession: its arguments, the order of its hooks, and how it resumes."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest

from asyncstep import (
    Graph,
    InvalidArgumentError,
    MonitoredSession,
    MonitoredTrainingSession,
    Recovery,
    Scaffold,
    SessionRunHook,
    Variable,
)
from asyncstep.checkpoint import Saver, latest_checkpoint, list_checkpoints, read_checkpoint
from asyncstep.hooks import StopAtStepHook
from asyncstep.summary import scalar

pytestmark = pytest.mark.anyio

DEFAULTS = {
    "master": "",
    "is_chief": True,
    "checkpoint_dir": None,
    "scaffold": None,
    "hooks": (),
    "chief_only_hooks": (),
    "save_checkpoint_secs": 600,
    "save_checkpoint_steps": None,
    "save_summaries_steps": 100,
    "save_summaries_secs": None,
    "summary_dir": None,
    "log_step_count_steps": 100,
    "stop_grace_period": 120.0,
    "max_wait": 7200.0,
    "recovery": Recovery(),
    "task_group": None,
}


class Silent(SessionRunHook):
    """A hook that does nothing."""


def counting() -> tuple[Graph, Variable[int], Any]:
    """A graph with a counter and the node that adds one to it."""
    graph = Graph()
    with graph:
        count: Variable[int] = Variable(0, name="count")
        return graph, count, count.assign_add(1)


def hooks_of(session: MonitoredSession) -> list[str]:
    """The names of the classes of a session's hooks, in their order."""
    return [type(hook).__name__ for hook in session._life.hooks]


def training(graph: Graph, **options: Any) -> MonitoredSession:
    """A MonitoredTrainingSession of a graph."""
    with graph:
        return MonitoredTrainingSession(**options)


@pytest.mark.parametrize(("name", "default"), DEFAULTS.items())
def test_the_arguments_and_their_defaults(name: str, default: object) -> None:
    """They are those of the API, in its order; all but `master` are keyword-only."""
    assert list(inspect.signature(MonitoredTrainingSession).parameters) == list(DEFAULTS)
    parameter = inspect.signature(MonitoredTrainingSession).parameters[name]
    assert parameter.default == default
    assert (parameter.kind is parameter.KEYWORD_ONLY) is (name != "master")


def test_the_order_of_the_hooks(tmp_path: Path) -> None:
    """The given ones, the chief's, the step counter, summaries, and the saver as the last of the list."""
    first, second, third = Silent(), StopAtStepHook(5), Silent()
    graph, count, _ = counting()
    scalar("count", count)
    session = training(graph, checkpoint_dir=tmp_path, hooks=[first, second], chief_only_hooks=[third])
    assert session._life.hooks[:3] == (first, second, third)
    assert hooks_of(session)[3:] == ["StepCounterHook", "SummarySaverHook", "CheckpointSaverHook"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, ["StepCounterHook"]),
        ({"log_step_count_steps": None}, []),
        ({"log_step_count_steps": 0}, []),
        ({"checkpoint_dir": "there", "save_checkpoint_secs": None}, ["StepCounterHook"]),
        (
            {"checkpoint_dir": "there", "save_checkpoint_secs": None, "save_checkpoint_steps": 5},
            ["StepCounterHook", "CheckpointSaverHook"],
        ),
        ({"checkpoint_dir": "there", "log_step_count_steps": None}, ["CheckpointSaverHook"]),
        ({"summary_dir": "there", "log_step_count_steps": None}, []),
    ],
    ids=str,
)
def test_what_is_not_asked_for_is_not_there(options: Any, expected: list[str]) -> None:
    """Nothing is saved or written without a directory or an interval, or counted without steps."""
    graph, _, _ = counting()
    assert hooks_of(training(graph, **options)) == expected


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"summary_dir": "there"}, ["SummarySaverHook"]),
        ({"checkpoint_dir": "there"}, ["SummarySaverHook"]),
        ({"checkpoint_dir": "s3://bucket/there"}, []),
        ({"checkpoint_dir": "s3://bucket/there", "summary_dir": "there"}, ["SummarySaverHook"]),
        ({}, []),
        ({"summary_dir": "there", "save_summaries_steps": 0}, []),
        (
            {"summary_dir": "there", "save_summaries_steps": None, "save_summaries_secs": 5},
            ["SummarySaverHook"],
        ),
    ],
    ids=str,
)
def test_summaries_have_a_place_and_an_interval(options: Any, expected: list[str]) -> None:
    """The summary_op is written into summary_dir, else into a checkpoint_dir that is local; else not at all."""
    graph, _, _ = counting()
    scaffold = Scaffold(summary_op="count")
    none = {"log_step_count_steps": None, "save_checkpoint_secs": None}
    assert hooks_of(training(graph, scaffold=scaffold, **none, **options)) == expected


def test_construction_does_nothing(tmp_path: Path) -> None:
    """L1: the directory is made when the session is opened."""
    graph, _, _ = counting()
    training(graph, checkpoint_dir=tmp_path / "there")
    assert not (tmp_path / "there").exists()


@pytest.mark.parametrize(
    "options",
    [{"master": "localhost:1"}, {"master": "localhost:1", "is_chief": False}, {"is_chief": False}],
    ids=str,
)
def test_a_master_is_that_of_a_program_that_launch_runs(options: Any) -> None:
    """InvalidArgumentError that says so, before anything has happened."""
    with pytest.raises(
        InvalidArgumentError, match=r"TaskInfo\.master.* that asyncstep\.distributed\.launch runs"
    ):
        MonitoredTrainingSession(**options)


@pytest.mark.parametrize(
    "options",
    [
        {"scaffold": "x"},
        {"hooks": 5},
        {"hooks": ["x"]},
        {"recovery": 3},
        {"checkpoint_dir": 3},
        {"summary_dir": 3},
        {"max_wait": "long"},
    ],
    ids=str,
)
def test_wrong_types_are_type_errors(tmp_path: Path, options: Any) -> None:
    """L1, L2: TypeError at construction, also where a directory is given."""
    graph, _, _ = counting()
    with pytest.raises(TypeError):
        training(graph, **{"checkpoint_dir": tmp_path, **options})


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"max_wait": 0}, "MonitoredTrainingSession: max_wait must be more than 0 seconds"),
        ({"save_summaries_steps": -1, "summary_dir": "there"}, "save_steps must be at least 1"),
        ({"summary_dir": "s3://a"}, "is a URL"),
    ],
    ids=str,
)
def test_bad_values_are_value_errors(options: Any, problem: str) -> None:
    """L1: at construction."""
    graph, count, _ = counting()
    scalar("count", count)
    with pytest.raises(InvalidArgumentError, match=problem):
        training(graph, **options)


async def test_it_resumes_where_it_stopped(tmp_path: Path) -> None:
    """K4: each session begins with the newest checkpoint and saves the last state."""
    for number in range(1, 4):
        graph, _, bump = counting()
        stop = StopAtStepHook(num_steps=4)
        async with training(graph, checkpoint_dir=tmp_path, hooks=[stop]) as session:
            assert session.global_step == session.snapshot().variables["count"] == 4 * (number - 1)
            while not session.should_stop():
                await session.run(bump)
    path = latest_checkpoint(tmp_path)
    assert path is not None
    assert read_checkpoint(path).variables["count"] == 12


async def test_resumed_at_its_target_it_takes_not_one_step_more(tmp_path: Path) -> None:
    """`StopAtStepHook(last_step=...)` with a checkpoint of that step stops before the first."""
    for _ in range(3):
        graph, _, bump = counting()
        async with training(graph, checkpoint_dir=tmp_path, hooks=[StopAtStepHook(last_step=3)]) as session:
            while not session.should_stop():
                await session.run(bump)
    assert [each.step for each in list_checkpoints(tmp_path)] == [1, 3]


async def test_the_scaffolds_saver_saves(tmp_path: Path) -> None:
    """The saver of the scaffold decides what is kept, and restores."""
    graph, _, bump = counting()
    scaffold = Scaffold(saver=Saver(max_to_keep=1))
    async with training(
        graph, checkpoint_dir=tmp_path, scaffold=scaffold, save_checkpoint_steps=1
    ) as session:
        for _ in range(5):
            await session.run(bump)
    assert [each.step for each in list_checkpoints(tmp_path)] == [5]


async def test_what_initializes_is_not_run_after_a_restore(tmp_path: Path) -> None:
    """`Scaffold(init_op, init_fn)` are for sessions without a checkpoint; `local_init_op` is for all."""
    calls: list[str] = []
    for _ in range(2):
        graph, count, bump = counting()

        async def init_fn(scaffold: Scaffold, session: Any) -> None:
            calls.append("init_fn")

        async def local() -> None:
            calls.append("local")

        with graph:
            scaffold = Scaffold(init_op=count.assign(100), init_fn=init_fn, local_init_op=local)
        async with training(graph, checkpoint_dir=tmp_path, scaffold=scaffold) as session:
            await session.run(bump)
    assert calls == ["init_fn", "local", "local"]
    path = latest_checkpoint(tmp_path)
    assert path is not None
    assert read_checkpoint(path).variables["count"] == 102


async def test_the_saver_is_the_first_to_be_told_of_the_end(tmp_path: Path) -> None:
    """L4: reverse list order, so the last checkpoint is there when the other hooks' `end` is called."""
    found: list[list[int]] = []

    class Looking(SessionRunHook):
        async def end(self, session: object) -> None:
            found.append([each.step for each in list_checkpoints(tmp_path)])

    graph, _, bump = counting()
    async with training(graph, checkpoint_dir=tmp_path, hooks=[Looking()]) as session:
        for _ in range(3):
            await session.run(bump)
    assert found == [[1, 3]]
