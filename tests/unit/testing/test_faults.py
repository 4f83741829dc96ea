"""Faults: ops that fail, steps that are cancelled, checkpoints that are not written, and faults that do not happen."""

from __future__ import annotations

import errno
import gc
import os
import threading
import weakref
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from asyncstep import (
    AbortedError,
    ChiefSessionCreator,
    FailedPreconditionError,
    Graph,
    InvalidArgumentError,
    MonitoredSession,
    Node,
    Recovery,
    Session,
    StepContext,
    StopRequested,
    Variable,
    get_or_create_global_step,
    op,
    source,
)
from asyncstep.checkpoint import list_checkpoints
from asyncstep.errors import InvalidTypeError
from asyncstep.hooks import CheckpointSaverHook, StopAtStepHook
from asyncstep.testing import cancel_at, fail_op, fail_write

QUICK = Recovery(wait_initial=0.0, jitter=0.0)


class Program:
    """A loop that adds up what an op makes of numbers, as a user would write it."""

    def __init__(self, calls: list[int] | None = None, **options: Any) -> None:
        self.calls: list[int] = [] if calls is None else calls

        @op(**options)
        async def double(number: int) -> int:
            self.calls.append(number)
            return 2 * number

        with Graph() as self.graph:
            self.doubled: Node[int] = double(source(range(100), name="numbers"))
            self.total: Variable[int] = Variable(0, name="total")
            self.add: Node[int] = self.total.assign_add(self.doubled)

    async def step(self, ctx: StepContext) -> None:
        """One step of the loop."""
        await ctx.run_with_hooks(self.add)

    def session(self, steps: int, *hooks: Any, **options: Any) -> MonitoredSession:
        """A session that stops by itself."""
        creator = ChiefSessionCreator(graph=self.graph)
        return MonitoredSession(creator, [StopAtStepHook(steps), *hooks], **options)

    async def run(self, steps: int, *, workers: int = 1, **options: Any) -> MonitoredSession:
        """Run so many steps; return the session."""
        async with self.session(steps, **options) as session:
            await session.loop(self.step, workers=workers)
        return session


# fail_op


@pytest.mark.anyio
async def test_an_op_fails_at_its_step_and_at_no_other() -> None:
    """E1: as the op's own error would: the very object, with a note naming the node; the steps before it stay."""
    program = Program()
    error = ConnectionError("reset")
    with pytest.raises(ConnectionError, match="reset") as caught:
        with fail_op(program.doubled, at_step=3, error=error):
            session = program.session(5)
            async with session:
                await session.loop(program.step)
    assert caught.value is error
    assert error.__notes__ == ["in the node 'double'"]
    assert (program.calls, session.global_step) == ([0, 1], 2)


@pytest.mark.anyio
async def test_a_failed_step_is_run_again_if_the_session_retries() -> None:
    """V1: the fault happens once, so the second attempt succeeds, with the same item."""
    program = Program()
    with fail_op(program.doubled, at_step=3, error=AbortedError):
        session = await program.run(5, recovery=QUICK)
    assert (program.calls, session.global_step) == ([0, 1, 2, 3, 4], 5)


@pytest.mark.anyio
async def test_each_attempt_of_a_retry_is_a_call() -> None:
    """The op's own retry meets the fault as often as it is to happen."""
    program = Program(retry=3)
    with fail_op(program.doubled, at_step=2, error=OSError, times=2):
        await program.run(3)
    assert program.calls == [0, 1, 2]
    with pytest.raises(OSError), fail_op(program.doubled, at_step=2, error=OSError("no"), times=3):
        await program.run(3)


@pytest.mark.anyio
async def test_after_the_block_the_op_is_as_before() -> None:
    """Also in a session that was opened inside it."""
    program = Program()
    own = program.doubled.op  # type: ignore[attr-defined]
    session = program.session(100)
    async with session:
        with fail_op(program.doubled, at_step=2, error=ValueError("no")):
            await session.run(program.add)
            with pytest.raises(ValueError, match="no"):
                await session.run(program.add)
        await session.run(program.add)
    assert program.doubled.op is own  # type: ignore[attr-defined]
    assert program.calls == [0, 2]


