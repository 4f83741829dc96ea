"""A plan: what has to be called, in which order, to get some fetches when some nodes are fed.

Compiled once for a set of fetches and fed nodes, and cached by the session. A value's place, its *slot*,
is known when the plan is compiled: first the fed nodes, then one slot for each step in topological order,
then the variables that are read after everything else. So a run that never waits only appends.
"""

from __future__ import annotations

from bisect import bisect_left
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from asyncstep._graph.node import MISSING, After, Group, Node, Placeholder, StateNode
from asyncstep._graph.op import OpNode, nodes_in
from asyncstep._graph.variable import Assign, Update, Variable
from asyncstep._runtime.calls import call_of
from asyncstep._runtime.fetches import AdHoc, Leaf
from asyncstep.errors import InvalidArgumentError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

# How a step is called; `pick` is what it needs for that.
INLINE = 0  # call(values, transaction)
MANY = 1  # await call(*pick(values))
ONE = 2  # await call(values[pick])
NONE = 3  # await call()
AWAIT = 4  # await call(values, transaction)
AD_HOC = 5  # await functions[pick]()

Step = tuple[int, Any, Any]


class Plan:
    """What to call for some fetches.

    Attributes:
        steps: (kind, call, pick) in topological order.
        nodes: the node of each step.
        fed: the nodes whose values come first.
        late: the names of the variables that are read last.
        outputs: the slots of the fetches.
        alone: the number of steps at the head that no other step could overlap with.
        is_sequence: whether that is all of them.
        inputs: for each step, the steps that it waits for.
        sole: the only step, if it is of the kinds INLINE or NONE and nothing is fed or read late; else None.
        reads: the names of the variables whose committed values it may need.
        targets: the nodes of which it reads or changes, without waiting, what a session has of them.
    """

    __slots__ = (
        "_consumers",
        "alone",
        "fed",
        "first",
        "inputs",
        "is_sequence",
        "late",
        "nodes",
        "outputs",
        "reads",
        "sole",
        "steps",
        "targets",
    )

    def __init__(self, leaves: Sequence[Leaf], fed: Sequence[Node[Any]]) -> None:
        order, dependencies, late = _ordered(leaves, frozenset(fed))
        self.fed: tuple[Node[Any], ...] = tuple(fed)
        self.first: int = len(self.fed)
        self.nodes: tuple[Leaf, ...] = tuple(order)
        slots: dict[Leaf, int] = {leaf: slot for slot, leaf in enumerate((*self.fed, *order, *late))}
        self.late: tuple[str, ...] = tuple(variable.name for variable in late)
        unseen = _unseen(order, leaves)
        self.steps: tuple[Step, ...] = tuple(_step(node, slots, unseen) for node in order)
        self.inputs: tuple[tuple[int, ...], ...] = tuple(
            tuple(slots[needed] - self.first for needed in dependencies[node] if slots[needed] >= self.first)
            for node in order
        )
        self.outputs: tuple[int, ...] = tuple(slots[leaf] for leaf in leaves)
        reading = (_read_by(leaf) for leaf in order if leaf not in unseen)
        self.reads: tuple[str, ...] = tuple(dict.fromkeys((*self.late, *filter(None, reading))))
        self.targets: tuple[Node[Any], ...] = tuple(
            dict.fromkeys(leaf.target for leaf in order if isinstance(leaf, StateNode))
        )
        self.alone: int = _alone(self.steps, self.inputs)
        self.is_sequence: bool = self.alone == len(self.steps)
        self.sole: Step | None = (
            self.steps[0]
            if len(self.steps) == 1 and self.steps[0][0] in (INLINE, NONE) and not fed and not late
            else None
        )
        self._consumers: tuple[tuple[int, ...], ...] | None = None

    @property
    def consumers(self) -> tuple[tuple[int, ...], ...]:
        """For each step, the steps that wait for it; found when it is first needed."""
        if self._consumers is None:
            found: list[list[int]] = [[] for _ in self.steps]
            for step, needed in enumerate(self.inputs):
                for other in needed:
                    found[other].append(step)
            self._consumers = tuple(map(tuple, found))
        return self._consumers


