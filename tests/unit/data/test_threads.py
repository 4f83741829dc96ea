"""Functions in worker threads: one at a time, whatever becomes of who waits for them."""

from __future__ import annotations

import threading
from typing import Any

import anyio
import anyio.from_thread
import anyio.to_thread
import pytest

from asyncstep.data.threads import ThreadWork, _Call

in_every_loop = pytest.mark.anyio
LONG = 10.0  # seconds that no test waits for if all is well


class Held:
    """A function that notes when it begins and ends, and waits in between until the test lets it go on."""

    def __init__(self, journal: list[str], name: str) -> None:
        self.journal = journal
        self.name = name
        self.begun = anyio.Event()
        self.go_on = threading.Event()
        self.over = threading.Event()
        self.thread = threading.current_thread()

    def __call__(self) -> None:
        self.thread = threading.current_thread()
        self.journal.append(f"{self.name} begins")
        anyio.from_thread.run_sync(self.begun.set)
        assert self.go_on.wait(LONG)
        self.journal.append(f"{self.name} ends")
        self.over.set()


@in_every_loop
async def test_a_function_is_called_in_another_thread() -> None:
    """`run` returns when the function is over."""
    work = ThreadWork()
    threads: list[threading.Thread] = []
    assert not work.busy
    for _ in range(3):
        await work.run(lambda: threads.append(threading.current_thread()))
        assert not work.busy
    await work.idle()
    await work.wait(lambda: False)
    assert len(threads) == 3
    assert threading.current_thread() not in threads


@in_every_loop
async def test_the_next_call_begins_when_one_is_over_that_nobody_waits_for() -> None:
    """A thread goes on when the task that waits for it is cancelled; no two calls overlap."""
    work = ThreadWork()
    journal: list[str] = []
    first, second = Held(journal, "first"), Held(journal, "second")
    second.go_on.set()
    async with anyio.create_task_group() as group:
        group.start_soon(work.run, first)
        await first.begun.wait()
        group.cancel_scope.cancel()
    assert work.busy
    async with anyio.create_task_group() as group:
        group.start_soon(work.run, second)
        await anyio.wait_all_tasks_blocked()
        assert journal == ["first begins"]
        first.go_on.set()
    assert journal == ["first begins", "first ends", "second begins", "second ends"]
    assert not work.busy


@in_every_loop
async def test_a_task_that_is_let_go_does_not_wait_for_the_rest() -> None:
    """`let_go` ends the waits that are under way, of `run` and of `wait`; later waits are let go anew."""
    work = ThreadWork()
    reached = [threading.Event() for _ in range(3)]
    go_on = [threading.Event() for _ in range(3)]

    def read() -> None:
        for at in range(3):
            reached[at].set()
            assert go_on[at].wait(LONG)
            work.let_go()

    async with anyio.create_task_group() as group:
        group.start_soon(work.run, read)
        await anyio.to_thread.run_sync(reached[0].wait)
        go_on[0].set()
    assert work.busy
    await anyio.to_thread.run_sync(reached[1].wait)
    await work.wait(lambda: True)
    async with anyio.create_task_group() as group:
        group.start_soon(work.wait, lambda: False)
        group.start_soon(work.wait, lambda: False)
        await anyio.wait_all_tasks_blocked()
        go_on[1].set()
    assert work.busy
    async with anyio.create_task_group() as group:
        group.start_soon(work.wait, lambda: False)
        group.start_soon(work.idle)
        go_on[2].set()
    assert not work.busy
    await work.wait(lambda: False)


@in_every_loop
async def test_a_call_that_was_cancelled_before_it_began_is_not_made() -> None:
    """Nothing runs for a task that has gone before the thread was there."""
    work = ThreadWork()
    journal: list[str] = []
    with anyio.CancelScope() as scope:
        scope.cancel()
        await work.run(lambda: journal.append("cancelled"))
    assert not work.busy
    late = _Call(lambda: journal.append("late"))
    late.leave()
    late()
    await work.run(lambda: journal.append("next"))
    assert journal == ["next"]


@in_every_loop
async def test_an_error_reaches_the_task_that_waits() -> None:
    """What the function does not keep is raised, and the next call is made."""
    work = ThreadWork()

    def fail() -> None:
        raise OSError("boom")

    with pytest.raises(OSError, match="boom"):
        await work.run(fail)
    assert not work.busy
    await work.run(lambda: None)


def test_a_thread_may_outlive_the_event_loop(anyio_backend: tuple[str, dict[str, Any]]) -> None:
    """A thread that was left behind ends without an error when nobody is there to be told."""
    journal: list[str] = []

    async def main() -> Held:
        work, held = ThreadWork(), Held(journal, "call")
        async with anyio.create_task_group() as group:
            group.start_soon(work.run, held)
            await held.begun.wait()
            group.cancel_scope.cancel()
        return held

    backend, options = anyio_backend
    held = anyio.run(main, backend=backend, backend_options=options)
    held.go_on.set()
    assert held.over.wait(LONG)
    if backend == "asyncio":  # trio keeps its threads for a while, for others
        held.thread.join(LONG)
        assert not held.thread.is_alive()
    assert journal == ["call begins", "call ends"]
