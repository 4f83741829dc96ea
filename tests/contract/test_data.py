"""Contract D: where items come from (D1, D2 without checkpoints, D4, D5)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from asyncstep import (
    AbortedError,
    ChiefSessionCreator,
    DeadlineExceededError,
    FailedPreconditionError,
    Graph,
    MonitoredSession,
    OutOfRangeError,
    Recovery,
    RunOptions,
    Session,
    SessionClosedError,
    SessionRunArgs,
    SessionRunContext,
    SessionRunHook,
    SessionRunValues,
    StepContext,
    UnavailableError,
    Variable,
    op,
)
from asyncstep.data import SourceState, source

from .counting import to_the_end as monitored

pytestmark = pytest.mark.anyio


def finished(position: int) -> SourceState:
    """The state of a source whose first `position` items are committed and no other was given."""
    return SourceState(position=position, pending=(), parked=())


@op
async def hold(started: list[Any], gates: dict[Any, anyio.Event], item: Any) -> Any:
    """Note the item and wait until the test lets it go."""
    started.append(item)
    await gates.setdefault(item, anyio.Event()).wait()
    return item


async def raise_boom(*_: object) -> None:
    """Fail as user code fails."""
    raise ValueError("boom")


async def drain(session: MonitoredSession, fetch: Any) -> list[Any]:
    """Everything that one task is given until the data ends."""
    items = []
    while True:
        try:
            items.append(await session.run_without_hooks(fetch))
        except OutOfRangeError:
            return items


# Kinds of items


def letters() -> Iterator[str]:
    """A function that gives an iterable from its first item."""
    yield from "abcde"


async def async_letters() -> AsyncIterator[str]:
    """A function that gives an async iterable from its first item."""
    for letter in "abcde":
        await anyio.lowlevel.checkpoint()
        yield letter


@pytest.mark.parametrize("items", [list("abcde"), tuple("abcde"), "abcde", letters, async_letters])
async def test_every_kind_of_items_is_given_in_order(items: Any) -> None:
    """D1: a sequence, an iterable and an async iterable all give each item once, in order, then end."""
    with Graph() as graph:
        letter = source(items, name="letters")
    async with monitored(graph) as session:
        assert await drain(session, letter) == list("abcde")
        assert session.source_state(letter) == finished(5)


@pytest.mark.parametrize("items", [list("abcde"), letters, async_letters])
@pytest.mark.parametrize(
    ("drop_remainder", "expected"),
    [(False, [["a", "b"], ["c", "d"], ["e"]]), (True, [["a", "b"], ["c", "d"]])],
)
async def test_batches_are_lists_of_items(
    items: Any, drop_remainder: bool, expected: list[list[str]]
) -> None:
    """D1: `batch` gives lists of so many items; the shorter last one is given too, or dropped if asked."""
    with Graph() as graph:
        letter = source(items, name="letters", batch=2, drop_remainder=drop_remainder)
    async with monitored(graph) as session:
        assert await drain(session, letter) == expected


@pytest.mark.parametrize("items", [list("ab"), lambda: iter("ab"), letters])
async def test_repeat_gives_the_items_so_often(items: Any) -> None:
    """D1: `repeat` gives all items again in each epoch, and positions go on counting."""
    epoch = list("abcde") if items is letters else list("ab")
    with Graph() as graph:
        letter = source(items, name="letters", repeat=3)
    async with monitored(graph) as session:
        assert await drain(session, letter) == epoch * 3
        assert session.source_state(letter) == finished(3 * len(epoch))


async def test_repeat_none_never_ends() -> None:
    """D1: `repeat=None` gives the items for ever."""
    with Graph() as graph:
        letter = source("ab", name="letters", repeat=None)
    async with monitored(graph) as session:
        assert [await session.run(letter) for _ in range(7)] == list("abababa")


async def test_a_source_without_items_ends_at_once() -> None:
    """D5: an empty source is at its end, also one that would repeat for ever."""
    with Graph() as graph:
        empties = [source([], name="one"), source(lambda: iter(()), name="for_ever", repeat=None)]
    async with monitored(graph) as session:
        for empty in empties:
            with anyio.fail_after(5), pytest.raises(OutOfRangeError):
                await session.run_without_hooks(empty)


# D1: each item to one step


async def test_each_item_is_given_to_one_step() -> None:
    """D1: concurrent steps get different items, and all of them."""
    given: list[int] = []
    with Graph() as graph:
        number = source(range(100), name="numbers")

    async def step(ctx: StepContext) -> None:
        item = await ctx.run_with_hooks(number)
        for _ in range(item % 4):
            await anyio.lowlevel.checkpoint()
        given.append(item)

    async with monitored(graph) as session:
        await session.loop(step, workers=7)
        assert session.source_state(number) == finished(100)
    assert sorted(given) == list(range(100))


async def test_one_run_gets_one_item_whoever_fetches_it() -> None:
    """D1: within a run a source is evaluated once; the caller, the ops and the hooks see the same item."""
    seen: list[Any] = []
    with Graph() as graph:
        letter = source("abc", name="letters")
        upper = op(str.upper)(letter)

    class Ask(SessionRunHook):
        async def before_run(self, run_context: SessionRunContext) -> Any:
            return SessionRunArgs([letter])

        async def after_run(self, run_context: SessionRunContext, run_values: SessionRunValues) -> None:
            seen.append(run_values.results)

    async with monitored(graph, Ask()) as session:
        assert await session.run([letter, upper]) == ["a", "A"]
        assert await session.run([upper]) == ["B"]
    assert seen == [["a"], ["b"]]


async def test_each_raw_run_of_a_step_function_takes_an_item() -> None:
    """D1: a step function that runs the source twice has two items, both done when it commits."""
    with Graph() as graph:
        letter = source("abc", name="letters")

    async def step(ctx: StepContext) -> list[str]:
        pair = [await ctx.session.run(letter), await ctx.session.run(letter)]
        assert session.source_state(letter) == SourceState(position=0, pending=(0, 1), parked=())
        return pair

    async with monitored(graph) as session:
        assert await session.run_step_fn(step) == ["a", "b"]
        assert session.source_state(letter) == finished(2)


async def test_an_item_is_done_when_its_step_commits() -> None:
    """D1, D2: pending while the step runs; the low-water mark waits for the oldest item."""
    started: list[str] = []
    gates: dict[str, anyio.Event] = {}
    with Graph() as graph:
        letter = source("abcdef", name="letters")
        held = hold(started, gates, letter)
    async with monitored(graph) as session:
        states = []
        async with anyio.create_task_group() as group:
            for _ in range(4):
                group.start_soon(session.run, held)
                await anyio.wait_all_tasks_blocked()
            assert started == list("abcd")
            states.append(session.source_state(letter))
            for name in "cbad":
                gates[name].set()
                await anyio.wait_all_tasks_blocked()
                states.append(session.source_state(letter))
    assert [(state.position, state.pending) for state in states] == [
        (0, (0, 1, 2, 3)),
        (0, (0, 1, 3)),
        (0, (0, 3)),
        (3, (3,)),
        (4, ()),
    ]
    assert all(state.parked == () for state in states)


async def test_the_raw_session_has_the_state_too() -> None:
    """D2: a raw session's runs finish items as well, and `source_state` says so."""
    with Graph() as graph:
        letter = source("abc", name="letters")
    async with Session(graph) as raw:
        assert raw.source_state(letter) == finished(0)
        assert await raw.run(letter) == "a"
        assert raw.source_state(letter) == finished(1)


