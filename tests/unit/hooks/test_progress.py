"""`ProgressHook`: what it shows, when, on a terminal and elsewhere, and what it leaves behind."""

from __future__ import annotations

import io
import logging
import os
import pty
import re
import signal
import subprocess
import sys
import termios
import textwrap
from contextlib import nullcontext
from functools import partial
from itertools import pairwise
from pathlib import Path
from select import select
from typing import Any

import anyio
import pytest
from rich.console import Console

import asyncstep.hooks.progress
from asyncstep import (
    AbortedError,
    Graph,
    MonitoredSession,
    MonitoredTrainingSession,
    Recovery,
    Session,
    SessionCreator,
    StepContext,
    Variable,
)
from asyncstep.errors import InvalidArgumentError, InvalidTypeError
from asyncstep.hooks import ProgressHook, SecondOrStepTimer, StopAtStepHook
from asyncstep.hooks.progress import Lines, Pace, Progress, clock, drawn, live, short


async def step() -> None:
    """A step that does nothing."""


class Clock:
    """The time that the hook goes by: it stands still until a test sets it."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        """What `time.monotonic` says."""
        return self.now


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The time that the hook goes by."""
    made = Clock()
    monkeypatch.setattr(asyncstep.hooks.progress, "time", made)
    timer = partial(SecondOrStepTimer, clock=made.monotonic)
    monkeypatch.setattr(asyncstep.hooks.progress, "SecondOrStepTimer", timer)
    return made


class Terminal(io.StringIO):
    """What looks like a terminal, is stdout and stderr in its block, and knows what is on its screen."""

    def isatty(self) -> bool:
        return True

    async def __aenter__(self) -> None:
        self.former = sys.stdout, sys.stderr  # pytest exchanges them between a fixture and its test
        sys.stdout = sys.stderr = self

    async def __aexit__(self, *_: object) -> None:
        left = sys.stdout, sys.stderr
        sys.stdout, sys.stderr = self.former
        assert left == (self, self)  # put back by the hook

    @property
    def screen(self) -> list[str]:
        """The lines as they are seen, without the codes for colours; the cursor is in the last one."""
        return seen(self.getvalue())


def seen(written: str) -> list[str]:
    """What a terminal shows of what was written to it."""
    lines = [""]
    for part in re.findall(r"\r\x1b\[2K|\r?\n|\x1b\[[\d;]*m|[^\r\n\x1b]+|.", written, re.DOTALL):
        if part == "\r\x1b[2K":
            lines[-1] = ""
        elif part in ("\n", "\r\n"):
            lines.append("")
        elif not part.startswith("\x1b["):
            assert part not in "\r\x1b", f"a code that is not known: {written!r}"
            lines[-1] += part
    return lines


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """A terminal of 103 columns."""
    monkeypatch.setenv("COLUMNS", "103")
    monkeypatch.setenv("TERM", "xterm")
    return Terminal()


@pytest.mark.anyio
async def test_a_bar_on_a_terminal(terminal: Terminal, time: Clock) -> None:
    """One live line with the step, the bar, the part that is done, the rate and the time that is left."""
    screens = []
    with Graph():
        session = MonitoredSession(hooks=[ProgressHook(10)])
    async with terminal, session:
        for _ in range(5):
            await session.run(step)
            screens.append(terminal.screen)
            time.now += 0.5
    bar = "━" * 40
    assert screens[0] == [f" 1/10 {bar}  10%"]
    assert screens[4] == [f" 5/10 {bar}  50%  2 steps/s  0:02 left"]
    assert terminal.screen == [f" 5/10 {bar}  50%  2 steps/s  in 0:02", ""]


@pytest.mark.anyio
async def test_the_bar_is_drawn_ten_times_a_second_at_most(terminal: Terminal, time: Clock) -> None:
    """However fast the steps are; the last one is drawn at the end."""
    with Graph():
        session = MonitoredSession(hooks=[ProgressHook(1000)])
    async with terminal, session:
        for _ in range(1000):
            await session.run(step)
            time.now += 0.001
    drawings = terminal.getvalue().count("\r\x1b[2K")
    assert 9 <= drawings <= 12
    assert terminal.screen[0].startswith("1,000/1,000 ")


