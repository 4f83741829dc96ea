"""What a scalar costs the loop, and on disk, against tensorboardX's writer."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import tempfile
from typing import Any

from asyncstep.summary import EventFileWriter
from benchmarks.measure import Figure, interleaved

SCALARS = 2_000
NEVER = 1e6


async def measure(backend: str) -> list[Figure]:
    """The figures of one backend; none without tensorboardX."""
    if importlib.util.find_spec("tensorboardX") is None:
        print("summaries: skipped, for there is no tensorboardX to compare with", file=sys.stderr)
        return []
    peer: Any = importlib.import_module("tensorboardX")
    with tempfile.TemporaryDirectory() as ours, tempfile.TemporaryDirectory() as theirs:
        writer = EventFileWriter(ours, flush_secs=NEVER)
        other = peer.SummaryWriter(theirs, flush_secs=NEVER)
        writer.add_scalar("loss", 0.5, 0)
        writer.flush()

        async def reference() -> None:
            for step in range(SCALARS):
                other.add_scalar("loss", 0.5, step)

        async def subject() -> None:
            for step in range(SCALARS):
                writer.add_scalar("loss", 0.5, step)

        async def reference_written() -> None:
            await reference()
            other.flush()

        async def subject_written() -> None:
            await subject()
            writer.flush()

        taken = await interleaved(reference, subject, SCALARS)
        written = await interleaved(reference_written, subject_written, SCALARS)
        writer.close()
        other.close()
    return [
        Figure("a scalar summary, taken", backend, "scalar", *taken, 0.25),
        Figure("a scalar summary, written", backend, "scalar", *written, 1.0),
    ]
