"""`SummarySaverHook`: which steps are written, where, and what becomes of the files."""

from __future__ import annotations

import itertools
import logging
import threading
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import numpy as np
import pytest

import asyncstep.hooks.summary_saver
from asyncstep import (
    AbortedError,
    DeadlineExceededError,
    Graph,
    MonitoredSession,
    MonitoredTrainingSession,
    Node,
    Recovery,
    Session,
    SessionCreator,
    SessionRunArgs,
    SessionRunContext,
    SessionRunHook,
    SessionRunValues,
    StepContext,
    Variable,
    get_or_create_global_step,
    op,
)
from asyncstep.errors import InvalidArgumentError, InvalidTypeError
from asyncstep.hooks import (
    SecondOrStepTimer,
    StepCounterHook,
    StopAtStepHook,
    SummarySaverHook,
)
from asyncstep.summary import EventFileWriter, JSONLinesWriter, merge_all

from .parts import Disk, events, lines, scalars, texts

pytestmark = pytest.mark.anyio


async def step() -> None:
    """A step that does nothing."""


def constant(value: Any, name: str = "constant") -> Node[Any]:
    """A node of that value."""

    @op(name=name)
    async def constant() -> Any:
        return value

    return constant()


class Writer:
    """Keeps what it is given, and what is done to it."""

    def __init__(self) -> None:
        self.added: list[tuple[str, Any, int]] = []
        self.calls: list[str] = []

    def _add(self, tag: str, value: Any, step: int) -> None:
        self.added.append((tag, value, step))

    add_scalar = add_text = add_histogram = add_image = _add

    def add_start(self, step: int) -> None:
        self.calls.append(f"start {step}")

    def flush(self) -> None:
        self.calls.append("flush")

    def close(self) -> None:
        self.calls.append("close")


@pytest.fixture
def writer() -> Writer:
    """A writer that keeps what it is given."""
    return Writer()


