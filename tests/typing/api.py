"""What a type checker sees of the public API: checked by mypy --strict and by pyright, never run.

Each function is a small program; `assert_type` says what its author may rely on.
"""

from __future__ import annotations

import operator
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any, assert_type

import anyio.lowlevel
from opentelemetry.metrics import get_meter_provider
from opentelemetry.trace import get_tracer_provider
from prometheus_client import CollectorRegistry

import asyncstep
from asyncstep import (
    ALL,
    ChiefSessionCreator,
    Coordinator,
    Graph,
    MonitoredSession,
    MonitoredTrainingSession,
    Node,
    Recovery,
    RunMetadata,
    RunOptions,
    Session,
    SessionRunArgs,
    SessionRunContext,
    SessionRunHook,
    SessionRunValues,
    SingularMonitoredSession,
    StepContext,
    StopKind,
    StopReason,
    Variable,
    WorkerSessionCreator,
    errors,
    get_or_create_global_step,
    group,
    op,
    placeholder,
    source,
)
from asyncstep.data import Queue, Source, SourceState, queue
from asyncstep.distributed import TaskInfo, alaunch, launch
from asyncstep.hooks import (
    EarlyStoppingHook,
    EvaluatorHook,
    FeedFnHook,
    FinalOpsHook,
    GlobalStepWaiterHook,
    LoggingHook,
    NanHook,
    OpenTelemetryHook,
    ProfilerHook,
    ProgressHook,
    PrometheusHook,
    SecondOrStepTimer,
    SignalHook,
    StepCounterHook,
    StopAtStepHook,
    SummarySaverHook,
    ThreadHook,
    TraceHook,
    on_step,
)
from asyncstep.summary import (
    EventFileWriter,
    Histogram,
    Image,
    JSONLinesWriter,
    Scalar,
    Summary,
    SummaryWriter,
    Text,
    histogram,
    image,
    merge_all,
    scalar,
    text,
)


@op
async def tokenize(line: str, lower: bool = False) -> list[str]:
    """An op as a bare decorator makes it."""
    await anyio.lowlevel.checkpoint()
    return (line.lower() if lower else line).split()


@op(offload="thread", retry=3, timeout=1.5, limiter=None)
def length(words: list[str]) -> int:
    """A plain function, with options."""
    return len(words)


def nodes_have_the_type_of_their_value() -> None:
    """Calling an op gives a node of what the function returns."""
    words = tokenize("a line", lower=True)
    assert_type(words, Node[list[str]])
    assert_type(length(words), Node[int])
    assert_type(words.after(length(words)), Node[list[str]])
    assert_type(group(words, length(words), name="both"), Node[None])
    assert_type(words.name, str)
    assert_type(words.graph, Graph)
    assert_type(words.graph.to_mermaid(fetches=[words, "name"], feeds={words: 1}), str)
    fed: Node[Any] = placeholder("fed", default=3)
    length(fed)


def variables_keep_their_type() -> None:
    """A variable has the type of its initial value; an update gives the new one."""
    lines = Variable(0, name="lines")
    assert_type(lines, Variable[int])
    names = Variable(lambda: {"a": 1}, name="names")
    assert_type(names, Variable[dict[str, int]])
    assert_type(lines.assign(3), Node[int])
    assert_type(lines.assign(length(["a"])), Node[int])
    assert_type(lines.update(operator.add, 1), Node[int])
    assert_type(lines.update(add, length(["a"])), Node[int])
    lines.assign_add(1)
    assert_type(get_or_create_global_step(), Variable[int])


def add(current: int, more: int) -> int:
    """A function for `update`."""
    return current + more


def numbers() -> Iterator[int]:
    """A source's function that gives an iterable."""
    yield 1


async def lines() -> AsyncIterator[str]:
    """A source's function that gives an async iterable."""
    await anyio.lowlevel.checkpoint()
    yield "a line"


def sources_have_the_type_of_an_item() -> None:
    """A source is a node of its items, or of lists of them."""
    assert_type(source([1, 2], name="list"), Source[int])
    assert_type(source(numbers, name="function"), Source[int])
    assert_type(source(lines, name="async function", repeat=None), Source[str])
    assert_type(source(["a"], name="batched", batch=2, drop_remainder=True), Source[list[str]])
    tokenize(source(["a"], name="feeds an op"))


def queues_have_the_type_of_an_item() -> None:
    """A queue is a node of its items, or of lists of them; what is put are items."""
    frontier = queue(["a line"], name="frontier", unique=str.lower)
    assert_type(frontier, Queue[str, str])
    tokenize(frontier)
    assert_type(frontier.put(tokenize(frontier)), Node[None])
    frontier.put(["another line", op(str)("a node")])
    assert_type(frontier.size(), Node[int])
    assert_type(queue([1], name="batched", batch=2), Queue[list[int], int])


