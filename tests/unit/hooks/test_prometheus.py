"""`PrometheusHook`: its metrics, read back from a registry and from what a scrape is given."""

from __future__ import annotations

import gc
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import anyio
import prometheus_client
import pytest
from prometheus_client import CollectorRegistry, Counter, generate_latest

from asyncstep import (
    AbortedError,
    Graph,
    MonitoredSession,
    Recovery,
    Session,
    SessionCreator,
    StepContext,
    source,
)
from asyncstep.errors import InvalidArgumentError, InvalidTypeError
from asyncstep.hooks import CheckpointSaverHook, PrometheusHook

pytestmark = pytest.mark.anyio


async def step() -> None:
    """A step that does nothing."""


@pytest.fixture
def registry() -> CollectorRegistry:
    """A registry of its own."""
    return CollectorRegistry()


def values(registry: CollectorRegistry) -> dict[str, float]:
    """The samples by name and labels, without buckets, sums and times of creation."""
    return {
        f"{sample.name}{sample.labels or ''}": sample.value
        for metric in registry.collect()
        for sample in metric.samples
        if not sample.name.endswith(("_bucket", "_sum", "_created"))
    }


async def test_steps_failures_and_their_times(registry: CollectorRegistry) -> None:
    """Committed steps are counted and timed, failures are counted by their type."""

    async def fails() -> None:
        raise ZeroDivisionError

    with Graph():
        session = MonitoredSession(hooks=[PrometheusHook(registry=registry)])
    async with session:
        for _ in range(3):
            await session.run(step)
        for _ in range(2):
            with pytest.raises(ZeroDivisionError):
                await session.run(fails)
    assert values(registry) == {
        "asyncstep_steps_total": 3,
        "asyncstep_failures_total{'error': 'ZeroDivisionError'}": 2,
        "asyncstep_recoveries_total": 0,
        "asyncstep_step_seconds_count": 3,
        "asyncstep_checkpoint_seconds_count": 0,
    }
    taken = registry.get_sample_value("asyncstep_step_seconds_sum")
    assert taken is not None
    assert 0 < taken < 60
    assert b'asyncstep_step_seconds_bucket{le="0.001"}' in generate_latest(registry)


async def test_checkpoints_are_timed(registry: CollectorRegistry, tmp_path: Path) -> None:
    """Each checkpoint is timed, the last one too, without any wiring."""
    with Graph():
        hooks = [PrometheusHook(registry=registry), CheckpointSaverHook(tmp_path, save_steps=1000)]
        session = MonitoredSession(hooks=hooks)
    async with session:
        for _ in range(2):
            await session.run(step)
    assert values(registry)["asyncstep_checkpoint_seconds_count"] == 2
    taken = registry.get_sample_value("asyncstep_checkpoint_seconds_sum")
    assert taken is not None
    assert 0 < taken < 60


async def test_recoveries(registry: CollectorRegistry) -> None:
    """A raw session in place of a lost one is counted, the first one is not; the failure is too."""

    class Restoring(SessionCreator):
        """Each of its sessions starts at 0."""

        def __init__(self) -> None:
            self.graph = Graph()

        async def create_session(self) -> Session:
            return Session(self.graph)

    plan: list[Exception | None] = [None, AbortedError("again"), None]

    async def planned() -> None:
        failure = plan.pop(0)
        if failure is not None:
            raise failure

    session = MonitoredSession(
        Restoring(),
        [PrometheusHook(registry=registry)],
        recovery=Recovery(restore="always", wait_initial=0.0, jitter=0.0),
    )
    async with session:
        for _ in range(2):
            await session.run(planned)
    found = values(registry)
    assert found["asyncstep_recoveries_total"] == 1
    assert found["asyncstep_failures_total{'error': 'asyncstep.errors.AbortedError'}"] == 1


async def test_what_is_no_failure(registry: CollectorRegistry) -> None:
    """A cancelled step, and the step that meets the end of the data, are neither steps nor failures."""
    with Graph():
        items = source([1], name="items")
        session = MonitoredSession(hooks=[PrometheusHook(registry=registry)])
    async with session:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await session.run(anyio.sleep_forever)
        with anyio.move_on_after(0.001):
            await session.run(anyio.sleep_forever)
        while not session.should_stop():
            await session.run(items)
    found = values(registry)
    assert found["asyncstep_steps_total"] == 1
    assert [name for name in found if "failures" in name] == []


