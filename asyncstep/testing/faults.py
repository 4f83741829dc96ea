"""Faults where a test wants them: an op that fails, a step that is cancelled, a checkpoint that is not written.

Each is a context manager. A fault that did not happen by the end of its block is an AssertionError that says
what happened instead, so that a test that no longer reaches its fault does not pass silently.
"""

from __future__ import annotations

import errno
import os
from abc import abstractmethod
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import anyio
import anyio.lowlevel

from asyncstep._graph.graph import GLOBAL_STEP
from asyncstep._graph.node import Node
from asyncstep._graph.op import Op, OpNode
from asyncstep._runtime.calls import call_of, offloaded
from asyncstep._runtime.transaction import add_note_once, current
from asyncstep.checkpoint.directory import draft_stages, local_path, object_path
from asyncstep.checkpoint.manifest import step_of
from asyncstep.errors import (
    FailedPreconditionError,
    InvalidTypeError,
    OutOfRangeError,
    StopRequested,
    kind_of,
)
from asyncstep.hooks.timer import check_steps
from asyncstep.testing.raising import maker_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator
    from contextlib import AbstractContextManager
    from types import TracebackType

    from asyncstep.checkpoint.directory import CheckpointPath, Draft, StrPath
    from asyncstep.testing.raising import Raised


def fail_op(node: Node[Any], *, at_step: int, error: Raised, times: int = 1) -> AbstractContextManager[None]:
    """Within the block, let the op of a node fail at one step, in place of calling its function.

    The error comes out of the node as one of the op's own would: with the op's retries, and with what runs
    beside it. Other steps, and further calls at this one, are not touched.

    Args:
        node: what a call of an op gave, or ``graph["its name"]``.
        at_step: the global step, from 1 on, that a run would commit next when it calls the node: one more
            than the last committed one. Of several workers, all are at that step until one of them commits.
        error: what is raised: an exception, or a function that makes one, as an exception class is.
        times: how many calls at that step fail; each attempt of a retry is one.

    The block begins before a session runs the node for the first time: that is when its plan is made.

    Raises:
        InvalidTypeError: `node` is not an op's, or `error` is no exception.
        InvalidArgumentError: `at_step` or `times` is less than 1.
        AssertionError: at the end of the block, if the node was not called so often at that step; if the
            block ends with an error, that stays, with a note.
    """
    return _FailingOp(node, at_step, maker_of("error", error), times)


def cancel_at(node: Node[Any], *, at_step: int) -> AbstractContextManager[anyio.CancelScope]:
    """Cancel the block when a node is called at one step; the step is cancelled there, before the op's function.

    The block is a cancel scope of anyio, which it gives: it absorbs its own cancellation, and
    ``scope.cancelled_caught`` tells that it did. It is entered in the task that opens the session, or around
    it, so that what is cancelled is the loop as a whole.

    Args:
        node: see `fail_op`.
        at_step: see `fail_op`.

    Raises:
        InvalidTypeError, InvalidArgumentError: see `fail_op`.
        AssertionError: at the end of the block, if the node was not called at that step, or by a task that is
            not inside the block.
    """
    return _CancelledStep(node, at_step)


def fail_write(
    directory: StrPath, *, at_step: int, error: Raised | None = None, times: int = 1
) -> AbstractContextManager[None]:
    """Within the block, let the checkpoint of one step fail in the middle of being written.

    Half of its first file is written before `error` is raised, as by a disk that is full. What was saved
    before stays, for a checkpoint appears as a whole or not at all (contract K2).

    Args:
        directory: where it is saved: the path or URL that the session's hook or creator has.
        at_step: the checkpoint's global step, from 0 on.
        error: see `fail_op`; by default the OSError of a disk without space.
        times: how many attempts to save that step fail. The last state of a session is saved when it ends:
            if no step was committed meanwhile, that is another attempt.

    Raises:
        InvalidTypeError, InvalidArgumentError: an argument cannot be used.
        AssertionError: at the end of the block, if it was not saved so often; if the block ends with an error,
            that stays, with a note.
    """
    return _FailingWrite(directory, at_step, maker_of("error", no_space if error is None else error), times)


