"""``python -m benchmarks [--json FILE]``: run all, print one table."""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks import checkpoints, graphs, sources, steps, summaries
from benchmarks.measure import Figure, on_each_backend


def main() -> None:
    """Measure everything and say what came out."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures, one JSON object a line")
    arguments = parser.parse_args()
    modules = (steps, graphs, sources, checkpoints, summaries)
    figures = [figure for module in modules for figure in on_each_backend(module.measure)]
    print(table(figures))
    if arguments.json:
        arguments.json.write_text("".join(figure.as_json() + "\n" for figure in figures))


def table(figures: list[Figure]) -> str:
    """One line a figure, the subjects together."""
    rows = [
        f"{'subject':32} {'backend':8} {'reference us':>12} {'subject us':>11} {'figure':>10} {'goal':>10}"
    ]
    for figure in sorted(figures, key=lambda figure: figure.subject):
        sign, unit = ("+", " us") if figure.added else ("", " x")
        rows.append(
            f"{figure.subject:32} {figure.backend:8} {figure.reference_us:12.3f} {figure.subject_us:11.3f}"
            f" {f'{sign}{figure.value:.2f}{unit}':>10} {f'{sign}{figure.goal:g}{unit}':>10}"
            f"{'' if figure.reached else '  missed'}"
        )
    return "\n".join(rows)


if __name__ == "__main__":
    main()
