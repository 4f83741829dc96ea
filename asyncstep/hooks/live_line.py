"""A line at the bottom of a terminal that is drawn over and over, while what others print appears above it."""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Iterable
from typing import Any, TextIO

__all__ = ["LiveLine", "is_terminal"]

CLEAR = "\r\x1b[2K"


def is_terminal(stream: TextIO | None) -> bool:
    """Whether a live line can be drawn on a stream; no if another one is on it already."""
    if stream is None or isinstance(stream, _Above) or os.environ.get("TERM") in ("dumb", "unknown"):
        return False
    try:
        return stream.isatty()
    except ValueError:  # it is closed
        return False


class LiveLine:
    """The line of one session. The cursor stays at its end; nothing of the terminal is left to be restored.

    While it is open, ``sys.stdout`` and ``sys.stderr``, and the log handlers that write to either, are diverted
    if they are terminals: each full line that is printed goes, byte for byte, where it would have gone, and the
    line is drawn again below it. Any thread may print.

    Args:
        stream: the terminal.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._text = ""
        self.lock: threading.RLock = threading.RLock()
        self._diverted: list[_Above] = []

    def open(self) -> None:
        """Let what others print appear above the line from now on."""
        for name in ("stdout", "stderr"):
            stream = getattr(sys, name)
            if is_terminal(stream):
                above = _Above(self, stream)
                self._diverted.append(above)
                setattr(sys, name, above)
        _exchange({id(each.stream): each for each in self._diverted})

    def show(self, text: str) -> None:
        """Draw the line anew; `text` fits the terminal, and has no line break in it."""
        with self.lock:
            self._text = text
            _write(self._stream, CLEAR + text)

    def close(self) -> None:
        """Leave the line as it is, with the cursor below it; what is printed goes its usual way again."""
        with self.lock:
            for name in ("stdout", "stderr"):
                stream = getattr(sys, name)
                if any(stream is each for each in self._diverted):
                    setattr(sys, name, stream.stream)
            _exchange({id(each): each.stream for each in self._diverted})
            if self._text:
                _write(self._stream, "\n")
                self._text = ""
            for each in self._diverted:
                each.end()
            self._diverted.clear()

    def print_above(self, stream: TextIO, lines: str) -> None:
        """Write whole lines to a stream of the same terminal, above the live line."""
        with self.lock:
            if self._text:
                _write(self._stream, CLEAR)
            try:
                stream.write(lines)
                stream.flush()
            finally:
                if self._text:
                    _write(self._stream, self._text)


class _Above:
    """A stream of the terminal, while there is a live line on it, and what is left of it afterwards."""

    def __init__(self, line: LiveLine, stream: TextIO) -> None:
        self.stream = stream
        self._line = line
        self._begun = ""  # a line that has no end yet
        self._over = False

    def write(self, text: str) -> int:
        """Write the lines that are complete; keep the rest until it is, too."""
        with self._line.lock:
            if self._over:
                return self.stream.write(text)
            whole, newline, rest = text.rpartition("\n")
            if newline:
                begun, self._begun = self._begun, ""
                self._line.print_above(self.stream, begun + whole + newline)
            self._begun += rest
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write them one after the other."""
        for line in lines:
            self.write(line)

    def end(self) -> None:
        """There is no live line any more: give out what was kept, and hold nothing back from now on."""
        begun, self._begun, self._over = self._begun, "", True
        if begun:
            _write(self.stream, begun)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def _write(stream: TextIO, text: str) -> None:
    """Write at once. A terminal that is gone costs the session nothing."""
    try:
        stream.write(text)
        stream.flush()
    except (OSError, ValueError):
        pass


def _exchange(streams: dict[int, Any]) -> None:
    """Have log handlers that write to one of these streams, by their ids, write to another."""
    loggers = [logging.root, *logging.root.manager.loggerDict.values()]
    for logger in loggers:
        for handler in getattr(logger, "handlers", ()):  # what is no logger is a place in the tree
            if isinstance(handler, logging.StreamHandler) and id(handler.stream) in streams:
                handler.setStream(streams[id(handler.stream)])
