"""FeedFnHook: feeds that are made anew for every run."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from inspect import isawaitable
from typing import Any, TypeAlias

from asyncstep._monitored.hook import SessionRunArgs, SessionRunContext, SessionRunHook
from asyncstep.errors import InvalidTypeError, kind_of

__all__ = ["FeedFnHook"]

FeedDict: TypeAlias = Mapping[Any, Any]


class FeedFnHook(SessionRunHook):
    """Feed every run with what a function gives for it.

    Args:
        feed_fn: called without arguments before each run; gives values by node or name, as a mapping or an
            awaitable of one. With several workers, calls of an async `feed_fn` overlap.

    A step that is run again is fed anew: values that must not be lost with a step that is rolled back belong
    in a source. An error of `feed_fn` is an error of the run.

    Raises:
        InvalidTypeError: `feed_fn` cannot be called; in the run, if what it gives is no mapping.

    TensorFlow: ``tf.train.FeedFnHook``.
    """

    def __init__(self, feed_fn: Callable[[], FeedDict | Awaitable[FeedDict]]) -> None:
        if not callable(feed_fn):
            raise InvalidTypeError(f"FeedFnHook: feed_fn must be a function, got {kind_of(feed_fn)}")
        self._feed_fn = feed_fn

    async def before_run(self, run_context: SessionRunContext) -> SessionRunArgs:
        """Ask `feed_fn` for this run's feeds."""
        given = self._feed_fn()
        feeds = await given if isawaitable(given) else given
        if not isinstance(feeds, Mapping):
            raise InvalidTypeError(f"FeedFnHook: feed_fn must give a feed dict, got {kind_of(feeds)}")
        return SessionRunArgs(feed_dict=feeds)
