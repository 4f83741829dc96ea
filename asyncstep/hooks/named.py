"""Fetches by the names under which people see them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from asyncstep._graph.node import Node
from asyncstep.errors import InvalidArgumentError, InvalidTypeError, kind_of

__all__ = ["listed", "name_of_fetch", "named_fetches"]


def named_fetches(owner: str, values: Mapping[str, Any] | Sequence[Any]) -> dict[str, Any]:
    """The fetches of a mapping by its keys, or those of a sequence by names of their own.

    Args:
        owner: who was given `values`, for the message.
        values: the fetches.

    Raises:
        InvalidArgumentError: there are none, or two have one name.
        InvalidTypeError: `values` is neither mapping nor sequence, or a fetch of a sequence has no name.
    """
    if isinstance(values, str) or not isinstance(values, (Mapping, Sequence)):
        raise InvalidTypeError(
            f"{owner}: values must be a mapping or a sequence of fetches, got {kind_of(values)}"
        )
    if not values:
        raise InvalidArgumentError(f"{owner}: values is empty, give at least one fetch")
    if isinstance(values, Mapping):
        return dict(values)
    named: dict[str, Any] = {}
    for fetch in values:
        name = name_of_fetch(fetch)
        if name is None:
            raise InvalidTypeError(
                f"{owner}: {kind_of(fetch)} has no name of its own; give a mapping of values"
            )
        if name in named:
            raise InvalidArgumentError(
                f"{owner}: two values have the one name {name!r}; give a mapping of values"
            )
        named[name] = fetch
    return named


def name_of_fetch(fetch: Any) -> str | None:
    """The name that a fetch has of its own: a node's, a function's, or the string that it is; else None."""
    if isinstance(fetch, str):
        return fetch
    return fetch.name if isinstance(fetch, Node) else getattr(fetch, "__name__", None)


def listed(values: Mapping[str, Any]) -> str:
    """Values as people read them: ``loss = 0.25, rate = 3``."""
    return ", ".join(f"{name} = {value}" for name, value in values.items())
