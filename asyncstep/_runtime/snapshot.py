"""Snapshots: the whole state of a session between two commits, taken out and put back (contract K1, K7)."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from asyncstep._graph.graph import GLOBAL_STEP
from asyncstep._runtime.state import form_of
from asyncstep.errors import InvalidArgumentError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from asyncstep._graph.graph import Graph
    from asyncstep._graph.variable import Variable
    from asyncstep._runtime.state import ArrayForm, LocalStateStore, Stateful, StateStore


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


def global_step(store: StateStore) -> int:
    """The committed global step; 0 where the graph has none."""
    step: int = store.values.get(GLOBAL_STEP, 0)
    return step


def take(graph: Graph, store: LocalStateStore) -> Snapshot:
    """The state as of now; there is no await in it, so no half step is in it."""
    return Snapshot(
        step=global_step(store),
        variables=dict(store.values),
        sources=store.source_states(graph.sources.values()),
        tracked=states_of(graph.tracked),
        hooks=states_of(store.stateful_hooks),
    )


def put_back(graph: Graph, store: LocalStateStore, snapshot: Snapshot, *, strict: bool) -> LocalStateStore:
    """A store with the state of a snapshot, to take the place of `store`; tracked objects are given theirs.

    The names and arrays are checked before anything is changed; then tracked objects, and the hooks of a
    session that is open, are given their states.

    Raises:
        NotFoundError: names are missing in the snapshot or in the graph, and `strict` is set.
        InvalidArgumentError: an array has another dtype or shape than the variable's initial array.
        Exception: what an object raises that refuses its state; a note names it.
    """
    if strict:
        _check_names(graph, snapshot)
    variables = {name: value for name, value in snapshot.variables.items() if name in graph.variables}
    _check_arrays(graph.variables, store.initial_forms, variables)
    sources = {name: state for name, state in snapshot.sources.items() if name in graph.sources}
    load_states("the tracked object", graph.tracked, snapshot.tracked)
    load_states("the hook", store.stateful_hooks, snapshot.hooks)
    return store.restored(variables, sources, snapshot.hooks, snapshot.step)


def states_of(objects: Mapping[str, Stateful]) -> dict[str, Any]:
    """Copies of what each ``state_dict()`` gives, by name."""
    return {name: copy.deepcopy(each.state_dict()) for name, each in objects.items()}


def load_states(what: str, objects: Mapping[str, Stateful], states: Mapping[str, Any]) -> None:
    """Give each object that has a state in `states` a copy of it; an error gets a note that names the object."""
    for name, each in objects.items():
        if name in states:
            try:
                each.load_state_dict(copy.deepcopy(states[name]))
            except Exception as error:
                error.add_note(f"while restoring {what} {name!r}")
                raise


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
    variables: Mapping[str, Variable[Any]], initial: Mapping[str, ArrayForm], restored: Mapping[str, Any]
) -> None:
    complaints = [
        f"{name!r} is {form_of(value) or f'of type {type(value).__name__}'} in the checkpoint,"
        f" initially {initial[name]}"
        for name, value in restored.items()
        if variables[name].validate_shape and name in initial and initial[name] != form_of(value)
    ]
    if complaints:
        raise InvalidArgumentError(
            f"arrays have changed: {'; '.join(complaints)} (Variable(validate_shape=False) allows it)"
        )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names))
