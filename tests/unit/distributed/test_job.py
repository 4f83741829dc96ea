"""Job: what each event changes of what is known of a launch."""

from __future__ import annotations

from typing import Any

import pytest

from asyncstep.distributed.job import KEPT_STOPS, MAX_RESTARTS, Job, Refusal, RefusedError


def told(job: Job) -> dict[str, Any]:
    """What is told of a job, but for its version."""
    return {name: value for name, value in job.view().items() if name != "version"}


def refused(refusal: Refusal) -> Any:
    """Something is refused, for that reason."""
    return pytest.raises(RefusedError, check=lambda error: error.args[0] is refusal)


def test_a_new_job_has_nothing() -> None:
    """No chief, no stop, no programs, no progress."""
    assert told(Job(2, 10)) == {
        "seat": None,
        "stop": None,
        "ended": False,
        "lives": {},
        "done": [],
        "cancelled": False,
        "progress": 0,
    }


def test_each_start_has_a_number_of_its_own() -> None:
    """X: the life that was there before is lost, so what it sends late is refused."""
    job = Job(2, 10)
    first, other, second = job.start(0, "a", 0), job.start(1, "a", 0), job.start(0, "b", 1)
    assert len({first, other, second}) == 3
    assert job.view()["lives"] == {0: second, 1: other}
    assert job.starts(0) == 2
    with refused(Refusal.LOST):
        job.hear(first, 2)


def test_a_life_that_is_not_heard_of_is_lost() -> None:
    """At the end of its lease, and not before; who was heard of has a lease from then on."""
    job = Job(2, 10)
    silent, heard = job.start(0, "a", 0), job.start(1, "b", 0)
    job.hear(heard, 8)
    assert job.lose_overdue(10) == []
    assert job.lose_overdue(11) == [silent]
    assert job.view()["lives"] == {1: heard}
    with refused(Refusal.LOST):
        job.hear(silent, 12)


def test_a_registry_that_slept_takes_nobody_for_lost() -> None:
    """All leases begin anew."""
    job = Job(1, 10)
    job.start(0, "a", 0)
    job.hear_all(100)
    assert job.lose_overdue(110) == []


def test_a_lost_life_that_is_heard_of_gets_another_number() -> None:
    """X: its steps were rolled back, so it is another member."""
    job = Job(1, 10)
    lost = job.start(0, "a", 0)
    job.lose_overdue(11)
    revived = job.revive(lost, 0, "a", 12)
    assert revived != lost
    assert job.view()["lives"] == {0: revived}
    assert job.revive(revived, 0, "a", 13) == revived


def test_a_lost_life_does_not_come_back_beside_its_successor() -> None:
    """Neither while that runs, nor when it has ended."""
    job = Job(1, 10)
    lost = job.start(0, "a", 0)
    successor = job.start(0, "b", 1)
    with refused(Refusal.SUPERSEDED):
        job.revive(lost, 0, "a", 2)
    job.finish(successor)
    with refused(Refusal.SUPERSEDED):
        job.revive(lost, 0, "a", 3)


def test_with_a_dask_worker_all_goes_that_runs_on_it() -> None:
    """And nothing else."""
    job = Job(3, 10)
    job.start(0, "a", 0)
    job.start(1, "a", 0)
    other = job.start(2, "b", 0)
    job.lose_worker("a")
    assert job.view()["lives"] == {2: other}


def test_each_chief_has_a_higher_epoch() -> None:
    """X: so the messages to the one before are known as such."""
    job = Job(2, 10)
    life = job.start(0, "a", 0)
    assert job.take_seat(life) == 1
    assert job.view()["seat"] == ("a", 1)
    again = job.start(0, "b", 1)
    assert job.view()["seat"] is None
    assert job.take_seat(again) == 2
    assert job.view()["seat"] == ("b", 2)