def _unseen(order: Sequence[Leaf], leaves: Sequence[Leaf]) -> frozenset[Leaf]:
    """The updates whose values nothing in the plan asks for, as those that are only put into a group."""
    seen: set[Leaf] = set(leaves)
    for leaf in reversed(order):
        if (
            isinstance(leaf, Node)
            and not isinstance(leaf, Group)
            and (leaf in seen or not isinstance(leaf, After))
        ):
            seen.update(leaf.inputs)
    return frozenset(leaf for leaf in order if isinstance(leaf, Update) and leaf not in seen)


def _read_by(leaf: Leaf) -> str | None:
    """The variable whose value a step needs, if it needs that of one."""
    match leaf:
        case Variable(name=name) | Update(variable=Variable(name=name)) | After(target=Variable(name=name)):
            return name
        case _:
            return None


def _ordered(
    leaves: Sequence[Leaf], fed: frozenset[Node[Any]]
) -> tuple[list[Leaf], dict[Leaf, tuple[Leaf, ...]], list[Variable[Any]]]:
    """The steps in topological order, what each waits for, and the variables that are read last."""
    needs = _reachable(leaves, fed)
    users: dict[Leaf, list[Leaf]] = {leaf: [] for leaf in needs}
    for leaf, needed in needs.items():
        for other in needed:
            users[other].append(leaf)
    late = [leaf for leaf in needs if isinstance(leaf, Variable) and leaf not in fed and not users[leaf]]
    for variable in late:
        del needs[variable]
    _delay_targets(needs, users, leaves, fed)
    order = _topological(needs)
    return [leaf for leaf in order if leaf not in fed], needs, late


def _reachable(leaves: Iterable[Leaf], fed: frozenset[Node[Any]]) -> dict[Leaf, tuple[Leaf, ...]]:
    """Everything that the leaves need, each with what it needs itself."""
    needs: dict[Leaf, tuple[Leaf, ...]] = {}
    pending: list[Leaf] = list(reversed(list(leaves)))
    while pending:
        leaf = pending.pop()
        if leaf in needs:
            continue
        needs[leaf] = needed = () if leaf in fed else _needs(leaf, fed)
        pending.extend(reversed(needed))
    return needs


def _needs(leaf: Leaf, fed: frozenset[Node[Any]]) -> tuple[Leaf, ...]:
    if isinstance(leaf, AdHoc):
        return ()
    if isinstance(leaf, After) and isinstance(leaf.target, Variable) and leaf.target not in fed:
        return leaf.controls  # the variable is read by the node itself, when its turn has come
    if isinstance(leaf, Placeholder) and leaf.default is MISSING:
        raise InvalidArgumentError(
            f"the placeholder {leaf.name!r} has no value in this run; feed it, as in feed_dict={{{leaf.name!r}: ...}}"
        )
    return (*leaf.inputs, *leaf.controls)


def _delay_targets(
    needs: dict[Leaf, tuple[Leaf, ...]],
    users: dict[Leaf, list[Leaf]],
    leaves: Iterable[Leaf],
    fed: frozenset[Node[Any]],
) -> None:
    """Let a node that is needed only as `node.after(others)` wait for the others itself."""
    fetched = set(leaves)
    for leaf in list(needs):
        if isinstance(leaf, After) and leaf.target not in fed and leaf.target not in fetched:
            target = leaf.target
            if target in needs and users[target] == [leaf]:
                # All that this node waits for: its own controls, and what a node after it has handed on to it.
                needs[target] = (*needs[target], *(other for other in needs[leaf] if other is not target))


def _topological(needs: dict[Leaf, tuple[Leaf, ...]]) -> list[Leaf]:
    """Every leaf after all that it needs; without recursion, so the depth of a graph has no limit."""
    order: list[Leaf] = []
    done: set[Leaf] = set()
    for start in needs:
        pending = [start]
        while pending:
            leaf = pending[-1]
            if leaf in done:
                pending.pop()
                continue
            open_needs = [needed for needed in needs[leaf] if needed not in done]
            if open_needs:
                pending.extend(reversed(open_needs))
            else:
                pending.pop()
                done.add(leaf)
                order.append(leaf)
    return order


