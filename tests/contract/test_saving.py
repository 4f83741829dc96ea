"""Section K: what a checkpoint has in it, how it is saved beside the loop, and what a session begins with."""

from __future__ import annotations

import itertools
import logging
import threading
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest

from asyncstep import (
    DataLossError,
    DeadlineExceededError,
    FailedPreconditionError,
    Graph,
    InvalidArgumentError,
    NotFoundError,
    OutOfRangeError,
    Session,
    SessionRunContext,
    SessionRunHook,
    SessionRunValues,
    StepContext,
    StopKind,
    Variable,
    placeholder,
)
from asyncstep.checkpoint import KeepBest, Saver, list_checkpoints, read_checkpoint
from asyncstep.hooks import CheckpointSaverHook, StopAtStepHook
from asyncstep.testing import fail_write

from .counting import Oops, entire, leaves
from .saving_parts import LONG, QUICK, Counting, HeldSaver, flip_bit, newest, put, saved

pytestmark = pytest.mark.anyio

FAR = 1_000_000  # steps between two saves of a hook that is to save at the first step and at the end only


def every_step(directory: Path, **options: Any) -> CheckpointSaverHook:
    """A hook that saves whenever it can, with a saver that keeps all."""
    options.setdefault("saver", Saver(max_to_keep=None))
    return CheckpointSaverHook(directory, save_steps=1, **options)


class Tracked:
    """An object with a state."""

    def __init__(self, state: Any = None) -> None:
        self.state = state

    def state_dict(self) -> Any:
        return self.state

    def load_state_dict(self, state: Any) -> None:
        self.state = state


class StatefulHook(SessionRunHook):
    """A hook with a state: how many steps it has seen commit."""

    def __init__(self) -> None:
        self.seen = 0

    async def after_run(self, run_context: SessionRunContext, run_values: SessionRunValues) -> None:
        self.seen += 1

    def state_dict(self) -> dict[str, int]:
        return {"seen": self.seen}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.seen = state["seen"]


class OtherStatefulHook(StatefulHook):
    """Another hook with a state."""


# K1: the state between two commits


async def test_no_half_step_is_in_a_checkpoint_of_many_workers(tmp_path: Path) -> None:
    """K1: with eight workers, failures and cancellations, each checkpoint has whole steps only."""
    graph, numbers = Graph(), itertools.count()
    with graph:
        number = placeholder("number")
        first: Variable[int] = Variable(0, name="first")
        finished: Variable[tuple[int, ...]] = Variable((), name="finished")
        last: Variable[int] = Variable(0, name="last")
        add_first = first.assign_add(1)
        finish = finished.update(lambda before, new: (*before, new), number)
        add_last = last.assign_add(1).after(finish)
    parts = Counting()
    parts.graph = graph
    done: list[int] = []

    async def step(ctx: StepContext) -> None:
        mine = next(numbers)
        if mine >= 200:
            ctx.request_stop()

        async def disturbed() -> None:
            await anyio.lowlevel.checkpoint()
            if mine % 3 == 0:
                raise Oops
            if mine % 5 == 0:
                scope.cancel()
                await anyio.lowlevel.checkpoint()

        with anyio.CancelScope() as scope:
            try:
                await ctx.run_with_hooks([add_first, disturbed, finish, add_last], {number: mine})
                done.append(mine)
            except Oops:
                pass

    async with parts.session(every_step(tmp_path), directory=tmp_path) as session:
        await session.loop(step, workers=8)
    checkpoints = [read_checkpoint(info.path) for info in list_checkpoints(tmp_path)]
    assert len(checkpoints) >= 2
    for each in checkpoints:
        variables = each.variables
        assert variables["first"] == variables["last"] == len(variables["finished"])
        assert variables["global_step"] == each.step == variables["first"]
        assert set(variables["finished"]) <= set(done)
    assert sorted(checkpoints[-1].variables["finished"]) == sorted(done)


async def test_a_snapshot_is_not_touched_by_steps_in_flight(tmp_path: Path) -> None:
    """K1: what a step has written and not committed is in no checkpoint."""
    made, written, go_on = Counting(), anyio.Event(), anyio.Event()

    async def half(ctx: StepContext) -> None:
        await ctx.session.run(made.bump)
        written.set()
        await go_on.wait()

    async with entire(made.session()) as session, anyio.create_task_group() as group:
        await made.steps(session, 2)
        group.start_soon(session.run_step_fn, half)
        await written.wait()
        path = await Saver().save(session, tmp_path)
        go_on.set()
    assert read_checkpoint(path).variables == {"count": 2, "global_step": 2}


