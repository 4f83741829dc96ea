"""Properties of sources: random takes, commits, errors and cancellations against a plain model."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

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
    StepContext,
    source,
)
from asyncstep.data import SourceState

pytestmark = pytest.mark.anyio
reproducible = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


class Model:
    """What contract D1 says of a source: which batch a step is given, and what becomes of it."""

    def __init__(self, length: int, batch: int, repeat: int, drop_remainder: bool) -> None:
        positions = [list(range(epoch * length, (epoch + 1) * length)) for epoch in range(repeat)]
        self.new = [each[i : i + batch] for each in positions for i in range(0, length, batch)]
        self.dropped = [part for part in self.new if drop_remainder and len(part) < batch]
        self.again: list[list[int]] = []
        self.finished: set[int] = set()
        self.parked: set[int] = set()
        self.given: set[int] = set()

    def take(self) -> list[int] | None:
        """What was rolled back first, else what is new; None at the end."""
        while not self.again and self.new and self.new[0] in self.dropped:
            self.finished.update(self.new.pop(0))
        taken = self.again.pop(0) if self.again else self.new.pop(0) if self.new else None
        self.given.update(taken or ())
        return taken

    def end(self, taken: list[int], ending: str) -> None:
        """A step that was given something has ended."""
        self.given.difference_update(taken)
        if ending == "commit":
            self.finished.update(taken)
        elif ending == "error":
            self.parked.update(taken)
        else:
            self.again = sorted([*self.again, taken])

    def state(self) -> SourceState:
        """What `source_state` is to say."""
        position = 0
        while position in self.finished:
            position += 1
        pending = self.given.union(*self.again)
        return SourceState(position, tuple(sorted(pending)), tuple(sorted(self.parked)))


@st.composite
def schedules(draw: st.DrawFn) -> tuple[list[str], list[int]]:
    """How each of some steps ends, and an order of their beginnings and ends: each index comes twice."""
    endings = draw(st.lists(st.sampled_from(["commit", "commit", "error", "cancel"]), max_size=20))
    return endings, draw(st.permutations([*range(len(endings))] * 2))


@given(
    kind=st.sampled_from(["sequence", "iterable", "async iterable"]),
    length=st.integers(0, 7),
    batch=st.none() | st.integers(1, 3),
    repeat=st.integers(1, 3),
    drop=st.booleans(),
    schedule=schedules(),
)
@reproducible
async def test_every_item_is_given_as_the_model_says(
    kind: str,
    length: int,
    batch: int | None,
    repeat: int,
    drop: bool,
    schedule: tuple[list[str], list[int]],
) -> None:
    """D1, D2, D5: whatever becomes of overlapping steps, items are given, finished, parked or given again."""
    drop = drop and batch is not None
    model = Model(length, batch or 1, repeat, drop)
    endings, order = schedule
    letters = "abcdefg"[:length]
    acted: dict[int, anyio.Event] = {}
    gates = [anyio.Event() for _ in endings]
    scopes = [anyio.CancelScope() for _ in endings]
    got: dict[int, Any] = {}

    def iterable() -> Iterator[str]:
        yield from letters

    async def async_iterable() -> AsyncIterator[str]:
        for letter in letters:
            await anyio.lowlevel.checkpoint()
            yield letter

    items: Any = {"sequence": letters, "iterable": iterable, "async iterable": async_iterable}[kind]
    with Graph() as graph:
        letter = source(items, name="letters", batch=batch, repeat=repeat, drop_remainder=drop)

    async def step(ctx: StepContext, index: int) -> None:
        got[index] = await ctx.session.run(letter)
        acted[index].set()
        await gates[index].wait()
        if endings[index] == "error":
            raise ValueError("boom")

    async def run(index: int) -> None:
        with scopes[index]:
            try:
                await session.run_step_fn(step, index)
            except (ValueError, OutOfRangeError) as error:
                got.setdefault(index, error)
        acted[index].set()

    running: dict[int, list[int]] = {}
    async with MonitoredSession(ChiefSessionCreator(graph=graph)) as session:
        async with anyio.create_task_group() as group:
            for index in order:
                if session.should_stop() and index not in acted:
                    continue  # the data has ended: a step that begins now would only be told so
                first = index not in acted
                acted[index] = anyio.Event()
                if first:
                    taken = model.take()
                    group.start_soon(run, index)
                    await acted[index].wait()
                    if taken is None:
                        assert isinstance(got[index], OutOfRangeError)
                        acted.pop(index)
                    else:
                        running[index] = taken
                        values = [letters[position % length] for position in taken]
                        assert got[index] == (values if batch else values[0])
                elif index in running:
                    (scopes[index].cancel if endings[index] == "cancel" else gates[index].set)()
                    await acted[index].wait()
                    model.end(running.pop(index), endings[index])
                assert session.source_state(letter) == model.state()
            for index, taken in running.items():
                gates[index].set()
                await acted[index].wait()
                model.end(taken, endings[index] if endings[index] == "error" else "commit")
        assert session.source_state(letter) == model.state()


@given(failures=st.lists(st.integers(0, 9), max_size=6), workers=st.integers(1, 4), batch=st.integers(1, 4))
@reproducible
async def test_every_item_is_done_once_whatever_is_retried(
    failures: list[int], workers: int, batch: int
) -> None:
    """D1, V1: with several workers and errors that are retried, each item is committed exactly once."""
    done: list[int] = []
    left = list(failures)

    async def numbers() -> AsyncIterator[int]:
        for number in range(10):
            await anyio.lowlevel.checkpoint()
            yield number

    with Graph() as graph:
        number = source(numbers, name="numbers", batch=batch)

    async def step(ctx: StepContext) -> None:
        items = await ctx.session.run(number)
        await anyio.lowlevel.checkpoint()
        for item in items:
            if item in left:
                left.remove(item)
                raise AbortedError(str(item))
        done.extend(items)

    recovery = Recovery(wait_initial=0.0, jitter=0.0, max_attempts=20)
    async with MonitoredSession(ChiefSessionCreator(graph=graph), recovery=recovery) as session:
        await session.loop(step, workers=workers)
        assert sorted(done) == list(range(10))
        assert session.source_state(number) == SourceState(10, (), ())
