"""Section E of the contract, rule 5: what a failed run held is freed at once, without the cyclic
collector."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from asyncstep import (
    AbortedError,
    Coordinator,
    Graph,
    MonitoredSession,
    OutOfRangeError,
    Recovery,
    RunOptions,
    StepContext,
    StopRequested,
    source,
)
from asyncstep.testing import HookCall, RecordingHook

from .counting import Oops
from .life_parts import monitored, no_collector

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def lec_no_log_records() -> Iterator[None]:
    """pytest keeps log records, and these keep the errors that they tell of: none are made."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


class Forgetful(RecordingHook):
    """A recording hook that keeps nothing but its name and its acts."""

    def note(self, call: HookCall) -> None:
        pass


class Payload:
    """Something that a failed run holds in a frame, such as a batch of data."""


class Watched:
    """Makes payloads and says how many of them are alive."""

    def __init__(self) -> None:
        self.made: list[weakref.ref[Payload]] = []

    def make(self) -> Payload:
        payload = Payload()
        self.made.append(weakref.ref(payload))
        return payload

    def alive(self) -> int:
        assert self.made, "the run made no payload"
        return sum(ref() is not None for ref in self.made)


Case = Callable[[MonitoredSession, Watched], Awaitable[None]]


async def a_failing_node(session: MonitoredSession, watched: Watched) -> None:
    """One node fails."""

    async def fail() -> None:
        payload = watched.make()
        raise Oops("no", payload)

    with suppress(Oops):
        await session.run(fail)


async def a_failing_node_that_suspends(session: MonitoredSession, watched: Watched) -> None:
    """One node fails after it has waited."""

    async def fail() -> None:
        payload = watched.make()
        await anyio.lowlevel.checkpoint()
        raise Oops("no", payload)

    with suppress(Oops):
        await session.run(fail)


async def nodes_that_fail_together(session: MonitoredSession, watched: Watched) -> None:
    """Two nodes fail, one of them while it is cancelled for the other."""
    waiting = anyio.Event()

    async def first() -> None:
        payload = watched.make()
        waiting.set()
        try:
            await anyio.sleep_forever()
        finally:
            raise KeyError(payload)

    async def second() -> None:
        payload = watched.make()
        await waiting.wait()
        raise Oops("no", payload)

    with suppress(ExceptionGroup):
        await session.run([first, second])


async def a_node_cancelled_for_another(session: MonitoredSession, watched: Watched) -> None:
    """One node fails while another one waits."""
    waiting = anyio.Event()

    async def first() -> None:
        payload = watched.make()
        waiting.set()
        await anyio.sleep_forever()
        del payload

    async def second() -> None:
        await waiting.wait()
        raise Oops("no")

    with suppress(Oops):
        await session.run([first, second])


async def a_failing_step_function(session: MonitoredSession, watched: Watched) -> None:
    """A step function fails after a raw run."""

    async def fetch() -> Payload:
        return watched.make()

    async def step(ctx: StepContext) -> None:
        payload = await ctx.session.run(fetch)
        raise Oops("no", payload)

    with suppress(Oops):
        await session.run_step_fn(step)


async def a_failing_run_in_a_step_function(session: MonitoredSession, watched: Watched) -> None:
    """A run with hooks inside a step function fails."""

    async def fail() -> None:
        payload = watched.make()
        raise Oops("no", payload)

    async def step(ctx: StepContext) -> None:
        await ctx.run_with_hooks(fail)

    with suppress(Oops):
        await session.run_step_fn(step)


async def a_cancelled_run(session: MonitoredSession, watched: Watched) -> None:
    """A run is cancelled."""

    async def wait() -> None:
        payload = watched.make()
        scope.cancel()
        await anyio.lowlevel.checkpoint()
        del payload

    with anyio.CancelScope() as scope:
        await session.run(wait)


