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

RESTORED = "a session whose state is elsewhere cannot be restored; see tests/unit/distributed"
LOOKS_INTO = (
    "what a worker knows of its variables is as of another instant than what the chief tells of a source"
)
OTHER_PROCESS = "an error that comes from another process is not the same object"
ARRIVAL = "what two steps are told at once arrives in either order"
HERE_ONLY = {
    "test_what_is_given_back_goes_to_a_step_that_waits_while_another_reads": ARRIVAL,
    "test_unique_puts_each_item_once": ARRIVAL,
    "test_with_strict_off_what_both_have_is_restored": RESTORED,
    "test_a_step_that_was_under_way_cannot_commit_into_a_restored_state": RESTORED,
    "test_a_step_cannot_restore_what_it_is_a_part_of": RESTORED,
    "test_a_creator_serves_another_session_after_work_could_not_be_recovered": RESTORED,
    "test_a_restore_in_the_middle_puts_the_queue_back": RESTORED,
    "test_no_task_ever_sees_a_part_of_a_commit": LOOKS_INTO,
    "test_a_state_agrees_with_what_is_committed_at_that_instant": LOOKS_INTO,
    "test_an_error_of_the_iterable_is_raised_and_not_taken_for_the_end": OTHER_PROCESS,
    "test_an_error_of_the_items_is_raised_by_the_step_that_would_get_the_item": OTHER_PROCESS,
    "test_an_interrupt_in_a_thread_is_raised_by_the_step_that_would_get_the_item": (
        "an interrupt ends the program that it comes to, which is the chief's"
    ),
    "test_a_session_closes_under_a_step_that_waits_for_a_source": (
        "the chief takes the question back, and so closes the iterator, as soon as the worker has left"
    ),
}
"""The tests in them that are of a state in this process only, and why."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Each test of them, with both kinds of state."""
    name = metafunc.module.__name__.rpartition(".")[2]
    if name in STATE_TOO and "anyio_backend" in metafunc.fixturenames:
        kinds = ["here"] if metafunc.function.__name__ in HERE_ONLY else ["here", "state_of_chief"]
        metafunc.parametrize("state", kinds, indirect=True)


@pytest.fixture(autouse=True)
def state(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where the state of the test's sessions is."""
    kind: str = getattr(request, "param", "here")
    if kind == "state_of_chief":
        monkeypatch.setattr(recovery, "_created", with_a_chief(recovery._created))
    return kind
