"""The Debian package index, parsed, normalized, aggregated and loaded into SQLite: each stanza is one row, once.

Run it by ``python examples/etl.py``. Stop it by Ctrl-C or kill it by ``kill -9`` at any instant: the same command
goes on from there, and after any number of kills the database and the table are the same.
"""

from __future__ import annotations

import argparse
import logging
import re
import shutil
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import anyio

import asyncstep
from asyncstep.hooks import FinalOpsHook, ProgressHook, SignalHook


@dataclass(frozen=True, slots=True)
class Package:
    """A row of the database. `position` is that of its stanza, and the primary key."""

    position: int
    name: str
    version: str
    section: str
    bytes: int
    installed_bytes: int
    depends: str


COLUMNS = ", ".join(field.name for field in fields(Package))
CREATE = f"CREATE TABLE IF NOT EXISTS package ({COLUMNS}, PRIMARY KEY (position))"
UPSERT = f"INSERT OR REPLACE INTO package VALUES ({', '.join('?' for _ in fields(Package))})"


def extract(directory: Path, index: Path | None) -> bytes:
    """The index, copied into `directory` once: a run that goes on needs the stanzas that it began with."""
    copy, part = directory / "index.txt", directory / "index.part"
    if not copy.exists():
        directory.mkdir(parents=True, exist_ok=True)
        content = index.read_bytes() if index else b""
        if not index and shutil.which("apt-cache"):
            content = subprocess.run(["apt-cache", "dumpavail"], check=True, capture_output=True).stdout
        part.write_bytes(content or Path("/var/lib/dpkg/status").read_bytes())
        part.replace(copy)
    return copy.read_bytes()


@asyncstep.op(offload="thread")
def parse(index: bytes, spans: list[tuple[int, tuple[int, int]]]) -> list[Package]:
    """The rows of some stanzas, of which each is given by its position, and from where to where it goes."""
    return [package(position, index[slice(*span)].decode("utf-8", "replace")) for position, span in spans]


def package(position: int, stanza: str) -> Package:
    """One stanza, normalized: a section without its area, sizes in bytes, names without versions."""
    get = dict(re.findall(r"^([\w-]+): *(.*(?:\n[ \t].*)*)", stanza, re.MULTILINE)).get
    sizes = int(get("Size", 0)), int(get("Installed-Size", 0)) * 1024
    names = dict.fromkeys(re.findall(r"(?:^|,)\s*([\w.+-]+)", get("Depends", "")))  # of "a (>= 2) | b": a
    section = get("Section", "none").rpartition("/")[2]
    return Package(position, get("Package", ""), get("Version", ""), section, *sizes, " ".join(names))


@asyncstep.op(offload="thread", limiter=anyio.CapacityLimiter(1))
def load(database: Path, rows: list[Package]) -> int:
    """Write rows to the database; a row that is there is replaced by itself. Return how many.

    The step commits when they are durable. Killed before that, it is run again with the same stanzas.
    """
    with closing(sqlite3.connect(database, timeout=60)) as connection, connection:
        connection.execute(CREATE)
        connection.executemany(UPSERT, map(astuple, rows))
    return len(rows)


def count(uses: Counter[str], rows: list[Package]) -> Counter[str]:
    """A variable's new value: how many packages depend on each, with more rows in it, in any order."""
    return uses + Counter(name for row in rows for name in row.depends.split())


def table(database: Path, uses: Counter[str]) -> Iterator[str]:
    """What is in the database, by section, and what was counted on the way."""
    sums = "COUNT(*), TOTAL(bytes) / 1e6, TOTAL(installed_bytes) / 1e6 FROM package"
    with closing(sqlite3.connect(database)) as connection:
        rows = connection.execute(f"SELECT section, {sums} GROUP BY section ORDER BY 3 DESC, 1").fetchall()
        rows = rows[:15] + connection.execute(f"SELECT 'all', {sums}").fetchall()
    yield f"\n{'section':<16}{'packages':>12}{'MB':>12}{'MB installed':>16}"
    yield from ("{:<16}{:>12,}{:>12,.1f}{:>16,.1f}".format(*row) for row in rows)
    needed = sorted(uses.items(), key=lambda item: (-item[1], item[0]))[:5]
    yield f"\nNeeded most: {', '.join(f'{name} (by {count:,})' for name, count in needed)}"


async def run(args: argparse.Namespace) -> tuple[list[str], asyncstep.StopReason | None]:
    """Load the index, going on from the newest checkpoint in the directory; the table, and why it ended."""
    database = args.dir / "packages.sqlite"
    content = await anyio.to_thread.run_sync(extract, args.dir, args.index)
    spans = [match.span() for match in re.finditer(rb"(?:.+\n?)+", content)]
    with asyncstep.Graph():
        rows = parse(content, asyncstep.source(list(enumerate(spans)), name="stanzas", batch=args.batch))
        loaded = asyncstep.Variable(0, name="loaded")
        uses = asyncstep.Variable(Counter[str](), name="uses")
        work = asyncstep.group(loaded.assign_add(load(database, rows)), uses.update(count, rows))
        final = FinalOpsHook(uses)
        session = asyncstep.MonitoredTrainingSession(
            checkpoint_dir=args.dir / "checkpoints",
            save_checkpoint_secs=args.save_secs,
            log_step_count_steps=None,
            hooks=[SignalHook(), ProgressHook(-(-len(spans) // args.batch), values={"rows": loaded}), final],
        )

    async def step(ctx: asyncstep.StepContext) -> None:
        await ctx.run_with_hooks(work)

    async with session:
        await session.loop(step, workers=args.workers)
    return list(table(database, final.final_ops_values)), session.stop_reason


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Load a Debian package index into SQLite, each stanza once.")
    parser.add_argument("--dir", type=Path, default=Path("etl-run"), help="for the database and checkpoints")
    parser.add_argument("--index", type=Path, help="a file with stanzas (default: what apt knows, else dpkg)")
    parser.add_argument("--workers", type=int, default=4, help="how many batches are worked on at a time")
    parser.add_argument("--batch", type=int, default=500, help="how many stanzas a step has")
    parser.add_argument("--save-secs", type=float, default=1, help="seconds between checkpoints")
    parser.add_argument("--backend", default="asyncio", help="asyncio, or trio")
    args = parser.parse_args()
    logging.basicConfig(format="%(message)s")
    try:
        lines, reason = anyio.run(run, args, backend=args.backend)
    except KeyboardInterrupt:  # before the session was open, or the second Ctrl-C
        sys.exit("Interrupted. The same command goes on.")
    print(*lines, sep="\n")
    if reason is not None and reason.kind is not asyncstep.StopKind.END_OF_DATA:
        print(f"\nEnded early ({reason}). The same command goes on from there.")


if __name__ == "__main__":
    main()
