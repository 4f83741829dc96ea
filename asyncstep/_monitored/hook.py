"""SessionRunHook, and what a hook is given."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, NoReturn, final

from asyncstep._monitored.stop import StopKind
from asyncstep._runtime.options import RunMetadata, RunOptions
from asyncstep._runtime.state import Stateful
from asyncstep.errors import InvalidArgumentError, InvalidTypeError, kind_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from asyncstep._monitored.coordinator import Coordinator
    from asyncstep._monitored.life import Life
    from asyncstep._runtime.session import Session

    Overridden = tuple[tuple[int, Callable[..., Awaitable[Any]]], ...]


@final
class All:
    """The type of `ALL`."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "ALL"

    def __iter__(self) -> Any:
        raise TypeError("ALL stands for all hooks of the session; it is no list")


ALL: Final[Any] = All()
"""All hooks of the session: the default of ``run(..., hooks=ALL)``."""


@dataclass(frozen=True, slots=True)
class SessionRunArgs:
    """What a hook adds to a run (TensorFlow: ``tf.train.SessionRunArgs``).

    Attributes:
        fetches: evaluated together with the caller's; the hook alone sees the results.
        feed_dict: fed in addition to the caller's.
        options: merged with the caller's.
    """

    fetches: Any = None
    feed_dict: Mapping[Any, Any] | None = None
    options: RunOptions | None = None


class SessionRunValues:
    """What a run gave to a hook (TensorFlow: ``tf.train.SessionRunValues``).

    Attributes:
        results: the values of the hook's own fetches, in the nesting that it asked for.
        options: the run's merged options, or None.
        global_step: that of this run's commit; None before the commit.
    """

    __slots__ = ("_attempt", "_run_metadata", "global_step", "options", "results")

    def __init__(
        self,
        results: Any,
        options: RunOptions | None,
        run_metadata: RunMetadata | None,
        global_step: int | None,
        attempt: int = 1,
    ) -> None:
        self.results: Any = results
        self.options: RunOptions | None = options
        self.global_step: int | None = global_step
        self._run_metadata = run_metadata  # None: made when it is asked for
        self._attempt = attempt

    @property
    def run_metadata(self) -> RunMetadata:
        """The run's metadata."""
        if self._run_metadata is None:
            self._run_metadata = RunMetadata()
            self._run_metadata.global_step = self.global_step
            self._run_metadata.attempt = self._attempt
        return self._run_metadata


class SessionRunContext:
    """One attempt of one run, as hooks see it (TensorFlow: ``tf.train.SessionRunContext``)."""

    # What the run was asked for, where its attempt stands, and what it came to, for the session.
    __slots__ = (
        "_committed",
        "_feeds",
        "_fetches",
        "_final_errors",
        "_life",
        "_metadata",
        "_options",
        "_place",
        "_result",
        "_session",
        "_table",
        "_told_all",
        "attempt",
        "worker",
    )
    _session: Session

    def __init__(
        self,
        life: Life,
        table: HookTable,
        fetches: Any,
        feeds: Any,
        options: RunOptions | None,
        metadata: RunMetadata | None,
        worker: int,
    ) -> None:
        self._life = life
        self._table = table
        self._fetches = fetches
        self._feeds = feeds
        self._options = options
        self._metadata = metadata
        self.worker: int = worker
        self.attempt: int = 1
        self._place = -1  # of the hook that is being called, in the table
        self._told_all = False  # whether the before_run of every hook was called
        self._committed = False  # whether the step is done: an error that comes then is one of `after_run`
        self._result: Any = None  # what the caller gets, once committed
        self._final_errors: tuple[BaseException, ...] = ()  # those of its transaction, if it failed

    @property
    def original_args(self) -> SessionRunArgs:
        """What the caller asked for; its feed dict is read-only."""
        feeds = None if self._feeds is None else MappingProxyType(dict(self._feeds))
        return SessionRunArgs(self._fetches, feeds, self._options)

    @property
    def session(self) -> Session:
        """The raw session: its runs join the step until the commit (contract T8)."""
        return self._session

    @property
    def stop_requested(self) -> bool:
        """Whether the session has been asked to stop."""
        return self._life.stop.reason is not None

    def request_stop(self, reason: str | None = None) -> None:
        """Ask the session to stop; this run goes on and commits (contract S4)."""
        origin = type(self._table.hooks[self._place]).__name__ if self._place >= 0 else "a hook"
        self._life.request_stop(StopKind.HOOK, reason, origin)

    def raise_stop(self) -> NoReturn:
        """End this run because the session stops; before the commit that rolls it back. For stock hooks.

        Raises:
            StopRequested: the session has been asked to stop.
            SessionClosedError: it has not, but it is closing.
        """
        if not self.stop_requested:
            raise self._life.not_open()
        self._life.raise_stop()

    # What follows is for the session.

    def again(self) -> SessionRunContext:
        """The next attempt of the same run."""
        context = SessionRunContext(
            self._life, self._table, self._fetches, self._feeds, self._options, self._metadata, self.worker
        )
        context.attempt = self.attempt + 1
        return context