class Restoring(SessionCreator):
    """Each of its sessions starts at 0."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph

    async def create_session(self) -> Session:
        return Session(self.graph)


async def test_every_n_steps_from_the_first(tmp_path: Path) -> None:
    """The first step and each n-th from there is in the event file, with the step that it was committed as."""
    with Graph():
        number = Variable(10, name="global_step")
        hook = SummarySaverHook({"number": number}, save_steps=3, output_dir=tmp_path)
        session = MonitoredSession(hooks=[hook])
    async with session:
        for _ in range(8):
            await session.run(step)
    assert scalars(tmp_path, "number") == [(11, 10.0), (14, 13.0), (17, 16.0)]


async def test_every_n_secs(writer: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    """With seconds, the first step is written, and then the first one after the time has passed."""
    clock = [0.0]
    timer = partial(SecondOrStepTimer, clock=lambda: clock[0])
    monkeypatch.setattr(asyncstep.hooks.summary_saver, "SecondOrStepTimer", timer)
    with Graph():
        hooks = [SummarySaverHook({"one": constant(1)}, save_secs=10, writer=writer)]
        session = MonitoredSession(hooks=hooks)
    async with session:
        for clock[0] in (0.0, 9.0, 10.5, 12.0, 20.5):
            await session.run(step)
    assert [number for _, _, number in writer.added] == [1, 3, 5]


async def test_every_kind_is_written(tmp_path: Path) -> None:
    """Numbers, arrays without dimensions and strings under the names of their fetches, summaries under their own."""

    async def rate() -> float:
        return 0.5

    with Graph():
        loss = constant(np.float32(2.5), "loss")
        summary = asyncstep.summary
        summary.scalar("half", constant(0.5))
        summary.histogram("weights", constant(np.arange(10.0)))
        summary.text("words", constant("some *words*"))
        summary.image("face", constant(np.zeros((2, 3), np.uint8)))
        values = [*(merge_all() or ()), loss, rate, constant("a", "letter")]
        session = MonitoredSession(hooks=[SummarySaverHook(values, save_steps=1, output_dir=tmp_path)])
    async with session:
        await session.run(step)
    found = events(tmp_path)
    tags = found.Tags()
    assert set(tags["scalars"]) == {"loss", "rate", "half"}
    assert scalars(tmp_path, "loss") == [(1, 2.5)]
    assert (texts(tmp_path, "words"), texts(tmp_path, "letter")) == ([(1, "some *words*")], [(1, "a")])
    assert found.Histograms("weights")[0].histogram_value.num == 10
    assert found.Images("face")[0].width == 3


async def test_values_in_any_form(writer: Writer) -> None:
    """A mapping names its fetches, mappings in it add to the tag; one fetch that has a name may stand alone."""
    with Graph():
        one = constant(1, "one")
        hooks = [
            SummarySaverHook({"a": one, "b": {"c": [asyncstep.summary.scalar("own", one)], "d": one}}, save_steps=1,
                             writer=writer),
            SummarySaverHook(one, save_steps=1, writer=writer),
            SummarySaverHook("one", save_steps=1, writer=writer),
        ]  # fmt: skip
        session = MonitoredSession(hooks=hooks)
    async with session:
        await session.run(step)
    assert [tag for tag, _, _ in writer.added] == ["a", "own", "b/d", "one", "one"]


async def test_what_is_no_summary_is_an_error_that_names_the_fetch(writer: Writer) -> None:
    """The run raises it; its step is committed, and nothing of it is written."""
    with Graph():
        values = {"fine": constant(1), "weights": constant(np.zeros(3))}
        session = MonitoredSession(hooks=[SummarySaverHook(values, save_steps=1, writer=writer)])
    async with session:
        with pytest.raises(InvalidTypeError, match=r"the value of 'weights' is a ndarray of shape \(3,\)"):
            await session.run(step)
        assert session.global_step == 1
    assert writer.added == []


async def test_the_values_are_evaluated_only_for_what_is_written(writer: Writer) -> None:
    """The fetches join no other runs."""
    evaluated: list[int] = []
    with Graph():

        @op
        async def probe() -> int:
            evaluated.append(1)
            return len(evaluated)

        hooks = [SummarySaverHook([probe()], save_steps=10, writer=writer)]
        session = MonitoredSession(hooks=hooks)
    async with session:
        for _ in range(15):
            await session.run(step)
    assert writer.added == [("probe", 1, 1), ("probe", 2, 11)]


async def test_a_step_that_is_rolled_back_is_not_written(writer: Writer) -> None:
    """The next one is."""
    failures = iter([ZeroDivisionError("once")])

    async def fails_once() -> None:
        for failure in failures:
            raise failure

    with Graph():
        hooks = [SummarySaverHook({"one": constant(1)}, save_steps=10, writer=writer)]
        session = MonitoredSession(hooks=hooks)
    async with session:
        with pytest.raises(ZeroDivisionError):
            await session.run(fails_once)
        await session.run(fails_once)
    assert writer.added == [("one", 1, 1)]


async def test_workers_steps_come_in_order_and_none_twice(tmp_path: Path) -> None:
    """With workers whose steps overlap, what is written is the commit's own step and value, and they grow strictly."""
    committed: dict[int | None, float] = {}
    numbers = itertools.count(1)
    with Graph():

        @op
        async def own() -> int:
            return next(numbers)

        number = own()

        class Watching(SessionRunHook):
            """Knows which value each step has."""

            async def before_run(self, run_context: SessionRunContext) -> SessionRunArgs:
                return SessionRunArgs(number)

            async def after_run(self, run_context: SessionRunContext, run_values: SessionRunValues) -> None:
                committed[run_values.global_step] = run_values.results

        hooks = [Watching(), SummarySaverHook([number], save_steps=5, output_dir=tmp_path)]
        session = MonitoredSession(hooks=hooks)

    async def work(ctx: StepContext) -> None:
        async def wait() -> None:
            for _ in range(ctx.worker + 1):
                await anyio.lowlevel.checkpoint()

        await ctx.run_with_hooks([wait, number])
        if session.global_step >= 200:
            ctx.request_stop()

    async with session:
        await session.loop(work, workers=8)
    found = scalars(tmp_path, "own")
    assert len(found) > 5
    assert all(earlier < later for (earlier, _), (later, _) in pairwise(found))
    assert found == [(step, committed[step]) for step, _ in found]


async def test_a_graph_that_counts_its_steps_itself_is_not_written_twice(writer: Writer) -> None:
    """Runs that do not change the global step are none; the next one that does is written."""
    with Graph():
        count = get_or_create_global_step()
        bump = count.assign_add(1)
        hooks = [SummarySaverHook({"one": constant(1)}, save_steps=1, writer=writer)]
        session = MonitoredSession(hooks=hooks)
    async with session:
        for fetch in (bump, step, step, bump, step, bump):
            await session.run(fetch)
    assert [number for _, _, number in writer.added] == [1, 2, 3]


