"""Guest: a session of another program that takes part in the state of this one's, and its steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anyio

from asyncstep._runtime.transaction import Fate

if TYPE_CHECKING:
    from collections.abc import Callable

    from asyncstep._runtime.transaction import Items, Transaction
    from asyncstep.distributed.messages import Answer

    Answering = Callable[[Answer], None]


class Guest:
    """A session of another program that takes part.

    Attributes:
        index: of the program.
        view: the version of the job's view that it had when it joined.
        steps: those of its steps that are known here and not over.
        below: all steps below this one are over.
        over: others that are.
        idle: whether its loop has ended.
        functions: those of its updates, by its numbers.
    """

    __slots__ = ("below", "functions", "idle", "index", "over", "steps", "view")

    def __init__(self, index: int, view: int) -> None:
        self.index: int = index
        self.view: int = view
        self.idle: bool = False
        self.steps: dict[int, GuestStep] = {}
        self.below: int = 0
        self.over: set[int] = set()
        self.functions: dict[int, Callable[..., Any]] = {}


class GuestStep:
    """A step of another program.

    Attributes:
        root: its transaction.
        takes: what it has asked the sources for, by its numbers.
        undone: the numbers of what it has given back.
        fetching: how many of its takes wait for their item.
    """

    __slots__ = ("_over", "fetching", "root", "takes", "undone")

    def __init__(self, root: Transaction) -> None:
        self.root: Transaction = root
        self.takes: dict[int, Taking] = {}
        self.undone: set[int] = set()
        self.fetching: int = 0
        self._over = False

    def abandon(self) -> None:
        """Give all back that it has and has not committed; it is over."""
        for taking in self.takes.values():
            taking.undo(Fate.GIVE_AGAIN)
        self.end()

    def end(self) -> None:
        """It is over."""
        self._over = True
        self._end_if_nothing_comes()

    def fetched(self) -> None:
        """One of its takes waits no more."""
        self.fetching -= 1
        self._end_if_nothing_comes()

    def _end_if_nothing_comes(self) -> None:
        """Until then a queue's item may be on its way to it, and is to go to another step before the data can end."""
        if self._over and not self.fetching:
            self.root.finished = True
            if self.root.at_end is not None:
                self.root.over()


class Taking:
    """What a step has asked a source for.

    Attributes:
        transaction: holds what it is given.
        scope: cancelled if the step does not want it any more.
        items: what it was given, until that is committed or given back.
        reply: once it is known.
        answers: who waits for that.
        abandoned: whether the step does not want it any more.
    """

    __slots__ = ("abandoned", "answers", "items", "reply", "scope", "transaction")

    def __init__(self, transaction: Transaction) -> None:
        self.transaction: Transaction = transaction
        self.scope: anyio.CancelScope = anyio.CancelScope()
        self.items: list[Items] = []
        self.reply: Any = None
        self.answers: list[Answering] = []
        self.abandoned: bool = False

    @property
    def holds_items(self) -> bool:
        """Whether there is something that would be given again if the program died."""
        return bool(self.items or (self.reply is None and self.transaction.items))

    def undo(self, fate: Fate) -> None:
        """The step that asked for this is rolled back."""
        self.abandoned = True
        if self.reply is None:
            self.scope.cancel()
        items, self.items = self.items, []
        for each in items:
            each.undone(fate)
