"""What people look at tells the programs of a launch apart: progress, traces, metrics, log lines."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry

import asyncstep
from asyncstep import SessionRunHook
from asyncstep.distributed import TaskInfo, launch
from asyncstep.hooks import OpenTelemetryHook, ProgressHook, PrometheusHook, TraceHook
from asyncstep.hooks.progress import Progress

from .loopback import LoopbackJob


async def two_programs(made: Any) -> None:
    """A chief and a worker of five steps each; `made` makes the hooks of each, given its index."""
    job = LoopbackJob(2)

    async def program(task: TaskInfo) -> None:
        hooks: list[SessionRunHook] = made(task.index)
        with asyncstep.Graph():
            add = asyncstep.Variable(0, name="count").assign_add(1)
            session = asyncstep.MonitoredTrainingSession(
                task.master,
                is_chief=task.is_chief,
                hooks=hooks,
                log_step_count_steps=None,
            )
        async with session:
            for _ in range(5):
                await session.run(add)

    async with job.running() as start:
        for running in [start(program, index) for index in range(2)]:
            await running.ended.wait()
            assert running.result is None


@pytest.mark.anyio
async def test_progress_has_the_steps_of_each_program(capsys: pytest.CaptureFixture[str]) -> None:
    """On the chief, beside those of them all."""
    await two_programs(lambda index: [] if index else [ProgressHook()])
    assert capsys.readouterr().err.splitlines()[-1].endswith(", programs 5 | 5")


def test_many_programs_are_summed_up() -> None:
    """The least and the most."""
    line = Progress(step=100, programs=[1, 2, 3, 4, 5, 6, 7, 8, 1234]).line()
    assert line == "step 100, 9 programs: 1 to 1,234"


@pytest.mark.anyio
async def test_each_program_writes_a_trace_of_its_own(tmp_path: Path) -> None:
    """With its index in the name of the process, and in that of the file if it is not the chief's."""
    await two_programs(lambda index: [TraceHook(tmp_path / "trace.json")])
    names = {}
    for path in sorted(tmp_path.iterdir()):
        events = json.loads(path.read_text())["traceEvents"]
        names[path.name] = next(each["args"]["name"] for each in events if each["name"] == "process_name")
    assert names == {"trace-1.json": "asyncstep, program 1", "trace.json": "asyncstep, program 0"}


@pytest.mark.anyio
async def test_prometheus_has_the_program_as_a_label() -> None:
    """Of programs that share a process, too; each counts its own steps."""
    registry = CollectorRegistry()
    await two_programs(lambda index: [PrometheusHook(registry=registry)])
    steps = [registry.get_sample_value("asyncstep_steps_total", {"program": f"{index}"}) for index in (0, 1)]
    assert steps == [5, 5]


@pytest.mark.anyio
async def test_opentelemetry_has_the_program_as_an_attribute() -> None:
    """Spans and metrics alike."""
    spans, reader, tracers = InMemorySpanExporter(), InMemoryMetricReader(), TracerProvider()
    tracers.add_span_processor(SimpleSpanProcessor(spans))
    meters = MeterProvider([reader])
    await two_programs(lambda index: [OpenTelemetryHook(tracer_provider=tracers, meter_provider=meters)])
    committed = [
        span.attributes["asyncstep.program"]
        for span in spans.get_finished_spans()
        if span.attributes is not None and span.attributes["asyncstep.outcome"] == "committed"
    ]
    assert sorted(committed) == [0] * 5 + [1] * 5
    data = json.loads(reader.get_metrics_data().to_json())  # type: ignore[union-attr]
    metrics = data["resource_metrics"][0]["scope_metrics"][0]["metrics"]
    (points,) = [each["data"]["data_points"] for each in metrics if each["name"] == "asyncstep.steps"]
    assert sorted(point["attributes"]["asyncstep.program"] for point in points) == [0, 1]


def test_log_lines_can_have_the_program(caplog: pytest.LogCaptureFixture) -> None:
    """By the name of the thread: ``%(threadName)s``."""
    from distributed import LocalCluster

    async def program(task: TaskInfo) -> None:
        logging.getLogger("asyncstep").warning("here")

    with LocalCluster(
        n_workers=1, threads_per_worker=1, processes=False, host="tcp://127.0.0.1", dashboard_address=":0"
    ) as cluster:
        launch(program, cluster, workers=2)
    threads = sorted(record.threadName or "" for record in caplog.records if record.message == "here")
    assert [name.rpartition("-")[::2][1] for name in threads] == ["0", "1"]
    assert all(name.startswith("program-") for name in threads)
