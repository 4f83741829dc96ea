"""Saver, as api.md has it: saving and restoring sessions by hand, the best by a metric, what is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import pytest

from asyncstep import (
    ChiefSessionCreator,
    Graph,
    InvalidArgumentError,
    MonitoredSession,
    NotFoundError,
    Session,
    SessionClosedError,
    StepContext,
    Variable,
    get_or_create_global_step,
)
from asyncstep.checkpoint import KeepBest, Saver, list_checkpoints, read_checkpoint
from asyncstep.hooks import CheckpointSaverHook

pytestmark = pytest.mark.anyio


class Counting:
    """A graph with a counter."""

    def __init__(self) -> None:
        self.graph = Graph()
        with self.graph:
            self.count: Variable[int] = Variable(0, name="count")
            self.bump = self.count.assign_add(1)

    def session(self, *hooks: Any, directory: Path | None = None) -> MonitoredSession:
        """A monitored session of the graph."""
        return MonitoredSession(ChiefSessionCreator(graph=self.graph, checkpoint_dir=directory), hooks)


def steps(directory: Path) -> list[int]:
    """The steps of which there are checkpoints."""
    return [each.step for each in list_checkpoints(directory)]


async def test_a_monitored_session_is_saved_and_restored(tmp_path: Path) -> None:
    """`save` gives the path of the checkpoint; `restore` brings its state back, the global step included."""
    made, saver = Counting(), Saver()
    async with made.session() as session:
        await session.run(made.bump)
        path = await saver.save(session, tmp_path / "new" / "directory")
        assert path == tmp_path / "new" / "directory" / "step-0000000001"
        await session.run(made.bump)
        await saver.restore(session, path)
        assert session.global_step == 1
        assert await session.run(made.bump) == 2


async def test_a_raw_session_is_saved_and_restored(tmp_path: Path) -> None:
    """A raw session likewise; its global step is the graph's, if that has one."""
    made, saver = Counting(), Saver()
    with made.graph:
        step = get_or_create_global_step().assign_add(1)
    async with Session(made.graph) as raw:
        await raw.run([made.bump, step])
        path = await saver.save(raw, tmp_path)
        await raw.run([made.bump, step])
        await saver.restore(raw, path)
        assert await raw.run([made.count, "global_step"]) == [1, 1]
    assert read_checkpoint(path).step == 1


async def test_what_a_monitored_session_saved_a_raw_one_can_restore(tmp_path: Path) -> None:
    """The global step is on one side only, and that is no error: a raw graph need not have one."""
    made, other, saver = Counting(), Counting(), Saver()
    async with made.session() as session:
        await session.run(made.bump)
        path = await saver.save(session, tmp_path)
    async with Session(other.graph) as raw:
        await saver.restore(raw, path)
        assert await raw.run(other.count) == 1


async def test_a_session_that_is_not_open_is_refused(tmp_path: Path) -> None:
    """L1: SessionClosedError before the opening and after the closing; nothing is written."""
    made = Counting()
    session = made.session()
    for _ in range(2):
        with pytest.raises(SessionClosedError):
            await Saver().save(session, tmp_path)
        if session.stop_reason is None and not session.should_stop():
            async with session:
                pass
    assert steps(tmp_path) == []


async def test_a_restore_from_nowhere_is_an_error(tmp_path: Path) -> None:
    """NotFoundError names the path; given the directory, it says that there are checkpoints inside."""
    made, saver = Counting(), Saver()
    async with made.session() as session:
        with pytest.raises(NotFoundError, match="step-0000000003"):
            await saver.restore(session, tmp_path / "step-0000000003")
        path = await saver.save(session, tmp_path)
        with pytest.raises(NotFoundError, match=path.name):
            await saver.restore(session, tmp_path)


async def test_a_step_can_save_the_state_before_it(tmp_path: Path) -> None:
    """K1: a save from inside a step function has the committed state, not what the step has written."""
    made = Counting()

    async def step(ctx: StepContext) -> Path:
        await ctx.session.run(made.bump)
        return await Saver().save(ctx.session, tmp_path)

    async with made.session() as session:
        await session.run(made.bump)
        path = await session.run_step_fn(step)
    assert read_checkpoint(path).variables["count"] == 1


async def test_saves_of_one_saver_take_turns(tmp_path: Path) -> None:
    """Saves that overlap, of one step and of several, all succeed."""
    made, saver = Counting(), Saver()
    async with made.session() as session, anyio.create_task_group() as group:
        for _ in range(4):
            group.start_soon(saver.save, session, tmp_path)
            group.start_soon(saver.save, session, tmp_path)
            await session.run(made.bump)
    assert set(steps(tmp_path)) <= {0, 1, 2, 3, 4}
    assert steps(tmp_path)


async def test_a_cancelled_save_is_whole_or_not_there(tmp_path: Path) -> None:
    """K2: a cancellation waits for the write, so that the directory can be had at once."""
    made, saver = Counting(), Saver()
    async with made.session() as session:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await saver.save(session, tmp_path)
        await session.run(made.bump)
        path = await saver.save(session, tmp_path)
    assert read_checkpoint(path).variables["count"] == 1


