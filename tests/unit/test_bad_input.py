"""Bad input: each mistake gets its own error, before anything runs, that says what was wrong."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

import asyncstep
from asyncstep import (
    ChiefSessionCreator,
    FailedPreconditionError,
    Graph,
    InvalidArgumentError,
    MonitoredSession,
    NotFoundError,
    Recovery,
    RunOptions,
    Session,
    SessionClosedError,
    SessionRunHook,
    SingularMonitoredSession,
    StepContext,
    StopRequested,
    Variable,
    group,
    op,
    placeholder,
    source,
)
from asyncstep.errors import InvalidTypeError
from asyncstep.hooks import SignalHook

pytestmark = pytest.mark.anyio


def monitored(graph: Graph, *hooks: Any, **options: Any) -> MonitoredSession:
    """A monitored session of `graph` with `hooks`."""
    return MonitoredSession(ChiefSessionCreator(graph=graph), hooks, **options)


@op
async def tokenize(line: str, *, lower: bool = False) -> list[str]:
    """An op with a signature to find in messages."""
    return (line.lower() if lower else line).split()


# Ops


@pytest.mark.parametrize(
    "build",
    [
        lambda: tokenize(),
        lambda: tokenize("a", "b"),
        lambda: tokenize("a", True),
        lambda: tokenize("a", upper=True),
        lambda: tokenize("a", line="b"),
        lambda: tokenize(lower=True),
    ],
)
def test_a_wrong_argument_list_fails_where_the_node_is_made(build: Callable[[], object]) -> None:
    """A call that does not fit the op's signature is a TypeError at once, and shows the signature."""
    with Graph() as graph, pytest.raises(TypeError, match="tokenize") as caught:
        build()
    assert isinstance(caught.value, InvalidArgumentError)
    assert "line: str, *, lower: bool = False" in str(caught.value).replace("'", "")
    assert not graph.nodes


def generate() -> Any:
    """A generator function."""
    yield 1


async def generate_async() -> Any:
    """An async generator function."""
    yield 1


@pytest.mark.parametrize("function", [generate, generate_async, tokenize])
def test_a_generator_or_another_op_is_no_op(function: Any) -> None:
    """An op is a function of one value: a generator function has many, and an op is one already."""
    with pytest.raises(InvalidTypeError, match=r"generat|tokenize"):
        op(function)


@pytest.mark.parametrize("make", [Graph, Session])
@pytest.mark.parametrize("bad", [3, tokenize])
def test_a_graph_is_a_graph_and_its_name_a_string(make: Any, bad: Any) -> None:
    """Something else for a graph, or for its name, is a TypeError."""
    with pytest.raises(InvalidTypeError, match="graph"):
        make(bad)


@pytest.mark.parametrize("function", [3, None, "name", object()])
def test_an_op_is_made_of_a_function(function: Any) -> None:
    """Something that cannot be called is no op."""
    with pytest.raises(TypeError, match="op"):
        op(retry=1)(function)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"offload": "fork"}, "offload"),
        ({"offload": True}, "offload"),
        ({"retry": 0}, "retry"),
        ({"retry": -1}, "retry"),
        ({"retry": "often"}, "retry"),
        ({"timeout": 0}, "timeout"),
        ({"timeout": -1.0}, "timeout"),
        ({"timeout": "soon"}, "timeout"),
        ({"limiter": 3}, "limiter"),
        ({"name": ""}, "name"),
        ({"name": 3}, "name"),
    ],
)
def test_a_wrong_op_option_is_refused_where_the_op_is_made(options: dict[str, Any], word: str) -> None:
    """An option that cannot be is an InvalidArgumentError naming it, when the op is decorated."""
    with pytest.raises(InvalidArgumentError, match=word):
        op(**options)(lambda: None)


def test_a_timeout_needs_something_that_it_can_end() -> None:
    """A plain function in the event loop cannot be interrupted, so a timeout for it is an error at once."""

    def compute() -> None:
        """Nothing waits here."""

    with pytest.raises(TypeError, match=r"'compute'.*offload"):
        op(timeout=1.0)(compute)
    op(timeout=1.0, offload="thread")(compute)


def test_only_plain_functions_are_offloaded() -> None:
    """A coroutine function cannot run in a thread or process: refused when the op is decorated."""

    async def fetch() -> None:
        """An async function."""

    for offload in ("thread", "process"):
        with pytest.raises(InvalidArgumentError, match="offload"):
            op(offload=offload)(fetch)


# Names and graphs


