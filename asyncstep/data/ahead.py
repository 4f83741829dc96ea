"""ReadAhead: keeps items of a stream read before steps ask for them, in a task of the session."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import anyio
import anyio.lowlevel

from asyncstep.errors import FailedPreconditionError, SessionClosedError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from asyncstep.data.stream import Stream

TURN_EVERY = 256


class StartSoon(Protocol):
    """Starts a background task of the session (`Coordinator.start_soon`)."""

    def __call__(
        self, async_fn: Callable[..., Awaitable[Any]], *args: Any, name: str | None = None
    ) -> None: ...


class ReadAhead:
    """Reads a stream on until `size` entries are in its queue, and again when half of them are taken.

    The task is started when a step first waits for an item. Where there is no task group for it, steps
    read the items of a sequence or an iterable themselves, some ahead; those of an async iterable cannot
    be read ahead (contract L8).
    """

    def __init__(self, stream: Stream, size: int, name: str) -> None:
        self._stream = stream
        self._size = size
        self._name = name
        self._running = False
        self._cancelled = False
        self._scope = anyio.CancelScope()
        self._ended = anyio.Event()
        self._wanted = 0
        self._enough: anyio.Event | None = None
        self._room: anyio.Event | None = None

    async def more(self, want: int, start_soon: StartSoon | None) -> None:
        """Wait until something has been read, of so many items that are wanted; the queue is empty.

        Raises:
            FailedPreconditionError (a RuntimeError): there is no task group to read ahead in.

        Checkpoint: always.
        """
        stream = self._stream
        # A thread that reads looks at `wanted` when it has read something: what it reads from now on it tells.
        self._wanted = stream.wanted = min(want, self._size)
        if stream.hand_over():
            return
        if self._running or self._start(start_soon):
            self._enough = enough = anyio.Event()
            self.taken()
            await enough.wait()
            if not self._cancelled:
                return
            self._cancelled = False
            if stream.needs_task:
                raise FailedPreconditionError(
                    f"the task that reads ahead for the source {self._name!r} was cancelled with its task group;"
                    " the task group of a session has to stay open as long as the session"
                )
        try:
            await stream.pull(self._size)
        finally:
            stream.wanted = 0

    def taken(self) -> None:
        """Items were taken from the queue: read on, if there is room for some."""
        if self._room is not None and len(self._stream.queue) * 2 <= self._size:
            self._room.set()
            self._room = None

    def let_go(self) -> bool:
        """Let the step go on that waits for the task; False if there is none."""
        if self._enough is None:
            return False
        self._wake()
        return True

    def _start(self, start_soon: StartSoon | None) -> bool:
        """Start the task; False if there can be none, and there need not be one."""
        self._stream.prepare()
        if start_soon is not None:
            self._scope, self._ended, self._cancelled = anyio.CancelScope(), anyio.Event(), False
            try:
                start_soon(self._run, name=f"read ahead for the source {self._name!r}")
                self._running = True
                return True
            except RuntimeError as error:
                if isinstance(error, SessionClosedError) and self._stream.needs_task:
                    raise
        if not self._stream.needs_task:
            return False
        raise FailedPreconditionError(
            f"the source {self._name!r} is to read {self._size} items ahead from an async iterable, which needs a"
            " background task, and that a task group: give one to the session, as"
            " MonitoredSession(task_group=...), or use session.loop, which opens one; or leave out prefetch"
        )

    async def _run(self) -> None:
        """The task."""
        try:
            with self._scope:
                await self._fill()
        except anyio.get_cancelled_exc_class():
            self._cancelled = True
            raise
        finally:
            self._running = False
            self._room = None
            self._ended.set()
            self._wake()

    async def _fill(self) -> None:
        stream, queue = self._stream, self._stream.queue
        turn = 0
        while not stream.over:
            while len(queue) < self._size and not (stream.over or stream.failed):
                stream.wanted = 0 if self._enough is None else max(1, self._wanted - len(queue))
                await stream.pull(self._size - len(queue))
                if self._enough is not None and (len(queue) >= self._wanted or stream.over or stream.failed):
                    self._wake()
                turn += 1
                if not turn % TURN_EVERY:
                    await anyio.lowlevel.checkpoint()
            if not stream.over:
                self._room = anyio.Event()
                await self._room.wait()

    def _wake(self) -> None:
        if self._enough is not None:
            self._enough.set()
            self._enough = None
            self._stream.wanted = 0

    def stop(self) -> None:
        """Read no more; a step that still asks starts it again."""
        self._stream.stop()
        self._scope.cancel()

    async def wait_stopped(self) -> None:
        """Wait until it has stopped. Checkpoint: if it has not."""
        if self._running:
            await self._ended.wait()
