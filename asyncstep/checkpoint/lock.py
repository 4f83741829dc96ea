"""One writer per directory (contract K9).

The lock is the kernel's (``flock``) on the file ``.lock`` of the directory, so it is gone when the process is,
however that ended. A child made by fork would share the lock, and keep it when its parent is killed; so each child
closes its copy at once. On Windows, ``msvcrt.locking`` takes its place. Where the file system has no locks, a WARNING
says that nothing keeps a second writer out.

The content of the file is for people: the process that took the lock last.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import socket
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Self

from asyncstep.errors import FailedPreconditionError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from types import TracebackType

LOCK = ".lock"

_logger = logging.getLogger("asyncstep")
_NONE = -1
_held: weakref.WeakSet[DirectoryLock] = weakref.WeakSet()

_TAKEN = (errno.EACCES, errno.EAGAIN)
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP)


class DirectoryLock:
    """The right to write into a directory: a context manager that its holder may enter again.

    Args:
        directory: an existing directory.
    """

    def __init__(self, directory: Path) -> None:
        self._path = directory / LOCK
        self._directory = directory
        self._depth = 0
        self._descriptor = _NONE

    @property
    def held(self) -> bool:
        """Whether this lock has been taken and not given back."""
        return self._depth > 0

    def __enter__(self) -> Self:
        if self._depth == 0:
            self._take()
        self._depth += 1
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._depth -= 1
        if self._depth == 0:
            self._give_back()

    def _take(self) -> None:
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _lock(descriptor, self._path)
        except OSError as error:
            holder = _holder(descriptor)
            os.close(descriptor)
            if error.errno in _TAKEN:
                raise self._refusal(holder) from None
            raise
        self._descriptor = descriptor
        _held.add(self)
        _sign(descriptor)

    def _give_back(self) -> None:
        _held.discard(self)
        if self._descriptor != _NONE:
            os.close(self._descriptor)
            self._descriptor = _NONE

    @staticmethod
    def close_copies() -> None:
        """In a child made by fork: give up what is its parent's."""
        for lock in list(_held):
            lock._give_back()

    def _refusal(self, holder: str) -> FailedPreconditionError:
        return FailedPreconditionError(
            f"{self._directory} is being written to by {holder}; let it end,"
            " or save into another directory: each has one writer"
        )


def _lock(descriptor: int, path: Path) -> None:
    try:
        if fcntl is not None:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            _lock_on_windows(descriptor)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        _logger.warning(
            "The file system of %s has no locks (%s): nothing keeps a second writer out.", path, error
        )


def _lock_on_windows(descriptor: int) -> None:
    import msvcrt

    os.lseek(descriptor, 1 << 30, os.SEEK_SET)  # far from the content, which others may then read
    msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]


def _sign(descriptor: int) -> None:
    """Name this process as the holder."""
    try:
        os.ftruncate(descriptor, 0)
        os.lseek(descriptor, 0, os.SEEK_SET)
        os.write(descriptor, json.dumps(_signature()).encode())
    except OSError:  # a full disk: the lock holds all the same, without a name
        pass


def _signature() -> dict[str, int | str]:
    return {"pid": os.getpid(), "host": socket.gethostname()}


def _holder(descriptor: int) -> str:
    """The process that holds the lock, as far as can be told."""
    try:
        os.lseek(descriptor, 0, os.SEEK_SET)
        content = json.loads(os.read(descriptor, 4096))
        if content == _signature():
            return f"another saver of this process ({os.getpid()})"
        return f"the process {content['pid']} on {content['host']}"
    except (OSError, ValueError, LookupError, TypeError):
        return "another process"


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=DirectoryLock.close_copies)