@pytest.mark.parametrize("how", ["placeholder", "variable", "source", "group"])
def test_two_nodes_of_one_name_are_refused(how: str) -> None:
    """A name that was given explicitly is taken once: the second is an InvalidArgumentError naming it."""
    with Graph() as graph:
        node = placeholder("taken")
        with pytest.raises(InvalidArgumentError, match="taken"):
            if how == "placeholder":
                placeholder("taken")
            elif how == "variable":
                Variable(0, name="taken")
            elif how == "source":
                source([1], name="taken")
            else:
                group(node, name="taken")
    assert graph["taken"] is node


def test_two_variables_of_one_name_are_refused() -> None:
    """Two variables of one name would share a place in a checkpoint."""
    with Graph():
        Variable(0, name="v")
        with pytest.raises(InvalidArgumentError, match="'v'"):
            Variable(1, name="v")


def test_an_unknown_name_is_not_found_with_the_close_ones() -> None:
    """`graph[name]` of no node is a LookupError that names nodes which were perhaps meant."""
    with Graph() as graph:
        placeholder("learning_rate")
        with pytest.raises(NotFoundError, match="learning_rate") as caught:
            graph["learning_rat"]
    assert "learning_rat'" in str(caught.value) or "learning_rat " in str(caught.value)
    assert isinstance(caught.value, LookupError)


@pytest.mark.parametrize("name", ["", 3, None])
@pytest.mark.parametrize(
    "make", [placeholder, lambda name: Variable(0, name=name), lambda name: source([], name=name)]
)
def test_a_name_is_a_string_with_something_in_it(name: Any, make: Callable[[Any], object]) -> None:
    """A name that is no string, or empty, is refused."""
    with Graph() as graph, pytest.raises(InvalidArgumentError, match="name"):
        make(name)
    assert not graph.nodes


@pytest.mark.parametrize(
    "make",
    [
        lambda: tokenize("a"),
        lambda: placeholder("new"),
        lambda: Variable(0, name="new"),
        lambda: source([], name="new"),
        lambda: group(),
    ],
)
def test_a_finalized_graph_refuses_new_nodes(make: Callable[[], object]) -> None:
    """A node for a finalized graph is a RuntimeError that names the graph and the node."""
    with Graph("frozen") as graph:
        graph.finalize()
        with pytest.raises(FailedPreconditionError, match="frozen") as caught:
            make()
    assert isinstance(caught.value, RuntimeError)
    assert any(word in str(caught.value) for word in ("new", "tokenize", "group"))
    assert not graph.nodes


def test_methods_that_make_nodes_meet_the_finalized_graph_too() -> None:
    """assign, update, assign_add and after make nodes of the node's own graph."""
    with Graph("frozen") as graph:
        v = Variable(0, name="v")
        x = placeholder("x")
        graph.finalize()
    for make in (
        lambda: v.assign(1),
        lambda: v.assign_add(1),
        lambda: v.update(max, 1),
        lambda: x.after(v),
        lambda: tokenize(x),
    ):
        with pytest.raises(FailedPreconditionError, match="frozen"):
            make()


def test_nodes_of_two_graphs_do_not_mix() -> None:
    """An input, a control dependency or a member of another graph is an InvalidArgumentError naming it."""
    with Graph("theirs"):
        theirs = placeholder("their_node")
    with Graph("ours"):
        ours = placeholder("our_node")
        v = Variable(0, name="v")
        for make in (
            lambda: op(lambda *_: None)(ours, [theirs]),
            lambda: ours.after(theirs),
            lambda: group(ours, theirs),
            lambda: v.assign(theirs),
            lambda: v.update(max, theirs),
        ):
            with pytest.raises(InvalidArgumentError, match="their_node"):
                make()


@pytest.mark.parametrize("other", [3, "name", None])
def test_only_nodes_come_before_a_node(other: Any) -> None:
    """`after` and `group` take nodes."""
    with Graph():
        node = placeholder("x")
        with pytest.raises(TypeError, match="after"):
            node.after(other)
        with pytest.raises(TypeError, match="group"):
            group(other)


def test_an_update_function_is_a_plain_function() -> None:
    """A coroutine function given to `update` would never be awaited: TypeError when the graph is built."""

    async def add(current: int, delta: int) -> int:
        return current + delta

    with Graph():
        v = Variable(0, name="v")
        for function in (add, 3, None):
            with pytest.raises(InvalidTypeError, match="update"):
                v.update(function, 1)  # type: ignore[arg-type]


def test_an_initial_value_is_not_made_by_a_coroutine_function() -> None:
    """`Variable(initial)` is a value or a plain function; a coroutine function is refused."""

    async def initial() -> int:
        return 1

    with Graph(), pytest.raises(InvalidTypeError, match="v"):
        Variable(initial, name="v")