async def test_no_worker_waits_for_a_save(tmp_path: Path) -> None:
    """K1, K5: steps of all workers go on while a checkpoint is being written."""
    made, saver = Counting(), HeldSaver()
    steps = [0, 0, 0, 0]

    async def step(ctx: StepContext) -> None:
        await ctx.run_with_hooks(made.bump)
        steps[ctx.worker] += 1
        if min(steps) >= 10:
            ctx.request_stop()

    saver.gate.clear()
    async with made.session(every_step(tmp_path, saver=saver)) as session:
        with anyio.fail_after(LONG):
            await session.loop(step, workers=4)
        assert saved(tmp_path) == []
        assert len(saver.asked) <= 1
        saver.gate.set()
    assert min(steps) >= 10
    assert newest(tmp_path).variables["count"] == sum(steps)


async def test_the_states_of_tracked_objects_and_hooks_are_in_it(tmp_path: Path) -> None:
    """K1: objects given to `graph.track` and hooks with a state are saved, and restored at the next opening."""
    made, tracked, hook, other = (
        Counting(),
        Tracked({"seen": [1, (2, b"3")]}),
        StatefulHook(),
        OtherStatefulHook(),
    )
    made.graph.track("thing", tracked)
    async with made.session(hook, other, CheckpointSaverHook(tmp_path, save_steps=FAR)) as session:
        await made.steps(session, 3)
        hook.seen = 10
    again, found, first, second = Counting(), Tracked(), StatefulHook(), OtherStatefulHook()
    again.graph.track("thing", found)
    async with entire(again.session(second, first, directory=tmp_path)):
        assert (found.state, first.seen, second.seen) == ({"seen": [1, (2, b"3")]}, 10, 3)


async def test_tracked_states_are_copied(tmp_path: Path) -> None:
    """K1: a tracked object that goes on changing while the save is written changes nothing in it."""
    made, tracked, saver = Counting(), Tracked({"list": [1]}), HeldSaver()
    made.graph.track("thing", tracked)
    saver.gate.clear()
    async with made.session() as session:
        async with anyio.create_task_group() as group:
            group.start_soon(saver.save, session, tmp_path)
            await saver.is_asked()
            tracked.state["list"].append(2)
            saver.gate.set()
    assert newest(tmp_path).tracked == {"thing": {"list": [1]}}


async def test_two_hooks_of_one_class_have_a_state_each(tmp_path: Path) -> None:
    """K1: hooks of one class are told apart by their order."""
    made, hooks = Counting(), [StatefulHook(), StatefulHook()]
    async with made.session(*hooks, CheckpointSaverHook(tmp_path, save_steps=FAR)) as session:
        await made.steps(session, 2)
        hooks[0].seen, hooks[1].seen = 10, 20
    again, restored = Counting(), [StatefulHook(), StatefulHook()]
    async with entire(again.session(*restored, directory=tmp_path)):
        assert [hook.seen for hook in restored] == [10, 20]


# K3: damage


async def test_a_damaged_checkpoint_is_reported_and_the_one_before_is_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """K3: WARNING; the session begins with the checkpoint before, and saves on, the damaged step included."""
    put(tmp_path, 5, count=5)
    flip_bit(put(tmp_path, 7, count=7))
    made = Counting()
    with caplog.at_level(logging.WARNING, "asyncstep"):
        async with made.session(every_step(tmp_path), directory=tmp_path) as session:
            assert session.global_step == 5
            await made.steps(session, 2)
    assert any("step-0000000007" in record.message for record in caplog.records)
    assert newest(tmp_path).variables == {"count": 7, "global_step": 7}


async def test_what_is_saved_behind_a_damaged_checkpoint_is_kept(tmp_path: Path) -> None:
    """K3, K8: a damaged checkpoint of a later step never makes a sound one be deleted as the older one."""
    put(tmp_path, 5, count=5)
    flip_bit(put(tmp_path, 70, count=70))
    made = Counting()
    hook = CheckpointSaverHook(tmp_path, save_steps=FAR, saver=Saver(max_to_keep=1))
    async with made.session(hook, directory=tmp_path) as session:
        await made.steps(session, 3)
    assert newest(tmp_path).variables == {"count": 8, "global_step": 8}


