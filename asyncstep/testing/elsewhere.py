"""What works outside of the event loop, for which virtual time stands still."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import anyio.to_process
import anyio.to_thread

from asyncstep.checkpoint.saver import saves_in_flight

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future


class Elsewhere:
    """Tells one event loop whether threads or worker processes work for it.

    Args:
        wake: called, from any thread, when something has ended that no task waits for.
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._watched: WeakSet[Future[Any]] = WeakSet()

    def works(self) -> bool:
        """Whether a thread or a process of anyio's works, or a checkpoint is being written."""
        for save in tuple(saves_in_flight):
            if save not in self._watched:
                self._watched.add(save)
                save.add_done_callback(lambda _: self._wake())
        return (
            bool(saves_in_flight)
            or anyio.to_thread.current_default_thread_limiter().borrowed_tokens > 0
            or anyio.to_process.current_default_process_limiter().borrowed_tokens > 0
        )
