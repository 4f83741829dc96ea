"""examples/crawl.py: each page is in the result once, however the program is run and ended."""

from __future__ import annotations

import os
import signal
from argparse import Namespace
from typing import TYPE_CHECKING, Any

import pytest

from asyncstep.checkpoint import latest_checkpoint, read_checkpoint, register

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytest.importorskip("httpx")

PAGES = 60
BROKEN = (7, 41)
PATHS = {"/index.html", "/deep", "/style.css", *(f"/page{number}.html" for number in range(PAGES))}
MISSING = {"/no%20such.html", "/gone.png", "/deep/missing.html"}


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A site whose pages are a tree with links back and across, and links that lead nowhere."""
    root = tmp_path / "site"
    (root / "deep").mkdir(parents=True)
    (root / "style.css").write_text("p {}")
    for number in range(PAGES):
        links = [f'<a href="{page(each)}#top">down</a>' for each in children(number)]
        links += ['<a href="index.html">up</a>', '<link rel="stylesheet" href="/style.css"><a name="top">']
        if number in BROKEN:
            links.append('<a href="/no%20such.html">broken</a><img src="gone.png">')
        (root / page(number)).write_text("\n".join(links))
    (root / "index.html").write_text(
        f'<a href="{page(0)}">in</a> <a href="deep">a directory</a> <a href="mailto:nobody@example.org">mail</a>'
        ' <a href="https://example.org/away.html">away</a> <a href="#here">here</a> <a>no target</a>'
    )
    (root / "deep" / "index.html").write_text('<a href="/deep/missing.html">broken</a> <a href="..">up</a>')
    return root


def page(number: int) -> str:
    """The name of a page."""
    return f"page{number}.html"


def children(number: int) -> list[int]:
    """The pages below a page of the tree."""
    return [each for each in range(3 * number + 1, 3 * number + 4) if each < PAGES]


@pytest.fixture
def example(load: Callable[[str], Any]) -> Any:
    """The program; a checkpoint of a process of its own has pages by the name that they have there."""
    module = load("crawl")
    register(module.Page, name="__main__.Page")
    return module


@pytest.fixture
def port(example: Any, site: Path) -> Iterator[int]:
    """That of a server of the site."""
    server = example.serve(site)
    yield server.server_port
    server.shutdown()
    server.server_close()


def pages_of(directory: Path) -> tuple[int, dict[str, Any]]:
    """The steps and the pages of the newest checkpoint."""
    newest = read_checkpoint(latest_checkpoint(directory))
    return newest.step, newest.variables["pages"]


def check(found: dict[str, Any]) -> None:
    """These are all pages of the site, and where each of them leads to."""
    assert {path for path, each in found.items() if each.status == 200} == PATHS | {"/"}
    assert {path for path, each in found.items() if each.status == 404} == MISSING
    assert found["/index.html"].links == ("/page0.html", "/deep", "/index.html")
    assert found["/deep"].links == ("/deep/missing.html", "/")
    assert found["/style.css"].kind == "text/css"
    for number in range(PAGES):
        links = [f"/{page(each)}" for each in children(number)] + ["/index.html", "/style.css"]
        links += ["/no%20such.html", "/gone.png"] if number in BROKEN else []
        assert found[f"/{page(number)}"].links == tuple(links)


@pytest.mark.anyio
@pytest.mark.parametrize("workers", [1, 8])
async def test_every_page_is_fetched_once(
    example: Any, site: Path, port: int, tmp_path: Path, workers: int
) -> None:
    """D1, D5: with any number of workers, on any event loop, the crawl ends when all that is linked is fetched."""
    args = Namespace(site=site, dir=tmp_path / "run", workers=workers, connections=3, pause=0, save_secs=60)
    lines, reason = await example.run(args, port)
    step, found = pages_of(tmp_path / "run")
    check(found)
    assert step == len(found)
    assert reason.kind == "end_of_data"
    assert [line.split() for line in lines[-3:]] == [
        ["/deep/missing.html", "1", "/deep"],
        ["/gone.png", "2", "/page41.html,", "/page7.html"],
        ["/no%20such.html", "2", "/page41.html,", "/page7.html"],
    ]
    again, _ = await example.run(
        args, port
    )  # the frontier is empty: nothing is fetched, the table is the same
    assert again == lines


@pytest.mark.skipif(os.name == "nt", reason="kill -9 is of POSIX")
def test_killed_and_run_again_every_page_is_there_once(
    example: Any, run_killed: Callable[..., int], site: Path, tmp_path: Path
) -> None:
    """K3, K4: after a kill -9 the same command goes on with the frontier of the checkpoint, to the same pages."""
    directory = tmp_path / "run"
    options = ["--dir", directory, "--site", site, "--save-secs", 0.001, "--pause", 0.002, "--workers", 4]
    assert run_killed("crawl", 3, *options) == -signal.SIGKILL
    step, found = pages_of(directory)
    assert 3 <= step == len(found) < len(PATHS)
    assert run_killed("crawl", None, *options) == 0
    step, found = pages_of(directory)
    check(found)
    assert step == len(found)