class SessionRunHook:
    """Watches a session: every method may be overridden, and does nothing by default.

    TensorFlow: ``tf.train.SessionRunHook``. All methods are coroutine functions. With several workers
    the methods of one hook are called for steps that overlap, so what belongs to one run has its place in a
    context variable or in the run's results, not on the hook.
    """

    async def begin(self) -> None:  # noqa: ASYNC910 - all of these do nothing
        """Before the session is made; the graph still accepts nodes, and is the default graph."""

    async def after_create_session(self, session: Session, coord: Coordinator) -> None:  # noqa: ASYNC910
        """A raw session was made: at the opening, and after each recovery."""

    async def before_run(self, run_context: SessionRunContext) -> SessionRunArgs | None:  # noqa: ASYNC910
        """Before each run; may add fetches, feeds and options to it."""

    async def before_commit(  # noqa: ASYNC910
        self, run_context: SessionRunContext, run_values: SessionRunValues
    ) -> None:
        """After the evaluation; raise to refuse the step, which is then rolled back."""

    async def after_run(  # noqa: ASYNC910
        self, run_context: SessionRunContext, run_values: SessionRunValues
    ) -> None:
        """The step is committed; an error raised here does not undo it (contract T7)."""

    async def on_run_error(self, run_context: SessionRunContext, error: BaseException) -> None:  # noqa: ASYNC910
        """In place of `after_run`: the run failed or was cancelled, and is rolled back."""

    async def end(self, session: Session) -> None:  # noqa: ASYNC910
        """The session ends cleanly; the raw session is still open."""

    async def on_session_error(self, session: Session, error: BaseException) -> None:  # noqa: ASYNC910
        """In place of `end`: an error, a cancellation or an interrupt ends the session."""


class HookTable:
    """Which hooks override which point of a run, found once (performance.md, P3).

    Attributes:
        hooks: the hooks, in list order.
        before_run, before_commit, after_run, on_run_error: (place in `hooks`, bound method).
    """

    __slots__ = ("after_run", "before_commit", "before_run", "hooks", "on_run_error")

    def __init__(self, hooks: Sequence[SessionRunHook]) -> None:
        self.hooks: tuple[SessionRunHook, ...] = tuple(hooks)
        self.before_run: Overridden = _overridden(hooks, "before_run")
        self.before_commit: Overridden = _overridden(hooks, "before_commit")
        self.after_run: Overridden = _overridden(hooks, "after_run")
        self.on_run_error: Overridden = _overridden(hooks, "on_run_error")


def _overridden(hooks: Sequence[SessionRunHook], point: str) -> Overridden:
    default = getattr(SessionRunHook, point)
    return tuple(
        (place, getattr(hook, point))
        for place, hook in enumerate(hooks)
        if getattr(getattr(hook, point), "__func__", None) is not default
    )


def stateful(hooks: Iterable[SessionRunHook]) -> dict[str, Stateful]:
    """The hooks whose state is saved with the variables, by the names of their classes, numbered if need be."""
    found: dict[str, Stateful] = {}
    for hook in hooks:
        if isinstance(hook, Stateful):
            kind = type(hook).__name__
            number = sum(
                isinstance(other, SessionRunHook) and type(other).__name__ == kind for other in found.values()
            )
            found[f"{kind}_{number}" if number else kind] = hook
    return found


def checked_hooks(hooks: Iterable[Any]) -> tuple[SessionRunHook, ...]:
    """The hooks of a new session; InvalidTypeError and InvalidArgumentError as contract L2 says."""
    if not isinstance(hooks, Iterable):
        raise InvalidTypeError(
            f"hooks must be a list of SessionRunHooks, not {kind_of(hooks)}; put it in a list"
        )
    found: list[SessionRunHook] = []
    for hook in hooks:
        if not isinstance(hook, SessionRunHook):
            hint = "; make an instance of it" if isinstance(hook, type) else ""
            raise InvalidTypeError(f"hooks must be SessionRunHooks, not {kind_of(hook)} ({hook!r:.80}){hint}")
        if any(hook is other for other in found):
            raise InvalidArgumentError(f"the hook {hook!r} is listed twice")
        _check_methods(hook)
        found.append(hook)
    return tuple(found)


def _check_methods(hook: SessionRunHook) -> None:
    """Refuse a method that forgot its `async`: it would fail when the step is already under way."""
    for point in vars(SessionRunHook):
        function = getattr(getattr(hook, point), "__func__", None)
        if point.startswith("_") or function is None or hasattr(function, "__wrapped__"):
            continue
        if not inspect.iscoroutinefunction(function):
            raise InvalidTypeError(
                f"{type(hook).__name__}.{point} is not `async def`; all methods of a hook are coroutine functions"
            )
