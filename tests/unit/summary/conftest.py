"""A disk whose failures tests decide on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from asyncstep.summary import writers

from .parts import Disk


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Disk]]:
    """The disk of the test's summaries, which works at first, and at the end."""
    monkeypatch.setattr(writers, "AppendedFile", Disk)
    Disk.full = False
    Disk.goes_on.set()
    yield Disk
    Disk.full = False
    Disk.goes_on.set()
