"""Snapshots: the whole state of a session between two commits, taken out and put back (contract K1, K7)."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from asyncstep._graph.graph import GLOBAL_STEP
from asyncstep.errors import InvalidArgumentError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from asyncstep._graph.graph import Graph
    from asyncstep._graph.variable import Variable
    from asyncstep._runtime.state import LocalStateStore


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state between two commits.

    Attributes:
        step: the global step; 0 where the graph has none.
        variables: values by the variables' names; not copied, for they are immutable by contract.
        sources: how far each source is.
        tracked: copies of the ``state_dict()`` of the objects given to ``graph.track``.
        hooks: copies of those of the hooks that have one.
    """

    step: int
    variables: Mapping[str, Any]
    sources: Mapping[str, Any]
    tracked: Mapping[str, Any]
    hooks: Mapping[str, Any]


def global_step(store: LocalStateStore) -> int:
    """The committed global step; 0 where the graph has none."""
    step: int = store.values.get(GLOBAL_STEP, 0)
    return step


def take(graph: Graph, store: LocalStateStore) -> Snapshot:
    """The state as of now; there is no await in it, so no half step is in it."""
    return Snapshot(
        step=global_step(store),
        variables=dict(store.values),
        sources=store.source_states(graph.sources.values()),
        tracked={name: copy.deepcopy(each.state_dict()) for name, each in graph.tracked.items()},
        hooks={name: copy.deepcopy(each.state_dict()) for name, each in store.stateful_hooks.items()},
    )


def put_back(graph: Graph, store: LocalStateStore, snapshot: Snapshot, *, strict: bool) -> None:
    """Make a snapshot the state of a store whose variables have their initial values.

    Nothing is changed unless all of it fits.

    Raises:
        NotFoundError: names are missing in the snapshot or in the graph, and `strict` is set.
        InvalidArgumentError: an array has another dtype or shape than the variable's initial array.
    """
    if strict:
        _check_names(graph, snapshot)
    variables = {name: value for name, value in snapshot.variables.items() if name in graph.variables}
    _check_arrays(graph.variables, store.values, variables)
    sources = {name: state for name, state in snapshot.sources.items() if name in graph.sources}
    store.restore(variables, sources, snapshot.step)
    for name, state in snapshot.tracked.items():
        if name in graph.tracked:
            graph.tracked[name].load_state_dict(copy.deepcopy(state))
    store.restored_hooks = dict(snapshot.hooks)


def _check_names(graph: Graph, snapshot: Snapshot) -> None:
    """One error for all names that are on one side only."""
    complaints: list[str] = []
    for kind, wanted, found in (
        ("variables", graph.variables, snapshot.variables),
        ("sources", graph.sources, snapshot.sources),
        ("tracked objects", graph.tracked, snapshot.tracked),
    ):
        missing = sorted(set(wanted) - set(found) - {GLOBAL_STEP})
        surplus = sorted(set(found) - set(wanted) - {GLOBAL_STEP})
        if missing:
            complaints.append(f"{kind} that the checkpoint lacks: {_listed(missing)}")
        if surplus:
            complaints.append(f"{kind} that {graph.described} lacks: {_listed(surplus)}")
    if complaints:
        raise NotFoundError(
            f"the checkpoint of step {snapshot.step} is not of this graph; {'; '.join(complaints)}"
            " (strict=False restores what both have)"
        )


def _check_arrays(
    variables: Mapping[str, Variable[Any]], initial: Mapping[str, Any], restored: Mapping[str, Any]
) -> None:
    complaints = [
        f"{name!r} is {_described(value)} in the checkpoint, initially {_described(initial[name])}"
        for name, value in restored.items()
        if variables[name].validate_shape
        and name in initial
        and _is_array(initial[name])
        and _form(initial[name]) != _form(value)
    ]
    if complaints:
        raise InvalidArgumentError(
            f"arrays have changed: {'; '.join(complaints)} (Variable(validate_shape=False) allows it)"
        )


def _is_array(value: object) -> bool:
    return hasattr(value, "dtype") and hasattr(value, "shape")


def _form(value: Any) -> tuple[str, tuple[int, ...]] | None:
    return (str(value.dtype), tuple(value.shape)) if _is_array(value) else None


def _described(value: Any) -> str:
    return f"{value.dtype}{list(value.shape)}" if _is_array(value) else f"of type {type(value).__name__}"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names))