async def a_raw_run_has_the_type_of_its_fetch(graph: Graph) -> None:
    """`run` gives what was asked for: a node's value, or the same nesting of values."""
    words = tokenize("a line")
    count = length(words)
    async with Session(graph) as session:
        assert_type(session, Session)
        assert_type(await session.run(count), int)
        assert_type(await session.run(Variable(1.5, name="v")), float)
        assert_type(await session.run((words, count)), tuple[list[str], int])
        assert_type(await session.run([count, count]), list[int])
        assert_type(await session.run({"count": count}), dict[str, int])
        assert_type(await session.run(fetched), str)
        assert_type(await session.run("count"), Any)
        assert_type(await session.run({"deep": [words, (count, "name")]}), Any)
        assert_type(
            await session.run(count, {words: ["a"], "other": 3}, options=RunOptions(timeout=3.0)), int
        )
        assert_type(session.graph, Graph)
        assert_type(session.intact, bool)


async def fetched() -> str:
    """A coroutine function as a fetch."""
    await anyio.lowlevel.checkpoint()
    return "fetched"


async def step(ctx: StepContext, node: Node[int], limit: int) -> str:
    """A step function with arguments of its own."""
    value = await ctx.run_with_hooks(node)
    assert_type(value, int)
    assert_type(await ctx.session.run(node), int)
    assert_type(ctx.should_stop(), bool)
    assert_type(ctx.attempt, int)
    assert_type(ctx.worker, int)
    if value > limit:
        ctx.request_stop("far enough")
    return str(value)


async def a_monitored_session(graph: Graph, node: Node[int]) -> None:
    """The session that most programs use."""
    hooks: Sequence[SessionRunHook] = [Recorder(), StopAtStepHook(last_step=3)]
    async with (
        anyio.create_task_group() as background,
        MonitoredSession(
            ChiefSessionCreator(graph=graph),
            hooks,
            stop_grace_period=3.0,
            recovery=Recovery((errors.AbortedError, ConnectionError), restore="always", max_attempts=3),
            task_group=background,
        ) as session,
    ):
        assert_type(session, MonitoredSession)
        metadata = RunMetadata()
        assert_type(await session.run(node, run_metadata=metadata), int)
        assert_type(metadata.node_timings, dict[str, tuple[float, float]])
        assert_type(metadata.trace_events(), list[dict[str, Any]])
        await metadata.save_trace("trace.json")
        assert_type(await session.run((node, tokenize("a"))), tuple[int, list[str]])
        assert_type(await session.run({"a": node}, {"b": 2}, hooks=ALL), dict[str, int])
        assert_type(await session.run([node], hooks=[hooks[0]]), list[int])
        assert_type(await session.run_without_hooks(node), int)
        assert_type(await session.run_step_fn(step, node, 3), str)
        await session.loop(step, node, 3, workers=8)
        session.request_stop()
        session.request_stop("enough")
        assert_type(session.should_stop(), bool)
        assert_type(session.stop_reason, StopReason | None)
        if session.stop_reason is not None:
            assert_type(session.stop_reason.kind, StopKind)
            assert_type(session.stop_reason.message, str)
        assert_type(session.global_step, int)
        assert_type(session.recoveries, int)
        items = source([1], name="items")
        assert_type(session.source_state(items), SourceState)
        assert_type(session.source_state(items).position, int)
        assert_type(session.source_state(items).pending, tuple[int, ...])
        assert_type(session.source_state(items).parked, tuple[int, ...])
        await session.aclose()


async def a_singular_session() -> None:
    """The session that never recovers shows its raw session."""
    async with SingularMonitoredSession([SignalHook()]) as session:
        assert_type(session, SingularMonitoredSession)
        assert_type(session.raw_session, Session)


class Recorder(SessionRunHook):
    """A hook that overrides every point."""

    async def begin(self) -> None:
        assert_type(asyncstep.get_default_graph(), Graph)

    async def after_create_session(self, session: Session, coord: Coordinator) -> None:
        coord.start_soon(self.watch, coord, name="watch")
        coord.every(1.0, self.tick, 3)

    async def watch(self, coord: Coordinator) -> None:
        """A background task."""
        async with coord.stop_on_exception():
            await coord.wait_for_stop()

    async def tick(self, times: int) -> None:
        """A periodic task."""
        assert_type(times, int)

    async def before_run(self, run_context: SessionRunContext) -> SessionRunArgs | None:
        assert_type(run_context.session, Session)
        assert_type(run_context.stop_requested, bool)
        return SessionRunArgs({"loss": "loss"}, {"fed": 3}, RunOptions(trace=True))

    async def before_commit(self, run_context: SessionRunContext, run_values: SessionRunValues) -> None:
        assert_type(run_values.global_step, int | None)

    async def after_run(self, run_context: SessionRunContext, run_values: SessionRunValues) -> None:
        if run_values.results["loss"] < 0.1:
            run_context.request_stop("converged")

    async def on_run_error(self, run_context: SessionRunContext, error: BaseException) -> None:
        assert_type(run_context.attempt, int)

    async def end(self, session: Session) -> None:
        await session.run("loss")

    async def on_session_error(self, session: Session, error: BaseException) -> None:
        assert_type(error, BaseException)


