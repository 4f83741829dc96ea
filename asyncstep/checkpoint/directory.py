"""Where checkpoints are kept: the seam between what a checkpoint is and how its bytes get to rest.

A `Directory` knows checkpoints as names with files in them, and nothing of what is in the files. It promises
that a checkpoint is there as a whole or not at all, as far as it can see: `Draft.commit` makes it appear,
with the manifest as the last of its files, and `Directory.delete` makes it disappear, each at one instant.
`asyncstep.checkpoint.local` keeps them on a file system; an object store can be another one.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol

from asyncstep.errors import DataLossError, InvalidArgumentError, InvalidTypeError, kind_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from types import TracebackType

StrPath = str | os.PathLike[str]


class Draft(Protocol):
    """A checkpoint that is being written, and seen by nobody."""

    def write(self, file: str, chunks: Iterable[memoryview]) -> None:
        """Make a file of these bytes; they are durable on return."""

    def commit(self, manifest: bytes) -> Path:
        """Add the manifest and make the checkpoint appear, durably; return where it is."""

    def discard(self) -> None:
        """Remove what was written, as far as that is possible; does not raise."""


class Lock(Protocol):
    """The right to write into a directory (contract K9). It ends with the process at the latest."""

    def __enter__(self) -> object:
        """Take it, if this lock does not have it yet; FailedPreconditionError names another's process."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give it back, if this was the first to take it."""


class Directory(Protocol):
    """A place for checkpoints."""

    def names(self) -> list[str]:
        """The checkpoints that are there, sound or not, in no order; none if the place is missing."""

    def path(self, name: str) -> Path:
        """Where a checkpoint is, for people."""

    def files(self, name: str) -> Mapping[str, int]:
        """The files of a checkpoint with their lengths in bytes.

        Raises:
            NotFoundError: there is nothing of that name; or it is not the name of a step, and has no manifest.
            DataLossError: it is none, or has something in it that is no file.
        """

    def open(self, name: str, file: str) -> BinaryIO:
        """A file, to be read from its first byte; DataLossError if it is missing."""

    def lock(self) -> Lock:
        """The writer's right, not taken yet; makes the place if it is missing."""

    def clear(self) -> None:
        """Remove what writers that died have left. Only for the holder of the lock, between two writes."""

    def draft(self, name: str) -> Draft:
        """Begin to write a checkpoint; one that is there stays until the commit. For the lock's holder."""

    def delete(self, name: str) -> None:
        """Remove a checkpoint. Only for the holder of the lock."""


def directory_at(path: StrPath) -> Directory:
    """The directory that a path leads to; it need not exist yet."""
    from asyncstep.checkpoint.local import LocalDirectory

    return LocalDirectory(local_path(path))


def locate(path: StrPath) -> tuple[Directory, str]:
    """The directory that a checkpoint is in, and its name there."""
    absolute = Path(os.path.abspath(local_path(path)))
    return directory_at(absolute.parent), absolute.name


_DAMAGE = {
    errno.EIO,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ELOOP,
    getattr(errno, "EUCLEAN", errno.EIO),
}


def raise_if_damage(error: OSError, what: str) -> None:
    """DataLossError if reading failed by damage to the disk or the checkpoint.

    Otherwise the process lacks the rights or the means, which the caller is to see as it is.
    """
    if error.errno == errno.ENOENT:
        raise DataLossError(f"{what} is missing") from error
    if error.errno in _DAMAGE:
        raise DataLossError(f"{what} cannot be read: {error.strerror}") from error


def check_path(path: StrPath) -> str:
    """The path as a string, if it can be one of checkpoints; nothing is looked up.

    Raises:
        InvalidTypeError: it is no path at all.
        InvalidArgumentError: it is empty, or has a NUL in it.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise InvalidTypeError(f"the path of checkpoints must be a string or a path, not {kind_of(path)}")
    text = os.fspath(path)
    if not isinstance(text, str):
        raise InvalidTypeError(f"the path of checkpoints must be a string or a path, not {kind_of(text)}")
    if not text or "\0" in text:
        raise InvalidArgumentError(f"{text!r} is no path for checkpoints")
    return text


def local_path(path: StrPath) -> Path:
    """The path, if it is one of the file system.

    Raises:
        InvalidTypeError: it is no path at all.
        InvalidArgumentError: it is empty, a URL, or has a NUL in it.
    """
    text = check_path(path)
    scheme, separator, _ = text.partition("://")
    if separator and scheme.isalnum():
        raise InvalidArgumentError(
            f"{text!r} is a URL; checkpoints are kept in directories of the file system"
        )
    return Path(text)
