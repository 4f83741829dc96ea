"""EarlyStoppingHook: the end of a loop that does not get better any more."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from numbers import Real
from typing import Any

from asyncstep._graph.graph import close_matches
from asyncstep._monitored.coordinator import Coordinator
from asyncstep._monitored.hook import SessionRunArgs, SessionRunContext, SessionRunHook, SessionRunValues
from asyncstep._monitored.stop import StopKind, StopReason
from asyncstep._runtime.session import Session
from asyncstep.errors import InvalidArgumentError, InvalidTypeError, NotFoundError, kind_of
from asyncstep.hooks.evaluator import Evaluations, evaluations_of
from asyncstep.hooks.named import name_of_fetch
from asyncstep.hooks.timer import check_steps

__all__ = ["EarlyStoppingHook", "Trend"]


class EarlyStoppingHook(SessionRunHook):
    """Stop the session when a metric has not got better for a number of evaluations.

    Args:
        metric: what to watch. The tag of an `EvaluatorHook`'s result, such as ``eval/loss``: each of its
            evaluations counts. Or a fetch, such as a node or its name: it joins every run, and each run that
            commits counts.
        patience: how many evaluations in a row may be no better than the best one; with the last of them the
            session stops.
        min_delta: by how much a value must be better than the best one to count as better.
        mode: ``min``: less is better; ``max``: more is.
        smoothing: at least 0, less than 1: compare the exponential moving average, in which the values before
            have this weight. 0: compare the values themselves.

    NaN is never better. The step at which the session stops is committed. What the hook knows is in
    checkpoints (`state_dict`), so a loop that is killed and resumed goes on waiting where it was.

    Raises:
        InvalidArgumentError: a number that is out of its range, or another mode.
        InvalidTypeError: one that is no number; from a run, if the metric is none.
        NotFoundError: from a run, if there is neither a node nor an evaluation of that name, or if the
            evaluation does not give the metric; from the end, if it was never made.

    TensorFlow: ``tf.estimator.experimental.stop_if_no_decrease_hook``, which waits for a metric for ever.
    """

    def __init__(
        self,
        metric: Any,
        *,
        patience: int,
        min_delta: float = 0.0,
        mode: str = "min",
        smoothing: float = 0.0,
    ) -> None:
        if metric is None:
            raise InvalidTypeError(
                "EarlyStoppingHook: metric must be a fetch or the tag of an evaluation, got None"
            )
        check_steps("EarlyStoppingHook", "patience", patience, least=1)
        _check_between("min_delta", min_delta, math.inf)
        _check_between("smoothing", smoothing, 1)
        if mode not in ("min", "max"):
            raise InvalidArgumentError(f"EarlyStoppingHook: mode must be 'min' or 'max', got {mode!r}")
        self._metric = metric
        self._name = name_of_fetch(metric) or "the metric"
        self._patience = patience
        self._min_delta = min_delta
        self._mode = mode
        self._smoothing = smoothing
        self._trend = Trend()

    async def begin(self) -> None:
        """Forget the session before."""
        self._trend = Trend()
        self._runs = False
        self._seen = False

    async def after_create_session(self, session: Session, coord: Coordinator) -> None:
        """Find out whether the metric is a fetch or an evaluation's."""
        self._coord = coord
        self._evaluations: Evaluations | None = None
        if isinstance(self._metric, str) and self._metric not in session.graph.nodes:
            self._evaluations = evaluations_of(coord)
            self._evaluations.observe(self._evaluated)
        self._stop_out_of_patience()  # what was restored may have been saved when it stopped

    async def before_run(self, run_context: SessionRunContext) -> SessionRunArgs | None:
        """Ask for the metric, if it is a fetch."""
        if self._evaluations is None:
            return SessionRunArgs(self._metric)
        if self._evaluation(self._evaluations) is None:
            known = [*run_context.session.graph.nodes, *self._evaluations.names]
            raise NotFoundError(
                f"EarlyStoppingHook: there is no node and no evaluation of the name {self._metric!r}"
                f"{close_matches(self._metric, known)}"
            )
        return None

    async def after_run(self, run_context: SessionRunContext, run_values: SessionRunValues) -> None:
        """Take the value of a metric that is a fetch."""
        self._runs = True
        if self._evaluations is None:
            self._observe(run_values.results)

    async def end(self, session: Session) -> None:
        """Complain if the metric has never been evaluated."""
        if self._runs and not self._seen:
            raise NotFoundError(f"EarlyStoppingHook: {self._metric!r} was never evaluated in this session")

    def state_dict(self) -> dict[str, Any]:
        """What the hook knows, as plain values."""
        return asdict(self._trend)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self._trend = Trend(**state)

    def _evaluation(self, evaluations: Evaluations) -> str | None:
        """The name of the evaluation that the metric is a result of."""
        tag = self._metric
        names = [name for name in evaluations.names if tag == name or tag.startswith(f"{name}/")]
        return max(names, key=len, default=None)

    def _evaluated(self, name: str, step: int, values: Mapping[str, Any]) -> None:
        """An evaluation was made."""
        assert self._evaluations is not None
        if name != self._evaluation(self._evaluations):
            return
        if self._metric not in values:
            raise NotFoundError(
                f"EarlyStoppingHook: the evaluation {name!r} gives {', '.join(values) or 'nothing'},"
                f" but no {self._metric!r}"
            )
        self._observe(values[self._metric])

    def _observe(self, value: Any) -> None:
        """Take one more value of the metric."""
        self._seen = True
        self._trend = self._trend.after(
            self._number(value), min_delta=self._min_delta, mode=self._mode, smoothing=self._smoothing
        )
        self._stop_out_of_patience()

    def _stop_out_of_patience(self) -> None:
        if self._trend.waited >= self._patience:
            best, waited = self._trend.best, self._trend.waited
            message = f"{self._name} has not been better than {best} for {waited} evaluations"
            self._coord.set_stop(StopReason(StopKind.HOOK, message, "EarlyStoppingHook"))

    def _number(self, value: Any) -> float:
        try:
            return float(value)
        except (TypeError, ValueError):
            raise InvalidTypeError(
                f"EarlyStoppingHook: {self._name} must be a number, got {kind_of(value)}"
            ) from None


@dataclass(frozen=True, slots=True)
class Trend:
    """How a metric has gone so far.

    Attributes:
        best: its best value; None before the first.
        waited: how many evaluations there have been since then.
        smoothed: the moving average that is compared; None before the first.
    """

    best: float | None = None
    waited: int = 0
    smoothed: float | None = None

    def after(self, value: float, *, min_delta: float, mode: str, smoothing: float) -> Trend:
        """The trend with one more value. NaN is never better, and is left out of the average."""
        if math.isnan(value):
            return replace(self, waited=self.waited + 1)
        smoothed = value
        if self.smoothed is not None and math.isfinite(self.smoothed):
            smoothed = smoothing * self.smoothed + (1 - smoothing) * value
        gain = math.inf if self.best is None else self.best - smoothed
        if mode == "max" and self.best is not None:
            gain = -gain
        if gain > min_delta:
            return Trend(best=smoothed, smoothed=smoothed)
        return Trend(self.best, self.waited + 1, smoothed)


def _check_between(name: str, value: object, bound: float) -> None:
    """Refuse what is no number of at least 0 and less than `bound`."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise InvalidTypeError(f"EarlyStoppingHook: {name} must be a number, got {kind_of(value)}")
    if not 0 <= float(value) < bound:
        raise InvalidArgumentError(
            f"EarlyStoppingHook: {name} must be at least 0 and less than {bound}, got {value!r}"
        )