async def test_the_newest_are_kept_over_restarts(tmp_path: Path) -> None:
    """K8: `max_to_keep` counts the checkpoints of earlier savers and sessions, too."""
    for _ in range(3):
        made, saver = Counting(), Saver(max_to_keep=3)
        async with made.session(directory=tmp_path) as session:
            for _ in range(2):
                await session.run(made.bump)
                await saver.save(session, tmp_path)
    assert steps(tmp_path) == [4, 5, 6]


async def test_all_are_kept_if_so_asked(tmp_path: Path) -> None:
    """K8: `max_to_keep=None` deletes nothing."""
    made, saver = Counting(), Saver(max_to_keep=None)
    async with made.session() as session:
        for _ in range(8):
            await session.run(made.bump)
            await saver.save(session, tmp_path)
    assert steps(tmp_path) == list(range(1, 9))


@pytest.mark.parametrize(("mode", "kept"), [("min", [3, 6]), ("max", [2, 6])])
async def test_the_best_are_kept_beside_the_newest(tmp_path: Path, mode: Any, kept: list[int]) -> None:
    """K8: `KeepBest` evaluates its metric at each save; earlier sessions' metrics count over restarts."""
    losses, now = iter([5.0, 9.0, 1.0, 4.0, 3.0, 2.0]), [0.0]

    async def loss() -> float:
        return now[0]

    for _ in range(2):
        made = Counting()
        saver = Saver(max_to_keep=1, keep_best=KeepBest(loss, n=1, mode=mode))
        async with made.session(directory=tmp_path) as session:
            for _ in range(3):
                now[0] = next(losses)
                await session.run(made.bump)
                await saver.save(session, tmp_path)
    assert steps(tmp_path) == kept


def test_the_name_of_a_metric_is_the_same_in_every_run() -> None:
    """K8: metrics are known by the names of nodes and functions, so they are remembered across restarts."""

    def fresh() -> KeepBest:
        async def loss() -> float:
            return 0.0

        return KeepBest(loss)

    assert fresh().name == fresh().name
    assert KeepBest(Counting().count).name == KeepBest("count").name == "count"


@pytest.mark.parametrize("as_name", [True, False])
async def test_the_metric_is_a_fetch(tmp_path: Path, as_name: bool) -> None:
    """K8: a node or its name; its value at the save is in the checkpoint's manifest."""
    made = Counting()
    saver = Saver(keep_best=KeepBest("count" if as_name else made.count))
    async with made.session() as session:
        await session.run(made.bump)
        path = await saver.save(session, tmp_path)
        assert session.global_step == 1
    assert read_checkpoint(path).metric == ("count", 1.0)


async def test_a_metric_that_is_no_number_is_an_error(tmp_path: Path) -> None:
    """InvalidArgumentError names the metric; nothing is written."""

    async def nothing() -> str:
        return "much"

    async with Counting().session() as session:
        with pytest.raises(InvalidArgumentError, match=r"nothing.*'much'"):
            await Saver(keep_best=KeepBest(nothing)).save(session, tmp_path)
    assert steps(tmp_path) == []


async def test_a_hooks_saver_measures_too(tmp_path: Path) -> None:
    """K8: `CheckpointSaverHook(saver=Saver(keep_best=...))` evaluates the metric at each of its saves."""
    made = Counting()
    hook = CheckpointSaverHook(tmp_path, save_steps=100, saver=Saver(keep_best=KeepBest(made.count)))
    async with made.session(hook) as session:
        for _ in range(3):
            await session.run(made.bump)
    assert [each.metric for each in list_checkpoints(tmp_path)] == [("count", 1.0), ("count", 3.0)]


@pytest.mark.parametrize("arguments", [{"max_to_keep": 0}, {"keep_every_n_hours": 0}, {"max_to_keep": -1}])
async def test_numbers_are_checked(arguments: Any) -> None:
    """InvalidArgumentError at construction."""
    with pytest.raises(InvalidArgumentError):
        Saver(**arguments)


async def test_an_object_is_pickled_only_if_both_sides_allow_it(tmp_path: Path) -> None:
    """K6: `allow_pickle=True` at the save and at the restore."""
    made = Counting()
    with made.graph:
        Variable(lambda: complex, name="kind")
    async with made.session() as session:
        path = await Saver(allow_pickle=True).save(session, tmp_path)
        with pytest.raises(RuntimeError, match="pickle"):
            await Saver().restore(session, path)
        await Saver(allow_pickle=True).restore(session, path)
        assert await session.run("kind") is complex


@pytest.mark.parametrize("first", ["asyncio", "trio"])
def test_one_saver_serves_event_loops_of_both_kinds(tmp_path: Path, first: str) -> None:
    """A Saver belongs to no event loop."""
    saver = Saver()

    async def main(directory: Path) -> None:
        async with Counting().session() as session:
            await saver.save(session, directory)

    anyio.run(main, tmp_path / "1", backend=first)
    anyio.run(main, tmp_path / "2", backend="trio" if first == "asyncio" else "asyncio")
    assert steps(tmp_path / "1") == steps(tmp_path / "2") == [0]
