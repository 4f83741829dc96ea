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


UNLUCKY = """
import sys
import anyio
from asyncstep import Graph, MonitoredSession, op

@op(offload="process")
def double(number):
    return 2 * number

async def main():
    with Graph():
        node = double(21)
        session = MonitoredSession()
    async with session:
        print(await session.run(node))

if __name__ == "__main__":
    anyio.run(main, backend=sys.argv[1])
else:  # a worker process that is starting
    from pathlib import Path
    starts = Path(__file__).with_name("starts")
    starts.write_text(starts.read_text() + "s" if starts.exists() else "s")
    if len(starts.read_text()) <= UNLUCKY_ONES:
        raise KeyboardInterrupt
"""


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize(("unlucky", "ends"), [(1, (0, "42\n")), (9, (1, ""))])
def test_a_worker_process_that_is_interrupted_while_it_starts_is_started_again(
    tmp_path: Path, backend: str, unlucky: int, ends: tuple[int, str]
) -> None:
    """C6: Ctrl-C reaches a worker before it can ignore it; the call is made by another, for so many times."""
    (tmp_path / "program.py").write_text(UNLUCKY.replace("UNLUCKY_ONES", str(unlucky)))
    program = subprocess.run(
        [sys.executable, tmp_path / "program.py", backend],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (program.returncode, program.stdout) == ends
    assert ("BrokenWorkerProcess" in program.stderr) == (unlucky == 9)
    assert (tmp_path / "starts").read_text() == "s" * min(unlucky + 1, 3)


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