def _alone(steps: Sequence[Step], inputs: Sequence[Sequence[int]]) -> int:
    """The number of steps at the head during which no other awaited step is ready."""
    ready_at: list[int] = []  # the step from which on a step could start, if all before it are done
    awaited: list[int] = []
    earliest = len(steps)
    for index, needed in enumerate(inputs):
        at = 0
        for other in needed:
            at = max(at, ready_at[other] if steps[other][0] == INLINE else other + 1)
        ready_at.append(at)
        if steps[index][0] != INLINE:
            place = bisect_left(awaited, at)
            if place < len(awaited):
                earliest = min(earliest, awaited[place])
            awaited.append(index)
    return earliest


def _step(leaf: Leaf, slots: dict[Leaf, int], unseen: frozenset[Leaf]) -> Step:
    """How to call one node."""
    match leaf:
        case AdHoc(index=index):
            return (AD_HOC, None, index)
        case OpNode():
            return _op_step(leaf, slots)
        case Variable(name=name):
            return (INLINE, lambda _, transaction: transaction.read(name), None)
        case Assign():
            return (INLINE, _assign(leaf, slots), None)
        case Update():
            return (INLINE, (_unseen_update if leaf in unseen else _update)(leaf, slots), None)
        case StateNode(apply=apply):
            args = _builder(leaf.args, slots)
            return (INLINE, lambda values, transaction: apply(transaction, args(values)), None)
        case After(target=Variable(name=name)) if (
            leaf.target not in slots or slots[leaf.target] >= slots[leaf]
        ):
            return (INLINE, lambda _, transaction: transaction.read(name), None)
        case After(target=target):
            slot = slots[target]
            return (INLINE, lambda values, _: values[slot], None)
        case Group():
            return (INLINE, lambda *_: None, None)
        case Placeholder(default=default):
            return (INLINE, lambda *_: default, None)
        case _:
            return (AWAIT, lambda _, transaction: transaction.store.reader(leaf).take(transaction), None)


def _op_step(node: OpNode[Any], slots: dict[Leaf, int]) -> Step:
    call, awaited = call_of(node)
    args, kwargs = node.args, node.kwargs
    if awaited and not kwargs and all(isinstance(arg, Node) for arg in args):
        places = [slots[arg] for arg in args]
        if not places:
            return (NONE, call, None)
        return (ONE, call, places[0]) if len(places) == 1 else (MANY, call, itemgetter(*places))
    positional = _builder(args, slots)
    named = _builder(kwargs, slots)
    return (
        AWAIT if awaited else INLINE,
        lambda values, _: call(*positional(values), **named(values)),
        None,
    )


def _assign(node: Assign[Any], slots: dict[Leaf, int]) -> Callable[[list[Any], Any], Any]:
    name, value = node.variable.name, _builder(node.value, slots)
    if not node.inputs:
        return lambda _, transaction: transaction.assign(name, node.value)
    return lambda values, transaction: transaction.assign(name, value(values))


def _update(node: Update[Any], slots: dict[Leaf, int]) -> Callable[[list[Any], Any], Any]:
    name, function, args = node.variable.name, node.function, _builder(node.args, slots)
    if not node.inputs:
        constants = node.args
        return lambda _, transaction: transaction.update(name, function, constants)
    return lambda values, transaction: transaction.update(name, function, args(values))


def _unseen_update(node: Update[Any], slots: dict[Leaf, int]) -> Callable[[list[Any], Any], Any]:
    name, function, args = node.variable.name, node.function, _builder(node.args, slots)
    return lambda values, transaction: transaction.update_unseen(name, function, args(values))


def _builder(value: Any, slots: dict[Leaf, int]) -> Callable[[list[Any]], Any]:
    """A function that puts the values of nodes into a nesting of lists, tuples and dicts."""
    if isinstance(value, Node):
        return itemgetter(slots[value])
    if not nodes_in(value):
        return lambda _: value
    if isinstance(value, dict):
        keys, parts = list(value), [_builder(item, slots) for item in value.values()]
        return lambda values: {key: part(values) for key, part in zip(keys, parts, strict=True)}
    parts = [_builder(item, slots) for item in value]
    if isinstance(value, list):
        return lambda values: [part(values) for part in parts]
    make = getattr(type(value), "_make", tuple)
    return lambda values: make([part(values) for part in parts])
