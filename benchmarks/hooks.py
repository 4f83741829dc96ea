"""What each stock hook adds to a step, against the same session without it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from prometheus_client import CollectorRegistry

import asyncstep as a
from asyncstep import hooks
from benchmarks.measure import Figure, interleaved

STEPS = 2_000


async def measure(backend: str) -> list[Figure]:
    """The figures of one backend."""
    figures = []
    for name, make in HOOKS.items():
        with tempfile.TemporaryDirectory() as directory:
            figures.append(await _compared(backend, name, make, Path(directory)))
    return figures


class Blocking:
    """A hook of plain functions, as those that block are."""

    def after_run(self, run_context: a.SessionRunContext, run_values: a.SessionRunValues) -> None:
        """Do nothing, in a thread."""


HOOKS: dict[str, Callable[[a.Node[float], Path], a.SessionRunHook]] = {
    "StopAtStepHook": lambda value, path: hooks.StopAtStepHook(num_steps=10**9),
    "CheckpointSaverHook, each 1,000": lambda value, path: hooks.CheckpointSaverHook(path, save_steps=1_000),
    "LoggingHook, each 100": lambda value, path: hooks.LoggingHook({"value": value}, every_n_steps=100),
    "NanHook": lambda value, path: hooks.NanHook(value),
    "StepCounterHook": lambda value, path: hooks.StepCounterHook(),
    "FeedFnHook": lambda value, path: hooks.FeedFnHook(dict),
    "FinalOpsHook": lambda value, path: hooks.FinalOpsHook(value),
    "EarlyStoppingHook": lambda value, path: hooks.EarlyStoppingHook(value, patience=10**9),
    "EvaluatorHook, each 100": lambda value, path: hooks.EvaluatorHook(value, every_n_steps=100),
    "SignalHook": lambda value, path: hooks.SignalHook(),
    "SummarySaverHook, each 100": lambda value, path: hooks.SummarySaverHook(
        {"value": value}, save_steps=100, output_dir=path
    ),
    "ProfilerHook, each 1,000": lambda value, path: hooks.ProfilerHook(
        save_steps=1_000, output_dir=str(path)
    ),
    "ProgressHook, in lines": lambda value, path: hooks.ProgressHook(10**9, values=[value]),
    "OpenTelemetryHook": lambda value, path: hooks.OpenTelemetryHook(),
    "PrometheusHook": lambda value, path: hooks.PrometheusHook(registry=CollectorRegistry()),
    "on_step, each 100": lambda value, path: hooks.on_step(lambda step: None, every_steps=100),
    "ThreadHook": lambda value, path: hooks.ThreadHook(Blocking()),
    "GlobalStepWaiterHook": lambda value, path: hooks.GlobalStepWaiterHook(0),
}


async def _compared(
    backend: str, name: str, make: Callable[[a.Node[float], Path], a.SessionRunHook], directory: Path
) -> Figure:
    with a.Graph() as graph:
        value = a.Variable(0.0, name="value").assign_add(1.0)
    with a.Graph() as watched:
        watched_value = a.Variable(0.0, name="value").assign_add(1.0)
    async with (
        a.MonitoredSession(a.ChiefSessionCreator(graph=graph)) as without,
        a.MonitoredSession(a.ChiefSessionCreator(graph=watched), [make(watched_value, directory)]) as with_it,
    ):

        async def reference() -> None:
            for _ in range(STEPS):
                await without.run(value)

        async def subject() -> None:
            for _ in range(STEPS):
                await with_it.run(watched_value)

        times = await interleaved(reference, subject, STEPS)
    return Figure(f"hook {name}", backend, "step", *times, None)
