"""The errors of asyncstep, and the stop.

The names are those of ``tf.errors`` where the meaning is the same. Every error is an `Error` and, where
Python has a name for its kind, that too, so ``except LookupError`` and ``except TimeoutError`` work.
This module imports nothing of the package.
"""

from __future__ import annotations

from typing import Any, NoReturn, final

__all__ = [
    "AbortedError",
    "DataLossError",
    "DeadlineExceededError",
    "Error",
    "FailedPreconditionError",
    "InvalidArgumentError",
    "InvalidTypeError",
    "NanLossError",
    "NotFoundError",
    "OutOfRangeError",
    "SessionClosedError",
    "StopRequested",
    "UnavailableError",
]


@final
class StopRequested(BaseException):
    """A session's request to end the loop: control flow, not an error.

    It derives from BaseException so that neither ``except Exception`` nor a retry library takes it for
    a failure. Only a session makes one, and only that session absorbs it (contract S2, S6).

    Attributes:
        session: the session that is stopping.
        reason: the `StopReason` that was given first.
    """

    session: Any
    reason: Any

    def __init__(self, *_: object, **__: object) -> None:
        raise TypeError(
            "StopRequested is raised by a session only; ask for a stop with"
            " ctx.request_stop() or session.request_stop()"
        )

    def __init_subclass__(cls, **_: object) -> NoReturn:
        raise TypeError("StopRequested is final: it cannot be subclassed")

    def __str__(self) -> str:
        return f"the session was asked to stop: {self.reason}"


def make_stop(session: object, reason: object) -> StopRequested:
    """The one way to make a stop; for the session's own use."""
    stop = StopRequested.__new__(StopRequested)
    stop.session = session
    stop.reason = reason
    return stop


class Error(Exception):
    """The base of all errors that asyncstep raises. In another process it is of no session any more."""

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self.args, {name: value for name, value in vars(self).items() if name != "session"}


class OutOfRangeError(Error):
    """The data has ended. Out of a session's own run it is a clean end (contract S7).

    Attributes:
        session: the monitored session that it ends; None if it is an ordinary error.
    """

    session: Any = None


class AbortedError(Error):
    """The step was given up and may be run again; `Recovery` does so by default."""


class UnavailableError(Error):
    """A service that the step needs is away for now; `Recovery` tries again by default."""


class DeadlineExceededError(Error, TimeoutError):
    """A time limit that the user set has passed."""


class NotFoundError(Error, LookupError):
    """There is nothing of that name."""


class InvalidArgumentError(Error, ValueError):
    """An argument cannot be used as it is."""


class InvalidTypeError(InvalidArgumentError, TypeError):
    """An argument is of a wrong type or has a wrong signature."""


class FailedPreconditionError(Error, RuntimeError):
    """The thing is not in a state in which this can be done."""


class DataLossError(Error):
    """Stored data is damaged."""


class NanLossError(Error):
    """A watched value became NaN."""


class SessionClosedError(Error, RuntimeError):
    """The session is not open: it was not opened yet, or it is closed.

    Attributes:
        session: the session, or its state, where the error came of using it.
    """

    session: Any = None


def kind_of(value: object) -> str:
    """A type's name for error messages: ``an int``, ``a Node``."""
    name = type(value).__name__
    article = "an" if name[0].lower() in "aeiou" else "a"
    return f"{article} {name}"
