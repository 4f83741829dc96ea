"""The step and the graphs of the benchmarks, as other people's programs do them.

Each function makes what is timed. It imports its program, whose types are not known here, when it is called.
"""

from __future__ import annotations

import contextlib
import logging
import operator
import os
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Annotated, Any, TypedDict

from benchmarks.graphs import Dag
from benchmarks.measure import Timed

PLAIN: dict[int, Callable[..., int]] = {1: lambda value: value + 1, 2: operator.add}

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow tells about its build when it is imported


def ignite(steps: int, hooks: int) -> Timed:
    """An epoch of pytorch-ignite's Engine; handlers of the events before and after an iteration."""
    engines: Any = import_module("ignite.engine")
    engine = engines.Engine(lambda engine, batch: 1)
    for _ in range(hooks):
        engine.add_event_handler(engines.Events.ITERATION_STARTED, lambda engine: None)
        engine.add_event_handler(engines.Events.ITERATION_COMPLETED, lambda engine: None)

    async def stepped() -> None:
        engine.run(range(steps), max_epochs=1)

    return stepped


def burr(steps: int, hooks: int) -> Timed:
    """An action of Burr that follows itself."""
    core: Any = import_module("burr.core")
    lifecycle: Any = import_module("burr.lifecycle")

    def before(self: object, **told: object) -> None:
        return None

    def after(self: object, **told: object) -> None:
        return None

    hook = type(
        "Hook",
        (lifecycle.PreRunStepHook, lifecycle.PostRunStepHook),
        {"pre_run_step": before, "post_run_step": after},
    )
    act = core.action(reads=[], writes=["value"])(lambda state: state.update(value=1))
    built = (
        core.ApplicationBuilder()
        .with_actions(act=act)
        .with_transitions(("act", "act"))
        .with_entrypoint("act")
        .with_hooks(*[hook() for _ in range(hooks)])
        .build()
    )

    async def stepped() -> None:
        for _ in range(steps):
            built.step()

    return stepped


def dask(steps: int, hooks: int) -> Timed:
    """A graph of one task, got from dask's scheduler in this thread."""
    get: Any = import_module("dask").get
    task: Any = import_module("dask.task_spec").Task
    callback: Any = import_module("dask.callbacks").Callback
    callbacks = [
        callback(
            pretask=lambda key, graph, state: None, posttask=lambda key, result, graph, state, worker: None
        )
        for _ in range(hooks)
    ]
    graph = {"one": task("one", lambda: 1)}

    async def stepped() -> None:
        with contextlib.ExitStack() as entered:
            for each in callbacks:
                entered.enter_context(each)
            for _ in range(steps):
                get(graph, "one")

    return stepped


def dask_graph(dag: Dag) -> Timed:
    """Tasks that need no conversion, got from dask's scheduler in this thread."""
    get: Any = import_module("dask").get
    spec: Any = import_module("dask.task_spec")
    graph = {at: spec.DataNode(at, value) for at, value in enumerate(dag.start)}
    for at, inputs in enumerate(dag.inputs, len(dag.start)):
        graph[at] = spec.Task(at, PLAIN[len(inputs)], *map(spec.TaskRef, inputs))

    async def evaluated() -> None:
        get(graph, dag.needed)

    return evaluated


def hamilton(steps: int, hooks: int) -> Timed:
    """A function of Hamilton's asynchronous driver; adapters around a node."""
    lifecycle: Any = import_module("hamilton.lifecycle.base")

    async def before(self: object, **told: object) -> None:
        return None

    async def after(self: object, **told: object) -> None:
        return None

    hook = type(
        "Hook",
        (lifecycle.BasePreNodeExecuteAsync, lifecycle.BasePostNodeExecuteAsync),
        {"pre_node_execute": before, "post_node_execute": after},
    )
    driver = _hamilton_driver("async def one() -> int:\n    return 1\n", *[hook() for _ in range(hooks)])

    async def stepped() -> None:
        for _ in range(steps):
            await driver.execute(["one"])

    return stepped


def hamilton_graph(dag: Dag) -> Timed:
    """Hamilton finds the inputs of a function by the names of its parameters: so there is a function for each node."""
    source = []
    for at, inputs in enumerate(dag.inputs, len(dag.start)):
        names = [f"x{place}" for place in inputs]
        parameters = ", ".join(f"{name}: int" for name in dict.fromkeys(names))
        source.append(f"async def x{at}({parameters}) -> int:\n    return {' + '.join([*names, '1'][:2])}\n")
    driver = _hamilton_driver("".join(source))
    names = [f"x{at}" for at in dag.needed]
    fed = {f"x{at}": value for at, value in enumerate(dag.start)}

    async def evaluated() -> None:
        with _deep():
            await driver.execute(names, inputs=fed)

    return evaluated


