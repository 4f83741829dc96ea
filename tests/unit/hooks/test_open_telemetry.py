"""`OpenTelemetryHook`: its spans and metrics, read back by OpenTelemetry's own SDK."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import StatusCode

from asyncstep import (
    AbortedError,
    Graph,
    MonitoredSession,
    Recovery,
    RunMetadata,
    RunOptions,
    Session,
    SessionCreator,
    StepContext,
    op,
    source,
)
from asyncstep.errors import InvalidTypeError
from asyncstep.hooks import CheckpointSaverHook, NanHook, OpenTelemetryHook

pytestmark = pytest.mark.anyio


async def step() -> None:
    """A step that does nothing."""


class Telemetry:
    """An SDK that keeps everything in memory."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self._reader = InMemoryMetricReader()
        self.tracers = TracerProvider()
        self.tracers.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.meters = MeterProvider([self._reader])
        self.tracer = self.tracers.get_tracer("test")

    def hook(self, **options: Any) -> OpenTelemetryHook:
        """A hook that gives its data here."""
        return OpenTelemetryHook(tracer_provider=self.tracers, meter_provider=self.meters, **options)

    @property
    def spans(self) -> list[ReadableSpan]:
        """The spans that have ended, in that order."""
        return list(self._exporter.get_finished_spans())

    def steps(self) -> list[dict[str, Any]]:
        """The attributes of the steps' spans."""
        return [dict(span.attributes or {}) for span in self.spans if span.name == "asyncstep.step"]

    def metrics(self) -> dict[str, Any]:
        """The metrics by name."""
        data = self._reader.get_metrics_data()
        if data is None:
            return {}
        return {
            metric.name: metric
            for resource in data.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }

    def counts(self) -> dict[str, Any]:
        """The counters' values, and how many times the histograms have recorded."""
        return {
            name: sum(
                getattr(point, "value", None) or getattr(point, "count", 0)
                for point in metric.data.data_points
            )
            for name, metric in self.metrics().items()
        }

    def shutdown(self) -> None:
        """End it."""
        self.tracers.shutdown()
        self.meters.shutdown()


@pytest.fixture
def telemetry() -> Iterator[Telemetry]:
    """An SDK that keeps everything in memory."""
    made = Telemetry()
    yield made
    made.shutdown()


async def test_a_step_is_a_span(telemetry: Telemetry) -> None:
    """Each committed step is one span, with its global step, worker and attempt, and no error."""
    with Graph():
        session = MonitoredSession(hooks=[telemetry.hook()])
    async with session:
        await session.run(step)
        await session.run(step)
    assert telemetry.steps() == [
        {
            "asyncstep.worker": 0,
            "asyncstep.attempt": 1,
            "asyncstep.global_step": number,
            "asyncstep.outcome": "committed",
        }
        for number in (1, 2)
    ]
    assert {span.status.status_code for span in telemetry.spans} == {StatusCode.UNSET}
    assert {span.instrumentation_scope.name for span in telemetry.spans if span.instrumentation_scope} == {
        "asyncstep"
    }


async def test_a_failed_step_records_its_error(telemetry: Telemetry) -> None:
    """The span has the error with the note that names the node, its type, and the status of an error."""

    @op
    async def fails() -> None:
        raise ZeroDivisionError("by nothing")

    with Graph():
        node = fails()
        session = MonitoredSession(hooks=[telemetry.hook()])
    async with session:
        with pytest.raises(ZeroDivisionError):
            await session.run(node)
    [span] = telemetry.spans
    assert span.status.status_code is StatusCode.ERROR
    assert span.status.description == "by nothing"
    assert span.attributes is not None
    assert (span.attributes["asyncstep.outcome"], span.attributes["error.type"]) == (
        "failed",
        "ZeroDivisionError",
    )
    [event] = span.events
    assert event.attributes is not None
    assert event.name == "exception"
    assert "in the node 'fails'" in str(event.attributes["exception.stacktrace"])