def no_space() -> OSError:
    """What a disk without space says."""
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class _Fault:
    """Something that is to happen at one step, so many times, inside a `with` block that is entered once."""

    plan: str
    """What is to happen, for the message."""

    called = "it was called"
    """What happened at the steps where it could have."""

    def __init__(self, name: str, at_step: int, times: int, least: int = 1) -> None:
        check_steps(name, "at_step", at_step, least=least)
        check_steps(name, "times", times, least=1)
        self._name = name
        self._at_step = at_step
        self._times = times
        self._seen: Counter[int] = Counter()
        self._entered = False

    def _enter(self) -> None:
        if self._entered:
            raise FailedPreconditionError(f"a {self._name} is entered once; make a new one")
        self._entered = True

    def is_due(self, step: int) -> bool:
        """Whether it happens now, at this step."""
        self._seen[step] += 1
        return step == self._at_step and self._seen[step] <= self._times

    def _check(self, error: BaseException | None) -> None:
        """The block ends: say if it has not happened."""
        seen = self._seen[self._at_step]
        if seen >= self._times:
            return
        complaint = f"{self.plan} at step {self._at_step}{_times(self._times)}, but {self._instead(seen)}"
        # A stop, or the end of the data, is a clean end: the session would absorb it together with a note.
        if error is None or isinstance(error, StopRequested) or _is_end_of_data(error):
            raise AssertionError(complaint) from None
        add_note_once(error, complaint)

    def _instead(self, seen: int) -> str:
        if seen:
            return f"{self.called} {seen} times then"
        steps = sorted(self._seen)
        if not steps:
            return f"{self.called} at no step inside the block{self._hint}"
        shown = ", ".join(map(str, steps[-10:]))
        return f"{self.called} at {'... ' if len(steps) > 10 else ''}{shown}"

    _hint = ""


def _times(times: int) -> str:
    return "" if times == 1 else f", {times} times"


def _is_end_of_data(error: BaseException) -> bool:
    return isinstance(error, OutOfRangeError) and error.session is not None


# Ops


_tapped: WeakKeyDictionary[OpNode[Any], _Taps] = WeakKeyDictionary()


class _Taps:
    """What is asked before each call of a node's op, which stands in for its own as long as there is something."""

    def __init__(self, node: OpNode[Any]) -> None:
        self.own: Op[Any, Any] = node.op
        self.asked: list[Callable[[int], Awaitable[None]]] = []
        options = self.own.options
        call, awaited = call_of(node) if options.plain else (offloaded(self.own), True)

        async def tapped(*args: Any, **kwargs: Any) -> Any:
            transaction = current.get()
            assert transaction is not None
            for ask in tuple(self.asked):
                await ask(transaction.store.values.get(GLOBAL_STEP, 0) + 1)
            value = call(*args, **kwargs)
            return await value if awaited else value

        node.op = Op(tapped, self.own.name, replace(options, offload=None))


class _TappedNode(_Fault):
    """A fault in the op of a node."""

    _hint = "; begin the block before a session runs the node for the first time"

    def __init__(self, name: str, node: Node[Any], at_step: int, times: int) -> None:
        if not isinstance(node, OpNode):
            raise InvalidTypeError(
                f"{name} needs a node that an op makes, not {kind_of(node)} ({node!r:.80})"
            )
        super().__init__(name, at_step, times)
        self.node: OpNode[Any] = node

    def tap(self) -> None:
        """Be asked before each call of the node from now on."""
        self._enter()
        taps = _tapped.get(self.node)
        if taps is None:
            taps = _tapped[self.node] = _Taps(self.node)
        taps.asked.append(self.act)

    def untap(self) -> None:
        """Be asked no more."""
        taps = _tapped[self.node]
        taps.asked.remove(self.act)
        if not taps.asked:
            self.node.op = taps.own
            del _tapped[self.node]

    @abstractmethod
    async def act(self, step: int) -> None:
        """The node is called at this step."""


