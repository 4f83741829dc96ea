"""A launch for a command: its first signal is a stop, the second an interrupt (contract C6)."""

from __future__ import annotations

import signal
from contextlib import contextmanager
from itertools import count
from typing import TYPE_CHECKING, Any

from asyncstep.distributed.clusters import connected
from asyncstep.distributed.deaf import SIGNALS
from asyncstep.distributed.launching import Running, check_launch, make_job

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

    from asyncstep.distributed.launching import Program


def launch_until_signal(
    program: Program,
    cluster: str | None,
    *,
    workers: int,
    backend: str,
    timeout: float | None = None,
) -> tuple[list[Any], signal.Signals | None]:
    """`launch` in the main thread; what it returns, and the signal that has stopped the programs, if one has.

    The first SIGINT or SIGTERM stops the sessions of the programs, and the programs are waited for. At the second
    they are cancelled and waited for; at the third nobody is.

    Raises:
        KeyboardInterrupt: at the second signal; its argument is the signal.
        Exception: what `launch` raises.
    """
    check_launch(program, cluster, workers, backend, timeout)
    with connected(cluster, workers) as client:
        running = Running(client, make_job(client, program, workers, backend))
        with _passing_on(running) as received:
            results = running.finish(timeout)
        return results, received[0] if received else None


@contextmanager
def _passing_on(running: Running) -> Iterator[list[signal.Signals]]:
    """Take signals; those that came are in the list."""
    received: list[signal.Signals] = []
    numbers = count(1)
    stopped = False

    def handle(number: int, _: FrameType | None) -> None:
        # Another signal may come, and be handled, between any two of these operations.
        nonlocal stopped
        is_first = next(numbers) == 1
        received.append(signal.Signals(number))
        if is_first:
            running.stop("signal", "", received[0].name)
            stopped = True
        if len(received) > 1 and stopped:  # one that comes in the middle of the first lets that be done
            restore()
            raise KeyboardInterrupt(received[-1])

    def restore() -> None:
        for number, handler in former.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        former.clear()

    former = {number: signal.signal(number, handle) for number in SIGNALS}
    try:
        yield received
    finally:
        restore()
