"""What is computed: names, edges, groups, the default graph, the picture."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import anyio
import anyio.lowlevel
import pytest

import asyncstep
from asyncstep import (
    Graph,
    Node,
    NotFoundError,
    Session,
    Variable,
    create_global_step,
    get_default_graph,
    get_global_step,
    get_or_create_global_step,
    group,
    op,
    placeholder,
    source,
)

pytestmark = pytest.mark.anyio


@op
def tokenize(line: str) -> list[str]:
    """An op to name nodes after."""
    return line.split()


def noting(order: list[str]) -> Callable[[str], str]:
    """A function that notes when it was called, and gives its argument."""

    def note(name: str) -> str:
        order.append(name)
        return name

    return note


# Names


def test_a_node_is_named_after_its_op() -> None:
    """The first node of an op has the op's name; the next ones get a number, each a name of its own."""
    with Graph() as graph:
        nodes = [tokenize("a") for _ in range(3)]
    names = [node.name for node in nodes]
    assert names[0] == "tokenize"
    assert len(set(names)) == 3 and all(name.startswith("tokenize") for name in names)
    assert [graph[name] for name in names] == nodes


def test_an_op_may_be_given_a_name() -> None:
    """`@op(name=...)` names the nodes of the op."""
    with Graph() as graph:
        node = op(name="split")(str.split)("a b")
    assert node.name == "split"
    assert graph["split"] is node


def test_a_generated_name_gives_way_to_an_explicit_one() -> None:
    """An op's node never takes a name that a placeholder already has."""
    with Graph() as graph:
        taken = placeholder("tokenize")
        node = tokenize("a")
    assert node.name != "tokenize"
    assert graph["tokenize"] is taken and graph[node.name] is node


def test_names_start_anew_in_each_graph() -> None:
    """Two graphs number their nodes independently."""
    names = []
    for _ in range(2):
        with Graph():
            names.append([tokenize("a").name, tokenize("b").name])
    assert names[0] == names[1]


def test_a_node_knows_its_name_graph_and_inputs() -> None:
    """`inputs` are the nodes whose values the node takes, however deep they were in the arguments."""
    with Graph() as graph:
        x, y = placeholder("x"), placeholder("y")
        node = op(lambda *args, **kwargs: None)([x, {"k": (y,)}], 3, key=x)
    assert node.graph is graph
    assert set(node.inputs) == {x, y}
    assert tuple(x.inputs) == ()


def test_the_representation_of_a_node_names_it() -> None:
    """What a person sees in a debugger says which node it is."""
    with Graph():
        assert "my_x" in repr(placeholder("my_x"))
        assert "my_v" in repr(Variable(0, name="my_v"))


# Mappings


def test_the_mappings_of_a_graph_are_read_only_and_by_name() -> None:
    """`nodes`, `variables` and `sources` show the graph by name, in the order of making, read-only."""
    with Graph() as graph:
        x, v, items = placeholder("x"), Variable(0, name="v"), source([1], name="items")
        node = tokenize("a")
    assert dict(graph.nodes) == {"x": x, "v": v, "items": items, "tokenize": node}
    assert list(graph.nodes) == ["x", "v", "items", "tokenize"]
    assert dict(graph.variables) == {"v": v}
    assert dict(graph.sources) == {"items": items}
    mappings: list[Any] = [graph.nodes, graph.variables, graph.sources]
    assert all(isinstance(view, Mapping) for view in mappings)
    for view in mappings:
        with pytest.raises(TypeError):
            view["new"] = x
        with pytest.raises((TypeError, AttributeError)):
            view.clear()


def test_a_mapping_taken_early_shows_later_nodes() -> None:
    """The mappings are views."""
    with Graph() as graph:
        nodes = graph.nodes
        x = placeholder("x")
        assert nodes["x"] is x


# Order


async def test_after_gives_the_same_value_after_the_others() -> None:
    """`node.after(a, b)` has the node's value, and is evaluated when a and b have been."""
    order: list[str] = []
    note = op(noting(order))
    with Graph() as graph:
        a, b = note("a"), note("b")
        last = note("last").after(a, b)
    async with Session(graph) as raw:
        assert await raw.run(last) == "last"
    assert sorted(order[:2]) == ["a", "b"] and order[2:] == ["last"]


async def test_after_can_be_asked_for_twice() -> None:
    """`node.after(a).after(b)` is evaluated after both."""
    order: list[str] = []
    note = op(noting(order))
    with Graph() as graph:
        v = Variable(1, name="v")
        a, b = note("a"), note("b")
        last = note("last").after(a).after(b)
        read = v.after(v.assign_add(1).after(a)).after(b)
    async with Session(graph) as raw:
        assert await raw.run([last, read]) == ["last", 2]
    assert sorted(order[:2]) == ["a", "b"] and order[2:] == ["last"]