async def test_if_no_checkpoint_is_sound_nothing_starts(tmp_path: Path) -> None:
    """K3: DataLossError at the opening; nothing is saved over the damaged work."""
    for step in (5, 7):
        flip_bit(put(tmp_path, step, count=step))
    before = sorted(path.read_bytes() for path in tmp_path.rglob("*.msgpack"))
    with pytest.raises(DataLossError, match="step-0000000005"):
        async with Counting().session(every_step(tmp_path), directory=tmp_path):
            pytest.fail("opened")
    assert sorted(path.read_bytes() for path in tmp_path.rglob("*.msgpack")) == before
    assert saved(tmp_path) == [5, 7]


async def test_a_checkpoint_asked_for_by_name_has_no_stand_in(tmp_path: Path) -> None:
    """K3: DataLossError if the one that was asked for by its path is damaged."""
    put(tmp_path, 5, count=5)
    path = put(tmp_path, 7, count=7)
    flip_bit(path)
    with pytest.raises(DataLossError, match="step-0000000007"):
        async with Counting().session(path=path):
            pytest.fail("opened")


async def test_a_missing_checkpoint_asked_for_by_name_is_an_error(tmp_path: Path) -> None:
    """K3: NotFoundError, naming the path."""
    with pytest.raises(NotFoundError, match="step-0000000003"):
        async with Counting().session(path=tmp_path / "step-0000000003"):
            pytest.fail("opened")


async def test_a_session_can_begin_with_a_checkpoint_given_by_path(tmp_path: Path) -> None:
    """`ChiefSessionCreator(checkpoint_path=...)` restores that one, not the newest."""
    path = put(tmp_path, 5, count=50)
    put(tmp_path, 7, count=70)
    made = Counting()
    async with entire(made.session(path=path)) as session:
        assert session.global_step == 5
        assert await session.run(made.count) == 50


# K4: stopping and resuming


@pytest.mark.parametrize("lengths", [[1] * 12, [3, 4, 5], [5, 0, 0, 7], [12]])
async def test_a_run_that_is_stopped_and_resumed_equals_one_that_is_not(
    tmp_path: Path, lengths: list[int]
) -> None:
    """K4: to the bit, however often it is stopped."""
    graphs = []

    async def run(directory: Path, number: int) -> None:
        graph = Graph()
        graphs.append(graph)
        with graph:
            total = Variable(0.1, name="total")
            weights = Variable(lambda: np.arange(3, dtype=np.float32) / 7, name="weights")
            scaled = weights.update(
                lambda old, by: (old * np.float32(1.1) + np.float32(by)).astype(np.float32), total
            )
            step = total.update(lambda old: old * 1.3 + 0.7).after(scaled)
        parts = Counting()
        parts.graph, parts.bump = graph, step  # type: ignore[assignment]
        async with parts.session(every_step(directory), directory=directory) as session:
            await parts.steps(session, number)

    for length in lengths:
        await run(tmp_path / "stopped", length)
    await run(tmp_path / "undisturbed", sum(lengths))
    found, wanted = newest(tmp_path / "stopped"), newest(tmp_path / "undisturbed")
    assert found.step == wanted.step == 12
    assert found.variables["total"] == wanted.variables["total"]
    assert found.variables["weights"].tobytes() == wanted.variables["weights"].tobytes()


async def test_many_workers_that_are_stopped_lose_and_repeat_nothing(tmp_path: Path) -> None:
    """K4: what `update` changes with a commutative function is what an undisturbed run has."""
    for stop in range(10, 60, 10):
        made = Counting()

        async def step(ctx: StepContext, made: Counting = made) -> None:
            await ctx.run_with_hooks(made.bump)

        hooks = [StopAtStepHook(last_step=stop), every_step(tmp_path)]
        async with made.session(*hooks, directory=tmp_path) as session:
            await session.loop(step, workers=4)
        final = newest(tmp_path).variables
        assert final["count"] == final["global_step"] >= stop


# K5: one save in flight; errors