@pytest.mark.anyio
async def test_values_and_the_newest_checkpoint(terminal: Terminal, time: Clock, tmp_path: Path) -> None:
    """Chosen values are shown by their names, and the checkpoint that was saved last, at the end too."""
    with Graph():
        loss = Variable(1.0, name="loss")
        halve = loss.update(lambda value: value / 2)
        session = MonitoredTrainingSession(
            hooks=[ProgressHook(values={"loss": loss, "twice": halve})],
            checkpoint_dir=tmp_path,
            save_checkpoint_steps=1000,
        )
    async with terminal, session:
        for _ in range(3):
            await session.run(halve)
            time.now += 1.0
        assert "loss = 0.125  twice = 0.125" in terminal.screen[0]
    assert terminal.screen[0].endswith("loss = 0.125  twice = 0.125  checkpoint 3")


@pytest.mark.anyio
async def test_values_are_evaluated_only_to_be_shown(terminal: Terminal, time: Clock) -> None:
    """They join a run ten times a second at most."""
    evaluated: list[int] = []

    async def value() -> int:
        evaluated.append(1)
        return 7

    with Graph():
        session = MonitoredSession(hooks=[ProgressHook(values=[value])])
    async with terminal, session:
        for _ in range(300):
            await session.run(step)
            time.now += 0.001
        assert "value = 7" in terminal.screen[0]
    assert len(evaluated) == 3


@pytest.mark.anyio
async def test_what_is_printed_appears_above_the_bar(terminal: Terminal, time: Clock) -> None:
    """Prints to stdout and stderr and log lines are whole lines above it, in their order; so are many at once."""
    log = logging.getLogger("test_progress")
    handler = logging.StreamHandler(terminal)  # one that has held the stream from before
    log.addHandler(handler)
    with Graph():
        session = MonitoredSession(hooks=[ProgressHook(3)])
    async with terminal:
        async with session:
            await session.run(step)
            sys.stdout.write("printed\n")
            print("one\ntwo", file=sys.stderr)  # noqa: T201 - as people do
            log.error("logged")
            sys.stdout.write("in")
            sys.stdout.write(" parts\n")
            during = terminal.screen
        sys.stdout.write("after\n")
    log.removeHandler(handler)
    bar = f"1/3 {'━' * 40}  33%"
    above = ["printed", "one", "two", "logged", "in parts"]
    assert during == [*above, bar]
    assert terminal.screen == [*above, f"{bar}  in 0:00", "after", ""]
    assert handler.stream is terminal


@pytest.mark.anyio
async def test_what_was_begun_is_not_lost(terminal: Terminal, time: Clock) -> None:
    """A line without an end appears when the session is over; streams that were kept go on working."""
    with Graph():
        session = MonitoredSession(hooks=[ProgressHook(3)])
    async with terminal, session:
        await session.run(step)
        kept = sys.stderr
        kept.writelines(["whole\n", "half"])
    kept.write(" and half\n")
    assert terminal.screen == ["whole", f"1/3 {'━' * 40}  33%  in 0:00", "half and half", ""]


@pytest.mark.anyio
async def test_a_stdout_that_is_no_terminal_is_left_alone(
    terminal: Terminal, time: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    """With stdout in a file, what is printed goes to the file and nowhere else."""
    with Graph():
        session = MonitoredSession(hooks=[ProgressHook(3)])
    async with terminal:
        sys.stdout = file = io.StringIO()
        async with session:
            await session.run(step)
            assert sys.stdout is file
            sys.stdout.write("to the file\n")
        sys.stdout = terminal
    assert file.getvalue() == "to the file\n"
    assert "to the file" not in terminal.getvalue()


@pytest.mark.anyio
@pytest.mark.parametrize("cancelled", [False, True])
async def test_nothing_is_written_after_an_end_of_any_kind(
    terminal: Terminal, time: Clock, cancelled: bool
) -> None:
    """An error or a cancellation ends the line and puts the streams back, as a clean end does."""
    with Graph():
        session = MonitoredSession(hooks=[ProgressHook(3)])
    scope = anyio.CancelScope()

    async def fail() -> None:
        with scope:
            async with session:
                await session.run(step)
                if cancelled:
                    scope.cancel()
                    await anyio.sleep_forever()
                raise ZeroDivisionError

    async with terminal:
        with pytest.raises(ZeroDivisionError) if not cancelled else nullcontext():
            await fail()
        assert sys.stderr is terminal
    assert terminal.screen == [f"1/3 {'━' * 40}  33%  in 0:00", ""]


@pytest.mark.anyio
async def test_a_session_without_steps_shows_nothing(terminal: Terminal) -> None:
    """As one that is resumed when all is done."""
    with Graph():
        session = MonitoredSession(hooks=[ProgressHook(3)])
    async with terminal, session:
        pass
    assert terminal.getvalue() == ""


@pytest.mark.anyio
async def test_two_sessions_on_one_terminal(terminal: Terminal, time: Clock) -> None:
    """The second one's lines appear above the bar of the first."""
    with Graph():
        first = MonitoredSession(hooks=[ProgressHook(5)])
        second = MonitoredSession(hooks=[ProgressHook(7)])
    async with terminal, first:
        await first.run(step)
        async with second:
            await second.run(step)
    assert terminal.screen == ["step 1 of 7, 14%", f"1/5 {'━' * 40}  20%  in 0:00", ""]


@pytest.mark.anyio
async def test_lines_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str], time: Clock) -> None:
    """The first step, then a line every 2 seconds at first, and the last step; nothing on stdout."""
    with Graph():
        session = MonitoredSession(hooks=[ProgressHook(8, values=["global_step"])])
    async with session:
        for _ in range(8):
            await session.run(step)
            time.now += 1.0
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert [line.split(",")[0] for line in lines] == [f"step {n} of 8" for n in (1, 3, 5, 7, 8)]
    assert lines[0] == "step 1 of 8, 12%, global_step = 0"
    assert lines[2].startswith("step 5 of 8, 62%, 1 steps/s, 0:03 left, ")
    assert lines[-1].startswith("step 8 of 8, 100%, 1 steps/s, in 0:08, ")
    assert out == ""


