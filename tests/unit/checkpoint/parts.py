"""What the tests of checkpoints share: values through a tree and back, and disks that fail."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from asyncstep.checkpoint.arrays import Stored, Tensors
from asyncstep.checkpoint.decoding import Restorer, decode
from asyncstep.checkpoint.encoding import encode
from asyncstep.checkpoint.file_system import OperatingSystem
from asyncstep.checkpoint.local import LocalDirectory
from asyncstep.checkpoint.state import CheckpointState, state_tree
from asyncstep.checkpoint.writing import CheckpointWriter


def round_trip(value: Any, *, allow_pickle: bool = False) -> Any:
    """The value as a checkpoint gives it back: through a tree, MessagePack and the bytes of its arrays."""
    tensors = Tensors()
    tree = encode(value, what="the value", tensors=tensors, allow_pickle=allow_pickle)
    tree = msgspec.msgpack.decode(msgspec.msgpack.encode(tree))
    stored = {
        key: Stored(tensor.dtype, tensor.shape, bytearray(tensor.content()))
        for key, tensor in tensors.by_key.items()
    }
    return decode(tree, Restorer(stored, allow_pickle=allow_pickle))


def encode_all(state: CheckpointState, *, allow_pickle: bool = False) -> None:
    """Encode a state as a save does before it writes anything; raises what cannot be saved."""
    state_tree(state, Tensors(), allow_pickle=allow_pickle)


def state(**variables: Any) -> CheckpointState:
    """A state of these variables."""
    return CheckpointState(variables=variables)


def save(directory: Path, step: int, *, system: OperatingSystem | None = None, **variables: Any) -> Path:
    """Save a checkpoint of a step and of these variables."""
    with CheckpointWriter(LocalDirectory(directory, system=system), clock=lambda: 1000.0 + step) as writer:
        return writer.write(state(global_step=step, **variables), step=step)


class Crash(BaseException):
    """The process is gone: nothing of it runs any more."""


class FailingDisk(OperatingSystem):
    """A disk on which one operation fails, counted from 0; `count` says how many there were.

    Args:
        fails: is asked with the number of each operation and its name; what it returns is raised.

    Attributes:
        exchanges: whether it can exchange the names of two directories.
    """

    exchanges: bool = True

    def __init__(self, fails: Callable[[int, str], BaseException | None] = lambda number, name: None) -> None:
        self.count = 0
        self._fails = fails

    def _step(self, name: str) -> None:
        error = self._fails(self.count, name)
        self.count += 1
        if error is not None:
            raise error

    def make_directory(self, path: Path) -> None:
        self._step("make_directory")
        super().make_directory(path)

    def create(self, path: Path) -> int:
        self._step("create")
        return super().create(path)

    def write(self, descriptor: int, content: memoryview) -> int:
        """Write half of what is long, so that files take several writes."""
        self._step("write")
        return super().write(descriptor, content[: len(content) // 2] if len(content) > 200 else content)

    def sync(self, descriptor: int) -> None:
        """Let time pass as if; the power stays on."""
        self._step("sync")

    def sync_directory(self, path: Path) -> None:
        self._step("sync_directory")

    def rename(self, old: Path, new: Path) -> None:
        self._step("rename")
        super().rename(old, new)

    def exchange(self, one: Path, other: Path) -> bool:
        self._step("exchange")
        return self.exchanges and super().exchange(one, other)

    def remove_tree(self, path: Path) -> None:
        """Remove half, then the rest, so that a crash may come between."""
        self._step("remove_tree")
        for name in sorted(os.listdir(path))[::2]:
            (path / name).unlink()
        self._step("remove_tree")
        super().remove_tree(path)


def crashing_at(number: int) -> FailingDisk:
    """A disk of a process that is killed at that operation."""
    return FailingDisk(lambda count, name: Crash() if count >= number else None)


def full_at(number: int) -> FailingDisk:
    """A disk that is full from that operation on; removing still works."""
    full = OSError(errno.ENOSPC, "No space left on device")
    makes = ("make_directory", "create", "write", "sync")
    return FailingDisk(lambda count, name: full if count >= number and name in makes else None)


class ForgetfulDisk(FailingDisk):
    """A disk that keeps nothing when the power goes but what was synced.

    `lose_power` makes it so: files that were not synced are empty, entries of directories that were not
    synced since are as they were.
    """

    def __init__(self, fails: Callable[[int, str], BaseException | None]) -> None:
        super().__init__(fails)
        self._paths: dict[int, Path] = {}
        self._unsynced: set[Path] = set()
        self._entries: list[
            tuple[Path, Path | None]
        ] = []  # what appeared in a directory, and its name before

    def make_directory(self, path: Path) -> None:
        super().make_directory(path)
        self._entries.append((path, None))

    def create(self, path: Path) -> int:
        descriptor = super().create(path)
        self._paths[descriptor] = path
        self._unsynced.add(path)
        self._entries.append((path, None))
        return descriptor

    def sync(self, descriptor: int) -> None:
        super().sync(descriptor)
        self._unsynced.discard(self._paths[descriptor])

    def sync_directory(self, path: Path) -> None:
        super().sync_directory(path)
        self._entries = [(entry, before) for entry, before in self._entries if entry.parent != path]

    def rename(self, old: Path, new: Path) -> None:
        super().rename(old, new)

        def moved(path: Path) -> Path:
            return new / path.name if path.parent == old else path

        self._unsynced = set(map(moved, self._unsynced))
        self._entries = [(moved(entry), before) for entry, before in self._entries]
        self._entries.append((new, old))

    def lose_power(self) -> None:
        """What was not synced is lost."""
        for path in self._unsynced:
            if path.exists():
                path.write_bytes(b"")
        for entry, before in reversed(self._entries):
            if not entry.exists():
                continue
            if before is not None:
                entry.rename(before)
            elif entry.is_dir():
                shutil.rmtree(entry)
            else:
                entry.unlink()