async def test_a_source_is_not_shared_by_sessions() -> None:
    """D1: the position lives in the session's state, not in the graph."""
    with Graph() as graph:
        letter = source(letters, name="letters")
    async with Session(graph) as one, Session(graph) as other:
        assert [await one.run(letter), await other.run(letter), await one.run(letter)] == ["a", "a", "b"]


@pytest.mark.parametrize("items", ["abcdef", lambda: iter("abcdef"), lambda: async_letters()])
async def test_a_cancelled_step_gives_its_item_back(items: Any) -> None:
    """D1: rolled back by a cancellation, an item is given again, before any other."""
    started: list[str] = []
    gates: dict[str, anyio.Event] = {}
    with Graph() as graph:
        letter = source(items, name="letters")
        held = hold(started, gates, letter)
    async with monitored(graph) as session, anyio.create_task_group() as group:
        scopes = [anyio.CancelScope() for _ in range(3)]

        async def run(scope: anyio.CancelScope) -> None:
            with scope:
                await session.run(held)

        for scope in scopes:
            group.start_soon(run, scope)
            await anyio.wait_all_tasks_blocked()
        scopes[1].cancel()
        await anyio.wait_all_tasks_blocked()
        assert started == ["a", "b", "c"]
        assert session.source_state(letter).parked == ()
        assert [await session.run(letter), await session.run(letter)] == ["b", "d"]
        for gate in gates.values():
            gate.set()
        await anyio.wait_all_tasks_blocked()
        assert session.source_state(letter) == finished(4)


async def test_items_given_back_together_are_given_again_in_their_order() -> None:
    """D1: of several items that cancelled steps gave back, the earliest is given again first."""
    started: list[str] = []
    with Graph() as graph:
        letter = source("abcdef", name="letters")
        held = hold(started, {}, letter)
    async with monitored(graph) as session:
        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(session.run, held)
            await anyio.wait_all_tasks_blocked()
            assert sorted(started) == ["a", "b", "c"]
            group.cancel_scope.cancel()
        assert await drain(session, letter) == list("abcdef")


async def test_a_cancelled_batch_is_given_again_as_it_was() -> None:
    """D1: a batch that was rolled back by a cancellation is given again first, whole."""
    started: list[Any] = []
    with Graph() as graph:
        pair = source("abcde", name="letters", batch=2)
        held = hold(started, {}, op(tuple)(pair))
    async with monitored(graph) as session:
        async with anyio.create_task_group() as group:
            group.start_soon(session.run, held)
            await anyio.wait_all_tasks_blocked()
            assert session.source_state(pair).pending == (0, 1)
            group.cancel_scope.cancel()
        assert await drain(session, pair) == [["a", "b"], ["c", "d"], ["e"]]
        assert session.source_state(pair) == finished(5)