async def test_one_save_is_in_flight_at_most(tmp_path: Path) -> None:
    """K5: while one is being written no other is begun; the next one has the state of its own time."""
    made, saver = Counting(), HeldSaver(max_to_keep=None)
    saver.gate.clear()
    async with made.session(every_step(tmp_path, saver=saver)) as session:
        await made.steps(session, 5)
        await saver.is_asked()
        assert saver.asked == [1]
        saver.gate.set()
        with anyio.fail_after(LONG):
            while len(saver.asked) < 2:
                await made.steps(session, 1)
        second = saver.asked[1]
        assert second > 5
    assert saved(tmp_path)[:2] == [1, second]


async def test_closing_waits_for_the_save_in_flight(tmp_path: Path) -> None:
    """K5: the session is closed when the last checkpoint is durable."""
    made, saver = Counting(), HeldSaver(max_to_keep=None)
    saver.gate.clear()
    session = made.session(every_step(tmp_path, saver=saver))
    await session.__aenter__()
    await made.steps(session, 3)
    async with anyio.create_task_group() as group:
        group.start_soon(session.__aexit__, None, None, None)
        await anyio.wait_all_tasks_blocked()
        assert saved(tmp_path) == []
        saver.gate.set()
    assert saved(tmp_path) == [1, 3]


async def test_a_save_that_outlasts_the_grace_period_is_named(tmp_path: Path) -> None:
    """K5, L6: closing takes the grace period at most; then TimeoutError names the hook, and the lock stays until
    the save is done."""
    made, saver = Counting(), HeldSaver()
    saver.gate.clear()
    with pytest.raises(DeadlineExceededError, match=r"CheckpointSaverHook\.end"):
        async with made.session(every_step(tmp_path, saver=saver), stop_grace_period=0.05) as session:
            await made.steps(session, 1)
    with pytest.raises(FailedPreconditionError):
        await anyio.to_thread.run_sync(put, tmp_path, 9)
    saver.gate.set()
    with anyio.fail_after(LONG):
        while saved(tmp_path) != [1, 9]:
            try:
                await anyio.to_thread.run_sync(put, tmp_path, 9)
            except FailedPreconditionError:
                await anyio.lowlevel.checkpoint()


async def test_the_same_step_is_not_saved_twice(tmp_path: Path) -> None:
    """K5: a state that is saved already is not saved again at the end."""
    made, saver = Counting(), HeldSaver()
    async with made.session(every_step(tmp_path, saver=saver)) as session:
        await made.steps(session, 1)
    assert saver.asked == [1]


async def test_the_step_just_restored_is_not_saved_again(tmp_path: Path) -> None:
    """K5: a session that resumes and ends at once writes nothing."""
    put(tmp_path, 5, count=5)
    saver = HeldSaver()
    async with Counting().session(every_step(tmp_path, saver=saver), directory=tmp_path):
        pass
    assert saver.asked == []
    assert saved(tmp_path) == [5]


async def test_a_failed_save_is_an_error_of_the_session(tmp_path: Path) -> None:
    """K5: it is raised by a later step, or by the closing at the latest, and the last save is made all the same."""
    made, disk = Counting(), OSError(28, "No space left on device")
    with pytest.raises(OSError) as caught, fail_write(tmp_path, at_step=1, error=disk):
        async with made.session(every_step(tmp_path)) as session:
            with anyio.fail_after(LONG):
                while True:
                    await made.steps(session, 1)
    assert caught.value is disk
    assert session.stop_reason is not None and session.stop_reason.kind is StopKind.ERROR
    assert newest(tmp_path).variables["count"] == session.global_step


async def test_a_failed_last_save_is_an_error_of_the_closing(tmp_path: Path) -> None:
    """K5: with a clean body the error itself is raised; the checkpoints before are there still."""
    made, saver, disk = Counting(), HeldSaver(), OSError(28, "No space left on device")
    put(tmp_path, 5, count=5)
    with pytest.raises(OSError) as caught, fail_write(tmp_path, at_step=7, error=disk):
        hook = CheckpointSaverHook(tmp_path, save_steps=FAR, saver=saver)
        async with made.session(hook, directory=tmp_path) as session:
            await made.steps(session, 1)
            with anyio.fail_after(LONG):
                while saved(tmp_path) != [5, 6]:
                    await anyio.lowlevel.checkpoint()
            await made.steps(session, 1)
    assert caught.value is disk
    assert saver.asked == [6, 7]
    assert newest(tmp_path).step == 6


