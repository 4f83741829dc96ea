"""What a test lets raise: an exception, or a function that makes one."""

from __future__ import annotations

from collections.abc import Callable

from asyncstep.errors import InvalidTypeError, kind_of

Raised = BaseException | Callable[[], BaseException]
"""An exception, which is raised as it is, or a function (an exception class is one) that makes it each time."""


def maker_of(name: str, error: Raised) -> Callable[[], BaseException]:
    """A function that gives what is to be raised.

    Raises:
        InvalidTypeError: `error`, the value of the parameter called `name`, is neither of both; or, when it
            is called, it has made something else than an exception.
    """
    if isinstance(error, BaseException):
        return lambda: error
    if not callable(error) or (isinstance(error, type) and not issubclass(error, BaseException)):
        raise InvalidTypeError(
            f"{name} must be an exception, or a function that makes one, not {kind_of(error)}"
        )

    def make() -> BaseException:
        made: object = error()
        if isinstance(made, BaseException):
            return made
        raise InvalidTypeError(f"{name} must make an exception, but it made {kind_of(made)}")

    return make