async def test_the_short_last_batch_of_an_epoch_is_given_again_as_it_was() -> None:
    """D1, D3: a batch that was rolled back is not filled up with items of the next epoch."""
    started: list[Any] = []
    with Graph() as graph:
        pair = source("abc", name="letters", batch=2, repeat=2)
        held = hold(started, {}, op(tuple)(pair))
    async with monitored(graph) as session:
        assert await session.run(pair) == ["a", "b"]
        async with anyio.create_task_group() as group:
            group.start_soon(session.run, held)
            await anyio.wait_all_tasks_blocked()
            assert await session.run(pair) == ["a", "b"]
            group.cancel_scope.cancel()
        assert await drain(session, pair) == [["c"], ["c"]]


async def test_a_retried_step_gets_its_item_again() -> None:
    """D1: an error that recovery is on gives the item again to the next attempt; nothing is parked."""
    seen: list[str] = []

    @op
    def flaky(item: str) -> str:
        seen.append(item)
        if len(seen) in (1, 2, 4):
            raise AbortedError("again")
        return item

    with Graph() as graph:
        letter = source("ab", name="letters")
        node = flaky(letter)
    async with monitored(graph, recovery=Recovery(wait_initial=0.001)) as session:
        assert [await session.run(node), await session.run(node)] == ["a", "b"]
        assert session.source_state(letter) == finished(2)
    assert seen == ["a", "a", "a", "b", "b"]


@pytest.mark.parametrize("way", ["evaluation", "before_commit", "timeout"])
async def test_the_item_of_a_failed_step_is_parked(way: str) -> None:
    """D1: rolled back by an ordinary error, an item is not given again here, and `source_state` says so."""

    class Refuse(SessionRunHook):
        async def before_commit(self, run_context: SessionRunContext, run_values: SessionRunValues) -> None:
            if way == "before_commit" and run_context.original_args.fetches is poison:
                raise ValueError("boom")

    with Graph() as graph:
        letter = source("abc", name="letters")
        if way == "evaluation":
            poison = op(raise_boom)(letter)
        elif way == "timeout":
            poison = op(anyio.sleep_forever)().after(letter)
        else:
            poison = op(lambda item: None)(letter)
    async with monitored(graph, Refuse()) as session:
        with anyio.fail_after(5), pytest.raises((ValueError, DeadlineExceededError)):
            await session.run(poison, options=RunOptions(timeout=0.02) if way == "timeout" else None)
        state = session.source_state(letter)
        assert (state.position, state.parked) == (0, (0,))
        assert await drain(session, letter) == ["b", "c"]
        state = session.source_state(letter)
        assert (state.position, state.parked) == (0, (0,))


async def test_the_items_of_a_failed_batch_are_parked() -> None:
    """D1: parked positions are of items, so a batch parks as many as it held."""
    with Graph() as graph:
        pair = source("abcde", name="letters", batch=2)
        poison = op(raise_boom)(pair)
    async with monitored(graph) as session:
        assert await session.run(pair) == ["a", "b"]
        with pytest.raises(ValueError, match="boom"):
            await session.run(poison)
        assert session.source_state(pair).parked == (2, 3)
        assert session.source_state(pair).position == 2
        assert await session.run(pair) == ["e"]
        assert session.source_state(pair).parked == (2, 3)


async def test_the_items_of_a_failed_step_function_are_parked() -> None:
    """D1: what a step function took and did not commit is parked; what it committed is done."""
    with Graph() as graph:
        letter = source("abcde", name="letters")

    async def step(ctx: StepContext) -> None:
        await ctx.session.run(letter)
        await ctx.run_with_hooks(letter)
        await ctx.session.run(letter)
        raise ValueError("boom")

    async with monitored(graph) as session:
        with pytest.raises(ValueError, match="boom"):
            await session.run_step_fn(step)
        state = session.source_state(letter)
        assert (state.position, state.parked) == (2, (2,))
        assert await session.run(letter) == "d"


async def test_a_poison_item_does_not_loop() -> None:
    """D1: a loop that goes on after an error gets every other item, once."""
    seen: list[str] = []

    @op
    def check(item: str) -> str:
        seen.append(item)
        if item in "bd":
            raise ValueError(item)
        return item

    with Graph() as graph:
        letter = source("abcde", name="letters")
        node = check(letter)

    async def step(ctx: StepContext) -> None:
        try:
            await session.run(node)
        except ValueError:
            pass

    async with monitored(graph) as session:
        await session.loop(step)
        assert session.source_state(letter).parked == (1, 3)
    assert seen == list("abcde")


async def test_an_error_in_after_run_parks_nothing() -> None:
    """D1: the step is committed by then, and its item done."""

    class Fail(SessionRunHook):
        async def after_run(self, run_context: SessionRunContext, run_values: SessionRunValues) -> None:
            raise ValueError("boom")

    with Graph() as graph:
        letter = source("ab", name="letters")
    async with monitored(graph, Fail()) as session:
        with pytest.raises(ValueError, match="boom"):
            await session.run(letter)
        assert session.source_state(letter) == finished(1)


async def test_a_fed_source_gives_no_item() -> None:
    """D1: a run that feeds the source takes nothing of it."""
    with Graph() as graph:
        letter = source("ab", name="letters")
    async with monitored(graph) as session:
        assert await session.run(letter, {letter: "fed"}) == "fed"
        assert session.source_state(letter) == finished(0)
        assert await session.run(letter) == "a"