class _FailingOp(_TappedNode):
    def __init__(self, node: Node[Any], at_step: int, make: Callable[[], BaseException], times: int) -> None:
        super().__init__("fail_op", node, at_step, times)
        self.plan = f"the node {self.node.name!r} was to fail"
        self._make: Callable[[], BaseException] | None = make

    def __enter__(self) -> None:
        self.tap()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.untap()
        self._make = None  # an exception that was raised holds what its traceback does
        self._check(error)

    async def act(self, step: int) -> None:
        if self.is_due(step) and self._make is not None:
            raise self._make()


class _CancelledStep(_TappedNode):
    def __init__(self, node: Node[Any], at_step: int) -> None:
        super().__init__("cancel_at", node, at_step, 1)
        self.plan = f"the block was to be cancelled in the node {self.node.name!r}"
        self._scope: anyio.CancelScope | None = None
        self._passed = False

    def __enter__(self) -> anyio.CancelScope:
        self._scope = scope = anyio.CancelScope()
        scope.__enter__()
        self.tap()
        return scope

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        self.untap()
        scope, self._scope = self._scope, None
        assert scope is not None
        absorbed = bool(scope.__exit__(kind, error, trace))
        self._check(None if absorbed else error)
        return absorbed

    async def act(self, step: int) -> None:
        if self.is_due(step) and self._scope is not None:
            self._scope.cancel()
            await anyio.lowlevel.checkpoint()
            self._passed = True

    def _check(self, error: BaseException | None) -> None:
        super()._check(error)
        if self._passed and error is None:
            raise AssertionError(
                f"{self.plan} at step {self._at_step}, but the task that called it then is not inside the block;"
                " enter the block where the session is opened, or around that"
            )


# Checkpoints


class _FailingWrite(_Fault):
    called = "checkpoints were written"

    def __init__(
        self, directory: StrPath, at_step: int, make: Callable[[], BaseException], times: int
    ) -> None:
        super().__init__("fail_write", at_step, times, least=0)
        self._directory = _whole(object_path(directory) or local_path(directory))
        self.plan = f"the checkpoint in {self._directory} was to fail"
        self._make: Callable[[], BaseException] | None = make

    def __enter__(self) -> None:
        self._enter()
        draft_stages.append(self._stage)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        draft_stages.remove(self._stage)
        self._make = None
        self._check(error)

    def _stage(self, path: CheckpointPath, draft: Draft) -> Draft:
        step = step_of(path.name)
        make = self._make
        if step is None or _whole(path.parent) != self._directory or not self.is_due(step) or make is None:
            return draft
        return _FailingDraft(draft, make())


def _whole(path: CheckpointPath) -> CheckpointPath:
    """A path by which two are the same place if they are equal."""
    return Path(os.path.realpath(path)) if isinstance(path, Path) else path


class _FailingDraft:
    """A checkpoint that cannot be written."""

    def __init__(self, draft: Draft, error: BaseException) -> None:
        self._draft = draft
        self._error = error

    def write(self, file: str, chunks: Iterable[memoryview]) -> None:
        error = self._error
        try:
            self._draft.write(file, self._half(chunks))
        except Exception as raised:
            if raised is not error:  # an object store that was given no more bytes
                raise error from raised
            raise
        finally:
            del error

    def _half(self, chunks: Iterable[memoryview]) -> Iterator[memoryview]:
        for chunk in chunks:
            yield chunk[: len(chunk) // 2]
            break
        raise self._error

    def commit(self, manifest: bytes) -> CheckpointPath:
        raise self._error

    def discard(self) -> None:
        self._draft.discard()
