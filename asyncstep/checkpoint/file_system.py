"""The few operations on files that make a checkpoint durable, so that tests can let each of them fail."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
from typing import TYPE_CHECKING, Protocol

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


_NO_EXCHANGE = {0, errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP}


def _exchange_of(libc: ctypes.CDLL) -> Callable[[bytes, bytes], int] | None:
    """What exchanges the names of two files; Python has nothing for it. None if the system has not either."""
    if hasattr(libc, "renameat2"):  # Linux
        return lambda one, other: int(libc.renameat2(-100, one, -100, other, 2))  # AT_FDCWD, RENAME_EXCHANGE
    if hasattr(libc, "renamex_np"):  # macOS
        return lambda one, other: int(libc.renamex_np(one, other, 2))  # RENAME_SWAP
    return None


_exchange = None if os.name == "nt" else _exchange_of(ctypes.CDLL(None, use_errno=True))


class FileSystem(Protocol):
    """What a `LocalDirectory` does to its disk. Everything raises OSError."""

    def make_directory(self, path: Path) -> None:
        """Make a directory; FileExistsError if something is there."""

    def create(self, path: Path) -> int:
        """Make a file, exclusively, and open it for writing."""

    def write(self, descriptor: int, content: memoryview) -> int:
        """Write some of it, at least a byte; return how many."""

    def sync(self, descriptor: int) -> None:
        """Let what was written reach the disk."""

    def close(self, descriptor: int) -> None:
        """Close what `create` opened."""

    def sync_directory(self, path: Path) -> None:
        """Let what was made, renamed and removed in a directory reach the disk."""

    def rename(self, old: Path, new: Path) -> None:
        """Rename a directory; OSError if there is one of the new name with something in it."""

    def exchange(self, one: Path, other: Path) -> bool:
        """Give two directories each other's names at one instant; False if that cannot be done here."""

    def remove_tree(self, path: Path) -> None:
        """Remove a directory and all that is in it."""


class OperatingSystem:
    """The real one."""

    def make_directory(self, path: Path) -> None:
        path.mkdir()

    def create(self, path: Path) -> int:
        flags = (
            os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0)
        )
        return os.open(path, flags, 0o666)

    def write(self, descriptor: int, content: memoryview) -> int:
        return os.write(descriptor, content)

    def sync(self, descriptor: int) -> None:
        full = getattr(fcntl, "F_FULLFSYNC", None)
        if full is not None:  # macOS, where fsync leaves the data in the disk's own memory
            try:
                fcntl.fcntl(descriptor, full)
            except OSError:  # a disk that knows no such thing
                pass
            else:
                return
        os.fsync(descriptor)

    def close(self, descriptor: int) -> None:
        os.close(descriptor)

    def sync_directory(self, path: Path) -> None:
        if os.name == "nt":  # has no such thing, and needs none
            return
        descriptor = os.open(path, os.O_RDONLY)
        try:
            self.sync(descriptor)
        finally:
            os.close(descriptor)

    def rename(self, old: Path, new: Path) -> None:
        old.rename(new)

    def exchange(self, one: Path, other: Path) -> bool:
        ctypes.set_errno(0)
        if _exchange is not None and _exchange(os.fsencode(one), os.fsencode(other)) == 0:
            return True
        code = ctypes.get_errno()
        if code in _NO_EXCHANGE:
            return False
        raise OSError(code, os.strerror(code), str(one), None, str(other))

    def remove_tree(self, path: Path) -> None:
        shutil.rmtree(path)
