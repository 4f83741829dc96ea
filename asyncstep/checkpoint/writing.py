"""The writer of a directory: saves checkpoints into it and deletes those that need not be kept."""

from __future__ import annotations

import logging
import os
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Self

import msgspec

from asyncstep.checkpoint import tensor_file
from asyncstep.checkpoint.arrays import Tensors
from asyncstep.checkpoint.directory import begin_draft, directory_at
from asyncstep.checkpoint.hashing import HashedChunks
from asyncstep.checkpoint.listing import list_in
from asyncstep.checkpoint.manifest import (
    STATE,
    FileRecord,
    Manifest,
    MetricRecord,
    arrays_name,
    checkpoint_name,
    render,
    step_of,
)
from asyncstep.checkpoint.reading import check
from asyncstep.checkpoint.retention import Metric, Retention, to_delete
from asyncstep.checkpoint.state import CheckpointState, state_tree
from asyncstep.errors import (
    DataLossError,
    FailedPreconditionError,
    InvalidArgumentError,
    InvalidTypeError,
    NotFoundError,
    kind_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable
    from types import TracebackType

    from asyncstep.checkpoint.directory import CheckpointPath, Directory, Draft, StrPath

_logger = logging.getLogger("asyncstep")

ARRAYS_LIMIT = 2**30
"""A file of arrays that has reached this many bytes takes no more of them."""


class CheckpointWriter:
    """The one writer of a directory, between entering and leaving it as a context manager (contract K9).

    Entered the first time it makes the directory, takes the lock and removes what earlier writers have
    left unfinished; it may be entered again by its holder. Everything here blocks: call it from a worker
    thread.

    Args:
        directory: where the checkpoints are.
        clock: gives the time of a save, in seconds since the epoch.

    Raises:
        FailedPreconditionError: (on entering) another process, or another writer of this one, has the
            directory; the message names the process.
    """

    def __init__(self, directory: StrPath | Directory, *, clock: Callable[[], float] = time.time) -> None:
        self._directory = _directory(directory)
        self._clock = clock
        self._entered: list[ExitStack] = []

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            if not self._entered:
                stack.enter_context(self._directory.lock())
                self._directory.clear()
            self._entered.append(stack.pop_all())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._entered.pop().close()

    def write(
        self,
        state: CheckpointState,
        *,
        step: int,
        metric: Metric | None = None,
        allow_pickle: bool = False,
        replace: bool = False,
    ) -> CheckpointPath:
        """Save a checkpoint; return its path when it is durable (contract K2).

        If the directory has a damaged checkpoint of that step, this one takes its place; if it has a sound
        one with the same content, that is left as it is.

        Args:
            state: what to save.
            step: the global step.
            metric: what `KeepBest` measured, to be remembered.
            allow_pickle: whether values of unknown types are pickled.
            replace: whether this may take the place of a sound checkpoint of that step with other content,
                because it is a later state of the same run.

        Raises:
            InvalidTypeError, InvalidArgumentError: it cannot be saved (see `state_tree`), and nothing was
                written.
            FailedPreconditionError: there is a sound checkpoint of that step with other content, and
                `replace` is not set.
            OSError: what the disk says. The checkpoints that were there are there still.
        """
        if not self._entered:
            raise FailedPreconditionError("a CheckpointWriter writes inside its `with` only")
        name = checkpoint_name(step)
        if step_of(name) is None:
            raise InvalidArgumentError(f"{step!r} is no global step: it must be a number from 0 on")
        measured = None if metric is None else _metric_record(metric)
        contents = _contents(state, allow_pickle)
        draft = begin_draft(self._directory, name)
        try:
            files = {file: _written(draft, file, buffers) for file, buffers in contents}
            if self._has_the_same(name, files, replace):
                draft.discard()
                return self._directory.path(name)
            manifest = Manifest(step=step, time=self._clock(), files=files, metric=measured)
            return draft.commit(render(manifest))
        except BaseException:
            draft.discard()
            raise

    def prune(self, retention: Retention, *, in_use: Collection[int] = ()) -> list[CheckpointPath]:
        """Delete the checkpoints that `retention` does not keep (contract K8).

        The newest and those in use are always kept. Damaged ones are neither counted nor deleted.

        Returns:
            Where the deleted ones were, oldest first.
        """
        if not self._entered:
            raise FailedPreconditionError("a CheckpointWriter deletes inside its `with` only")
        names = [checkpoint_name(step) for step in to_delete(list_in(self._directory), retention, in_use)]
        for name in names:
            self._directory.delete(name)
        return [self._directory.path(name) for name in names]

    def _has_the_same(self, name: str, files: dict[str, FileRecord], replace: bool) -> bool:
        """Whether a sound checkpoint of that name has just these files; an error unless it may be replaced."""
        try:
            there = check(self._directory, name)
        except NotFoundError:
            return False
        except DataLossError as error:
            _logger.warning("%s; it is replaced by a new one of the same step", error)
            return False
        if there.files == files or replace:
            return there.files == files
        raise FailedPreconditionError(
            f"{self._directory.path(name)} is a sound checkpoint with other content, perhaps of another run;"
            " move it away, or save into another directory"
        )


def write_checkpoint(
    directory: StrPath | Directory,
    state: CheckpointState,
    *,
    step: int,
    metric: Metric | None = None,
    allow_pickle: bool = False,
    clock: Callable[[], float] = time.time,
) -> CheckpointPath:
    """Save one checkpoint, being the directory's writer for so long; see `CheckpointWriter.write`."""
    with CheckpointWriter(directory, clock=clock) as writer:
        return writer.write(state, step=step, metric=metric, allow_pickle=allow_pickle)


def _directory(directory: StrPath | Directory) -> Directory:
    if isinstance(directory, (str, os.PathLike)):
        return directory_at(directory)
    return directory


def _contents(state: CheckpointState, allow_pickle: bool) -> list[tuple[str, Iterable[memoryview]]]:
    """The files to write, with all values encoded; only the bytes of arrays are still to be had."""
    tensors = Tensors()
    tree = state_tree(state, tensors, allow_pickle=allow_pickle)
    encoded: Any = msgspec.msgpack.encode(tree)
    files: list[tuple[str, Iterable[memoryview]]] = [(STATE, [memoryview(encoded)])]
    for index, some in enumerate(tensor_file.in_files(tensors.by_key, ARRAYS_LIMIT)):
        files.append((arrays_name(index), tensor_file.chunks(some)))
    return files


def _written(draft: Draft, file: str, buffers: Iterable[memoryview]) -> FileRecord:
    with HashedChunks(buffers) as chunks:
        draft.write(file, chunks)
        return chunks.record()


def _metric_record(metric: Metric) -> MetricRecord:
    try:
        metric.name.encode()
        return MetricRecord(metric.name, repr(float(metric.value)))
    except (TypeError, ValueError) as error:
        raise InvalidTypeError(
            f"the metric {metric.name!r} must be a number, not {kind_of(metric.value)}: {error}"
        ) from None
