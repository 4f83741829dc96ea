"""ProgressHook: how far the loop is, on a live bar or in a line now and then."""

from __future__ import annotations

import math
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from io import StringIO
from typing import TYPE_CHECKING, Any, Final, Protocol

from asyncstep._monitored.coordinator import Coordinator
from asyncstep._monitored.hook import SessionRunArgs, SessionRunContext, SessionRunHook, SessionRunValues
from asyncstep._runtime.session import Session
from asyncstep._runtime.snapshot import global_step
from asyncstep.hooks.checkpoint import Checkpoints
from asyncstep.hooks.extras import require
from asyncstep.hooks.live_line import LiveLine, is_terminal
from asyncstep.hooks.named import named_fetches
from asyncstep.hooks.sampling import Sampler
from asyncstep.hooks.shared import shared
from asyncstep.hooks.stop_at_step import Bound
from asyncstep.hooks.timer import SecondOrStepTimer, check_steps

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

__all__ = ["ProgressHook"]

WINDOW: Final = 30.0
"""Seconds over which the rate is measured."""


MOST_PROGRAMS: Final = 8
"""How many programs are shown one by one."""


class ProgressHook(SessionRunHook):
    """Show on stderr how far the session is: the step, the rate, the remaining time, values, the newest checkpoint.

    Args:
        total: the global step at which all is done. None: that of the session's `StopAtStepHook`; without one,
            neither a bar nor a remaining time is shown.
        values: what else to show: a mapping of names to fetches, or a sequence of fetches that have names of
            their own. They join a run ten times a second at most, and what is shown may be so much older than
            the step.

    On a terminal it is one live line, drawn by steps, ten times a second at most. What is printed meanwhile, and
    what is logged to the terminal, appears above it. Elsewhere it is a line for the first step, one every two
    seconds at first and every minute later, and one at the end. Several workers are shown as one: the global
    step is that of them all. The chief of a launch shows how many steps each program has committed, too; with more
    than 8, the least and the most. A session that goes on from a checkpoint begins there, and its rate is that of this
    process. Nothing is written once the session has ended, in whatever way.

    Where two sessions would draw on one terminal at the same time, the second one's lines appear above the bar of
    the first. Needs ``pip install 'asyncstep[progress]'``.

    Raises:
        ImportError: rich is not installed.
        InvalidArgumentError: `total` is negative, or `values` are empty or two have one name.
        InvalidTypeError: `total` is no integer, or `values` are no fetches with names.
    """

    def __init__(
        self, total: int | None = None, *, values: Mapping[str, Any] | Sequence[Any] | None = None
    ) -> None:
        require("rich.console", "progress")
        if total is not None:
            check_steps("ProgressHook", "total", total, least=0)
        self._given_total = total
        self._fetches = None if values is None else named_fetches("ProgressHook", values)
        self._sampler = Sampler(SecondOrStepTimer(0.1), None)
        self._values: dict[str, Any] = {}
        self._display: _Display | None = None

    async def begin(self) -> None:
        """Forget the session before."""
        self._values = {}
        self._display = None

    async def after_create_session(self, session: Session, coord: Coordinator) -> None:
        """Begin where the session is, also after a recovery."""
        self._bound, self._checkpoints = shared(coord, Bound), shared(coord, Checkpoints)
        self._session = session
        self._step = global_step(session.store)
        self._pace = Pace(time.monotonic(), self._step)
        self._sampler.restart()
        if self._display is None:
            self._display = Bar(sys.stderr) if is_terminal(sys.stderr) else Lines()
            coord.call_when_closed(self._close)

    async def before_run(self, run_context: SessionRunContext) -> SessionRunArgs | None:
        """Ask for the values, if they are due."""
        if self._fetches is None or not self._sampler.asks(run_context):
            return None
        return SessionRunArgs(self._fetches)

    async def after_run(self, run_context: SessionRunContext, run_values: SessionRunValues) -> None:
        """Show how far it is, if that is due."""
        step = run_values.global_step
        assert step is not None
        assert self._display is not None
        if self._fetches is not None and self._sampler.shows(run_context, step)[0]:
            self._values = run_values.results
        now = time.monotonic()
        if self._display.is_due(now):
            self._note_step()
            self._pace.note(now, self._step)
            self._display.show(self._progress(now))

    async def on_run_error(self, run_context: SessionRunContext, error: BaseException) -> None:
        """Leave the values to another run."""
        if self._fetches is not None:
            self._sampler.forget(run_context)

    def _progress(self, now: float, *, over: bool = False) -> Progress:
        return Progress(
            step=self._step,
            total=self._bound.last_step if self._given_total is None else self._given_total,
            rate=self._pace.overall(now, self._step) if over else self._pace.of_late(),
            seconds=self._pace.seconds(now) if over else None,
            values=self._values,
            checkpoint=self._checkpoints.newest_step,
            programs=() if self._session.company is None else self._session.company.steps(),
        )

    def _note_step(self) -> None:
        """Take the step from the state: the steps of other programs that share it count, too."""
        self._step = max(self._step, global_step(self._session.store))

    def _close(self) -> None:
        """The session has ended: the last thing that is written."""
        display, self._display = self._display, None
        if display is not None:
            self._note_step()
            display.close(self._progress(time.monotonic(), over=True))


