"""SignalHook: signals end a session, gently first."""

from __future__ import annotations

import asyncio
import functools
import logging
import signal
import threading
from typing import TYPE_CHECKING, Any

from asyncstep._monitored.company import current_engine
from asyncstep._monitored.hook import SessionRunHook
from asyncstep._monitored.stop import StopKind, StopReason
from asyncstep._runtime.pace import runs_on_asyncio
from asyncstep.errors import FailedPreconditionError, InvalidArgumentError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import FrameType

    from asyncstep._monitored.coordinator import Coordinator
    from asyncstep._runtime.session import Session

    Interrupt = Callable[[FrameType | None], None]

logger: logging.Logger = logging.getLogger("asyncstep")


class SignalHook(SessionRunHook):
    """The first signal stops the session; the second interrupts it at once (contract C6).

    After the first, steps in flight finish and commit. The second cancels the task that opened the
    session, or raises KeyboardInterrupt in the main task, whichever the event loop does on Ctrl-C; the
    session is closed all the same. Where several sessions listen, a signal reaches each of them. The
    former handlers are put back when the last of them is closed. In a program that
    `asyncstep.distributed.launch` runs, which has a thread of its process, it does nothing: there the command
    ``asyncstep launch`` takes the signals.

    Args:
        signals: which signals.

    Raises:
        InvalidArgumentError: no signals, or something that is none.
        FailedPreconditionError: at the opening, outside of the main thread, where Python takes no signals.
    """

    def __init__(self, signals: Iterable[int] = (signal.SIGINT, signal.SIGTERM)) -> None:
        try:
            self._signals = tuple(dict.fromkeys(signal.Signals(number) for number in signals))
        except ValueError as error:
            raise InvalidArgumentError(f"SignalHook needs signals of this system: {error}") from None
        if not self._signals:
            raise InvalidArgumentError("SignalHook needs at least one signal")
        self._listener: _Listener | None = None

    async def after_create_session(self, session: Session, coord: Coordinator) -> None:  # noqa: ASYNC910 - no wait
        if self._listener is not None:
            return  # a recovery
        if threading.current_thread() is not threading.main_thread():
            if current_engine.get() is not None:
                logger.info(
                    "launch takes the signals of its programs, and passes them on; SignalHook takes none here"
                )
                return
            raise FailedPreconditionError("SignalHook needs a session that is opened in the main thread")
        self._listener = listener = _Listener(coord)
        coord.call_when_closed(self._leave)
        for number in self._signals:
            _join(number, listener)

    def _leave(self) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            for number in self._signals:
                _leave(number, listener)


class _Listener:
    """A session that gets signals: a stop at the first, an interrupt at each further one."""

    def __init__(self, coord: Coordinator) -> None:
        self._coord = coord
        self._received = False
        self._in_loop, self.interrupt = _on_asyncio() if runs_on_asyncio() else _on_trio()

    def receive(self, number: int) -> bool:
        """Take a signal; whether it is to interrupt."""
        again, self._received = self._received, True
        if not again:
            reason = StopReason(StopKind.SIGNAL, "", signal.Signals(number).name)
            self._in_loop(lambda: self._coord.set_stop(reason))
        return again


# The handlers belong to the process, and sessions end in any order (contract L7): so the process has one
# list of listeners for a signal, and the handler from before all of them.
_listeners: dict[int, list[_Listener]] = {}
_former: dict[int, Any] = {}


def _join(number: int, listener: _Listener) -> None:
    listeners = _listeners.setdefault(number, [])
    listeners.append(listener)
    if len(listeners) == 1:
        _former[number] = signal.signal(number, _handle)


def _leave(number: int, listener: _Listener) -> None:
    listeners = _listeners[number]
    listeners.remove(listener)
    if not listeners:
        former = _former.pop(number)
        signal.signal(number, signal.SIG_DFL if former is None else former)


def _handle(number: int, frame: FrameType | None) -> None:
    interrupts = [listener.interrupt for listener in _listeners[number] if listener.receive(number)]
    for interrupt in dict.fromkeys(interrupts):
        interrupt(frame)


def _sigint() -> Any:
    """The handler of SIGINT that was there before all sessions."""
    return _former[signal.SIGINT] if signal.SIGINT in _former else signal.getsignal(signal.SIGINT)


def _on_asyncio() -> tuple[Callable[[Callable[[], None]], object], Interrupt]:
    """How to call a function in the event loop from a signal handler, and how to interrupt a session."""
    loop, host = asyncio.get_running_loop(), asyncio.current_task()
    assert host is not None

    def cancel(_: FrameType | None) -> None:
        loop.call_soon_threadsafe(host.cancel)

    # The handler of asyncio.Runner cancels the main task, and turns that into KeyboardInterrupt at its end.
    # Python's own raises it wherever the event loop is, past every `finally` of the session.
    sigint = _sigint()
    runner = getattr(sigint.func, "__self__", None) if isinstance(sigint, functools.partial) else None
    return loop.call_soon_threadsafe, _as_sigint if isinstance(runner, asyncio.Runner) else cancel


def _on_trio() -> tuple[Callable[[Callable[[], None]], object], Interrupt]:
    """The same on trio, whose own handler raises KeyboardInterrupt in the main task, or in what runs."""
    import trio

    token = trio.lowlevel.current_trio_token()
    sigint = _sigint()
    if getattr(sigint, "__module__", "").startswith("trio."):
        return token.run_sync_soon, _as_sigint

    def deliver(_: FrameType | None) -> None:
        token.run_sync_soon(trio._core._run.GLOBAL_RUN_CONTEXT.runner.deliver_ki)

    return token.run_sync_soon, deliver


def _as_sigint(frame: FrameType | None) -> None:
    """Do what the event loop does on Ctrl-C."""
    _sigint()(signal.SIGINT, frame)
