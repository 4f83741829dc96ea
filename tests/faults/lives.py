"""Runs the job of job.py to its end in one life after the other, each killed at a random instant.

``python lives.py DIRECTORY BACKEND WORKERS KILLS SEED`` prints what it found wrong, if anything, and how many
lives were killed. Each life is a process of its own, forked from this one, which never runs a session itself.
The job is begun anew, in another directory, until there were as many kills as asked for; then it is let live.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import random
import signal
import sys
from pathlib import Path

import anyio
from job import ITEMS, job
from mortal import Mortality
from states import difference, half_steps, state

from asyncstep.checkpoint import list_checkpoints

LONGEST = 400
"""The most events of a life that is killed."""


def live(directory: Path, backend: str, workers: int, events: int | None) -> tuple[int, int]:
    """One life, in a process of its own: how that ended, and the newest step that it said to be durable."""
    receiver, sender = os.pipe()
    child = os.fork()
    if child == 0:
        faulthandler.dump_traceback_later(60, exit=True)
        logging.disable(logging.WARNING)  # the steps that fail once
        code = 1
        try:
            mortality = Mortality(events)
            run = job(
                directory, workers, event=mortality.event, say=lambda step: _write(sender, step.to_bytes(4))
            )
            mortality.begin()
            anyio.run(run, backend=backend)
            code = 0
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(code)
    os.close(sender)
    with open(receiver, "rb") as pipe:
        said = pipe.read()
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), int.from_bytes(said[-4:])


def _write(descriptor: int, content: bytes) -> None:
    os.write(descriptor, content)


def kill_to_the_end(
    directory: Path, backend: str, workers: int, kills: int, dice: random.Random
) -> tuple[int, list[str]]:
    """Run the job to its end, killed at most `kills` times: how often it was, and what was wrong."""
    killed = 0
    while True:
        code, said = live(directory, backend, workers, dice.randint(1, LONGEST) if killed < kills else None)
        newest = max((each.step for each in list_checkpoints(directory)), default=0)
        wrong = [f"step {said} was durable, {newest} is the newest"] if newest < said else []
        if newest:
            wrong += half_steps(state(directory))
        if code not in (0, -signal.SIGKILL):
            wrong.append(f"a life ended with {code}")
        if code == 0 or wrong:
            return killed, wrong
        killed += 1


def main(directory: Path, backend: str, workers: int, kills: int, seed: int) -> list[str]:
    """Kill as often as asked for; what was found wrong."""
    anyio.run(anyio.sleep, 0, backend=backend)  # imports what else each life would import
    dice = random.Random(f"{seed} {backend} {workers}")
    code, _ = live(directory / "undisturbed", backend, workers, None)
    undisturbed = state(directory / "undisturbed")
    assert code == 0 and undisturbed["step"] == ITEMS
    killed = run = 0
    while killed < kills:
        run += 1
        place = directory / str(run)
        more, wrong = kill_to_the_end(place, backend, workers, kills - killed, dice)
        killed += more
        wrong = wrong or difference(undisturbed, state(place))
        before = _files(place)
        if not wrong and (live(place, backend, workers, None)[0] or _files(place) != before):
            wrong = ["a life after the end did something"]
        if wrong:
            return [f"in run {run}, after {killed} kills:", *wrong]
    sys.stdout.write(f"{killed} kills in {run} runs\n")
    return []


def _files(directory: Path) -> dict[str, int]:
    """The checkpoints, and when their files were written."""
    return {str(path): path.stat().st_mtime_ns for path in directory.rglob("*") if path.name != ".lock"}


if __name__ == "__main__":
    where, which, *numbers = sys.argv[1:]
    found = main(Path(where), which, *map(int, numbers))
    sys.stdout.write("\n".join(found))
    sys.exit(bool(found))