@pytest.mark.anyio
async def test_the_total_of_a_stop_hook(capsys: pytest.CaptureFixture[str], time: Clock) -> None:
    """Without a total it is the step at which StopAtStepHook stops; without that no part and no rest is known."""
    for hooks in ([ProgressHook(), StopAtStepHook(num_steps=4)], [ProgressHook()]):
        with Graph():
            Variable(6, name="global_step")
            session = MonitoredSession(hooks=hooks)
        async with session:
            await session.run(step)
    assert capsys.readouterr().err.splitlines() == ["step 7 of 10, 70%", "step 7"]


@pytest.mark.anyio
async def test_a_resumed_session_counts_from_where_it_was(
    capsys: pytest.CaptureFixture[str], time: Clock, tmp_path: Path
) -> None:
    """The step and the part that is done go on; the rate is that of this process."""
    for _ in range(2):
        with Graph():
            session = MonitoredTrainingSession(
                hooks=[ProgressHook(8)], checkpoint_dir=tmp_path, save_checkpoint_steps=1000
            )
        async with session:
            for _ in range(4):
                await session.run(step)
                time.now += 2.0
    last = capsys.readouterr().err.splitlines()[-4:]
    assert last[0] == "step 5 of 8, 62%, checkpoint 4"
    assert last[1].startswith("step 6 of 8, 75%, 2 s/step, 0:04 left, checkpoint ")


@pytest.mark.anyio
async def test_a_recovery_goes_back(capsys: pytest.CaptureFixture[str], time: Clock) -> None:
    """After a recovery that lost steps, the step that is shown is that of the session."""

    class Restoring(SessionCreator):
        """Each of its sessions starts at 0."""

        def __init__(self) -> None:
            self.graph = Graph()

        async def create_session(self) -> Session:
            return Session(self.graph)

    plan: list[Exception | None] = [None, None, AbortedError("again"), None]

    async def planned() -> None:
        time.now += 5.0
        failure = plan.pop(0)
        if failure is not None:
            raise failure

    recovery = Recovery(restore="always", wait_initial=0.0, jitter=0.0)
    session = MonitoredSession(Restoring(), [ProgressHook()], recovery=recovery)
    async with session:
        for _ in range(3):
            await session.run(planned)
    assert [line.split(",")[0] for line in capsys.readouterr().err.splitlines()] == [
        "step 1",
        "step 2",
        "step 1",
    ]


@pytest.mark.anyio
async def test_several_workers_are_shown_as_one(terminal: Terminal) -> None:
    """With eight workers the steps that are shown never go back, and the last is that of the session."""
    with Graph():
        session = MonitoredSession(hooks=[ProgressHook(200, values=["global_step"])])

    async def work(ctx: StepContext) -> None:
        await ctx.run_with_hooks(anyio.lowlevel.checkpoint)
        if session.global_step >= 200:
            ctx.request_stop()

    async with terminal, session:
        await session.loop(work, workers=8)
    shown = [int(each) for each in re.findall(r"(\d+)/200", terminal.getvalue())]
    assert all(earlier <= later for earlier, later in pairwise(shown))
    assert shown[-1] == session.global_step


