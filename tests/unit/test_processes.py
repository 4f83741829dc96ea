"""Ops that run in worker processes, and the signals of the terminal that they share with the program."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from select import select
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

PROGRAM = '''
import sys
import anyio
from asyncstep import Graph, MonitoredSession, op
from asyncstep.hooks import SignalHook

@op(offload="process")
def wait(started, go):
    """Says that it is running, then waits until it is told to go on."""
    with open(started, "wb") as pipe:
        pipe.write(b"s")
    with open(go, "rb", buffering=0) as pipe:
        return pipe.read(1)

async def main():
    with Graph():
        node = wait(*sys.argv[2:])
        session = MonitoredSession(hooks=[SignalHook()])
    async with session:
        print(await session.run(node), session.global_step)
    print(session.stop_reason)

if __name__ == "__main__":
    anyio.run(main, backend=sys.argv[1])
'''


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_ctrl_c_does_not_interrupt_a_step_in_a_worker_process(tmp_path: Path, backend: str) -> None:
    """C6, W1: a terminal sends SIGINT to the whole process group; the step in flight finishes and commits."""
    (tmp_path / "program.py").write_text(PROGRAM)
    pipes = [tmp_path / "started", tmp_path / "go"]
    for pipe in pipes:
        os.mkfifo(pipe)
    started, go = (os.open(pipe, os.O_RDWR) for pipe in pipes)  # does not wait for the other end
    with subprocess.Popen(
        [sys.executable, tmp_path / "program.py", backend, *pipes],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as program:
        assert select([started], [], [], 60)[0]
        os.killpg(program.pid, signal.SIGINT)
        os.write(go, b"g")
        out, err = program.communicate(timeout=60)
    os.close(started)
    os.close(go)
    assert (program.returncode, out) == (0, "b'g' 1\nsignal by SIGINT\n")
    assert "Traceback" not in err
