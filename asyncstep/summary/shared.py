"""One writer for a directory, however many hooks of a process write into it."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from asyncstep.summary.writers import EventFileWriter

__all__ = ["leave_writer", "take_writer"]

_changing = threading.Lock()
_writers: dict[str, tuple[EventFileWriter, int]] = {}


def take_writer(directory: Path) -> tuple[EventFileWriter, bool]:
    """The writer of event files that everybody in this process shares for a directory.

    Returns:
        The writer, and whether this is the first to take it. Each `take_writer` needs one `leave_writer`.
    """
    place = os.path.realpath(directory)
    with _changing:
        writer, takers = _writers.get(place) or (EventFileWriter(place), 0)
        _writers[place] = (writer, takers + 1)
        return writer, takers == 0


def leave_writer(writer: EventFileWriter) -> bool:
    """One who took the writer has done with it. Whether that was the last, who has to close it."""
    place = str(writer.directory)
    with _changing:
        _, takers = _writers[place]
        if takers > 1:
            _writers[place] = (writer, takers - 1)
            return False
        del _writers[place]
        return True
