"""``python -m benchmarks [MODULE ...] [--json FILE] [--markdown PAGE]``: run all, or some, and print one table."""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks import checkpoints, cluster, graphs, hooks, page, peers, scale, sources, steps, summaries
from benchmarks.measure import Figure, on_each_backend

MODULES = {
    "steps": steps,
    "graphs": graphs,
    "scale": scale,
    "sources": sources,
    "checkpoints": checkpoints,
    "hooks": hooks,
    "summaries": summaries,
    "cluster": cluster,
    "peers": peers,
}


def main() -> None:
    """Measure everything and say what came out."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures, one JSON object a line")
    parser.add_argument(
        "--markdown", type=Path, metavar="PAGE", help="put the figures into the page, and draw its chart"
    )
    parser.add_argument(
        "modules", nargs="*", choices=[[], *MODULES], metavar="MODULE", help=", ".join(MODULES)
    )
    arguments = parser.parse_args()
    if arguments.markdown and not arguments.markdown.is_file():
        parser.error(f"there is no page {arguments.markdown}")
    chosen = [MODULES[name] for name in arguments.modules or MODULES]
    figures = [figure for module in chosen for figure in on_each_backend(module.measure)]
    print(table(figures))
    if arguments.json:
        arguments.json.write_text("".join(figure.as_json() + "\n" for figure in figures))
    if arguments.markdown:
        page.write(arguments.markdown, figures)


def table(figures: list[Figure]) -> str:
    """One line a figure, the subjects together."""
    rows = [f"{'subject':52} {'backend':8} {'reference':>13} {'subject':>13} {'figure':>10} {'goal':>10}"]
    for figure in sorted(figures, key=lambda figure: figure.subject):
        sign, unit = ("+", f" {figure.measure}") if figure.added else ("", " x")
        goal = "" if figure.goal is None else f"{sign}{figure.goal:g}{unit}"
        rows.append(
            f"{figure.subject:52} {figure.backend:8} {f'{figure.reference:.3f} {figure.measure}':>13}"
            f" {f'{figure.took:.3f} {figure.measure}':>13} {f'{sign}{figure.value:.2f}{unit}':>10} {goal:>10}"
            f"{'' if figure.reached else '  missed'}"
        )
    return "\n".join(rows)


if __name__ == "__main__":
    main()