async def test_the_errors_of_both_last_saves_are_raised(tmp_path: Path) -> None:
    """K5, E2, E3: the save in flight fails, and the last one too: neither error is lost."""
    made, saver, errors = Counting(), HeldSaver(), [OSError(5, "one"), OSError(5, "two")]
    saver.failures = list(errors)
    saver.gate.clear()
    with pytest.raises(ExceptionGroup) as caught:
        async with made.session(every_step(tmp_path, saver=saver)) as session:
            await made.steps(session, 3)
            saver.gate.set()
    assert leaves(caught.value) == errors
    assert saver.asked == [1, 3]


async def test_an_error_of_the_body_and_one_of_the_last_save_are_raised(tmp_path: Path) -> None:
    """E2: a group of both."""
    made, saver, disk, oops = Counting(), HeldSaver(), OSError(5, "disk"), Oops()
    with pytest.raises(ExceptionGroup) as caught:
        async with made.session(CheckpointSaverHook(tmp_path, save_steps=FAR, saver=saver)) as session:
            await made.steps(session, 1)
            while not saved(tmp_path):  # until the first save is over, which is not to fail
                await anyio.sleep(0.001)
            saver.failures = [disk]
            await made.steps(session, 1)
            raise oops
    assert set(leaves(caught.value)) == {oops, disk}


async def test_a_value_that_cannot_be_saved_names_its_variable(tmp_path: Path) -> None:
    """K5: the error is one of the session, and names the variable and its type; nothing is written."""
    graph = Graph()
    with graph:
        bad: Variable[Any] = Variable(threading.Lock, name="bad")
        parts = Counting()
        parts.graph, parts.bump = graph, bad
    with pytest.raises(ExceptionGroup) as caught:
        async with parts.session(every_step(tmp_path)) as session:
            while True:
                await parts.steps(session, 1)
    assert all("'bad'" in str(leaf) and "lock" in str(leaf) for leaf in leaves(caught.value))
    assert saved(tmp_path) == []


# The final save, on every way out


async def final_count(directory: Path, end: Any, **options: Any) -> int:
    """What the newest checkpoint has after three steps and an end that `end(session, made)` brings."""
    made = Counting()
    hook = CheckpointSaverHook(directory, save_steps=FAR, **options)
    async with made.session(hook) as session:
        await made.steps(session, 3)
        await end(session, made)
    found: int = newest(directory).variables["count"]
    return found


async def test_the_normal_end_of_the_body_saves(tmp_path: Path) -> None:
    """The last state is saved when the block ends."""

    async def end(session: Any, made: Counting) -> None:
        return None

    assert await final_count(tmp_path, end) == 3


async def test_a_stop_saves(tmp_path: Path) -> None:
    """The last state is saved when a step asks for the stop, what it has done included (T3)."""

    async def end(session: Any, made: Counting) -> None:
        async def step(ctx: StepContext) -> None:
            await ctx.run_with_hooks(made.bump)
            ctx.request_stop()

        await session.run_step_fn(step)

    assert await final_count(tmp_path, end) == 4


async def test_aclose_saves(tmp_path: Path) -> None:
    """The last state is saved by `aclose()` in the block."""

    async def end(session: Any, made: Counting) -> None:
        await session.aclose()

    assert await final_count(tmp_path, end) == 3


async def test_the_end_of_the_data_saves(tmp_path: Path) -> None:
    """The last state is saved when the data has ended."""
    made = Counting()

    async def item() -> None:
        if session.global_step == 4:
            raise OutOfRangeError("no more items")

    async with made.session(CheckpointSaverHook(tmp_path, save_steps=FAR)) as session:
        while True:
            await session.run([made.bump, item])
    assert session.stop_reason is not None and session.stop_reason.kind is StopKind.END_OF_DATA
    assert newest(tmp_path).variables == {"count": 4, "global_step": 4}


async def test_an_error_saves(tmp_path: Path) -> None:
    """The last state is saved when an error ends the session; the step that failed is not in it (T4)."""

    async def end(session: Any, made: Counting) -> None:
        async def fail() -> None:
            raise Oops

        await session.run([made.bump, fail])

    with pytest.raises(Oops):
        await final_count(tmp_path, end)
    assert newest(tmp_path).variables == {"count": 3, "global_step": 3}