async def test_a_step_that_is_cancelled_while_it_waits_for_an_item_loses_none() -> None:
    """D1: a slow async source goes on when the step that waits for its next item is cancelled."""
    gate = anyio.Event()

    async def slow() -> AsyncIterator[str]:
        yield "a"
        await gate.wait()
        yield "b"
        yield "c"

    with Graph() as graph:
        letter = source(slow, name="letters")
    async with monitored(graph) as session:
        assert await session.run(letter) == "a"
        async with anyio.create_task_group() as group:
            group.start_soon(session.run, letter)
            await anyio.wait_all_tasks_blocked()
            group.cancel_scope.cancel()
        gate.set()
        assert await drain(session, letter) == ["b", "c"]
        assert session.source_state(letter) == finished(3)


@pytest.mark.parametrize("cancelled", [0, 1, 2])
async def test_of_steps_that_wait_for_an_item_the_others_go_on_when_one_is_cancelled(cancelled: int) -> None:
    """D1: whichever of several waiting steps is cancelled, the others get the items."""
    gate = anyio.Event()
    got: list[str] = []

    async def slow() -> AsyncIterator[str]:
        await gate.wait()
        yield "a"
        yield "b"

    with Graph() as graph:
        letter = source(slow, name="letters")
    async with monitored(graph) as session:
        scopes = [anyio.CancelScope() for _ in range(3)]

        async def run(scope: anyio.CancelScope) -> None:
            with scope:
                got.append(await session.run(letter))

        async with anyio.create_task_group() as group:
            for scope in scopes:
                group.start_soon(run, scope)
                await anyio.wait_all_tasks_blocked()
            scopes[cancelled].cancel()
            await anyio.wait_all_tasks_blocked()
            gate.set()
        assert sorted(got) == ["a", "b"]
        assert session.source_state(letter) == finished(2)


async def test_an_error_of_the_iterable_is_raised_and_not_taken_for_the_end() -> None:
    """D1: when producing an item fails, the run raises that error; the items after it are not lost."""
    opened: list[int] = []
    error = OSError("no connection")

    def flaky() -> Iterator[str]:
        opened.append(1)
        yield "a"
        if len(opened) == 1:
            raise error
        yield "b"

    with Graph() as graph:
        letter = source(flaky, name="letters")
    async with monitored(graph) as session:
        assert await session.run(letter) == "a"
        with pytest.raises(OSError, match="no connection") as caught:
            await session.run(letter)
        assert caught.value is error
        assert not session.should_stop()
        assert await session.run(letter) == "b"


class Slow:
    """A source of letters of which some come when the test lets them, and steps that hold what they get."""

    def __init__(self, **options: Any) -> None:
        self.gates: dict[str, anyio.Event] = {letter: anyio.Event() for letter in "cdef"}
        self.got: list[Any] = []
        with Graph() as self.graph:
            self.letter = source(self.letters, name="letters", **options)

    async def letters(self) -> AsyncIterator[str]:
        """Letters of which all but the first two are slow."""
        for letter in "abcdef":
            if letter in self.gates:
                await self.gates[letter].wait()
            yield letter

    async def hold(self, session: MonitoredSession, scope: anyio.CancelScope) -> None:
        """A step that keeps its item, until it is cancelled."""

        async def step(ctx: StepContext) -> None:
            self.got.append(await ctx.session.run(self.letter))
            await anyio.sleep_forever()

        with scope:
            await session.run_step_fn(step)


@pytest.mark.parametrize("batch", [None, 2])
async def test_what_is_given_back_goes_to_a_step_that_waits_while_another_reads(batch: int | None) -> None:
    """D1: a step gets an item that was rolled back at once, however long the next item takes to come."""
    slow = Slow(batch=batch)
    scopes = [anyio.CancelScope() for _ in range(6)]
    first: list[Any] = [["a", "b"]] if batch else ["a", "b"]
    async with monitored(slow.graph) as session, anyio.create_task_group() as group:
        for scope in scopes:
            group.start_soon(slow.hold, session, scope)
            await anyio.wait_all_tasks_blocked()
        assert slow.got == first
        for scope in scopes[: len(first)]:
            scope.cancel()
        await anyio.wait_all_tasks_blocked()
        assert slow.got == [*first, *first]
        slow.gates["c"].set()
        slow.gates["d"].set()
        await anyio.wait_all_tasks_blocked()
        assert slow.got[2 * len(first) :] == ([["c", "d"]] if batch else ["c", "d"])
        group.cancel_scope.cancel()


async def test_what_is_given_back_is_not_kept_by_a_waiting_step_that_is_cancelled() -> None:
    """D1: it goes to the next one that waits."""
    slow = Slow()
    scopes = [anyio.CancelScope() for _ in range(5)]
    async with monitored(slow.graph) as session, anyio.create_task_group() as group:
        for scope in scopes:
            group.start_soon(slow.hold, session, scope)
            await anyio.wait_all_tasks_blocked()
        assert slow.got == ["a", "b"]
        for at in (0, 3):
            scopes[at].cancel()
        await anyio.wait_all_tasks_blocked()
        assert slow.got == ["a", "b", "a"]
        assert session.source_state(slow.letter) == SourceState(0, (0, 1), ())
        group.cancel_scope.cancel()


