"""CheckpointSaverHook: checkpoints at intervals and at the end, written beside the loop."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from asyncstep._monitored.hook import SessionRunContext, SessionRunHook, SessionRunValues
from asyncstep._runtime.executor import raise_together
from asyncstep._runtime.snapshot import global_step
from asyncstep._runtime.trace import CHECKPOINT, Span
from asyncstep.checkpoint import Saver
from asyncstep.checkpoint.directory import check_path
from asyncstep.errors import FailedPreconditionError, InvalidTypeError, kind_of
from asyncstep.hooks.shared import shared
from asyncstep.hooks.timer import SecondOrStepTimer

if TYPE_CHECKING:
    import os
    from collections.abc import Awaitable, Iterable

    from asyncstep._monitored.coordinator import Coordinator
    from asyncstep._runtime.session import Session
    from asyncstep.checkpoint.saver import Save, SaverDirectory


class CheckpointSaverListener:
    """Is told of checkpoints (TensorFlow: ``tf.train.CheckpointSaverListener``); every method may be overridden."""

    async def begin(self) -> None:
        """Before the session is made."""

    async def before_save(self, session: Session, step: int) -> None:
        """Before the snapshot is taken; `session` is the raw session."""

    async def after_save(self, session: Session, step: int) -> bool | None:
        """The checkpoint of that step is durable; True asks the session to stop."""

    async def end(self, session: Session, step: int) -> None:
        """The session ends; the last checkpoint is written."""


SaveObserver = Callable[[int, float], None]
"""Told of a checkpoint that is durable: its global step, and the seconds that writing it took."""


class Checkpoints:
    """The checkpoints of one session, for its other hooks; see `shared`.

    Attributes:
        saved: whether a `CheckpointSaverHook` saves any.
        newest_step: the global step of the newest one, be it of an earlier session; None if there is none.
        listeners: are told of each save, after the saver hook's own; `begin` is over when they come.
    """

    def __init__(self) -> None:
        self.saved: bool = False
        self.newest_step: int | None = None
        self.listeners: list[CheckpointSaverListener] = []
        self._observers: list[SaveObserver] = []

    def listen(self, listener: CheckpointSaverListener) -> None:
        """Tell a listener of every save from now on."""
        if listener not in self.listeners:
            self.listeners.append(listener)

    def observe(self, observer: SaveObserver) -> None:
        """Tell an observer of every checkpoint from now on."""
        if observer not in self._observers:
            self._observers.append(observer)

    def tell(self, step: int, seconds: float) -> None:
        """There is one more, durable."""
        self.newest_step = step
        for observer in self._observers:
            observer(step, seconds)


class CheckpointSaverHook(SessionRunHook):
    """Saves checkpoints (TensorFlow: ``tf.train.CheckpointSaverHook``).

    A snapshot is taken between two commits, after the first step and then at intervals, and written in a
    thread while steps go on; at most one is being written (contract K1, K5). When the session ends, in
    whatever way, the last state is saved. A save that fails is an error of the session.

    Args:
        checkpoint_dir: the directory; made if need be. It is locked while the session is open (K9).
        save_secs: seconds between checkpoints.
        save_steps: steps between checkpoints. If both are given, either triggers.
        saver: writes them, and decides which are kept.
        listeners: are told of each save, in this order.
        save_on_error: whether the last state is saved when an error ends the session, too.

    Raises:
        InvalidArgumentError: neither interval is given, or one is not positive.
        FailedPreconditionError: at the opening: another writer has the directory, or it has checkpoints of
            later steps than the session's.
    """

    def __init__(
        self,
        checkpoint_dir: str | os.PathLike[str],
        *,
        save_secs: float | None = None,
        save_steps: int | None = None,
        saver: Saver | None = None,
        listeners: Iterable[CheckpointSaverListener] = (),
        save_on_error: bool = True,
    ) -> None:
        self._timer = SecondOrStepTimer(save_secs, save_steps)
        if saver is not None and not isinstance(saver, Saver):
            raise InvalidTypeError(f"saver must be a Saver, not {kind_of(saver)}")
        self._saver = Saver() if saver is None else saver
        check_path(checkpoint_dir)
        self._path = checkpoint_dir
        self._listeners = tuple(listeners)
        for listener in self._listeners:
            if not isinstance(listener, CheckpointSaverListener):
                raise InvalidTypeError(f"listeners must be CheckpointSaverListeners, not {kind_of(listener)}")
        self._save_on_error = save_on_error
        self._forget()

    def _forget(self) -> None:
        self._coord: Coordinator | None = None
        self._directory: SaverDirectory | None = None
        self._save: Save | None = None
        # The changes that the newest checkpoint holds, if it is one of this session.
        self._saved_changes: int | None = None
        self._checkpoints = Checkpoints()
        self._ready = False  # whether the session may save into the directory
        self._busy = False  # whether a step is beginning or concluding a save; the others go on

    @property
    def _told(self) -> tuple[CheckpointSaverListener, ...]:
        return (*self._listeners, *self._checkpoints.listeners)

    async def begin(self) -> None:
        self._forget()  # what is of an earlier session
        for listener in self._listeners:
            await listener.begin()

    async def after_create_session(self, session: Session, coord: Coordinator) -> None:
        self._timer.reset()
        self._coord = coord
        if self._directory is None:
            self._directory = await self._saver.open(self._path, coord.call_when_closed)
            coord.call_before_recovery(self._settled)
        step, directory = global_step(session.store), self._directory
        if directory.newest_step is not None and directory.newest_step > step:
            await directory.check_every_byte()
        if directory.newest_step is not None and directory.newest_step > step:
            raise FailedPreconditionError(
                f"{directory.path} has a checkpoint of step {directory.newest_step}, but the session begins at"
                f" step {step}; restore it (ChiefSessionCreator(checkpoint_dir=...)), or save into another"
                " directory"
            )
        self._checkpoints = shared(coord, Checkpoints)
        self._checkpoints.saved = True
        if directory.newest_step is not None:
            self._checkpoints.newest_step = directory.newest_step
        restored = session.store.restored_step
        self._saved_changes = session.store.changes if directory.newest_step == restored == step else None
        self._ready = True

    async def _settled(self) -> None:  # noqa: ASYNC910 - it waits if there is something to wait for
        """A recovery goes on from the newest checkpoint, so it waits for the one that is being written (V2)."""
        if self._save is not None:
            await self._save.settled()

    async def after_run(  # noqa: ASYNC910 - no step waits for a save (contract K1)
        self, run_context: SessionRunContext, run_values: SessionRunValues
    ) -> None:
        if self._busy:
            return  # noqa: ASYNC910 - no step waits for a save (contract K1)
        self._busy = True
        session, step = run_context.session, run_values.global_step
        try:
            if self._save is not None and self._save.done and await self._conclude(session):
                run_context.request_stop("a listener of the checkpoints asked for it")
            if self._save is None and step is not None and self._timer.should_trigger_for_step(step):
                await self._begin_save(session, step)
        finally:
            self._busy = False

    async def _begin_save(self, session: Session, step: int) -> None:  # noqa: ASYNC910 - no step waits for a save
        """Take a snapshot, and have it written in a thread; nothing is done for a step that is saved (K5)."""
        directory, coord = self._directory, self._coord
        assert directory is not None and coord is not None
        ours = global_step(session.store) == directory.newest_step and self._saved_changes is not None
        if ours and self._saved_changes == session.store.changes:
            self._timer.update_last_triggered_step(step)
            return  # noqa: ASYNC910 - no step waits for a save (contract K1)
        for listener in self._told:
            await listener.before_save(session, step)
        metric, failure = None, None
        try:
            metric = await self._saver.metric(session)
        except Exception as error:  # the state is saved all the same
            failure = error
        try:
            span = Span(f"checkpoint of step {step}", CHECKPOINT, "checkpoints")
            snapshot = session.snapshot()
            self._timer.update_last_triggered_step(step)
            # What a step function writes after its last run with hooks belongs to the step that is saved.
            self._save = directory.begin(snapshot, metric, replace=ours)
            self._save.when_settled(span.end)
            coord.note_activity(span)
            self._saved_changes = session.store.changes
            if failure is not None:
                raise failure
        finally:
            del failure

    async def _conclude(self, session: Session) -> bool:  # noqa: ASYNC910 - it waits if there is something to wait for
        """Wait for the save in flight, raise its error, tell the listeners; whether one asks for a stop."""
        save = self._save
        if save is None:
            return False  # noqa: ASYNC910 - it waits if there is something to wait for
        await save.settled()
        self._save = None
        try:
            save.raise_error()
        except BaseException:
            self._saved_changes = None
            raise
        self._checkpoints.tell(save.step, save.seconds)
        wishes: list[bool | None] = []

        async def tell(listener: CheckpointSaverListener) -> None:
            wishes.append(await listener.after_save(session, save.step))

        await _all("listeners failed after a save", [partial(tell, each) for each in self._told])
        return any(wish is True for wish in wishes)

    async def end(self, session: Session) -> None:
        await self._end(session, save=True)

    async def on_session_error(self, session: Session, error: BaseException) -> None:
        await self._end(session, save=self._save_on_error or not isinstance(error, Exception))

    async def _end(self, session: Session, *, save: bool) -> None:  # noqa: ASYNC910 - it waits if there is something to do
        """The last save, also when the one before it has failed; then the listeners' end, in any case."""
        if self._directory is None:
            return  # noqa: ASYNC910 - it waits if there is something to do
        step = global_step(session.store)
        parts: list[Callable[[], Awaitable[object]]] = [partial(self._conclude, session)]
        if save and self._ready and session.opened and session.intact:
            parts += [partial(self._begin_save, session, step), partial(self._conclude, session)]
        parts += [partial(listener.end, session, step) for listener in self._told]
        await _all("the last saves failed", parts)


async def _all(what: str, calls: Iterable[Callable[[], Awaitable[object]]]) -> None:  # noqa: ASYNC910 - it waits if a call does
    """Make all of these calls, one after the other; raise the error of one as it is, of several as a group."""
    errors: list[BaseException] = []
    for call in calls:
        try:
            await call()
        except Exception as error:
            errors.append(error)
    try:
        if errors:
            raise_together(what, errors)
    finally:
        errors.clear()
