"""Section K under native cancels, which pierce shields: asyncio's `Task.cancel()` while a checkpoint is at work."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

import asyncstep.checkpoint.saver
from asyncstep.checkpoint import CheckpointInfo, list_checkpoints
from asyncstep.hooks import CheckpointSaverHook

from .saving_parts import LONG, Counting, HeldSaver, newest

pytestmark = pytest.mark.asyncio


async def test_an_opening_that_is_cancelled_gives_the_lock_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """K9: a cancel that comes while the lock is being taken leaves none behind."""
    began, go_on = threading.Event(), threading.Event()

    def held(directory: Path) -> list[CheckpointInfo]:
        began.set()
        assert go_on.wait(LONG)
        return list_checkpoints(directory)

    async def opening() -> None:
        async with Counting().session(CheckpointSaverHook(tmp_path, save_steps=1)):
            pytest.fail("opened")

    with monkeypatch.context() as patched:
        patched.setattr(asyncstep.checkpoint.saver, "list_checkpoints", held)
        task = asyncio.create_task(opening())
        await asyncio.to_thread(began.wait, LONG)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        go_on.set()
    for thread in threading.enumerate():
        if thread.name.startswith("asyncstep-saver"):
            await asyncio.to_thread(thread.join, LONG)
    made = Counting()
    async with made.session(CheckpointSaverHook(tmp_path, save_steps=1)) as session:
        await made.steps(session, 1)


async def test_a_cancel_while_closing_waits_for_the_last_save(tmp_path: Path) -> None:
    """K5, L6: the cancellation is raised when the last checkpoint is durable."""
    made, saver = Counting(), HeldSaver()
    saver.gate.clear()

    async def run() -> None:
        async with made.session(CheckpointSaverHook(tmp_path, save_steps=100, saver=saver)) as session:
            await made.steps(session, 3)

    task = asyncio.create_task(run())
    await saver.is_asked()
    task.cancel()
    saver.gate.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert newest(tmp_path).variables["count"] == 3