async def test_what_is_given_back_goes_to_the_step_that_waits_for_what_is_read_ahead() -> None:
    """D1: a step that waits for the task that reads gets an item that was rolled back at once."""
    slow = Slow(prefetch=3)
    scopes = [anyio.CancelScope() for _ in range(4)]
    async with anyio.create_task_group() as background:
        async with monitored(slow.graph, task_group=background) as session:
            async with anyio.create_task_group() as group:
                for scope in scopes:
                    group.start_soon(slow.hold, session, scope)
                    await anyio.wait_all_tasks_blocked()
                assert slow.got == ["a", "b"]
                scopes[1].cancel()
                await anyio.wait_all_tasks_blocked()
                assert slow.got == ["a", "b", "b"]
                slow.gates["c"].set()
                await anyio.wait_all_tasks_blocked()
                assert slow.got == ["a", "b", "b", "c"]
                group.cancel_scope.cancel()


def poisoned(opened: list[int], at: int = 2) -> Callable[[], Iterator[str]]:
    """An iterable that nobody gets past one item of; it notes how often it is opened."""

    def items() -> Iterator[str]:
        opened.append(1)
        yield from "abcde"[:at]
        raise OSError("damaged")

    return items


def poisoned_async(opened: list[int]) -> Callable[[], AsyncIterator[str]]:
    """An async one."""

    async def items() -> AsyncIterator[str]:
        for letter in poisoned(opened)():
            yield letter

    return items


@pytest.mark.parametrize("kind", [poisoned, poisoned_async])
@pytest.mark.parametrize("prefetch", [0, 2])
async def test_an_iterable_that_nobody_gets_past_an_item_of_is_not_read_for_ever(
    kind: Callable[[list[int]], Any], prefetch: int
) -> None:
    """D1: nothing loops on a poison item: a loop that goes on after the items' error ends when that comes again."""
    opened: list[int] = []
    got: list[str] = []
    with Graph() as graph:
        letter = source(kind(opened), name="letters", prefetch=prefetch)

    async def step(ctx: StepContext) -> None:
        try:
            got.append(await ctx.run_with_hooks(letter))
        except OSError:
            got.append("damaged")

    async with monitored(graph) as session:
        with pytest.raises(FailedPreconditionError, match=r"'letters' .* 2 items of epoch 0, by OSError"):
            await session.loop(step)
        assert got == ["a", "b", "damaged", "damaged"]
        assert len(opened) == 2
        assert session.source_state(letter) == finished(2)


async def test_errors_of_the_items_that_are_retried_are_no_poison() -> None:
    """D1, V1: a step that is retried has the items read again, as often as it is attempted."""
    opened: list[int] = []

    def flaky() -> Iterator[str]:
        opened.append(1)
        yield "a"
        if len(opened) < 6:
            raise UnavailableError("no connection")
        yield "b"

    with Graph() as graph:
        letter = source(flaky, name="letters")
    async with monitored(graph, recovery=Recovery(wait_initial=0.0, jitter=0.0)) as session:
        assert await drain(session, letter) == ["a", "b"]


async def test_errors_of_the_items_at_other_places_are_no_poison() -> None:
    """D1: items that can be got past, by beginning again, are all given."""
    failures = [1, 3, 1, 4]

    def flaky() -> Iterator[str]:
        for number, letter in enumerate("abcde"):
            if failures and failures[0] == number:
                raise OSError(failures.pop(0))
            yield letter

    got: list[Any] = []
    with Graph() as graph:
        letter = source(flaky, name="letters")
    async with monitored(graph) as session:
        while len(got) < 9:
            try:
                got.append(await session.run(letter))
            except OSError as error:
                got.append(error.args[0])
        assert got == ["a", 1, "b", "c", 3, 1, "d", 4, "e"]


async def test_a_sequence_that_fails_at_one_item_parks_it() -> None:
    """D1: an item that a lazy sequence cannot make is a poison item like any other, and the rest is given."""

    class Files:
        def __len__(self) -> int:
            return 3

        def __getitem__(self, index: int) -> str:
            if index == 1:
                raise OSError("damaged")
            return "abc"[index]

    files: Any = Files()
    got: list[str] = []
    with Graph() as graph:
        letter = source(files, name="letters")

    async def step(ctx: StepContext) -> None:
        try:
            got.append(await session.run(letter))
        except OSError:
            got.append("damaged")

    async with monitored(graph) as session:
        await session.loop(step)
        assert session.source_state(letter) == SourceState(position=1, pending=(), parked=(1,))
    assert got == ["a", "damaged", "c"]


async def test_a_sequence_that_fails_for_now_gives_the_item_to_the_retried_step() -> None:
    """D1: an item that could not be made, with an error that recovery is on, is made again for the retry."""
    failures = [UnavailableError("later")]

    class Files:
        def __len__(self) -> int:
            return 4

        def __getitem__(self, index: int) -> str:
            if index == 3 and failures:
                raise failures.pop()
            return "abcd"[index]

    files: Any = Files()
    with Graph() as graph:
        pair = source(files, name="letters", batch=2)
    async with monitored(graph, recovery=Recovery(wait_initial=0.001)) as session:
        assert [await session.run(pair), await session.run(pair)] == [["a", "b"], ["c", "d"]]
        assert session.source_state(pair) == finished(4)


