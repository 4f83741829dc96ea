"""A program that gets signals, for test_signals.py: ``python signalled.py BACKEND SCENARIO``.

It prints a line whenever something happened that the test waits for, and at the end what left the session.
"""

from __future__ import annotations

import asyncio
import faulthandler
import os
import signal
import sys
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread

from asyncstep import (
    AbortedError,
    ChiefSessionCreator,
    Graph,
    MonitoredSession,
    Recovery,
    SessionRunHook,
    StepContext,
    Variable,
    op,
)
from asyncstep.hooks import CheckpointSaverHook, SignalHook

SIGNALS = [signal.SIGINT, signal.SIGTERM]


def say(line: object) -> None:
    """Prints a line at once."""
    print(line, flush=True)  # noqa: T201 - the test reads it


class Tell(SessionRunHook):
    """Says how the session ends, with the last committed value; stands for a hook that saves at the end."""

    coord: Any = None

    def __init__(self, at_end: Callable[[], Awaitable[Any]] = anyio.lowlevel.checkpoint) -> None:
        self.at_end = at_end

    async def after_create_session(self, session: Any, coord: Any) -> None:
        self.coord = coord

    async def end(self, session: Any) -> None:
        say("end")
        await self.at_end()
        say(f"saved {await session.run('count')}")

    async def on_session_error(self, session: Any, error: BaseException) -> None:
        say(
            f"on_session_error {'Cancelled' if 'Cancelled' in type(error).__name__ else type(error).__name__}"
        )
        await self.at_end()
        say(f"saved {await session.run('count')}")


@op
async def add(count: int) -> int:
    """The node that is named add; its argument is what adds one to the count."""
    return count


def a_session(*hooks: SessionRunHook, **options: Any) -> MonitoredSession:
    """A session on a graph of one variable and one node that adds one to it."""
    with (graph := Graph()):
        add(Variable(0, name="count").assign_add(1))
    return MonitoredSession(ChiefSessionCreator(graph=graph), hooks, **options)


async def interrupt_while_waiting() -> None:
    """Lets a thread send SIGINT to the main thread while the event loop waits."""
    main = threading.main_thread().ident
    assert main is not None
    await anyio.to_thread.run_sync(signal.pthread_kill, main, signal.SIGINT)
    await anyio.lowlevel.checkpoint()
    await anyio.wait_all_tasks_blocked()


async def interrupt_while_running() -> None:
    """Sends SIGINT to the main thread while it runs the hook."""
    signal.raise_signal(signal.SIGINT)
    await anyio.lowlevel.checkpoint()
    await anyio.wait_all_tasks_blocked()


# Scenarios with SignalHook


async def polite() -> None:
    """A loop whose step ends when the session stops."""
    tell = Tell()

    async def step(ctx: StepContext) -> None:
        await ctx.session.run("add")
        say("ready")
        await tell.coord.wait_for_stop()
        say("stopping")

    before = [signal.getsignal(number) for number in SIGNALS]
    async with a_session(SignalHook(), tell) as session:
        await session.loop(step)
        say("loop returned")
    assert session.stop_reason is not None
    say(f"reason {session.stop_reason.kind}")
    say(f"restored {[signal.getsignal(number) for number in SIGNALS] == before}")


async def deaf() -> None:
    """A loop whose step does not end when the session stops."""
    tell = Tell()

    async def step(ctx: StepContext) -> None:
        await ctx.session.run("add")
        say("ready")
        await tell.coord.wait_for_stop()
        say("stopping")
        await anyio.sleep_forever()

    await told(lambda session: session.loop(step), SignalHook(), tell)


async def saving() -> None:
    """A loop that saves at its end, whose third step does not end when the session stops; in the present directory."""
    tell = Tell()

    async def step(ctx: StepContext) -> None:
        if session.global_step == 2:  # the first is saved by itself
            say("ready")
            await tell.coord.wait_for_stop()
            say("stopping")
            await anyio.sleep_forever()
        await ctx.run_with_hooks("add")

    session = a_session(SignalHook(), tell, CheckpointSaverHook(".", save_steps=1000))
    async with session:
        await session.loop(step)


async def deaf_with_own_handlers() -> None:
    """The same in a program with a SIGINT handler of its own, which ends nothing."""
    signal.signal(signal.SIGINT, lambda *_: say("own handler"))
    await deaf()


async def deaf_with_ignored_signals() -> None:
    """The same in a program that ignores SIGINT, as one that a shell started in the background does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    await deaf()


async def deaf_body() -> None:
    """A body that waits for something else than its session, which is told of the stop by a background
    task."""
    tell = Tell()

    async def listen() -> None:
        await tell.coord.wait_for_stop()
        say("stopping")

    async with anyio.create_task_group() as group:

        async def body(session: MonitoredSession) -> None:
            tell.coord.start_soon(listen)
            say("ready")
            await anyio.sleep_forever()

        await told(body, tell, SignalHook(), task_group=group)


async def told(
    body: Callable[[MonitoredSession], Awaitable[Any]], *hooks: SessionRunHook, **options: Any
) -> None:
    """Runs the body in a session, and says whether the handlers are back and why the session stopped."""
    before = [signal.getsignal(number) for number in SIGNALS]
    session = a_session(*hooks, **options)
    try:
        async with session:
            await body(session)
    finally:
        say(f"reason {session.stop_reason and session.stop_reason.kind}")
        say(f"restored {[signal.getsignal(number) for number in SIGNALS] == before}")


async def with_own_handlers() -> None:
    """A session between two uses of the program's own handlers."""
    for number in SIGNALS:
        signal.signal(number, lambda got, _: say(f"own handler {got}"))
    await polite()
    for number in SIGNALS:
        signal.raise_signal(number)
        await anyio.lowlevel.checkpoint()


