"""What every test shares: the three event loops that asyncstep promises to run on."""

from __future__ import annotations

from typing import Any

import pytest

BACKENDS: dict[str, tuple[str, dict[str, Any]]] = {
    "asyncio": ("asyncio", {"use_uvloop": False}),
    "uvloop": ("asyncio", {"use_uvloop": True}),
    "trio": ("trio", {}),
}


def pytest_addoption(parser: pytest.Parser) -> None:
    """How long the tests of faults take."""
    parser.addoption(
        "--kills", type=int, default=56, help="how often tests/faults kills a process (default: %(default)s)"
    )


@pytest.fixture(params=list(BACKENDS.values()), ids=list(BACKENDS))
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """The backend of a test marked `anyio`: asyncio, asyncio on uvloop, and trio, one after the other."""
    backend: tuple[str, dict[str, Any]] = request.param
    return backend
