"""The stop: a level that is set once; taking an own stop out of an exception; who wins at the end.

The decisions here are plain functions of exceptions: nothing waits.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, NoReturn

from asyncstep._runtime.transaction import add_note_once
from asyncstep.errors import OutOfRangeError, StopRequested

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

logger = logging.getLogger("asyncstep")


class StopKind(StrEnum):
    """Why a session stops."""

    REQUESTED = "requested"
    END_OF_DATA = "end_of_data"
    HOOK = "hook"
    SIGNAL = "signal"
    ERROR = "error"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class StopReason:
    """Why a session stops.

    Attributes:
        kind: what sort of reason it is.
        message: in words, for people; may be empty.
        origin: who asked: a hook's or a function's name, a node's, a signal's.
    """

    kind: StopKind
    message: str = ""
    origin: str = ""

    def __str__(self) -> str:
        return f"{self.kind}{f' by {self.origin}' if self.origin else ''}{f': {self.message}' if self.message else ''}"


class StopLevel:
    """A flag that is set once and never taken back; the first reason stays (contract S1)."""

    __slots__ = ("_calls", "reason")

    def __init__(self) -> None:
        self.reason: StopReason | None = None
        self._calls: list[Callable[[], None]] = []

    def set(self, reason: StopReason) -> None:
        """Set the level, if it is not set yet, and tell those who asked to be told."""
        if self.reason is not None:
            return
        self.reason = reason
        logger.info("stopping: %s", reason)
        calls, self._calls = self._calls, []
        for call in calls:
            call()

    def when_set(self, call: Callable[[], None]) -> None:
        """Call a function once the level is set; at once if it is."""
        if self.reason is None:
            self._calls.append(call)
        else:
            call()

    def forget(self, call: Callable[[], None]) -> None:
        """Take back a `when_set`."""
        if call in self._calls:
            self._calls.remove(call)


def leaves(error: BaseException) -> Iterator[BaseException]:
    """The errors in an exception group at any depth, or the error itself."""
    pending = [error]
    while pending:
        each = pending.pop()
        if isinstance(each, BaseExceptionGroup):
            pending.extend(reversed(each.exceptions))
        else:
            yield each


def is_own_end(error: BaseException, session: object) -> bool:
    """Whether it is the session's own stop, or the end of its own data (contract S6, S7)."""
    return isinstance(error, (StopRequested, OutOfRangeError)) and error.session is session


def take_out(error: BaseException | None, session: object) -> BaseException | None:
    """What is left of an exception without the session's own stops and ends of data.

    An exception in which there are none is returned as it is. A group that is left with one error is
    that error, with the group's notes. What is left keeps its notes, cause, context and traceback.
    """
    rest = None if error is None else _without_own(error, session)
    if rest is None or rest is error:
        return rest
    left = list(leaves(rest))
    if len(left) > 1:
        return rest
    for note in _notes_above(rest):
        add_note_once(left[0], note)
    return left[0]


def _without_own(error: BaseException, session: object) -> BaseException | None:
    """The exception without own ends; a group in which there are none is the same object.

    `BaseExceptionGroup.split` would copy every group, and hide the contexts of the copies.
    """
    if not isinstance(error, BaseExceptionGroup):
        return None if is_own_end(error, session) else error
    parts = [_without_own(each, session) for each in error.exceptions]
    kept = [part for part in parts if part is not None]
    if all(part is each for part, each in zip(parts, error.exceptions, strict=True)):
        return error
    if not kept:
        return None
    rest = error.derive(kept).with_traceback(error.__traceback__)
    rest.__cause__, rest.__context__ = error.__cause__, error.__context__
    rest.__suppress_context__ = error.__suppress_context__
    for note in getattr(error, "__notes__", ()):
        rest.add_note(note)
    return rest


def _notes_above(group: BaseException) -> Iterator[str]:
    """The notes of a group that has one leaf, and of the groups in it."""
    while isinstance(group, BaseExceptionGroup):
        yield from getattr(group, "__notes__", ())
        group = group.exceptions[0]


