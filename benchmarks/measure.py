"""Interleaved timing: reference, subject, reference, subject, ..., and the minimum of each."""

from __future__ import annotations

import gc
import json
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from time import perf_counter
from typing import Any

import anyio

ROUNDS = 9
BACKENDS: dict[str, tuple[str, dict[str, Any]]] = {
    "asyncio": ("asyncio", {"use_uvloop": False}),
    "uvloop": ("asyncio", {"use_uvloop": True}),
    "trio": ("trio", {}),
}

Timed = Callable[[], Awaitable[object]]


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the table.

    Attributes:
        subject: what was measured.
        backend: on which event loop.
        unit: what `reference` and `subject_took` are for one of: a step, a node.
        reference: of the reference, in `measure`.
        took: of the subject, in `measure`.
        goal: the highest ratio of `took` to `reference` that is wanted, or, with `added`, the most that may be
            added to the reference; None: the figure is there to be known.
        measure: microseconds, or MiB.
    """

    subject: str
    backend: str
    unit: str
    reference: float
    took: float
    goal: float | None
    added: bool = False
    measure: str = "us"

    @property
    def value(self) -> float:
        """What is compared with the goal."""
        return self.took - self.reference if self.added else self.took / self.reference

    @property
    def reached(self) -> bool:
        """Whether the goal is."""
        return self.goal is None or self.value <= self.goal

    def as_json(self) -> str:
        """One line of JSON."""
        return json.dumps({**asdict(self), "value": self.value, "reached": self.reached})


def read(file: Path) -> list[Figure]:
    """The figures that were written to a file, one JSON object a line."""
    names = {field.name for field in fields(Figure)}
    return [
        Figure(**{name: value for name, value in json.loads(line).items() if name in names})
        for line in file.read_text().splitlines()
    ]


async def interleaved(
    reference: Timed, subject: Timed, units: int, rounds: int = ROUNDS
) -> tuple[float, float]:
    """Microseconds for one unit of the reference and of the subject: the minimum of several rounds of each."""
    best = {reference: float("inf"), subject: float("inf")}
    for timed in (reference, subject):
        await timed()
    gc.collect()
    gc.freeze()  # so that the collections between the rounds do not look at all that was imported
    gc.disable()
    try:
        for _ in range(rounds):
            for timed in (reference, subject):
                gc.collect()
                began = perf_counter()
                await timed()
                best[timed] = min(best[timed], perf_counter() - began)
    finally:
        gc.enable()
        gc.unfreeze()
    return best[reference] / units * 1e6, best[subject] / units * 1e6


def on_each_backend(measure: Callable[[str], Awaitable[list[Figure]]]) -> list[Figure]:
    """Run a measurement on asyncio, uvloop and trio."""
    figures: list[Figure] = []
    for name, (backend, options) in BACKENDS.items():
        figures += anyio.run(measure, name, backend=backend, backend_options=options)
    return figures
