"""Fixtures of pytest, for who asks for them: ``pytest_plugins = ["asyncstep.testing.fixtures"]`` in a conftest.py."""

from __future__ import annotations

from typing import Any

import pytest

from asyncstep.testing.recording import RecordingHook
from asyncstep.testing.virtual_time import virtual_backend


@pytest.fixture(params=["asyncio", "trio"])
def virtual_time_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """The backends of anyio on virtual time, one after the other: asyncio, and trio if it is installed.

    A module whose tests are all to run so has the fixture that anyio's pytest plugin asks for::

        @pytest.fixture
        def anyio_backend(virtual_time_backend):
            return virtual_time_backend
    """
    if request.param == "trio":
        pytest.importorskip("trio")
    return virtual_backend(request.param)


@pytest.fixture
def recording_hook() -> RecordingHook:
    """A `RecordingHook` without a name."""
    return RecordingHook()
