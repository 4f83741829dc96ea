"""CheckpointSaverHook: checkpoints at intervals and at the end, written beside the loop."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio.to_thread

from asyncstep._monitored.hook import SessionRunContext, SessionRunHook, SessionRunValues
from asyncstep.checkpoint import Saver
from asyncstep.errors import FailedPreconditionError, InvalidTypeError, kind_of
from asyncstep.hooks.timer import SecondOrStepTimer

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable

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
        self._saver = Saver() if saver is None else saver
        self._path = checkpoint_dir
        self._listeners = tuple(listeners)
        for listener in self._listeners:
            if not isinstance(listener, CheckpointSaverListener):
                raise InvalidTypeError(f"listeners must be CheckpointSaverListeners, not {kind_of(listener)}")
        self._save_on_error = save_on_error
        self._directory: SaverDirectory | None = None
        self._save: Save | None = None
        self._starting = False

    async def begin(self) -> None:
        for listener in self._listeners:
            await listener.begin()

    async def after_create_session(self, session: Session, coord: Coordinator) -> None:
        self._timer.reset()
        if self._directory is None:
            self._directory = await anyio.to_thread.run_sync(self._saver.open, self._path)
            coord.call_when_closed(self._directory.release)
        self._check_step(session, self._directory)

    def _check_step(self, session: Session, directory: SaverDirectory) -> None:
        step, newest = session.snapshot().step, directory.newest_step
        if newest is not None and newest > step:
            raise FailedPreconditionError(
                f"{directory.path} has a checkpoint of step {newest}, but the session begins at step {step};"
                " restore it (ChiefSessionCreator(checkpoint_dir=...)), or save into another directory"
            )

    async def after_run(self, run_context: SessionRunContext, run_values: SessionRunValues) -> None:
        if self._save is not None and self._save.done and await self._conclude(run_context.session):
            run_context.request_stop("a listener of the checkpoints asked for it")
        step = run_values.global_step
        if (
            self._save is None
            and not self._starting
            and step is not None
            and self._timer.should_trigger_for_step(step)
        ):
            self._starting = True
            try:
                await self._begin_save(run_context.session, step)
            finally:
                self._starting = False

    async def _begin_save(self, session: Session, step: int) -> None:
        """Take a snapshot, and have it written in a thread."""
        assert self._directory is not None
        for listener in self._listeners:
            await listener.before_save(session, step)
        metric = await self._saver.metric(session)
        snapshot = session.snapshot()
        self._timer.update_last_triggered_step(step)
        if snapshot.step != self._directory.newest_step:
            self._save = self._directory.begin(snapshot, metric)

    async def _conclude(self, session: Session) -> bool:
        """Wait for the save in flight, raise its error, tell the listeners; whether one asks for a stop."""
        save, self._save = self._save, None
        if save is None:
            return False
        await save.wait()
        wishes = [await listener.after_save(session, save.step) for listener in self._listeners]
        return any(wish is True for wish in wishes)

    async def end(self, session: Session) -> None:
        await self._end(session, save=True)

    async def on_session_error(self, session: Session, error: BaseException) -> None:
        await self._end(session, save=self._save_on_error or not isinstance(error, Exception))

    async def _end(self, session: Session, *, save: bool) -> None:
        """The last save; also when the one before it has failed."""
        if self._directory is None:
            return
        try:
            await self._conclude(session)
        finally:
            if save and session.opened and session.intact:
                await self._begin_save(session, session.snapshot().step)
                await self._conclude(session)
        for listener in self._listeners:
            await listener.end(session, self._directory.newest_step or 0)
