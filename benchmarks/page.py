"""``python -m benchmarks.page FILE PAGE``: put figures into a page of Markdown, and the chart into a file beside it.

The tables go between the marks of the page. FILE is what ``python -m benchmarks --json FILE`` wrote on this machine.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from benchmarks import chart
from benchmarks.measure import BACKENDS, Figure, read

CHART = Path("images", "speed.svg")
MARKS = {"hook": "hooks", "peer": "peers", "P12": "message", "cluster": "cluster", "chief": "chief"}
"""How the subjects begin that are in other tables than the first."""

MANY = 1_000
"""So many workers, the table of the chief tells of."""

VERSIONS = (
    "anyio",
    "uvloop",
    "trio",
    "apache-burr",
    "apache-hamilton",
    "dask",
    "distributed",
    "langgraph",
    "pytorch-ignite",
    "tensorflow-cpu",
)


def main() -> None:
    """Write the page of what was measured."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.page", description=__doc__)
    parser.add_argument("file", type=Path, metavar="FILE", help="the figures, one JSON object a line")
    parser.add_argument("page", type=Path, metavar="PAGE", help="the page, in which the marks are")
    arguments = parser.parse_args()
    write(arguments.page, read(arguments.file))


def write(page: Path, figures: Sequence[Figure]) -> None:
    """Put the figures into a page. What none of them belongs to stays as it was, whether a table or the chart."""
    text = _replaced(page.read_text(), "machine", machine() + "\n")
    for mark, cell in CELLS.items():
        if chosen := [figure for figure in figures if _where(figure) == mark]:
            text = _replaced(text, mark, table(chosen, cell))
    page.write_text(text)
    if chart.drawable(figures):
        (page.parent / CHART).write_text(chart.svg(figures))


def _where(figure: Figure) -> str:
    """The mark of the table that a figure belongs to; what is drawn only has none."""
    if re.match(r"hooks +\d", figure.subject):
        return ""
    return MARKS.get(figure.subject.split()[0], "figures")


def table(figures: Iterable[Figure], cell: Callable[[Figure], str]) -> str:
    """A row a subject: a cell for each event loop, bold where the goal is missed, and the goal if there are any."""
    rows: dict[str, dict[str, Figure]] = {}
    for figure in figures:
        rows.setdefault(figure.subject, {})[figure.backend] = figure
    goals = {subject: _goal(next(iter(row.values()))) for subject, row in rows.items()}
    last = ["goal"] if any(goals.values()) else []
    lines = [_line(["", *BACKENDS, *last]), _line(["---", *["---:"] * len([*BACKENDS, *last])])]
    for subject, row in rows.items():
        cells = [cell(row[backend]) if backend in row else "" for backend in BACKENDS]
        for column, backend in enumerate(BACKENDS):
            if backend in row and not row[backend].reached:
                cells[column] = f"**{cells[column]}**"
        name = " ".join(re.sub(rf"^({'|'.join(MARKS)}) ", "", subject).split())
        lines.append(_line([name, *cells, *[goals[subject] for _ in last]]))
    return "\n".join(lines) + "\n"


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def machine() -> str:
    """What the figures were measured on, for one line."""
    of = f"{platform.python_implementation()} {platform.python_version()} on {platform.system()} {platform.machine()}"
    parts = [f"{of}, {os.cpu_count()} processors"]
    for package in VERSIONS:
        try:
            parts.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return ", ".join(parts) + "."


def _replaced(text: str, mark: str, content: str) -> str:
    begin, end = f"<!-- {mark} -->\n", f"<!-- /{mark} -->\n"
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise SystemExit(
            f"the page has no lines {begin.strip()} and {end.strip()}, between which a table goes"
        )
    return f"{before}{begin}\n{content}\n{end}{after}"


def _compared(figure: Figure) -> str:
    """How much more than the reference, and what that is in time."""
    if figure.added:
        sign = "-" if figure.value < 0 else "+"
        return f"{sign}{_amount(abs(figure.value), figure.measure)}"
    return f"{figure.value:.2f} x ({_amount(figure.took, figure.measure)})"


def _added(figure: Figure) -> str:
    return f"{figure.took - figure.reference:+.2f} {figure.measure}"


def _both(figure: Figure) -> str:
    """The peer, and asyncstep."""
    return f"{_amount(figure.reference, figure.measure)} / {_amount(figure.took, figure.measure)}"


def _rate(figure: Figure) -> str:
    """Steps a second, and how much of it is of what was to be had."""
    return f"{1e6 / figure.took:,.0f}/s ({figure.reference / figure.took:.0%})"


def _limit(figure: Figure) -> str:
    """The chief's time, how many of these a second it has, and the steps that keep as many workers busy as that."""
    shortest = _amount(MANY * figure.took, figure.measure)
    return f"{_amount(figure.took, figure.measure)}, {1e6 / figure.took:,.0f}/s, {shortest}"


def _goal(figure: Figure) -> str:
    if figure.goal is None:
        return ""
    return f"+{figure.goal:g} {figure.measure}" if figure.added else f"{figure.goal:g} x"


def _amount(value: float, measure: str) -> str:
    if measure == "us" and value >= 1_000:
        value, measure = value / 1_000, "ms"
    return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2}f} {measure}"


CELLS = {
    "figures": _compared,
    "hooks": _added,
    "peers": _both,
    "message": _compared,
    "cluster": _rate,
    "chief": _limit,
}
"""What the cells of a table say, by its mark in the page."""


if __name__ == "__main__":
    main()
