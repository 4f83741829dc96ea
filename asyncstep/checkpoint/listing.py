"""Which checkpoints a directory has, and which of them is the one to go on from (contract K2, K3)."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from asyncstep.checkpoint.directory import directory_at
from asyncstep.checkpoint.manifest import step_of
from asyncstep.checkpoint.reading import check, metric_of, read_manifest
from asyncstep.errors import DataLossError, FailedPreconditionError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import Callable

    from asyncstep.checkpoint.directory import CheckpointPath, Directory, StrPath
    from asyncstep.checkpoint.manifest import Manifest
    from asyncstep.checkpoint.retention import Metric

_logger = logging.getLogger("asyncstep")


@dataclass(frozen=True, slots=True)
class CheckpointInfo:
    """A checkpoint in a list.

    Attributes:
        path: where it is.
        step: the global step.
        time: when it was saved, in seconds since the epoch.
        size: the bytes of its files.
        metric: what `KeepBest` measured, if it did.
    """

    path: CheckpointPath
    step: int
    time: float
    size: int
    metric: Metric | None = None


def list_checkpoints(directory: StrPath) -> list[CheckpointInfo]:
    """The checkpoints of a directory, oldest first; none if there is no such directory. It blocks.

    Those are listed whose manifest is sound and whose files have the right lengths; no checksum of a file is
    computed (`verify_checkpoint` does that).
    """
    return list_in(directory_at(directory))


def latest_checkpoint(directory: StrPath) -> CheckpointPath | None:
    """The newest sound checkpoint, every byte of it checked; None if there is none at all. It blocks.

    A damaged one is reported by a WARNING, and the one before is taken.

    Raises:
        DataLossError: there are checkpoints, and all are damaged (contract K3).
        FailedPreconditionError: the newest is of a newer format; going back behind it would undo work.
    """
    place = directory_at(directory)
    damaged: list[str] = []
    for name in reversed(_names(place)):
        try:
            check(place, name)
        except NotFoundError:  # deleted meanwhile, by a writer that has a newer one
            continue
        except DataLossError as error:
            if name not in place.names():
                continue
            _logger.warning("%s", error)
            damaged.append(str(error))
        else:
            return place.path(name)
    if damaged:
        raise DataLossError(f"none of the checkpoints in {directory} is sound: " + "; ".join(damaged))
    # All that were there were deleted while they were read, so there are newer ones by now.
    return latest_checkpoint(directory) if _names(place) else None


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found under the name of a checkpoint: it is sound, or there is a reason why not."""

    path: CheckpointPath
    step: int
    info: CheckpointInfo | None
    reason: str | None


def survey(directory: StrPath) -> list[Finding]:
    """All checkpoints of a directory, oldest first, each checked in every byte."""
    return _findings(directory_at(directory), check)


def list_in(directory: Directory) -> list[CheckpointInfo]:
    """`list_checkpoints` of a directory that is at hand."""
    return [finding.info for finding in _findings(directory, read_manifest) if finding.info is not None]


def _findings(directory: Directory, examine: Callable[[Directory, str], Manifest]) -> list[Finding]:
    findings = []
    for name in _names(directory):
        path = directory.path(name)
        step = step_of(name) or 0
        try:
            manifest = examine(directory, name)
        except NotFoundError:
            continue
        except (DataLossError, FailedPreconditionError) as error:
            findings.append(Finding(path, step, None, str(error)))
        else:
            info = CheckpointInfo(path, manifest.step, manifest.time, manifest.size, metric_of(manifest))
            findings.append(Finding(path, step, info, None))
    return findings


def _names(directory: Directory) -> list[str]:
    """The checkpoints by step."""
    return sorted(directory.names(), key=lambda name: (step_of(name) or 0, name))