async def test_retries_are_spans_of_their_own(telemetry: Telemetry) -> None:
    """A step that is run again is a failed span and a committed one; the failure is counted by its type."""
    failures = iter([AbortedError("once")])

    async def fails_once() -> None:
        for failure in failures:
            raise failure

    with Graph():
        session = MonitoredSession(hooks=[telemetry.hook()], recovery=Recovery(wait_initial=0.0, jitter=0.0))
    async with session:
        await session.run(fails_once)
    outcomes = [(each["asyncstep.attempt"], each["asyncstep.outcome"]) for each in telemetry.steps()]
    assert outcomes == [(1, "failed"), (2, "committed")]
    [point] = telemetry.metrics()["asyncstep.failures"].data.data_points
    assert (point.value, dict(point.attributes)) == (1, {"error.type": "asyncstep.errors.AbortedError"})


async def test_spans_of_ops_are_children_of_the_steps(telemetry: Telemetry) -> None:
    """A span that an op makes, in the loop, in a spare worker's task or in a thread, is below its step's."""

    def traced(name: str) -> None:
        with telemetry.tracer.start_as_current_span(name):
            pass

    @op
    async def waits(name: str) -> None:
        await anyio.lowlevel.checkpoint()
        traced(name)

    with Graph():
        nodes = [waits("first"), waits("second"), op(offload="thread")(traced)("thread")]
        session = MonitoredSession(hooks=[telemetry.hook()])
    async with session:
        await session.run(nodes)
    *inner, outer = telemetry.spans
    assert sorted(span.name for span in inner) == ["first", "second", "thread"]
    assert {span.parent.span_id for span in inner if span.parent} == {outer.context.span_id}
    assert len({span.context.trace_id for span in telemetry.spans}) == 1


async def test_a_step_is_a_child_of_what_is_around_it(telemetry: Telemetry) -> None:
    """The span that is current when a step begins is its parent, and is current again afterwards."""
    with Graph():
        session = MonitoredSession(hooks=[telemetry.hook()])
    async with session:
        with telemetry.tracer.start_as_current_span("around") as around:
            await session.run(step)
            assert trace.get_current_span() is around
    assert trace.get_current_span() is trace.INVALID_SPAN
    inner, _ = telemetry.spans
    assert inner.parent is not None
    assert inner.parent.span_id == around.get_span_context().span_id


async def test_workers_steps_do_not_mix(telemetry: Telemetry) -> None:
    """With eight workers whose steps overlap, each op's span is below the span of its own step."""

    @op
    async def note() -> None:
        mine = trace.get_current_span()
        for _ in range(5):
            await anyio.lowlevel.checkpoint()
            assert trace.get_current_span() is mine
        seen.append(mine.get_span_context().span_id)

    seen: list[int] = []

    async def work(ctx: StepContext) -> None:
        await ctx.run_with_hooks(node)
        assert trace.get_current_span() is trace.INVALID_SPAN
        if session.global_step >= 40:
            ctx.request_stop()

    with Graph():
        node = note()
        session = MonitoredSession(hooks=[telemetry.hook()])
    async with session:
        await session.loop(work, workers=8)
    spans = {span.context.span_id: span for span in telemetry.spans}
    assert sorted(seen) == sorted(spans)
    assert {span.parent for span in telemetry.spans} == {None}
    assert {span.attributes["asyncstep.worker"] for span in telemetry.spans if span.attributes} == set(
        range(8)
    )


async def test_a_cancelled_step_leaves_no_context_behind(telemetry: Telemetry) -> None:
    """A cancellation ends the span without an error, and the context from before is current again."""
    with Graph():
        session = MonitoredSession(hooks=[telemetry.hook()])
    async with session:
        with anyio.CancelScope() as scope:

            async def cancelled() -> None:
                scope.cancel()
                await anyio.sleep_forever()

            await session.run(cancelled)
        assert trace.get_current_span() is trace.INVALID_SPAN
        await session.run(step)
    assert [each["asyncstep.outcome"] for each in telemetry.steps()] == ["cancelled", "committed"]
    assert {span.status.status_code for span in telemetry.spans} == {StatusCode.UNSET}
    assert {span.parent for span in telemetry.spans} == {None}
    assert "asyncstep.failures" not in telemetry.metrics()