async def a_run_out_of_time(session: MonitoredSession, watched: Watched) -> None:
    """A run exceeds its deadline."""

    async def wait() -> None:
        payload = watched.make()
        await anyio.sleep_forever()
        del payload

    with suppress(TimeoutError):
        await session.run(wait, options=RunOptions(timeout=0.01))


async def a_retried_run(session: MonitoredSession, watched: Watched) -> None:
    """A run fails once with an error that recovery retries, and then succeeds."""
    failed: list[bool] = []

    async def fail_once() -> None:
        payload = watched.make()
        if not failed:
            failed.append(True)
            raise AbortedError("once", payload)

    await session.run(fail_once)


async def a_run_given_up(session: MonitoredSession, watched: Watched) -> None:
    """A run fails at every attempt."""

    async def fail() -> None:
        payload = watched.make()
        raise AbortedError("always", payload)

    with suppress(AbortedError):
        await session.run(fail)


async def an_end_of_data_of_ones_own(session: MonitoredSession, watched: Watched) -> None:
    """A step function raises an OutOfRangeError of its own."""

    async def step(ctx: StepContext) -> None:
        payload = watched.make()
        raise OutOfRangeError("mine", payload)

    with suppress(OutOfRangeError):
        await session.run_step_fn(step)


CASES = [
    a_failing_node,
    a_failing_node_that_suspends,
    nodes_that_fail_together,
    a_node_cancelled_for_another,
    a_failing_step_function,
    a_failing_run_in_a_step_function,
    a_cancelled_run,
    a_run_out_of_time,
    a_retried_run,
    a_run_given_up,
    an_end_of_data_of_ones_own,
]


@pytest.mark.parametrize("case", CASES)
async def test_nothing_of_a_failed_run_stays_alive(case: Case) -> None:
    """E5: after a failed run, while the session goes on, nothing of the run is alive, and no cycle holds
    it."""
    watched = Watched()
    recovery = Recovery(wait_initial=0.0, max_attempts=2)
    async with monitored(Graph(), Forgetful("a", []), recovery=recovery) as session:
        with no_collector():
            await case(session, watched)
            await anyio.lowlevel.checkpoint()
            assert watched.alive() == 0


@pytest.mark.parametrize("point", ["before_run", "before_commit", "after_run", "on_run_error"])
async def test_nothing_of_a_failing_hook_stays_alive(point: str) -> None:
    """E5: the same when it is a hook that fails, at any point of the run."""
    watched = Watched()

    async def fail(*_: object) -> None:
        payload = watched.make()
        raise Oops(point, payload)

    async def fetch() -> int:
        if point == "on_run_error":
            raise Oops("no")
        return 1

    async with monitored(Graph(), Forgetful("a", [], **{point: fail})) as session:
        with no_collector():
            with suppress(Oops):
                await session.run(fetch)
            await anyio.lowlevel.checkpoint()
            assert watched.alive() == 0


@pytest.mark.parametrize("closing_fails", [False, True])
async def test_nothing_of_a_failed_body_stays_alive(closing_fails: bool) -> None:
    """E5: after a session that ended by an error, nothing of its body is alive, also if closing failed as
    well."""
    watched = Watched()

    async def fail(*_: object) -> None:
        payload = watched.make()
        raise KeyError("closing", payload)

    async def body() -> None:
        async with monitored(Graph(), Forgetful("a", [], **acts)):
            payload = watched.make()
            raise Oops("body", payload)

    acts: dict[str, Any] = {"on_session_error": fail} if closing_fails else {}
    with no_collector():
        try:
            await body()
        except (Oops, ExceptionGroup):
            pass
        await anyio.lowlevel.checkpoint()
        assert watched.alive() == 0


