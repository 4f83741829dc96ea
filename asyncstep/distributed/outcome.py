"""How a program has ended, on its way from the Dask worker to who has launched it."""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from typing import Any

import cloudpickle

from asyncstep.errors import Error, InvalidTypeError, kind_of


class RemoteTraceback(Exception):
    """Where an error was raised in another process: its text is the traceback there."""

    def __str__(self) -> str:
        return f"\n\n{self.args[0]}"


@dataclass(frozen=True, slots=True)
class Returned:
    """The program has returned a value."""

    value: Any


@dataclass(frozen=True, slots=True)
class Failed:
    """The program has raised an error."""

    error: BaseException


@dataclass(frozen=True, slots=True)
class Cancelled:
    """The program was cancelled, or not started, because nobody waits for it."""


Outcome = Returned | Failed | Cancelled


def dump_outcome(outcome: Outcome, where: str) -> bytes:
    """The outcome as bytes; a `Failed` that says so if it is none that can be.

    Args:
        outcome: how the program has ended.
        where: which program it is.
    """
    text = ""
    if isinstance(outcome, Failed):
        outcome.error.add_note(f"in {where}")
        text = "".join(traceback.format_exception(outcome.error))
    try:
        data: bytes = cloudpickle.dumps((outcome, text))
        if isinstance(outcome, Failed):
            cloudpickle.loads(data)  # errors that need more than their args are pickled, but cannot be loaded
    except Exception as error:
        replaced = Failed(_unpicklable(outcome, where, error))
        data = cloudpickle.dumps((replaced, text))
    return data


def load_outcome(data: bytes, where: str) -> Outcome:
    """The outcome; an error has the traceback there as its cause."""
    try:
        outcome, text = cloudpickle.loads(data)
    except Exception as error:
        return Failed(_unloadable(where, error))
    if isinstance(outcome, Failed):
        outcome.error.__cause__ = RemoteTraceback(text)
    assert isinstance(outcome, Outcome)
    return outcome


def _unpicklable(outcome: Outcome, where: str, error: Exception) -> Error:
    if isinstance(outcome, Failed):
        return Error(
            f"{where} has failed with an error that cannot be sent here: {outcome.error!r} ({error!r})"
        )
    assert isinstance(outcome, Returned)
    return InvalidTypeError(
        f"{where} has returned {kind_of(outcome.value)}, which cannot be sent here; return plain data ({error!r})"
    )


def _unloadable(where: str, error: Exception) -> Error:
    return Error(f"what {where} has sent cannot be loaded here: {error!r}")
