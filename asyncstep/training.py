"""MonitoredTrainingSession: the stock pieces, put together."""

from __future__ import annotations

from typing import TYPE_CHECKING

from asyncstep._monitored.creators import ChiefSessionCreator, WorkerSessionCreator
from asyncstep._monitored.recovery import Recovery
from asyncstep._monitored.session import MonitoredSession
from asyncstep.checkpoint.directory import object_path
from asyncstep.errors import InvalidArgumentError
from asyncstep.hooks.checkpoint import CheckpointSaverHook
from asyncstep.hooks.step_counter import StepCounterHook
from asyncstep.hooks.summary_saver import SummarySaverHook
from asyncstep.hooks.timer import check_secs
from asyncstep.summary import merge_all

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
    save_summaries_steps: int | None = 100,
    save_summaries_secs: float | None = None,
    summary_dir: str | os.PathLike[str] | None = None,
    log_step_count_steps: int | None = 100,
    stop_grace_period: float = 120.0,
    max_wait: float = 7200.0,
    recovery: Recovery = _DEFAULT_RECOVERY,
    task_group: TaskGroup | None = None,
) -> MonitoredSession:
    """A monitored session that resumes from a directory, saves into it, counts its steps and writes summaries.

    TensorFlow: ``tf.train.MonitoredTrainingSession``. It is a `MonitoredSession` with a
    `ChiefSessionCreator` that restores the newest sound checkpoint, the given hooks, a `StepCounterHook`,
    a `SummarySaverHook` if there is something to write, and, as the last of the list, a `CheckpointSaverHook`.

    Args:
        master: `TaskInfo.master`, in a program that `asyncstep.distributed.launch` runs; "" for this process alone.
        is_chief: whether the state is here. A worker has none of the hooks below but `hooks`, and neither saves
            nor restores: the chief does.
        checkpoint_dir: where checkpoints are restored from and saved; none are if None.
        scaffold: what is done to make a session ready; its saver saves and restores.
        hooks: called around each run, in this order.
        chief_only_hooks: likewise, after `hooks`.
        save_checkpoint_secs: seconds between checkpoints; None for no such interval.
        save_checkpoint_steps: steps between checkpoints; if both are given, either triggers.
        save_summaries_steps: global steps between summaries; None for no such interval. What is written is
            the `summary_op` of the scaffold, else all the summary nodes that the graph has now.
        save_summaries_secs: seconds between summaries; if both are given, either triggers. If neither is, no
            summaries are written.
        summary_dir: where event files are written, those of the steps per second among them. If None, into
            `checkpoint_dir`, if that is a directory of the file system; with neither, none are written.
        log_step_count_steps: steps between two lines with the steps per second; None for none.
        stop_grace_period: see `MonitoredSession`.
        max_wait: for how many seconds a worker waits for the chief.
        recovery: see `Recovery`.
        task_group: see `MonitoredSession`.
    """
    check_secs("MonitoredTrainingSession", "max_wait", max_wait)
    if not is_chief:
        if not master:
            raise InvalidArgumentError(
                "is_chief=False needs the master of the chief: TaskInfo.master, in a program that"
                " asyncstep.distributed.launch runs"
            )
        return MonitoredSession(
            WorkerSessionCreator(scaffold=scaffold, master=master, max_wait=max_wait),
            hooks,
            stop_grace_period=stop_grace_period,
            recovery=recovery,
            task_group=task_group,
        )
    creator = ChiefSessionCreator(scaffold=scaffold, master=master, checkpoint_dir=checkpoint_dir)
    all_hooks = [*hooks, *chief_only_hooks]
    summaries = _summary_directory(summary_dir, checkpoint_dir)
    if not (save_summaries_steps or save_summaries_secs):
        summaries = None
    if log_step_count_steps:
        all_hooks.append(StepCounterHook(log_step_count_steps, output_dir=summaries))
    summary_op = creator.scaffold.summary_op
    values = merge_all(creator.graph) if summary_op is None else summary_op
    if summaries is not None and values is not None:
        all_hooks.append(
            SummarySaverHook(
                values,
                save_steps=save_summaries_steps or None,
                save_secs=save_summaries_secs or None,
                output_dir=summaries,
            )
        )
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


def _summary_directory(
    summary_dir: str | os.PathLike[str] | None, checkpoint_dir: str | os.PathLike[str] | None
) -> str | os.PathLike[str] | None:
    """Where event files go; None if nowhere."""
    if summary_dir is not None or checkpoint_dir is None or object_path(checkpoint_dir) is not None:
        return summary_dir
    return checkpoint_dir
