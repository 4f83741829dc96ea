"""An update whose value nothing in the step asks for is made by the chief alone; nothing of that is seen but its speed.

The programs run in one event loop, see `loopback`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from asyncstep import (
    AbortedError,
    Graph,
    MonitoredSession,
    Recovery,
    SessionRunContext,
    SessionRunHook,
    SessionRunValues,
    StepContext,
    Variable,
    WorkerSessionCreator,
    group,
    op,
    placeholder,
)
from asyncstep.distributed import TaskInfo, store
from asyncstep.distributed.messages import Committed, Read
from asyncstep.training import MonitoredTrainingSession

from .loopback import LoopbackJob

pytestmark = pytest.mark.anyio

AT_ONCE = Recovery(wait_initial=0.0, jitter=0.0)


def longer(text: str, letter: str) -> str:
    """The update of most tests."""
    return text + letter


class Parts:
    """The graph of the tests, in a `with Graph()`: two texts, and what changes them by a letter that is fed."""

    def __init__(self, update: Callable[[str, str], str] = longer) -> None:
        self.letter = placeholder("letter")
        self.texts = {name: Variable("", name=name) for name in "ab"}
        self.assign = {name: text.assign(self.letter) for name, text in self.texts.items()}
        self.seen = {name: text.update(update, self.letter) for name, text in self.texts.items()}
        self.unseen = {name: group(node) for name, node in self.seen.items()}
        self.failing = {name: [node, op(fail)(node)] for name, node in self.unseen.items()}
        handed_on = self.seen["a"].after(self.seen["b"])
        self.more: dict[str, Any] = {
            "waited for": op(int)("4").after(self.seen["b"]),
            "handed on": group(handed_on),
            "handed on and taken": op(len)(handed_on),
            "fetched": {"group": self.unseen["a"], "update": self.seen["a"]},
        }


def fail(_: Any) -> None:
    """An op that fails."""
    raise ValueError("boom")


Work = Callable[[MonitoredSession, Parts], Awaitable[Any]]


async def with_chief(
    work: Work, job: LoopbackJob | None = None, *hooks: SessionRunHook, update: Callable[..., str] = longer
) -> tuple[Any, dict[str, str]]:
    """What some work of a worker returns, and the texts that the chief has then."""
    job = job or LoopbackJob(2)

    async def program(task: TaskInfo) -> Any:
        with Graph():
            parts = Parts(update)
            if task.is_chief:
                session: MonitoredSession = MonitoredTrainingSession(task.master, save_checkpoint_secs=None)
            else:
                creator = WorkerSessionCreator(master=task.master)
                session = MonitoredSession(creator, hooks, recovery=AT_ONCE)
        async with session:
            if not task.is_chief:
                return await work(session, parts)
            await job.until(lambda: 1 in job.view.done)
            return await session.run_without_hooks(parts.texts)

    async with job.running() as start:
        chief, worker = start(program, 0), start(program, 1)
    if worker.error is not None:
        raise worker.error
    return worker.result, chief.result


def values_sent(job: LoopbackJob) -> Counter[str]:
    """How often the value of each variable was part of an answer to a commit."""
    return Counter(
        name for answer in job.answers if isinstance(answer.reply, Committed) for name in answer.reply.values
    )


async def test_what_nobody_asks_for_is_not_sent() -> None:
    """The value stays with the chief, however often it changes; nothing is asked for before a step."""
    job = LoopbackJob(2)

    async def work(session: MonitoredSession, parts: Parts) -> None:
        for letter in "abcdefgh":
            await session.run([parts.unseen["a"], parts.unseen["b"]], {parts.letter: letter})

    _, texts = await with_chief(work, job)
    assert texts == {"a": "abcdefgh", "b": "abcdefgh"}
    assert values_sent(job).keys() <= {"global_step"}
    assert not any(isinstance(message, Read) for message in job.messages)


@pytest.mark.parametrize(
    ("fetch", "value", "read"),
    [
        ("waited for", 4, False),
        ("handed on", None, False),
        ("handed on and taken", 1, True),
        ("fetched", {"group": None, "update": "x"}, True),
    ],
)
async def test_a_value_is_asked_for_by_what_takes_it(fetch: str, value: Any, read: bool) -> None:
    """Not by what comes after the update, nor by what hands it on to nobody."""
    job = LoopbackJob(2)

    async def work(session: MonitoredSession, parts: Parts) -> Any:
        return await session.run(parts.more[fetch], {parts.letter: "x"})

    found, texts = await with_chief(work, job)
    assert found == value
    assert texts == {"a": "" if fetch == "waited for" else "x", "b": "" if fetch == "fetched" else "x"}
    assert any(isinstance(message, Read) for message in job.messages) == read


async def test_what_is_read_once_is_not_sent_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a read newer values come with the commits, but only for a while; the next read is told the truth."""
    job = LoopbackJob(2)
    sent: list[int] = []

    async def work(session: MonitoredSession, parts: Parts) -> list[str]:
        seen = [await session.run("a")]
        await session.run(parts.unseen["a"], {parts.letter: "x"})
        sent.append(values_sent(job)["a"])
        monkeypatch.setattr(store, "WANTED", 0.0)
        await session.run(parts.unseen["a"], {parts.letter: "y"})
        sent.append(values_sent(job)["a"])
        seen.append(await session.run("a"))
        return seen

    seen, texts = await with_chief(work, job)
    assert seen == ["", "xy"]
    assert sent == [1, 1]
    assert texts["a"] == "xy"