async def test_after_leaves_the_node_itself_alone() -> None:
    """`after` makes a new node: fetching the original alone does not evaluate the others."""
    order: list[str] = []
    note = op(noting(order))
    with Graph() as graph:
        first, node = note("first"), note("node")
        later = node.after(first)
    assert later is not node and later.graph is graph
    async with Session(graph) as raw:
        assert await raw.run(node) == "node"
    assert order == ["node"]


def test_after_nothing_is_allowed() -> None:
    """`after()` of no others is a node like the one it came from."""
    with Graph():
        assert isinstance(placeholder("x").after(), Node)


def test_group_may_be_named() -> None:
    """`group(..., name=...)` is found in the graph by that name."""
    with Graph() as graph:
        both = group(placeholder("x"), placeholder("y"), name="both")
    assert graph["both"] is both


async def test_a_group_of_groups_evaluates_everything() -> None:
    """Groups nest."""
    evaluated: list[int] = []
    note = op(evaluated.append)
    with Graph() as graph:
        everything = group(group(note(1), note(2)), note(3))
    async with Session(graph) as raw:
        await raw.run(everything)
    assert sorted(evaluated) == [1, 2, 3]


# Placeholders and variables


async def test_a_placeholder_has_the_default_unless_fed() -> None:
    """`placeholder(name, default=...)` need not be fed; None is a default like any other."""
    with Graph() as graph:
        x, y = placeholder("x", default=None), placeholder("y", default=[1])
    async with Session(graph) as raw:
        assert await raw.run([x, y]) == [None, [1]]
        assert await raw.run([x, y], {x: 1, y: 2}) == [1, 2]


async def test_assign_update_and_assign_add_give_the_new_value() -> None:
    """The three ways to write a variable give the value that they wrote; arguments may be nodes."""
    with Graph() as graph:
        v = Variable(1, name="v")
        x = placeholder("x")
        nodes = [v.assign(x), v.update(lambda current, *args: current + sum(args), x, 1), v.assign_add(x)]
    async with Session(graph) as raw:
        assert [await raw.run(node, {x: 10}) for node in nodes] == [10, 21, 31]
        assert await raw.run(v) == 31


async def test_assign_takes_a_nesting_of_values_and_nodes() -> None:
    """Nodes in the lists, tuples and dicts of a value to assign are replaced, as in an op's arguments."""
    with Graph() as graph:
        v: Variable[list[Any]] = Variable([], name="v")
        writes = [v.assign([1, {"k": 2}]), v.assign([placeholder("x"), {"k": (v,)}])]
    async with Session(graph) as raw:
        assert await raw.run(writes[0]) == [1, {"k": 2}]
        assert await raw.run(writes[1], {"x": 5}) == [5, {"k": ([1, {"k": 2}],)}]
        assert await raw.run(v) == [5, {"k": ([1, {"k": 2}],)}]


async def test_a_fed_variable_gives_the_fed_value_and_is_not_written() -> None:
    """Feeding a variable is for one run only."""
    with Graph() as graph:
        v = Variable(1, name="v")
        double = op(lambda value: 2 * value)(v)
    async with Session(graph) as raw:
        assert await raw.run([v, double], {v: 5}) == [5, 10]
        assert await raw.run([v, double]) == [1, 2]


async def test_assign_add_works_for_whatever_adds() -> None:
    """`assign_add` is update(operator.add, delta)."""
    with Graph() as graph:
        words = Variable((), name="words").assign_add(("a",))
        same = Variable("", name="text").update(operator.add, "b")
    async with Session(graph) as raw:
        assert await raw.run([words, same]) == [("a",), "b"]
        assert await raw.run([words, same]) == [("a", "a"), "bb"]


# The global step


def test_a_graph_has_a_global_step_on_demand() -> None:
    """The global step is a variable of that name, starting at 0, made once."""
    with Graph() as graph:
        with pytest.raises(NotFoundError):
            get_global_step()
        step = create_global_step()
        assert get_global_step() is step is get_or_create_global_step() is get_or_create_global_step(graph)
    assert isinstance(step, Variable)
    assert step.name == "global_step" and dict(graph.variables) == {"global_step": step}