async def test_the_end_of_data_and_a_stop_are_no_failures(telemetry: Telemetry) -> None:
    """The step that finds no more data, and one that NanHook ends, are spans that stopped; nothing has failed."""

    async def nan() -> float:
        return float("nan")

    with Graph():
        items = source([1], name="items")
        of_data = MonitoredSession(hooks=[telemetry.hook()])
        of_nan = MonitoredSession(hooks=[telemetry.hook(), NanHook(nan, fail=False)])
    async with of_data:
        while not of_data.should_stop():
            await of_data.run(items)
    async with of_nan:
        await of_nan.run(step)
    assert [each["asyncstep.outcome"] for each in telemetry.steps()] == ["committed", "stopped", "stopped"]
    assert {span.status.status_code for span in telemetry.spans} == {StatusCode.UNSET}
    assert telemetry.counts() == {"asyncstep.steps": 1, "asyncstep.step.duration": 1}


async def test_two_hooks_leave_each_others_context_alone(telemetry: Telemetry) -> None:
    """Hooks come before and after a run in one order; two of them leave no context of theirs behind."""
    with Graph():
        session = MonitoredSession(hooks=[telemetry.hook(), telemetry.hook()])
    async with session:
        for _ in range(3):
            await session.run(step)
            assert trace.get_current_span() is trace.INVALID_SPAN
    parents = [span.parent for span in telemetry.spans]
    assert [parent is None for parent in parents] == [True, False] * 3


async def test_a_task_that_outlives_its_step_begins_anew(telemetry: Telemetry) -> None:
    """A step that is run by a task which an earlier step has started is no child of that step."""
    done = anyio.Event()

    async def later() -> None:
        await done.wait()
        await session.run(step)

    async with anyio.create_task_group() as tasks:

        async def start() -> None:
            tasks.start_soon(later)

        with Graph():
            session = MonitoredSession(hooks=[telemetry.hook()])
        async with session:
            await session.run(start)
            done.set()
            await anyio.wait_all_tasks_blocked()
    assert [span.parent for span in telemetry.spans] == [None, None]


async def test_nodes_are_spans_if_asked_for(telemetry: Telemetry) -> None:
    """With node_spans each node of the step is a span below the step's, within its time."""

    @op
    async def double(x: int) -> int:
        await anyio.lowlevel.checkpoint()
        return 2 * x

    with Graph():
        first = double(1)
        second = double(first)
        session = MonitoredSession(hooks=[telemetry.hook(node_spans=True)])
    async with session:
        assert await session.run(second) == 4
    *nodes, outer = telemetry.spans
    assert [span.name for span in nodes] == [first.name, second.name]
    assert {span.parent.span_id for span in nodes if span.parent} == {outer.context.span_id}
    times = [outer.start_time, nodes[0].start_time, nodes[0].end_time, nodes[1].start_time, nodes[1].end_time]
    assert times == sorted(times, key=lambda each: each or 0)


async def test_metadata_that_is_used_again_gives_no_node_twice(telemetry: Telemetry) -> None:
    """Timings that the caller's own RunMetadata has from an earlier run are not of this step."""

    @op
    async def node(name: str) -> str:
        return name

    with Graph():
        first, second = node("a"), node("b")
        session = MonitoredSession(hooks=[telemetry.hook(node_spans=True)])
    metadata = RunMetadata()
    async with session:
        for each in (first, second):
            await session.run(each, options=RunOptions(trace=True), run_metadata=metadata)
    assert [span.name for span in telemetry.spans if span.name != "asyncstep.step"] == [
        first.name,
        second.name,
    ]


