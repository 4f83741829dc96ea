"""How a process is killed at its n-th event: the n is random and seeded, the instant is anywhere in its work.

Events are what the program says are some by `Mortality.event`, every operation of a saver on its files, and
what Python audits of files and directories, so that opening, locking, listing, restoring and pruning have
their share. The signal is SIGKILL: nothing of the process runs any more.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from asyncstep.checkpoint import local
from asyncstep.checkpoint.file_system import OperatingSystem

AUDITED = {
    "open",
    "os.listdir",
    "os.mkdir",
    "os.rename",
    "os.rmdir",
    "os.scandir",
    "shutil.rmtree",
    "fcntl.lockf",
}


class Mortality:
    """Kills this process when the last of its events has come. It does not begin before `begin`.

    Args:
        events: how many there are to be; None: it lives on.
    """

    def __init__(self, events: int | None) -> None:
        self._left = events

    def begin(self) -> None:
        """Count from now on what Python audits and what savers do, too."""
        sys.addaudithook(self._audit)
        mortality = self

        class MortalDisk(OperatingSystem):
            def write(self, descriptor: int, content: memoryview) -> int:
                """Write half of what is long: a kill leaves half a file."""
                mortality.event()
                return super().write(descriptor, content[:200])

            def sync(self, descriptor: int) -> None:
                mortality.event()
                super().sync(descriptor)
                mortality.event()

            def rename(self, old: Path, new: Path) -> None:
                super().rename(old, new)
                mortality.event()

        local.OperatingSystem = MortalDisk  # type: ignore[attr-defined]

    def event(self) -> None:
        """Die, if it is time."""
        if self._left is not None:
            self._left -= 1
            if self._left <= 0:
                os.kill(os.getpid(), signal.SIGKILL)

    def _audit(self, name: str, _: tuple[Any, ...]) -> None:
        if name in AUDITED:
            self.event()
