"""K2, K3, K5: a disk that is full in the middle of a save."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from asyncstep import ChiefSessionCreator, Graph, MonitoredSession, StepContext, Variable, source
from asyncstep.checkpoint import latest_checkpoint, local, read_checkpoint
from asyncstep.checkpoint.file_system import OperatingSystem
from asyncstep.hooks import CheckpointSaverHook

pytestmark = pytest.mark.anyio

ITEMS = 10**9
"""So many that the data does not end before a save has failed."""


class Disk(OperatingSystem):
    """A disk on which some operations find that it is full; removing always works.

    Attributes:
        count: how many operations there were that need space.
        full: the numbers, from 1 on, of those that fail.
    """

    count = 0
    full = range(0)

    def _use(self) -> None:
        Disk.count += 1
        if Disk.count in Disk.full:
            raise OSError(errno.ENOSPC, "No space left on device")

    def make_directory(self, path: Path) -> None:
        self._use()
        super().make_directory(path)

    def create(self, path: Path) -> int:
        self._use()
        return super().create(path)

    def write(self, descriptor: int, content: memoryview) -> int:
        """Write a part, so that a file takes several writes."""
        self._use()
        return super().write(descriptor, content[:200])

    def sync(self, descriptor: int) -> None:
        """Where some file systems find that there is no space."""
        self._use()
        super().sync(descriptor)


@pytest.fixture(autouse=True)
def _disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """The checkpoints of these tests are on such a disk, which has space at first."""
    monkeypatch.setattr(local, "OperatingSystem", Disk)
    fill(range(0))


def fill(full: range) -> None:
    """Count the operations from now on; those in `full` fail."""
    Disk.count, Disk.full = 0, full


async def train(directory: Path, steps: int = ITEMS, *, save_on_error: bool = True) -> None:
    """Go on from the newest checkpoint for so many steps, and save all the while."""
    with Graph() as graph:
        item = source(range(ITEMS), name="numbers")
        add = Variable(0, name="total").update(lambda total, new: total + new, item)
    saver = CheckpointSaverHook(directory, save_steps=1, save_on_error=save_on_error)
    creator = ChiefSessionCreator(graph=graph, checkpoint_dir=directory)
    first: int | None = None

    async def step(ctx: StepContext) -> None:
        nonlocal first
        await ctx.run_with_hooks(add)
        first = session.global_step if first is None else first
        if session.global_step >= first + steps - 1:
            ctx.request_stop()

    async with MonitoredSession(creator, [saver]) as session:
        await session.loop(step)


def newest(directory: Path) -> int:
    """The step of the newest checkpoint, which is sound and agrees with itself."""
    path = latest_checkpoint(directory)
    assert path is not None
    found = read_checkpoint(path)
    assert found.variables["total"] == sum(range(found.step))
    assert found.sources["numbers"]["position"] == found.step
    return found.step


def leftovers(directory: Path) -> list[str]:
    """What is in the directory besides checkpoints and the lock."""
    return [path.name for path in directory.iterdir() if not path.name.startswith(("step-", ".lock"))]


async def test_the_former_checkpoint_is_the_newest(tmp_path: Path) -> None:
    """K2, K3, K5: wherever in a save the disk is full, the session ends with the disk's own error, the former
    checkpoint is the newest, nothing of the new one is left, and with space again it goes on from there."""
    await train(tmp_path, 1)
    operations = Disk.count - 1  # the first made the directory
    assert operations >= 8
    for number in range(1, operations + 1):
        former = newest(tmp_path)
        fill(range(number, 10**9))
        with pytest.raises(OSError, match="No space left") as caught:
            await train(tmp_path, save_on_error=False)
        assert caught.value.errno == errno.ENOSPC
        fill(range(0))
        assert newest(tmp_path) == former
        assert leftovers(tmp_path) == []
        await train(tmp_path, 1)
        assert newest(tmp_path) == former + 1


async def test_the_last_save_is_tried_all_the_same(tmp_path: Path) -> None:
    """K5: when the disk has space again by then, the last state is saved, and the error is raised bare."""
    await train(tmp_path, 1)
    fill(range(3, 4))
    with pytest.raises(OSError, match="No space left"):
        await train(tmp_path)
    assert newest(tmp_path) > 1
    assert leftovers(tmp_path) == []


async def test_a_disk_that_stays_full_has_both_errors_raised(tmp_path: Path) -> None:
    """K5, E2: the last save fails, too: both errors of the disk are raised, and the former checkpoint stays."""
    await train(tmp_path, 1)
    fill(range(3, 10**9))
    with pytest.raises(ExceptionGroup) as caught:
        await train(tmp_path)
    assert [getattr(error, "errno", None) for error in caught.value.exceptions] == [errno.ENOSPC] * 2
    fill(range(0))
    assert newest(tmp_path) == 1