def is_cancellation(error: BaseException | None, cancelled: type[BaseException]) -> bool:
    """Whether it is a cancellation, or a group of nothing else."""
    return error is not None and all(isinstance(leaf, cancelled) for leaf in leaves(error))


def keep_errors(
    error: BaseException, cancelled: type[BaseException], keep: Callable[[BaseException], None]
) -> None:
    """Give `keep` what is no cancellation in an exception, and raise the cancellation that is (contract C3).

    An anyio task group or a trio nursery that was cancelled and whose children failed raises both as one group.
    """
    cancellations, rest = error.split(cancelled) if isinstance(error, BaseExceptionGroup) else (None, error)
    try:
        if cancellations is None:
            if not isinstance(error, cancelled):
                keep(error)
                return
            raise_as_is(error)
        if rest is not None:
            keep(rest)
        raise_as_is(next(leaves(cancellations)))
    finally:
        del cancellations, rest, error


def foremost(error: BaseException) -> BaseException:
    """The leaf of an exception that goes before the others: an interrupt, else the first (contract C1)."""
    return next((leaf for leaf in leaves(error) if is_interrupt(leaf)), None) or next(leaves(error))


def is_interrupt(error: BaseException | None) -> bool:
    """Whether it ends the program: KeyboardInterrupt, SystemExit, or a generator that is thrown away; or a
    group with one of them in it, as a trio nursery raises it.
    """
    return error is not None and any(
        isinstance(leaf, (KeyboardInterrupt, SystemExit, GeneratorExit)) for leaf in leaves(error)
    )


def most_urgent(
    errors: Sequence[BaseException], cancelled: type[BaseException], message: str
) -> BaseException:
    """What is raised of several exceptions that came together: contract C1.

    An interrupt, with the errors as notes on it (and in the log, for they are not raised); else the errors,
    in a group called `message` if there are several; else a cancellation; else a stop.
    """
    failures = [each for each in errors if not (is_cancellation(each, cancelled) or _ends(each))]
    interrupt = next(filter(is_interrupt, errors), None)
    if interrupt is not None:
        for failure in failures:
            if not is_interrupt(failure):
                add_note_once(interrupt, f"{message}: {failure!r}")
                logger.error("%s; then %r came", message, interrupt, exc_info=failure)
        return interrupt
    if len(failures) > 1:
        return BaseExceptionGroup(message, failures)
    cancellations = [each for each in errors if is_cancellation(each, cancelled)]
    return (failures or cancellations or errors)[0]


def _ends(error: BaseException) -> bool:
    return all(isinstance(leaf, StopRequested) for leaf in leaves(error))


def outcome(
    body: BaseException | None, errors: Sequence[BaseException], cancelled: type[BaseException]
) -> BaseException | None:
    """What leaves a session: `body` is what its block raised, `errors` those of its background and closing.

    An interrupt goes before errors, errors before a cancellation, and that before a stop (contract C1, E2).
    An interrupt leaves as the same object, with the errors as notes on it (contract C5).
    """
    interrupt = next((each for each in (body, *errors) if is_interrupt(each)), None)
    if interrupt is not None:
        for error in (body, *errors):
            if error is not None and error is not interrupt:
                add_note_once(interrupt, f"while the session was closing: {error!r}")
                logger.error("while the session was closing, after %r", interrupt, exc_info=error)
        return interrupt
    if not errors:
        return body
    if body is not None and not is_cancellation(body, cancelled):
        return BaseExceptionGroup("the body of the session failed, and so did its end", [body, *errors])
    if len(errors) == 1:
        return errors[0]
    return BaseExceptionGroup("the session failed", list(errors))


def raise_as_is(error: BaseException) -> NoReturn:
    """Raise an exception from inside a handler without making what is handled its context."""
    context = error.__context__
    try:
        raise error
    finally:
        error.__context__ = context
        del error, context


def name_of(function: Any) -> str:
    """A function's name for messages."""
    return getattr(function, "__qualname__", None) or repr(function)
