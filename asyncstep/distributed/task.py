"""TaskInfo: what a program is told of its place among the workers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TaskInfo:
    """The place of one program among the workers of a `launch` (TensorFlow: ``TF_CONFIG``'s task).

    Attributes:
        master: for ``MonitoredTrainingSession(master=..., is_chief=...)`` and `WorkerSessionCreator`.
        index: 0 to ``num_workers - 1``; stays the same when the program is started again.
        num_workers: how many programs there are, the chief's among them.
    """

    master: str
    index: int
    num_workers: int

    @property
    def is_chief(self) -> bool:
        """Whether the state is to live in this program: index 0."""
        return self.index == 0
