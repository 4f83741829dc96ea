"""The ledger of commits whose answers may not have arrived."""

from __future__ import annotations

import pytest

from asyncstep.distributed import ledger as module
from asyncstep.distributed.ledger import Ledger


def test_a_commit_is_known_until_it_is_forgotten() -> None:
    """By its member, step and number; what is below a step is forgotten, or all of a member that leaves."""
    ledger = Ledger("job")
    for step in (1, 2):
        ledger.add((1, 1), step, 1, 10 * step)
    ledger.add((2, 1), 1, 1, None)
    assert ledger.find((1, 1), 2, 1) == (20,)
    assert ledger.find((2, 1), 1, 1) == (None,)
    assert ledger.find((1, 1), 2, 2) is None
    ledger.forget((1, 1), 2)
    assert ledger.find((1, 1), 1, 1) is None
    assert ledger.find((1, 1), 2, 1) == (20,)
    ledger.leave((1, 1))
    assert ledger.find((1, 1), 2, 1) is None


def test_a_checkpoint_has_it_for_the_same_job_only() -> None:
    """The numbers of another job mean other programs."""
    ledger = Ledger("job")
    ledger.add((1, 2), 3, 4, 5)
    for job, found in (("job", (5,)), ("another", None)):
        restored = Ledger(job)
        restored.load_state_dict(ledger.state_dict())
        assert restored.find((1, 2), 3, 4) == found


def test_workers_that_die_do_not_make_it_grow_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """The commits of those go that were heard of first."""
    monkeypatch.setattr(module, "MOST_MEMBERS", 3)
    ledger = Ledger("job")
    for life in range(5):
        ledger.add((life, 1), 1, 1, life)
    assert [ledger.find((life, 1), 1, 1) for life in range(5)] == [None, None, (2,), (3,), (4,)]
