"""Section V with checkpoints: what a session goes on with when its raw session is lost."""

from __future__ import annotations

import logging
from pathlib import Path

import anyio
import pytest

from asyncstep import (
    AbortedError,
    ChiefSessionCreator,
    DataLossError,
    FailedPreconditionError,
    MonitoredSession,
    Session,
    SessionRunContext,
    SessionRunHook,
    SessionRunValues,
    SingularMonitoredSession,
    StepContext,
    UnavailableError,
)
from asyncstep.checkpoint import Saver, latest_checkpoint
from asyncstep.hooks import CheckpointSaverHook

from .counting import entire
from .saving_parts import LONG, QUICK, QUICK_ALWAYS, Counting, HeldSaver, flip_bit, newest, put, saved

pytestmark = pytest.mark.anyio

FAR = 1_000_000


async def lose(ctx: StepContext) -> int:
    """A step function that loses the raw session in its first attempt; gives the number of the attempt."""
    if ctx.attempt == 1:
        await ctx.session.aclose()
        raise UnavailableError("the raw session is lost")
    return ctx.attempt


async def fail_once(ctx: StepContext) -> int:
    """A step function whose first attempt fails; the raw session stays intact."""
    if ctx.attempt == 1:
        raise AbortedError("given up")
    return ctx.attempt


class Seen(SessionRunHook):
    """A hook with a state: how many steps it has seen commit; it notes what it knew after each creation."""

    def __init__(self) -> None:
        self.seen = 0
        self.at_creation: list[int] = []

    async def after_create_session(self, session: object, coord: object) -> None:
        self.at_creation.append(self.seen)

    async def after_run(self, run_context: SessionRunContext, run_values: SessionRunValues) -> None:
        self.seen += 1

    def state_dict(self) -> int:
        return self.seen

    def load_state_dict(self, state: int) -> None:
        self.seen = state


async def save_and_go_on(made: Counting, session: MonitoredSession, directory: Path) -> None:
    """Two steps, a checkpoint, two more steps."""
    await made.steps(session, 2)
    await Saver().save(session, directory)
    await made.steps(session, 2)