async def test_an_error_in_the_middle_of_a_batch_parks_nothing_that_nobody_was_given() -> None:
    """D1: if the iterable fails while a batch is filled, the items read so far are in the next batch."""
    opened: list[int] = []

    def flaky() -> Iterator[str]:
        opened.append(1)
        yield from "ab"
        if len(opened) == 1:
            raise OSError("no connection")
        yield from "cd"

    with Graph() as graph:
        three = source(flaky, name="letters", batch=3)
    async with monitored(graph) as session:
        with pytest.raises(OSError, match="no connection"):
            await session.run(three)
        assert session.source_state(three) == SourceState(position=0, pending=(0, 1), parked=())
        assert await drain(session, three) == [["a", "b", "c"], ["d"]]


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, ValueError, AbortedError])
@pytest.mark.parametrize("prefetch", [0, 3])
async def test_a_generator_that_was_ended_by_what_it_raised_is_not_at_its_end(
    error: type[BaseException], prefetch: int
) -> None:
    """D1, C5: whatever ended a generator, also an interrupt, its other items are still given."""
    raised: list[int] = []

    def interrupted() -> Iterator[str]:
        yield "a"
        if not raised:
            raised.append(1)
            raise error("boom")
        yield "b"

    with Graph() as graph:
        letter = source(interrupted, name="letters", prefetch=prefetch)
    async with Session(graph) as raw:
        assert await raw.run(letter) == "a"
        with pytest.raises(error, match="boom"):
            await raw.run(letter)
        assert await raw.run(letter) == "b"


async def test_an_iterator_that_is_opened_again_and_cancelled_meanwhile_gives_no_item_twice() -> None:
    """D1: a cancellation while an iterable that failed is read up to where it was loses no place."""
    opened: list[int] = []
    gates = [anyio.Event() for _ in range(3)]
    gates[0].set()

    class Letters:
        def __init__(self) -> None:
            self.index = 0
            opened.append(1)
            self.gate = gates[len(opened) - 1]

        def __aiter__(self) -> Letters:
            return self

        async def __anext__(self) -> str:
            await anyio.lowlevel.checkpoint()
            if self.index == 1:
                await self.gate.wait()
            if self.index == 2 and len(opened) == 1:
                raise OSError("no connection")
            if self.index == 4:
                raise StopAsyncIteration
            self.index += 1
            return "abcd"[self.index - 1]

    with Graph() as graph:
        letter = source(Letters, name="letters")
    async with monitored(graph) as session:
        assert [await session.run(letter), await session.run(letter)] == ["a", "b"]
        with pytest.raises(OSError, match="no connection"):
            await session.run(letter)
        async with anyio.create_task_group() as group:
            group.start_soon(session.run, letter)
            await anyio.wait_all_tasks_blocked()
            group.cancel_scope.cancel()
        for gate in gates:
            gate.set()
        assert await drain(session, letter) == ["c", "d"]


@pytest.mark.parametrize(
    ("drop_remainder", "expected"), [(False, [[0, 1, 2, 3, 4], [5, 6]]), (True, [[0, 1, 2, 3, 4]])]
)
async def test_steps_that_wait_for_batches_of_a_slow_source_do_not_split_them(
    drop_remainder: bool, expected: list[list[int]]
) -> None:
    """D1, D3: which items are in a batch does not depend on how many workers ask for one."""
    got: list[list[int]] = []

    async def slow() -> AsyncIterator[int]:
        for number in range(7):
            await anyio.lowlevel.checkpoint()
            yield number

    with Graph() as graph:
        five = source(slow, name="numbers", batch=5, drop_remainder=drop_remainder)

    async def step(ctx: StepContext) -> None:
        got.append(await ctx.session.run(five))

    async with monitored(graph) as session:
        await session.loop(step, workers=3)
        assert session.source_state(five) == finished(7)
    assert sorted(got) == expected


async def test_a_batch_that_was_cancelled_half_filled_is_filled_by_the_next_step() -> None:
    """D1, D3: a step that is cancelled while its batch is filled leaves the batch as it would have been."""
    gates = [anyio.Event() for _ in range(6)]

    async def slow() -> AsyncIterator[int]:
        for number, gate in enumerate(gates):
            await gate.wait()
            yield number

    with Graph() as graph:
        three = source(slow, name="numbers", batch=3)
    async with monitored(graph) as session:
        gates[0].set()
        gates[1].set()
        async with anyio.create_task_group() as group:
            group.start_soon(session.run, three)
            await anyio.wait_all_tasks_blocked()
            group.cancel_scope.cancel()
        assert session.source_state(three).pending == (0, 1)
        for gate in gates:
            gate.set()
        assert await drain(session, three) == [[0, 1, 2], [3, 4, 5]]


async def test_a_step_function_that_goes_on_after_an_error_of_its_run_parks_the_item() -> None:
    """D1: an error that the step function handles itself leads to no retry, also one that recovery is on."""
    seen: list[str] = []

    @op
    def check(item: str) -> str:
        seen.append(item)
        if item == "b":
            raise AbortedError(item)
        return item

    with Graph() as graph:
        letter = source("abc", name="letters")
        node = check(letter)

    async def step(ctx: StepContext) -> None:
        assert len(seen) < 10
        try:
            await ctx.run_with_hooks(node)
        except AbortedError:
            pass

    async with monitored(graph) as session:
        await session.loop(step)
        assert session.source_state(letter) == SourceState(position=1, pending=(), parked=(1,))
    assert seen == ["a", "b", "c"]


