"""Contract T: steps are transactions."""

from __future__ import annotations

import operator
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from asyncstep import (
    AbortedError,
    ChiefSessionCreator,
    Coordinator,
    Graph,
    MonitoredSession,
    Node,
    Recovery,
    RunOptions,
    Session,
    SessionRunArgs,
    SessionRunContext,
    SessionRunHook,
    SessionRunValues,
    SingularMonitoredSession,
    StepContext,
    Variable,
    get_or_create_global_step,
    op,
    placeholder,
    source,
)

from .counting import to_the_end as monitored

pytestmark = pytest.mark.anyio


class Window(SessionRunHook):
    """A look at what is committed: raw runs outside any step."""

    session: Session

    async def after_create_session(self, session: Session, coord: Any) -> None:
        self.session = session

    async def look(self, *names: str) -> list[Any]:
        """The committed values of variables, read from a task that no step started."""
        return list(await self.session.run(list(names)))


def at(point: str, act: Callable[[SessionRunContext], Awaitable[object]]) -> SessionRunHook:
    """A hook that overrides one point, and does `act` there."""

    class Acting(SessionRunHook):
        async def before_run(self, run_context: SessionRunContext) -> None:
            if point == "before_run":
                await act(run_context)

        async def before_commit(self, run_context: SessionRunContext, run_values: SessionRunValues) -> None:
            if point == "before_commit":
                await act(run_context)

        async def after_run(self, run_context: SessionRunContext, run_values: SessionRunValues) -> None:
            if point == "after_run":
                await act(run_context)

        async def on_run_error(self, run_context: SessionRunContext, error: BaseException) -> None:
            if point == "on_run_error":
                await act(run_context)

    return Acting()


async def suspend() -> int:
    """A value that takes a turn of the event loop."""
    await anyio.lowlevel.checkpoint()
    return 1


async def raise_boom(*_: object) -> None:
    """Fail as user code fails."""
    raise ValueError("boom")


@op
async def wait(gate: anyio.Event, value: Any = None) -> Any:
    """Give `value` when `gate` is open."""
    await gate.wait()
    return value


# T1: a step reads its own writes, else what is committed


async def test_a_run_reads_its_own_last_write() -> None:
    """T1: what is evaluated after a write of the run reads what was written, and an update builds on it."""
    with Graph() as graph:
        v = Variable(1, name="v")
        first = v.assign(10)
        second = v.update(operator.add, 5).after(first)
        third = v.update(operator.mul, 2).after(second)
        read = v.after(third)
    async with monitored(graph) as session:
        assert await session.run([first, second, third, read]) == [10, 15, 30, 30]
        assert await session.run(v) == 30


async def test_a_step_function_reads_its_own_writes_and_nobody_else_does() -> None:
    """T1: within the step the last write, everywhere else the committed value."""
    gate = anyio.Event()
    seen: list[int] = []
    window = Window()
    with Graph() as graph:
        v = Variable(1, name="v")
        to_two, add = v.assign(2), v.assign_add(5)

    async def step(ctx: StepContext) -> None:
        seen.append(await ctx.session.run(v))
        await ctx.session.run(to_two)
        seen.append(await ctx.session.run(v))
        await ctx.session.run(add)
        seen.append(await ctx.session.run(v))
        await gate.wait()

    async with monitored(graph, window) as session, anyio.create_task_group() as group:
        group.start_soon(session.run_step_fn, step)
        await anyio.wait_all_tasks_blocked()
        assert seen == [1, 2, 7]
        assert await window.look("v") == [1]
        assert await session.run(v) == 1
        gate.set()


async def test_an_own_write_is_read_although_another_step_committed_since() -> None:
    """T1: what a step wrote reads as its own last write, what it did not as others committed it."""
    gate = anyio.Event()
    seen: list[Any] = []
    with Graph() as graph:
        mine, other = Variable(0, name="mine"), Variable(0, name="other")
        write_mine, write_both = mine.assign(1), [mine.assign(8), other.assign(9)]

    async def step(ctx: StepContext) -> None:
        await ctx.session.run(write_mine)
        seen.append(await ctx.session.run([mine, other]))
        await gate.wait()
        seen.append(await ctx.session.run([mine, other]))

    async with monitored(graph) as session, anyio.create_task_group() as group:
        group.start_soon(session.run_step_fn, step)
        await anyio.wait_all_tasks_blocked()
        await session.run(write_both)
        gate.set()
    assert seen == [[1, 0], [1, 9]]


async def test_the_initial_value_is_the_committed_value_of_a_new_session() -> None:
    """T1: a variable that no step wrote has its initial value, also one given as a function, made once."""
    made: list[int] = []

    def initial() -> list[int]:
        made.append(1)
        return [1, 2]

    with Graph() as graph:
        Variable(initial, name="v")
    async with monitored(graph) as session:
        assert await session.run("v") == [1, 2]
        assert await session.run("v") == [1, 2]
        assert made == [1]