async def test_after_a_recovery_the_steps_that_are_made_again_are_there_once(tmp_path: Path) -> None:
    """TensorBoard drops what it had of them, and the first step after the recovery is written."""
    plan: list[Any] = [10, 20, 30, AbortedError("lost"), 100, 200]
    with Graph() as graph:

        @op
        async def value() -> int:
            planned = plan.pop(0)
            if isinstance(planned, Exception):
                raise planned
            return int(planned)

        hooks: list[SessionRunHook] = [SummarySaverHook([value()], save_steps=1, output_dir=tmp_path)]
        hooks.append(StepCounterHook(output_dir=tmp_path))
    recovery = Recovery(restore="always", wait_initial=0.001)
    async with MonitoredSession(Restoring(graph), hooks, recovery=recovery) as session:
        for _ in range(5):
            await session.run(step)
    assert scalars(tmp_path, "value") == [(1, 100.0), (2, 200.0)]
    assert len(list(tmp_path.iterdir())) == 1


async def test_a_session_that_goes_on_writes_another_file(tmp_path: Path) -> None:
    """Resumed at a checkpoint, TensorBoard has each step once: what was lost with the process is made again."""
    for stop, offset in ((4, 0), (9, 100)):
        with Graph():
            count = Variable(offset, name="offset", validate_shape=False)
            seen = count.assign_add(1)
            hooks = [
                StopAtStepHook(last_step=stop),
                SummarySaverHook({"seen": seen}, save_steps=1, output_dir=tmp_path / "logs"),
            ]
            session = MonitoredTrainingSession(checkpoint_dir=tmp_path / "checkpoints", hooks=hooks)
        async with session:
            while not session.should_stop():
                await session.run(seen)
        if stop == 4:  # as if it had gone on, and been killed before the next checkpoint
            with EventFileWriter(tmp_path / "logs") as lost:
                lost.add_scalar("seen", -1, 5)
                lost.add_scalar("seen", -1, 6)
    assert scalars(tmp_path / "logs", "seen") == [(each, float(each)) for each in range(1, 10)]
    assert len(list((tmp_path / "logs").iterdir())) == 3


async def test_the_session_closes_the_writer_however_it_ends(tmp_path: Path) -> None:
    """After an error of the body, and of the opening, too, everything is in the file and the thread is gone."""

    class Refusing(SessionRunHook):
        async def begin(self) -> None:
            raise ZeroDivisionError

    with Graph() as graph:
        hook = SummarySaverHook({"one": constant(1)}, save_steps=1, output_dir=tmp_path)
        session = MonitoredSession(hooks=[hook])
    with pytest.raises(ZeroDivisionError):
        async with session:
            await session.run(step)
            raise ZeroDivisionError
    assert scalars(tmp_path, "one") == [(1, 1.0)]
    with graph:
        session = MonitoredSession(hooks=[hook, Refusing()])
    with pytest.raises(ZeroDivisionError):
        async with session:
            pass


async def test_a_hook_writes_anew_in_the_next_session(tmp_path: Path) -> None:
    """One hook used for two sessions, one after the other, writes the first step of each."""
    with Graph() as graph:
        hook = SummarySaverHook({"one": constant(1)}, save_steps=100, output_dir=tmp_path)
    for files in (1, 2):
        with graph:
            session = MonitoredSession(hooks=[hook])
        async with session:
            await session.run(step)
        assert (scalars(tmp_path, "one"), len(list(tmp_path.iterdir()))) == ([(1, 1.0)], files)


async def test_a_writer_that_was_given_is_flushed_and_stays_open(writer: Writer) -> None:
    """It is told of the start, and has everything written at the end; closing it is for who made it."""
    with Graph():
        hooks = [SummarySaverHook({"one": constant(1)}, save_steps=1, writer=writer)]
        session = MonitoredSession(hooks=hooks)
    async with session:
        await session.run(step)
    assert writer.calls == ["start 1", "flush"]


async def test_json_lines(tmp_path: Path) -> None:
    """The other writer is one argument away, and is read back when the session has ended."""
    with JSONLinesWriter(tmp_path) as writer:
        with Graph():
            hooks = [SummarySaverHook({"one": constant(1)}, save_steps=1, writer=writer)]
            session = MonitoredSession(hooks=hooks)
        async with session:
            await session.run(step)
        found = [(line["kind"], line["tag"], line["step"], line["value"]) for line in lines(tmp_path)]
    assert found == [("start", None, 1, None), ("scalar", "one", 1, 1.0)]


