"""What tests of summaries share: files read back by TensorBoard and by json, and a disk that fails."""

from __future__ import annotations

import errno
import json
import threading
from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from asyncstep.summary.appender import AppendedFile


def events(directory: Path) -> Any:
    """Everything that TensorBoard finds in the event files of a directory."""
    everything = dict.fromkeys(("scalars", "histograms", "tensors", "images"), 0)
    found = EventAccumulator(str(directory), size_guidance=everything)
    found.Reload()
    return found


def scalars(directory: Path, tag: str) -> list[tuple[int, float]]:
    """The steps and values that TensorBoard finds under a tag; none if it does not find the tag."""
    found = events(directory)
    if tag not in found.Tags()["scalars"]:
        return []
    return [(event.step, event.value) for event in found.Scalars(tag)]


def texts(directory: Path, tag: str) -> list[tuple[int, str]]:
    """The steps and texts that TensorBoard finds under a tag."""
    return [
        (event.step, event.tensor_proto.string_val[0].decode()) for event in events(directory).Tensors(tag)
    ]


def lines(directory: Path) -> list[dict[str, Any]]:
    """The objects in the JSON lines of a directory, in order."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    return [
        json.loads(line, parse_constant=refuse)
        for file in sorted(directory.glob("*.jsonl"))
        for line in file.read_text("ascii").splitlines()
    ]


def threads() -> list[str]:
    """The names of the threads that write summaries."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("summaries into")]


class Disk(AppendedFile):
    """A file on a disk that can be full, and that can hang.

    Attributes:
        full: whether there is no space.
        goes_on: cleared, it hangs.
    """

    full = False
    goes_on = threading.Event()

    def append(self, content: bytes) -> None:
        self.goes_on.wait()
        if Disk.full:
            raise OSError(errno.ENOSPC, "No space left on device")
        super().append(content)