def stock_hooks(node: Node[float]) -> list[SessionRunHook]:
    """Every stock hook with the arguments that it is made for."""
    timer = SecondOrStepTimer(every_secs=1.5)
    assert_type(timer.should_trigger_for_step(1), bool)
    assert_type(timer.last_triggered_step(), int | None)
    final = FinalOpsHook({"node": node})
    final.final_ops_values  # noqa: B018  (that it exists)
    return [
        StopAtStepHook(num_steps=3),
        StopAtStepHook(last_step=3),
        LoggingHook({"node": node}, every_n_steps=3),
        LoggingHook([node], every_n_secs=0.5, at_end=True, formatter=str),
        NanHook(node, fail=False),
        StepCounterHook(every_n_steps=10),
        GlobalStepWaiterHook(100, timeout=3.0),
        FeedFnHook(lambda: {"fed": 3}),
        SignalHook(),
        ProfilerHook(save_steps=100, save_secs=60.0, output_dir="traces"),
        TraceHook("trace.json"),
        final,
        EvaluatorHook({"loss": node}, every_n_steps=3, feed_dict={"fed": 3}, on_result=told),
        EvaluatorHook(node, at_saves=True),
        EarlyStoppingHook("eval/loss", patience=3, min_delta=0.1, mode="max", smoothing=0.5),
        ProgressHook(),
        ProgressHook(1000, values=[node]),
        OpenTelemetryHook(),
        OpenTelemetryHook(
            tracer_provider=get_tracer_provider(), meter_provider=get_meter_provider(), node_spans=True
        ),
        PrometheusHook(),
        PrometheusHook(registry=CollectorRegistry(), prefix="job"),
        ThreadHook(Blocking()),
        on_step(print, every_steps=100),
        on_step(told, {"node": node}, every_secs=1.5),
    ]


async def program(task: TaskInfo) -> int:
    """What runs on each worker of a cluster."""
    assert_type(task.index, int)
    assert_type(task.is_chief, bool)
    creator = WorkerSessionCreator(master=task.master, max_wait=60)
    async with MonitoredSession(creator) as session:
        assert_type(session, MonitoredSession)
    async with MonitoredTrainingSession(task.master, is_chief=task.is_chief) as session:
        assert_type(session, MonitoredSession)
    return task.num_workers


async def launches(client: Any) -> None:
    """The same program on many workers, here and elsewhere."""
    assert_type(launch(program, workers=2), list[int])
    assert_type(launch(program, "tcp://scheduler:8786", workers=8, backend="trio", timeout=60), list[int])
    assert_type(await alaunch(program, client, workers=2), list[int])


async def told(step: int, result: object) -> None:
    """An async function of a step and its values."""


class Blocking:
    """A hook of plain functions."""

    def after_run(self, run_context: SessionRunContext, run_values: SessionRunValues) -> None:
        """Block."""


def summaries(loss: Node[float], words: Node[str], weights: Node[Any]) -> list[SessionRunHook]:
    """Nodes of summaries, writers, and the hooks that write."""
    assert_type(scalar("loss", loss), Node[Scalar])
    assert_type(histogram("weights", weights, bins=10), Node[Histogram])
    assert_type(text("words", words), Node[Text])
    assert_type(image("face", weights), Node[Image])
    merged = merge_all()
    assert_type(merged, tuple[Node[Summary], ...] | None)
    writer: SummaryWriter = EventFileWriter("logs", flush_secs=3.0, on_error="raise")
    with JSONLinesWriter("logs") as lines:
        assert_type(lines, JSONLinesWriter)
        lines.add_scalar("loss", 0.5, 3, wall_time=1.5)
        lines.add_histogram("weights", [1.0], 3, bins=2)
    return [
        SummarySaverHook(merged or (), save_steps=10, output_dir="logs"),
        SummarySaverHook({"loss": loss}, save_secs=0.5, writer=writer),
        SummarySaverHook(loss, save_secs=0.5, writer=lines),
        StepCounterHook(output_dir="logs"),
        StepCounterHook(writer=writer),
    ]


def errors_are_also_pythons() -> list[type[Exception]]:
    """An error can be caught by the name that Python has for it."""
    lookup: type[LookupError] = errors.NotFoundError
    value: type[ValueError] = errors.InvalidArgumentError
    timeout: type[TimeoutError] = errors.DeadlineExceededError
    runtime: type[RuntimeError] = errors.SessionClosedError
    stop: type[BaseException] = errors.StopRequested
    assert not issubclass(stop, Exception)
    return [lookup, value, timeout, runtime]
