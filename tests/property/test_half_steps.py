"""K1, K4: whatever becomes of the steps of eight workers, no checkpoint has a half of one in it."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from asyncstep import (
    AbortedError,
    ChiefSessionCreator,
    Graph,
    MonitoredSession,
    OutOfRangeError,
    Recovery,
    Session,
    SessionRunContext,
    SessionRunHook,
    SessionRunValues,
    StepContext,
    Variable,
    group,
    source,
)
from asyncstep.checkpoint import Saver, list_checkpoints

pytestmark = pytest.mark.anyio
reproducible = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

ITEMS = 48
WORKERS = 8


@dataclass(frozen=True)
class Fate:
    """What becomes of a step, after how many turns of the event loop."""

    kind: str  # commit, fail, cancel, retry, fail after the commit
    turns: int


@dataclass(frozen=True)
class Life:
    """The steps of a process, the commits after which it saves, and whether it ends in the middle of steps."""

    fates: list[Fate]
    saves: set[int]
    killed: bool


KINDS = ("commit", "commit", "commit", "fail", "cancel", "retry", "fail after the commit")
FATES = st.builds(Fate, st.sampled_from(KINDS), st.integers(0, 4))
LIVES = st.builds(
    Life,
    st.lists(FATES, min_size=6, max_size=24),
    st.sets(st.integers(1, 12), min_size=1, max_size=4),
    st.booleans(),
)


class Job:
    """One item a step: the sum of the items before the turns, and the items themselves after them."""

    def __init__(self) -> None:
        with Graph() as self.graph:
            self.item = source(range(ITEMS), name="numbers", shuffle=True, seed=7)
            self.first = Variable(0, name="sum").update(lambda total, new: total + new, self.item)
            self.second = group(
                Variable[tuple[int, ...]]((), name="items").update(
                    lambda items, new: tuple(sorted((*items, new))), self.item
                ),
                Variable(0, name="squares").update(lambda total, new: total + new * new, self.item),
            )

    async def step(
        self, ctx: StepContext, fate: Fate = Fate("commit", 1), scope: anyio.CancelScope | None = None
    ) -> None:
        """Two runs, which are one transaction, and between them what the fate says."""
        number, _ = await ctx.session.run([self.item, self.first])
        for _ in range(fate.turns):
            await anyio.lowlevel.checkpoint()
        if fate.kind == "fail":
            raise ValueError("boom")
        if fate.kind == "retry" and ctx.attempt == 1:
            raise AbortedError("once")
        if fate.kind == "cancel" and scope is not None:
            scope.cancel()
        await ctx.run_with_hooks(self.second, {self.item: number})
        if fate.kind == "fail after the commit":
            raise ValueError("boom")

    def session(self, directory: Path, *hooks: SessionRunHook) -> MonitoredSession:
        """A session that goes on from the newest checkpoint."""
        creator = ChiefSessionCreator(graph=self.graph, checkpoint_dir=directory)
        return MonitoredSession(creator, hooks, recovery=Recovery(wait_initial=0.0, jitter=0.0))

    async def live(self, directory: Path, life: Life) -> None:
        """Go on from the newest checkpoint; eight workers share the steps."""
        fates = iter(life.fates)

        async def work() -> None:
            for fate in fates:
                if session.should_stop():
                    return
                with anyio.CancelScope() as scope:
                    try:
                        await session.run_step_fn(self.step, fate, scope)
                    except (ValueError, OutOfRangeError):
                        pass
            if life.killed:
                workers.cancel_scope.cancel()

        async with self.session(directory, SaveAfter(directory, life.saves)) as session:
            async with anyio.create_task_group() as workers:
                for _ in range(WORKERS):
                    workers.start_soon(work)

    async def check(self, path: Path, step: int) -> None:
        """A checkpoint agrees with itself: what its variables lack is what its source still gives."""
        async with Session(self.graph) as session:
            await Saver().restore(session, path)
            items, total, squares = await session.run(["items", "sum", "squares"])
            left = []
            while True:
                try:
                    left.append(await session.run(self.item))
                except OutOfRangeError:
                    break
        assert sorted((*items, *left)) == list(range(ITEMS))
        assert (total, squares, step) == (sum(items), sum(item * item for item in items), len(items))


class SaveAfter(SessionRunHook):
    """Saves after some of the commits, while the other workers go on."""

    def __init__(self, directory: Path, commits: set[int]) -> None:
        self.directory = directory
        self.commits = commits
        self.saver = Saver(max_to_keep=None)
        self.count = 0

    async def after_run(self, run_context: SessionRunContext, run_values: SessionRunValues) -> None:
        """A step is committed; others are in the middle of theirs."""
        self.count += 1
        if self.count in self.commits:
            await self.saver.save(run_context.session, self.directory)


@given(lives=st.lists(LIVES, min_size=1, max_size=3))
@reproducible
async def test_no_checkpoint_has_a_half_step(lives: list[Life]) -> None:
    """K1, K4, T4, D1: eight workers whose steps fail, are cancelled and retried, saved at random commits, in
    several lives: in each checkpoint, and at the end of the data, every item is there as a whole or not at all."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name, "saved")
        for life in lives:
            await Job().live(directory, life)
            for each in list_checkpoints(directory):
                await Job().check(each.path, each.step)
        job = Job()
        async with job.session(directory) as session:
            await session.loop(job.step, workers=WORKERS)
            snapshot = session.snapshot()
        assert snapshot.variables["items"] == tuple(range(ITEMS))
        assert snapshot.variables["sum"] == sum(range(ITEMS))
        assert snapshot.step == ITEMS
