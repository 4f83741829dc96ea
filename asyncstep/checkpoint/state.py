"""What a checkpoint holds: the state of a session between two commits (contract K1), in four sections."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from asyncstep.checkpoint.arrays import Tensors
from asyncstep.checkpoint.encoding import encode
from asyncstep.errors import InvalidArgumentError, InvalidTypeError

if TYPE_CHECKING:
    from collections.abc import Mapping

SECTIONS = {
    "variables": "the variable",
    "sources": "the source",
    "tracked": "the tracked object",
    "hooks": "the hook",
}
"""The sections, and what to call one of their entries."""


@dataclass(frozen=True, slots=True)
class CheckpointState:
    """The state of a session: values by name. They are read, never changed.

    Attributes:
        variables: the values of the variables, the global step among them.
        sources: the positions of the sources.
        tracked: the ``state_dict()`` of the tracked objects.
        hooks: the ``state_dict()`` of the hooks that have one.
    """

    variables: Mapping[str, Any] = field(default_factory=dict)
    sources: Mapping[str, Any] = field(default_factory=dict)
    tracked: Mapping[str, Any] = field(default_factory=dict)
    hooks: Mapping[str, Any] = field(default_factory=dict)


def described(section: str, name: str) -> str:
    """An entry of a section for messages, as "the variable 'loss'"."""
    return f"{SECTIONS[section]} {name!r}"


def state_tree(state: CheckpointState, tensors: Tensors, *, allow_pickle: bool) -> dict[str, dict[str, Any]]:
    """The trees of all values, by section and name; arrays go to `tensors`.

    Raises:
        InvalidTypeError: a value is of a type that cannot be saved; the message names the variable (or
            source, object, hook), the place in its value, and the type.
        InvalidArgumentError: a value contains itself or is nested too deeply.
    """
    return {
        section: {
            name: _entry(section, name, value, tensors, allow_pickle)
            for name, value in getattr(state, section).items()
        }
        for section in SECTIONS
    }


def _entry(section: str, name: str, value: Any, tensors: Tensors, allow_pickle: bool) -> Any:
    what = described(section, name)
    if type(name) is not str:
        raise InvalidTypeError(f"{what} cannot be saved: its name is no string")
    try:
        name.encode()
    except UnicodeEncodeError:
        raise InvalidArgumentError(f"{what} cannot be saved: its name has a lone surrogate") from None
    tensors.name = f"{section}/{name}"
    try:
        return encode(value, what=what, tensors=tensors, allow_pickle=allow_pickle)
    except Exception as error:
        if what not in str(error):  # changed by another thread meanwhile, out of memory, ...
            error.add_note(f"while saving {what}")
        raise