def test_a_tracked_object_has_a_state() -> None:
    """`track` wants state_dict and load_state_dict, and each name once."""

    class Tracked:
        def state_dict(self) -> dict[str, Any]:
            return {}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            """Nothing to load."""

    graph = Graph()
    with pytest.raises(InvalidTypeError, match="state_dict"):
        graph.track("thing", object())  # type: ignore[arg-type]
    graph.track("thing", Tracked())
    with pytest.raises(InvalidArgumentError, match="thing"):
        graph.track("thing", Tracked())


def test_the_global_step_is_created_once_and_found_if_it_is_there() -> None:
    """get of none is NotFoundError, create of a second InvalidArgumentError, get_or_create always works."""
    graph = Graph()
    with pytest.raises(NotFoundError, match="global_step"):
        asyncstep.get_global_step(graph)
    step = asyncstep.create_global_step(graph)
    with pytest.raises(InvalidArgumentError, match="global_step"):
        asyncstep.create_global_step(graph)
    assert asyncstep.get_global_step(graph) is step is asyncstep.get_or_create_global_step(graph)


# Sources


def one_shot() -> Any:
    """A generator: it can be read once, so it cannot be resumed."""
    yield 1


async def async_one_shot() -> Any:
    """An async generator."""
    yield 1


@pytest.mark.parametrize("items", [one_shot(), iter([1]), map(str, [1]), async_one_shot(), 3, None, object()])
def test_items_that_cannot_be_read_again_are_refused(items: Any) -> None:
    """A one-shot iterator, or no items at all, is a TypeError that says to give a function."""
    with Graph() as graph, pytest.raises(InvalidTypeError, match="function"):
        source(items, name="items")
    assert not graph.nodes


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"batch": 0}, "batch"),
        ({"batch": -1}, "batch"),
        ({"batch": 1.5}, "batch"),
        ({"repeat": 0}, "repeat"),
        ({"repeat": -1}, "repeat"),
        ({"repeat": "often"}, "repeat"),
        ({"drop_remainder": True}, "drop_remainder"),
    ],
)
def test_a_source_parameter_that_cannot_be_is_refused(options: dict[str, Any], word: str) -> None:
    """A parameter out of range is an InvalidArgumentError naming it, when the source is made."""
    with Graph() as graph, pytest.raises(InvalidArgumentError, match=word):
        source([1], name="items", **options)
    assert not graph.nodes


@pytest.mark.parametrize("items", [{"a", "b"}, frozenset("ab")])
def test_items_without_an_order_are_refused(items: Any) -> None:
    """A set has another order in the next process, so a source could not go on where it was (contract D3)."""
    with Graph() as graph, pytest.raises(InvalidTypeError, match="order"):
        source(items, name="items")
    assert not graph.nodes


async def coroutine_of_items() -> list[int]:
    """A coroutine function: what it returns has to be awaited first."""
    return [1]


def test_items_that_are_a_node_or_a_coroutine_function_are_refused() -> None:
    """A source reads items itself: a node of them, or a coroutine function, is a TypeError that says so."""
    with Graph() as graph:
        node = placeholder("x")
        bad: list[Any] = [node, coroutine_of_items]
        for items in bad:
            with pytest.raises(InvalidTypeError, match="items"):
                source(items, name="items")
    assert set(graph.nodes) == {"x"}


async def test_a_function_that_gives_no_iterable_is_told_at_the_first_item() -> None:
    """A function of items must return an iterable or async iterable; the error names the source."""
    with Graph() as graph:
        items = source(lambda: 3, name="my_items")  # type: ignore[arg-type, return-value, var-annotated]
    async with Session(graph) as raw:
        with pytest.raises(TypeError, match="my_items"):
            await raw.run(items)


async def test_the_state_of_something_else_cannot_be_asked_for() -> None:
    """`source_state` takes a source of the session's graph, by name or not, and no other node."""
    with Graph():
        foreign = source([1], name="letters")
    with Graph() as graph:
        source([1], name="letters")
        node = placeholder("x")
    async with monitored(graph) as session:
        with pytest.raises(InvalidArgumentError, match="letters"):
            session.source_state(foreign)
        with pytest.raises(NotFoundError, match="x"):
            session.source_state(node)
        with pytest.raises(NotFoundError, match="did you mean 'letters'"):
            session.source_state("leters")


# Runs