class Pace:
    """How fast the global step grows, in this process."""

    def __init__(self, now: float, step: int) -> None:
        self._began: tuple[float, int] = (now, step)
        self._noted: deque[tuple[float, int]] = deque()

    def note(self, now: float, step: int) -> None:
        """The global step is at `step` now."""
        self._noted.append((now, step))
        while len(self._noted) > 2 and self._noted[1][0] <= now - WINDOW:
            self._noted.popleft()

    def of_late(self) -> float | None:
        """Steps per second between the notes of the last half minute, or the last two; None before the second."""
        if len(self._noted) < 2:
            return None
        (then, at_first), (now, at_last) = self._noted[0], self._noted[-1]
        return (at_last - at_first) / (now - then) if now > then and at_last > at_first else None

    def overall(self, now: float, step: int) -> float | None:
        """Steps per second since the beginning."""
        then, at_first = self._began
        return (step - at_first) / (now - then) if now > then and step > at_first else None

    def seconds(self, now: float) -> float:
        """Seconds since the beginning."""
        return now - self._began[0]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a session is.

    Attributes:
        step: the global step.
        total: that at which all is done, if it is known.
        rate: steps per second, if it is known.
        seconds: how long the session took, once it is over.
        values: what else to show.
        checkpoint: the global step of the newest one.
        programs: how many steps each program of a launch has committed.
    """

    step: int
    total: int | None = None
    rate: float | None = None
    seconds: float | None = None
    values: Mapping[str, Any] = field(default_factory=dict)
    checkpoint: int | None = None
    programs: Sequence[int] = ()

    @property
    def done(self) -> float | None:
        """The part that is done, at most 1; None if that is not known."""
        if self.total is None:
            return None
        return min(self.step / self.total, 1.0) if self.total else 1.0

    def parts(self) -> Iterator[tuple[str, str]]:
        """What there is to say, the most important first: what kind of thing it is, and the words."""
        if self.done is not None:
            yield "percentage", f"{math.floor(100 * self.done)}%"
        if self.rate is not None:
            yield "rate", f"{self.rate:,.3g} steps/s" if self.rate >= 1 else f"{1 / self.rate:,.3g} s/step"
        if self.seconds is not None:
            yield "time", f"in {clock(self.seconds)}"
        elif self.total is not None and self.rate is not None:
            yield "time", f"{clock(max(self.total - self.step, 0) / self.rate)} left"
        for name, value in self.values.items():
            yield "value", f"{name} = {short(value)}"
        if self.checkpoint is not None:
            yield "checkpoint", f"checkpoint {self.checkpoint:,}"
        if len(self.programs) > MOST_PROGRAMS:
            yield (
                "programs",
                f"{len(self.programs)} programs: {min(self.programs):,} to {max(self.programs):,}",
            )
        elif self.programs:
            yield "programs", f"programs {' | '.join(f'{steps:,}' for steps in self.programs)}"

    def line(self) -> str:
        """All of it in one line of text."""
        of_total = "" if self.total is None else f" of {self.total:,}"
        return ", ".join([f"step {self.step:,}{of_total}", *(words for _, words in self.parts())])


def clock(seconds: float) -> str:
    """A time as people read it: ``0:07``, ``1:02:03``, ``3 d 4:05:06``."""
    minutes, left = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    in_day = f"{hours}:{minutes:02}:{left:02}" if hours or days else f"{minutes}:{left:02}"
    return f"{days:,} d {in_day}" if days else in_day


def short(value: object, most: int = 32) -> str:
    """A value in a few printable letters."""
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    text = " ".join("".join(each if each.isprintable() else " " for each in text).split())
    return text if len(text) <= most else text[: most - 1] + "…"


class _Display(Protocol):
    """Where progress is shown."""

    def is_due(self, now: float) -> bool:
        """Whether it is to be shown."""

    def show(self, progress: Progress) -> None:
        """Show it."""

    def close(self, progress: Progress) -> None:
        """Show the last, if anything was shown at all."""


class Lines:
    """Lines of text on stderr, the more seldom the longer it takes."""

    def __init__(self) -> None:
        self._began: float | None = None
        self._due = 0.0
        self._shown: int | None = None

    def is_due(self, now: float) -> bool:
        """True for the first step, then every 2 seconds at first, and every minute after ten."""
        if self._began is None:
            self._began = now
        elif now < self._due:
            return False
        self._due = now + min(max(2.0, (now - self._began) / 10), 60.0)
        return True

    def show(self, progress: Progress) -> None:
        """Write a line."""
        self._shown = progress.step
        if sys.stderr is not None:
            try:
                sys.stderr.write(progress.line() + "\n")
                sys.stderr.flush()
            except (OSError, ValueError):
                pass  # nobody reads it

    def close(self, progress: Progress) -> None:
        """Write a line for the last step, if it has none."""
        if self._shown is not None and self._shown != progress.step:
            self.show(progress)


class Bar:
    """A live line on a terminal."""

    def __init__(self, stream: Any) -> None:
        # The terminal is written to by the line alone: rich would raise what goes wrong with it.
        self._console: Console = require("rich.console", "progress").Console(
            file=StringIO(), force_terminal=True, force_jupyter=False
        )
        self._encoding = str(getattr(stream, "encoding", None) or "utf-8")
        self._line = LiveLine(stream)
        self._due = 0.0
        self._shown = False

    def is_due(self, now: float) -> bool:
        """True ten times a second at most."""
        if self._shown and now < self._due:
            return False
        self._due = now + 0.1
        return True

    def show(self, progress: Progress) -> None:
        """Draw it."""
        if not self._shown:
            self._line.open()
            self._shown = True
        self._line.show(drawn(progress, self._console, self._encoding))

    def close(self, progress: Progress) -> None:
        """Draw it for the last time."""
        if self._shown:
            self.show(progress)
            self._line.close()


STYLES: Final = {
    "percentage": "progress.percentage",
    "rate": "progress.data.speed",
    "time": "progress.remaining",
    "value": "none",
    "checkpoint": "progress.elapsed",
    "programs": "none",
}


def drawn(progress: Progress, console: Console, encoding: str) -> str:
    """One line that fits the console, with its codes for colours."""
    bar = (
        ("\u2501", " " if console.no_color else "\u2501")
        if encoding.lower().startswith("utf")
        else ("#", "-")
    )
    line = live(progress, console.width - 3, bar)  # so that the ^C of Ctrl-C does not begin a new line
    with console.capture() as captured:
        console.print(line, end="", no_wrap=True, overflow="crop")
    return captured.get()


def live(progress: Progress, width: int, letters: tuple[str, str]) -> Text:
    """A line of that width at most: the words that fit, the most important first, and a bar of what they leave.

    The bar's letters are those of what is done and of the rest.
    """
    text = require("rich.text", "progress").Text
    cell_len = require("rich.cells", "progress").cell_len
    count = f"{progress.step:,}"
    if progress.total is not None:
        total = f"{progress.total:,}"
        count = f"{count:>{len(total)}}/{total}"
    left = width - len(count)
    words = text()
    for kind, part in progress.parts():
        left -= 2 + cell_len(part)
        if left < 0:
            break
        words.append("  ").append(part, STYLES[kind])
    line: Text = text().append(count[: max(width, 0)], "bold")
    if progress.done is not None and left > 8:
        bar = min((left - 1) // 8 * 8, 40)  # few lengths, so that it keeps still
        full = math.floor(bar * progress.done)
        line.append(" ").append(letters[0] * full, "bar.finished" if full == bar else "bar.complete")
        line.append(letters[1] * (bar - full), "bar.back")
    return line.append(words)
