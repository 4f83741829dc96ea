"""Evaluates a plan with as few tasks as the nodes' waiting needs: the spare-worker technique.

The caller's task evaluates the steps in topological order. Where more than one step could be under way,
it keeps exactly one *spare* task scheduled. The event loop gets to the spare only when the step that is
being awaited really suspends; the spare then schedules the next one and takes the next ready step. Steps
that do not suspend cost no task at all, steps that wait all overlap, and each step runs wholly inside one
task, so that cancel scopes, context variables and ``current_task()`` mean what they should.

As long as nobody has suspended, the values are appended in order and nothing is counted. The first spare
that gets a turn works out which steps are ready; from then on every finished step counts down its
consumers.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, NoReturn

import anyio

from asyncstep._graph.node import Node
from asyncstep._runtime.plan import AD_HOC, AWAIT, INLINE, MANY, NONE, ONE
from asyncstep._runtime.trace import NODE, traced
from asyncstep._runtime.transaction import add_note_once

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from anyio.abc import TaskGroup

    from asyncstep._runtime.plan import Plan
    from asyncstep._runtime.transaction import Transaction


async def evaluate(
    plan: Plan,
    values: list[Any],
    functions: Sequence[Callable[[], Awaitable[Any]]],
    transaction: Transaction,
    *,
    concurrency: int | None = None,
    trace: bool = False,
) -> list[Any]:
    """All values of a plan, by slot. `values` begins with those of the fed nodes.

    Args:
        concurrency: the most steps that are under way at a time.
        trace: whether each step is recorded, as a part of the span that this is called in.

    Raises:
        One step failed: its very error, with a note that names the node. Several failed before the
        others were cancelled: an ExceptionGroup of their errors (contract E1).

    Checkpoint: if a step of it is one.
    """
    if not trace and (plan.is_sequence or concurrency == 1):
        append = values.append
        try:
            for kind, call, pick in plan.steps:
                if kind == ONE:
                    append(await call(values[pick]))
                elif kind == MANY:
                    append(await call(*pick(values)))
                elif kind == INLINE:
                    append(call(values, transaction))
                elif kind == AD_HOC:
                    append(await functions[pick]())
                else:
                    append(await (call() if kind == NONE else call(values, transaction)))
        except Exception as error:
            name_node(error, plan, len(values) - plan.first, functions)
            raise
    else:
        await _Overlap(plan, values, functions, transaction, concurrency, trace).run()
    for name in plan.late:
        values.append(transaction.read(name))
    return values


def name_node(
    error: BaseException, plan: Plan, step: int, functions: Sequence[Callable[[], Awaitable[Any]]]
) -> None:
    """Note on an error in which node it happened (contract E1)."""
    leaf = plan.nodes[step]
    if isinstance(leaf, Node):
        add_note_once(error, f"in the node {leaf.name!r}")
    else:
        function = functions[leaf.index]
        add_note_once(error, f"in the fetched function {getattr(function, '__qualname__', repr(function))}")


class _Overlap:
    """One evaluation in which steps may overlap."""

    def __init__(
        self,
        plan: Plan,
        values: list[Any],
        functions: Sequence[Callable[[], Awaitable[Any]]],
        transaction: Transaction,
        concurrency: int | None,
        trace: bool,
    ) -> None:
        self.plan = plan
        self.values = values
        self.functions = functions
        self.transaction = transaction
        self.concurrency = concurrency
        self.trace = trace
        self.group: TaskGroup = anyio.create_task_group()
        self.ready: deque[int] = deque()
        self.waits: list[int] = []
        self.working = 1
        self.shared = False  # whether the steps are counted, because more than one task works on them
        self.over = False
        self.spare = False
        self.failures: list[BaseException] = []
        self.cancellation: BaseException | None = None

    async def run(self) -> None:
        """Append the values of all steps."""
        outer: BaseException | None = None
        try:
            async with self.group:
                await self._host()
        except BaseException as error:  # noqa: ASYNC103 - raised below, where no error is its context
            outer = error
        failures, cancellation = self.failures, self.cancellation
        # What is left of this evaluation must not hold its errors, nor be held by them (contract E5).
        self.failures, self.cancellation = [], None
        if outer is not None and not isinstance(outer, anyio.get_cancelled_exc_class()):
            failures.extend(outer.exceptions if isinstance(outer, BaseExceptionGroup) else (outer,))
        try:
            if failures:
                raise_together("several nodes of one run failed", failures)
            if outer is not None:
                raise outer
            if cancellation is not None:
                raise cancellation
        finally:
            del failures, cancellation, outer

    async def _host(self) -> None:
        """The caller's task: in order, until a spare has taken part; then like any other worker."""
        if self.trace:
            self._share(0, None)
        else:
            await self._ahead()
        if self.shared and not self.over:
            await self._work()
        elif not self.shared:
            self.over = True

    async def _ahead(self) -> None:
        """Append values in order; the spare is scheduled before the first step that another could overlap with."""
        steps, values, functions, transaction = self.plan.steps, self.values, self.functions, self.transaction
        first, index, alone = self.plan.first, 0, self.plan.alone
        try:
            for index, (kind, call, pick) in enumerate(steps):
                if index == alone:
                    self._schedule_spare()
                if kind == ONE:
                    value = await call(values[pick])
                elif kind == MANY:
                    value = await call(*pick(values))
                elif kind == INLINE:
                    value = call(values, transaction)
                elif kind == AD_HOC:
                    value = await functions[pick]()
                else:
                    value = await (call() if kind == NONE else call(values, transaction))
                if self.shared:
                    values[first + index] = value
                    self._finish(index)
                    return
                values.append(value)
        except BaseException as error:  # noqa: ASYNC103 - `run` raises what is kept (contract E1)
            if self._fail(error, index):
                raise

    def _share(self, done: int, running: int | None) -> None:
        """From now on count: the first `done` steps are finished, `running` is under way."""
        self.shared = True
        plan = self.plan
        self.values.extend([None] * (plan.first + len(plan.steps) - len(self.values)))
        self.waits = [sum(1 for other in needed if other >= done) for needed in plan.inputs]
        self.ready.extend(
            index for index in range(done, len(plan.steps)) if index != running and not self.waits[index]
        )

    def _schedule_spare(self) -> None:
        """Have exactly one task waiting for its first turn, if there is or may be something for it."""
        if not self.spare and not self.over and (self.concurrency is None or self.working < self.concurrency):
            self.spare = True
            self.group.start_soon(self._begin_spare)

    async def _begin_spare(self) -> None:  # noqa: ASYNC910 - a worker that finds nothing to do ends
        self.spare = False
        if self.over:
            return
        if not self.shared:
            done = len(self.values) - self.plan.first
            self._share(done, done)
        self.working += 1
        await self._work()

    async def _work(self) -> None:  # noqa: ASYNC910 - a worker that finds nothing to do ends
        """Take ready steps until there are none."""
        ready, steps = self.ready, self.plan.steps
        values, first = self.values, self.plan.first
        value = self._recorded_value if self.trace else self._value
        index = 0
        try:
            while ready and not self.over:
                index = ready.popleft()
                kind, call, pick = steps[index]
                if ready:
                    self._schedule_spare()
                values[first + index] = await value(index, kind, call, pick)
                self._finish(index)
        except BaseException as error:  # noqa: ASYNC103 - `run` raises what is kept (contract E1)
            if self._fail(error, index):
                raise
        finally:
            self.working -= 1

    async def _recorded_value(self, index: int, kind: int, call: Any, pick: Any) -> Any:  # noqa: ASYNC910 - see evaluate
        leaf = self.plan.nodes[index]
        name = leaf.name if isinstance(leaf, Node) else _function_name(self.functions[leaf.index])
        with traced(name, NODE):
            return await self._value(index, kind, call, pick)

    async def _value(self, _: int, kind: int, call: Any, pick: Any) -> Any:  # noqa: ASYNC910 - see evaluate
        values = self.values
        if kind == INLINE:
            return call(values, self.transaction)
        if kind == ONE:
            return await call(values[pick])
        if kind == MANY:
            return await call(*pick(values))
        if kind == AD_HOC:
            return await self.functions[pick]()
        return await (call(values, self.transaction) if kind == AWAIT else call())

    def _finish(self, index: int) -> None:
        """A step is done: count down those that wait for it."""
        waits, ready = self.waits, self.ready
        for other in self.plan.consumers[index]:
            waits[other] -= 1
            if not waits[other]:
                ready.append(other)

    def _fail(self, error: BaseException, index: int) -> bool:
        """Keep what went wrong and end the others; True if it is a cancellation, which must go on."""
        cancelled = isinstance(error, anyio.get_cancelled_exc_class())
        if cancelled:
            if not self.over:
                self.cancellation = error
        else:
            name_node(error, self.plan, index, self.functions)
            self.failures.append(error)
        self.over = True
        self.group.cancel_scope.cancel()
        return cancelled


def _function_name(function: object) -> str:
    return getattr(function, "__qualname__", repr(function))


def raise_together(what: str, failures: list[BaseException]) -> NoReturn:
    """Raise one error as it is, several as a group; an interrupt goes before all (contract C1)."""
    first = next(
        (error for error in failures if isinstance(error, (KeyboardInterrupt, SystemExit))), failures[0]
    )
    try:
        if isinstance(first, (KeyboardInterrupt, SystemExit)):
            for other in failures:
                if other is not first:
                    add_note_once(first, f"failed at the same time: {other!r}")
            raise first
        if len(failures) == 1:
            raise first
        raise BaseExceptionGroup(what, failures)
    finally:
        del first, failures
