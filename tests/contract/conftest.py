"""Runs the tests of what concerns the state on both kinds of it: that of this process, and that with a chief."""

from __future__ import annotations

import pytest

from asyncstep._monitored import recovery

from .with_chief import with_a_chief

STATE_TOO = frozenset(
    [
        "test_cancellation",
        "test_checkpoints",
        "test_data",
        "test_data_ahead",
        "test_data_restore",
        "test_errors",
        "test_incarnations",
        "test_life_closing",
        "test_queue",
        "test_recovery",
        "test_restoring",
        "test_run",
        "test_saving",
        "test_stop",
        "test_stop_groups",
        "test_transactions",
        "test_workers",
    ]
)
"""The modules whose tests are run on a distributed state, too."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Each test of them, with both kinds of state."""
    name = metafunc.module.__name__.rpartition(".")[2]
    if name in STATE_TOO and "anyio_backend" in metafunc.fixturenames:
        metafunc.parametrize("state", ["here", "chief"], indirect=True)


@pytest.fixture(autouse=True)
def state(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where the state of the test's sessions is."""
    kind: str = getattr(request, "param", "here")
    if kind == "chief":
        monkeypatch.setattr(recovery, "_created", with_a_chief(recovery._created))
    return kind