@pytest.mark.anyio
async def test_several_faults_of_one_node() -> None:
    """In any nesting, and left in any order."""
    program = Program()
    third = fail_op(program.doubled, at_step=3, error=AbortedError)
    second = fail_op(program.doubled, at_step=2, error=AbortedError, times=2)
    with third:
        second.__enter__()
        await program.run(5, recovery=QUICK)
        with fail_op(program.doubled, at_step=1, error=KeyError("first")):
            with pytest.raises(KeyError, match="first"):
                await program.run(1)
    second.__exit__(None, None, None)
    await program.run(1)
    assert program.calls == [0, 1, 2, 3, 4, 0]


@pytest.mark.anyio
@pytest.mark.parametrize("offload", [None, "thread", "process"])
async def test_plain_functions_fail_too(offload: Any) -> None:
    """Wherever they run; calls that do not fail run there still."""
    here: Any = os.getpid if offload == "process" else threading.get_ident  # what a worker process can import
    with Graph() as graph:
        node = op(offload=offload)(here)()
        number = op(get_or_create_global_step)()  # an op beside it
    async with MonitoredSession(ChiefSessionCreator(graph=graph)) as session:
        with fail_op(node, at_step=2, error=OSError("no")):
            found = await session.run(node)
            with pytest.raises(OSError, match="no"):
                await session.run([node, number])
    assert (found == here()) == (offload is None)


@pytest.mark.anyio
async def test_the_steps_are_those_of_the_session() -> None:
    """A session that goes on from step 40 has no step 1."""
    with Graph() as graph:
        Variable(40, name="global_step")
        node = op(os.getpid)()
    async with MonitoredSession(ChiefSessionCreator(graph=graph)) as session:
        with fail_op(node, at_step=42, error=OSError("no")):
            await session.run(node)
            with pytest.raises(OSError, match="no"):
                await session.run(node)


@pytest.mark.anyio
async def test_a_worker_meets_the_fault() -> None:
    """With several workers, the first that calls the node at that step; the others finish (W2)."""
    program = Program()
    with pytest.raises(OSError, match="no"):
        with fail_op(program.doubled, at_step=4, error=OSError("no")):
            session = program.session(50)
            async with session:
                await session.loop(program.step, workers=3)
    assert session.global_step == len(program.calls)


@pytest.mark.anyio
async def test_a_fault_that_does_not_happen_is_an_error() -> None:
    """It says when the node was called instead."""
    program = Program()
    with pytest.raises(
        AssertionError, match=r"the node 'double' was to fail at step 9, but it was called at 1, 2, 3$"
    ):
        with fail_op(program.doubled, at_step=9, error=OSError):
            await program.run(3)


@pytest.mark.anyio
async def test_a_fault_that_happens_too_rarely_is_an_error() -> None:
    """It says how often it did."""
    program = Program()
    with pytest.raises(AssertionError, match="at step 2, 3 times, but it was called 2 times then"):
        with fail_op(program.doubled, at_step=2, error=AbortedError, times=3):
            with pytest.raises(AbortedError):
                await program.run(2, recovery=Recovery(max_attempts=2, wait_initial=0.0, jitter=0.0))


@pytest.mark.anyio
async def test_a_fault_that_comes_too_late_is_an_error() -> None:
    """A session that has run the node before has its plan: the message says what to do."""
    program = Program()
    async with program.session(100) as session:
        await session.run(program.add)
        with pytest.raises(AssertionError, match="at no step inside the block; begin the block before"):
            with fail_op(program.doubled, at_step=2, error=OSError):
                await session.run(program.add)


@pytest.mark.anyio
async def test_a_stop_does_not_hide_a_fault_that_did_not_happen() -> None:
    """The session would absorb a stop, note and all."""
    program = Program()
    with pytest.raises(AssertionError, match="was to fail at step 2"):
        async with program.session(100) as session:
            with fail_op(program.doubled, at_step=2, error=OSError):
                await session.run(program.add)
                session.request_stop()
                await session.run(program.add)


@pytest.mark.anyio
async def test_another_error_stays_and_gets_a_note() -> None:
    """What really went wrong is seen first."""
    program = Program()
    with pytest.raises(ZeroDivisionError) as caught:
        with fail_op(program.doubled, at_step=2, error=OSError):
            raise ZeroDivisionError
    assert caught.value.__notes__[0].startswith(
        "the node 'double' was to fail at step 2, but it was called at no"
    )


