"""Where checkpoints are kept: the seam between what a checkpoint is and how its bytes get to rest.

A `Directory` knows checkpoints as names with files in them, and nothing of what is in the files. It promises
that a checkpoint is there as a whole or not at all, as far as it can see: `Draft.commit` makes it appear,
with the manifest as the last of its files, and `Directory.delete` makes it disappear, each at one instant.
`asyncstep.checkpoint.local` keeps them on a file system, `asyncstep.checkpoint.objects` in an object store.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol

from asyncstep.errors import (
    DataLossError,
    FailedPreconditionError,
    InvalidArgumentError,
    InvalidTypeError,
    kind_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from types import TracebackType

StrPath = str | os.PathLike[str]

_SCHEMES = ("s3", "gs", "az")


@dataclass(frozen=True, slots=True)
class ObjectPath(os.PathLike[str]):
    """Where something is in an object store, as ``s3://bucket/runs/step-0000012300``; goes wherever a path goes.

    Attributes:
        scheme: "s3", "gs" or "az".
        bucket: the bucket, or on Azure the container.
        key: the rest, without slashes at its ends.
    """

    scheme: str
    bucket: str
    key: str

    @property
    def name(self) -> str:
        """What follows the last slash."""
        return self.key.rpartition("/")[2]

    @property
    def parent(self) -> ObjectPath:
        """What comes before the last slash; of a bucket, itself."""
        return ObjectPath(self.scheme, self.bucket, self.key.rpartition("/")[0])

    def __truediv__(self, key: str) -> ObjectPath:
        return ObjectPath(self.scheme, self.bucket, f"{self.key}/{key}" if self.key else key)

    def __str__(self) -> str:
        return f"{self.scheme}://{self.bucket}" + (f"/{self.key}" if self.key else "")

    def __fspath__(self) -> str:
        return str(self)


CheckpointPath = Path | ObjectPath
"""Where a checkpoint is."""


class Draft(Protocol):
    """A checkpoint that is being written, and seen by nobody."""

    def write(self, file: str, chunks: Iterable[memoryview]) -> None:
        """Make a file of these bytes; they are durable on return."""

    def commit(self, manifest: bytes) -> CheckpointPath:
        """Add the manifest and make the checkpoint appear, durably; return where it is."""

    def discard(self) -> None:
        """Remove what was written, as far as that is possible; does not raise."""


draft_stages: list[Callable[[CheckpointPath, Draft], Draft]] = []
"""What every draft goes through, with the path that it is to have: nothing, but in tests that let a write fail."""


def begin_draft(directory: Directory, name: str) -> Draft:
    """Begin to write a checkpoint; see `Directory.draft`."""
    draft = directory.draft(name)
    for stage in tuple(draft_stages):
        draft = stage(directory.path(name), draft)
    return draft


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

    def path(self, name: str) -> CheckpointPath:
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
    """The directory that a path or a URL leads to; it need not exist yet.

    Raises:
        FailedPreconditionError: it is the URL of an object store, and obstore is not installed.
        InvalidTypeError, InvalidArgumentError: it is no path (see `local_path`) and no such URL.
    """
    url = object_path(path)
    if url is not None:
        return _object_directory(url)
    from asyncstep.checkpoint.local import LocalDirectory

    return LocalDirectory(local_path(path))


def _object_directory(url: ObjectPath) -> Directory:
    try:
        import obstore  # noqa: F401
    except ImportError:
        raise FailedPreconditionError(
            f"{url} is in an object store, which needs obstore: pip install 'asyncstep[objects]'"
        ) from None
    from asyncstep.checkpoint.objects import ObjectDirectory

    return ObjectDirectory.at(url)


def locate(path: StrPath) -> tuple[Directory, str]:
    """The directory that a checkpoint is in, and its name there."""
    url = object_path(path)
    if url is not None:
        if not url.key:
            raise InvalidArgumentError(f"{url} is a whole bucket, not a checkpoint")
        return directory_at(url.parent), url.name
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


def object_path(path: StrPath) -> ObjectPath | None:
    """The URL of an object store taken apart; None if it is no such URL.

    Raises:
        InvalidArgumentError: it is one, and names no bucket or has an impossible key.
    """
    if isinstance(path, ObjectPath) or not isinstance(path, (str, os.PathLike)):
        return path if isinstance(path, ObjectPath) else None
    text = os.fspath(path)
    scheme, separator, rest = text.partition("://") if isinstance(text, str) else ("", "", "")
    if not separator or scheme not in _SCHEMES:
        return None
    bucket, _, key = rest.partition("/")
    key = key.strip("/")
    if not bucket or any(character in text for character in "\0?#") or _has_odd_part(key):
        raise InvalidArgumentError(f"{text!r} is no place in an object store: write {scheme}://BUCKET/PREFIX")
    return ObjectPath(scheme, bucket, key)


def _has_odd_part(key: str) -> bool:
    return bool(key) and not {"", ".", ".."}.isdisjoint(key.split("/"))


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
            f"{text!r} is a URL of a kind that is not known; checkpoints are kept in directories of the file"
            f" system, and in object stores by URLs that begin with {', '.join(f'{each}://' for each in _SCHEMES)}"
        )
    return Path(text)
