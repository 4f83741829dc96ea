"""Ahead: the items that came with the answers to commits, for steps that have not begun."""

from __future__ import annotations

import math
import time
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple

import anyio

from asyncstep._monitored.company import in_loop
from asyncstep.distributed.messages import Take

if TYPE_CHECKING:
    from anyio.abc import TaskGroup

    from asyncstep.distributed.messages import Given, Member
    from asyncstep.distributed.own_steps import OwnStep, OwnSteps

KEPT = 0.1
"""For so many seconds an item is kept that was given ahead; then others may have it."""


class Ahead:
    """What the next steps of a loop are likely to ask for, and what of it has come.

    A step is taken to be like the one before it where that one is like the one before that: it began with one item
    of a source, and committed it at once.

    Args:
        member: whose steps they are.
        steps: those of the session.
        group: where what no step wants waits until it is given back.
    """

    __slots__ = ("_expiry", "_given", "_group", "_member", "_steps")

    def __init__(self, member: Member, steps: OwnSteps, group: TaskGroup) -> None:
        self._member = member
        self._steps = steps
        self._group = group
        self._given: dict[str, deque[GivenAhead]] = {}  # by source
        self._expiry: anyio.CancelScope | None = None

    def __contains__(self, source: str) -> bool:
        return source in self._given

    def __bool__(self) -> bool:
        return bool(self._given)

    def asked_for(self, own: OwnStep) -> Take | None:
        """What the step after one that commits is going to ask for; None if that is not to be guessed."""
        source, last = own.began_with, self._steps.last
        if source is None or not own.took_one or not in_loop.get():
            return None
        if last is None or last.began_with != source or not last.took_one:
            return None
        return Take(self._member, self._steps.new_number(), self._steps.below(), 0, 1, source)

    def keep(self, take: Take, given: Given) -> None:
        """The chief has given what was asked for."""
        kept = GivenAhead(take.step, given.value, time.monotonic())
        self._given.setdefault(take.source, deque()).append(kept)
        if self._expiry is None:
            self._expiry = anyio.CancelScope()
            self._group.start_soon(self._return_late, self._expiry, name="return what was given ahead")

    def pop(self, source: str) -> GivenAhead | None:
        """What has come of a source, for the step that begins; None if there is nothing."""
        waiting = self._given.get(source)
        if waiting is None:
            return None
        given = waiting.popleft()
        if not waiting:
            del self._given[source]
        return given

    async def _return_late(self, scope: anyio.CancelScope) -> None:  # noqa: ASYNC910 - it ends if nothing is kept
        """Give back what no step has wanted in time."""
        with scope:
            while self._given:
                first = min(waiting[0].at for waiting in self._given.values())
                await anyio.sleep(max(0.0, first + KEPT - time.monotonic()))
                self.return_all(time.monotonic() - KEPT)
        if self._expiry is scope:
            self._expiry = None

    def return_all(self, until: float = math.inf) -> None:
        """Give back what has come no later than that."""
        for source, waiting in list(self._given.items()):
            while waiting and waiting[0].at <= until:
                self._steps.give_up(waiting.popleft().number)
            if not waiting:
                del self._given[source]

    def forget(self) -> None:
        """The session has ended: the chief gives to others what it has given to it."""
        self._given.clear()
        if self._expiry is not None:
            self._expiry.cancel()


class GivenAhead(NamedTuple):
    """An item for a step that has not begun.

    Attributes:
        number: the step's.
        value: the item.
        at: when it came.
    """

    number: int
    value: Any
    at: float
