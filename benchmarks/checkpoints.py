"""P11: saving a checkpoint of 100 MB of arrays, against writing and fsyncing the same bytes."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import anyio.to_thread
import numpy as np

from asyncstep.checkpoint.state import CheckpointState
from asyncstep.checkpoint.writing import CheckpointWriter
from benchmarks.measure import Figure, interleaved

ARRAYS = 10
BYTES = 10_000_000


async def measure(backend: str) -> list[Figure]:
    """The figures of one backend."""
    random = np.random.default_rng(0)
    arrays = {f"a{index}": random.integers(0, 255, BYTES, np.uint8) for index in range(ARRAYS)}
    with tempfile.TemporaryDirectory() as name:
        return [await _save(backend, Path(name), arrays)]


async def _save(backend: str, place: Path, arrays: dict[str, Any]) -> Figure:
    state = CheckpointState(variables=arrays)

    def by_hand() -> None:
        file = place / "file"
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for array in arrays.values():
            os.write(descriptor, array)
        os.fsync(descriptor)
        os.close(descriptor)
        file.unlink()

    with CheckpointWriter(place / "checkpoints") as writer:

        def save() -> None:
            shutil.rmtree(writer.write(state, step=1))

        reference, subject = await interleaved(
            lambda: anyio.to_thread.run_sync(by_hand), lambda: anyio.to_thread.run_sync(save), 1
        )
    return Figure("P11 save of 100 MB", backend, "save", reference, subject, 1.3)
