"""A crawl of a documentation site, which this program serves itself on loopback, and a report of its broken links.

Run it by ``python examples/crawl.py``. Stop it by Ctrl-C or kill it by ``kill -9`` at any instant: the same command
goes on from there, and after any number of kills each page is in the result, once.
"""

from __future__ import annotations

import argparse
import logging
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from operator import attrgetter
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import anyio
import httpx

import asyncstep
from asyncstep.checkpoint import register
from asyncstep.data import queue
from asyncstep.hooks import FinalOpsHook, ProgressHook, SignalHook

DOCS = Path("/usr/share/doc")


@register
@dataclass(frozen=True, slots=True)
class Page:
    """What was at one path of the site."""

    path: str
    status: int
    kind: str
    bytes: int
    links: tuple[str, ...]  # the paths of this site that it leads to


class Links(HTMLParser):
    """Finds the targets of a page's links, images, scripts and style sheets."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value for name, value in attrs if name in ("href", "src") and value]


async def fetch(client: httpx.AsyncClient, path: str, pause: float) -> httpx.Response:
    """Pause, then ask for one path: the limit of requests at a time counts the pause, too."""
    await anyio.sleep(pause)
    return await client.get(path)


@asyncstep.op(offload="thread")
def read(path: str, response: httpx.Response) -> Page:
    """What came, and where it leads to; in a thread, for a page may be long."""
    kind = response.headers.get("content-type", "").partition(";")[0]
    targets = Links(response.text).found if kind == "text/html" else []
    links = [urlsplit(urljoin(response.url.path, target)) for target in targets]
    local = dict.fromkeys(link.path or "/" for link in links if not link.scheme and not link.netloc)
    return Page(path, response.status_code, kind, len(response.content), tuple(local))


def add(pages: dict[str, Page], page: Page) -> dict[str, Page]:
    """A variable's new value, with one more page; steps may come in any order."""
    if page.path in pages:
        raise ValueError(f"{page.path} was fetched twice")
    return {**pages, page.path: page}


def table(found: dict[str, Page], waiting: int) -> Iterator[str]:
    """What was found, and the links that lead nowhere."""
    pages = sorted(found.values(), key=lambda page: page.path)
    yield f"\n{'answer':<40}{'pages':>8}{'MB':>10}"
    for answer in [*sorted({f"{page.status} {page.kind}" for page in pages}), ""]:
        sizes = [page.bytes for page in pages if f"{page.status} {page.kind}".startswith(answer)]
        yield f"{answer or 'all':<40}{len(sizes):>8,}{sum(sizes) / 1e6:>10,.1f}"
    yield f"\n{sum(len(page.links) for page in pages):,} links, {waiting:,} pages still to fetch"
    yield f"\n{'broken link':<40}{'on pages':>8}"
    for broken in [page.path for page in pages if page.status >= 400]:
        on = [page.path for page in pages if broken in page.links]
        yield f"{broken:<40}{len(on):>8,}  {', '.join(on[:2])}{', ...' if len(on) > 2 else ''}"


class Files(SimpleHTTPRequestHandler):
    """Answers with the files of a directory."""

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def serve(site: Path) -> ThreadingHTTPServer:
    """A server of the files in `site`, on a free port of loopback."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Files, directory=str(site)))
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    return server


async def run(args: argparse.Namespace, port: int) -> tuple[list[str], asyncstep.StopReason | None]:
    """Crawl, going on from the newest checkpoint in the directory; the table, and why it ended."""
    polite = asyncstep.op(retry=3, timeout=30, limiter=anyio.CapacityLimiter(args.connections))
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", follow_redirects=True) as client:
        with asyncstep.Graph():
            frontier = queue(["/index.html"], name=f"frontier of {args.site}", unique=True)
            page = read(frontier, polite(fetch)(client, frontier, args.pause))
            pages = asyncstep.Variable[dict[str, Page]]({}, name="pages")
            links = asyncstep.op(attrgetter("links"))(page)
            work = asyncstep.group(pages.update(add, page), frontier.put(links))
            final = FinalOpsHook((pages, frontier.size()))
            hooks = [SignalHook(), ProgressHook(values={"waiting": frontier.size()}), final]
            session = asyncstep.MonitoredTrainingSession(
                checkpoint_dir=args.dir, save_checkpoint_secs=args.save_secs, hooks=hooks
            )

        async def step(ctx: asyncstep.StepContext) -> None:
            await ctx.run_with_hooks(work)

        async with session:
            await session.loop(step, workers=args.workers)
    return list(table(*final.final_ops_values)), session.stop_reason


def main() -> None:
    """The command."""
    docs = [*DOCS.glob("python3-doc/html"), *DOCS.glob("*/html")]
    parser = argparse.ArgumentParser(description="Crawl a directory of HTML, and report broken links.")
    parser.add_argument("--site", type=Path, default=docs and docs[0], required=not docs)
    parser.add_argument("--dir", type=Path, default=Path("crawl-run"), help="for checkpoints")
    parser.add_argument("--workers", type=int, default=16, help="how many pages are worked on at a time")
    parser.add_argument("--connections", type=int, default=4, help="how many requests are made at a time")
    parser.add_argument("--pause", type=float, default=0.005, help="seconds that each pauses before it")
    parser.add_argument("--save-secs", type=float, default=1, help="seconds between checkpoints")
    parser.add_argument("--backend", default="asyncio", help="asyncio, or trio")
    args = parser.parse_args()
    logging.basicConfig(format="%(message)s")
    lines, reason = anyio.run(run, args, serve(args.site).server_port, backend=args.backend)
    print(*lines, f"\nEnded: {reason}", sep="\n")


if __name__ == "__main__":
    main()
