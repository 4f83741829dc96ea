"""Rules C5, C6 and L6 of the contract in a program of its own that gets real signals (see signalled.py)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import asyncstep
from asyncstep.checkpoint import latest_checkpoint, read_checkpoint

BACKENDS = ["asyncio", "uvloop", "trio"]
INT, TERM = signal.SIGINT, signal.SIGTERM


class Program:
    """A running scenario of signalled.py."""

    def __init__(self, backend: str, scenario: str, directory: Path | None = None) -> None:
        here = Path(__file__).parent
        environment = {**os.environ, "PYTHONPATH": str(Path(asyncstep.__file__).parent.parent)}
        self.process = subprocess.Popen(
            [sys.executable, str(here / "signalled.py"), backend, scenario],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=directory,
        )

    def expect(self, line: str) -> None:
        """Waits for the next line of the program, which must be that one."""
        assert self.process.stdout is not None
        found = self.process.stdout.readline().rstrip("\n")
        if found != line:
            rest, errors = self.process.communicate(timeout=60)
            raise AssertionError(f"expected {line!r}, found {found!r}, then:\n{rest}\n{errors}")

    def send(self, number: signal.Signals) -> None:
        """Sends the program a signal."""
        self.process.send_signal(number)

    def rest(self) -> list[str]:
        """The lines that the program prints from now to its end, which is no crash."""
        lines, errors = self.process.communicate(timeout=60)
        assert self.process.returncode == 0, f"{lines}\n{errors}"
        return lines.splitlines()


@pytest.fixture(params=BACKENDS)
def lec_backend(request: pytest.FixtureRequest) -> str:
    """The three backends, in a program of its own each."""
    backend: str = request.param
    return backend


# C6: SignalHook


@pytest.mark.parametrize("number", [INT, TERM])
def test_the_first_signal_is_a_stop(lec_backend: str, number: signal.Signals) -> None:
    """C6, L4: one signal stops the loop: the step in flight commits, the end is clean, the handlers are put
    back."""
    program = Program(lec_backend, "polite")
    program.expect("ready")
    program.send(number)
    assert program.rest() == [
        *("stopping", "loop returned", "end", "saved 1", "reason signal"),
        *("restored True", "left normally"),
    ]


@pytest.mark.parametrize("numbers", [(INT, INT), (TERM, TERM), (INT, TERM)])
@pytest.mark.parametrize("scenario", ["deaf", "deaf_body"])
def test_the_second_signal_ends_the_session(
    lec_backend: str, scenario: str, numbers: tuple[signal.Signals, signal.Signals]
) -> None:
    """C6: the second signal ends the session at once, wherever its body waits; the hooks end and save all the
    same."""
    program = Program(lec_backend, scenario)
    program.expect("ready")
    program.send(numbers[0])
    program.expect("stopping")
    program.send(numbers[1])
    lines = program.rest()
    assert lines[0] in {"on_session_error KeyboardInterrupt", "on_session_error Cancelled"}
    assert lines[1:4] == ["saved 0", "reason signal", "restored True"]
    assert lines[4:] != ["left normally"]


def test_the_final_checkpoint_is_written(lec_backend: str, tmp_path: Path) -> None:
    """C6: a session that a second signal ended has written its final checkpoint, with what was committed."""
    program = Program(lec_backend, "saving", tmp_path)
    program.expect("ready")
    program.send(TERM)
    program.expect("stopping")
    program.send(TERM)
    program.rest()
    newest = latest_checkpoint(tmp_path)
    assert newest is not None
    saved = read_checkpoint(newest)
    assert (saved.step, saved.variables["count"]) == (2, 2)


@pytest.mark.parametrize("number", [INT, TERM])
@pytest.mark.parametrize("scenario", ["deaf_with_own_handlers", "deaf_with_ignored_signals"])
def test_the_second_signal_needs_no_default_handler(
    lec_backend: str, scenario: str, number: signal.Signals
) -> None:
    """C6: the second signal ends the session also where SIGINT was handled, or ignored, by the program before."""
    program = Program(lec_backend, scenario)
    program.expect("ready")
    program.send(number)
    program.expect("stopping")
    program.send(number)
    lines = program.rest()
    assert lines[0] in {"on_session_error KeyboardInterrupt", "on_session_error Cancelled"}
    assert lines[1:4] == ["saved 0", "reason signal", "restored True"]
    assert lines[4:] != ["left normally"]


@pytest.mark.parametrize("scenario", ["with_own_handlers", "with_ignored_signals"])
def test_the_programs_own_handlers_are_put_back(lec_backend: str, scenario: str) -> None:
    """C6: handlers that the program had set before the session, or that ignore the signal, are put back."""
    program = Program(lec_backend, scenario)
    program.expect("ready")
    program.send(TERM)
    lines = program.rest()
    assert lines[:6] == ["stopping", "loop returned", "end", "saved 1", "reason signal", "restored True"]
    if scenario == "with_own_handlers":
        assert lines[6:] == [f"own handler {int(INT)}", f"own handler {int(TERM)}", "left normally"]
    else:
        assert lines[6:] == ["ignored True", "left normally"]


@pytest.mark.parametrize("backend", ["asyncio", "uvloop"])
def test_handlers_of_the_event_loop_are_put_back(backend: str) -> None:
    """C6: a handler that the program had added to asyncio's event loop works again after the session."""
    program = Program(backend, "with_loop_handlers")
    program.expect("ready")
    program.send(TERM)
    lines = program.rest()
    assert lines[-3:] == ["restored True", "loop handler called", "left normally"]


