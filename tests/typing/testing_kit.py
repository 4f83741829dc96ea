"""What a type checker sees of `asyncstep.testing`: checked by mypy --strict and by pyright, never run."""

from __future__ import annotations

from pathlib import Path
from typing import Any, assert_type

import anyio

from asyncstep import (
    ChiefSessionCreator,
    Coordinator,
    Graph,
    MonitoredSession,
    Node,
    Session,
    SessionRunArgs,
    SessionRunContext,
    UnavailableError,
)
from asyncstep.testing import (
    HookCall,
    LosableSessionCreator,
    RecordingHook,
    cancel_at,
    fail_op,
    fail_write,
    run_in_virtual_time,
    virtual_backend,
)
from asyncstep.testing.fixtures import recording_hook, virtual_time_backend


async def ask(run_context: SessionRunContext) -> SessionRunArgs:
    """An act of a hook."""
    return SessionRunArgs(run_context.original_args.fetches)


def a_recording_hook(journal: list[str]) -> None:
    """What it is given, and what it tells."""
    hook = RecordingHook("name", journal, before_run=ask, end=ValueError())
    RecordingHook(before_run=SessionRunArgs("loss"))
    assert_type(hook.journal, list[str])
    assert_type(hook.points, list[str])
    assert_type(hook.calls, list[HookCall])
    assert_type(hook.session, Session)
    assert_type(hook.coord, Coordinator)
    call = hook.calls_of("after_run")[0]
    assert_type(call.hook, str)
    assert_type(call.point, str)
    assert_type(call.session, Session | None)
    assert_type(call.attempt, int | None)
    assert_type(call.worker, int | None)
    assert_type(call.global_step, int | None)
    assert_type(call.error, BaseException | None)


def a_losable_state(graph: Graph) -> MonitoredSession:
    """It goes wherever a creator goes."""
    creator = LosableSessionCreator(graph)
    LosableSessionCreator(creator=ChiefSessionCreator(checkpoint_dir="checkpoints"))
    creator.failures = [UnavailableError, UnavailableError("away")]
    creator.lose()
    creator.lose(UnavailableError)
    creator.lose(lambda: UnavailableError("away"))
    assert_type(creator.created, list[Session])
    return MonitoredSession(creator)


async def main(number: int, text: str) -> bool:
    """A program."""
    await anyio.sleep(number)
    return bool(text)


def virtual_time() -> None:
    """A program gives what it returns, and its arguments are checked."""
    assert_type(run_in_virtual_time(main, 3, "three"), bool)
    assert_type(run_in_virtual_time(main, 3, "three", backend="trio"), bool)
    assert_type(virtual_backend("trio"), tuple[str, dict[str, Any]])


def faults(node: Node[int], graph: Graph, directory: Path) -> None:
    """Each is a context manager."""
    with fail_op(node, at_step=3, error=OSError("no")) as nothing:
        assert_type(nothing, None)
    with fail_op(graph["node"], at_step=3, error=OSError, times=2):
        pass
    with cancel_at(node, at_step=3) as scope:
        pass
    assert_type(scope, anyio.CancelScope)
    with fail_write(directory, at_step=3), fail_write("s3://bucket/runs", at_step=3, error=OSError, times=2):
        pass


FIXTURES = [recording_hook, virtual_time_backend]