async def test_steps_that_are_not_sampled_are_not_traced() -> None:
    """Where the sampler drops a step, its nodes are not timed; the metrics count it all the same."""
    telemetry = Telemetry()
    telemetry.tracers = TracerProvider(sampler=ALWAYS_OFF)
    metadata = RunMetadata()
    with Graph():
        node = op(step)()
        session = MonitoredSession(hooks=[telemetry.hook(node_spans=True)])
    async with session:
        await session.run(node, run_metadata=metadata)
    assert metadata.node_timings == {}
    assert telemetry.counts()["asyncstep.steps"] == 1
    telemetry.shutdown()


class Restoring(SessionCreator):
    """Each of its sessions starts at 0."""

    def __init__(self) -> None:
        self.graph = Graph()

    async def create_session(self) -> Session:
        return Session(self.graph)


async def test_the_metrics(telemetry: Telemetry, tmp_path: Path) -> None:
    """Steps, failures, recoveries, the time of steps and that of checkpoints, by the names of the conventions."""
    plan: list[Exception | None] = [None, AbortedError("again"), None]

    async def planned() -> None:
        failure = plan.pop(0)
        if failure is not None:
            raise failure

    saver = CheckpointSaverHook(tmp_path, save_steps=1000)
    session = MonitoredSession(
        Restoring(),
        [telemetry.hook()],
        recovery=Recovery(restore="always", wait_initial=0.0, jitter=0.0),
    )
    async with session:
        for _ in range(2):
            await session.run(planned)
    with Graph():
        saving = MonitoredSession(hooks=[telemetry.hook(), saver])
    async with saving:
        for _ in range(2):
            await saving.run(step)
    assert telemetry.counts() == {
        "asyncstep.steps": 4,
        "asyncstep.failures": 1,
        "asyncstep.recoveries": 1,
        "asyncstep.step.duration": 4,
        "asyncstep.checkpoint.duration": 2,
    }
    units = {name: metric.unit for name, metric in telemetry.metrics().items()}
    assert units == {
        "asyncstep.steps": "{step}",
        "asyncstep.failures": "{failure}",
        "asyncstep.recoveries": "{recovery}",
        "asyncstep.step.duration": "s",
        "asyncstep.checkpoint.duration": "s",
    }
    [point] = telemetry.metrics()["asyncstep.step.duration"].data.data_points
    assert 0.0001 in point.explicit_bounds
    assert 0 < point.min <= point.max < 60


async def test_the_global_providers_are_the_default(
    monkeypatch: pytest.MonkeyPatch, telemetry: Telemetry
) -> None:
    """Without providers the data goes to those of the process."""
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: telemetry.tracers)
    monkeypatch.setattr(metrics, "get_meter_provider", lambda: telemetry.meters)
    monkeypatch.setattr("opentelemetry.metrics._internal.get_meter_provider", lambda: telemetry.meters)
    with Graph():
        session = MonitoredSession(hooks=[OpenTelemetryHook()])
    async with session:
        await session.run(step)
    assert len(telemetry.spans) == 1
    assert telemetry.counts()["asyncstep.steps"] == 1


async def test_without_an_sdk_it_does_nothing() -> None:
    """The API alone is enough to run."""
    with Graph():
        session = MonitoredSession(hooks=[OpenTelemetryHook(node_spans=True)])
    async with session:
        await session.run(step)
    assert session.global_step == 1


@pytest.mark.parametrize("wrong", [{"tracer_provider": 3}, {"meter_provider": "x"}], ids=str)
def test_providers_are_providers(wrong: dict[str, Any]) -> None:
    """Anything else is a TypeError at construction, which names the parameter."""
    with pytest.raises(InvalidTypeError, match=next(iter(wrong))):
        OpenTelemetryHook(**wrong)


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ImportError at construction says what to install."""
    monkeypatch.setitem(sys.modules, "opentelemetry.trace", None)
    with pytest.raises(ImportError, match=r"pip install 'asyncstep\[opentelemetry\]'"):
        OpenTelemetryHook()