# T2: all at one instant, or nothing


async def test_all_of_a_step_is_committed_together() -> None:
    """T2: writes, source items and the global step become visible together, when the run commits."""
    gate = anyio.Event()
    window = Window()

    async def hold(_: SessionRunContext) -> None:
        await gate.wait()

    with Graph() as graph:
        get_or_create_global_step()
        items = source(["x", "y"], name="items")
        step = [Variable("", name="a").assign(items), Variable("", name="b").assign(items)]
    async with monitored(graph, window, at("before_commit", hold)) as session:
        async with anyio.create_task_group() as group:
            group.start_soon(session.run, step)
            await anyio.wait_all_tasks_blocked()
            assert await window.look("a", "b", "global_step") == ["", "", 0]
            assert session.global_step == 0
            state = session.source_state(items)
            assert (state.position, state.pending) == (0, (0,))
            gate.set()
        assert await window.look("a", "b", "global_step") == ["x", "x", 1]
        assert session.global_step == 1
        state = session.source_state(items)
        assert (state.position, state.pending) == (1, ())


async def test_no_task_ever_sees_a_part_of_a_commit() -> None:
    """T2: a task that looks on every turn of the event loop sees variables, items and step change at once."""
    seen: set[tuple[int, ...]] = set()
    window = Window()
    with Graph() as graph:
        get_or_create_global_step()
        items = source(range(1, 31), name="items")
        fetch = [Variable(0, name="a").assign(items), Variable(0, name="b").assign_add(1)]

    async def watch() -> None:
        while True:
            values = await window.look("a", "b", "global_step")
            seen.add((*values, session.global_step, session.source_state(items).position))
            await anyio.lowlevel.checkpoint()

    async def pause(_: SessionRunContext) -> None:
        await anyio.lowlevel.checkpoint()

    hooks = [at("before_commit", pause), at("after_run", pause)]
    async with monitored(graph, window, *hooks) as session, anyio.create_task_group() as group:
        group.start_soon(watch)
        for _ in range(30):
            await session.run(fetch)
        group.cancel_scope.cancel()
    assert len(seen) > 10
    assert all(len(set(values)) == 1 for values in seen)


async def test_a_commit_that_fails_leaves_nothing() -> None:
    """T2: if one write of many cannot be made, none is, and neither the items nor the global step count."""
    gate = anyio.Event()
    window = Window()

    def refuse_negative(current: int, delta: int) -> int:
        if current < 0:
            raise ValueError("negative")
        return current + delta

    with Graph() as graph:
        get_or_create_global_step()
        items = source(["x", "y"], name="items")
        a, b, c = (Variable(0, name=name) for name in "abc")
        step = [a.assign(1), b.update(refuse_negative, 1), c.assign(1), items]
        make_negative = b.assign(-1)
        held = wait(gate)
    async with monitored(graph, window) as session, anyio.create_task_group() as group:

        async def run() -> None:
            with pytest.raises(ValueError, match="negative"):
                await session.run([*step, held])

        group.start_soon(run)
        await anyio.wait_all_tasks_blocked()
        await window.session.run(make_negative)
        gate.set()
        await anyio.wait_all_tasks_blocked()
        assert await window.look("a", "b", "c", "global_step") == [0, -1, 0, 0]
        assert session.source_state(items).position == 0


# T3: a step function is one transaction


async def test_raw_runs_of_a_step_function_commit_when_it_returns() -> None:
    """T3: what a step function wrote in raw runs commits as a whole at its end."""
    gate = anyio.Event()
    window = Window()
    with Graph() as graph:
        a, b = Variable(0, name="a"), Variable(0, name="b")
        write_a, write_b = a.assign(1), b.assign_add(a)

    async def step(ctx: StepContext) -> str:
        await ctx.session.run(write_a)
        await ctx.session.run(write_b)
        await gate.wait()
        return "done"

    async with monitored(graph, window) as session:
        async with anyio.create_task_group() as group:
            group.start_soon(session.run_step_fn, step)
            await anyio.wait_all_tasks_blocked()
            assert await window.look("a", "b") == [0, 0]
            gate.set()
        assert await window.look("a", "b") == [1, 1]


async def test_a_step_function_gives_its_result_and_gets_its_arguments() -> None:
    """T3: `run_step_fn(fn, *args)` calls fn(ctx, *args) once and returns what it returns."""
    graph = Graph()

    async def step(ctx: StepContext, *args: int) -> tuple[int, ...]:
        return args

    async with monitored(graph) as session:
        assert await session.run_step_fn(step, 1, 2) == (1, 2)


