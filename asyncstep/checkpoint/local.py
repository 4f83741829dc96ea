"""Checkpoints in a directory of the file system (contract K2).

A checkpoint is the directory ``step-0000012300``. It is written as ``.new-step-0000012300-PID`` beside it:
every file is created exclusively and fsynced, the manifest last, then the directory is fsynced, renamed, and
the parent fsynced. So at any instant of a crash there is the whole checkpoint under its name, or none.
One that takes the place of another of the same
step exchanges names with it, which Linux and macOS do at one instant; where that cannot be done, the other is
set aside as ``.old-replaced-...``, and put back by the next writer if the new one never came.
One that disappears is renamed to ``.old-...`` first. What begins with ``.new-`` or ``.old-`` is never read,
and is removed by the next writer.
"""

from __future__ import annotations

import logging
import os
import stat
from typing import TYPE_CHECKING, BinaryIO

from asyncstep.checkpoint.directory import raise_if_damage
from asyncstep.checkpoint.file_system import FileSystem, OperatingSystem
from asyncstep.checkpoint.lock import DirectoryLock
from asyncstep.checkpoint.manifest import MANIFEST, step_of
from asyncstep.errors import DataLossError, FailedPreconditionError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

_logger = logging.getLogger("asyncstep")

_NEW = ".new-"
_OLD = ".old-"
_REPLACED = "replaced-"


class LocalDirectory:
    """A directory of the file system with checkpoints in it.

    Args:
        root: its path; made, with its parents, when it is first locked.
        system: the operations on files; for tests.
    """

    def __init__(self, root: Path, *, system: FileSystem | None = None) -> None:
        self.root = root
        self._system = OperatingSystem() if system is None else system

    def names(self) -> list[str]:
        try:
            found = os.listdir(self.root)
        except FileNotFoundError:
            return []
        except NotADirectoryError:
            raise FailedPreconditionError(
                f"{self.root} is not a directory, so there can be no checkpoints in it"
            ) from None
        return [name for name in found if step_of(name) is not None]

    def path(self, name: str) -> Path:
        return self.root / name

    def files(self, name: str) -> dict[str, int]:
        path = self.path(name)
        if not os.path.lexists(path if step_of(name) is not None else path / MANIFEST):
            inside = LocalDirectory(path).names() if path.is_dir() else []
            hint = f"; it has checkpoints inside, as {max(inside)}" if inside else ""
            raise NotFoundError(f"there is no checkpoint at {path}{hint}")
        sizes: dict[str, int] = {}
        try:
            with os.scandir(path) as entries:
                for entry in entries:
                    status = entry.stat(follow_symlinks=False)
                    if not stat.S_ISREG(status.st_mode):
                        raise DataLossError(f"{entry.name!r} in it is not a file")
                    sizes[entry.name] = status.st_size
        except OSError as error:
            raise_if_damage(error, "it")
            raise
        return sizes

    def open(self, name: str, file: str) -> BinaryIO:
        try:
            return open(self.path(name) / file, "rb", buffering=0)
        except OSError as error:
            raise_if_damage(error, file)
            raise

    def lock(self) -> DirectoryLock:
        self._make(self.root)
        return DirectoryLock(self.root)

    def clear(self) -> None:
        for name in os.listdir(self.root):
            if name.startswith((_NEW, _OLD)) and not self._put_back(name):
                self.remove(self.root / name)

    def _put_back(self, name: str) -> bool:
        """Take back a checkpoint that was set aside for a newer one of its step, which never came."""
        replaced = name.removeprefix(_OLD + _REPLACED).rpartition("-")[0]
        if not name.startswith(_OLD + _REPLACED) or os.path.lexists(self.path(replaced)):
            return False
        self._system.rename(self.root / name, self.path(replaced))
        self._system.sync_directory(self.root)
        return True

    def draft(self, name: str) -> LocalDraft:
        path = self.root / f"{_NEW}{name}-{os.getpid()}"
        if os.path.lexists(path):  # an earlier one could not be discarded
            self._system.remove_tree(path)
        self._system.make_directory(path)
        return LocalDraft(self, path, name, self._system)

    def delete(self, name: str) -> None:
        self.remove(self.set_aside(name))

    def set_aside(self, name: str, *, for_another: bool = False) -> Path:
        """Make a checkpoint disappear, for good or for another of its step; return where its files are now."""
        aside = self.root / f"{_OLD}{_REPLACED if for_another else ''}{name}-{os.getpid()}"
        if os.path.lexists(aside):
            self._system.remove_tree(aside)
        self._system.rename(self.path(name), aside)
        self._system.sync_directory(self.root)
        return aside

    def remove(self, path: Path) -> None:
        """Remove what nobody reads; if that fails, the next writer tries again."""
        try:
            self._system.remove_tree(path)
        except OSError as error:
            _logger.warning("%s could not be removed: %s", path, error)

    def _make(self, path: Path) -> None:
        """Make a directory and its parents, each durably."""
        if path.is_dir():
            return
        self._make(path.parent)
        try:
            self._system.make_directory(path)
        except FileExistsError:
            if path.is_dir():  # made by another process meanwhile
                return
            raise FailedPreconditionError(
                f"{path} is not a directory, so there can be no checkpoints in it"
            ) from None
        self._system.sync_directory(path.parent)


class LocalDraft:
    """A checkpoint on its way into a `LocalDirectory`."""

    def __init__(self, directory: LocalDirectory, path: Path, name: str, system: FileSystem) -> None:
        self._directory = directory
        self._path = path
        self._name = name
        self._system = system

    def write(self, file: str, chunks: Iterable[memoryview]) -> None:
        descriptor = self._system.create(self._path / file)
        try:
            for chunk in chunks:
                rest = chunk
                while rest:
                    rest = rest[self._system.write(descriptor, rest) :]
            self._system.sync(descriptor)
        finally:
            self._system.close(descriptor)

    def commit(self, manifest: bytes) -> Path:
        self.write(MANIFEST, [memoryview(manifest)])
        self._system.sync_directory(self._path)
        final = self._directory.path(self._name)
        aside: Path | None = None
        if os.path.lexists(final):
            if self._system.exchange(self._path, final):
                aside = self._path
            else:
                aside = self._directory.set_aside(self._name, for_another=True)
        if aside is not self._path:
            self._system.rename(self._path, final)
        self._system.sync_directory(self._directory.root)
        if aside is not None:
            self._directory.remove(aside)
        return final

    def discard(self) -> None:
        if os.path.lexists(self._path):
            self._directory.remove(self._path)
