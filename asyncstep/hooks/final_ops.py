"""FinalOpsHook: what is known only at the end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from asyncstep._monitored.hook import SessionRunHook
from asyncstep._runtime.session import Session
from asyncstep.errors import OutOfRangeError

__all__ = ["FinalOpsHook"]


class FinalOpsHook(SessionRunHook):
    """Evaluate fetches once when the session ends cleanly, and keep what they give.

    Args:
        final_ops: the fetches, in any nesting.
        feed_dict: what to feed, by node or name.

    The results are in `final_ops_values`, which is None before and after an end that is not clean.

    The evaluation is a run of the raw session, without hooks: what it writes to variables is committed, and
    is no step. Hooks end in reverse list order, so a hook that comes earlier in the list, such as one that
    saves a last checkpoint, sees those writes.

    `final_ops` that take an item from a source find that its data has ended: OutOfRangeError. Read variables.

    TensorFlow: ``tf.train.FinalOpsHook``, where `feed_dict` is called ``final_ops_feed_dict``.
    """

    def __init__(self, final_ops: Any, feed_dict: Mapping[Any, Any] | None = None) -> None:
        self._final_ops = final_ops
        self._feed_dict = feed_dict
        self._final_ops_values: Any = None

    @property
    def final_ops_values(self) -> Any:
        """What `final_ops` gave at the end of the session, in their nesting; None before."""
        return self._final_ops_values

    async def begin(self) -> None:
        """Forget the values of a session before."""
        self._final_ops_values = None

    async def end(self, session: Session) -> None:
        """Evaluate the fetches."""
        try:
            self._final_ops_values = await session.run(self._final_ops, self._feed_dict)
        except OutOfRangeError as error:
            error.add_note("FinalOpsHook: final_ops take from a source whose data has ended; read variables")
            raise