async def test_run_with_hooks_commits_what_there_is_so_far() -> None:
    """T3: a monitored run in a step function commits earlier raw writes too, before its after_run."""
    window = Window()
    seen: list[list[Any]] = []

    async def look(_: SessionRunContext) -> None:
        seen.append([session.global_step])
        gate.set()
        await looked.wait()

    async def look_from_outside() -> None:
        await gate.wait()
        seen.append(await window.look("a", "b"))
        looked.set()

    gate, looked = anyio.Event(), anyio.Event()
    with Graph() as graph:
        write_a = Variable(0, name="a").assign(1)
        write_b = Variable(0, name="b").assign(2)

    async def step(ctx: StepContext) -> None:
        await ctx.session.run(write_a)
        await ctx.run_with_hooks(write_b)

    async with monitored(graph, window, at("after_run", look)) as session:
        async with anyio.create_task_group() as group:
            group.start_soon(look_from_outside)
            await session.run_step_fn(step)
    assert seen == [[1], [1, 2]]


async def test_run_with_hooks_sees_the_raw_writes_before_it() -> None:
    """T3, T1: the evaluation of a monitored run in a step function reads what the step wrote before."""
    with Graph() as graph:
        a = Variable(0, name="a")
        write, read = a.assign(1), op(lambda value: value + 1)(a)

    async def step(ctx: StepContext) -> Any:
        await ctx.session.run(write)
        return await ctx.run_with_hooks(read)

    async with monitored(graph) as session:
        assert await session.run_step_fn(step) == 2


async def test_what_run_with_hooks_committed_stays_when_the_step_fails_later() -> None:
    """T3: after an error only what came after the last monitored run is rolled back."""
    window = Window()
    with Graph() as graph:
        a = Variable(0, name="a")
        add = a.assign_add(1)

    async def step(ctx: StepContext) -> None:
        await ctx.session.run(add)
        await ctx.run_with_hooks(add)
        await ctx.session.run(add)
        raise ValueError("boom")

    async with monitored(graph, window) as session:
        with pytest.raises(ValueError, match="boom"):
            await session.run_step_fn(step)
        assert await window.look("a") == [2]
        assert session.global_step == 1


async def test_each_run_with_hooks_is_a_global_step_and_the_rest_is_none() -> None:
    """T3: two monitored runs in a step function are two steps; writes left at its end commit without one."""
    window = Window()
    with Graph() as graph:
        add = Variable(0, name="a").assign_add(1)

    async def step(ctx: StepContext) -> None:
        await ctx.run_with_hooks(add)
        await ctx.run_with_hooks(add)
        await ctx.session.run(add)

    async with monitored(graph, window) as session:
        await session.run_step_fn(step)
        assert session.global_step == 2
        assert await window.look("a") == [3]


async def test_a_step_function_that_asks_for_a_stop_commits() -> None:
    """T3: what is left also commits when the step ends by `request_stop`."""
    window = Window()
    seen: list[list[Any]] = []
    with Graph() as graph:
        items = source(["x", "y"], name="items")
        write = Variable("", name="a").assign(items)

    class Last(SessionRunHook):
        async def end(self, session: Session) -> None:
            seen.append(await session.run(["a"]))
            seen.append([session.source_state(items).position])

    async def step(ctx: StepContext) -> None:
        await ctx.session.run(write)
        ctx.request_stop("enough")

    async with MonitoredSession(ChiefSessionCreator(graph=graph), [window, Last()]) as session:
        await session.run_step_fn(step)
    assert seen == [["x"], [1]]


async def test_raw_runs_of_child_tasks_join_the_step() -> None:
    """T3: raw runs that overlap in tasks of the step function are all of its one transaction."""
    gate = anyio.Event()
    window = Window()
    with Graph() as graph:
        add = Variable(0, name="a").assign_add(1)

    async def step(ctx: StepContext) -> None:
        async with anyio.create_task_group() as group:
            for _ in range(5):
                group.start_soon(ctx.session.run, add)
        await gate.wait()
        raise ValueError("boom")

    async with monitored(graph, window) as session:
        async with anyio.create_task_group() as group:

            async def run() -> None:
                with pytest.raises(ValueError, match="boom"):
                    await session.run_step_fn(step)

            group.start_soon(run)
            await anyio.wait_all_tasks_blocked()
            assert await window.look("a") == [0]
            gate.set()
        assert await window.look("a") == [0]


async def test_a_run_of_the_monitored_session_inside_a_step_function_is_a_step_of_its_own() -> None:
    """T3: only `ctx` runs join; `session.run` commits by itself and stays when the step function fails."""
    window = Window()
    with Graph() as graph:
        v, w = Variable(0, name="v"), Variable(0, name="w")
        write_v, write_w = v.assign(1), w.assign(1)

    async def step(ctx: StepContext) -> None:
        await ctx.session.run(write_v)
        assert await session.run(v) == 0
        await session.run(write_w)
        raise ValueError("boom")

    async with monitored(graph, window) as session:
        with pytest.raises(ValueError, match="boom"):
            await session.run_step_fn(step)
        assert await window.look("v", "w") == [0, 1]
        assert session.global_step == 2


