"""Waiting: who waits for an item of a queue, and when nothing more can come.

A step that waits is *free* no more: it cannot commit, so it cannot feed a queue, before it has an item. The
data has ended when nobody is free of the steps that have to do with a queue. All queues of a session are
looked at together, because steps may wait for each other crosswise. A step inside another one, as that of a
hook, blocks the other, too: so there is no way to wait for what only the waiting keeps from coming.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import anyio

from asyncstep._runtime.transaction import root_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from asyncstep._runtime.transaction import Items, Transaction


class Queued(Protocol):
    """A queue that steps wait for.

    Attributes:
        waiters: the takes that wait, in the order in which they asked.
    """

    waiters: dict[Waiter, None]


class Waiter:
    """One take that waits.

    Attributes:
        transaction: the run that asked.
        event: set when the waiting is over.
        given: what it got; None if it got nothing, because the data has ended or the session is closed.
        puts_itself: whether the data has ended for it although its own step has put something.
        blocked: the steps that cannot end before it has; none any more when the waiting is over.
    """

    __slots__ = ("blocked", "event", "given", "puts_itself", "transaction")

    def __init__(self, transaction: Transaction) -> None:
        self.transaction: Transaction = transaction
        self.given: Any = None
        self.puts_itself: bool = False
        self.event: anyio.Event = anyio.Event()
        self.blocked: list[Step] = []


class Step:
    """A step that has taken from a queue, or put into one, and is not over.

    Attributes:
        waits: how many takes wait in it, or in steps inside it.
        puts: how often it has put something that is not committed.
        over: whether it has ended.
    """

    __slots__ = ("over", "puts", "waits")

    def __init__(self) -> None:
        self.waits: int = 0
        self.puts: int = 0
        self.over: bool = False


class Waiting:
    """The steps that have to do with the queues of one raw session."""

    def __init__(self) -> None:
        self._steps: dict[Transaction, Step] = {}
        self._free = 0
        self._queues: list[Queued] = []

    def add(self, queue: Queued) -> None:
        """One more queue of the session."""
        self._queues.append(queue)

    def join(self, transaction: Transaction) -> Step:
        """The step that a run belongs to; from now on until its end it may feed a queue."""
        root = root_of(transaction)
        step = self._steps.get(root)
        if step is None:
            step = Step()
            if root.finished:  # it has ended without waiting for this run, which can put nothing any more
                step.over = True
                return step
            self._steps[root] = step
            self._free += 1
            root.call_at_end(lambda: self._leave(root, step))
        return step

    async def item(self, queue: Queued, transaction: Transaction) -> Waiter:
        """Wait until something was given to this take, or nothing more can come. Checkpoint: if it waits."""
        waiter = Waiter(transaction)
        queue.waiters[waiter] = None
        self._block(waiter)
        try:
            self._end_if_nobody_is_free()
            if not waiter.event.is_set():
                await waiter.event.wait()
        finally:
            if waiter in queue.waiters:  # a cancellation
                del queue.waiters[waiter]
                self._release(waiter)
        return waiter

    def give(self, queue: Queued, items: Items) -> None:
        """Give something to the take that has waited longest; it is its step's from now on.

        So nothing is lost if that take is cancelled before it has a turn: its step is rolled back.
        """
        waiter = next(iter(queue.waiters))
        del queue.waiters[waiter]
        waiter.given = items
        waiter.transaction.hold(items)
        self._wake(waiter)

    def dismiss(self, queue: Queued) -> None:
        """Give nothing to all that wait for a queue."""
        waiters = list(queue.waiters)
        queue.waiters.clear()
        for waiter in waiters:
            self._wake(waiter)

    def _end_if_nobody_is_free(self) -> None:
        if self._free:
            return
        queues = [queue for queue in self._queues if queue.waiters]
        for queue in queues:
            for waiter in queue.waiters:
                waiter.puts_itself = any(step.puts for step in waiter.blocked)
        for queue in queues:
            self.dismiss(queue)

    def _wake(self, waiter: Waiter) -> None:
        self._release(waiter)
        waiter.event.set()

    def _block(self, waiter: Waiter) -> None:
        for transaction in _around(waiter.transaction):
            step = self._steps.get(transaction)
            if step is not None:
                waiter.blocked.append(step)
                step.waits += 1
                if step.waits == 1:
                    self._free -= 1

    def _release(self, waiter: Waiter) -> None:
        blocked, waiter.blocked = waiter.blocked, []
        for step in blocked:
            step.waits -= 1
            if not step.waits and not step.over:
                self._free += 1

    def _leave(self, root: Transaction, step: Step) -> None:
        del self._steps[root]
        step.over = True
        if not step.waits:
            self._free -= 1
        self._end_if_nobody_is_free()


def _around(transaction: Transaction) -> Iterator[Transaction]:
    """A transaction, and all that cannot end before it has."""
    seen: set[Transaction] = set()
    pending: list[Transaction | None] = [transaction]
    while pending:
        each = pending.pop()
        if each is not None and each not in seen:
            seen.add(each)
            yield each
            pending += (each.parent, each.outer)
