"""SignalHook: signals end a session, gently first."""

from __future__ import annotations

import asyncio
import signal
import threading
from typing import TYPE_CHECKING, Any

from asyncstep._monitored.hook import SessionRunHook
from asyncstep._monitored.stop import StopKind, StopReason
from asyncstep._runtime.pace import runs_on_asyncio
from asyncstep.errors import FailedPreconditionError, InvalidArgumentError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import FrameType

    from asyncstep._monitored.coordinator import Coordinator
    from asyncstep._runtime.session import Session


class SignalHook(SessionRunHook):
    """The first signal stops the session; the second interrupts it at once (contract C6).

    After the first, steps in flight finish and commit. The second cancels the task that opened the
    session, or raises KeyboardInterrupt in it, whichever the event loop does on Ctrl-C; the session is
    closed all the same. The former handlers are put back when it is closed.

    Args:
        signals: which signals.

    Raises:
        InvalidArgumentError: no signals, or something that is none.
        FailedPreconditionError: at the opening, outside of the main thread, where Python takes no signals.
    """

    def __init__(self, signals: Iterable[int] = (signal.SIGINT, signal.SIGTERM)) -> None:
        try:
            self._signals = tuple(signal.Signals(number) for number in signals)
        except ValueError as error:
            raise InvalidArgumentError(f"SignalHook needs signals of this system: {error}") from None
        if not self._signals:
            raise InvalidArgumentError("SignalHook needs at least one signal")
        self._former: dict[int, Any] = {}
        self._received = 0

    async def after_create_session(self, session: Session, coord: Coordinator) -> None:  # noqa: ASYNC910 - no wait
        if self._former:
            return
        if threading.current_thread() is not threading.main_thread():
            raise FailedPreconditionError("SignalHook needs a session that is opened in the main thread")
        self._received = 0
        in_loop, interrupt = _on_asyncio() if runs_on_asyncio() else _on_trio()

        def handle(number: int, frame: FrameType | None) -> None:
            self._received += 1
            if self._received == 1:
                name = signal.Signals(number).name
                in_loop(lambda: coord.set_stop(StopReason(StopKind.SIGNAL, "", name)))
            else:
                interrupt(self._former.get(signal.SIGINT, signal.getsignal(signal.SIGINT)), frame)

        coord.call_when_closed(self._restore)
        for number in self._signals:
            self._former[number] = signal.signal(number, handle)

    def _restore(self) -> None:
        former, self._former = self._former, {}
        for number, handler in former.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)




def _on_asyncio() -> tuple[Callable[[Callable[[], None]], object], Callable[[Any, FrameType | None], None]]:
    """How to call a function in the event loop from a signal handler, and how to interrupt the session."""
    loop, host = asyncio.get_running_loop(), asyncio.current_task()
    assert host is not None

    def interrupt(sigint: Any, frame: FrameType | None) -> None:
        # The handler of asyncio.Runner cancels the main task and turns that into KeyboardInterrupt. Python's
        # own would raise it wherever the event loop is, past every `finally` of the session.
        if callable(sigint) and sigint is not signal.default_int_handler:
            sigint(signal.SIGINT, frame)
        else:
            loop.call_soon_threadsafe(host.cancel)

    return loop.call_soon_threadsafe, interrupt


def _on_trio() -> tuple[Callable[[Callable[[], None]], object], Callable[[Any, FrameType | None], None]]:
    import trio

    token = trio.lowlevel.current_trio_token()

    def interrupt(sigint: Any, frame: FrameType | None) -> None:
        (sigint if callable(sigint) else signal.default_int_handler)(signal.SIGINT, frame)

    return token.run_sync_soon, interrupt