async def test_a_run_of_the_monitored_session_inside_a_hook_is_a_step_of_its_own() -> None:
    """T3: `run_without_hooks` in a hook commits by itself, also when the hook's step is rolled back."""
    window = Window()
    with Graph() as graph:
        write_v, write_w = Variable(0, name="v").assign(1), Variable(0, name="w").assign(1)

    async def run_another(_: SessionRunContext) -> None:
        await session.run_without_hooks(write_w)
        raise ValueError("boom")

    async with monitored(graph, window, at("before_commit", run_another)) as session:
        with pytest.raises(ValueError, match="boom"):
            await session.run(write_v)
        assert await window.look("v", "w") == [0, 1]


async def test_a_retried_step_function_starts_from_what_is_committed() -> None:
    """T3: the raw writes of a failed attempt are gone in the next one; its monitored runs stay."""
    window = Window()
    seen: list[Any] = []
    with Graph() as graph:
        a, b = Variable(0, name="a"), Variable(0, name="b")
        add_a, add_b = a.assign_add(1), b.assign_add(1)

    async def step(ctx: StepContext) -> None:
        seen.append(await ctx.session.run([a, b]))
        await ctx.run_with_hooks(add_a)
        await ctx.session.run(add_b)
        if ctx.attempt == 1:
            raise AbortedError("again")

    async with monitored(graph, window, recovery=Recovery(wait_initial=0.001)) as session:
        await session.run_step_fn(step)
        assert seen == [[0, 0], [1, 0]]
        assert await window.look("a", "b") == [2, 1]


# T4: rolled back


def ways_to_roll_back() -> list[str]:
    """The endings after which nothing of a step may stay."""
    return ["error", "end of data", "cancellation", "refusal", "timeout"]


@pytest.mark.parametrize("way", ways_to_roll_back())
async def test_a_run_that_does_not_commit_leaves_no_trace(way: str) -> None:
    """T4: after an error, the end of the data, a cancellation or a refusal nothing of the run can be read."""
    window = Window()
    gate = anyio.Event()
    scope = anyio.CancelScope()

    async def end_the_run() -> None:
        await gate.wait()
        if way == "error":
            raise ValueError("boom")
        if way == "cancellation":
            scope.cancel()
        if way in ("cancellation", "timeout"):
            await anyio.sleep_forever()

    with Graph() as graph:
        get_or_create_global_step()
        writes = [Variable(0, name="a").assign(1), Variable(0, name="b").assign_add(1)]
        held = op(end_the_run)().after(*writes)
        empty: Node[Any] = source([], name="empty").after(held)
    hooks = [at("before_commit", raise_boom)] if way == "refusal" else []
    fetches = [*writes, held, empty] if way == "end of data" else [*writes, held]
    options = RunOptions(timeout=0.05) if way == "timeout" else None
    errors: dict[str, str] = {
        "error": "ValueError",
        "end of data": "OutOfRangeError",
        "refusal": "ValueError",
        "timeout": "DeadlineExceededError",
    }
    caught: list[BaseException] = []
    async with monitored(graph, window, *hooks) as session:
        async with anyio.create_task_group() as group:

            async def run() -> None:
                with scope:
                    try:
                        await session.run(fetches, options=options)
                    except Exception as error:
                        caught.append(error)

            group.start_soon(run)
            await anyio.wait_all_tasks_blocked()
            assert await window.look("a", "b", "global_step") == [0, 0, 0]
            gate.set()
        assert await window.look("a", "b", "global_step") == [0, 0, 0]
        assert session.global_step == 0
        assert [type(error).__name__ for error in caught] == ([errors[way]] if way in errors else [])
        assert scope.cancelled_caught == (way == "cancellation")


@pytest.mark.parametrize("way", ["error", "end of data", "cancellation"])
async def test_a_step_function_that_does_not_end_well_leaves_no_trace(way: str) -> None:
    """T4: the raw writes of a step function are rolled back with it."""
    window = Window()
    with Graph() as graph:
        write = Variable(0, name="a").assign(1)
        empty: Node[Any] = source([], name="empty")

    async def step(ctx: StepContext) -> None:
        await ctx.session.run(write)
        if way == "error":
            raise ValueError("boom")
        if way == "end of data":
            await ctx.session.run(empty)
        scope.cancel()
        await anyio.sleep_forever()

    async with monitored(graph, window) as session:
        with anyio.CancelScope() as scope:
            try:
                await session.run_step_fn(step)
            except Exception as error:
                assert type(error).__name__ == {"error": "ValueError"}.get(way, "OutOfRangeError")
        assert await window.look("a") == [0]