async def test_a_step_function_that_is_retried_gets_the_items_of_its_failed_runs_again() -> None:
    """D1: what a failed run of a step function took is given again if the step is run again."""
    seen: list[tuple[int, str]] = []
    with Graph() as graph:
        letter = source("abc", name="letters")

    async def check(item: str) -> None:
        if len(seen) < 2:
            raise AbortedError(item)

    async def step(ctx: StepContext) -> None:
        seen.append((ctx.attempt, await ctx.session.run(letter)))
        await ctx.run_with_hooks([letter, op_check])

    with graph:
        op_check = op(check)(letter)
    async with monitored(graph, recovery=Recovery(wait_initial=0.001)) as session:
        await session.run_step_fn(step)
        assert session.source_state(letter) == finished(2)
    assert seen == [(1, "a"), (2, "a")]


async def test_a_stop_whose_last_commit_fails_parks_the_items() -> None:
    """D1, T3: a step that ends by `request_stop` and cannot commit is rolled back by that error."""
    gate = anyio.Event()

    def stay_positive(current: int, delta: int) -> int:
        if current < 0:
            raise ValueError("negative")
        return current + delta

    with Graph() as graph:
        letter = source("abc", name="letters")
        v = Variable(0, name="v")
        take, make_negative = [letter, v.update(stay_positive, 1)], v.assign(-1)

    async def step(ctx: StepContext) -> None:
        await ctx.session.run(take)
        await gate.wait()
        ctx.request_stop()

    async def run() -> None:
        with pytest.raises(ValueError, match="negative"):
            await session.run_step_fn(step)

    async with monitored(graph) as session:
        async with anyio.create_task_group() as group:
            group.start_soon(run)
            await anyio.wait_all_tasks_blocked()
            await session.run(make_negative)
            gate.set()
        assert session.source_state(letter) == SourceState(position=0, pending=(), parked=(0,))
        assert session.should_stop()


# Closing


async def test_closing_a_session_closes_every_open_generator() -> None:
    """A generator's `finally` runs when the session closes; one that fails does not keep the others open."""
    closed: list[str] = []

    def letters_of(name: str) -> Callable[[], Iterator[str]]:
        def generate() -> Iterator[str]:
            try:
                yield from "ab"
            finally:
                closed.append(name)
                if name != "z":
                    raise ValueError(name)

        return generate

    with Graph() as graph:
        sources = [source(letters_of(name), name=name) for name in "xyz"]
    with pytest.raises(ExceptionGroup, match="failed to close") as caught:
        async with Session(graph) as raw:
            await raw.run(sources)
    assert sorted(closed) == ["x", "y", "z"]
    assert sorted(map(str, caught.value.exceptions)) == ["x", "y"]


async def test_a_session_closes_while_a_run_waits_for_an_item() -> None:
    """A run that waits for a slow source as its session closes cannot commit; the source closes after it."""
    gate = anyio.Event()
    closed: list[bool] = []

    async def slow() -> AsyncIterator[str]:
        try:
            await gate.wait()
            yield "a"
        finally:
            closed.append(True)

    with Graph() as graph:
        letter = source(slow, name="letters")

    async def run() -> None:
        with pytest.raises(SessionClosedError):
            await raw.run(letter)

    async with anyio.create_task_group() as group:
        async with Session(graph) as raw:
            group.start_soon(run)
            group.start_soon(run)
            await anyio.wait_all_tasks_blocked()
        gate.set()
    assert closed == [True]


# D4: back-pressure


@pytest.mark.parametrize(("workers", "batch"), [(1, None), (1, 4), (5, None), (5, 4)])
async def test_no_more_items_are_held_than_the_workers_need(workers: int, batch: int | None) -> None:
    """D4: at most (workers + 1) x batch items are taken from the iterable and not yet done."""
    taken: list[int] = []
    done: list[int] = []
    most: list[int] = []

    def numbers() -> Iterator[int]:
        for number in range(60):
            taken.append(number)
            most.append(len(taken) - len(done))
            yield number

    async def step(ctx: StepContext) -> None:
        items: Any = await ctx.session.run(number)
        for _ in range(5):
            await anyio.lowlevel.checkpoint()
        done.extend(items if batch else [items])

    with Graph() as graph:
        number = source(numbers, name="numbers", batch=batch)
    async with monitored(graph) as session:
        await session.loop(step, workers=workers)
    assert sorted(done) == list(range(60))
    assert max(most) <= (workers + 1) * (batch or 1)


async def test_nothing_is_read_before_a_step_asks() -> None:
    """D4: without prefetch, opening a session takes at most one batch, and later reads follow the steps."""
    taken: list[int] = []

    def numbers() -> Iterator[int]:
        for number in range(100):
            taken.append(number)
            yield number

    with Graph() as graph:
        number = source(numbers, name="numbers")
    async with monitored(graph) as session:
        assert len(taken) <= 1
        for count in range(1, 6):
            await session.run(number)
            assert len(taken) <= count + 1


# D5: the end of the data


