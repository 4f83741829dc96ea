"""OpenTelemetryHook: a session's steps as spans, and its figures as metrics."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

import anyio

from asyncstep._monitored.company import program_index
from asyncstep._monitored.coordinator import Coordinator
from asyncstep._monitored.hook import SessionRunArgs, SessionRunContext, SessionRunHook, SessionRunValues
from asyncstep._monitored.stop import leaves
from asyncstep._runtime.options import RunOptions
from asyncstep._runtime.session import Session
from asyncstep.errors import InvalidTypeError, kind_of
from asyncstep.hooks.extras import require
from asyncstep.hooks.measuring import SECONDS, Measuring, failure_of

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import Span, TracerProvider

__all__ = ["OpenTelemetryHook"]

SCOPE: Final = "asyncstep"
TRACED: Final = SessionRunArgs(options=RunOptions(trace=True))
_STEP: Final = "asyncstep-step"  # the key of the step that a context was made for


class OpenTelemetryHook(SessionRunHook):
    """Make each step a span, and count and time the session's work, by OpenTelemetry.

    Args:
        tracer_provider: where the spans go; None: the global provider.
        meter_provider: where the metrics go; None: the global provider.
        node_spans: whether each node of a step is a span too, below that of the step. A step is then evaluated
            as with ``RunOptions(trace=True)``. Steps that are not sampled have none, nor have those that fail.

    A span ``asyncstep.step`` lasts from this hook's `before_run` to its `after_run`. It has the attributes
    ``asyncstep.worker``, ``asyncstep.attempt``, ``asyncstep.outcome`` (committed, failed, cancelled or stopped)
    and, if it committed, ``asyncstep.global_step``. An error is recorded on it, with its notes, which name the
    node; its type is in ``error.type``, and the span's status is an error. A step that is cancelled, or that the
    session's stop or the end of its data ends, is no error.

    While the step is evaluated its span is the current one, in each op, also with ``offload="thread"``: spans
    made there are children of it. Only ops with ``offload="process"`` see nothing of it.

    The metrics: the counters ``asyncstep.steps``, ``asyncstep.failures`` (of attempts, with ``error.type``) and
    ``asyncstep.recoveries``, and the histograms ``asyncstep.step.duration`` of committed steps and
    ``asyncstep.checkpoint.duration`` of writing, in seconds. In a program of a launch all metrics and spans have
    the attribute ``asyncstep.program``, its index.

    The hook uses OpenTelemetry's API only; what becomes of the data is up to the SDK that you set up. Needs
    ``pip install 'asyncstep[opentelemetry]'``.

    Raises:
        ImportError: opentelemetry-api is not installed.
        InvalidTypeError: a provider is none.
    """

    def __init__(
        self,
        *,
        tracer_provider: TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
        node_spans: bool = False,
    ) -> None:
        trace = require("opentelemetry.trace", "opentelemetry")
        metrics = require("opentelemetry.metrics", "opentelemetry")
        for name, provider, kind in (
            ("tracer_provider", tracer_provider, trace.TracerProvider),
            ("meter_provider", meter_provider, metrics.MeterProvider),
        ):
            if provider is not None and not isinstance(provider, kind):
                raise InvalidTypeError(
                    f"OpenTelemetryHook: {name} must be a {kind.__name__}, got {kind_of(provider)}"
                )
        self._trace = trace
        self._tracer = trace.get_tracer(SCOPE, tracer_provider=tracer_provider)
        self._current = CurrentSteps(trace, require("opentelemetry.context", "opentelemetry"))
        index = program_index()
        self._attributes: dict[str, int] = {} if index is None else {"asyncstep.program": index}
        meter = metrics.get_meter(SCOPE, meter_provider=meter_provider)
        self._measuring = Measuring(_Instruments(meter, self._attributes))
        self._node_spans = node_spans
        self._steps: dict[SessionRunContext, StepSpan] = {}

    async def begin(self) -> None:
        """Forget the session before."""
        self._measuring.session_begins()

    async def after_create_session(self, session: Session, coord: Coordinator) -> None:
        """Count a recovery, and hear of checkpoints."""
        self._measuring.session_created(coord)

    async def before_run(self, run_context: SessionRunContext) -> SessionRunArgs | None:
        """Begin the step's span, and make it the current one."""
        self._measuring.run_begins(run_context)
        outer = self._current.context()
        began = time.time_ns()
        span = self._tracer.start_span(
            "asyncstep.step",
            context=outer,
            start_time=began,
            attributes={
                "asyncstep.worker": run_context.worker,
                "asyncstep.attempt": run_context.attempt,
                **self._attributes,
            },
        )
        self._steps[run_context] = step = StepSpan(span, outer, began, time.monotonic())
        self._current.enter(step)
        return TRACED if self._node_spans and span.is_recording() else None

    async def after_run(self, run_context: SessionRunContext, run_values: SessionRunValues) -> None:
        """End the span of a step that has committed."""
        self._measuring.run_ends(run_context)
        step = self._steps.pop(run_context)
        if self._node_spans and step.span.is_recording():
            self._add_nodes(step, run_values)
        if run_values.global_step is not None:
            step.span.set_attribute("asyncstep.global_step", run_values.global_step)
        self._leave(step, "committed")

    async def on_run_error(self, run_context: SessionRunContext, error: BaseException) -> None:
        """End the span of a step that is rolled back."""
        self._measuring.run_fails(run_context, error)
        step = self._steps.pop(run_context, None)
        if step is None:
            return
        failure = failure_of(error)
        if failure is not None:
            step.span.set_attribute("error.type", failure)
            step.span.record_exception(error)
            step.span.set_status(self._trace.Status(self._trace.StatusCode.ERROR, str(error)))
        self._leave(step, _outcome(error, failure))

    def _leave(self, step: StepSpan, outcome: str) -> None:
        step.span.set_attribute("asyncstep.outcome", outcome)
        self._current.leave(step)
        step.span.end()

    def _add_nodes(self, step: StepSpan, run_values: SessionRunValues) -> None:
        """A span for each node that this step has evaluated."""
        within = self._trace.set_span_in_context(step.span, step.outer)
        for name, (start, end) in run_values.run_metadata.node_timings.items():
            if start >= step.began:  # else of an earlier run with the same metadata
                span = self._tracer.start_span(name, context=within, start_time=step.epoch_ns(start))
                span.end(end_time=step.epoch_ns(end))