@pytest.mark.anyio
async def test_the_error_is_not_kept() -> None:
    """E5: after the block nothing holds the error, nor what its traceback holds."""

    class Oops(Exception):
        """Has a weak reference, which an OSError has not."""

    program = Program()
    fault = fail_op(program.doubled, at_step=1, error=Oops())
    gc.collect()
    gc.disable()
    try:
        try:
            with fault:
                await program.run(1)
        except Oops as error:
            kept = weakref.ref(error)
        assert kept() is None
    finally:
        gc.enable()


def a_node() -> Node[Any]:
    """A node of an op."""
    with Graph():
        return op(os.getpid)()


@pytest.mark.parametrize("name", ["fail_op", "cancel_at"])
def test_the_node_is_an_ops(name: str) -> None:
    """Variables, sources and functions are none."""
    fault: Any = {"fail_op": fail_op, "cancel_at": cancel_at}[name]
    options = {"error": OSError} if name == "fail_op" else {}
    with Graph():
        for node in (Variable(0, name="v"), source([1], name="s"), os.getpid, "name"):
            with pytest.raises(InvalidTypeError, match=f"{name} needs a node that an op makes, not a"):
                fault(node, at_step=1, **options)
    with pytest.raises(InvalidArgumentError, match=f"{name}: at_step must be at least 1, got 0"):
        fault(a_node(), at_step=0, **options)


@pytest.mark.parametrize("error", ["no", None, int, 3], ids=str)
def test_the_error_is_one(error: Any) -> None:
    """An exception, an exception class, or a function."""
    with pytest.raises(InvalidTypeError, match="error must be an exception, or a function that makes one"):
        fail_op(a_node(), at_step=1, error=error)


@pytest.mark.anyio
async def test_a_function_makes_an_exception() -> None:
    """Anything else is an error that says what it made."""
    program = Program()
    with pytest.raises(InvalidTypeError, match="error must make an exception, but it made an int"):
        with fail_op(program.doubled, at_step=1, error=lambda: 3):  # type: ignore[arg-type,return-value]
            await program.run(1)


@pytest.mark.parametrize("times", [0, -1, 1.5, True])
def test_it_happens_at_least_once(times: Any) -> None:
    """A whole number."""
    with pytest.raises(InvalidArgumentError, match="fail_op: times must be"):
        fail_op(a_node(), at_step=1, error=OSError, times=times)


def test_a_fault_is_entered_once(tmp_path: Path) -> None:
    """Each has its own count."""
    fault = fail_write(tmp_path, at_step=1)
    for _ in range(2):
        with pytest.raises((FailedPreconditionError, ZeroDivisionError)) as caught, fault:
            raise ZeroDivisionError
    assert "fail_write is entered once" in str(caught.value)


# cancel_at


@pytest.mark.anyio
async def test_a_step_is_cancelled_in_its_node() -> None:
    """C4: the step leaves no trace, the one before is the last, and the item is given again."""
    program = Program()
    session = program.session(5)
    with cancel_at(program.doubled, at_step=3) as scope:
        async with session:
            await session.loop(program.step)
    assert scope.cancelled_caught
    assert (program.calls, session.global_step) == ([0, 1], 2)
    assert session.stop_reason is not None
    assert session.stop_reason.kind == "cancelled"


@pytest.mark.anyio
async def test_a_step_of_a_plain_function_is_cancelled_before_it_commits() -> None:
    """Although the function itself cannot be cancelled."""
    with Graph() as graph:
        node = op(os.getpid)()
    session = MonitoredSession(ChiefSessionCreator(graph=graph))
    with cancel_at(node, at_step=1) as scope:
        async with session:
            await session.run(node)
    assert (scope.cancelled_caught, session.global_step) == (True, 0)


@pytest.mark.anyio
async def test_all_workers_are_cancelled() -> None:
    """The block is the program, not the step alone."""
    program = Program()
    session = program.session(50)
    with cancel_at(program.doubled, at_step=4) as scope:
        async with session:
            await session.loop(program.step, workers=3)
    assert scope.cancelled_caught
    assert session.global_step == 3


@pytest.mark.anyio
async def test_a_cancellation_that_does_not_happen_is_an_error() -> None:
    """As with a failure."""
    program = Program()
    with pytest.raises(
        AssertionError, match="the block was to be cancelled in the node 'double' at step 9, but it"
    ):
        with cancel_at(program.doubled, at_step=9):
            await program.run(3)