@pytest.mark.anyio
async def test_a_terminal_that_is_gone_costs_nothing(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nothing can be written any more, the loop goes on and ends cleanly."""

    def gone(text: str) -> int:
        raise OSError(5, "Input/output error")

    with Graph():
        session = MonitoredSession(hooks=[ProgressHook(3)])
    with monkeypatch.context() as broken:
        broken.setattr(terminal, "write", gone)
        async with terminal, session:
            await session.run(step)
    assert session.global_step == 1


def plain(progress: Progress, width: int) -> str:
    """What rich draws on a console of that width, and nothing but text of it."""
    console = Console(file=io.StringIO(), force_terminal=True, width=width + 3, color_system="truecolor")
    [line] = seen(drawn(progress, console, "utf-8"))
    return line


FULL = Progress(120, 4000, 2.5, None, {"loss": 0.25, "rate": 3}, 100)


@pytest.mark.parametrize(
    ("width", "line"),
    [
        (120, f"  120/4,000 {'━' * 40}  3%  2.5 steps/s  25:52 left  loss = 0.25  rate = 3  checkpoint 100"),
        (110, f"  120/4,000 {'━' * 24}  3%  2.5 steps/s  25:52 left  loss = 0.25  rate = 3  checkpoint 100"),
        (80, "  120/4,000  3%  2.5 steps/s  25:52 left  loss = 0.25  rate = 3  checkpoint 100"),
        (75, "  120/4,000  3%  2.5 steps/s  25:52 left  loss = 0.25  rate = 3"),
        (20, "  120/4,000  3%"),
        (5, "  120"),
        (0, ""),
    ],
)
def test_a_line_fits_its_terminal(width: int, line: str) -> None:
    """The words that matter most are shown as long as they fit, and the bar gets what they leave."""
    assert plain(FULL, width) == line


@pytest.mark.parametrize(
    ("encoding", "colours", "bar"),
    [("utf-8", True, "━━━━━━━━"), ("utf-8", False, "━━━━    "), ("ascii", True, "####----")],
)
def test_a_bar_for_terminals_that_can_do_less(encoding: str, colours: bool, bar: str) -> None:
    """Without colours what is left is empty, and without the letters it is drawn in ASCII."""
    console = Console(file=io.StringIO(), force_terminal=True, width=23, no_color=not colours)
    assert seen(drawn(Progress(5, 10), console, encoding)) == [f" 5/10 {bar}  50%"]


def test_the_colours_are_rich_s() -> None:
    """The done part, the rest and each kind of words have styles, which a theme may change."""
    line = live(Progress(5, 10, 2.5, None, {"loss": 1}, 4), 100, ("#", "-"))
    assert [(line.plain[span.start : span.end], span.style) for span in line.spans] == [
        (" 5/10", "bold"),
        ("#" * 20, "bar.complete"),
        ("-" * 20, "bar.back"),
        ("50%", "progress.percentage"),
        ("2.5 steps/s", "progress.data.speed"),
        ("0:02 left", "progress.remaining"),
        ("loss = 1", "none"),
        ("checkpoint 4", "progress.elapsed"),
    ]


def test_wide_letters_take_two_cells() -> None:
    """What is shown of letters that are twice as wide still fits."""
    shown = plain(Progress(1, None, None, None, {"名前": "値" * 20}, None), 40)
    assert shown == "1"


@pytest.mark.parametrize(
    ("progress", "line"),
    [
        (Progress(3), "step 3"),
        (Progress(0, 0), "step 0 of 0, 100%"),
        (Progress(12, 10), "step 12 of 10, 100%"),
        (Progress(999, 1000), "step 999 of 1,000, 99%"),
        (Progress(5, 10, 0.1), "step 5 of 10, 50%, 10 s/step, 0:50 left"),
        (Progress(5, 10, 1234.5, 3.2), "step 5 of 10, 50%, 1.23e+03 steps/s, in 0:03"),
        (FULL, "step 120 of 4,000, 3%, 2.5 steps/s, 25:52 left, loss = 0.25, rate = 3, checkpoint 100"),
    ],
)
def test_progress_in_words(progress: Progress, line: str) -> None:
    """What is not known is left out."""
    assert progress.line() == line


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0:00"),
        (59.6, "1:00"),
        (3599, "59:59"),
        (3723, "1:02:03"),
        (273906, "3 d 4:05:06"),
        (8.64e6, "100 d 0:00:00"),
    ],
)
def test_a_time_in_words(seconds: float, text: str) -> None:
    """Minutes and seconds; hours and days where there are any."""
    assert clock(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.123456, "0.1235"),
        (3, "3"),
        ("a\nb\t\x1b[31mc", "a b [31mc"),
        ("x" * 50, "x" * 31 + "…"),
        ([1.0, 2.0], "[1.0, 2.0]"),
    ],
)
def test_a_value_in_few_letters(value: object, text: str) -> None:
    """Nothing in it can break the line or the terminal."""
    assert short(value) == text


def test_the_rate_is_that_of_the_last_half_minute() -> None:
    """Old notes are forgotten, but for one; before the second there is no rate."""
    pace = Pace(0.0, 50)
    rates = []
    for now, at in ((10.0, 60), (20.0, 70), (30.0, 90), (40.0, 120), (50.0, 160), (500.0, 205)):
        pace.note(now, at)
        rates.append(pace.of_late())
    assert rates == [None, 1.0, 1.5, 2.0, 3.0, 0.1]
    assert pace.overall(500.0, 205) == 0.31


def test_the_rate_needs_memory_for_half_a_minute_only() -> None:
    """A bar that is drawn for days keeps no more than what it was drawn for lately."""
    pace = Pace(0.0, 0)
    for number in range(10_000):
        pace.note(number / 10, number)
    assert len(pace._noted) <= 302
    assert pace.of_late() == pytest.approx(10.0)


def test_lines_come_more_seldom() -> None:
    """Every 2 seconds for the first 20, after a while every minute."""
    lines = Lines()
    due = [now for now in range(7200) if lines.is_due(float(now))]
    gaps = [later - earlier for earlier, later in pairwise(due)]
    assert gaps[:10] == [2] * 10
    assert gaps == sorted(gaps)
    assert gaps[-1] == 60


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"total": -1}, InvalidArgumentError, "total"),
        ({"total": 1.5}, InvalidTypeError, "total"),
        ({"values": []}, InvalidArgumentError, "values"),
        ({"values": "loss"}, InvalidTypeError, "values"),
    ],
    ids=str,
)
def test_wrong_arguments(options: dict[str, Any], kind: type[Exception], message: str) -> None:
    """They are refused at construction, by name."""
    with pytest.raises(kind, match=f"ProgressHook.*{message}"):
        ProgressHook(**options)


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ImportError at construction says what to install."""
    monkeypatch.setitem(sys.modules, "rich.console", None)
    with pytest.raises(ImportError, match=r"pip install 'asyncstep\[progress\]'"):
        ProgressHook()


PROGRAM = """
import logging, signal, sys
import anyio
from asyncstep import Graph, MonitoredSession
from asyncstep.hooks import ProgressHook

logging.basicConfig(format="%(message)s")

async def step():
    await anyio.sleep(0.001)

async def main():
    with Graph():
        session = MonitoredSession(hooks=[ProgressHook(1_000_000)])
    async with session:
        for number in range(1_000_000):
            await session.run(step)
            if number == 20:
                logging.warning("logged")
                print("printed", flush=True)
                print("ready", file=sys.stderr)

signal.signal(signal.SIGINT, signal.default_int_handler)  # also where it was started with SIGINT ignored
anyio.run(main, backend=sys.argv[1])
"""


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_ctrl_c_leaves_a_real_terminal_as_it_was(backend: str, tmp_path: Path) -> None:
    """In a pseudo-terminal: the bar, lines above it, Ctrl-C; then the line is ended and no mode is left set."""
    program = tmp_path / "program.py"
    program.write_text(textwrap.dedent(PROGRAM))
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    modes = termios.tcgetattr(ours)
    process = subprocess.Popen(
        [sys.executable, str(program), backend],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm"},
        start_new_session=True,
    )
    os.close(theirs)
    written, asked = b"", False
    while select([ours], [], [], 60)[0]:
        try:
            written += os.read(ours, 65536)
        except OSError:  # the program has ended
            break
        if not asked and b"ready" in written:
            process.send_signal(signal.SIGINT)
            asked = True
    assert process.wait(60) != 0
    assert termios.tcgetattr(ours) == modes
    os.close(ours)
    assert b"\x1b[?" not in written  # neither the cursor nor anything else was switched off
    lines = [line.rstrip() for line in seen(written.decode())]
    at = lines.index("logged")
    assert lines[at + 1 : at + 3] == ["printed", "ready"]
    assert re.fullmatch(r" +\d+/1,000,000 ━+ +0% .*", lines[at + 3])
    assert "Traceback" in lines[at + 4]
