"""SummaryOutput: where a hook writes its summaries, from the opening of a session to its closing."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread

from asyncstep._monitored.coordinator import Coordinator
from asyncstep._runtime.session import Session
from asyncstep._runtime.snapshot import global_step
from asyncstep.errors import InvalidArgumentError, InvalidTypeError
from asyncstep.hooks.evaluator import evaluations_of
from asyncstep.summary import EventFileWriter, SummaryWriter
from asyncstep.summary.shared import leave_writer, take_writer
from asyncstep.summary.values import summaries_of
from asyncstep.summary.writers import directory_of, write

__all__ = ["SummaryOutput"]


class SummaryOutput:
    """The writer of one hook: its user's own, or the one that is shared for a directory.

    Args:
        owner: the hook, for messages.
        output_dir: a directory for event files; its writer is closed when the last hook that writes there ends.
        writer: a writer, which is flushed when the hook ends, and is its user's to close.

    Raises:
        InvalidArgumentError: both or neither is given, or `output_dir` can be none.
        InvalidTypeError: `output_dir` is no path.
    """

    def __init__(self, owner: str, output_dir: str | os.PathLike[str] | None, writer: Any) -> None:
        if (output_dir is None) == (writer is None):
            raise InvalidArgumentError(f"{owner} needs exactly one of output_dir and writer")
        self._directory: Path | None = None if output_dir is None else directory_of(owner, output_dir)
        self._given = writer
        self._shared: EventFileWriter | None = None
        self._starts = True

    @property
    def writer(self) -> Any:
        """What takes the summaries, while a session is open."""
        return self._given if self._shared is None else self._shared

    def open(self) -> None:
        """A session opens. Needs one `close`."""
        self._starts = True
        if self._directory is not None and self._shared is None:
            self._shared, self._starts = take_writer(self._directory)

    def start(self, session: Session, coord: Coordinator) -> None:
        """A raw session was made: what was written of the steps that now follow is out of date.

        Where another session of this process is writing into the directory, its summaries are not dropped.
        """
        writer = self.writer
        add_start = getattr(writer, "add_start", None)
        if self._starts and callable(add_start):
            add_start(global_step(session.store) + 1)
        self._starts = True
        if isinstance(writer, SummaryWriter):
            evaluations_of(coord).observe(_EvaluationSummaries(writer))

    async def close(self) -> None:  # noqa: ASYNC910 - it waits if there is something to write
        """The session closes: have everything written. Checkpoint: if there is a writer to wait for."""
        shared, self._shared = self._shared, None
        if self._directory is None:
            finish = getattr(self._given, "flush", None)
        else:
            finish = shared.close if shared is not None and leave_writer(shared) else None
        if callable(finish):
            # A thread of its own: the user's ops may have all the others. A disk that hangs is left to itself.
            limiter = anyio.CapacityLimiter(1)
            await anyio.to_thread.run_sync(finish, abandon_on_cancel=True, limiter=limiter)


@dataclass(frozen=True, slots=True)
class _EvaluationSummaries:
    """Writes the results of the session's evaluations; equal for equal writers, so that it is done once."""

    writer: SummaryWriter

    def __call__(self, name: str, step: int, values: Mapping[str, Any]) -> None:
        for tag, value in values.items():
            try:
                found = list(summaries_of(name, tag, value))
            except InvalidTypeError:
                continue  # a result may be anything; what can be drawn is
            for summary in found:
                write(self.writer, summary, step)