@pytest.mark.anyio
async def test_a_step_outside_of_the_block_cannot_be_cancelled() -> None:
    """The message says where to enter the block."""
    program = Program()
    async with program.session(5) as session, anyio.create_task_group() as group:
        called = anyio.Event()

        async def run() -> None:
            await session.run(program.add)
            called.set()

        with pytest.raises(AssertionError, match="not inside the block; enter the block where"):
            with cancel_at(program.doubled, at_step=1):
                group.start_soon(run)
                with anyio.CancelScope(shield=True):
                    await called.wait()
    assert program.calls == [0]


# fail_write


async def save_and_run(program: Program, directory: Path, steps: int, *, on_error: bool = True) -> None:
    """Run some steps, and save each; one that is being written is waited for."""
    hook = CheckpointSaverHook(directory, save_steps=1, save_on_error=on_error)
    async with program.session(steps, hook) as session:
        while True:
            await session.run(program.add)
            await hook._settled()


@pytest.mark.anyio
async def test_a_checkpoint_cannot_be_written(tmp_path: Path) -> None:
    """K2, K5: the session ends with the disk's error; what was saved before is there, and nothing is left over."""
    program = Program()
    with pytest.raises(OSError, match="No space left") as caught:
        with fail_write(tmp_path, at_step=3):
            await save_and_run(program, tmp_path, 9, on_error=False)
    assert caught.value.errno == errno.ENOSPC
    assert [found.step for found in list_checkpoints(tmp_path)] == [1, 2]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".new")] == []


@pytest.mark.anyio
async def test_the_error_of_a_write_is_the_tests(tmp_path: Path) -> None:
    """In place of the full disk; the last state is saved all the same."""
    program = Program()
    error = PermissionError("read-only")
    with pytest.raises(PermissionError, match="read-only") as caught:
        with fail_write(str(tmp_path), at_step=2, error=error):
            await save_and_run(program, tmp_path, 9)
    assert caught.value is error
    assert [found.step for found in list_checkpoints(tmp_path)] == [1, 3]


@pytest.mark.anyio
async def test_the_last_save_may_fail_again(tmp_path: Path) -> None:
    """E2: both errors are raised, where the step is saved twice."""
    program = Program()
    with pytest.raises(ExceptionGroup) as caught:
        with fail_write(tmp_path, at_step=1, error=OSError, times=2):
            async with program.session(9, CheckpointSaverHook(tmp_path, save_steps=1)) as session:
                await session.run(program.add)
    assert [type(error) for error in caught.value.exceptions] == [OSError, OSError]
    assert list_checkpoints(tmp_path) == []


@pytest.mark.anyio
async def test_other_directories_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory is known by where it is, however it is written."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "link").symlink_to("full")
    program = Program()
    with pytest.raises(OSError, match="No space left"):
        with fail_write("link", at_step=1):
            await save_and_run(program, tmp_path / "other", 2)
            await save_and_run(program, tmp_path / "full", 2)
    assert [found.step for found in list_checkpoints("other")] == [1, 2]


@pytest.mark.anyio
async def test_a_write_that_does_not_fail_is_an_error(tmp_path: Path) -> None:
    """It says which checkpoints were written."""
    with pytest.raises(AssertionError, match=r"at step 7, but checkpoints were written at 1, 2$"):
        with fail_write(tmp_path, at_step=7):
            await save_and_run(Program(), tmp_path, 2)
    with pytest.raises(
        AssertionError, match=r"at step 7, but checkpoints were written at no step inside the block$"
    ):
        with fail_write(tmp_path, at_step=7):
            pass


def test_the_directory_of_a_write_is_checked() -> None:
    """As that of a hook."""
    with pytest.raises(InvalidTypeError, match="path"):
        fail_write(7, at_step=1)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match="at_step must be at least 0"):
        fail_write("directory", at_step=-1)


@pytest.mark.anyio
async def test_raw_sessions_know_faults() -> None:
    """Their runs do not step; the step that is next is 1."""
    with Graph() as graph:
        node = op(os.getpid)()
    async with Session(graph) as raw:
        with fail_op(node, at_step=1, error=StopIteration("odd")), pytest.raises(RuntimeError):
            await raw.run(node)


def test_a_stop_cannot_be_made() -> None:
    """S2: also not as a fault."""
    with pytest.raises(TypeError, match="raised by a session only"):
        fail_op(a_node(), at_step=1, error=StopRequested())