async def test_an_error_saves_nothing_if_it_is_not_to(tmp_path: Path) -> None:
    """`save_on_error=False`: an error leaves the checkpoints as they are."""

    async def end(session: Any, made: Counting) -> None:
        raise Oops

    with pytest.raises(Oops):
        await final_count(tmp_path, end, save_on_error=False)
    assert saved(tmp_path) == [1]


async def test_a_cancellation_saves(tmp_path: Path) -> None:
    """The last state is saved when the session is cancelled, also with `save_on_error=False`."""

    async def end(session: Any, made: Counting) -> None:
        scope.cancel()
        await session.run(made.bump)

    with anyio.CancelScope() as scope:
        await final_count(tmp_path, end, save_on_error=False)
    assert scope.cancelled_caught
    assert newest(tmp_path).variables["count"] == 3


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])
async def test_an_interrupt_saves(tmp_path: Path, interrupt: type[BaseException]) -> None:
    """The last state is saved on an interrupt, also with `save_on_error=False`; it leaves as it is (C5)."""
    raised = interrupt()

    async def end(session: Any, made: Counting) -> None:
        raise raised

    with pytest.raises(interrupt) as caught:
        await final_count(tmp_path, end, save_on_error=False)
    assert caught.value is raised
    assert newest(tmp_path).variables["count"] == 3


async def test_a_session_that_failed_to_open_saves_nothing_over_what_there_is(tmp_path: Path) -> None:
    """L3: a session that is refused for the later checkpoints of its directory writes nothing there."""
    put(tmp_path, 5, count=5)
    with pytest.raises(FailedPreconditionError, match="step 5"):
        async with Counting().session(every_step(tmp_path)):
            pytest.fail("opened")
    assert saved(tmp_path) == [5]
    async with Counting().session(every_step(tmp_path), directory=tmp_path) as session:
        assert session.global_step == 5


# K7: restoring into a graph that has changed


def array_graph(array: Any, **options: Any) -> Graph:
    """A graph with one variable `weights`."""
    graph = Graph()
    with graph:
        Variable(array, name="weights", **options)
    return graph


async def test_missing_and_surplus_names_are_in_one_error(tmp_path: Path) -> None:
    """K7: all names that are on one side only are listed, variables and tracked objects."""
    path = put(tmp_path, 5, old=1, older=2, count=3)
    made = Counting()
    with made.graph:
        Variable(0, name="new")
        Variable(0, name="newer")
    made.graph.track("thing", Tracked())
    with pytest.raises(NotFoundError) as caught:
        async with made.session(path=path):
            pytest.fail("opened")
    assert all(f"'{name}'" in str(caught.value) for name in ("old", "older", "new", "newer", "thing"))
    assert "'count'" not in str(caught.value)


async def test_with_strict_off_what_both_have_is_restored(tmp_path: Path) -> None:
    """K7: `strict=False` leaves what the checkpoint lacks, and passes over what the graph lacks."""
    path = put(tmp_path, 5, old=1, count=3)
    made = Counting()
    with made.graph:
        new: Variable[int] = Variable(7, name="new")
    async with entire(made.session()) as session:
        await Saver().restore(session, path, strict=False)
        assert await session.run_without_hooks([made.count, new]) == [3, 7]
        assert session.global_step == 6


async def test_a_refused_restore_changes_nothing(tmp_path: Path) -> None:
    """K7: the session goes on with what it had."""
    path = put(tmp_path, 5, surplus=1, count=3)
    made = Counting()
    async with entire(made.session()) as session:
        await made.steps(session, 2)
        with pytest.raises(NotFoundError):
            await Saver().restore(session, path)
        assert (await session.run(made.count), session.global_step) == (2, 3)


@pytest.mark.parametrize(
    "array", [np.zeros(4, np.float32), np.zeros((3, 1), np.float32), np.zeros(3, np.float64), 0.5]
)
async def test_an_array_of_another_form_is_refused(tmp_path: Path, array: Any) -> None:
    """K7: another dtype or shape than the initial array's, or no array, is an error that names the variable."""
    path = put(tmp_path, 5, weights=array)
    async with Session(array_graph(np.ones(3, np.float32))) as session:
        with pytest.raises(InvalidArgumentError, match="'weights'"):
            await Saver().restore(session, path)
        assert (await session.run("weights")).tolist() == [1, 1, 1]