async def test_what_no_run_can_take_is_refused() -> None:
    """Bad feeds, options and metadata are refused by name before anything is evaluated."""
    evaluated: list[int] = []
    with Graph() as graph:
        x = placeholder("x")
        node = op(evaluated.append)(1)
    async with Session(graph) as raw:
        cases: list[tuple[dict[str, Any], str]] = [
            ({"feed_dict": {"x": 1, x: 2}}, "x"),
            ({"feed_dict": [("x", 1)]}, "feed"),
            ({"feed_dict": {x: node}}, "feed a value"),
            ({"options": {"timeout": 1}}, "options"),
            ({"run_metadata": {}}, "run_metadata"),
        ]
        for kwargs, word in cases:
            with pytest.raises(InvalidArgumentError, match=word):
                await raw.run(node, **kwargs)
    assert evaluated == []


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"timeout": 0}, "timeout"),
        ({"timeout": -1}, "timeout"),
        ({"timeout": float("nan")}, "timeout"),
        ({"timeout": "1"}, "timeout"),
        ({"concurrency": 0}, "concurrency"),
        ({"concurrency": 1.5}, "concurrency"),
        ({"concurrency": "1"}, "concurrency"),
    ],
)
def test_run_options_that_cannot_be_are_refused(options: dict[str, Any], word: str) -> None:
    """A limit that nothing could keep, or that is no number, is an InvalidArgumentError where it is made."""
    with pytest.raises(InvalidArgumentError, match=word):
        RunOptions(**options)


async def test_a_coroutine_function_to_fetch_has_no_parameters() -> None:
    """A fetched coroutine function that needs arguments is refused, with the way to give them."""
    evaluated: list[int] = []

    async def wants(value: int) -> int:
        evaluated.append(value)
        return value

    graph = Graph()
    async with Session(graph) as raw:
        with pytest.raises(InvalidTypeError, match="wants"):
            await raw.run([wants])
    assert evaluated == []


async def test_a_class_is_no_fetch() -> None:
    """An object with an async `__call__` can be fetched, its class cannot."""

    class Fetch:
        async def __call__(self) -> int:
            return 1

    async with Session(Graph()) as raw:
        assert await raw.run(Fetch()) == 1
        with pytest.raises(InvalidTypeError, match="type"):
            await raw.run(Fetch)


async def test_a_coroutine_or_a_call_of_an_op_is_told_what_to_write() -> None:
    """A coroutine object or an uncalled op in the fetches is refused by its name."""

    async def job() -> None:
        """Not meant to be called by the user."""

    graph = Graph()
    coroutine = job()
    async with Session(graph) as raw:
        with pytest.raises(InvalidTypeError, match="coroutine"):
            await raw.run(coroutine)
        with pytest.raises(InvalidTypeError, match="tokenize"):
            await raw.run(tokenize)
    coroutine.close()


# Sessions


@pytest.mark.parametrize("hook", [object(), SessionRunHook, None, "hook"])
@pytest.mark.parametrize("singular", [False, True])
def test_a_hook_is_a_session_run_hook(hook: Any, singular: bool) -> None:
    """Something else in `hooks` is a TypeError when the session is made."""
    with pytest.raises(TypeError, match="SessionRunHook"):
        if singular:
            SingularMonitoredSession([hook], graph=Graph())
        else:
            monitored(Graph(), hook)


@pytest.mark.parametrize(
    "point", ["begin", "before_run", "before_commit", "after_run", "on_run_error", "end"]
)
def test_the_methods_of_a_hook_are_async(point: str) -> None:
    """A hook whose method forgot its `async` is a TypeError when the session is made, not in a step."""

    def forgot(self: Any, *args: Any) -> None:
        """A method that is not async."""

    hook = type("Forgetful", (SessionRunHook,), {point: forgot})()
    with pytest.raises(InvalidTypeError, match=f"Forgetful.{point}"):
        monitored(Graph(), hook)


def test_hooks_are_a_list_of_hooks() -> None:
    """A bare hook instead of a list of them is a TypeError too."""
    with pytest.raises(TypeError, match="hooks"):
        MonitoredSession(ChiefSessionCreator(graph=Graph()), SessionRunHook())  # type: ignore[arg-type]


def test_a_hook_is_listed_once() -> None:
    """One hook twice in the list would be told of every step twice."""
    hook = SignalHook()
    with pytest.raises(InvalidArgumentError, match="SignalHook"):
        monitored(Graph(), hook, SignalHook(), hook)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"stop_grace_period": -1.0}, "stop_grace_period"),
        ({"recovery": 3}, "recovery"),
        ({"task_group": 3}, "task_group"),
    ],
)
def test_a_session_option_that_cannot_be_is_refused(options: dict[str, Any], word: str) -> None:
    """A wrong option is refused by name when the session is made."""
    with pytest.raises(InvalidArgumentError, match=word):
        monitored(Graph(), **options)


