"""What the hooks of one session let each other know.

A hook does not know which others there are. One that has something to tell (an evaluation, a checkpoint, the
last step) keeps it in an object of a class of its own, which it gets here; one that wants to hear of it gets
the same object. Nobody has to be there: an object that nobody fills in stays as it was made.
"""

from __future__ import annotations

from typing import Any, TypeVar

from asyncstep._monitored.coordinator import Coordinator

__all__ = ["shared"]

T = TypeVar("T")

_of_session: dict[Coordinator, dict[type, Any]] = {}


def shared(coord: Coordinator, kind: type[T]) -> T:
    """The one `kind` of the session that has this coordinator.

    It is made, without arguments, when it is first asked for, and forgotten when the session is closed.
    """
    if coord not in _of_session:
        _of_session[coord] = {}
        coord.call_when_closed(lambda: _of_session.__delitem__(coord))
    objects = _of_session[coord]
    if kind not in objects:
        objects[kind] = kind()
    found: T = objects[kind]
    return found
