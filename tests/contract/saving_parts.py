"""What the tests of section K, and of V with checkpoints, share: a counting graph, and a saver that can be held."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import anyio.to_thread

from asyncstep import (
    ChiefSessionCreator,
    MonitoredSession,
    Recovery,
    Session,
    SessionRunHook,
)
from asyncstep.checkpoint import Checkpoint, Saver, latest_checkpoint, list_checkpoints, read_checkpoint
from asyncstep.checkpoint.state import CheckpointState
from asyncstep.checkpoint.writing import write_checkpoint
from asyncstep.hooks import CheckpointSaverListener

from .counting import a_counter

QUICK = Recovery(wait_initial=0.0, jitter=0.0)
QUICK_ALWAYS = Recovery(wait_initial=0.0, jitter=0.0, restore="always")
LONG = 10.0  # seconds that no test waits for if all is well


class Counting:
    """A graph with a variable `count` and a node that adds one to it, as each process builds it anew."""

    def __init__(self) -> None:
        self.graph, self.count, self.bump = a_counter()

    def session(
        self, *hooks: SessionRunHook, directory: Path | None = None, path: Path | None = None, **options: Any
    ) -> MonitoredSession:
        """A session of the graph, which begins with what the directory has."""
        creator = ChiefSessionCreator(graph=self.graph, checkpoint_dir=directory, checkpoint_path=path)
        return MonitoredSession(creator, hooks, **options)

    async def steps(self, session: MonitoredSession, number: int) -> None:
        """Run so many steps."""
        for _ in range(number):
            await session.run(self.bump)


class HeldSaver(Saver):
    """A saver whose thread waits at a gate before it writes, and that can be made to fail.

    Attributes:
        gate: closed, it holds every save; it is open at first.
        failures: raised by the saves to come, one each.
        asked: the steps whose saves were begun.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.gate = threading.Event()
        self.gate.set()
        self.failures: list[Exception] = []
        self.asked: list[int] = []
        self._began = threading.Event()

    async def is_asked(self) -> None:
        """Wait until its thread has begun a save."""
        await anyio.to_thread.run_sync(self._began.wait, LONG)

    def write(self, writer: Any, snapshot: Any, metric: Any, *, replace: bool = False) -> Path:
        self.asked.append(snapshot.step)
        self._began.set()
        assert self.gate.wait(LONG)
        if self.failures:
            raise self.failures.pop(0)
        return super().write(writer, snapshot, metric, replace=replace)


class Journal(CheckpointSaverListener):
    """A listener that writes down what it is told."""

    def __init__(self, name: str = "", journal: list[str] | None = None) -> None:
        self.name = name
        self.journal: list[str] = [] if journal is None else journal

    async def begin(self) -> None:
        self.journal.append(f"{self.name}begin")

    async def before_save(self, session: Session, step: int) -> None:
        self.journal.append(f"{self.name}before_save {step}")

    async def after_save(self, session: Session, step: int) -> bool | None:
        self.journal.append(f"{self.name}after_save {step}")
        return None

    async def end(self, session: Session, step: int) -> None:
        self.journal.append(f"{self.name}end {step}")


def saved(directory: Path) -> list[int]:
    """The steps of which there are checkpoints."""
    return [each.step for each in list_checkpoints(directory)]


def newest(directory: Path) -> Checkpoint:
    """What the newest sound checkpoint has."""
    path = latest_checkpoint(directory)
    assert path is not None
    return read_checkpoint(path)


def put(directory: Path, step: int, **variables: Any) -> Path:
    """Save a checkpoint of these variables without a session."""
    return write_checkpoint(
        directory, CheckpointState(variables={"global_step": step, **variables}), step=step
    )


def flip_bit(checkpoint: Path) -> None:
    """Damage a checkpoint in a way that only its checksums show."""
    file = checkpoint / "state.msgpack"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
