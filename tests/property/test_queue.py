"""Properties of queues: any life of one, with steps that wait and restores in it, gives every item exactly once."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from asyncstep import FailedPreconditionError, Graph, OutOfRangeError, Session, SessionClosedError
from asyncstep._runtime.transaction import Fate, Transaction
from asyncstep.data import queue

pytestmark = pytest.mark.anyio
reproducible = settings(
    max_examples=200,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

END = "end of data"
CLOSED = "closed"
ITS_OWN = "it waits for its own items"


@dataclass(eq=False)
class Step:
    """A step: what it was given at a time, as positions; what it put and has not committed."""

    transaction: Transaction
    given: list[list[int]] = field(default_factory=list)
    puts: list[list[int]] = field(default_factory=list)
    waits: bool = False
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    expected: Any = None
    got: Any = None


class Model:
    """What the contract says of a queue: numbers by position, and who waits."""

    def __init__(self, batch: int | None, unique: bool, initial: list[int]) -> None:
        self.size = batch or 1
        self.unique = unique
        self.values: list[int] = []
        self.finished: set[int] = set()
        self.seen: set[int] = set()
        self.begin()
        self.append(initial)

    def begin(self) -> None:
        """What is not finished is in the queue, and no step is in flight."""
        self.queue = [at for at in range(len(self.values)) if at not in self.finished]
        self.again: list[list[int]] = []
        self.parked: list[int] = []
        self.steps: list[Step] = []
        self.waiting: list[Step] = []

    def append(self, values: list[int]) -> None:
        """Values are committed."""
        for value in values:
            if not (self.unique and value in self.seen):
                self.seen.add(value)
                self.queue.append(len(self.values))
                self.values.append(value)

    def next(self) -> list[int] | None:
        """What was rolled back first, else what comes next."""
        if self.again:
            return self.again.pop(0)
        batch, self.queue = self.queue[: self.size], self.queue[self.size :]
        return batch or None

    def put(self, values: list[int]) -> None:
        """Values are committed, and given to those that wait."""
        self.append(values)
        self.give()

    def put_back(self, batch: list[int]) -> None:
        """What a step held is given again."""
        self.again = sorted([*self.again, batch])
        self.give()

    def give(self) -> None:
        """Give to those that wait, in their order."""
        while self.waiting and (batch := self.next()) is not None:
            step = self.waiting.pop(0)
            step.waits = False
            step.given.append(batch)
            step.expected = [self.values[at] for at in batch]

    def end_if_nobody_can_put(self) -> list[Step]:
        """If all steps wait, it is the end for them: those steps."""
        ended = self.waiting if all(step.waits for step in self.steps) else []
        for step in ended:
            step.waits = False
            step.expected = ITS_OWN if step.puts else END
        self.waiting = [step for step in self.waiting if step.waits]
        return list(ended)

    def state(self) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
        """The low-water mark, what is pending, what is parked."""
        low = next(at for at in range(len(self.values) + 1) if at not in self.finished)
        held = [batch for step in self.steps for batch in step.given] + self.again
        return low, tuple(sorted(at for batch in held for at in batch)), tuple(sorted(self.parked))


class Life:
    """A queue that is fed and emptied, and its model, through any number of restores."""

    def __init__(self, batch: int | None, unique: bool, initial: list[int]) -> None:
        with Graph() as self.graph:
            self.queue: Any = queue(initial, name="numbers", batch=batch, unique=unique)  # type: ignore[call-overload]
        self.batch = batch
        self.model = Model(batch, unique, initial)
        self.session = Session(self.graph)
        self.next_value = 100
        self.save()

    async def take(self, group: Any, step: Step | None) -> None:
        """A step asks for an item: a new one, or one that is in flight."""
        if step is None:
            step = Step(Transaction(self.session.store, None, None))
            self.model.steps.append(step)
        step.expected = step.got = None
        step.scope = anyio.CancelScope()
        step.waits = True
        self.model.waiting.append(step)
        self.model.give()
        group.start_soon(self._take, step)
        await self.check()

    async def _take(self, step: Step) -> None:
        with step.scope:
            try:
                value = await self.session.store.reader(self.queue).take(step.transaction)
                step.got = value if self.batch else [value]
            except OutOfRangeError:
                step.got = END
            except FailedPreconditionError:
                step.got = ITS_OWN
            except SessionClosedError:
                step.got = CLOSED

    async def put(self, step: Step, count: int, old: bool) -> None:
        """A step puts new values, or (also) one that was put before."""
        values = [self.next_value + number for number in range(count)]
        self.next_value += count
        if old:
            values += [100, 100]
        self.session.store.reader(self.queue).put(step.transaction, values)  # type: ignore[attr-defined]
        step.puts.append(values)
        await self.check()

    async def end(self, step: Step, how: str) -> None:
        """A step ends: it commits, or it is rolled back, by a cancellation if it waits."""
        if step.waits:
            how = "again"
            step.scope.cancel()
            self.model.waiting.remove(step)
            await turns()
        self._end(step, how)
        await self.check()

    def _end(self, step: Step, how: str) -> None:
        model = self.model
        model.steps.remove(step)
        if how == "commit":
            step.transaction.commit()
            model.finished.update(at for batch in step.given for at in batch)
            for values in step.puts:
                model.put(values)
        elif how == "park":
            step.transaction.roll_back(Fate.PARK)
            model.parked += [at for batch in step.given for at in batch]
        else:
            step.transaction.roll_back(Fate.GIVE_AGAIN)
            for batch in step.given:
                model.put_back(batch)
        step.transaction.over()

    async def check(self) -> None:
        """Everybody got what the model says, and the queue's state is the model's."""
        while True:
            ended = self.model.end_if_nobody_can_put()
            await turns()
            for step in self.model.steps:
                assert step.got == step.expected
            if not ended:
                break
            for step in ended:  # what it held is given to the others
                self._end(step, "again")
        state = self.session.source_state("numbers")
        assert (state.position, state.pending, state.parked) == self.model.state()

    def save(self) -> None:
        """Make a checkpoint."""
        states = self.session.store.source_states(self.graph.sources.values())
        self.saved = states, self.model.finished.copy(), len(self.model.values)

    async def restart(self) -> None:
        """The process is killed, and another one begins at the checkpoint."""
        await self.session.aclose()
        await turns()
        assert all(step.got == CLOSED for step in self.model.waiting)
        self.session = Session(self.graph)
        await self.session.__aenter__()
        states, finished, length = self.saved
        self.session.store.restored_sources = states
        model = self.model
        model.finished, model.values = finished.copy(), model.values[:length]
        model.seen = set(model.values)
        model.begin()


async def turns() -> None:
    """Let every task come to where it waits."""
    for _ in range(4):
        await anyio.lowlevel.checkpoint()


ACTIONS = ["take", "take", "take again", "put", "put", "commit", "commit", "park", "again", "save", "restart"]
actions = st.lists(st.tuples(st.sampled_from(ACTIONS), st.integers(0, 9)), min_size=5, max_size=60)


@given(
    batch=st.none() | st.integers(1, 3),
    unique=st.booleans(),
    initial=st.lists(st.integers(0, 99), max_size=4, unique=True),
    actions=actions,
)
@reproducible
async def test_every_item_is_done_once_through_any_lives(
    batch: int | None, unique: bool, initial: list[int], actions: list[tuple[str, int]]
) -> None:
    """D1, T2, T4, D5, K1: whatever steps do and however they end, the queue is what its commits made of it."""
    life = Life(batch, unique, initial)
    await life.session.__aenter__()
    async with anyio.create_task_group() as group:
        for action, pick in actions:
            model = life.model
            runs = [step for step in model.steps if not step.waits]
            step = runs[pick % len(runs)] if runs else None
            if action == "save":
                life.save()
            elif action == "restart":
                await life.restart()
            elif action == "take" or step is None:
                await life.take(group, None)
            elif action == "take again":
                await life.take(group, step)
            elif action == "put":
                await life.put(step, pick % 4, old=pick > 4)
            else:
                await life.end(model.steps[pick % len(model.steps)], action)
        while life.model.steps:
            await life.end(life.model.steps[0], "commit")
        life.save()
        await life.restart()
        done: Counter[int] = Counter(life.model.finished)
        while life.model.queue:
            await life.take(group, None)
            (step,) = life.model.steps
            done.update(at for batch in step.given for at in batch)
            await life.end(step, "commit")
        assert done == Counter(range(len(life.model.values)))
        await life.session.aclose()
