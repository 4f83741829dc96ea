"""OwnSteps: the steps of one session of a worker, as the chief is told of them."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from asyncstep._runtime.transaction import Fate, root_of
from asyncstep.distributed.messages import Undo

if TYPE_CHECKING:
    from asyncstep._runtime.transaction import Transaction
    from asyncstep.distributed.messages import Member
    from asyncstep.distributed.outbox import Outbox


class OwnSteps:
    """The steps that are under way, and their numbers.

    Args:
        member: whose they are.
        outbox: takes what they give back to the chief.

    Attributes:
        last: the one that has ended last; None if none has.
        silent: whether the chief is told of no end of a step any more, because the session has ended.
    """

    __slots__ = ("_member", "_numbers", "_outbox", "_steps", "_under_way", "last", "silent")

    def __init__(self, member: Member, outbox: Outbox) -> None:
        self._member = member
        self._outbox = outbox
        self._numbers = itertools.count(1)
        self._steps: dict[Transaction, OwnStep] = {}
        self._under_way: dict[int, None] = {}  # the numbers of steps that are not over, in order
        self.last: OwnStep | None = None
        self.silent: bool = False

    def __contains__(self, root: Transaction) -> bool:
        return root in self._steps

    def of(self, transaction: Transaction, number: int | None = None) -> OwnStep:
        """The step of a transaction; if it has none yet it gets a number, which may be one that was kept for it."""
        transaction = root_of(transaction)
        step = self._steps.get(transaction)
        if step is None:
            step = self._steps[transaction] = OwnStep(self.new_number() if number is None else number)
            if transaction.finished:  # it has ended without waiting for this run
                del self._steps[transaction], self._under_way[step.number]
            else:
                transaction.call_at_end(lambda: self._leave(transaction))
        return step

    def around(self, transaction: Transaction) -> int:
        """The number of the step that the step of a transaction is run in; 0 if there is none."""
        root = root_of(transaction)
        outer = root.outer
        while outer is not None:
            step = self._steps.get(root_of(outer))
            if step is not None and root_of(outer) is not root:
                return step.number
            outer = outer.outer
        return 0

    def below(self) -> int:
        """The lowest number of a step that is under way, or of which the chief may not know yet that it is not.

        What a step has given back may be on its way longer than what a later step sends.
        """
        lowest = self._outbox.giving_back()
        lowest += itertools.islice(self._under_way, 1)
        return min(lowest) if lowest else next(self._numbers)

    def new_number(self) -> int:
        """The number of a step that begins, or that is kept for one that will."""
        number = next(self._numbers)
        self._under_way[number] = None
        return number

    def drop(self, number: int) -> None:
        """No step is going to have a number that was kept, and the chief knows nothing of it."""
        del self._under_way[number]

    def give_up(self, number: int) -> None:
        """No step is going to have a number that was kept; what the chief has given ahead for it comes back."""
        self.drop(number)
        self.give_back(number, (1,), Fate.NEVER_SEEN, over=True)

    def give_back(self, number: int, takes: tuple[int, ...], fate: Fate, *, over: bool = False) -> None:
        """Tell the chief that a step has rolled some of its takes back, or is over."""
        if not self.silent:
            self._outbox.post(Undo(self._member, number, self.below(), takes, fate, over))

    def _leave(self, root: Transaction) -> None:
        step = self.last = self._steps.pop(root)
        del self._under_way[step.number]
        if step.entered and not step.over:
            self.give_back(step.number, (), Fate.GIVE_AGAIN, over=True)


class OwnStep:
    """A step of this session, as the chief is told of it.

    Attributes:
        number: of the step.
        commits, takes: count those of the step.
        began_with: the source that it asked for an item before anything else.
        entered: whether the chief waits for its end, because it may feed a queue.
        over: whether the chief knows that it is over.
    """

    __slots__ = ("began_with", "commits", "entered", "number", "over", "takes")

    def __init__(self, number: int) -> None:
        self.number: int = number
        self.commits: int = 0
        self.takes: int = 0
        self.began_with: str | None = None
        self.entered: bool = False
        self.over: bool = False

    def new_take(self) -> int:
        """The number of one more take."""
        self.takes += 1
        return self.takes

    @property
    def took_one(self) -> bool:
        """Whether it began with an item, has asked for no other, and has committed that at once."""
        return self.began_with is not None and self.takes == self.commits == 1
