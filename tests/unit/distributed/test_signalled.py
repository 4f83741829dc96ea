"""The signals of a launch, wherever in the handling of the first one the second comes."""

from __future__ import annotations

import signal
import sys
from types import FrameType
from typing import Any

import pytest

from asyncstep.distributed import signalled


class Running:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.stops: list[str] = []

    def stop(self, kind: str, message: str, origin: str) -> None:
        assert (kind, message) == ("signal", "")
        self.stops.append(origin)


def interrupt_after(lines: int) -> Any:
    """A trace function that sends SIGTERM once so many lines of the handler have begun."""
    left = lines

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal left
        if frame.f_code.co_name != "handle" or frame.f_code.co_filename != signalled.__file__:
            return None
        if event == "line":
            left -= 1
            if left == 0:
                signal.raise_signal(signal.SIGTERM)
        return trace

    return trace


@pytest.mark.parametrize("lines", range(1, 12))
def test_a_second_signal_in_the_middle_of_the_first_is_not_lost(lines: int) -> None:
    """The sessions are told to stop, once, and the launch is interrupted."""
    running = Running()
    former = sys.gettrace()
    try:
        with pytest.raises(KeyboardInterrupt) as interrupt, signalled._passing_on(running) as received:  # type: ignore[arg-type]
            sys.settrace(interrupt_after(lines))
            signal.raise_signal(signal.SIGINT)
            sys.settrace(former)
            signal.raise_signal(signal.SIGTERM)  # there are fewer lines
    finally:
        sys.settrace(former)
    assert len(running.stops) == 1
    assert set(received) == {signal.SIGINT, signal.SIGTERM}
    assert interrupt.value.args[0] in received
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
