"""Errors of object stores as those of a file system, which the rest of asyncstep knows."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def as_os_errors(what: str) -> Iterator[None]:
    """Raise what a store says as FileNotFoundError, PermissionError or another OSError.

    They have no `errno`: that a store cannot be reached says nothing of damage to what is in it.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(_message(what, error)) from error
    except (PermissionDeniedError, UnauthenticatedError) as error:
        raise PermissionError(_message(what, error)) from error
    except BaseError as error:
        raise OSError(_message(what, error)) from error


def _message(what: str, error: Exception) -> str:
    return f"{what}: {str(error).partition('Debug source')[0].strip()}"
