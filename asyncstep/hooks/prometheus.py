"""PrometheusHook: a session's figures for Prometheus to scrape."""

from __future__ import annotations

import re
import threading
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from asyncstep._monitored.company import program_index
from asyncstep._monitored.coordinator import Coordinator
from asyncstep._monitored.hook import SessionRunContext, SessionRunHook, SessionRunValues
from asyncstep._runtime.session import Session
from asyncstep.errors import InvalidArgumentError, InvalidTypeError, kind_of
from asyncstep.hooks.extras import require
from asyncstep.hooks.measuring import SECONDS, Measuring

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

__all__ = ["PrometheusHook"]


class PrometheusHook(SessionRunHook):
    """Count steps, failures and recoveries, and time steps and checkpoints, for Prometheus.

    Args:
        registry: a `prometheus_client.CollectorRegistry`; None: the default one of the process.
        prefix: what the names of the metrics begin with.

    The metrics, with the prefix ``asyncstep``:

    - ``asyncstep_steps_total``: steps that have committed.
    - ``asyncstep_failures_total{error="ValueError"}``: attempts of steps that failed and were rolled back, by the
      type of the error. A step that is cancelled, or that the session's stop or the end of its data ends, is none.
    - ``asyncstep_recoveries_total``: raw sessions that were made in place of lost ones.
    - ``asyncstep_step_seconds``: a histogram of the time from `before_run` to `after_run` of committed steps.
    - ``asyncstep_checkpoint_seconds``: a histogram of the time that writing a checkpoint took.

    The metrics belong to the registry: all hooks with the same registry and prefix count into the same ones, in
    whatever threads and sessions they are. To tell sessions apart, give each a prefix. In a program of a launch
    each has the label ``program``, with the program's index. Publishing them is up to
    you, as by ``prometheus_client.start_http_server(8000)``. Needs ``pip install 'asyncstep[prometheus]'``.

    Raises:
        ImportError: prometheus-client is not installed.
        InvalidArgumentError: the prefix cannot begin a metric's name, or the registry has another metric of one
            of these names.
        InvalidTypeError: the registry is none.
    """

    def __init__(self, *, registry: CollectorRegistry | None = None, prefix: str = "asyncstep") -> None:
        prometheus = require("prometheus_client", "prometheus")
        if registry is None:
            registry = prometheus.REGISTRY
        if not isinstance(registry, prometheus.CollectorRegistry):
            raise InvalidTypeError(
                f"PrometheusHook: registry must be a CollectorRegistry, got {kind_of(registry)}"
            )
        if not isinstance(prefix, str) or not re.fullmatch("[a-zA-Z_:][a-zA-Z0-9_:]*", prefix):
            raise InvalidArgumentError(
                "PrometheusHook: prefix must be of letters, digits, _ and :, and not begin with a digit;"
                f" got {prefix!r}"
            )
        index = program_index()
        labels = {} if index is None else {"program": str(index)}
        self._measuring = Measuring(_Children(_collectors_of(registry, prefix, tuple(labels)), labels))

    async def begin(self) -> None:
        """Forget the session before."""
        self._measuring.session_begins()

    async def after_create_session(self, session: Session, coord: Coordinator) -> None:
        """Count a recovery, and hear of checkpoints."""
        self._measuring.session_created(coord)

    async def before_run(self, run_context: SessionRunContext) -> None:
        """Note the time."""
        self._measuring.run_begins(run_context)

    async def after_run(self, run_context: SessionRunContext, run_values: SessionRunValues) -> None:
        """Count the step."""
        self._measuring.run_ends(run_context)

    async def on_run_error(self, run_context: SessionRunContext, error: BaseException) -> None:
        """Count the failure."""
        self._measuring.run_fails(run_context, error)


class _Collectors:
    """The metrics of one prefix in one registry, with labels of these names."""

    def __init__(self, registry: CollectorRegistry, prefix: str, names: tuple[str, ...]) -> None:
        prometheus = require("prometheus_client", "prometheus")

        def made(kind: Any, name: str, text: str, *labels: str, **options: Any) -> Any:
            return kind(f"{prefix}_{name}", text, (*names, *labels), registry=None, **options)

        counter, histogram = prometheus.Counter, prometheus.Histogram
        self.steps = made(counter, "steps", "Steps that have committed.")
        self.failures = made(
            counter, "failures", "Attempts of steps that failed, by the error's type.", "error"
        )
        self.recoveries = made(counter, "recoveries", "Raw sessions made in place of lost ones.")
        self.step_seconds = made(histogram, "step_seconds", "Time of a committed step.", buckets=SECONDS)
        self.checkpoint_seconds = made(
            histogram, "checkpoint_seconds", "Time of writing a checkpoint.", buckets=SECONDS
        )
        _register(registry, list(vars(self).values()), prefix)


class _Children:
    """The metrics with certain labels: what one session counts."""

    def __init__(self, collectors: _Collectors, labels: dict[str, str]) -> None:
        def child(collector: Any) -> Any:
            return collector.labels(**labels) if labels else collector

        self._labels = labels
        self._failures = collectors.failures
        self._steps, self._recoveries = child(collectors.steps), child(collectors.recoveries)
        self._step_seconds = child(collectors.step_seconds)
        self._checkpoint_seconds = child(collectors.checkpoint_seconds)

    def step_committed(self, seconds: float) -> None:
        """One more step."""
        self._steps.inc()
        self._step_seconds.observe(seconds)

    def step_failed(self, error_type: str) -> None:
        """One more failure."""
        self._failures.labels(**self._labels, error=error_type).inc()

    def session_recovered(self) -> None:
        """One more recovery."""
        self._recoveries.inc()

    def checkpoint_saved(self, seconds: float) -> None:
        """One more checkpoint."""
        self._checkpoint_seconds.observe(seconds)


def _register(registry: CollectorRegistry, collectors: list[Any], prefix: str) -> None:
    """Register all of them, or none."""
    done: list[Any] = []
    try:
        for each in collectors:
            registry.register(each)
            done.append(each)
    except ValueError as error:
        for each in done:
            registry.unregister(each)
        raise InvalidArgumentError(
            f"PrometheusHook: the registry has other metrics of the prefix {prefix!r}; choose another ({error})"
        ) from error


# A registry takes each name once, and there may be any number of sessions in a process, in several threads.
_made: WeakKeyDictionary[CollectorRegistry, dict[tuple[str, ...], _Collectors]] = WeakKeyDictionary()
_making = threading.Lock()


def _collectors_of(registry: CollectorRegistry, prefix: str, names: tuple[str, ...]) -> _Collectors:
    """The metrics of that prefix and those labels in that registry; made when they are first asked for."""
    with _making:
        of_registry = _made.setdefault(registry, {})
        if (prefix, *names) not in of_registry:
            of_registry[prefix, *names] = _Collectors(registry, prefix, names)
        return of_registry[prefix, *names]
