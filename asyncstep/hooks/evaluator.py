"""EvaluatorHook: evaluations between the steps; and how other hooks of the session hear of their results."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping
from inspect import isawaitable
from typing import Any

from asyncstep._monitored.coordinator import Coordinator
from asyncstep._monitored.hook import SessionRunContext, SessionRunHook, SessionRunValues
from asyncstep._runtime.session import Session
from asyncstep.errors import InvalidArgumentError, InvalidTypeError, kind_of
from asyncstep.hooks.named import listed
from asyncstep.hooks.timer import SecondOrStepTimer, check_intervals

__all__ = ["Evaluations", "EvaluatorHook", "evaluations_of"]

logger: logging.Logger = logging.getLogger("asyncstep")


class EvaluatorHook(SessionRunHook):
    """Evaluate fetches every so often, between the steps: without hooks, and without being a step.

    Args:
        fetches: what to evaluate, in any nesting. To go through a whole data set, give an op or a coroutine
            function that does; a source that has ended makes the evaluation fail with OutOfRangeError.
        every_n_steps: evaluate after the first step and then every so many global steps.
        every_n_secs: evaluate after the first step and then when so many seconds have passed. With both,
            whichever is over first.
        feed_dict: what to feed, by node or name.
        name: under which the results are known: with results ``{"loss": 0.5}`` and the name ``eval`` there is
            an ``eval/loss`` for `EarlyStoppingHook`.
        on_result: awaited with the global step and the result, which has the nesting of `fetches`.

    The newest result is `last_result`, and each is logged at INFO as ``eval, step 7: loss = 0.5``. Where a hook of
    the session writes summaries (`SummarySaverHook`, `StepCounterHook`), it writes what numbers, strings and
    summaries there are in a result, too, as ``eval/loss``. The step
    that triggers an evaluation waits for it, after its commit. Other workers go on, and the evaluation reads
    what they have committed meanwhile. One is made at a time, so results come in the order of the steps. An
    error of an evaluation is raised by the run that made it (contract T7).

    Raises:
        InvalidArgumentError: no interval, or one that is not positive; two of one name in a session.
        InvalidTypeError: a name that is no string, or an `on_result` that is not async.

    TensorFlow: ``tf.estimator.experimental.InMemoryEvaluatorHook``.
    """

    def __init__(
        self,
        fetches: Any,
        *,
        every_n_steps: int | None = None,
        every_n_secs: float | None = None,
        feed_dict: Mapping[Any, Any] | None = None,
        name: str = "eval",
        on_result: Callable[[int, Any], Awaitable[object]] | None = None,
    ) -> None:
        check_intervals("EvaluatorHook", every_n_steps=every_n_steps, every_n_secs=every_n_secs)
        if not isinstance(name, str):
            raise InvalidTypeError(f"EvaluatorHook: name must be a string, got {kind_of(name)}")
        if on_result is not None and not callable(on_result):
            raise InvalidTypeError(
                f"EvaluatorHook: on_result must be async (step, result), got {kind_of(on_result)}"
            )
        self.name = name
        self._fetches = fetches
        self._feed_dict = feed_dict
        self._on_result = on_result
        self._timer = SecondOrStepTimer(every_n_secs, every_n_steps)
        self._last_result: Any = None
        self._evaluating = False

    @property
    def last_result(self) -> Any:
        """The result of the newest evaluation, in the nesting of the fetches; None before the first."""
        return self._last_result

    async def begin(self) -> None:
        """Forget the results of a session before."""
        self._last_result = None

    async def after_create_session(self, session: Session, coord: Coordinator) -> None:
        """Begin with the first step, also after a recovery, and let other hooks know the name."""
        self._timer.reset()
        self._evaluations = evaluations_of(coord)
        self._evaluations.announce(self.name, self)

    async def after_run(self, run_context: SessionRunContext, run_values: SessionRunValues) -> None:
        """Evaluate if it is due at the step that has just been committed, and no evaluation is under way."""
        step = run_values.global_step
        assert step is not None
        last = self._timer.last_triggered_step()
        if (
            self._evaluating
            or (last is not None and step <= last)
            or not self._timer.should_trigger_for_step(step)
        ):
            return
        self._timer.update_last_triggered_step(step)
        self._evaluating = True
        try:
            await self._evaluate(step, run_context.session)
        finally:
            self._evaluating = False

    async def _evaluate(self, step: int, session: Session) -> None:
        result = await session.run(self._fetches, self._feed_dict)
        self._last_result = result
        shown = listed(result) if isinstance(result, Mapping) else result
        logger.info("%s, step %d: %s", self.name, step, shown)
        self._evaluations.tell(self.name, step, dict(tagged(self.name, result)))
        if self._on_result is not None:
            told = self._on_result(step, result)
            if not isawaitable(told):
                raise InvalidTypeError(
                    "EvaluatorHook: on_result must be async, but what it gives cannot be awaited"
                )
            await told


Observer = Callable[[str, int, Mapping[str, Any]], None]
"""Told of a result: the evaluation's name, the global step, and the values by tag."""


class Evaluations:
    """The evaluations of one session: who makes them, and who wants to hear of their results."""

    def __init__(self) -> None:
        self._made_by: dict[str, EvaluatorHook] = {}
        self._observers: list[Observer] = []

    def announce(self, name: str, hook: EvaluatorHook) -> None:
        """There are evaluations of that name; InvalidArgumentError if another hook has it."""
        if self._made_by.setdefault(name, hook) is not hook:
            raise InvalidArgumentError(
                f"two EvaluatorHooks have the name {name!r}; give one of them another name="
            )

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the evaluations."""
        return tuple(self._made_by)

    def observe(self, observer: Observer) -> None:
        """Tell an observer of every result from now on."""
        if observer not in self._observers:
            self._observers.append(observer)

    def tell(self, name: str, step: int, values: Mapping[str, Any]) -> None:
        """There is a result."""
        for observer in self._observers:
            observer(name, step, values)


_of_session: dict[Coordinator, Evaluations] = {}


def evaluations_of(coord: Coordinator) -> Evaluations:
    """The evaluations of the session that has this coordinator; they are forgotten when it is closed."""
    if coord not in _of_session:
        _of_session[coord] = Evaluations()
        coord.call_when_closed(lambda: _of_session.__delitem__(coord))
    return _of_session[coord]


def tagged(tag: str, result: Any) -> Iterator[tuple[str, Any]]:
    """The values of a result by their tags: ``eval``, or ``eval/loss`` for a key of a mapping, and so on."""
    if not isinstance(result, Mapping):
        yield tag, result
        return
    for key, value in result.items():
        yield from tagged(f"{tag}/{key}", value)
