"""Interleaved timing: reference, subject, reference, subject, ..., and the minimum of each."""

from __future__ import annotations

import gc
import json
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
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
    """One line of the table. Times are microseconds for one unit (a step, a node).

    `goal` is the highest ratio of subject to reference that is wanted, or, with `added`, the most
    microseconds that the subject may take more.
    """

    subject: str
    backend: str
    unit: str
    reference_us: float
    subject_us: float
    goal: float
    added: bool = False

    @property
    def value(self) -> float:
        """What is compared with the goal."""
        if self.added:
            return self.subject_us - self.reference_us
        return self.subject_us / self.reference_us

    @property
    def reached(self) -> bool:
        """Whether the goal is."""
        return self.value <= self.goal

    def as_json(self) -> str:
        """One line of JSON."""
        return json.dumps({**asdict(self), "value": self.value, "reached": self.reached})


async def interleaved(reference: Timed, subject: Timed, units: int) -> tuple[float, float]:
    """Microseconds for one unit of the reference and of the subject: the minimum of several rounds of each."""
    best = {reference: float("inf"), subject: float("inf")}
    for timed in (reference, subject):
        await timed()
    for _ in range(ROUNDS):
        for timed in (reference, subject):
            gc.collect()
            gc.disable()
            try:
                began = perf_counter()
                await timed()
                taken = perf_counter() - began
            finally:
                gc.enable()
            best[timed] = min(best[timed], taken)
    return best[reference] / units * 1e6, best[subject] / units * 1e6


def on_each_backend(measure: Callable[[str], Awaitable[list[Figure]]]) -> list[Figure]:
    """Run a measurement on asyncio, uvloop and trio."""
    figures: list[Figure] = []
    for name, (backend, options) in BACKENDS.items():
        figures += anyio.run(measure, name, backend=backend, backend_options=options)
    return figures