@pytest.mark.parametrize("how", ["stop", "end of data", "error in end", "cancellation", "failing begin"])
async def test_nothing_of_an_ended_session_stays_alive(how: str) -> None:
    """E5: the same for a session that ended by its own stop, the end of its data, and the rest."""
    watched = Watched()

    async def fail(*_: object) -> None:
        payload = watched.make()
        raise Oops("end", payload)

    async def step(ctx: StepContext) -> None:
        payload = watched.make()
        if how == "stop":
            ctx.request_stop()
        if how == "end of data":
            await ctx.session.run("items")
        if how == "cancellation":
            scope.cancel()
            await anyio.lowlevel.checkpoint()
        del payload

    points = {"error in end": "end", "failing begin": "begin"}
    acts: dict[str, Any] = {points[how]: fail} if how in points else {}

    async def live() -> None:
        with (graph := Graph()):
            source([], name="items")
        async with monitored(graph, Forgetful("a", [], **acts)) as session:
            await session.run_step_fn(step)

    with no_collector():
        with anyio.CancelScope() as scope:
            with suppress(Oops):
                await live()
        await anyio.lowlevel.checkpoint()
        assert watched.alive() == 0


async def test_a_stop_that_is_handled_is_freed() -> None:
    """E5: a session that stopped keeps nothing of the step that asked for it, nor of the runs that met the
    stop."""
    watched = Watched()

    async def step(ctx: StepContext) -> None:
        payload = watched.make()
        ctx.request_stop(f"because of {payload}")

    async def meet() -> None:
        payload = watched.make()
        await session.run(step_of_nothing)
        del payload

    async def step_of_nothing() -> None:
        pass

    async with monitored(Graph(), Forgetful("a", [])) as session:
        with no_collector():
            for run in (lambda: session.run_step_fn(step), meet):
                with suppress(StopRequested):
                    await run()
            await anyio.lowlevel.checkpoint()
            assert watched.alive() == 0


@pytest.mark.parametrize("ending", ["stop", "error"])
async def test_nothing_of_a_loop_stays_alive(ending: str) -> None:
    """E5: a loop of many workers that ended by a stop or an error leaves nothing alive."""
    watched = Watched()

    async def step(ctx: StepContext) -> None:
        payload = watched.make()
        await anyio.lowlevel.checkpoint()
        if len(watched.made) > 10:
            if ending == "stop":
                ctx.request_stop()
            raise Oops("no", payload)

    async with monitored(Graph(), Forgetful("a", [])) as session:
        with no_collector():
            try:
                await session.loop(step, workers=3)
            except (Oops, ExceptionGroup):
                assert ending == "error"
            await anyio.lowlevel.checkpoint()
            assert watched.alive() == 0


async def test_nothing_of_a_background_error_stays_alive() -> None:
    """E5, E4: a background error that was raised and handled leaves nothing alive."""
    watched = Watched()

    async def fail() -> None:
        payload = watched.make()
        raise Oops("background", payload)

    async def nothing() -> None:
        pass

    async with anyio.create_task_group() as group:
        hook = Forgetful("a", [])
        async with monitored(Graph(), hook, task_group=group) as session:
            with no_collector():
                hook.coord.start_soon(fail)
                await anyio.wait_all_tasks_blocked()
                with suppress(Oops):
                    await session.run(nothing)
                await anyio.lowlevel.checkpoint()
                assert watched.alive() == 0


async def test_nothing_of_an_absorbed_error_stays_alive() -> None:
    """E5, E4: an error that `coord.stop_on_exception()` absorbed, and a run raised, leaves nothing alive."""
    watched = Watched()
    coords: list[Coordinator] = []

    async def keep(_: object, coord: Coordinator) -> None:
        coords.append(coord)

    async def fail() -> None:
        payload = watched.make()
        raise Oops("absorbed", payload)

    async def nothing() -> None:
        pass

    async with monitored(Graph(), Forgetful("a", [], after_create_session=keep)) as session:
        with no_collector():
            async with coords[0].stop_on_exception():
                await fail()
            with suppress(Oops):
                await session.run(nothing)
            await anyio.lowlevel.checkpoint()
            assert watched.alive() == 0
