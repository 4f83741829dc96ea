"""C6, K4, D1: SIGTERM, as a cluster sends it before it takes the machine away."""

from __future__ import annotations

import random
import signal
from pathlib import Path

import pytest

from .processes import HERE, run, start
from .states import half_steps, state


@pytest.mark.parametrize("workers", [1, 8])
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_nothing_is_lost_or_done_twice_by_sigterm(tmp_path: Path, backend: str, workers: int) -> None:
    """C6, W1, D1: at SIGTERM the steps in flight commit, the final checkpoint has them, and the exit code is 0;
    started again, the program does the rest, and no item was worked on twice."""
    program = [HERE / "terminated.py", tmp_path, backend, workers]
    chosen = random.Random(f"{backend} {workers}").randint(1, 45)
    with start(*program) as process:
        assert process.stdout is not None
        steps = [int(process.stdout.readline()) for _ in range(chosen)]
        process.send_signal(signal.SIGTERM)
        *rest, reason = process.communicate(timeout=60)[0].splitlines()
    assert process.returncode == 0
    assert "SIGTERM" in reason
    found = state(tmp_path)
    assert half_steps(found) == []
    assert found["step"] == max([*steps, *map(int, rest)])
    assert sorted(journal(tmp_path)) == list(found["variables"]["items"])
    ended = run(*program)
    assert ended.returncode == 0, ended.stderr
    assert "end_of_data" in ended.stdout
    assert sorted(journal(tmp_path)) == list(range(60))
    assert half_steps(state(tmp_path)) == []
    assert run(HERE / "terminated.py", tmp_path / "undisturbed", backend, workers).returncode == 0
    assert state(tmp_path)["content"] == state(tmp_path / "undisturbed")["content"]


def journal(directory: Path) -> list[int]:
    """The items that were worked on, by all processes together."""
    return [int(line) for line in (directory / "JOURNAL").read_text().splitlines()]
