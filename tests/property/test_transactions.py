"""Properties of transactions: random steps in random order against a plain model of what they promise."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from asyncstep import (
    ChiefSessionCreator,
    Graph,
    MonitoredSession,
    StepContext,
    Variable,
    op,
    placeholder,
)

pytestmark = pytest.mark.anyio
reproducible = settings(
    max_examples=200,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

VARIABLES = ("a", "b")


@dataclass(frozen=True)
class Action:
    """One raw or monitored run of a step function, or its end."""

    kind: str  # assign, append, read, fail, commit
    variable: str = "a"
    letter: str = ""


def actions() -> st.SearchStrategy[Action]:
    """Anything that a step function may do between its beginning and its end."""
    variables, letters = st.sampled_from(VARIABLES), st.sampled_from("xyz")
    return st.one_of(
        st.builds(Action, st.sampled_from(["assign", "append"]), variables, letters),
        st.builds(Action, st.just("read"), variables),
        st.builds(Action, st.sampled_from(["fail", "commit"]), variables, letters),
    )


@dataclass
class Model:
    """What contract T says of the steps: one dict of committed values, and the writes of each step."""

    committed: dict[str, str] = field(default_factory=lambda: dict.fromkeys(VARIABLES, ""))
    writes: dict[int, dict[str, tuple[str, list[tuple[str, str]]]]] = field(default_factory=dict)
    steps: int = 0

    def read(self, step: int, variable: str) -> str:
        """T1: the step's own last write, else the committed value."""
        if variable in self.writes[step]:
            return self.writes[step][variable][0]
        return self.committed[variable]

    def write(self, step: int, action: Action) -> None:
        """Remember the value as the step sees it, and how it came about."""
        value, history = self.writes[step].get(action.variable, (self.committed[action.variable], []))
        value = action.letter if action.kind == "assign" else value + action.letter
        self.writes[step][action.variable] = (value, [*history, (action.kind, action.letter)])

    def commit(self, step: int) -> None:
        """T5: an assign overwrites; updates are applied to what is committed."""
        for variable, (_, history) in self.writes[step].items():
            value = self.committed[variable]
            for kind, letter in history:
                value = letter if kind == "assign" else value + letter
            self.committed[variable] = value
        self.writes[step] = {}


@st.composite
def interleavings(draw: st.DrawFn) -> tuple[list[list[Action]], list[str], list[int]]:
    """Some steps, how each ends, and an order of all that they do: the index of the step whose turn it is."""
    steps = draw(st.lists(st.lists(actions(), max_size=5), min_size=1, max_size=4))
    endings = [draw(st.sampled_from(["return", "raise"])) for _ in steps]
    turns = [index for index, step in enumerate(steps) for _ in range(len(step) + 1)]
    return steps, endings, draw(st.permutations(turns))


@given(interleaving=interleavings())
@reproducible
async def test_interleaved_steps_do_what_the_model_says(
    interleaving: tuple[list[list[Action]], list[str], list[int]],
) -> None:
    """T1, T3, T4, T5, T6: any steps, interleaved in any order, read and commit as the contract says."""
    steps, endings, order = interleaving
    model = Model()
    turn: dict[int, anyio.Event] = {}
    acted: dict[int, anyio.Event] = {}
    seen: dict[int, list[tuple[Action, Any]]] = {index: [] for index in range(len(steps))}

    def fail(_: Any) -> None:
        raise ValueError("boom")

    with Graph() as graph:
        letter = placeholder("letter")
        variables = {name: Variable("", name=name) for name in VARIABLES}
        assign = {name: v.assign(letter) for name, v in variables.items()}
        append = {name: v.assign_add(letter) for name, v in variables.items()}
        failing = {name: [node, op(fail)(node)] for name, node in append.items()}

    async def do(ctx: StepContext, action: Action) -> Any:
        feed = {letter: action.letter}
        match action.kind:
            case "assign":
                return await ctx.session.run(assign[action.variable], feed)
            case "append":
                return await ctx.session.run(append[action.variable], feed)
            case "read":
                return await ctx.session.run(action.variable)
            case "commit":
                return await ctx.run_with_hooks(append[action.variable], feed)
        with pytest.raises(ValueError, match="boom"):
            await ctx.session.run(failing[action.variable], feed)
        return None

    async def step(ctx: StepContext, index: int) -> None:
        for action in steps[index]:
            await turn[index].wait()
            turn[index] = anyio.Event()
            seen[index].append((action, await do(ctx, action)))
            acted[index].set()
        await turn[index].wait()
        if endings[index] == "raise":
            raise ValueError("the step")

    async def run(index: int) -> None:
        try:
            await session.run_step_fn(step, index)
        except ValueError as error:
            assert str(error) == "the step"
        acted[index].set()

    async with MonitoredSession(ChiefSessionCreator(graph=graph)) as session:
        async with anyio.create_task_group() as group:
            for index in range(len(steps)):
                model.writes[index] = {}
                turn[index] = anyio.Event()
                group.start_soon(run, index)
            for index in order:
                done = len(seen[index])
                acted[index] = anyio.Event()
                turn[index].set()
                await acted[index].wait()
                if done == len(steps[index]):
                    if endings[index] != "raise":
                        model.commit(index)
                else:
                    action, value = seen[index][done]
                    assert value == expected(model, index, action)
                assert session.global_step == model.steps
        assert await session.run_without_hooks(list(VARIABLES)) == list(model.committed.values())


def expected(model: Model, index: int, action: Action) -> str | None:
    """Apply one action to the model; the value that the step is to see."""
    if action.kind == "fail":
        return None
    if action.kind != "read":
        model.write(index, action)
    value = model.read(index, action.variable)
    if action.kind == "commit":
        model.commit(index)
        model.steps += 1
    return value
