"""Fixtures of pytest, for who asks for them: ``pytest_plugins = ["asyncstep.testing.fixtures"]`` in a conftest.py."""

from __future__ import annotations

import pytest

from asyncstep.testing.recording import RecordingHook


@pytest.fixture
def recording_hook() -> RecordingHook:
    """A `RecordingHook` without a name."""
    return RecordingHook()
