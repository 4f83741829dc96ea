"""Runs the job of cluster_job.py on a cluster of two processes, which are killed at random instants.

``python cluster_lives.py DIRECTORY BACKEND KILLS SEED`` prints what it found wrong, if anything, and what it did. A
kill is a SIGKILL of the process that a program runs in: the chief's, or another. Dask starts the process again, and
its programs, in whichever process there is. When a run has come to its end, the job is begun anew in another
directory, until there were as many kills as asked for.
"""

from __future__ import annotations

import logging
import os
import random
import signal
import sys
import threading
from pathlib import Path

import anyio
import dask
from cluster_job import ALONE, BEGUN, ITEMS, JOINED, PROGRAMS, diary, program
from distributed import Client, LocalCluster
from states import disagreements

from asyncstep.checkpoint import list_checkpoints
from asyncstep.distributed import launch

BOUND = 60.0
"""Seconds that a run may take, whatever is killed."""

KILLS_A_RUN = 3

LATEST = ITEMS * 9 // 10
"""A kill after the checkpoint of this step may come when nothing is left to be done."""


class Killer(threading.Thread):
    """Kills the processes of one run.

    Args:
        directory: of the run.
        kills: how often at most.
        first: whether the first kill is that of the chief; the others are of anybody.
        dice: when, and whom.

    Attributes:
        killed: for each kill: the indices of the programs that it hit.
    """

    def __init__(self, directory: Path, kills: int, *, first: bool, dice: random.Random) -> None:
        super().__init__()
        self.killed: list[set[int]] = []
        self._directory = directory
        self._kills = kills
        self._first = first
        self._dice = dice
        self._over = threading.Event()

    def run(self) -> None:
        """Kill, as long as enough is left to be done."""
        for number in range(self._kills):
            # Mostly when the job has gone on since the last kill; sometimes while it recovers from that.
            aim = newest(self._directory) + self._dice.choice([1 if number == 0 else 0, *range(1, 30)])
            while newest(self._directory) < aim:
                if self._over.wait(0.01):
                    return
            if self._over.wait(self._dice.uniform(0, 0.2)) or newest(self._directory) > LATEST:
                return
            self._kill_one(range(PROGRAMS) if number else [0] if self._first else range(1, PROGRAMS))

    def end(self) -> None:
        """The run has ended."""
        self._over.set()
        self.join()

    def _kill_one(self, indices: range | list[int]) -> None:
        where = {entry.index: entry.process for entry in diary(self._directory) if _is_alive(entry.process)}
        hit = [index for index in indices if index in where]
        if hit:
            victim = where[self._dice.choice(hit)]
            os.kill(victim, signal.SIGKILL)
            self.killed.append({index for index, process in where.items() if process == victim})


def newest(directory: Path) -> int:
    """The step of the newest checkpoint."""
    return max((each.step for each in list_checkpoints(directory)), default=0)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def main(directory: Path, backend: str, kills: int, seed: int) -> list[str]:
    """Kill as often as asked for; what was found wrong."""
    logging.disable(logging.WARNING)
    # Dask's local cluster gives a process up that is not there so long after one of that name had died, as it happens
    # if it has died again.
    dask.config.set({"distributed.deploy.lost-worker-timeout": "1 day"})
    dice = random.Random(f"{seed} {backend}")
    undisturbed = directory / "undisturbed"
    undisturbed.mkdir()
    anyio.run(program(undisturbed), ALONE, backend=backend)
    done = chiefs = restarts = recoveries = run = 0
    with (
        LocalCluster(
            n_workers=2, threads_per_worker=2, host="127.0.0.1", dashboard_address=":0", silence_logs=50
        ) as cluster,
        Client(cluster) as client,
    ):
        while done < kills:
            client.wait_for_workers(2, timeout=BOUND)
            run += 1
            place = directory / str(run)
            place.mkdir()
            killer = Killer(place, min(KILLS_A_RUN, kills - done), first=run % 2 == 1, dice=dice)
            killer.start()
            try:
                launch(program(place), client, workers=PROGRAMS, backend=backend, timeout=BOUND)
            finally:
                killer.end()
            wrong = disagreements(undisturbed, place)
            if wrong:
                return [f"in run {run}, after the kills of {killer.killed}:", *wrong]
            done += len(killer.killed)
            chiefs += sum(0 in killed for killed in killer.killed)
            events = diary(place)
            restarts += sum(entry.event == BEGUN for entry in events) - PROGRAMS
            joined = [(entry.index, entry.process) for entry in events if entry.event == JOINED]
            recoveries += len(joined) - len(set(joined))
    sys.stdout.write(
        f"{done} kills ({chiefs} of the chief) in {run} runs,"
        f" {restarts} programs started again, {recoveries} recoveries of others\n"
    )
    return []


if __name__ == "__main__":
    where, which, *numbers = sys.argv[1:]
    found = main(Path(where), which, *map(int, numbers))
    sys.stdout.write("\n".join(found))
    sys.exit(bool(found))
