"""A disk whose failures tests decide on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from asyncstep.summary import shared, writers

from .parts import Disk, threads


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Disk]]:
    """The disk of the test's summaries, which works at first, and at the end."""
    monkeypatch.setattr(writers, "AppendedFile", Disk)
    Disk.full = False
    Disk.goes_on.set()
    yield Disk
    Disk.full = False
    Disk.goes_on.set()


@pytest.fixture(autouse=True)
def _everything_is_closed() -> Iterator[None]:
    """No test, and no session, leaves a thread, or a writer that others would share."""
    yield
    assert (threads(), shared._writers) == ([], {})
