"""The pages on traces and pictures tell the truth: their examples run, and print what is shown."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from .parts import read, rows

DOCS = Path(__file__).parents[3] / "docs"


def example(page: str) -> str:
    """The first program of a page."""
    found = re.search(r"^```python\n(.*?)^```$", _text(page), re.DOTALL | re.MULTILINE)
    assert found is not None
    return found[1]


def run(program: str, folder: Path) -> str:
    """What a program prints."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def _text(page: str) -> str:
    return (DOCS / "hooks" / page).read_text(encoding="utf-8")


def test_the_example_of_profiling_leaves_the_traces(tmp_path: Path) -> None:
    """Three files; the first has all four workers, a wait of each kind, and the checkpoint of step 1."""
    run(example("profiling.md"), tmp_path)
    files = list((tmp_path / "traces").iterdir())
    assert len(files) == 3
    events, _ = read(tmp_path / "traces" / "timeline-1.json")
    assert {name.partition(",")[0] for name in rows(events)} == {
        *(f"worker {index}" for index in range(4)),
        "checkpoints",
    }
    names = {event["name"] for event in events}
    assert {"work", "step 1", "addresses", "fetch", "count", "store", "checkpoint of step 1"} <= names
    assert {"wait for items", "wait for the limiter", "wait for the next attempt"} <= names


def test_the_example_of_pictures_prints_what_is_shown(tmp_path: Path) -> None:
    """Line for line, as far as it is shown."""
    [shown] = re.findall(r"^```text\n(.*?)    \.\.\.\n```$", _text("pictures.md"), re.DOTALL | re.MULTILINE)
    assert run(example("pictures.md"), tmp_path).startswith(shown)


@pytest.mark.parametrize("page", ["profiling.md", "pictures.md"])
def test_the_pictures_are_there_and_small(page: str) -> None:
    """Every picture of a page is a PNG of less than 200 kB."""
    found = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", _text(page))
    assert found
    for name in found:
        picture = (DOCS / "hooks" / name).read_bytes()
        assert picture.startswith(b"\x89PNG")
        assert len(picture) < 200_000