async def test_an_array_of_another_form_is_taken_if_it_may(tmp_path: Path) -> None:
    """K7: `Variable(validate_shape=False)` takes any."""
    path = put(tmp_path, 5, weights=np.arange(4, dtype=np.int64))
    async with Session(array_graph(np.ones(3, np.float32), validate_shape=False)) as session:
        await Saver().restore(session, path)
        assert (await session.run("weights")).tolist() == [0, 1, 2, 3]


async def test_the_form_of_an_array_is_that_of_the_initial_one_whatever_it_is_by_now(tmp_path: Path) -> None:
    """K7: the initial array counts, also where steps have put one of another form in its place."""
    fitting = put(tmp_path, 5, weights=np.zeros(3, np.float32))
    grown = put(tmp_path, 6, weights=np.zeros(4, np.float32))
    graph = array_graph(np.ones(3, np.float32))
    with graph:
        grow = graph.variables["weights"].assign(np.ones(4, np.float32))
    async with Session(graph) as session:
        await session.run(grow)
        with pytest.raises(
            InvalidArgumentError, match=r"float32\[4\] in the checkpoint, initially float32\[3\]"
        ):
            await Saver().restore(session, grown)
        await Saver().restore(session, fitting)
        assert (await session.run("weights")).tolist() == [0, 0, 0]


async def test_an_object_that_refuses_its_state_leaves_the_variables(tmp_path: Path) -> None:
    """K7: the error names the object, and the session goes on with the values that it had."""
    made, tracked = Counting(), Tracked()
    made.graph.track("picky", tracked)
    async with entire(made.session()) as session:
        path = await Saver().save(session, tmp_path)
        await made.steps(session, 2)

        def refuse(state: object) -> None:
            raise ValueError("no state of mine")

        tracked.load_state_dict = refuse  # type: ignore[method-assign]
        with pytest.raises(ValueError, match="no state of mine") as caught:
            await Saver().restore(session, path)
        assert caught.value.__notes__ == ["while restoring the tracked object 'picky'"]
        assert (await session.run(made.count), session.global_step) == (2, 3)


async def test_a_step_that_was_under_way_cannot_commit_into_a_restored_state(tmp_path: Path) -> None:
    """K1, V2: neither its runs with hooks, nor its raw runs, nor its end; a session that recovers runs it again."""
    made = Counting()
    begun, restored = anyio.Event(), anyio.Event()

    async def step(ctx: StepContext) -> int:
        if ctx.attempt == 1:
            await ctx.session.run(made.bump)
            begun.set()
            await restored.wait()
            await ctx.session.run(made.bump)
        await ctx.run_with_hooks(made.bump)
        return ctx.attempt

    async with entire(made.session(recovery=QUICK)) as session:
        path = await Saver().save(session, tmp_path)
        await made.steps(session, 2)
        async with anyio.create_task_group() as group:

            async def run() -> None:
                assert await session.run_step_fn(step) == 2

            group.start_soon(run)
            await begun.wait()
            await Saver().restore(session, path)
            assert session.snapshot().variables["count"] == 0
            restored.set()
        assert session.snapshot().variables["count"] == session.global_step == 1
        assert session.recoveries == 0


async def test_a_step_cannot_restore_what_it_is_a_part_of(tmp_path: Path) -> None:
    """K1: a restore inside a step is refused, with what to do, and the step goes on."""
    made = Counting()

    async def step(ctx: StepContext) -> None:
        with pytest.raises(FailedPreconditionError, match="between two steps"):
            await Saver().restore(session, path)
        await ctx.run_with_hooks(made.bump)

    async with entire(made.session()) as session:
        path = await Saver().save(session, tmp_path)
        await session.run_step_fn(step)
        await Saver().restore(session, path)
        assert session.global_step == 0


# K8: retention, as far as it is the session's


