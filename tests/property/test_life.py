"""Properties of a session's life: whatever its hooks and its body do, contracts L3 to L6, C1, C5 and E2 hold."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from asyncstep import Graph, MonitoredSession, SessionClosedError, StepContext, source
from asyncstep.testing import RecordingHook

from ..contract.counting import Oops, leaves  # noqa: TID252 - no package
from ..contract.life_parts import RecordingCreator  # noqa: TID252 - no package

pytestmark = pytest.mark.anyio
reproducible = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

ACTS = ("nothing", "nothing", "nothing", "wait", "fail", "interrupt", "cancel")
BODIES = ("nothing", "stop", "end of data", "aclose", "fail", "interrupt", "cancel", "stop and fail")
CLEAN = ("nothing", "stop", "end of data", "aclose")


@dataclass(frozen=True)
class Plan:
    """What a hook does when it begins, when the session was created, and when it ends, either way."""

    begin: str
    after_create_session: str
    end: str


@dataclass
class Expected:
    """What the contract says of one life."""

    journal: list[str] = field(default_factory=list)
    raised: list[tuple[str, str]] = field(
        default_factory=list
    )  # (fail or interrupt, where), the body's first
    cancelled: bool = False
    clean: bool = True

    def act(self, what: str, where: str) -> bool:
        """One act; whether what comes after it is still reached."""
        if what in ("fail", "interrupt"):
            self.raised.append((what, where))
        self.cancelled |= what == "cancel"
        return what in ("nothing", "wait")


def expected(plans: list[Plan], body: str) -> Expected:
    """The life of a session with these hooks, in a few lines."""
    life = Expected()
    begun: list[int] = []
    life.clean = _opens(plans, begun, life)
    if life.clean:
        life.clean = body in CLEAN
        life.act(body.removeprefix("stop and "), "body")
    point = "end" if life.clean else "on_session_error"
    for i in reversed(begun):
        life.journal.append(f"{i}.{point}")
        life.act(plans[i].end, f"{i}.end")
    return life


def _opens(plans: list[Plan], begun: list[int], life: Expected) -> bool:
    for i, plan in enumerate(plans):
        begun.append(i)
        life.journal.append(f"{i}.begin")
        if not life.act(plan.begin, f"{i}.begin"):
            return False
    life.journal.append("create")
    for i, plan in enumerate(plans):
        life.journal.append(f"{i}.after_create_session")
        if not life.act(plan.after_create_session, f"{i}.after_create_session"):
            return False
    return True


class Stage:
    """Plays a life: does the acts, and keeps the exceptions that it raised."""

    def __init__(self) -> None:
        self.scope = anyio.CancelScope()
        self.made: dict[str, BaseException] = {}

    async def act(self, what: str, where: str) -> None:
        """Do one act."""
        if what == "wait":
            await anyio.lowlevel.checkpoint()
        elif what == "cancel":
            self.scope.cancel()
            await anyio.lowlevel.checkpoint()
        elif what in ("fail", "interrupt"):
            self.made[where] = Oops(where) if what == "fail" else KeyboardInterrupt(where)
            raise self.made[where]

    def hook(self, name: int, plan: Plan, journal: list[str]) -> RecordingHook:
        """A hook that does what is planned."""

        async def begin() -> None:
            await self.act(plan.begin, f"{name}.begin")

        async def after_create_session(*_: object) -> None:
            await self.act(plan.after_create_session, f"{name}.after_create_session")

        async def end(*_: object) -> None:
            await self.act(plan.end, f"{name}.end")

        acts: dict[str, Any] = {"begin": begin, "after_create_session": after_create_session}
        return RecordingHook(str(name), journal, end=end, on_session_error=end, **acts)

    async def body(self, what: str, session: MonitoredSession) -> None:
        """Do what the body does."""

        async def stop(ctx: StepContext) -> None:
            ctx.request_stop()

        if what == "stop":
            await session.run_step_fn(stop)
        elif what == "stop and fail":
            try:
                await session.run_step_fn(stop)
            except BaseException as stopped:
                self.made["body"] = Oops("body")
                raise BaseExceptionGroup("both", [stopped, self.made["body"]]) from None
        elif what == "end of data":
            await session.run_without_hooks("items")
        elif what == "aclose":
            await session.aclose()
        else:
            await self.act(what, "body")


@reproducible
@given(st.lists(st.builds(Plan, *[st.sampled_from(ACTS)] * 3), max_size=3), st.sampled_from(BODIES))
async def test_every_life_keeps_the_contract(plans: list[Plan], body: str) -> None:
    """L3 to L6, C1, C5, E2: who is told of what, in which order, and what leaves, for any hooks and any body."""
    with (graph := Graph()):
        source([], name="items")
    stage, journal = Stage(), list[str]()
    creator = RecordingCreator(graph, journal)
    hooks = [stage.hook(i, plan, journal) for i, plan in enumerate(plans)]
    session = MonitoredSession(creator, hooks)
    left: list[BaseException] = []
    with stage.scope:
        try:
            async with session:
                await stage.body(body, session)
        except (Exception, KeyboardInterrupt) as error:
            left.append(error)

    life = expected(plans, body)
    assert journal == life.journal
    interrupts = [stage.made[where] for what, where in life.raised if what == "interrupt"]
    errors = [stage.made[where] for what, where in life.raised if what == "fail"]
    if interrupts:
        assert left[0] is interrupts[0]
        assert all(repr(error) in "".join(left[0].__notes__) for error in errors)
    elif errors:
        assert set(leaves(left[0])) == set(errors)
        assert isinstance(left[0], BaseExceptionGroup) == (len(errors) > 1)
    else:
        assert left == []
        assert stage.scope.cancelled_caught == life.cancelled
    assert session.should_stop()
    assert not graph.finalized
    for raw in creator.created:
        with pytest.raises(SessionClosedError):
            await raw.run("items")