async def test_a_full_disk_is_said_once_and_the_loop_goes_on(
    tmp_path: Path, disk: type[Disk], caplog: pytest.LogCaptureFixture
) -> None:
    """A WARNING, and every step is made; the session ends cleanly."""
    disk.full = True
    with Graph():
        hooks = [SummarySaverHook({"one": constant(1)}, save_steps=1, output_dir=tmp_path)]
        session = MonitoredSession(hooks=hooks)
    async with session:
        for _ in range(50):
            await session.run(step)
            hooks[0]._output.writer.flush()
    warnings = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert session.global_step == 50
    assert len(warnings) == 1 and "No space left on device" in warnings[0]


async def test_asked_to_a_full_disk_ends_the_loop(tmp_path: Path, disk: type[Disk]) -> None:
    """A writer with on_error="raise" makes it an error of the run that writes next, or of the session's end."""
    disk.full = True
    with EventFileWriter(tmp_path, on_error="raise") as writer:
        with Graph():
            hooks = [SummarySaverHook({"one": constant(1)}, save_steps=1, writer=writer)]
            session = MonitoredSession(hooks=hooks)
        with pytest.raises(OSError, match="No space left"):
            async with session:
                await session.run(step)


async def test_a_disk_that_hangs_stops_neither_the_loop_nor_its_end(tmp_path: Path, disk: type[Disk]) -> None:
    """Steps are made; closing takes no longer than its grace period, and names the hook."""
    disk.goes_on.clear()
    with Graph():
        hooks = [SummarySaverHook({"one": constant(1)}, save_steps=1, output_dir=tmp_path)]
        session = MonitoredSession(hooks=hooks, stop_grace_period=0.05)
    with pytest.raises(DeadlineExceededError, match=r"SummarySaverHook\.end"):
        async with session:
            for _ in range(10):
                await session.run(step)
    hung = [thread for thread in threading.enumerate() if thread.name.startswith("summaries into")]
    disk.goes_on.set()
    for thread in hung:
        thread.join(30)
    assert (session.global_step, len(scalars(tmp_path, "one"))) == (10, 10)


@pytest.mark.parametrize("intervals", [{}, {"save_steps": 0}, {"save_secs": -1.0}])
def test_an_interval_is_positive(intervals: dict[str, Any]) -> None:
    """No interval, 0 and negatives are a ValueError at construction, that names the parameter."""
    with pytest.raises(InvalidArgumentError, match=r"SummarySaverHook.*save_s"):
        SummarySaverHook(["loss"], output_dir="logs", **intervals)


@pytest.mark.parametrize("given", [{}, {"output_dir": "logs", "writer": Writer()}], ids=["none", "both"])
def test_one_place_is_given(given: Any) -> None:
    """Neither output_dir nor writer, and both, are a ValueError."""
    with pytest.raises(
        InvalidArgumentError, match="SummarySaverHook needs exactly one of output_dir and writer"
    ):
        SummarySaverHook(["loss"], save_steps=1, **given)


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"writer": 3}, "writer must have the methods of asyncstep.summary.SummaryWriter, got an int"),
        ({"output_dir": 3}, "the directory must be a string or a path, got an int"),
        ({"output_dir": "s3://bucket"}, "is a URL"),
    ],
    ids=str,
)
def test_the_place_is_checked(given: Any, problem: str) -> None:
    """At construction."""
    with pytest.raises(InvalidArgumentError, match=f"SummarySaverHook: .*{problem}"):
        SummarySaverHook(["loss"], save_steps=1, **given)


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        (None, r"got None; merge_all\(\) gives None"),
        ([], "empty"),
        (["loss", "loss"], "one name"),
        ([["loss"]], "no name of its own"),
        ({"loss"}, "no name of its own"),
    ],
    ids=repr,
)
def test_values_are_checked(values: Any, problem: str) -> None:
    """No values, two of one name, and a fetch without a name are a ValueError."""
    with pytest.raises(InvalidArgumentError, match=f"SummarySaverHook: .*{problem}"):
        SummarySaverHook(values, save_steps=1, output_dir="logs")