async def test_the_checkpoint_just_saved_is_kept_whatever_the_others_are(tmp_path: Path) -> None:
    """K8: a save of an earlier step than those in the directory is there when `save` returns."""
    for step in (50, 60):
        put(tmp_path, step, count=step)
    made = Counting()
    async with entire(made.session()) as session:
        await made.steps(session, 1)
        path = await Saver(max_to_keep=1).save(session, tmp_path)
    assert read_checkpoint(path).step == 1
    assert saved(tmp_path) == [1, 60]


async def test_a_metric_that_fails_costs_no_state(tmp_path: Path) -> None:
    """K8, E3: the error of `KeepBest`'s metric is raised, and the last state is saved all the same."""

    async def metric() -> float:
        raise Oops

    made = Counting()
    with pytest.raises((Oops, ExceptionGroup)) as caught:
        hook = CheckpointSaverHook(tmp_path, save_steps=1, saver=Saver(keep_best=KeepBest(metric)))
        async with made.session(hook) as session:
            while True:
                await made.steps(session, 1)
    assert all(isinstance(leaf, Oops) for leaf in leaves(caught.value))
    assert newest(tmp_path).variables["count"] == session.global_step


# K9: one writer


async def test_a_second_saver_is_refused(tmp_path: Path) -> None:
    """K9: two sessions that save into one directory, in one process: the second is refused with a name."""
    made = Counting()
    async with entire(made.session(every_step(tmp_path))) as session:
        with pytest.raises(FailedPreconditionError, match="this process"):
            async with Counting().session(every_step(tmp_path)):
                pytest.fail("opened")
        await made.steps(session, 1)
    assert saved(tmp_path) == [1]


async def test_two_saver_hooks_of_one_session_on_one_directory_are_refused(tmp_path: Path) -> None:
    """K9: also two hooks of the same session."""
    with pytest.raises(FailedPreconditionError, match="this process"):
        async with Counting().session(every_step(tmp_path), every_step(tmp_path)):
            pytest.fail("opened")


async def test_a_save_by_hand_is_refused_while_a_hook_has_the_directory(tmp_path: Path) -> None:
    """K9: a Saver is a writer, too."""
    async with entire(Counting().session(every_step(tmp_path))) as session:
        with pytest.raises(FailedPreconditionError, match="this process"):
            await Saver().save(session, tmp_path)


@pytest.mark.parametrize("error", [None, Oops(), OutOfRangeError("other code's")], ids=repr)
async def test_the_lock_ends_with_the_session(tmp_path: Path, error: Exception | None) -> None:
    """K9: whichever way the session ends, the directory can be had by the next one at once."""
    for _ in range(2):
        try:
            async with Counting().session(every_step(tmp_path), directory=tmp_path):
                if error is not None:
                    raise error
        except (Oops, OutOfRangeError) as caught:
            assert caught is error


async def test_the_lock_ends_with_an_opening_that_fails(tmp_path: Path) -> None:
    """K9, L3: a hook that fails while the session is opened leaves no lock behind."""

    class Refusing(SessionRunHook):
        async def after_create_session(self, session: Session, coord: object) -> None:
            raise Oops

    with pytest.raises(Oops):
        async with Counting().session(every_step(tmp_path), Refusing()):
            pytest.fail("opened")
    async with Counting().session(every_step(tmp_path), directory=tmp_path):
        pass


async def test_one_hook_can_serve_one_session_after_the_other(tmp_path: Path) -> None:
    """L4: a hook object that has seen its session end can be given to the next one."""
    hook = every_step(tmp_path)
    for _ in range(3):
        made = Counting()
        async with made.session(hook, directory=tmp_path) as session:
            await made.steps(session, 2)
    assert newest(tmp_path).variables == {"count": 6, "global_step": 6}


async def test_what_a_step_function_commits_last_is_saved_at_the_end(tmp_path: Path) -> None:
    """K4, T3: what a step writes after its last run with hooks commits, and is there after a resume."""
    for _ in range(3):
        made = Counting()
        with made.graph:
            rest: Variable[int] = Variable(0, name="rest")
            add_rest = rest.assign_add(1)

        async def step(ctx: StepContext, made: Counting = made, add_rest: Any = add_rest) -> None:
            await ctx.run_with_hooks(made.bump)
            await ctx.session.run(add_rest)

        async with made.session(every_step(tmp_path), directory=tmp_path) as session:
            await session.run_step_fn(step)
    assert newest(tmp_path).variables == {"count": 3, "rest": 3, "global_step": 3}
