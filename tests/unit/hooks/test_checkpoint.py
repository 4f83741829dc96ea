"""CheckpointSaverHook and its listeners."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from asyncstep import (
    ChiefSessionCreator,
    Graph,
    InvalidArgumentError,
    MonitoredSession,
    Session,
    StepContext,
    Variable,
)
from asyncstep.checkpoint import Saver, list_checkpoints
from asyncstep.errors import InvalidTypeError
from asyncstep.hooks import CheckpointSaverHook, CheckpointSaverListener, SecondOrStepTimer

pytestmark = pytest.mark.anyio


class Settling(Saver):
    """A saver that a test can wait for, so that each save is done before the next step."""

    def __init__(self) -> None:
        super().__init__(max_to_keep=None)
        self.steps: list[int] = []
        self.failures: list[Exception] = []

    def write(self, writer: Any, snapshot: Any, metric: Any, *, replace: bool = False) -> Path:
        self.steps.append(snapshot.step)
        if self.failures:
            raise self.failures.pop(0)
        return super().write(writer, snapshot, metric, replace=replace)


class Journal(CheckpointSaverListener):
    """A listener that writes down what it is told, and answers with `wish`."""

    def __init__(self, name: str, journal: list[str], wish: Any = None) -> None:
        self.name = name
        self.journal = journal
        self.wish = wish
        self.fails_in = ""

    def _note(self, point: str) -> None:
        self.journal.append(f"{self.name} {point}")
        if self.fails_in and point.startswith(self.fails_in):
            raise OSError(point)

    async def begin(self) -> None:
        self._note("begin")

    async def before_save(self, session: Session, step: int) -> None:
        self._note(f"before_save {step}")

    async def after_save(self, session: Session, step: int) -> Any:
        self._note(f"after_save {step}")
        return self.wish

    async def end(self, session: Session, step: int) -> None:
        self._note(f"end {step}")


class Steps:
    """A session whose steps wait for the save that they began."""

    def __init__(self, directory: Path, **options: Any) -> None:
        self.graph = Graph()
        with self.graph:
            self.count: Variable[int] = Variable(0, name="count")
            self.bump = self.count.assign_add(1)
        self.saver = options.setdefault("saver", Settling())
        self.hook = CheckpointSaverHook(directory, **options)

    @asynccontextmanager
    async def opened(self, **options: Any) -> AsyncIterator[MonitoredSession]:
        """The session, open."""
        async with MonitoredSession(ChiefSessionCreator(graph=self.graph), [self.hook], **options) as session:
            yield session

    async def run(self, session: MonitoredSession, number: int = 1) -> None:
        """So many steps, each after the save that the one before has begun."""
        for _ in range(number):
            await session.run(self.bump)
            if self.hook._save is not None:
                await self.hook._save.settled()


@pytest.mark.parametrize(
    "intervals",
    [
        {},
        {"save_secs": 0},
        {"save_steps": 0},
        {"save_secs": -1.0},
        {"save_steps": -1},
        {"save_secs": math.nan},
    ],
)
async def test_an_interval_is_needed(tmp_path: Path, intervals: Any) -> None:
    """No interval, 0 and negatives are ValueError, at construction."""
    with pytest.raises(ValueError, match=r"SecondOrStepTimer|every|save") as caught:
        CheckpointSaverHook(tmp_path, **intervals)
    assert isinstance(caught.value, InvalidArgumentError)


async def test_listeners_must_be_listeners(tmp_path: Path) -> None:
    """A thing in `listeners` that is no CheckpointSaverListener is InvalidTypeError, which names its type."""
    with pytest.raises(InvalidTypeError, match="str"):
        CheckpointSaverHook(tmp_path, save_steps=1, listeners=["x"])  # type: ignore[list-item]


@pytest.mark.parametrize("wrong", [{"checkpoint_dir": 3}, {"saver": "x"}], ids=str)
async def test_wrong_types_are_type_errors(tmp_path: Path, wrong: Any) -> None:
    """InvalidTypeError at construction."""
    with pytest.raises(InvalidTypeError):
        CheckpointSaverHook(**{"checkpoint_dir": tmp_path, "save_steps": 1, **wrong})


async def test_the_first_step_triggers_and_then_every_so_many(tmp_path: Path) -> None:
    """`save_steps=3`: after the first step, and whenever three more are done; and at the end."""
    steps = Steps(tmp_path, save_steps=3)
    async with steps.opened() as session:
        await steps.run(session, 9)
    assert steps.saver.steps == [1, 4, 7, 9]


async def test_seconds_trigger(tmp_path: Path) -> None:
    """`save_secs`: after the first step, and whenever so many seconds are over."""
    steps, now = Steps(tmp_path, save_secs=10.0), [0.0]
    steps.hook._timer = SecondOrStepTimer(10.0, clock=lambda: now[0])
    async with steps.opened() as session:
        for now[0] in (0.0, 5.0, 9.0, 10.0, 15.0, 20.0, 21.0):
            await steps.run(session)
    assert steps.saver.steps == [1, 4, 6, 7]


async def test_either_of_two_intervals_triggers(tmp_path: Path) -> None:
    """With both intervals, whichever is over first triggers, and both begin anew."""
    steps, now = Steps(tmp_path, save_secs=10.0, save_steps=3), [0.0]
    steps.hook._timer = SecondOrStepTimer(10.0, 3, clock=lambda: now[0])
    async with steps.opened() as session:
        for now[0] in (0.0, 1.0, 2.0, 3.0, 13.0, 14.0, 15.0, 16.0):
            await steps.run(session)
    assert steps.saver.steps == [1, 4, 5, 8]


async def test_a_session_without_steps_is_saved_once(tmp_path: Path) -> None:
    """The end saves the state of a session that has run no step."""
    steps = Steps(tmp_path, save_steps=3)
    async with steps.opened():
        pass
    assert steps.saver.steps == [0]


async def test_listeners_are_called_in_order(tmp_path: Path) -> None:
    """begin; before_save, then after_save, for each save; end: each for all listeners in list order."""
    journal: list[str] = []
    steps = Steps(tmp_path, save_steps=2, listeners=[Journal("a", journal), Journal("b", journal)])
    async with steps.opened() as session:
        await steps.run(session, 4)
    points = [
        "begin",
        *(f"{when}_save {step}" for step in (1, 3, 4) for when in ("before", "after")),
        "end 4",
    ]
    assert journal == [f"{name} {point}" for point in points for name in "ab"]


async def test_after_save_comes_when_the_checkpoint_is_durable(tmp_path: Path) -> None:
    """In `before_save` it is not there yet, in `after_save` it is."""
    found: list[list[int]] = []

    class Looking(CheckpointSaverListener):
        async def before_save(self, session: Session, step: int) -> None:
            found.append([info.step for info in list_checkpoints(tmp_path)])

        async def after_save(self, session: Session, step: int) -> None:
            found.append([info.step for info in list_checkpoints(tmp_path)])

    steps = Steps(tmp_path, save_steps=2, listeners=[Looking()])
    async with steps.opened() as session:
        await steps.run(session, 3)
    assert found == [[], [1], [1], [1, 3]]


async def test_a_save_that_is_not_made_is_not_announced(tmp_path: Path) -> None:
    """A state that is saved already is not saved at the end, and listeners hear of no save."""
    journal: list[str] = []
    steps = Steps(tmp_path, save_steps=2, listeners=[Journal("a", journal)])
    async with steps.opened() as session:
        await steps.run(session, 3)
    assert journal.count("a before_save 3") == journal.count("a after_save 3") == 1


@pytest.mark.parametrize(("wish", "stops"), [(True, True), (None, False), (False, False), (1, False)])
async def test_true_asks_for_a_stop(tmp_path: Path, wish: Any, stops: bool) -> None:
    """`after_save` returning True asks the session to stop; nothing else does. All listeners are told first."""
    journal: list[str] = []
    listeners = [Journal("a", journal, wish), Journal("b", journal)]
    steps = Steps(tmp_path, save_steps=5, listeners=listeners)
    async with steps.opened() as session:
        await steps.run(session, 2)
        assert session.should_stop() is stops
        assert journal[-1] == "b after_save 1"
    if stops:
        assert session.stop_reason is not None
        assert session.stop_reason.origin == "CheckpointSaverHook"


@pytest.mark.parametrize("point", ["before_save", "after_save"])
async def test_an_error_of_a_listener_is_one_of_the_session(tmp_path: Path, point: str) -> None:
    """It ends the session; `end` of all listeners is called all the same."""
    journal: list[str] = []
    listeners = [Journal("a", journal), Journal("b", journal)]
    listeners[0].fails_in = point
    steps = Steps(tmp_path, save_steps=5, listeners=listeners, save_on_error=False)
    with pytest.raises(OSError, match=f"{point} 1"):
        async with steps.opened() as session:
            await steps.run(session, 2)
    assert [line[:5] for line in journal[-2:]] == ["a end", "b end"]


async def test_listeners_hear_of_the_end_also_if_the_last_save_fails(tmp_path: Path) -> None:
    """`end` is called once, whatever becomes of the saves; `after_save` is not called for one that failed."""
    journal: list[str] = []
    steps = Steps(tmp_path, save_steps=5, listeners=[Journal("a", journal)])
    with pytest.raises(OSError, match="disk"):
        async with steps.opened() as session:
            await steps.run(session, 2)
            steps.saver.failures = [OSError("disk")]
    assert journal == ["a begin", "a before_save 1", "a after_save 1", "a before_save 2", "a end 2"]


async def test_listeners_of_several_workers_hear_of_one_save_after_the_other(tmp_path: Path) -> None:
    """With many workers and a slow listener saves never overlap, and the other workers go on."""
    journal: list[str] = []

    class Slow(Journal):
        async def before_save(self, session: Session, step: int) -> None:
            await super().before_save(session, step)
            await anyio.lowlevel.checkpoint()

        async def after_save(self, session: Session, step: int) -> Any:
            await anyio.lowlevel.checkpoint()
            return await super().after_save(session, step)

    steps = Steps(tmp_path, save_steps=1, listeners=[Slow("a", journal), Slow("b", journal)])
    done = [0] * 8

    async def step(ctx: StepContext) -> None:
        await ctx.run_with_hooks(steps.bump)
        done[ctx.worker] += 1
        if min(done) >= 20 and len(steps.saver.steps) >= 3:
            ctx.request_stop()

    async with steps.opened() as session:
        await session.loop(step, workers=8)
    points = [line.rsplit(" ", 1)[0] for line in journal[2:-2]]
    cycle = ["a before_save", "b before_save", "a after_save", "b after_save"]
    assert points == cycle * (len(points) // 4)
    assert len(points) // 4 == len(steps.saver.steps) == len(set(steps.saver.steps))


async def test_the_intervals_begin_anew_in_each_session(tmp_path: Path) -> None:
    """A resumed session saves after its first step, as any."""
    for _ in range(2):
        steps = Steps(tmp_path, save_steps=100)
        creator = ChiefSessionCreator(graph=steps.graph, checkpoint_dir=tmp_path)
        async with MonitoredSession(creator, [steps.hook]) as session:
            await steps.run(session, 3)
    assert steps.saver.steps == [4, 6]
