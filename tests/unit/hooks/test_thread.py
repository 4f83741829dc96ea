"""`ThreadHook`: where a blocking hook runs, what it may do there, and what a cancellation does to it."""

from __future__ import annotations

import asyncio
import threading
from contextvars import ContextVar
from typing import Any

import anyio
import anyio.to_thread
import pytest

from asyncstep import (
    Graph,
    MonitoredSession,
    SessionRunArgs,
    SessionRunHook,
    StepContext,
    StopKind,
    Variable,
    get_default_graph,
    op,
    placeholder,
)
from asyncstep._runtime.pace import runs_on_asyncio
from asyncstep.errors import DeadlineExceededError, InvalidTypeError
from asyncstep.hooks import ThreadHook

pytestmark = pytest.mark.anyio


async def step() -> None:
    """A step that does nothing."""


class Journal:
    """A hook that writes down which of its methods was called, and that it was not in the event loop's thread."""

    def __init__(self) -> None:
        self.loop_thread = threading.get_ident()
        self.calls: list[str] = []

    def _note(self, call: str) -> None:
        assert threading.get_ident() != self.loop_thread
        self.calls.append(call)

    def begin(self) -> None:
        self._note("begin")

    def after_create_session(self, session: Any, coord: Any) -> None:
        self._note("after_create_session")

    def before_run(self, run_context: Any) -> None:
        self._note("before_run")

    def before_commit(self, run_context: Any, run_values: Any) -> None:
        self._note("before_commit")

    def after_run(self, run_context: Any, run_values: Any) -> None:
        self._note(f"after_run {run_values.global_step}")

    def on_run_error(self, run_context: Any, error: BaseException) -> None:
        self._note(f"on_run_error {error!r}")

    def end(self, session: Any) -> None:
        self._note("end")

    def on_session_error(self, session: Any, error: BaseException) -> None:
        self._note(f"on_session_error {error!r}")


async def test_every_method_is_called_in_a_thread() -> None:
    """Each point of a session and of its runs reaches the hook, in the same order, off the event loop."""
    journal = Journal()

    async def fails() -> None:
        raise ZeroDivisionError

    with Graph():
        session = MonitoredSession(hooks=[ThreadHook(journal)])
    async with session:
        await session.run(step)
        with pytest.raises(ZeroDivisionError):
            await session.run(fails)
    assert journal.calls == [
        "begin",
        "after_create_session",
        *("before_run", "before_commit", "after_run 1"),
        *("before_run", "on_run_error ZeroDivisionError()"),
        "end",
    ]


async def test_an_error_of_the_session_is_told() -> None:
    """on_session_error is called in place of end, with the error."""
    journal = Journal()
    with Graph():
        session = MonitoredSession(hooks=[ThreadHook(journal)])

    async def fail() -> None:
        async with session:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    assert journal.calls[-1] == "on_session_error ZeroDivisionError()"


async def test_a_hook_may_add_to_the_graph_and_to_a_run() -> None:
    """begin sees the default graph, and what before_run returns is asked for as from any hook."""
    seen: list[Any] = []

    class Feeding:
        def begin(self) -> None:
            self.fed = placeholder("fed")
            assert self.fed.graph is get_default_graph()

        def before_run(self, run_context: Any) -> SessionRunArgs:
            return SessionRunArgs({"fed": self.fed}, {self.fed: run_context.attempt})

        def after_run(self, run_context: Any, run_values: Any) -> None:
            seen.append(run_values.results)

    with Graph():
        session = MonitoredSession(hooks=[ThreadHook(Feeding())])
    async with session:
        await session.run(step)
    assert seen == [{"fed": 1}]


