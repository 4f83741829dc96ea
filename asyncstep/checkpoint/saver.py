"""Saver: from a session to a directory of checkpoints, and back."""

from __future__ import annotations

import logging
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Protocol

import anyio.to_thread

from asyncstep._runtime.snapshot import Snapshot
from asyncstep.checkpoint.listing import list_checkpoints, survey
from asyncstep.checkpoint.reading import read_checkpoint
from asyncstep.checkpoint.retention import KeepBest, Metric, Retention
from asyncstep.checkpoint.state import CheckpointState
from asyncstep.checkpoint.writing import CheckpointWriter
from asyncstep.errors import InvalidArgumentError

if TYPE_CHECKING:
    from collections.abc import Callable

    from asyncstep._runtime.session import Session
    from asyncstep.checkpoint.directory import CheckpointPath, StrPath

_logger = logging.getLogger("asyncstep")


saves_in_flight: set[Future[Any]] = set()
"""The saves of this process that are being written beside the loop; virtual time stands still for them."""


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
        self.retention: Retention = Retention(max_to_keep, keep_every_n_hours, keep_best)
        self.allow_pickle = allow_pickle
        self._writing = threading.Lock()

    async def save(self, session: Restorable, directory: StrPath) -> CheckpointPath:
        """Save the state of a session, monitored or raw; return the checkpoint's path when it is durable.

        The snapshot is taken between two commits; it is written in a thread while steps go on (contract K5).
        A cancellation waits for the save.

        Raises:
            InvalidTypeError, InvalidArgumentError: a value cannot be saved; the message names the variable.
            FailedPreconditionError: another writer has the directory (contract K9).
            OSError: what the disk says; the checkpoints that were there are there still.

        Checkpoint: always.
        """
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

    async def open(
        self, directory: StrPath, when_closed: Callable[[Callable[[], None]], None]
    ) -> SaverDirectory:
        """Become the directory's writer; `when_closed` is given the function that ends that. Checkpoint: always.

        It is given before the lock is taken, so that the lock ends also if the opening is cancelled.
        """
        opened = SaverDirectory(self, directory)
        when_closed(opened.release)
        await opened.take()
        return opened

    async def metric(self, session: Session) -> Metric | None:  # noqa: ASYNC910 - it waits if there is something to do
        """What the next checkpoint is measured by, evaluated now; None if nothing asks for it.

        Checkpoint: if there is one to evaluate.
        """
        best = self.retention.keep_best
        if best is None:
            return None  # noqa: ASYNC910 - it waits if there is something to do
        value = await session.run(best.metric)
        try:
            return Metric(best.name, float(value))
        except (TypeError, ValueError):
            raise InvalidArgumentError(
                f"the metric {best.name!r} of KeepBest is {value!r}, which is no number"
            ) from None

    def _write(self, directory: StrPath, snapshot: Snapshot, metric: Metric | None) -> CheckpointPath:
        with self._writing, CheckpointWriter(directory) as writer:
            return self.write(writer, snapshot, metric)

    def write(
        self, writer: CheckpointWriter, snapshot: Snapshot, metric: Metric | None, *, replace: bool = False
    ) -> CheckpointPath:
        """Write a checkpoint, then delete those that need not be kept. Blocks."""
        path = writer.write(
            _state(snapshot),
            step=snapshot.step,
            metric=metric,
            allow_pickle=self.allow_pickle,
            replace=replace,
        )
        # What was just written stays, also if there are checkpoints of later steps, which may be damaged.
        writer.prune(self.retention, in_use={snapshot.step})
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
        self.newest_step: int | None = None
        self._saver = saver
        self._writer = CheckpointWriter(directory)
        self._hold = ExitStack()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="asyncstep-saver")
        self._last: Future[Any] | None = None

    async def take(self) -> None:
        """Take the lock. Checkpoint: always."""
        await self._waited(self._take)

    def _take(self) -> None:
        self._hold.enter_context(self._writer)
        self.newest_step = max((each.step for each in list_checkpoints(self.path)), default=None)

    async def check_every_byte(self) -> None:
        """Let `newest_step` be that of a checkpoint that is sound in every byte (contract K3). Checkpoint: always."""
        await self._waited(self._check)

    def _check(self) -> None:
        self.newest_step = max(
            (each.step for each in survey(self.path) if each.info is not None), default=None
        )

    async def _waited(self, work: Callable[[], None]) -> None:
        self._last = self._thread.submit(work)
        save = Save(0, self._last)
        await save.settled()
        save.raise_error()

    def begin(self, snapshot: Snapshot, metric: Metric | None, *, replace: bool = False) -> Save:
        """Have a snapshot written in a thread; see `CheckpointWriter.write`."""
        self._last = self._thread.submit(self._write, snapshot, metric, replace)
        saves_in_flight.add(self._last)
        self._last.add_done_callback(saves_in_flight.discard)
        return Save(snapshot.step, self._last)

    def _write(self, snapshot: Snapshot, metric: Metric | None, replace: bool) -> float:
        began = time.monotonic()
        self._saver.write(self._writer, snapshot, metric, replace=replace)
        self.newest_step = snapshot.step
        return time.monotonic() - began

    def release(self) -> None:
        """Let others write into the directory, once a save that is in flight is done. Does not wait."""
        if self._last is None or self._last.done():
            self._hold.close()
        else:
            self._last.add_done_callback(self._release)
        self._thread.shutdown(wait=False)

    def _release(self, last: Future[Any]) -> None:
        """The session did not wait for the last save: nobody but the log can be told how it went (E3)."""
        if (error := last.exception()) is not None:
            _logger.error("a save failed after its session was closed", exc_info=error)
        self._hold.close()


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

    async def settled(self) -> None:  # noqa: ASYNC910 - it waits if there is something to wait for
        """Wait until it is durable, or has failed. Checkpoint: if it is not yet."""
        if not self._future.done():
            await anyio.to_thread.run_sync(self._future.exception, abandon_on_cancel=True)

    def when_settled(self, call: Callable[[BaseException | None], None]) -> None:
        """Call a function with the error, or None, in the thread that writes, or at once if that is done."""
        self._future.add_done_callback(lambda future: call(future.exception()))

    def raise_error(self) -> None:
        """Raise what the save raised, if it has failed."""
        self._future.result()

    @property
    def seconds(self) -> float:
        """How long writing it took, once it is durable."""
        seconds: float = self._future.result()
        return seconds


def _state(snapshot: Snapshot) -> CheckpointState:
    return CheckpointState(snapshot.variables, snapshot.sources, snapshot.tracked, snapshot.hooks)