async def test_a_step_reads_what_it_has_written() -> None:
    """T1: also where the value was not known when it was written; hooks see it before the commit, too."""
    looked: list[str] = []

    class Look(SessionRunHook):
        async def before_commit(self, run_context: SessionRunContext, run_values: SessionRunValues) -> None:
            looked.append(await run_context.session.run("a"))

    async def work(session: MonitoredSession, parts: Parts) -> None:
        await session.run(parts.unseen["a"], {parts.letter: "x"})
        await session.run(parts.unseen["a"], {parts.letter: "y"})

    _, texts = await with_chief(work, None, Look())
    assert looked == ["x", "xy"]
    assert texts["a"] == "xy"


async def test_an_update_that_fails_rolls_its_step_back() -> None:
    """T4, T5: the chief calls the function, and what it raises is the error of the run, with a note that names what."""

    def refuse(text: str, letter: str) -> str:
        if letter == "!":
            raise ValueError("no shouting")
        return text + letter

    async def work(session: MonitoredSession, parts: Parts) -> None:
        await session.run(list(parts.unseen.values()), {parts.letter: "x"})
        with pytest.raises(ValueError, match="no shouting") as caught:
            await session.run(list(parts.unseen.values()), {parts.letter: "!"})
        assert "in an update of the variable 'a'" in caught.value.__notes__
        await session.run(list(parts.unseen.values()), {parts.letter: "y"})

    _, texts = await with_chief(work, update=refuse)
    assert texts == {"a": "xy", "b": "xy"}


CALLS: Counter[str] = Counter()
"""How often `first_aborted` was called for each letter."""


def first_aborted(text: str, letter: str) -> str:
    """Fails the first time in a way that may pass."""
    CALLS[letter] += 1
    if CALLS[letter] == 1:
        raise AbortedError("once")
    return text + letter


async def test_a_step_whose_update_is_aborted_is_tried_again() -> None:
    """V1: an error that the chief tells of is like one of the step."""
    CALLS.clear()
    attempts: list[int] = []

    async def step(ctx: StepContext, parts: Parts) -> None:
        attempts.append(ctx.attempt)
        await ctx.run_with_hooks(parts.unseen["a"], {parts.letter: "x"})

    async def work(session: MonitoredSession, parts: Parts) -> int:
        await session.run_step_fn(step, parts)
        return session.recoveries

    recoveries, texts = await with_chief(work, update=first_aborted)
    assert attempts == [1, 2]
    assert recoveries == 0
    assert texts["a"] == "x"
    assert CALLS == {"x": 2}


@dataclass(frozen=True)
class Action:
    """One run in a step function: a kind, and what it is done to."""

    kind: str  # assign, seen, unseen, failing, read; with "commit ": by run_with_hooks
    text: str
    letter: str


kinds = st.sampled_from(["assign", "seen", "unseen", "failing", "read", "commit unseen", "commit seen"])
steps = st.lists(
    st.lists(st.builds(Action, kinds, st.sampled_from("ab"), st.sampled_from("xyz")), max_size=7), max_size=3
)


async def act(ctx: StepContext, parts: Parts, actions: list[Action], found: list[Any]) -> None:
    """Do all of some actions, and note what they give."""
    for action in actions:
        feed, kind = {parts.letter: action.letter}, action.kind.removeprefix("commit ")
        if kind == "read":
            found.append(await ctx.session.run(action.text))
        elif kind == "failing":
            with pytest.raises(ValueError, match="boom"):
                await ctx.session.run(parts.failing[action.text], feed)
        else:
            run = ctx.session.run if kind == action.kind else ctx.run_with_hooks
            found.append(await run(getattr(parts, kind)[action.text], feed))


async def act_all(session: MonitoredSession, parts: Parts, scripts: list[list[Action]]) -> list[Any]:
    """One step for each script: what its runs have given, and in the end the texts."""
    found: list[Any] = []
    for actions in scripts:
        await session.run_step_fn(act, parts, actions, found)
    found.append(await session.run(parts.texts))
    return found


@given(scripts=steps)
@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
async def test_steps_find_what_they_would_find_in_one_process(scripts: list[list[Action]]) -> None:
    """T1, T3, T4: whatever runs a step consists of, the chief's state gives what one of this process gives."""
    with Graph():
        parts = Parts()
        alone = MonitoredSession()
    async with alone:
        expected = await act_all(alone, parts, scripts)

    async def work(session: MonitoredSession, parts: Parts) -> list[Any]:
        return await act_all(session, parts, scripts)

    found, texts = await with_chief(work)
    assert found == expected
    assert texts == expected[-1]