async def test_what_is_of_the_event_loop_is_used_from_the_thread() -> None:
    """The methods of session, coord and run_context run in the loop, join the step, and give their results."""
    seen: list[Any] = []
    contexts: list[Any] = []

    class Stopping:
        def after_create_session(self, session: Any, coord: Any) -> None:
            seen.append((session.run("total"), coord.should_stop()))

        def before_run(self, run_context: Any) -> None:
            contexts.append(run_context)

        def before_commit(self, run_context: Any, run_values: Any) -> None:
            contexts.append(run_context)
            seen.append(run_context.session.run("total"))  # the step's own write (contract T1)

        def after_run(self, run_context: Any, run_values: Any) -> None:
            seen.append((run_context.stop_requested, run_context.worker))
            run_context.request_stop("enough")

    with Graph():
        add = Variable(1, name="total").assign_add(1)
        session = MonitoredSession(hooks=[ThreadHook(Stopping())])
    async with session:
        await session.run(add)
    assert seen == [(1, False), 2, (False, 0)]
    assert session.stop_reason is not None
    assert (session.stop_reason.kind, session.stop_reason.message) == (StopKind.HOOK, "enough")
    assert contexts[0] == contexts[1]
    assert len(set(contexts)) == 1


variable: ContextVar[str] = ContextVar("variable", default="nothing")


async def test_context_variables_go_there_and_back() -> None:
    """The thread sees the step's context variables, and the ops see what before_run sets there (contract R11)."""
    seen: list[str] = []

    class Setting:
        def before_run(self, run_context: Any) -> None:
            seen.append(variable.get())
            variable.set("by the hook")

    async def read() -> str:
        return variable.get()

    with Graph():
        in_thread = op(offload="thread")(variable.get)()
        session = MonitoredSession(hooks=[ThreadHook(Setting())])
    async with session:
        variable.set("by the caller")
        assert await session.run([read, in_thread]) == ["by the hook", "by the hook"]
    assert seen == ["by the caller"]


async def test_calls_are_made_one_at_a_time_and_in_order() -> None:
    """With eight workers no two calls overlap, and after_run is called in the order of the commits."""
    steps: list[int] = []
    under_way = threading.Lock()

    class Slow:
        def after_run(self, run_context: Any, run_values: Any) -> None:
            assert under_way.acquire(blocking=False)
            steps.append(run_values.global_step)
            under_way.release()

    async def work(ctx: StepContext) -> None:
        await ctx.run_with_hooks(anyio.lowlevel.checkpoint)
        if session.global_step >= 100:
            ctx.request_stop()

    with Graph():
        session = MonitoredSession(hooks=[ThreadHook(Slow())])
    async with session:
        await session.loop(work, workers=8)
    assert steps == list(range(1, session.global_step + 1))


async def test_the_event_loop_goes_on_meanwhile() -> None:
    """While a call blocks, other tasks of the loop run; the step waits for the call."""
    go_on = threading.Event()

    class Blocking:
        def after_run(self, run_context: Any, run_values: Any) -> None:
            assert go_on.wait(10)

    with Graph():
        session = MonitoredSession(hooks=[ThreadHook(Blocking())])
    done: list[str] = []

    async def run() -> None:
        await session.run(step)
        done.append("step")

    async with session, anyio.create_task_group() as tasks:
        tasks.start_soon(run)
        await anyio.wait_all_tasks_blocked()
        done.append("other")
        go_on.set()
    assert done == ["other", "step"]


async def test_an_error_of_a_call_is_the_hooks() -> None:
    """before_commit refuses a step from the thread, with the very error that it raised."""
    refusal = ZeroDivisionError("no")

    class Refusing:
        def before_commit(self, run_context: Any, run_values: Any) -> None:
            raise refusal

    with Graph():
        total = Variable(0, name="total")
        add = total.assign_add(1)
        session = MonitoredSession(hooks=[ThreadHook(Refusing())])
    async with session:
        with pytest.raises(ZeroDivisionError) as caught:
            await session.run(add)
        assert caught.value is refusal
        assert await session.run_without_hooks(total) == 0


