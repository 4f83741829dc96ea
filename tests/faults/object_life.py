"""One life of the job of job.py, with its checkpoints in an object store.

``python object_life.py URL BACKEND WORKERS EVENTS``

It is killed at its event of that number, or lives to the end if that is 0. A lease of it ends soon, so that the
next life need not wait long.
"""

from __future__ import annotations

import logging
import sys

import anyio
from job import job
from mortal import Mortality

from asyncstep.checkpoint.objects import ObjectDirectory

if __name__ == "__main__":
    url, backend, workers, events = sys.argv[1:]
    ObjectDirectory.__init__.__kwdefaults__.update(renewed_every=0.1, lasts=1.0)
    logging.disable(logging.WARNING)  # the steps that fail once, and the lease of the life before
    anyio.run(anyio.sleep, 0, backend=backend)  # imports what else would be counted
    mortality = Mortality(int(events) or None)
    mortality.begin()
    anyio.run(job(url, int(workers), event=mortality.event), backend=backend)
