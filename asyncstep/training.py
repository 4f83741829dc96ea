"""MonitoredTrainingSession: the stock pieces, put together."""

from __future__ import annotations

from typing import TYPE_CHECKING

from asyncstep._monitored.creators import ChiefSessionCreator
from asyncstep._monitored.recovery import Recovery
from asyncstep._monitored.session import MonitoredSession
from asyncstep.errors import InvalidArgumentError
from asyncstep.hooks.checkpoint import CheckpointSaverHook
from asyncstep.hooks.step_counter import StepCounterHook

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable

    from anyio.abc import TaskGroup

    from asyncstep._monitored.creators import Scaffold
    from asyncstep._monitored.hook import SessionRunHook

_DEFAULT_RECOVERY = Recovery()


def MonitoredTrainingSession(
    master: str = "",
    *,
    is_chief: bool = True,
    checkpoint_dir: str | os.PathLike[str] | None = None,
    scaffold: Scaffold | None = None,
    hooks: Iterable[SessionRunHook] = (),
    chief_only_hooks: Iterable[SessionRunHook] = (),
    save_checkpoint_secs: float | None = 600,
    save_checkpoint_steps: int | None = None,
    log_step_count_steps: int | None = 100,
    stop_grace_period: float = 120.0,
    recovery: Recovery = _DEFAULT_RECOVERY,
    task_group: TaskGroup | None = None,
) -> MonitoredSession:
    """A monitored session that resumes from a directory, saves into it and counts its steps.

    TensorFlow: ``tf.train.MonitoredTrainingSession``. It is a `MonitoredSession` with a
    `ChiefSessionCreator` that restores the newest sound checkpoint, the given hooks, a `StepCounterHook`,
    and, as the last of the list, a `CheckpointSaverHook`.

    Args:
        master: the address of a chief; "" for this process, the only one so far.
        is_chief: whether this process holds the state.
        checkpoint_dir: where checkpoints are restored from and saved; none are if None.
        scaffold: what is done to make a session ready; its saver saves and restores.
        hooks: called around each run, in this order.
        chief_only_hooks: likewise, after `hooks`.
        save_checkpoint_secs: seconds between checkpoints; None for no such interval.
        save_checkpoint_steps: steps between checkpoints; if both are given, either triggers.
        log_step_count_steps: steps between two lines with the steps per second; None for none.
        stop_grace_period: see `MonitoredSession`.
        recovery: see `Recovery`.
        task_group: see `MonitoredSession`.
    """
    if master or not is_chief:
        raise InvalidArgumentError(
            "a session with a chief in another process is not available yet: master must be ''"
        )
    creator = ChiefSessionCreator(scaffold=scaffold, checkpoint_dir=checkpoint_dir)
    all_hooks = [*hooks, *chief_only_hooks]
    if log_step_count_steps:
        all_hooks.append(StepCounterHook(log_step_count_steps))
    if checkpoint_dir is not None and (save_checkpoint_secs or save_checkpoint_steps):
        all_hooks.append(
            CheckpointSaverHook(
                checkpoint_dir,
                save_secs=save_checkpoint_secs or None,
                save_steps=save_checkpoint_steps or None,
                saver=creator.scaffold.saver,
            )
        )
    return MonitoredSession(
        creator,
        all_hooks,
        stop_grace_period=stop_grace_period,
        recovery=recovery,
        task_group=task_group,
    )