async def test_a_recovery_restores_the_newest_checkpoint(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """V2, V4: the state is that of the checkpoint; the step is run again; WARNING, and `recoveries` counts."""
    made = Counting()
    async with entire(made.session(directory=tmp_path, recovery=QUICK)) as session:
        await save_and_go_on(made, session, tmp_path)
        with caplog.at_level(logging.WARNING, "asyncstep"):
            assert await session.run_step_fn(lose) == 2
        assert (session.recoveries, session.global_step) == (1, 2)
        assert await session.run(made.bump) == 3
    assert any("recovering" in record.message for record in caplog.records)


async def test_restore_always_restores_before_every_retry(tmp_path: Path) -> None:
    """V2: `Recovery(restore="always")` goes back to the checkpoint although nothing is lost."""
    made = Counting()
    async with entire(made.session(directory=tmp_path, recovery=QUICK_ALWAYS)) as session:
        await save_and_go_on(made, session, tmp_path)
        assert await session.run_step_fn(fail_once) == 2
        assert (session.recoveries, await session.run_without_hooks(made.count)) == (1, 2)


async def test_a_retry_alone_keeps_the_committed_state(tmp_path: Path) -> None:
    """V1: while the raw session is intact nothing is restored."""
    made = Counting()
    async with entire(made.session(directory=tmp_path, recovery=QUICK)) as session:
        await save_and_go_on(made, session, tmp_path)
        assert await session.run_step_fn(fail_once) == 2
        assert (session.recoveries, session.global_step) == (0, 4)


async def test_a_recovery_passes_over_a_damaged_checkpoint(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """V2, K3: the newest sound one is restored, with the saver hook in the session, and saving goes on."""
    made, saver = Counting(), HeldSaver(max_to_keep=None)
    hook = CheckpointSaverHook(tmp_path, save_steps=2, saver=saver)
    async with entire(made.session(hook, directory=tmp_path, recovery=QUICK)) as session:
        with anyio.fail_after(LONG):
            while len(saved(tmp_path)) < 2:
                await made.steps(session, 1)
        first, last = saved(tmp_path)[0], latest_checkpoint(tmp_path)
        assert last is not None
        flip_bit(last)
        saver.gate.set()
        await session.run_step_fn(lose)
        assert session.recoveries == 1
        assert first <= session.global_step
        assert session.snapshot().variables["count"] == session.global_step
        await made.steps(session, 3)
        count = session.global_step
    assert newest(tmp_path).variables == {"count": count, "global_step": count}


async def test_a_recovery_with_nothing_but_damage_is_an_error(tmp_path: Path) -> None:
    """V2, K3: DataLossError; nothing starts from scratch over damaged work."""
    made = Counting()
    with pytest.raises(DataLossError):
        async with made.session(directory=tmp_path, recovery=QUICK) as session:
            await made.steps(session, 1)
            flip_bit(await Saver().save(session, tmp_path))
            await session.run_step_fn(lose)


@pytest.mark.parametrize("has_directory", [True, False])
async def test_without_a_checkpoint_committed_steps_are_not_thrown_away(
    tmp_path: Path, has_directory: bool
) -> None:
    """V5: FailedPreconditionError with the error of the step as its cause."""
    made = Counting()
    with pytest.raises(FailedPreconditionError) as caught:
        async with made.session(directory=tmp_path if has_directory else None, recovery=QUICK) as session:
            await made.steps(session, 1)
            await session.run_step_fn(lose)
    assert isinstance(caught.value.__cause__, UnavailableError)


async def test_without_a_checkpoint_and_without_steps_the_initial_values_are_restored(tmp_path: Path) -> None:
    """V5: nothing was committed, so nothing is lost."""
    made = Counting()
    async with entire(made.session(directory=tmp_path, recovery=QUICK)) as session:
        assert await session.run_step_fn(lose) == 2
        assert (session.recoveries, await session.run(made.bump)) == (1, 1)


async def test_the_work_of_earlier_processes_is_not_thrown_away_either(tmp_path: Path) -> None:
    """V5: a session that began with a checkpoint which is gone by now does not recover to initial values."""
    path, made = put(tmp_path, 5, count=5), Counting()
    with pytest.raises(FailedPreconditionError) as caught:
        async with made.session(directory=tmp_path, recovery=QUICK) as session:
            path.rename(tmp_path / "elsewhere")
            await session.run_step_fn(lose)
    assert isinstance(caught.value.__cause__, UnavailableError)


async def test_a_session_given_a_path_recovers_to_it_only_before_its_first_step(tmp_path: Path) -> None:
    """V5: `checkpoint_path` is where it begins; once a step has committed, going back there loses work."""
    path, made = put(tmp_path, 5, count=5), Counting()
    with pytest.raises(FailedPreconditionError):
        async with made.session(path=path, recovery=QUICK) as session:
            await session.run_step_fn(lose)
            assert (session.recoveries, session.global_step) == (1, 5)
            await made.steps(session, 1)
            await session.run_step_fn(lose)
    assert session.recoveries == 1


async def test_a_recovery_waits_for_the_save_in_flight(tmp_path: Path) -> None:
    """V2, K5: the newest state is the one that is being written; no work is lost, and none is done twice."""
    made, saver = Counting(), HeldSaver()
    hook = CheckpointSaverHook(tmp_path, save_steps=FAR, saver=saver)
    put(tmp_path, 5, count=5)
    saver.gate.clear()
    async with entire(made.session(hook, directory=tmp_path, recovery=QUICK)) as session:
        await made.steps(session, 1)
        async with anyio.create_task_group() as group:
            group.start_soon(session.run_step_fn, lose)
            await saver.is_asked()
            await anyio.wait_all_tasks_blocked()
            assert session.recoveries == 0
            saver.gate.set()
        assert (session.recoveries, session.global_step) == (1, 6)
    assert saved(tmp_path) == [5, 6]


async def test_the_first_checkpoint_may_be_the_save_in_flight(tmp_path: Path) -> None:
    """V5, K5: a recovery with no checkpoint but the one that is being written goes on from that."""
    made, saver = Counting(), HeldSaver()
    hook = CheckpointSaverHook(tmp_path, save_steps=FAR, saver=saver)
    saver.gate.clear()
    async with entire(made.session(hook, directory=tmp_path, recovery=QUICK_ALWAYS)) as session:
        await made.steps(session, 3)
        async with anyio.create_task_group() as group:
            group.start_soon(session.run_step_fn, fail_once)
            await saver.is_asked()
            saver.gate.set()
        assert (session.recoveries, session.global_step) == (1, 1)


async def test_steps_in_flight_are_rolled_back_and_run_again(tmp_path: Path) -> None:
    """V2: eight workers, one recovery; what was written into the lost incarnation is in none after it."""
    made, attempts = Counting(), list[int]()
    all_there, lost = anyio.Event(), anyio.Event()

    async def step(ctx: StepContext, index: int) -> None:
        await ctx.session.run(made.bump)
        if ctx.attempt == 1:
            attempts.append(index)
            if len(attempts) == 8:
                all_there.set()
            await all_there.wait()
            if index == 0:
                lost.set()
                raise AbortedError("lost")
            await lost.wait()
            with anyio.fail_after(LONG):
                while session.recoveries == 0:
                    await anyio.lowlevel.checkpoint()

    async with entire(made.session(directory=tmp_path, recovery=QUICK_ALWAYS)) as session:
        await save_and_go_on(made, session, tmp_path)
        async with anyio.create_task_group() as group:
            for index in range(8):
                group.start_soon(session.run_step_fn, step, index)
        assert session.recoveries == 1
        assert await session.run_without_hooks(made.count) == 2 + 8


async def test_the_states_of_hooks_are_restored_at_a_recovery(tmp_path: Path) -> None:
    """V2, K1: a hook with a state goes back to the checkpoint's, before its `after_create_session`."""
    made, hook = Counting(), Seen()
    async with entire(made.session(hook, directory=tmp_path, recovery=QUICK)) as session:
        await save_and_go_on(made, session, tmp_path)
        assert hook.seen == 4
        await session.run_step_fn(lose)
        assert (hook.seen, hook.at_creation) == (2, [0, 2])


async def test_tracked_objects_are_restored_at_a_recovery(tmp_path: Path) -> None:
    """V2, K1: tracked objects go back to the checkpoint's state, and are not shared with it."""
    made, tracked = Counting(), Seen()
    made.graph.track("thing", tracked)
    async with entire(made.session(directory=tmp_path, recovery=QUICK)) as session:
        tracked.seen = 7
        await save_and_go_on(made, session, tmp_path)
        tracked.seen = 8
        await session.run_step_fn(lose)
        assert tracked.seen == 7


async def test_a_recovery_to_initial_values_is_one_of_objects_and_hooks_too(tmp_path: Path) -> None:
    """V5: what a step that never committed did to a tracked object and to a hook is gone."""
    made, tracked, hook = Counting(), Seen(), Seen()
    made.graph.track("thing", tracked)
    tracked.seen = 7
    async with entire(made.session(hook, directory=tmp_path, recovery=QUICK)) as session:

        async def change_and_lose(ctx: StepContext) -> tuple[int, int]:
            seen = tracked.seen, hook.seen
            tracked.seen, hook.seen = 8, 9
            await lose(ctx)
            return seen

        assert await session.run_step_fn(change_and_lose) == (7, 0)
        assert session.recoveries == 1


async def test_a_creator_serves_another_session_after_work_could_not_be_recovered(tmp_path: Path) -> None:
    """V5: the refusal is the lost session's; who opens a new one with the same creator begins anew on purpose."""
    made = Counting()
    creator = ChiefSessionCreator(graph=made.graph)
    with pytest.raises(FailedPreconditionError):
        async with MonitoredSession(creator, recovery=QUICK) as session:
            await made.steps(session, 1)
            await session.run_step_fn(lose)
    async with entire(MonitoredSession(creator, recovery=QUICK)) as again:
        assert await again.run(made.bump) == 1


async def test_a_session_that_recovered_can_be_stopped(tmp_path: Path) -> None:
    """V2, S1: a session that has recovered stops when it is asked to, for the reason given."""
    made = Counting()
    async with made.session(directory=tmp_path, recovery=QUICK) as session:
        await save_and_go_on(made, session, tmp_path)
        await session.run_step_fn(lose)
        session.request_stop("enough")
        assert session.should_stop()
        await session.run(made.bump)
        pytest.fail("a step was run after the stop")
    assert session.stop_reason is not None and session.stop_reason.message == "enough"


async def test_a_session_that_recovered_resumes_like_any_other(tmp_path: Path) -> None:
    """K4 with V2: the final state is that of a run that lost nothing."""
    made = Counting()
    hook = CheckpointSaverHook(tmp_path, save_steps=1)
    async with made.session(hook, directory=tmp_path, recovery=QUICK) as session:
        while session.global_step < 10:
            if session.global_step == 6 and session.recoveries == 0:
                await session.run_step_fn(lose)
            await made.steps(session, 1)
    again = Counting()
    async with entire(again.session(directory=tmp_path)) as resumed:
        assert resumed.global_step == await resumed.run(again.count) == 10


async def test_a_singular_session_restores_and_never_recovers(tmp_path: Path) -> None:
    """V: SingularMonitoredSession begins with the newest checkpoint; an error that may pass is raised."""
    put(tmp_path, 5, count=5)
    made = Counting()
    with pytest.raises(UnavailableError):
        async with SingularMonitoredSession(graph=made.graph, checkpoint_dir=tmp_path) as session:
            assert session.global_step == 5
            await session.run_step_fn(lose)
    assert session.recoveries == 0


async def test_directory_and_path_exclude_each_other(tmp_path: Path) -> None:
    """`ChiefSessionCreator` takes `checkpoint_dir` or `checkpoint_path`, not both."""
    with pytest.raises(ValueError, match="checkpoint_dir or checkpoint_path"):
        ChiefSessionCreator(checkpoint_dir=tmp_path, checkpoint_path=tmp_path)


async def test_a_hook_that_refuses_its_state_leaves_no_raw_session_open(tmp_path: Path) -> None:
    """L3: the opening fails with the hook's error, and the raw session that was made is closed."""
    made = Counting()
    async with entire(made.session(CheckpointSaverHook(tmp_path, save_steps=1), Seen())) as session:
        await made.steps(session, 1)

    class Picky(Seen):
        def load_state_dict(self, state: dict[str, int]) -> None:
            raise ValueError("no state of mine")

    Picky.__name__ = Seen.__name__
    raw_sessions: list[Session] = []

    class Showing(ChiefSessionCreator):
        async def create_session(self) -> Session:
            raw_sessions.append(await super().create_session())
            return raw_sessions[0]

    again = Counting()
    creator = Showing(graph=again.graph, checkpoint_dir=tmp_path)
    with pytest.raises(ValueError, match="no state of mine"):
        async with MonitoredSession(creator, [Picky()]):
            pytest.fail("the session opened")
    assert [raw.intact for raw in raw_sessions] == [False]
