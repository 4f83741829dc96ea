"""The documentation: every snippet runs and prints what the page says; every link leads somewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import asyncstep
import asyncstep.checkpoint
import asyncstep.data
import asyncstep.distributed
import asyncstep.hooks
import asyncstep.summary
import asyncstep.testing

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [
        ROOT / "README.md",
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "examples").glob("*.md"),
        *(ROOT / "asyncstep").rglob("*.md"),
    ]
)
WITH_CODE = [page for page in PAGES if "```python" in page.read_text()]
LINK = re.compile(r"(?<!`)\[[^\]\n]*\]\((?P<to>[^)\s]+)\)")


def name(page: Path) -> str:
    """A page in the names of tests."""
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", WITH_CODE, ids=name)
def test_every_snippet_runs_and_prints_what_the_page_says(page: Path, tmp_path: Path) -> None:
    """A reader who pastes the blocks of a page one after the other gets what the page shows."""
    package = str(Path(asyncstep.__file__).parent.parent)
    ended = subprocess.run(
        [sys.executable, Path(__file__).with_name("run_page.py"), page],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": package},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_link_inside_the_repository_leads_somewhere(page: Path) -> None:
    """Files and headings that pages point to are there."""
    for link in LINK.finditer(page.read_text()):
        to, _, heading = link["to"].partition("#")
        if "://" in to or to.startswith("mailto:"):
            continue
        target = (page.parent / to).resolve() if to else page
        assert target.exists(), f"{name(page)} points to {link['to']}"
        if heading:
            assert heading in headings(target), f"{name(page)} points to {link['to']}"


@pytest.mark.parametrize(
    "package",
    [
        asyncstep,
        asyncstep.checkpoint,
        asyncstep.data,
        asyncstep.distributed,
        asyncstep.hooks,
        asyncstep.summary,
        asyncstep.testing,
    ],
)
def test_the_reference_has_every_public_name(package: ModuleType) -> None:
    """What can be imported is described."""
    directives = "".join(page.read_text() for page in (ROOT / "docs" / "reference").glob("*.md"))
    described = set(re.findall(r"^::: [\w.]*\b(\w+)$", directives, re.MULTILINE))
    assert set(package.__all__) - described == set()


def headings(page: Path) -> set[str]:
    """The anchors of a page, as they are made of its headings."""
    found = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in found}
