"""Errors of object stores as those of a file system, which the rest of asyncstep knows."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def as_os_errors(what: str) -> Iterator[None]:
    """Raise what a store says as OSError or PermissionError; a missing object is a FileNotFoundError already.

    They have no `errno`: that a store cannot be reached says nothing of damage to what is in it.
    """
    try:
        yield
    except BaseError as error:
        refused = isinstance(error, (PermissionDeniedError, UnauthenticatedError))
        text = str(error).partition("\n\nDebug source")[0].strip()
        raise (PermissionError if refused else OSError)(f"{what}: {text}") from error
