"""``python killed.py N PROGRAM OPTIONS...`` runs a program, and kills it when its N-th checkpoint is complete.

The signal is SIGKILL, in the instant after the renaming that completes the checkpoint; N = 0: it lives on.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
from pathlib import Path

from asyncstep.checkpoint import local
from asyncstep.checkpoint.file_system import OperatingSystem


class MortalDisk(OperatingSystem):
    """The disk of a process that does not survive its n-th checkpoint."""

    left = 0

    def rename(self, old: Path, new: Path) -> None:
        super().rename(old, new)
        MortalDisk.left -= 1
        if MortalDisk.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


MortalDisk.left = int(sys.argv[1])
local.OperatingSystem = MortalDisk  # type: ignore[attr-defined]
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