class Held:
    """A hook whose calls last until they are let go."""

    def __init__(self, *points: str) -> None:
        self.entered, self.go_on = threading.Event(), threading.Event()
        self.calls: list[str] = []
        for point in points:
            setattr(self, point, lambda *args, point=point: self._hold(point))

    def _hold(self, point: str) -> None:
        self.entered.set()
        assert self.go_on.wait(10)
        self.calls.append(point)


@pytest.mark.parametrize("native", [False, True])
async def test_a_cancellation_waits_for_the_call(native: bool) -> None:
    """Cancelled while a call runs, by a scope or natively, a step ends when the call has; then it is cancelled."""
    native = native and runs_on_asyncio()
    held = Held("before_run", "on_run_error")
    calls_at_cancel: list[list[str]] = []
    with Graph():
        session = MonitoredSession(hooks=[ThreadHook(held)])

    async def cancelled() -> None:
        try:
            await session.run(step)
        except anyio.get_cancelled_exc_class():
            calls_at_cancel.append(list(held.calls))
            raise

    async with session, anyio.create_task_group() as tasks:
        if native:
            task = asyncio.ensure_future(cancelled())
            cancel = task.cancel
        else:
            scope = anyio.CancelScope()

            async def in_scope() -> None:
                with scope:
                    await cancelled()

            tasks.start_soon(in_scope)
            cancel = scope.cancel
        await anyio.to_thread.run_sync(held.entered.wait)
        cancel()
        await anyio.wait_all_tasks_blocked()
        before = list(held.calls)
        held.go_on.set()
        if native:
            with pytest.raises(asyncio.CancelledError):
                await task
    assert (before, calls_at_cancel) == ([], [["before_run", "on_run_error"]])


async def test_closing_waits_for_a_call_also_past_the_grace_period() -> None:
    """No call is under way when the session has ended; that it took too long is said by a TimeoutError."""
    held = Held("end")
    with Graph():
        session = MonitoredSession(hooks=[ThreadHook(held)], stop_grace_period=0.01)

    async def let_go() -> None:
        await anyio.to_thread.run_sync(held.entered.wait)
        await anyio.sleep(0.02)
        held.go_on.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(let_go)
        with pytest.raises(DeadlineExceededError, match=r"ThreadHook\.end"):
            async with session:
                pass
        calls = list(held.calls)
    assert calls == ["end"]


async def test_an_error_goes_before_a_cancellation() -> None:
    """A call that fails while its step is being cancelled: the error is raised (contract C1)."""
    entered, go_on = threading.Event(), threading.Event()

    class Failing:
        def before_run(self, run_context: Any) -> None:
            entered.set()
            assert go_on.wait(10)
            raise ZeroDivisionError

    with Graph():
        session = MonitoredSession(hooks=[ThreadHook(Failing())])
    scope = anyio.CancelScope()

    async def run() -> None:
        with scope:
            with pytest.raises(ZeroDivisionError):
                await session.run(step)

    async with session, anyio.create_task_group() as tasks:
        tasks.start_soon(run)
        await anyio.to_thread.run_sync(entered.wait)
        scope.cancel()
        go_on.set()


class AsyncHook(SessionRunHook):
    """A hook of the event loop."""


class WithState:
    """A hook with a state."""

    def end(self, session: Any) -> None:
        pass

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Any) -> None:
        pass


@pytest.mark.parametrize(
    ("hook", "message"),
    [
        (None, "with methods of a hook"),
        (object(), "with methods of a hook"),
        (Journal, "with methods of a hook"),
        (AsyncHook(), "AsyncHook.begin is `async def`"),
        (WithState(), "WithState has a state_dict"),
    ],
)
def test_what_cannot_run_in_a_thread_is_refused(hook: object, message: str) -> None:
    """No hook at all, a class, async methods and a state are a TypeError at construction."""
    with pytest.raises(InvalidTypeError, match=message):
        ThreadHook(hook)