@pytest.mark.parametrize("end", ["lost", "finished", "overdue", "left"])
def test_a_seat_is_vacant_when_its_holder_goes(end: str) -> None:
    """In whichever way."""
    job = Job(1, 10)
    life = job.start(0, "a", 0)
    epoch = job.take_seat(life)
    {
        "lost": lambda: job.lose_worker("a"),
        "finished": lambda: job.finish(life),
        "overdue": lambda: job.lose_overdue(11),
        "left": lambda: job.leave_seat(epoch),
    }[end]()
    assert job.view()["seat"] is None


def test_who_leaves_late_does_not_leave_the_seat_of_another() -> None:
    """The call may come after the next chief's."""
    job = Job(1, 10)
    first = job.take_seat(job.start(0, "a", 0))
    second = job.take_seat(job.start(0, "b", 1))
    job.leave_seat(first)
    assert job.view()["seat"] == ("b", second)


def test_the_first_stop_counts() -> None:
    """S1: the others change nothing."""
    job = Job(2, 10)
    job.stop("requested", "enough", "worker 1")
    job.stop("signal", "", "SIGINT")
    assert job.view()["stop"] == ("requested", "enough", "worker 1")


@pytest.mark.parametrize("kind", ["requested", "end_of_data", "hook", "signal", "error", "cancelled"])
def test_the_next_chief_finds_stops_that_are_not_of_the_state(kind: str) -> None:
    """The end of the data it finds by itself, if its state is at it; a signal it could not."""
    job = Job(1, 10)
    job.take_seat(job.start(0, "a", 0))
    job.stop(kind, "", "")
    job.take_seat(job.start(0, "b", 1))
    assert (job.view()["stop"] is not None) == (kind in KEPT_STOPS)


def test_who_has_ended_is_done_until_it_is_started_again() -> None:
    """As Dask does if the process dies before the result is fetched."""
    job = Job(2, 10)
    job.finish(job.start(1, "a", 0))
    assert (job.view()["lives"], job.view()["done"]) == ({}, [1])
    job.start(1, "b", 1)
    assert job.view()["done"] == []


def test_a_cancelled_job_starts_nothing() -> None:
    """Nor does it let a lost program go on."""
    job = Job(1, 10)
    life = job.start(0, "a", 0)
    job.cancel()
    assert job.view()["cancelled"]
    for start in (lambda: job.start(0, "a", 1), lambda: job.revive(life, 0, "a", 1)):
        with refused(Refusal.CANCELLED):
            start()


def test_restarts_are_bounded_while_there_is_no_progress() -> None:
    """Each index has its own count, which begins again where the job has come further."""
    job = Job(2, 10)
    for _ in range(1 + MAX_RESTARTS):
        job.start(0, "a", 0)
    with refused(Refusal.RESTARTS):
        job.start(0, "a", 0)
    job.start(1, "a", 0)
    job.advance(1)
    for _ in range(1 + MAX_RESTARTS):
        job.start(0, "a", 0)
    with refused(Refusal.RESTARTS):
        job.start(0, "a", 0)


def test_progress_does_not_go_back() -> None:
    """A chief that was started again reports its way from the checkpoint on."""
    job = Job(1, 10)
    job.advance(7)
    job.advance(3)
    assert job.view()["progress"] == 7


def test_only_what_is_news_raises_the_version() -> None:
    """Who watches is answered when it does."""
    job = Job(2, 10)
    life = job.start(0, "a", 0)
    epoch = job.take_seat(life)
    job.stop("signal", "", "")
    job.end()
    before = job.version
    for repeat in (
        lambda: job.hear(life, 1),
        lambda: job.hear_all(1),
        lambda: job.lose_overdue(2),
        lambda: job.lose_worker("elsewhere"),
        lambda: job.leave_seat(epoch - 1),
        lambda: job.stop("error", "", ""),
        job.end,
        lambda: job.advance(5),
    ):
        repeat()
        assert job.version == before
    for event in (lambda: job.leave_seat(epoch), lambda: job.finish(life), job.cancel):
        event()
        assert job.version > before
        before = job.version