async def test_a_node_failing_rolls_back_writes_that_came_after_it_too() -> None:
    """T4: the writes of a run whose other node failed are gone, in whichever order they were made."""
    window = Window()
    with Graph() as graph:
        early, late = Variable(0, name="a").assign(1), Variable(0, name="b")
        fail = op(raise_boom)()
        after = late.assign(op(suspend)())
    async with monitored(graph, window) as session:
        with pytest.raises(ValueError, match="boom"):
            await session.run([early, fail, after])
        assert await window.look("a", "b") == [0, 0]
        await session.run(early)
        assert await window.look("a", "b") == [1, 0]


# T5: concurrent steps


@pytest.mark.parametrize("opening", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
async def test_concurrent_updates_are_never_lost(opening: tuple[int, ...]) -> None:
    """T5: three steps that all read the same value and add to it add up, in whichever order they commit."""
    gates = [anyio.Event() for _ in range(3)]
    with Graph() as graph:
        v = Variable(100, name="v")
        adds = [v.assign_add(10**i) for i in range(3)]
        held = [[add, wait(gate).after(add)] for add, gate in zip(adds, gates, strict=True)]
    async with monitored(graph) as session:
        async with anyio.create_task_group() as group:
            for fetches in held:
                group.start_soon(session.run, fetches)
            await anyio.wait_all_tasks_blocked()
            for index in opening:
                gates[index].set()
                await anyio.wait_all_tasks_blocked()
        assert await session.run(v) == 211


async def test_an_update_is_applied_again_to_the_committed_value() -> None:
    """T5: if another step committed the variable in between, the function is applied to what it committed."""
    gate = anyio.Event()
    with Graph() as graph:
        v = Variable(1, name="v")
        doubled = v.update(operator.mul, 2)
        held = [doubled, wait(gate).after(doubled)]
        to_ten = v.assign(10)
    async with monitored(graph) as session:
        async with anyio.create_task_group() as group:
            group.start_soon(session.run, held)
            await anyio.wait_all_tasks_blocked()
            await session.run(to_ten)
            gate.set()
        assert await session.run(v) == 20


async def test_several_updates_of_a_step_are_applied_again_in_their_order() -> None:
    """T5: the whole chain of a step's updates runs on the value that was committed in between."""
    gate = anyio.Event()
    with Graph() as graph:
        v: Variable[tuple[Any, ...]] = Variable((), name="v")
        x = placeholder("x")
        append = v.update(lambda current, item: (*current, item), x)

    async def step(ctx: StepContext) -> None:
        await ctx.session.run(append, {x: "a"})
        await ctx.session.run(append, {x: "b"})
        await gate.wait()

    async with monitored(graph) as session:
        async with anyio.create_task_group() as group:
            group.start_soon(session.run_step_fn, step)
            await anyio.wait_all_tasks_blocked()
            await session.run(append, {x: "other"})
            gate.set()
        assert await session.run(v) == ("other", "a", "b")


async def test_of_two_assigns_the_last_commit_wins() -> None:
    """T5: `assign` overwrites what was committed in between, whichever step began first."""
    gates = [anyio.Event(), anyio.Event()]
    with Graph() as graph:
        v = Variable("", name="v")
        writes = [v.assign(name) for name in ("first", "second")]
        held = [[write, wait(gate).after(write)] for write, gate in zip(writes, gates, strict=True)]
    async with monitored(graph) as session:
        async with anyio.create_task_group() as group:
            for fetches in held:
                group.start_soon(session.run, fetches)
                await anyio.wait_all_tasks_blocked()
            for gate in reversed(gates):
                gate.set()
                await anyio.wait_all_tasks_blocked()
        assert await session.run(v) == "first"


async def test_an_update_after_an_assign_builds_on_the_assign() -> None:
    """T5: a step that assigned and then updated overwrites with both, whatever was committed in between."""
    gate = anyio.Event()
    with Graph() as graph:
        v = Variable(0, name="v")
        to_ten = v.assign(10)
        add = v.assign_add(1).after(to_ten)
        held = [add, wait(gate).after(add)]
        other = v.assign(500)
    async with monitored(graph) as session:
        async with anyio.create_task_group() as group:
            group.start_soon(session.run, held)
            await anyio.wait_all_tasks_blocked()
            await session.run(other)
            gate.set()
        assert await session.run(v) == 11


async def test_an_update_whose_arguments_are_nodes_keeps_them_when_it_is_applied_again() -> None:
    """T5: the second application has the same arguments; their nodes are not evaluated again."""
    gate = anyio.Event()
    evaluated: list[int] = []

    def add_times(current: int, plus: int, times: int) -> int:
        return current + plus * times

    def measure() -> int:
        evaluated.append(1)
        return 10 if len(evaluated) == 1 else 100

    with Graph() as graph:
        v = Variable(0, name="v")
        measured = op(measure)()
        add = v.update(add_times, measured, 2)
        held = [add, wait(gate).after(add)]
        other = v.assign(1)
    async with monitored(graph) as session:
        async with anyio.create_task_group() as group:
            group.start_soon(session.run, held)
            await anyio.wait_all_tasks_blocked()
            await session.run(other)
            gate.set()
        assert await session.run(v) == 21
    assert evaluated == [1]


async def test_an_update_that_raises_at_the_commit_rolls_the_step_back() -> None:
    """T5: all new values are computed before the first is written, whatever the order of the variables."""
    gate = anyio.Event()
    window = Window()

    def stay_small(current: int, delta: int) -> int:
        if current > 10:
            raise OverflowError("too large")
        return current + delta

    with Graph() as graph:
        variables = [Variable(0, name=name) for name in ("a", "m", "z")]
        writes: list[Node[Any]] = [variables[0].assign(1), variables[2].assign(1)]
        writes.insert(1, variables[1].update(stay_small, 1))
        held = wait(gate).after(*writes)
        grow = variables[1].assign(100)
    told: list[str] = []

    class Look(SessionRunHook):
        async def after_run(self, run_context: SessionRunContext, run_values: SessionRunValues) -> None:
            told.append("after_run")

        async def on_run_error(self, run_context: SessionRunContext, error: BaseException) -> None:
            told.append(repr(error))

    async with monitored(graph, window, Look()) as session, anyio.create_task_group() as group:

        async def run() -> None:
            with pytest.raises(OverflowError, match="too large"):
                await session.run([*writes, held])

        group.start_soon(run)
        await anyio.wait_all_tasks_blocked()
        await session.run_without_hooks(grow)
        gate.set()
        await anyio.wait_all_tasks_blocked()
        assert await window.look("a", "m", "z") == [0, 100, 0]
        assert session.global_step == 1
    assert told == ["OverflowError('too large')"]


async def test_an_update_of_a_step_function_survives_its_own_monitored_run() -> None:
    """T5, T3: an update before and one after a commit of the same step are each applied once."""
    gate = anyio.Event()
    with Graph() as graph:
        v = Variable(0, name="v")
        add, other = v.assign_add(1), v.assign_add(100)

    async def step(ctx: StepContext) -> None:
        await ctx.session.run(add)
        await ctx.run_with_hooks(add)
        await ctx.session.run(add)
        await gate.wait()

    async with monitored(graph) as session:
        async with anyio.create_task_group() as group:
            group.start_soon(session.run_step_fn, step)
            await anyio.wait_all_tasks_blocked()
            await session.run(other)
            gate.set()
        assert await session.run(v) == 103


# T6: the global step


class Steps(SessionRunHook):
    """Writes down the global step of each committed run."""

    def __init__(self) -> None:
        self.before_commit_saw: list[int | None] = []
        self.steps: list[int] = []

    async def before_commit(self, run_context: SessionRunContext, run_values: SessionRunValues) -> None:
        self.before_commit_saw.append(run_values.global_step)

    async def after_run(self, run_context: SessionRunContext, run_values: SessionRunValues) -> None:
        await anyio.lowlevel.checkpoint()
        assert run_values.global_step is not None
        self.steps.append(run_values.global_step)


async def test_each_committed_run_has_a_global_step_of_its_own() -> None:
    """T6: of concurrent runs that fail, are cancelled or commit, the last are numbered 1, 2, ... once."""
    steps = Steps()

    @op
    async def act(number: int) -> None:
        for _ in range(number % 5):
            await anyio.lowlevel.checkpoint()
        if number % 7 == 3:
            raise ValueError("boom")
        if number % 11 == 4:
            await anyio.sleep_forever()

    with Graph() as graph:
        x = placeholder("x")
        node = act(x)
    async with monitored(graph, steps) as session, anyio.create_task_group() as group:

        async def run(number: int) -> None:
            try:
                with anyio.CancelScope() as scope:
                    scopes.append(scope)
                    await session.run(node, {x: number})
            except ValueError:
                assert number % 7 == 3

        scopes: list[anyio.CancelScope] = []
        for number in range(100):
            group.start_soon(run, number)
        await anyio.wait_all_tasks_blocked()
        for scope in scopes:
            scope.cancel()
    committed = sum(number % 7 != 3 and number % 11 != 4 for number in range(100))
    assert sorted(steps.steps) == list(range(1, committed + 1))
    assert session.global_step == committed
    assert set(steps.before_commit_saw) == {None}


async def test_every_kind_of_monitored_run_counts() -> None:
    """T6: run, run(hooks=[...]), run_without_hooks and ctx.run_with_hooks each add one; raw runs add none."""
    window = Window()
    with Graph() as graph:
        node = op(lambda: 1)()

    async def step(ctx: StepContext) -> None:
        await ctx.session.run(node)
        await ctx.run_with_hooks(node)

    async with monitored(graph, window) as session:
        counts = [session.global_step]
        await session.run(node)
        counts.append(session.global_step)
        await session.run(node, hooks=[])
        counts.append(session.global_step)
        await session.run_without_hooks(node)
        counts.append(session.global_step)
        await session.run_step_fn(step)
        counts.append(session.global_step)
        await window.session.run(node)
        counts.append(session.global_step)
    assert counts == [0, 1, 2, 3, 4, 4]


async def test_a_graph_that_steps_itself_is_left_to_it() -> None:
    """T6: if a node of the graph changes the global step, only that node does."""
    steps = Steps()
    with Graph() as graph:
        node = op(lambda: 1)()
        step = get_or_create_global_step().assign_add(10)
    async with monitored(graph, steps) as session:
        await session.run(node)
        assert session.global_step == 0
        await session.run([node, step])
        assert session.global_step == 10
        await session.run(node)
        assert session.global_step == 10
    assert steps.steps == [0, 10, 10]


async def test_the_global_step_of_a_graph_that_has_none_can_still_be_read() -> None:
    """T6: every graph has a global step on demand; a session counts in a graph that never named one."""
    with Graph() as graph:
        node = op(lambda: 1)()
    async with monitored(graph) as session:
        await session.run(node)
        assert session.global_step == 1


# T7: after the commit


async def test_an_error_in_after_run_comes_after_the_commit() -> None:
    """T7: the step counts, is not run again, even for an error of `recovery.on`, and the error is raised."""
    window = Window()
    evaluated: list[int] = []
    error = AbortedError("too late")

    async def fail(_: SessionRunContext) -> None:
        raise error

    def count() -> int:
        evaluated.append(1)
        return len(evaluated)

    with Graph() as graph:
        items = source(["x", "y"], name="items")
        fetch = [Variable(0, name="v").assign(op(count)()), items]
    async with monitored(graph, window, at("after_run", fail)) as session:
        with pytest.raises(AbortedError) as caught:
            await session.run(fetch)
        assert caught.value is error
        assert evaluated == [1] and session.global_step == 1
        assert await window.look("v") == [1]
        state = session.source_state(items)
        assert (state.position, state.pending, state.parked) == (1, (), ())


async def test_several_errors_in_after_run_are_all_raised() -> None:
    """T7: every after_run is called, and the errors of several leave as a group."""
    errors = [ValueError("one"), KeyError("two")]
    called: list[int] = []

    def failing(index: int) -> SessionRunHook:
        async def fail(_: SessionRunContext) -> None:
            called.append(index)
            if index < 2:
                raise errors[index]

        return at("after_run", fail)

    with Graph() as graph:
        write = Variable(0, name="v").assign(1)
    async with monitored(graph, *map(failing, range(3))) as session:
        with pytest.raises(ExceptionGroup) as caught:
            await session.run(write)
        assert caught.value.exceptions == tuple(errors)
        assert called == [0, 1, 2]
        assert session.global_step == 1
        assert await session.run("v", hooks=[]) == 1


async def test_a_cancellation_in_after_run_comes_after_the_commit() -> None:
    """T7: a step that is cancelled while after_run waits has committed."""
    window = Window()
    scope = anyio.CancelScope()

    async def cancel(_: SessionRunContext) -> None:
        scope.cancel()
        await anyio.lowlevel.checkpoint()

    with Graph() as graph:
        write = Variable(0, name="v").assign(1)
    async with monitored(graph, window, at("after_run", cancel)) as session:
        with scope:
            await session.run(write)
        assert scope.cancelled_caught
        assert await window.look("v") == [1]
        assert session.global_step == 1


# T8: run_context.session


async def test_raw_runs_of_hooks_join_the_step_until_the_commit() -> None:
    """T8: what before_run and before_commit write by run_context.session is part of the step."""
    window = Window()
    seen: list[Any] = []
    with Graph() as graph:
        v, w = Variable(0, name="v"), Variable(0, name="w")
        add = v.assign_add(1)
        copy = w.assign(v)

    async def write(run_context: SessionRunContext) -> None:
        seen.append(await run_context.session.run(add))

    hooks = [at("before_run", write), at("before_commit", write)]
    async with monitored(graph, window, *hooks) as session:
        assert await session.run(copy) == 1
        assert seen == [1, 2]
        assert await window.look("v", "w") == [2, 1]
        assert session.global_step == 1


@pytest.mark.parametrize("point", ["before_run", "before_commit"])
async def test_raw_runs_of_hooks_are_rolled_back_with_the_step(point: str) -> None:
    """T8: what a hook wrote before the commit is gone when the step does not commit."""
    window = Window()
    with Graph() as graph:
        add = Variable(0, name="v").assign_add(1)
        node = op(lambda: 1)()

    async def write(run_context: SessionRunContext) -> None:
        await run_context.session.run(add)

    hooks = [at(point, write), at("before_commit", raise_boom)]
    async with monitored(graph, window, *hooks) as session:
        with pytest.raises(ValueError, match="boom"):
            await session.run(node)
        assert await window.look("v") == [0]


async def test_after_the_commit_each_raw_run_is_a_transaction_of_its_own() -> None:
    """T8: in after_run a raw run commits by itself and at once, and one that fails takes no other with it."""
    window = Window()
    seen: list[Any] = []
    with Graph() as graph:
        add = Variable(0, name="v").assign_add(1)
        fail = op(raise_boom)().after(add)
        node = op(lambda: 1)()

    async def look() -> None:
        seen.append(await window.look("v"))

    async def write(run_context: SessionRunContext) -> None:
        await run_context.session.run(add)
        with pytest.raises(ValueError, match="boom"):
            await run_context.session.run([add, fail])
        gate.set()
        await looked.wait()
        await run_context.session.run(add)

    async def look_from_outside() -> None:
        await gate.wait()
        seen.append(await window.look("v"))
        looked.set()

    gate, looked = anyio.Event(), anyio.Event()
    async with monitored(graph, window, at("after_run", write)) as session:
        async with anyio.create_task_group() as group:
            group.start_soon(look_from_outside)
            await session.run(node)
        assert seen == [[1]]
        assert await window.look("v") == [2]
        assert session.global_step == 1


async def test_the_session_of_a_step_that_is_over_is_a_plain_raw_session() -> None:
    """T8: run_context.session kept beyond its run works, each run a transaction of its own."""
    window = Window()
    kept: list[SessionRunContext] = []

    async def keep(run_context: SessionRunContext) -> None:
        kept.append(run_context)

    with Graph() as graph:
        add = Variable(0, name="v").assign_add(1)
        node = op(lambda: 1)()
    async with monitored(graph, window, at("before_run", keep)) as session:
        await session.run(node)
        await kept[0].session.run(add)
        assert await window.look("v") == [1]


async def test_a_background_task_that_a_step_started_is_outside_the_step() -> None:
    """T8, T4: what `coord.start_soon` starts in a step neither sees the step's writes nor is rolled back with it."""
    done = anyio.Event()
    seen: list[int] = []
    with Graph() as graph:
        v, w = Variable(0, name="v"), Variable(0, name="w")
        write_v, write_w = v.assign(1), w.assign(1)
        fail = op(raise_boom)().after(op(done.wait)())

    class Background(SessionRunHook):
        async def after_create_session(self, session: Session, coord: Coordinator) -> None:
            self.raw, self.coord = session, coord

        async def before_run(self, run_context: SessionRunContext) -> None:
            await run_context.session.run(write_v)
            self.coord.start_soon(self.look_and_write)

        async def look_and_write(self) -> None:
            seen.append(await self.raw.run(v))
            await self.raw.run(write_w)
            done.set()

    async with anyio.create_task_group() as group:
        async with monitored(graph, Background(), task_group=group) as session:
            with pytest.raises(ValueError, match="boom"):
                await session.run(fail)
            assert await session.run([v, w], hooks=[]) == [0, 1]
    assert seen == [0]


async def test_a_raw_session_outside_any_step_commits_each_run() -> None:
    """T8: a raw session's runs are transactions one by one: committed, or without a trace."""
    with Graph() as graph:
        add = Variable(0, name="v").assign_add(1)
        fail = op(raise_boom)().after(add)
    async with Session(graph) as raw:
        await raw.run(add)
        with pytest.raises(ValueError, match="boom"):
            await raw.run([add, fail])
        assert await raw.run("v") == 1


async def test_the_raw_session_of_a_singular_session_is_outside_any_step() -> None:
    """T8: `raw_session` used in the body commits each run, and makes no global step."""
    with Graph() as graph:
        add = Variable(0, name="v").assign_add(1)
    async with SingularMonitoredSession(graph=graph) as session:
        await session.raw_session.run(add)
        assert await session.run("v") == 1
        assert session.global_step == 1


async def test_on_run_error_reads_what_is_committed() -> None:
    """T8, T4: in on_run_error the step is rolled back; the raw session shows the committed values."""
    seen: list[int] = []
    with Graph() as graph:
        v = Variable(0, name="v")
        write = v.assign(1)
        fail = op(raise_boom)().after(write)

    async def look(run_context: SessionRunContext) -> None:
        seen.append(await run_context.session.run(v))

    async with monitored(graph, at("on_run_error", look)) as session:
        with pytest.raises(ValueError, match="boom"):
            await session.run(fail)
    assert seen == [0]


async def test_a_hook_is_given_what_it_asked_for_of_the_step_it_is_in() -> None:
    """T8, T1: a hook's fetch of a variable is part of the step's evaluation and sees the step's writes."""
    results: list[Any] = []
    with Graph() as graph:
        v = Variable(0, name="v")
        write = v.assign(1)
        read = v.after(write)

    class Ask(SessionRunHook):
        async def before_run(self, run_context: SessionRunContext) -> SessionRunArgs:
            return SessionRunArgs(read)

        async def after_run(self, run_context: SessionRunContext, run_values: SessionRunValues) -> None:
            results.append(run_values.results)

    async with monitored(graph, Ask()) as session:
        await session.run(write)
    assert results == [1]