async def test_no_step_of_many_workers_is_lost(registry: CollectorRegistry) -> None:
    """With eight workers each committed step is counted and timed once."""

    async def work(ctx: StepContext) -> None:
        await ctx.run_with_hooks(anyio.lowlevel.checkpoint)
        if session.global_step >= 300:
            ctx.request_stop()

    with Graph():
        session = MonitoredSession(hooks=[PrometheusHook(registry=registry)])
    async with session:
        await session.loop(work, workers=8)
    found = values(registry)
    assert found["asyncstep_steps_total"] == found["asyncstep_step_seconds_count"] == session.global_step


async def test_sessions_of_one_process_share_the_metrics() -> None:
    """Two hooks with the default registry count into the same metrics, and neither is a duplicate."""
    before = prometheus_client.REGISTRY.get_sample_value("asyncstep_steps_total") or 0
    with Graph():
        sessions = [MonitoredSession(hooks=[PrometheusHook()]) for _ in range(2)]
    async with sessions[0], sessions[1]:
        for session in sessions:
            await session.run(step)
    assert prometheus_client.REGISTRY.get_sample_value("asyncstep_steps_total") == before + 2


async def test_a_prefix_tells_sessions_apart(registry: CollectorRegistry) -> None:
    """Each prefix has metrics of its own in the same registry."""
    with Graph():
        sessions = [
            MonitoredSession(hooks=[PrometheusHook(registry=registry, prefix=prefix)])
            for prefix in ("crawl", "embed")
        ]
    for session, steps in zip(sessions, (1, 2), strict=True):
        async with session:
            for _ in range(steps):
                await session.run(step)
    found = values(registry)
    assert (found["crawl_steps_total"], found["embed_steps_total"]) == (1, 2)


def test_hooks_may_be_made_in_many_threads(registry: CollectorRegistry) -> None:
    """Of hooks that are made at the same time, one makes the metrics and all have them."""
    with ThreadPoolExecutor(8) as threads:
        hooks = list(threads.map(lambda _: PrometheusHook(registry=registry), range(32)))
    assert len(hooks) == 32
    assert values(registry)["asyncstep_steps_total"] == 0


def test_a_registry_is_let_go() -> None:
    """A registry that nobody else holds does not stay alive because a hook counted into it."""
    registry = CollectorRegistry()
    PrometheusHook(registry=registry)
    gone = weakref.ref(registry)
    del registry
    gc.collect()
    assert gone() is None


def test_other_metrics_of_the_prefix_are_refused(registry: CollectorRegistry) -> None:
    """Where a name is taken by another's metric, nothing is registered, and the error says what to do."""
    other = Counter("asyncstep_recoveries", "Somebody else's.", registry=registry)
    before = set(values(registry))
    with pytest.raises(InvalidArgumentError, match="prefix 'asyncstep'; choose another"):
        PrometheusHook(registry=registry)
    assert set(values(registry)) == before
    registry.unregister(other)
    PrometheusHook(registry=registry)
    assert "asyncstep_steps_total" in values(registry)


@pytest.mark.parametrize("prefix", ["", "9lives", "a-b", "a b", None])
def test_a_prefix_is_the_beginning_of_a_name(prefix: Any, registry: CollectorRegistry) -> None:
    """What Prometheus would not take as a name is a ValueError at construction."""
    with pytest.raises(InvalidArgumentError, match="prefix"):
        PrometheusHook(registry=registry, prefix=prefix)


def test_a_registry_is_a_registry() -> None:
    """Anything else is a TypeError at construction."""
    with pytest.raises(InvalidTypeError, match="CollectorRegistry"):
        PrometheusHook(registry="x")  # type: ignore[arg-type]


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ImportError at construction says what to install."""
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(ImportError, match=r"pip install 'asyncstep\[prometheus\]'"):
        PrometheusHook()