def test_handlers_are_put_back_after_a_recovery(lec_backend: str) -> None:
    """C6, V2: a second incarnation does not make SignalHook forget the former handlers, and a signal still
    stops."""
    program = Program(lec_backend, "with_recovery")
    program.expect("ready")
    program.send(INT)
    assert program.rest() == ["stopping", "end", "saved 0", "reason signal", "restored True", "left normally"]


@pytest.mark.parametrize(("scenario", "reason"), [("with_failing_opening", "error"), ("with_error", "error")])
def test_handlers_are_put_back_after_an_error(lec_backend: str, scenario: str, reason: str) -> None:
    """C6, L3: the former handlers are put back when the opening or the body failed."""
    lines = Program(lec_backend, scenario).rest()
    assert lines[-3:] == ["restored True", "failed", "left normally"]


def test_two_sessions_closed_in_any_order(lec_backend: str) -> None:
    """C6, L7: closing one session leaves the other its signals, and puts back the handlers from before
    both."""
    program = Program(lec_backend, "two_sessions")
    program.expect("ready")
    program.send(INT)
    assert program.rest() == ["stopping", "end", "saved 0", "reason signal", "restored True", "left normally"]


# L6 and C5: Ctrl-C without SignalHook


@pytest.mark.parametrize("scenario", ["ctrl_c_in_body", "ctrl_c_in_step"])
def test_ctrl_c(lec_backend: str, scenario: str) -> None:
    """C5, L6, T4: Ctrl-C ends the session; its hooks finish, what was in flight is rolled back, and it
    leaves."""
    program = Program(lec_backend, scenario)
    program.expect("ready")
    program.send(INT)
    lines = program.rest()
    expected = "KeyboardInterrupt" if lec_backend == "trio" else "Cancelled"
    assert lines[0] == f"on_session_error {expected}"
    assert lines[1] == ("saved 1" if scenario == "ctrl_c_in_body" else "saved 0")
    assert lines[-1] == "left by KeyboardInterrupt"


@pytest.mark.parametrize("scenario", ["ctrl_c_while_closing", "ctrl_c_in_the_closing_hook"])
def test_ctrl_c_while_closing(lec_backend: str, scenario: str) -> None:
    """L6: a first Ctrl-C does not stop the closing; it is raised when that is done."""
    lines = Program(lec_backend, scenario).rest()
    assert lines[:2] == ["end", "saved 1"]
    assert lines[-1] == "left by KeyboardInterrupt"
    assert "not reached" not in lines


@pytest.mark.parametrize("backend", ["asyncio", "uvloop"])
def test_an_interrupt_raised_by_the_event_loop(backend: str) -> None:
    """C5, L6: KeyboardInterrupt raised by a callback ends asyncio.run, which lets the hooks finish first."""
    lines = Program(backend, "raised_by_the_event_loop").rest()
    assert lines[:2] == ["on_session_error Cancelled", "saved 1"]
    assert lines[-1] == "left by KeyboardInterrupt"


def test_an_interrupt_in_a_node(lec_backend: str) -> None:
    """C5: an interrupt raised in one of many nodes ends the session, with its hooks, and leaves."""
    lines = Program(lec_backend, "interrupt_in_a_node").rest()
    assert lines[0].startswith("on_session_error ")
    assert lines[1] == "saved 0"
    assert lines[-1] == "left by KeyboardInterrupt"


def test_an_interrupt_in_a_background_task(lec_backend: str) -> None:
    """C5, L8: an interrupt in a background task is not kept for the next run: it ends a body that never makes one."""
    lines = Program(lec_backend, "interrupt_in_background").rest()
    assert lines[0] == "on_session_error Cancelled"
    assert lines[1] == "saved 0"
    assert lines[-1] != "left normally"


def test_an_interrupt_in_an_end(lec_backend: str) -> None:
    """C5, L4: an interrupt raised by a hook's `end` stops no other hook, and leaves."""
    lines = Program(lec_backend, "interrupt_in_an_end").rest()
    assert lines[:3] == ["end", "end", "saved 1"]
    assert lines[-1] == "left by KeyboardInterrupt"