def test_the_global_step_functions_take_a_graph() -> None:
    """With a graph given, the default graph is left alone."""
    graph, other = Graph(), Graph()
    with other:
        step = get_or_create_global_step(graph)
        assert get_global_step(graph) is step and step.graph is graph
    assert not other.nodes


async def test_the_global_step_starts_at_zero() -> None:
    """A new session reads 0."""
    with Graph() as graph:
        step = get_or_create_global_step()
    async with Session(graph) as raw:
        assert await raw.run(step) == 0


# The default graph


def test_the_innermost_block_has_the_default_graph() -> None:
    """`with graph:` blocks nest, and the outer graph is back after the inner block, also after an error."""
    outside = get_default_graph()
    with Graph() as one:
        assert get_default_graph() is one
        with pytest.raises(ValueError, match="boom"), Graph() as two:
            assert get_default_graph() is two
            raise ValueError("boom")
        assert get_default_graph() is one
        with one:
            assert get_default_graph() is one
        assert get_default_graph() is one
    assert get_default_graph() is outside


def test_without_a_block_there_is_one_graph_a_process() -> None:
    """The default graph outside any block is always the same."""
    assert get_default_graph() is get_default_graph()
    assert isinstance(get_default_graph(), Graph)


async def test_the_default_graph_belongs_to_the_task() -> None:
    """Tasks that overlap in blocks of their own do not see each other's graph."""
    both_in = anyio.Event()
    graphs: dict[str, Graph] = {}

    async def build(name: str) -> None:
        with Graph(name) as graph:
            graphs[name] = graph
            if len(graphs) == 2:
                both_in.set()
            await both_in.wait()
            await anyio.lowlevel.checkpoint()
            assert get_default_graph() is graph
            placeholder(name)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(build, "left")
        tasks.start_soon(build, "right")
    assert [list(graphs[name].nodes) for name in ("left", "right")] == [["left"], ["right"]]


def test_a_node_of_nodes_belongs_to_the_graph_of_its_inputs() -> None:
    """`assign`, `update` and `after` add to the graph of the variable, whichever is the default."""
    with Graph() as graph:
        v = Variable(0, name="v")
    with Graph() as other:
        nodes: list[Node[Any]] = [v.assign(1), v.assign_add(1), v.after()]
    assert all(node.graph is graph for node in nodes)
    assert not other.nodes


async def test_a_session_takes_the_default_graph_where_it_is_made() -> None:
    """`Session()` and `Session(graph)` evaluate the graph that was meant when they were made."""
    with Graph() as graph:
        placeholder("x", default=1)
        raw = Session()
    assert raw.graph is graph
    async with raw:
        assert await raw.run("x") == 1


# Finalizing, tracking, drawing


def test_finalizing_is_seen_and_idempotent() -> None:
    """`finalized` tells; a second `finalize` changes nothing."""
    graph = Graph()
    assert graph.finalized is False
    graph.finalize()
    graph.finalize()
    assert graph.finalized is True


def test_a_graph_may_be_named() -> None:
    """The name is in the representation, for messages."""
    assert "ranking" in repr(Graph("ranking"))
    assert isinstance(repr(Graph()), str)


def test_tracked_objects_are_kept_by_name() -> None:
    """`graph.track(name, obj)` takes an object with a state."""

    class Tracked:
        def state_dict(self) -> dict[str, Any]:
            return {}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            """Nothing to load."""

    graph = Graph()
    graph.track("thing", Tracked())
    assert "thing" not in graph.nodes


def test_the_picture_shows_every_node_and_edge() -> None:
    """`to_mermaid` draws a flowchart: each node by name, an arrow for each input and control dependency."""
    with Graph() as graph:
        x = placeholder("the_x")
        v: Variable[Any] = Variable(0, name="the_v")
        words = tokenize(x)
        v.assign(words)
        group(words, name="the_group")
        words.after(v)
    picture = graph.to_mermaid()
    assert picture.startswith(("flowchart", "graph", "---"))
    assert all(name in picture for name in graph.nodes)
    arrows = [line for line in picture.splitlines() if "->" in line]
    assert len(arrows) >= 5


def test_the_picture_survives_odd_names() -> None:
    """Names with quotes, brackets and spaces do not break out of their labels."""
    with Graph() as graph:
        placeholder('a "quoted" [name]; end')
        op(lambda: None)()
    picture = graph.to_mermaid()
    assert '"quoted"' not in picture
    assert "quoted" in picture


def test_the_public_names_are_there() -> None:
    """Everything that `asyncstep` says it exports exists."""
    assert asyncstep.__all__
    for name in asyncstep.__all__:
        assert getattr(asyncstep, name) is not None or name == "MISSING"
