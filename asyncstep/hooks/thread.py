"""ThreadHook: hooks that block, kept off the event loop."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from contextvars import ContextVar, copy_context
from functools import partial
from typing import Any, Final, TypeVar

import anyio
import anyio.from_thread
import anyio.lowlevel
import anyio.to_thread

from asyncstep._monitored.coordinator import Coordinator
from asyncstep._monitored.hook import SessionRunArgs, SessionRunContext, SessionRunHook, SessionRunValues
from asyncstep._monitored.stop import raise_as_is
from asyncstep._runtime.session import Session
from asyncstep._runtime.state import Stateful
from asyncstep.errors import InvalidTypeError, kind_of

__all__ = ["ThreadHook"]

T = TypeVar("T")

POINTS: Final = tuple(point for point in vars(SessionRunHook) if not point.startswith("_"))


class ThreadHook(SessionRunHook):
    """Run a hook that blocks in a worker thread.

    Args:
        hook: an object with some of the methods of a `SessionRunHook`, as plain functions: ``def after_run(self,
            run_context, run_values)`` and so on. A method that it does not have costs no thread.

    The session goes on as it does with any hook: a step waits for the calls that are made for it, an error of a
    call is an error of the hook, and other workers' steps run meanwhile. The calls are made one at a time, in the
    order in which they were asked for. Context variables of the step are seen in the thread, and what
    `before_run` sets there is seen by the step's ops (contract R11).

    `run_context`, `session` and `coord` are of the event loop. The thread is given stand-ins, whose methods run
    in the loop and give their results: ``run_context.request_stop()``, ``loss = session.run("loss")``.

    A call that is running cannot be cancelled. Whoever waits for it goes on waiting, closing included, also past
    its grace period: no call is under way when the session has ended. The cancellation follows then.

    Raises:
        InvalidTypeError: `hook` has no method of a hook, one that is async, or a `state_dict`, which would be
            read while a call is changing it.
    """

    def __init__(self, hook: object) -> None:
        self._methods = _plain_methods(hook)

    async def begin(self) -> None:
        """Call the hook's `begin`, if it has one."""
        self._limiter = anyio.CapacityLimiter(1)  # not the one of ops, which may all be at work
        self._last = anyio.Event()
        self._last.set()
        await self._call("begin")

    async def after_create_session(self, session: Session, coord: Coordinator) -> None:
        """Call the hook's `after_create_session`, if it has one."""
        await self._call("after_create_session", session, coord)

    async def before_run(self, run_context: SessionRunContext) -> SessionRunArgs | None:
        """Call the hook's `before_run`, if it has one."""
        args: SessionRunArgs | None = await self._call("before_run", run_context)
        return args

    async def before_commit(self, run_context: SessionRunContext, run_values: SessionRunValues) -> None:
        """Call the hook's `before_commit`, if it has one."""
        await self._call("before_commit", run_context, run_values)

    async def after_run(self, run_context: SessionRunContext, run_values: SessionRunValues) -> None:
        """Call the hook's `after_run`, if it has one."""
        await self._call("after_run", run_context, run_values)

    async def on_run_error(self, run_context: SessionRunContext, error: BaseException) -> None:
        """Call the hook's `on_run_error`, if it has one."""
        await self._call("on_run_error", run_context, error)

    async def end(self, session: Session) -> None:
        """Call the hook's `end`, if it has one."""
        await self._call("end", session)

    async def on_session_error(self, session: Session, error: BaseException) -> None:
        """Call the hook's `on_session_error`, if it has one."""
        await self._call("on_session_error", session, error)

    async def _call(self, point: str, *args: object) -> Any:
        method = self._methods.get(point)
        if method is None:
            return None
        call = partial(_with_changes, method, [_stand_in(each) for each in args])
        before, self._last = self._last, anyio.Event()
        over = self._last

        async def in_turn() -> tuple[Any, Changes]:
            try:
                await before.wait()
                return await anyio.to_thread.run_sync(call, limiter=self._limiter)
            finally:
                over.set()

        result, changes = await _to_the_end(in_turn)
        for variable, value in changes.items():
            variable.set(value)
        return result


class InLoop:
    """An object of the event loop, as a worker thread sees it: its methods run in the loop, and return."""

    __slots__ = ("_object",)

    def __init__(self, of: object) -> None:
        self._object = of

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._object, name)
        if inspect.ismethod(value):
            run = anyio.from_thread.run if inspect.iscoroutinefunction(value) else anyio.from_thread.run_sync
            return lambda *args, **kwargs: run(partial(value, *args, **kwargs))
        return _stand_in(value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, InLoop) and other._object is self._object

    def __hash__(self) -> int:
        return hash(self._object)

    def __repr__(self) -> str:
        return f"<{self._object!r} in the event loop>"


def _stand_in(value: object) -> object:
    return InLoop(value) if isinstance(value, (SessionRunContext, Session, Coordinator)) else value


_MISSING: Final = object()
Changes = dict[ContextVar[Any], Any]


def _with_changes(method: Callable[..., Any], args: list[object]) -> tuple[Any, Changes]:
    """Call a method; what it returns, and the context variables that it has set."""
    before = copy_context()
    result = method(*args)
    after = copy_context()
    return result, {each: after[each] for each in after if before.get(each, _MISSING) is not after[each]}


async def _to_the_end(work: Callable[[], Awaitable[T]]) -> T:
    """Await something to its end: neither scopes nor native cancels are raised before.

    It is awaited in a task of its own: a native cancel, which pierces shields, reaches only this one.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    async def shielded() -> None:
        with anyio.CancelScope(shield=True):
            try:
                results.append(await work())
            except anyio.get_cancelled_exc_class():
                raise
            except BaseException as error:
                errors.append(error)

    try:
        async with anyio.create_task_group() as group:  # noqa: ASYNC112 - no native cancel reaches a child
            group.start_soon(shielded)
        await anyio.lowlevel.checkpoint_if_cancelled()
    finally:
        if errors:
            raise_as_is(errors.pop())  # an error goes before a cancellation (contract C1)
    return results.pop()


def _plain_methods(hook: object) -> dict[str, Callable[..., Any]]:
    """The methods of a hook that is to run in a thread, by their names."""
    name = type(hook).__name__
    found = {point: getattr(hook, point) for point in POINTS if hasattr(hook, point)}
    if not found or isinstance(hook, type):
        raise InvalidTypeError(
            f"ThreadHook needs an object with methods of a hook ({', '.join(POINTS)}), got {kind_of(hook)}"
        )
    for point, method in found.items():
        if inspect.iscoroutinefunction(method):
            raise InvalidTypeError(
                f"ThreadHook: {name}.{point} is `async def`, and a thread runs plain functions; if nothing in"
                " it blocks, give the hook to the session as it is"
            )
    if isinstance(hook, Stateful):
        raise InvalidTypeError(
            f"ThreadHook: {name} has a state_dict, which a checkpoint would read while a call is changing it;"
            " keep the state in a variable"
        )
    return found
