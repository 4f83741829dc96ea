"""``python -m benchmarks.chart FILE OUT.svg``: what a step costs, by its hooks and by its workers, as a picture.

FILE is what ``python -m benchmarks steps scale --json FILE`` writes. The colours are readable on white and on black.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import ceil, log10
from pathlib import Path

from benchmarks.measure import BACKENDS, Figure, read

WIDTH, HEIGHT = 760, 300
LEFT, TOP, PLOT_WIDTH, PLOT_HEIGHT, APART = 46, 54, 300, 190, 372
MARKS = {
    "asyncio": '<circle class="asyncio" cx="{x:.1f}" cy="{y:.1f}" r="4"/>',
    "uvloop": '<path class="uvloop" d="M{x:.1f} {y:.1f} m-4 -4 h8 v8 h-8 z"/>',
    "trio": '<path class="trio" d="M{x:.1f} {y:.1f} m0 -5 l5 9 h-10 z"/>',
}
STYLE = """
    .axis { fill: none; stroke: #7b86a8; }
    .grid { fill: none; stroke: #7b86a8; stroke-opacity: 0.25; }
    text { fill: #7b86a8; }
    .name { font-weight: bold; }
    .end { text-anchor: end; }
    .middle { text-anchor: middle; }
    .asyncio { fill: #7986cb; stroke: #7986cb; }
    .uvloop { fill: #1d9a8c; stroke: #1d9a8c; }
    .trio { fill: #dd7a1f; stroke: #dd7a1f; }
    .line { fill: none; stroke-width: 2; }
"""

Points = list[tuple[int, float]]


@dataclass(frozen=True, slots=True)
class Panel:
    """One half of the picture.

    Attributes:
        title: what is drawn.
        subject: which figures they are; its group is the number on the x axis.
        place: from such a number to a place on an axis that is linear.
    """

    title: str
    subject: re.Pattern[str]
    place: Callable[[int], float]


PANELS = (
    Panel("hooks", re.compile(r"hooks +(\d+)"), float),
    Panel("workers", re.compile(r"P8 +([\d,]+) workers"), log10),
)


def main() -> None:
    """Draw what was measured."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chart", description=__doc__)
    parser.add_argument("file", type=Path, metavar="FILE", help="the figures, one JSON object a line")
    parser.add_argument("out", type=Path, metavar="OUT.svg", help="where the picture goes")
    arguments = parser.parse_args()
    figures = read(arguments.file)
    if not drawable(figures):
        parser.error(
            f"{arguments.file} lacks the figures of hooks or of workers: measure them with"
            f" `python -m benchmarks steps scale --json {arguments.file}`"
        )
    arguments.out.write_text(svg(figures))


def drawable(figures: Sequence[Figure]) -> bool:
    """Whether there is something to draw in both halves."""
    return all(curves(figures, panel.subject) for panel in PANELS)


def svg(figures: Sequence[Figure]) -> str:
    """The picture."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img"'
        ' aria-label="What a step costs" font-family="sans-serif" font-size="12">',
        f"  <style>{STYLE}  </style>",
        *_legend(),
    ]
    for number, panel in enumerate(PANELS):
        parts += _panel(panel, curves(figures, panel.subject), LEFT + number * APART)
    return "\n".join([*parts, "</svg>", ""])


def curves(figures: Iterable[Figure], subject: re.Pattern[str]) -> dict[str, Points]:
    """For each loop, the microseconds that a step takes more than its reference, by the number in its subject."""
    found: dict[str, Points] = {}
    for figure in figures:
        if match := subject.fullmatch(figure.subject):
            point = int(match[1].replace(",", "")), figure.took - figure.reference
            found.setdefault(figure.backend, []).append(point)
    return {backend: sorted(found[backend]) for backend in BACKENDS if backend in found}


def _legend() -> list[str]:
    parts = [f'  <text class="name" x="{LEFT}" y="20">microseconds a step, beyond the same by hand</text>']
    for number, (backend, mark) in enumerate(MARKS.items()):
        x = 480 + 95 * number
        parts.append(f'  {mark.format(x=x, y=16)}<text x="{x + 10}" y="20">{backend}</text>')
    return parts


def _panel(panel: Panel, lines: dict[str, Points], left: int) -> list[str]:
    numbers = sorted({number for points in lines.values() for number, _ in points})
    first, last = panel.place(numbers[0]), panel.place(numbers[-1])
    most = max(value for points in lines.values() for _, value in points)
    tick = nice(most / 4)
    top = tick * max(1, ceil(most / tick))
    bottom = TOP + PLOT_HEIGHT

    def x(number: int) -> float:
        return left + PLOT_WIDTH * (panel.place(number) - first) / ((last - first) or 1)

    def y(value: float) -> float:
        return bottom - PLOT_HEIGHT * max(value, 0) / top

    parts = []
    for count in range(round(top / tick) + 1):
        at = y(count * tick)
        parts.append(f'  <path class="grid" d="M{left} {at:.1f} h{PLOT_WIDTH}"/>')
        parts.append(f'  <text class="end" x="{left - 8}" y="{at + 4:.1f}">{count * tick:g}</text>')
    parts.append(f'  <path class="axis" d="M{left} {bottom} h{PLOT_WIDTH}"/>')
    for number in numbers:
        parts.append(f'  <text class="middle" x="{x(number):.1f}" y="{bottom + 18}">{number:,}</text>')
    title = left + PLOT_WIDTH / 2
    parts.append(f'  <text class="middle name" x="{title:.1f}" y="{bottom + 40}">{panel.title}</text>')
    for backend, points in lines.items():
        corners = " ".join(f"{x(number):.1f},{y(value):.1f}" for number, value in points)
        parts.append(f'  <polyline class="{backend} line" points="{corners}"/>')
        parts += [f"  {MARKS[backend].format(x=x(number), y=y(value))}" for number, value in points]
    return parts


def nice(value: float) -> float:
    """The next of 1, 2 and 5 times a power of ten."""
    power = 10.0 ** ceil(log10(max(value, 1e-3)) - 1)
    return next((power * times for times in (1, 2, 5) if power * times >= value), power * 10)


if __name__ == "__main__":
    main()
