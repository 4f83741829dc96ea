"""``python run_killed.py EVENTS ARG...`` is ``python -m asyncstep ARG...``, killed at its event of that number.

It saves after every fifth file, too, so that little of the work is lost however short its life is.
"""

from __future__ import annotations

import sys
from functools import partial

import anyio
from mortal import Mortality

import asyncstep
from asyncstep import cli

if __name__ == "__main__":
    for backend in ("asyncio", "trio"):
        anyio.run(anyio.sleep, 0, backend=backend)  # imports what else would be counted
    mortality = Mortality(int(sys.argv.pop(1)))
    mortality.begin()
    asyncstep.MonitoredTrainingSession = partial(asyncstep.MonitoredTrainingSession, save_checkpoint_steps=5)
    cli.main(prog_name="asyncstep")