def test_a_session_creator_makes_sessions() -> None:
    """Something else for a creator is a TypeError when the session is made."""
    with pytest.raises(TypeError, match="SessionCreator"):
        MonitoredSession(Graph())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"max_attempts": 0}, "max_attempts"),
        ({"wait_initial": -1.0}, "wait_initial"),
        ({"wait_max": -1.0}, "wait_max"),
        ({"jitter": -0.1}, "jitter"),
        ({"restore": "sometimes"}, "restore"),
        ({"on": ("AbortedError",)}, "on"),
        ({"on": (KeyboardInterrupt,)}, "on"),
    ],
)
def test_a_recovery_that_cannot_be_is_refused(arguments: dict[str, Any], word: str) -> None:
    """A wrong part of a recovery policy is refused by name where it is made."""
    with pytest.raises(InvalidArgumentError, match=word):
        Recovery(**arguments)


async def no_argument() -> None:
    """A step function that forgot its context."""


def not_async(ctx: StepContext) -> None:
    """A step function that forgot to be async."""


async def one_argument(ctx: StepContext) -> None:
    """A proper step function of no further argument."""


@pytest.mark.parametrize("way", ["run_step_fn", "loop"])
@pytest.mark.parametrize("step", [no_argument, not_async, 3, None])
async def test_a_step_function_is_async_and_takes_a_context(way: str, step: Any) -> None:
    """A step function that is not async, or takes no argument, is a TypeError that says so; nothing runs."""
    async with monitored(Graph()) as session:
        with pytest.raises(InvalidTypeError, match="step"):
            await getattr(session, way)(step)
        assert session.should_stop() is False


@pytest.mark.parametrize("way", ["run_step_fn", "loop"])
async def test_the_further_arguments_of_a_step_function_must_fit(way: str) -> None:
    """Arguments that the step function does not take are refused before it is called."""
    async with monitored(Graph()) as session:
        with pytest.raises(InvalidTypeError, match="one_argument"):
            await getattr(session, way)(one_argument, 1, 2)
        assert session.should_stop() is False


@pytest.mark.parametrize("workers", [0, -1, 1.5, "many", None, True])
async def test_a_loop_has_workers(workers: Any) -> None:
    """`workers` is a positive whole number."""
    async with monitored(Graph()) as session:
        with pytest.raises(InvalidArgumentError, match="workers"):
            await session.loop(one_argument, workers=workers)
        assert session.should_stop() is False


async def uses(session: Any, hook: SessionRunHook) -> list[Callable[[], Awaitable[object]]]:
    """All that can be awaited of a session."""

    async def fetch() -> int:
        return 1

    async def loop() -> None:
        await session.loop(one_argument)

    async def request_stop() -> None:
        session.request_stop()

    return [
        lambda: session.run(fetch),
        lambda: session.run(fetch, hooks=[]),
        lambda: session.run_without_hooks(fetch),
        lambda: session.run_step_fn(one_argument),
        loop,
    ]


@pytest.mark.parametrize("singular", [False, True])
async def test_a_session_is_used_while_it_is_open(singular: bool) -> None:
    """Use before opening and after closing is SessionClosedError, and says which."""
    graph = Graph()
    session: Any = SingularMonitoredSession(graph=graph) if singular else monitored(graph)
    for use in await uses(session, SessionRunHook()):
        with pytest.raises(SessionClosedError, match="not been opened"):
            await use()
    assert session.should_stop() is False
    async with session:
        pass
    for use in await uses(session, SessionRunHook()):
        with pytest.raises(SessionClosedError, match="closed"):
            await use()
    assert session.should_stop() is True
    with pytest.raises(SessionClosedError):
        async with session:
            pytest.fail("a session is opened once")


async def test_a_raw_session_is_used_while_it_is_open() -> None:
    """The raw session says the same of itself."""

    async def fetch() -> int:
        return 1

    raw = Session(Graph())
    with pytest.raises(SessionClosedError, match="not been opened"):
        await raw.run(fetch)
    async with raw:
        assert await raw.run(fetch) == 1
    with pytest.raises(SessionClosedError, match="closed"):
        await raw.run(fetch)
    with pytest.raises(SessionClosedError):
        async with raw:
            pytest.fail("a session is opened once")
    await raw.aclose()


def test_a_stop_is_made_by_sessions_only() -> None:
    """StopRequested cannot be made or subclassed by users."""
    with pytest.raises(TypeError, match="request_stop"):
        StopRequested()
    with pytest.raises(TypeError, match="final"):
        type("MyStop", (StopRequested,), {})
