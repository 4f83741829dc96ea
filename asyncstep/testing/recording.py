"""RecordingHook: writes down what a session tells its hooks, and does what a test wants at any point."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from asyncstep._monitored.hook import SessionRunArgs, SessionRunContext, SessionRunHook, SessionRunValues
from asyncstep.errors import FailedPreconditionError, InvalidArgumentError, InvalidTypeError, kind_of

if TYPE_CHECKING:
    from asyncstep._monitored.coordinator import Coordinator
    from asyncstep._runtime.session import Session

Act = BaseException | SessionRunArgs | Callable[..., Awaitable[Any]]

_POINTS = tuple(point for point in vars(SessionRunHook) if not point.startswith("_"))


@dataclass(frozen=True, slots=True)
class HookCall:
    """One call of one method of a `RecordingHook`.

    Attributes:
        hook: the hook's name.
        point: the method's name, as "before_run".
        session: the raw session; None in `begin`.
        attempt: 1, or more after the step was retried; None outside of a run.
        worker: the index of the worker in `session.loop`; None outside of a run.
        global_step: that of the commit, in `after_run`; else None.
        results: the values of what the hook asked for, in `before_commit` and `after_run`; else None.
        error: what `on_run_error` or `on_session_error` was told of; else None.
    """

    hook: str
    point: str
    session: Session | None = None
    attempt: int | None = None
    worker: int | None = None
    global_step: int | None = None
    results: Any = None
    error: BaseException | None = None

    def __str__(self) -> str:
        return f"{self.hook}.{self.point}" if self.hook else self.point


class RecordingHook(SessionRunHook):
    """Writes down each of its calls, and then does the act that it was given for that point.

    Args:
        name: tells several hooks apart: the journal has ``name.point``, or only the point if it is empty.
        journal: a list that each call is added to, as a string; hooks and other parts of a test may share one.
        acts: by the names of points, what is done there after the call was written down: an exception, which
            is raised; an async function, which is given the point's arguments; or, for `before_run`,
            SessionRunArgs, which are returned, as is what an async function returns.

    Attributes:
        name: the name.
        journal: the journal.
        calls: the calls of this hook, in order.
        acts: the acts by the names of their points; a test may change them at any time.

    Raises:
        InvalidArgumentError: there is no such point.
        InvalidTypeError: an act cannot be one.
    """

    def __init__(self, name: str = "", journal: list[str] | None = None, **acts: Act) -> None:
        for point, act in acts.items():
            _check_act(point, act)
        self.name: str = name
        self.journal: list[str] = [] if journal is None else journal
        self.calls: list[HookCall] = []
        self.acts: dict[str, Act] = acts
        self._session: Session | None = None
        self._coord: Coordinator | None = None

    def __repr__(self) -> str:
        return f"RecordingHook({self.name!r})"

    @property
    def points(self) -> list[str]:
        """The points at which this hook was called, in order."""
        return [call.point for call in self.calls]

    def calls_of(self, point: str) -> list[HookCall]:
        """The calls of one point, in order; InvalidArgumentError if there is no such point."""
        _check_point(point)
        return [call for call in self.calls if call.point == point]

    @property
    def session(self) -> Session:
        """The raw session of the newest incarnation; FailedPreconditionError if there is none yet."""
        if self._session is None:
            raise self._not_told()
        return self._session

    @property
    def coord(self) -> Coordinator:
        """The session's coordinator; FailedPreconditionError if there is none yet."""
        if self._coord is None:
            raise self._not_told()
        return self._coord

    def _not_told(self) -> FailedPreconditionError:
        return FailedPreconditionError(
            f"{self!r} was told of no session yet; it is, by after_create_session, when one is opened with it"
        )

    def note(self, call: HookCall) -> None:
        """Write a call down; a subclass may write something else."""
        self.journal.append(str(call))
        self.calls.append(call)

    async def _do(self, call: HookCall, *args: Any) -> Any:
        """Write a call down, and do the act of its point. Checkpoint: if the act is one."""
        self.note(call)
        act = self.acts.get(call.point)
        if isinstance(act, BaseException):
            try:
                raise act
            finally:
                del act  # else the error would hold this frame, and that the error
        return await act(*args) if callable(act) else act

    async def begin(self) -> None:
        await self._do(HookCall(self.name, "begin"))

    async def after_create_session(self, session: Session, coord: Coordinator) -> None:
        self._session, self._coord = session, coord
        await self._do(HookCall(self.name, "after_create_session", session), session, coord)

    async def before_run(self, run_context: SessionRunContext) -> SessionRunArgs | None:
        args: SessionRunArgs | None = await self._do(self._run_call("before_run", run_context), run_context)
        return args

    async def before_commit(self, run_context: SessionRunContext, run_values: SessionRunValues) -> None:
        call = self._run_call("before_commit", run_context, results=run_values.results)
        await self._do(call, run_context, run_values)

    async def after_run(self, run_context: SessionRunContext, run_values: SessionRunValues) -> None:
        call = self._run_call(
            "after_run", run_context, results=run_values.results, global_step=run_values.global_step
        )
        await self._do(call, run_context, run_values)

    async def on_run_error(self, run_context: SessionRunContext, error: BaseException) -> None:
        await self._do(self._run_call("on_run_error", run_context, error=error), run_context, error)

    async def end(self, session: Session) -> None:
        await self._do(HookCall(self.name, "end", session), session)

    async def on_session_error(self, session: Session, error: BaseException) -> None:
        await self._do(HookCall(self.name, "on_session_error", session, error=error), session, error)

    def _run_call(self, point: str, run_context: SessionRunContext, **told: Any) -> HookCall:
        return HookCall(
            self.name, point, run_context.session, run_context.attempt, run_context.worker, **told
        )


def _check_point(point: str) -> None:
    if point not in _POINTS:
        raise InvalidArgumentError(f"hooks have no point {point!r}; there are {', '.join(_POINTS)}")


def _check_act(point: str, act: object) -> None:
    _check_point(point)
    if isinstance(act, BaseException) or (isinstance(act, SessionRunArgs) and point == "before_run"):
        return
    if isinstance(act, type) or not callable(act):
        raise InvalidTypeError(
            f"the act at {point} must be an exception or an async function, not {kind_of(act)} ({act!r:.80})"
        )