async def with_ignored_signals() -> None:
    """A session in a program that ignores both signals."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    await polite()
    say(f"ignored {[signal.getsignal(number) for number in SIGNALS] == [signal.SIG_IGN] * 2}")


async def with_loop_handlers() -> None:
    """A session in an asyncio program whose SIGTERM handler was added to the event loop."""
    called = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, called.set)
    await polite()
    os.kill(os.getpid(), signal.SIGTERM)
    with anyio.fail_after(5):
        await called.wait()
    say("loop handler called")


async def with_failing_opening() -> None:
    """A session whose opening fails after SignalHook has begun."""

    class Fails(SessionRunHook):
        async def after_create_session(self, session: Any, coord: Any) -> None:
            raise ValueError("no")

    async def body(session: MonitoredSession) -> None:
        say("not reached")

    try:
        await told(body, SignalHook(), Fails())
    except ValueError:
        say("failed")


async def with_error() -> None:
    """A session that ends by an error of its body."""

    async def fail(session: MonitoredSession) -> None:
        raise ValueError("no")

    try:
        await told(fail, SignalHook())
    except ValueError:
        say("failed")


async def with_recovery() -> None:
    """A loop that a signal stops after a recovery, which makes a second incarnation."""
    tell = Tell()

    async def step(ctx: StepContext) -> None:
        if ctx.attempt == 1:
            raise AbortedError("once")
        say("ready")
        await tell.coord.wait_for_stop()
        say("stopping")

    recovery = Recovery(restore="always", wait_initial=0.0)
    await told(lambda session: session.loop(step), SignalHook(), tell, recovery=recovery)


async def two_sessions() -> None:
    """Two sessions with SignalHook that are closed in the order in which they were opened."""
    before = [signal.getsignal(number) for number in SIGNALS]
    tell = Tell()
    first, second = a_session(SignalHook()), a_session(SignalHook(), tell)

    async def step(ctx: StepContext) -> None:
        say("ready")
        await tell.coord.wait_for_stop()
        say("stopping")

    await first.__aenter__()
    await second.__aenter__()
    await first.aclose()
    await second.loop(step)
    await second.aclose()
    say(f"reason {second.stop_reason and second.stop_reason.kind}")
    say(f"restored {[signal.getsignal(number) for number in SIGNALS] == before}")


# Scenarios without SignalHook


async def ctrl_c_in_body() -> None:
    """A body that waits for Ctrl-C."""

    async def body(session: MonitoredSession) -> None:
        await session.run("add")
        say("ready")
        await anyio.sleep_forever()

    await told(body, Tell())


async def ctrl_c_in_step() -> None:
    """Three workers that wait for Ctrl-C."""
    at_work: list[int] = []

    async def step(ctx: StepContext) -> None:
        await ctx.session.run("add")
        at_work.append(ctx.worker)
        if len(at_work) == 3:
            say("ready")
        await anyio.sleep_forever()

    await told(lambda session: session.loop(step, workers=3), Tell())


async def ctrl_c_while_closing() -> None:
    """A session that gets SIGINT while its hook waits in `end`."""
    await told(lambda session: session.run("add"), Tell(interrupt_while_waiting))
    await anyio.lowlevel.checkpoint()
    say("not reached")


async def ctrl_c_in_the_closing_hook() -> None:
    """A session that gets SIGINT while its hook's `end` runs."""
    await told(lambda session: session.run("add"), Tell(interrupt_while_running))
    await anyio.lowlevel.checkpoint()
    say("not reached")


async def raised_by_the_event_loop() -> None:
    """An asyncio program in which a callback of the event loop raises KeyboardInterrupt, as a signal handler
    may."""

    def interrupt() -> None:
        raise KeyboardInterrupt

    async def body(session: MonitoredSession) -> None:
        await session.run("add")
        asyncio.get_running_loop().call_soon(interrupt)
        await anyio.sleep_forever()

    await told(body, Tell())


async def interrupt_in_a_node() -> None:
    """A run of two nodes, one of which raises KeyboardInterrupt in a task of the executor."""
    waiting = anyio.Event()

    async def wait() -> None:
        waiting.set()
        await anyio.sleep_forever()

    async def interrupt() -> None:
        await waiting.wait()
        await anyio.lowlevel.checkpoint()
        raise KeyboardInterrupt

    await told(lambda session: session.run([wait, interrupt]), Tell())


async def interrupt_in_background() -> None:
    """A background task that raises KeyboardInterrupt beside a body that waits for something else."""
    tell = Tell()

    async def interrupt() -> None:
        raise KeyboardInterrupt

    async def body(session: MonitoredSession) -> None:
        tell.coord.start_soon(interrupt)
        await anyio.sleep_forever()

    async with anyio.create_task_group() as group:
        await told(body, tell, task_group=group)


async def interrupt_in_an_end() -> None:
    """A hook whose `end` raises KeyboardInterrupt."""

    async def interrupt() -> None:
        raise KeyboardInterrupt

    await told(lambda session: session.run("add"), Tell(), Tell(interrupt))


def main(backend: str, scenario: str) -> None:
    """Runs a scenario and says what left it."""
    faulthandler.dump_traceback_later(40, exit=True)
    # A shell's background jobs, and so perhaps these tests, ignore SIGINT, and programs inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    options = {"use_uvloop": backend == "uvloop"} if backend != "trio" else {}
    try:
        anyio.run(
            globals()[scenario], backend="trio" if backend == "trio" else "asyncio", backend_options=options
        )
    except BaseException as error:
        say(f"left by {type(error).__name__}")
    else:
        say("left normally")


if __name__ == "__main__":
    main(*sys.argv[1:])