async def test_the_end_of_data_is_out_of_range_for_those_who_ask_after_the_last_item() -> None:
    """D5: the step with the last item commits; the next one gets OutOfRangeError, again and again."""
    with Graph() as graph:
        letter = source("ab", name="letters")
    async with Session(graph) as raw:
        assert [await raw.run(letter), await raw.run(letter)] == ["a", "b"]
        for _ in range(2):
            with pytest.raises(OutOfRangeError, match="letters"):
                await raw.run(letter)


async def test_the_end_of_data_is_a_clean_end() -> None:
    """D5: a loop over a source ends by itself, with the reason end of data."""
    got: list[str] = []
    with Graph() as graph:
        letter = source("abc", name="letters")
    async with MonitoredSession(ChiefSessionCreator(graph=graph)) as session:
        while not session.should_stop():
            got.append(await session.run(letter))
    assert got == ["a", "b", "c"]
    assert session.stop_reason is not None and session.stop_reason.kind == "end_of_data"


@pytest.mark.parametrize("workers", [2, 8])
async def test_the_end_of_data_waits_for_the_steps_in_flight(workers: int) -> None:
    """D5: one worker meets the end while others still hold items: those commit before the loop returns."""
    started: list[str] = []
    gates: dict[str, anyio.Event] = {}
    ended: list[bool] = []
    with Graph() as graph:
        letter = source("abcdefg"[: workers - 1], name="letters")
        held = hold(started, gates, letter)

    async def step(ctx: StepContext) -> None:
        await ctx.run_with_hooks(held)

    async def loop() -> None:
        await session.loop(step, workers=workers)
        ended.append(True)

    async with monitored(graph) as session, anyio.create_task_group() as group:
        group.start_soon(loop)
        await anyio.wait_all_tasks_blocked()
        assert len(started) == workers - 1
        for gate in list(gates.values()):
            assert ended == []
            gate.set()
            await anyio.wait_all_tasks_blocked()
        assert ended == [True]
        assert session.source_state(letter) == finished(workers - 1)
        assert session.global_step == workers - 1


@pytest.mark.parametrize("workers", [1, 3, 8])
async def test_workers_that_all_wait_for_a_slow_source_end_after_the_last_commit(workers: int) -> None:
    """D5: the end comes while all workers wait: those with the last items commit, then the loop returns."""
    gate = anyio.Event()
    done: list[int] = []

    async def slow() -> AsyncIterator[int]:
        for number in range(3):
            await gate.wait()
            yield number

    with Graph() as graph:
        number = source(slow, name="numbers")

    async def step(ctx: StepContext) -> None:
        item = await ctx.session.run(number)
        for _ in range(10):
            await anyio.lowlevel.checkpoint()
        done.append(item)

    async def loop() -> None:
        await session.loop(step, workers=workers)

    async with monitored(graph) as session:
        async with anyio.create_task_group() as group:
            group.start_soon(loop)
            await anyio.wait_all_tasks_blocked()
            gate.set()
        assert sorted(done) == [0, 1, 2]
        assert session.source_state(number) == finished(3)
    assert session.stop_reason is not None and session.stop_reason.kind == "end_of_data"


async def test_an_item_given_back_after_the_end_is_given_again() -> None:
    """D5, D1: the end was met, then a cancelled step gave its item back: it is there for who asks next."""
    started: list[str] = []
    with Graph() as graph:
        letter = source("a", name="letters")
        held = hold(started, {}, letter)
    async with Session(graph) as raw:
        async with anyio.create_task_group() as group:
            group.start_soon(raw.run, held)
            await anyio.wait_all_tasks_blocked()
            with pytest.raises(OutOfRangeError):
                await raw.run(letter)
            group.cancel_scope.cancel()
        assert await raw.run(letter) == "a"
        assert raw.source_state(letter) == finished(1)


async def test_an_item_given_back_while_a_step_waits_for_more_is_given_before_the_end() -> None:
    """D5, D1: a step that waits for a source which then ends gets the item that was given back meanwhile."""
    started: list[str] = []
    gate = anyio.Event()
    got: list[str] = []

    async def slow() -> AsyncIterator[str]:
        yield "a"
        await gate.wait()

    with Graph() as graph:
        letter = source(slow, name="letters")
        held = hold(started, {}, letter)
    async with monitored(graph) as session, anyio.create_task_group() as group:
        scope = anyio.CancelScope()

        async def run_cancelled() -> None:
            with scope:
                await session.run(held)

        async def run() -> None:
            got.append(await session.run(letter))

        group.start_soon(run_cancelled)
        await anyio.wait_all_tasks_blocked()
        group.start_soon(run)
        await anyio.wait_all_tasks_blocked()
        scope.cancel()
        await anyio.wait_all_tasks_blocked()
        gate.set()
        await anyio.wait_all_tasks_blocked()
        assert (started, got) == (["a"], ["a"])
        assert session.source_state(letter) == finished(1)


async def test_two_sources_end_together_when_the_shorter_does() -> None:
    """D5: a run of two sources ends with the shorter; what the longer gave for it is not lost."""
    with Graph() as graph:
        long, short = source("abc", name="long"), source("x", name="short")
    async with Session(graph) as raw:
        assert await raw.run([long, short]) == ["a", "x"]
        with pytest.raises(OutOfRangeError, match="short"):
            await raw.run([long, short])
        state = raw.source_state(long)
        assert state.position == 1
        assert await raw.run(long) == "b"
