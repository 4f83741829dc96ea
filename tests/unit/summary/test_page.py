"""The page on summaries: what its first program writes is what the picture shows."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from .parts import events, scalars

PAGE = Path(__file__).parents[3] / "docs" / "hooks" / "summaries.md"


def blocks(language: str) -> list[str]:
    """The page's blocks in one language, in order."""
    return re.findall(
        rf"^```{language}\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )


def run(program: str, folder: Path) -> str:
    """What a program prints."""
    command = [sys.executable, "-W", "error", "-c", program]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_first_program(tmp_path: Path) -> None:
    """TensorBoard finds what the picture shows."""
    run(blocks("python")[0], tmp_path)
    found = events(tmp_path / "logs")
    tags = found.Tags()
    assert set(tags["scalars"]) == {"train/loss", "eval/largest", "global_step/sec"}
    assert (tags["images"], tags["histograms"], tags["tensors"]) == (
        ["train/picture"],
        ["train/weights"],
        ["train/words"],
    )
    assert [step for step, _ in scalars(tmp_path / "logs", "train/loss")] == list(range(1, 301, 10))


def test_the_picture_is_there() -> None:
    """Each picture of the page exists, and is small."""
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", PAGE.read_text(encoding="utf-8"))
    sizes = [(PAGE.parent / picture).stat().st_size for picture in pictures]
    assert [0 < size < 150_000 for size in sizes] == [True]
