"""Ledger: the commits whose answer may not have reached who sent them, so that none is applied twice."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from asyncstep.distributed.messages import Member

LEDGER = "asyncstep.distributed"
"""The name under which checkpoints have it, among the states of hooks."""

MOST_MEMBERS = 10_000
"""Of so many at most, commits are kept; a worker that has died asks no more, and nobody can tell that it will not."""


class Ledger:
    """The commits of workers that they may still ask about, with the global step of each.

    It is a part of every checkpoint: a commit that is in one, and whose answer was lost with the chief, is
    known to the next chief, and so is not made a second time (contract X). There are no more of them than
    there are steps under way, and a few of workers that have died.

    Args:
        job: what the numbers belong to; those of another job mean nothing to this one.
    """

    def __init__(self, job: str) -> None:
        self._job = job
        self._commits: dict[Member, dict[tuple[int, int], int | None]] = {}

    def add(self, member: Member, step: int, number: int, global_step: int | None) -> None:
        """A commit has been made."""
        commits = self._commits.get(member)
        if commits is None:
            if len(self._commits) >= MOST_MEMBERS:
                del self._commits[next(iter(self._commits))]
            commits = self._commits[member] = {}
        commits[step, number] = global_step

    def forget(self, member: Member, below: int) -> None:
        """The worker has the answers to all commits of steps below this one."""
        commits = self._commits.get(member)
        if commits:
            for key in [key for key in commits if key[0] < below]:
                del commits[key]
            if not commits:
                del self._commits[member]

    def leave(self, member: Member) -> None:
        """A worker has ended, and asks about nothing any more."""
        self._commits.pop(member, None)

    def find(self, member: Member, step: int, number: int) -> tuple[int | None] | None:
        """The global step of a commit, in a tuple; None if there was no such commit."""
        commits = self._commits.get(member, {})
        return (commits[step, number],) if (step, number) in commits else None

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {
            "job": self._job,
            "commits": [
                [*member, *key, value]
                for member, commits in self._commits.items()
                for key, value in commits.items()
            ],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """From a checkpoint."""
        self._commits = {}
        if state["job"] == self._job:
            for life, joined, step, number, value in state["commits"]:
                self.add((life, joined), step, number, value)