def _hamilton_driver(source: str, *hooks: object) -> Any:
    drivers: Any = import_module("hamilton.async_driver")
    functions: dict[str, Callable[..., Any]] = {}
    exec(source, {"__name__": __name__}, functions)
    module = import_module("hamilton.ad_hoc_utils").create_temporary_module(*functions.values())
    with _deep():
        return drivers.Builder().with_modules(module).with_adapters(*hooks).build_without_init()


@contextlib.contextmanager
def _deep() -> Iterator[None]:
    """Room for Hamilton, which walks its graph by recursion."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(100_000)
    try:
        yield
    finally:
        sys.setrecursionlimit(limit)


class _State(TypedDict):
    value: int


def langgraph(steps: int, hooks: int) -> Timed:
    """A graph of one node of LangGraph; callbacks around the run and the node."""
    graphs: Any = import_module("langgraph.graph")
    callbacks: Any = import_module("langchain_core.callbacks")

    async def one(state: object) -> dict[str, int]:
        return {"value": 1}

    async def told(self: object, *values: object, **more: object) -> None:
        return None

    handler = type(
        "Handler", (callbacks.AsyncCallbackHandler,), {"on_chain_start": told, "on_chain_end": told}
    )
    graph = graphs.StateGraph(_State)
    graph.add_node("one", one)
    graph.add_edge(graphs.START, "one")
    graph.add_edge("one", graphs.END)
    compiled = graph.compile()
    options = {"callbacks": [handler() for _ in range(hooks)]}

    async def stepped() -> None:
        for _ in range(steps):
            await compiled.ainvoke({"value": 0}, options)

    return stepped


def _merged(values: dict[int, int], more: dict[int, int]) -> dict[int, int]:
    values.update(more)  # in place: a copy for each node would be all that is measured
    return values


def langgraph_graph(dag: Dag) -> Timed:
    """All values are in one channel, which is the cheapest for LangGraph."""
    graphs: Any = import_module("langgraph.graph")
    graph = graphs.StateGraph(Annotated[dict[int, int], _merged])
    fed = len(dag.start)

    def node(at: int, inputs: tuple[int, ...]) -> Callable[[dict[int, int]], Any]:
        async def evaluated(values: dict[int, int]) -> dict[int, int]:
            return {at: PLAIN[len(inputs)](*[values[place] for place in inputs])}

        return evaluated

    for at, inputs in enumerate(dag.inputs, fed):
        graph.add_node(str(at), node(at, inputs))
        before = [str(place) for place in dict.fromkeys(inputs) if place >= fed]
        graph.add_edge(before if len(before) > 1 else before[0] if before else graphs.START, str(at))
    compiled = graph.compile()

    async def evaluated() -> None:
        await compiled.ainvoke(dict(enumerate(dag.start)), {"recursion_limit": 10_000})

    return evaluated


def _tensorflow() -> Any:
    logging.getLogger("tensorflow").setLevel(logging.ERROR)  # a MonitoredSession tells how it was made
    return import_module("tensorflow").compat.v1


def monitored_session(steps: int, hooks: int) -> Timed:
    """A constant, run in the MonitoredSession of TensorFlow 1."""
    tf = _tensorflow()

    def told(self: object, *values: object) -> None:
        return None

    hook = type("Hook", (tf.train.SessionRunHook,), {"before_run": told, "after_run": told})
    with tf.Graph().as_default():
        one = tf.constant(1)
        session = tf.train.MonitoredSession(hooks=[hook() for _ in range(hooks)])

    async def stepped() -> None:
        for _ in range(steps):
            session.run(one)

    return stepped


def tensorflow_graph(dag: Dag) -> Timed:
    """TensorFlow's executor, which is in C++; it must not fold the graph into a constant beforehand."""
    tf = _tensorflow()
    options = tf.ConfigProto()
    options.graph_options.optimizer_options.opt_level = -1
    options.graph_options.rewrite_options.disable_meta_optimizer = True
    with tf.Graph().as_default() as graph:
        places = [tf.placeholder(tf.int32, []) for _ in dag.start]
        nodes = list(places)
        for inputs in dag.inputs:
            nodes.append(nodes[inputs[0]] + (nodes[inputs[1]] if len(inputs) > 1 else 1))
        fetched = tf.group(*[nodes[at] for at in dag.needed])
    session = tf.Session(graph=graph, config=options)
    fed = dict(zip(places, dag.start, strict=True))

    async def evaluated() -> None:
        session.run(fetched, fed)

    return evaluated
