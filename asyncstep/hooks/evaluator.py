"""EvaluatorHook: evaluations between the steps; and how other hooks of the session hear of their results."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping
from inspect import isawaitable
from typing import Any

import anyio

from asyncstep._monitored.coordinator import Coordinator
from asyncstep._monitored.hook import SessionRunContext, SessionRunHook, SessionRunValues
from asyncstep._runtime.session import Session
from asyncstep._runtime.snapshot import global_step
from asyncstep.errors import FailedPreconditionError, InvalidArgumentError, InvalidTypeError, kind_of
from asyncstep.hooks.checkpoint import Checkpoints, CheckpointSaverListener
from asyncstep.hooks.named import listed
from asyncstep.hooks.shared import shared
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
        at_saves: evaluate also what the session's `CheckpointSaverHook` is about to save, and, at a clean end,
            the last state. Then both intervals may be left out. The checkpoint is saved also if its evaluation
            fails; the error is raised afterwards.

    The newest result is `last_result`, and each is logged at INFO as ``eval, step 7: loss = 0.5``. Where a hook of
    the session writes summaries (`SummarySaverHook`, `StepCounterHook`), it writes what numbers, strings and
    summaries there are in a result, too, as ``eval/loss``. The step
    that triggers an evaluation waits for it, after its commit. Other workers go on, and the evaluation reads
    what they have committed meanwhile. One is made at a time, and none twice for one step, so results come in
    the order of the steps. An error of an evaluation is raised by the run that made it (contract T7). Checkpoints
    know which step was evaluated last (`state_dict`), so a loop that is killed and resumed is evaluated after the
    same steps.

    Raises:
        InvalidArgumentError: no interval, or one that is not positive; two of one name in a session.
        FailedPreconditionError: from the first run, with `at_saves`: the session has no `CheckpointSaverHook`.
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
        at_saves: bool = False,
    ) -> None:
        self._timer: SecondOrStepTimer | None = None
        if not at_saves or every_n_steps is not None or every_n_secs is not None:
            check_intervals("EvaluatorHook", every_n_steps=every_n_steps, every_n_secs=every_n_secs)
            self._timer = SecondOrStepTimer(every_n_secs, every_n_steps)
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
        self._at_saves = _AtSaves(self) if at_saves else None
        self._last_result: Any = None
        self._evaluated: int | None = None

    @property
    def last_result(self) -> Any:
        """The result of the newest evaluation, in the nesting of the fetches; None before the first."""
        return self._last_result

    async def begin(self) -> None:
        """Forget the session before."""
        self._last_result = None
        self._one_at_a_time = anyio.Lock()
        self._go_on_from(None)

    async def after_create_session(self, session: Session, coord: Coordinator) -> None:
        """Begin again where a recovery went back without a checkpoint, and let other hooks know the name."""
        if self._evaluated is not None and self._evaluated > global_step(session.store):
            self._go_on_from(None)
        self._coord = coord
        self._evaluations = evaluations_of(coord)
        self._evaluations.announce(self.name, self)
        self._checkpoints = shared(coord, Checkpoints)
        if self._at_saves is not None:
            self._checkpoints.listen(self._at_saves)

    async def after_run(self, run_context: SessionRunContext, run_values: SessionRunValues) -> None:
        """Evaluate if it is due at the step that has just been committed, and no evaluation is under way."""
        step = run_values.global_step
        assert step is not None
        if self._at_saves is not None and not self._checkpoints.saved:
            raise FailedPreconditionError(
                "EvaluatorHook(at_saves=True) evaluates when checkpoints are saved, but the session saves none;"
                " add a CheckpointSaverHook, or give an interval"
            )
        if self._timer is None or self._one_at_a_time.locked() or self._is_past(step):
            return
        if self._timer.should_trigger_for_step(step):
            async with self._one_at_a_time:
                await self._evaluate(step, run_context.session)

    async def end(self, session: Session) -> None:
        """Evaluate the last state, with `at_saves`; it is saved, or is going to be."""
        step = global_step(session.store)
        if self._at_saves is not None and self._checkpoints.saved and not self._is_past(step):
            await self._evaluate(step, session)

    async def evaluate_before_save(self, session: Session, step: int) -> None:
        """Evaluate what is about to be saved, unless that has been done at this step.

        The last save of a session must not wait: closing has its deadline, and there may be an error.
        """
        async with self._one_at_a_time:
            if not self._coord.should_stop() and not self._is_past(step):
                await self._evaluate(step, session)

    def _is_past(self, step: int) -> bool:
        """Whether this step, or a later one, has been evaluated."""
        return self._evaluated is not None and step <= self._evaluated

    def state_dict(self) -> dict[str, int | None]:
        """Which step was evaluated last."""
        return {"step": self._evaluated}

    def load_state_dict(self, state: Mapping[str, int | None]) -> None:
        """Go on from what `state_dict` gave; an interval in seconds begins anew."""
        self._go_on_from(state["step"])

    def _go_on_from(self, step: int | None) -> None:
        self._evaluated = step
        if self._timer is not None:
            self._timer.reset()
            if step is not None:
                self._timer.update_last_triggered_step(step)

    async def _evaluate(self, step: int, session: Session) -> None:
        self._evaluated = step
        if self._timer is not None:
            self._timer.update_last_triggered_step(step)
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


class _AtSaves(CheckpointSaverListener):
    """Has an evaluator evaluate what is about to be saved; its errors must not cost the checkpoint."""

    def __init__(self, hook: EvaluatorHook) -> None:
        self._hook = hook
        self._failure: Exception | None = None

    async def before_save(self, session: Session, step: int) -> None:
        try:
            await self._hook.evaluate_before_save(session, step)
        except Exception as error:
            self._failure = error  # raised by `after_save`

    async def after_save(self, session: Session, step: int) -> None:
        self._raise()

    async def end(self, session: Session, step: int) -> None:
        self._raise()  # where the save has failed as well

    def _raise(self) -> None:
        failure, self._failure = self._failure, None
        try:
            if failure is not None:
                raise failure
        finally:
            del failure


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


def evaluations_of(coord: Coordinator) -> Evaluations:
    """The evaluations of the session that has this coordinator."""
    return shared(coord, Evaluations)


def tagged(tag: str, result: Any) -> Iterator[tuple[str, Any]]:
    """The values of a result by their tags: ``eval``, or ``eval/loss`` for a key of a mapping, and so on."""
    if not isinstance(result, Mapping):
        yield tag, result
        return
    for key, value in result.items():
        yield from tagged(f"{tag}/{key}", value)
