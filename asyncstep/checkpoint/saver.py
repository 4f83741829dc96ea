"""Saver: from a session to a directory of checkpoints, and back."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Protocol

import anyio
import anyio.to_thread

from asyncstep._runtime.snapshot import Snapshot
from asyncstep.checkpoint.listing import list_checkpoints
from asyncstep.checkpoint.reading import read_checkpoint
from asyncstep.checkpoint.retention import KeepBest, Metric, Retention
from asyncstep.checkpoint.state import CheckpointState
from asyncstep.checkpoint.writing import CheckpointWriter
from asyncstep.errors import InvalidArgumentError

if TYPE_CHECKING:
    from pathlib import Path

    from asyncstep._runtime.session import Session
    from asyncstep.checkpoint.directory import StrPath


class Restorable(Protocol):
    """A session, monitored or raw."""

    def snapshot(self) -> Snapshot:
        """The whole state between two commits."""

    async def restore(self, snapshot: Snapshot, *, strict: bool = True) -> None:
        """Go back to a snapshot."""

    def incarnation(self) -> Session:
        """The raw session."""


class Saver:
    """Saves sessions and restores them (TensorFlow: ``tf.train.Saver``).

    Args:
        max_to_keep: how many of the newest checkpoints are kept; None: all.
        keep_every_n_hours: also keep one that is so much newer than the last one kept for this reason.
        keep_best: also keep the best ones by a metric.
        allow_pickle: whether values of unknown types are pickled, and unpickled by `restore` (contract K6).
            Unpickling runs what is in the file: only for files that you trust.

    Raises:
        InvalidArgumentError, InvalidTypeError: a number is out of range, or of a wrong type.
    """

    def __init__(
        self,
        *,
        max_to_keep: int | None = 5,
        keep_every_n_hours: float | None = None,
        keep_best: KeepBest | None = None,
        allow_pickle: bool = False,
    ) -> None:
        self.retention = Retention(max_to_keep, keep_every_n_hours, keep_best)
        self.allow_pickle = allow_pickle
        self._saving = anyio.Lock()

    async def save(self, session: Restorable, directory: StrPath) -> Path:
        """Save the state of a session, monitored or raw; return the checkpoint's path when it is durable.

        The snapshot is taken between two commits; it is written in a thread while steps go on (contract K5).
        A cancellation waits for the save.

        Raises:
            InvalidTypeError, InvalidArgumentError: a value cannot be saved; the message names the variable.
            FailedPreconditionError: another writer has the directory (contract K9).
            OSError: what the disk says; the checkpoints that were there are there still.

        Checkpoint: always.
        """
        async with self._saving:
            metric = await self.metric(session.incarnation())
            snapshot = session.snapshot()
            return await anyio.to_thread.run_sync(self._write, directory, snapshot, metric)

    async def restore(self, session: Restorable, path: StrPath, *, strict: bool = True) -> None:
        """Put a checkpoint's state into a session, monitored or raw.

        Raises:
            NotFoundError: there is no checkpoint, or (strict) names are on one side only (contract K7).
            DataLossError: the checkpoint is damaged.
            InvalidArgumentError: an array has another dtype or shape than the variable's initial one.

        Checkpoint: always.
        """
        checkpoint = await anyio.to_thread.run_sync(self._read, path)
        await session.restore(checkpoint, strict=strict)

    def open(self, directory: StrPath) -> SaverDirectory:
        """Become the directory's writer until `SaverDirectory.release`. Blocks."""
        return SaverDirectory(self, directory)

    async def metric(self, session: Session) -> Metric | None:
        """What the next checkpoint is measured by, evaluated now; None if nothing asks for it.

        Checkpoint: if there is one to evaluate.
        """
        best = self.retention.keep_best
        if best is None:
            return None
        value = await session.run(best.metric)
        try:
            return Metric(best.name, float(value))
        except (TypeError, ValueError):
            raise InvalidArgumentError(
                f"the metric {best.name!r} of KeepBest is {value!r}, which is no number"
            ) from None

    def _write(self, directory: StrPath, snapshot: Snapshot, metric: Metric | None) -> Path:
        with CheckpointWriter(directory) as writer:
            return self.write(writer, snapshot, metric)

    def write(self, writer: CheckpointWriter, snapshot: Snapshot, metric: Metric | None) -> Path:
        """Write a checkpoint, then delete those that need not be kept. Blocks."""
        path = writer.write(
            _state(snapshot), step=snapshot.step, metric=metric, allow_pickle=self.allow_pickle
        )
        writer.prune(self.retention)
        return path

    def _read(self, path: StrPath) -> Snapshot:
        found = read_checkpoint(path, allow_pickle=self.allow_pickle)
        return Snapshot(found.step, found.variables, found.sources, found.tracked, found.hooks)


class SaverDirectory:
    """A saver's hold on one directory: nobody else may write there meanwhile (contract K9).

    Attributes:
        path: the directory.
        newest_step: that of its newest checkpoint; None if there is none.
    """

    def __init__(self, saver: Saver, directory: StrPath) -> None:
        self.path = directory
        self._saver = saver
        self._writer = CheckpointWriter(directory)
        self._writer.__enter__()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="asyncstep-saver")
        self._last: Future[Path] | None = None
        self.newest_step: int | None = max((each.step for each in list_checkpoints(directory)), default=None)

    def begin(self, snapshot: Snapshot, metric: Metric | None) -> Save:
        """Have a snapshot written in a thread."""
        self._last = self._thread.submit(self._write, snapshot, metric)
        return Save(snapshot.step, self._last)

    def _write(self, snapshot: Snapshot, metric: Metric | None) -> Path:
        path = self._saver.write(self._writer, snapshot, metric)
        self.newest_step = snapshot.step
        return path

    def release(self) -> None:
        """Let others write into the directory, once a save that is in flight is done. Does not wait."""
        if self._last is None:
            self._release()
        else:
            self._last.add_done_callback(lambda _: self._release())
        self._thread.shutdown(wait=False)

    def _release(self) -> None:
        self._writer.__exit__(None, None, None)


class Save:
    """A checkpoint that is being written.

    Attributes:
        step: its global step.
    """

    def __init__(self, step: int, future: Future[Any]) -> None:
        self.step = step
        self._future = future

    @property
    def done(self) -> bool:
        """Whether it is durable, or has failed."""
        return self._future.done()

    async def wait(self) -> None:
        """Wait until it is durable; raises what the save raised. Checkpoint: always."""
        if not self._future.done():
            await anyio.to_thread.run_sync(self._settle, abandon_on_cancel=True)
        else:
            await anyio.lowlevel.checkpoint()
        self._future.result()

    def _settle(self) -> None:
        self._future.exception()


def _state(snapshot: Snapshot) -> CheckpointState:
    return CheckpointState(snapshot.variables, snapshot.sources, snapshot.tracked, snapshot.hooks)
