"""Processes of a local cluster take no signals of the terminal: who has launched the programs passes them on.

Ctrl-C goes to every process of the terminal's foreground group, and what stops a service often to all of its
processes. Those that the programs run in would die of it, where their steps are to be finished.
"""

from __future__ import annotations

import signal
from contextlib import contextmanager
from multiprocessing import resource_tracker
from typing import TYPE_CHECKING, Any

from distributed.diagnostics.plugin import WorkerPlugin
from distributed.utils import LoopRunner

if TYPE_CHECKING:
    from collections.abc import Iterator

    from distributed import Worker

SIGNALS = (signal.SIGINT, signal.SIGTERM)


def deaf_plugin() -> Any:
    """A plugin of Dask workers that makes their processes deaf to signals."""
    return _Deaf()


class _Deaf(WorkerPlugin):  # type: ignore[misc]  # distributed has no types
    """Has the process of a Dask worker do nothing on these signals."""

    name = "asyncstep-deaf"

    def setup(self, worker: Worker) -> None:
        """The process has begun."""
        # A handler, and not SIG_IGN: that would be inherited by what the programs start.
        for number in SIGNALS:
            signal.signal(number, lambda *_: None)
        if hasattr(signal, "pthread_sigmask"):
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


@contextmanager
def deaf_loop() -> Iterator[LoopRunner]:
    """An event loop in a thread; the processes that are started in it are deaf until they have that plugin."""
    runner = LoopRunner()
    if hasattr(signal, "pthread_sigmask"):
        # A process begins with the signals blocked that are blocked in the thread which starts it, and a thread
        # likewise. The process that multiprocessing has beside them is started first: that unblocks them.
        resource_tracker.ensure_running()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            runner.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    else:
        runner.start()
    try:
        yield runner
    finally:
        runner.stop()
