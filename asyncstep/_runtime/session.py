"""Session: the raw session. It evaluates and commits, and knows no hooks."""

from __future__ import annotations

from contextlib import nullcontext
from inspect import CO_COROUTINE
from types import FunctionType
from typing import TYPE_CHECKING, Any, Self

import anyio

from asyncstep._graph.graph import Graph, close_matches, get_default_graph
from asyncstep._graph.node import Node
from asyncstep._runtime.executor import evaluate, raise_together
from asyncstep._runtime.feeds import Feeds, add_feeds
from asyncstep._runtime.fetches import Flattening, Leaf, ad_hoc, foreign
from asyncstep._runtime.options import RunMetadata, RunOptions, check_options, deadline
from asyncstep._runtime.pace import Pace
from asyncstep._runtime.plan import Plan, Step
from asyncstep._runtime.snapshot import put_back, take
from asyncstep._runtime.state import LocalStateStore, StateStore, SupersededError
from asyncstep._runtime.trace import RUN, active, recorded, traced
from asyncstep._runtime.transaction import Fate, Transaction, current, enclosing, in_step, live
from asyncstep._runtime.typed import typed_run
from asyncstep.errors import (
    FailedPreconditionError,
    InvalidTypeError,
    NotFoundError,
    OutOfRangeError,
    SessionClosedError,
    kind_of,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
    from contextlib import AbstractContextManager
    from types import TracebackType

    from asyncstep._runtime.snapshot import Snapshot
    from asyncstep._runtime.state import SourceState

MOST_PLANS = 512
CALLERS_FEEDS = "the caller's feed_dict"


class Request:
    """What one run evaluates: a plan, the fed values, and how each asker gets its part.

    Attributes:
        plan: compiled, from the session's cache.
        fed: the values of the plan's fed nodes.
        functions: the fetched coroutine functions.
        parts: one function for each asker; each takes its values from an iterator, in turn.
        sole: the plan's sole step, if its value is the result.
    """

    __slots__ = ("_slot", "fed", "functions", "parts", "plan", "sole")

    def __init__(
        self,
        plan: Plan,
        fed: Iterable[Any] = (),
        functions: Sequence[Callable[[], Awaitable[Any]]] = (),
        parts: Sequence[Callable[[Iterator[Any]], Any]] = (next,),
    ) -> None:
        self.plan: Plan = plan
        self.fed: Iterable[Any] = fed
        self.functions: Sequence[Callable[[], Awaitable[Any]]] = functions
        self.parts: Sequence[Callable[[Iterator[Any]], Any]] = parts
        self._slot = plan.outputs[0] if parts == (next,) else None
        self.sole: Step | None = None if self._slot is None else plan.sole

    def result(self, values: list[Any]) -> Any:
        """What the first asker gets."""
        return self.results(values)[0] if self._slot is None else values[self._slot]

    def results(self, values: list[Any]) -> list[Any]:
        """What each asker gets."""
        outputs = iter([values[slot] for slot in self.plan.outputs])
        return [part(outputs) for part in self.parts]


class Session:
    """A raw session: evaluates fetches against its own state, without hooks (TensorFlow: ``tf.Session``).

    It is opened by ``async with``, once; opening makes the variables. Each run is a transaction of its
    own, or, inside a step of a monitored session that this session belongs to, a part of that step.

    Args:
        graph: what to run; the default graph at the time of construction if None.
    """

    def __init__(self, graph: Graph | None = None) -> None:
        if graph is not None and not isinstance(graph, Graph):
            raise InvalidTypeError(f"graph must be a Graph, not {kind_of(graph)}")
        self._graph = graph or get_default_graph()
        self.store: StateStore = LocalStateStore()
        self._opened = False
        self._plans: dict[Any, Plan] = {}
        self._requests: dict[Node[Any], Request] = {}
        self._pace = Pace()
        self.company: Any = None  # the `Company` with which its state is shared, if it is

    @property
    def graph(self) -> Graph:
        """The graph that it runs."""
        return self._graph

    @property
    def intact(self) -> bool:
        """Whether the state is there: False once it is lost, or the session is closed."""
        return not self.store.closed

    async def __aenter__(self) -> Self:
        """Make the variables. Checkpoint: always."""
        if self._opened or self.store.closed:
            raise SessionClosedError("a session is opened once; make a new one")
        await anyio.lowlevel.checkpoint()
        self._pace.start()
        self.store.initialize(self._graph.variables.values())
        self._opened = True
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:  # noqa: ASYNC910 - it waits if a source's closing does
        """Close the session and its sources; idempotent. A closing that was cancelled is finished by the next.

        Checkpoint: if a source's closing is one.
        """
        await _close(self.store)

    def source_state(self, source: Node[Any] | str) -> SourceState:
        """How far a source is: its low-water mark, what is pending, what is parked."""
        if isinstance(source, Node) and source.graph is not self._graph:
            raise foreign(source, self._graph)
        name = source.name if isinstance(source, Node) else source
        node = self._graph.sources.get(name)
        if node is None:
            raise NotFoundError(
                f"{self._graph.described} has no source named {name!r}{close_matches(name, self._graph.sources)}"
            )
        return self.store.reader(node).state()

    def incarnation(self) -> Session:
        """The raw session itself; a monitored session has one after the other."""
        return self

    def snapshot(self) -> Snapshot:
        """The whole state between two commits, as a checkpoint has it (contract K1). Never waits.

        Raises:
            SessionClosedError: the session is not open.
        """
        self.check_open()
        return take(self._graph, self._local_store("saved"))

    async def restore(self, snapshot: Snapshot, *, strict: bool = True) -> None:
        """Go back to a snapshot of a session of such a graph. Checkpoint: always.

        Steps that are under way, and items that they were given, belong to the former state: such a step can
        no longer commit; a session that recovers runs it again.

        Raises:
            SessionClosedError: the session is not open.
            FailedPreconditionError: it is called inside a step, which it would take back.
            NotFoundError: names of variables, sources or tracked objects are on one side only; with
                ``strict=False`` what both have is restored (contract K7).
            InvalidArgumentError: an array has another dtype or shape than the variable's initial one.
            Exception: what a tracked object or a hook raises that refuses its state; the variables and the
                sources then are as they were.
        """
        self.check_open()
        if in_step(self.store):
            raise FailedPreconditionError(
                "a restore inside a step would take back the step itself; restore between two steps"
            )
        await anyio.lowlevel.checkpoint()
        self.check_open()
        former = self._local_store("restored")
        self.store = put_back(self._graph, former, snapshot, strict=strict)
        former.superseded = True
        await _close(former)

    @typed_run
    async def run(
        self,
        fetches: Any,
        feed_dict: Any = None,
        *,
        options: RunOptions | None = None,
        run_metadata: RunMetadata | None = None,
    ) -> Any:
        """Evaluate `fetches` and commit what they change; return values in the same nesting.

        Args:
            fetches: a Node, its name, a coroutine function without parameters, or any nesting of list,
                tuple, named tuple, dict and dataclass of them.
            feed_dict: values by node or name, used in place of what the nodes would compute.
            options: see `RunOptions`.
            run_metadata: filled in.

        Raises:
            SessionClosedError: the session is not open.
            InvalidArgumentError, InvalidTypeError, NotFoundError: before anything is evaluated.
            Exception: what a node raises; nothing of the run is kept (contract T4).

        Checkpoint: always a cancel point; a schedule point at least once a millisecond.
        """
        self.check_open()
        await self._pace.keep()
        self.check_open()
        check_options(options, run_metadata)
        request = self.request_for(fetches, feed_dict)
        transaction = self.begin()
        before = current.get()
        current.set(transaction)
        try:
            with within(options):
                values = await self.evaluate(request, transaction, options, run_metadata)
            if transaction.parent is not None:
                transaction.merge(transaction.parent)
            elif transaction.store.remote:
                _, cancellation = await transaction.send()
                if cancellation is not None:
                    raise cancellation
            else:
                transaction.commit()
        except BaseException as error:
            ended = ends(error)
            transaction.roll_back(
                Fate.PARK if isinstance(error, Exception) and not ended else Fate.GIVE_AGAIN
            )
            parent = transaction.parent
            if ended and parent is not None and parent.owner is not None:
                parent.owner.data_ended(error)
            raise
        finally:
            current.set(before)
            if transaction.at_end is not None:
                transaction.over()
        return request.result(values)

    def _local_store(self, verb: str) -> LocalStateStore:
        if isinstance(self.store, LocalStateStore):
            return self.store
        raise FailedPreconditionError(
            f"the state of this session is with the chief, so it can be {verb} only there: in the program whose"
            " TaskInfo.is_chief is true, by chief_only_hooks for one"
        )

    # What follows is for the monitored session.

    @property
    def opened(self) -> bool:
        """Whether it was opened, even if it is closed by now."""
        return self._opened

    def check_open(self) -> None:
        """Raise SessionClosedError, saying whether it is not open yet or not any more."""
        if self._opened and not self.store.closed:
            return
        if self.store.superseded:
            raise SupersededError(
                "this raw session was replaced by a recovery; use ctx.session of the new attempt"
            )
        self.store.raise_loss()
        if self.store.closed:
            error = SessionClosedError("the session is closed")
        else:
            error = SessionClosedError("the session has not been opened; use `async with session:`")
        error.session = self
        raise error

    def begin(self) -> Transaction:
        """The transaction of a raw run: part of the step that is running, if it is one of this session."""
        parent = enclosing(self.store)
        return Transaction(parent.store if parent else self.store, parent, live(current.get()))

    def request_for(self, fetches: Any, feeds: Any) -> Request:
        """The request of one asker."""
        if feeds is None:
            if isinstance(fetches, Node):
                request = self._requests.get(fetches)
                return self._request_node(fetches) if request is None else request
            if (
                type(fetches) is FunctionType
                and fetches.__code__.co_flags & CO_COROUTINE
                and takes_nothing(fetches)
            ):
                marker = ad_hoc(0)
                plan = self._plans.get(marker) or self._compiled(marker, (marker,), ())
                return Request(plan, (), (fetches,))
        return self.request([fetches], [(feeds, CALLERS_FEEDS)])

    def _request_node(self, node: Node[Any]) -> Request:
        if node.graph is not self._graph:
            raise foreign(node, self._graph)
        request = Request(self._compiled(node, (node,), ()))
        if len(self._requests) >= MOST_PLANS:
            del self._requests[next(iter(self._requests))]
        self._requests[node] = request
        return request

    def request(self, fetches: Iterable[Any], feeds: Iterable[tuple[Any, str]]) -> Request:
        """The request for the fetches of several askers, and the feeds of several owners."""
        flat = Flattening(self._graph)
        parts = [flat.add(each) for each in fetches]
        fed: Feeds = {}
        owners: dict[Node[Any], str] = {}
        for given, owner in feeds:
            if given is not None:
                add_feeds(fed, owners, given, owner, self._graph)
        leaves, nodes = tuple(flat.leaves), tuple(fed)
        plan = self._plans.get((leaves, nodes)) or self._compiled((leaves, nodes), leaves, nodes)
        return Request(plan, fed.values(), flat.functions, parts)

    def _compiled(self, key: Any, leaves: tuple[Leaf, ...], fed: tuple[Node[Any], ...]) -> Plan:
        plan = Plan(leaves, fed)
        self.store.initialize(self._graph.variables.values())  # those that were added since the opening
        if len(self._plans) >= MOST_PLANS:
            del self._plans[next(iter(self._plans))]
        self._plans[key] = plan
        return plan

    async def evaluate(
        self,
        request: Request,
        transaction: Transaction,
        options: RunOptions | None,
        metadata: RunMetadata | None,
    ) -> list[Any]:
        """All values of a request's plan."""
        if transaction.store.remote:
            await transaction.store.prepare(request.plan, transaction)
        values = list(request.fed)
        if options is None and active.get() is None:
            return await evaluate(request.plan, values, request.functions, transaction)
        block: AbstractContextManager[object] = _nothing
        if metadata is not None and options is not None and options.trace and not metadata.is_recording:
            block = recorded("run", RUN, traces=(metadata.new_trace(),))
        elif transaction.owner is None:
            block = traced("run", RUN)  # a raw run, inside of what is recorded
        with block:
            return await evaluate(
                request.plan,
                values,
                request.functions,
                transaction,
                concurrency=None if options is None else options.concurrency,
                trace=active.get() is not None,
            )


async def _close(store: StateStore) -> None:  # noqa: ASYNC910 - it waits if a source's closing does
    """Close a store and its sources, which are asked again in case that an earlier closing was cancelled."""
    store.loss = None  # by now it is closed, whatever it was before
    store.close()
    errors: list[BaseException] = []
    cancellation: BaseException | None = None
    for reader in store.readers.values():
        try:
            await reader.aclose()
        except anyio.get_cancelled_exc_class() as error:  # noqa: ASYNC103 - raised when all are closed
            cancellation = error
        except BaseException as error:  # noqa: ASYNC103 - likewise
            errors.append(error)
    try:
        if errors:
            raise_together("several sources failed to close", errors)
        if cancellation is not None:
            raise cancellation
    finally:
        del errors, cancellation


_nothing = nullcontext()


def within(options: RunOptions | None) -> AbstractContextManager[object]:
    """The deadline that the options ask for."""
    return _nothing if options is None or options.timeout is None else deadline(options.timeout)


def takes_nothing(function: FunctionType) -> bool:
    """Whether a plain function can be called without arguments."""
    code = function.__code__
    return code.co_argcount == len(function.__defaults__ or ()) and code.co_kwonlyargcount == len(
        function.__kwdefaults__ or ()
    )


def ends(error: BaseException) -> bool:
    """Whether an error is nothing but the end of data."""
    if isinstance(error, BaseExceptionGroup):
        return all(ends(each) for each in error.exceptions)
    return isinstance(error, OutOfRangeError)