class StepSpan:
    """The span of a step that is under way.

    Attributes:
        span: the span.
        outer: the context that the step began in.
        began_ns: when it began, in nanoseconds since 1970; `began`: by ``time.monotonic``.
        over: whether the step is.
    """

    __slots__ = ("began", "began_ns", "outer", "over", "span")

    def __init__(self, span: Span, outer: Context, began_ns: int, began: float) -> None:
        self.span: Span = span
        self.outer: Context = outer
        self.began_ns: int = began_ns
        self.began: float = began
        self.over: bool = False

    def epoch_ns(self, monotonic: float) -> int:
        """A time of ``time.monotonic`` in nanoseconds since 1970."""
        return self.began_ns + round((monotonic - self.began) * 1e9)


class CurrentSteps:
    """The current context of OpenTelemetry, in which the spans of steps come and go in any order.

    The tokens of `attach` have to be given back in reverse order, but hooks are called in one order before a
    run and after it. So two hooks that each attach a context would leave the first one's behind. Here each
    context knows the step that it was made for; whoever leaves goes back to the innermost one whose step is
    still under way. A task that a step has started, and that has outlived it, goes back likewise.
    """

    def __init__(self, trace: Any, api: Any) -> None:
        self._trace = trace
        self._api = api

    def context(self) -> Context:
        """The current context, without steps that are over."""
        context: Context = self._api.get_current()
        step = context.get(_STEP)
        while isinstance(step, StepSpan) and step.over:
            context = step.outer
            step = context.get(_STEP)
        return context

    def enter(self, step: StepSpan) -> None:
        """Make a step's span the current one of this task."""
        context = self._trace.set_span_in_context(step.span, step.outer)
        self._api.attach(self._api.set_value(_STEP, step, context))

    def leave(self, step: StepSpan) -> None:
        """The step is over."""
        step.over = True
        self._api.attach(self.context())


def _outcome(error: BaseException, failure: str | None) -> str:
    """What became of a step that was rolled back; a cancellation goes before a stop (contract C1)."""
    if failure is not None:
        return "failed"
    cancelled = (anyio.get_cancelled_exc_class(), GeneratorExit)
    return "cancelled" if any(isinstance(leaf, cancelled) for leaf in leaves(error)) else "stopped"


class _Instruments:
    """The metrics of one meter, with certain attributes."""

    def __init__(self, meter: Any, attributes: dict[str, int]) -> None:
        self._attributes = attributes
        counter, histogram = meter.create_counter, meter.create_histogram
        self._steps = counter("asyncstep.steps", "{step}", "Steps that have committed.")
        self._failures = counter("asyncstep.failures", "{failure}", "Attempts of steps that failed.")
        self._recoveries = counter(
            "asyncstep.recoveries", "{recovery}", "Raw sessions made in place of lost ones."
        )
        self._step_seconds = histogram(
            "asyncstep.step.duration",
            "s",
            "Time of a committed step.",
            explicit_bucket_boundaries_advisory=SECONDS,
        )
        self._checkpoint_seconds = histogram(
            "asyncstep.checkpoint.duration",
            "s",
            "Time of writing a checkpoint.",
            explicit_bucket_boundaries_advisory=SECONDS,
        )

    def step_committed(self, seconds: float) -> None:
        """One more step."""
        self._steps.add(1, self._attributes)
        self._step_seconds.record(seconds, self._attributes)

    def step_failed(self, error_type: str) -> None:
        """One more failure."""
        self._failures.add(1, {**self._attributes, "error.type": error_type})

    def session_recovered(self) -> None:
        """One more recovery."""
        self._recoveries.add(1, self._attributes)

    def checkpoint_saved(self, seconds: float) -> None:
        """One more checkpoint."""
        self._checkpoint_seconds.record(seconds, self._attributes)
