"""examples/etl.py: each stanza is one row of the database, once, however the program is run and ended."""

from __future__ import annotations

import os
import signal
import sqlite3
from argparse import Namespace
from collections import Counter
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from asyncstep.checkpoint import latest_checkpoint, read_checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

AREAS = ["", "contrib/", "non-free/"]
SECTIONS = ["games", "libs", "doc", "science"]


def stanza(number: int) -> str:
    """One stanza of an index; the fields differ in order and in number, as in a real one."""
    depends = [f"lib{other} (>= {number}.0) | lib-other" for other in range(number % 4)]
    fields = {
        "Package": f"package-{number}",
        "Version": f"1:{number}.0-1",
        "Installed-Size": str(number),
        "Depends": ", ".join(depends),
        "Description": f"number {number} of the fixture, with naïve words",
        "Tag": "made::up,\n more::tags,\n and::more",
        "Section": AREAS[number % 3] + SECTIONS[number % 4],
        "Size": str(number * 1000),
    }
    if not number % 4:
        del fields["Depends"]
    return "".join(f"{name}: {value}\n" for name, value in fields.items())


def row(number: int) -> tuple[Any, ...]:
    """What the database is to have of it."""
    depends = " ".join(f"lib{other}" for other in range(number % 4))
    return (
        number,
        f"package-{number}",
        f"1:{number}.0-1",
        SECTIONS[number % 4],
        number * 1000,
        number * 1024,
        depends,
    )


USES = Counter(f"lib{other}" for number in range(200) for other in range(number % 4))


@pytest.fixture
def index(tmp_path: Path) -> Path:
    """An index of 200 stanzas."""
    path = tmp_path / "available"
    path.write_text("\n".join(map(stanza, range(200))), "utf-8")
    return path


def rows(directory: Path) -> list[tuple[Any, ...]]:
    """What is in the database."""
    with closing(sqlite3.connect(directory / "packages.sqlite")) as connection:
        return connection.execute("SELECT * FROM package ORDER BY position").fetchall()


@pytest.mark.anyio
@pytest.mark.parametrize("workers", [1, 4])
async def test_every_stanza_is_one_row(
    load: Callable[[str], Any], index: Path, tmp_path: Path, workers: int
) -> None:
    """D1: with any number of workers and on any event loop, all stanzas are normalized, loaded and counted."""
    example = load("etl")
    directory = tmp_path / "run"
    args = Namespace(dir=directory, index=index, workers=workers, batch=17, save_secs=60)
    lines, reason = await example.run(args)
    assert rows(directory) == [row(number) for number in range(200)]
    assert reason.kind == "end_of_data"
    table = {line.split()[0]: line.split()[1:] for line in lines if line.strip()}
    assert list(table)[1:6] == ["science", "doc", "libs", "games", "all"]
    assert table["all"] == ["200", "19.9", "20.4"]
    assert lines[-1] == "\nNeeded most: lib0 (by 150), lib1 (by 100), lib2 (by 50)"
    again, _ = await example.run(args)  # everything is done: nothing is done again, and the table is the same
    assert again == lines


def test_an_index_is_copied_once(load: Callable[[str], Any], index: Path, tmp_path: Path) -> None:
    """D3: positions mean the stanzas that the first run has seen, also when the index has changed since."""
    extract = load("etl").extract
    before = extract(tmp_path / "run", index)
    index.write_text(stanza(7), "utf-8")
    assert extract(tmp_path / "run", index) == before
    assert extract(tmp_path / "other", index) == stanza(7).encode()


@pytest.mark.skipif(os.name == "nt", reason="kill -9 is of POSIX")
def test_killed_and_run_again_every_row_is_there_once(
    run_killed: Callable[..., int], index: Path, tmp_path: Path
) -> None:
    """K3, K4: after a kill -9 the same command goes on from the checkpoint, to the same rows and counts."""
    directory = tmp_path / "run"
    options = ["--dir", directory, "--index", index, "--batch", 3, "--save-secs", 0.001, "--backend", "trio"]
    assert run_killed("etl", 3, *options) == -signal.SIGKILL
    newest = read_checkpoint(latest_checkpoint(directory / "checkpoints"))
    assert 3 <= newest.step < 67
    assert len(rows(directory)) >= newest.variables["loaded"] > 0
    assert run_killed("etl", None, *options) == 0
    final = read_checkpoint(latest_checkpoint(directory / "checkpoints"))
    assert rows(directory) == [row(number) for number in range(200)]
    assert (final.step, final.variables["loaded"], final.variables["uses"]) == (67, 200, USES)
