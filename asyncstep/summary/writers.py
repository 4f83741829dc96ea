"""Where summaries go: the protocol of writers, and the two that write files."""

from __future__ import annotations

import itertools
import operator
import os
import socket
import time
import weakref
from numbers import Real
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Protocol, Self, SupportsIndex, runtime_checkable

from asyncstep.errors import InvalidArgumentError, InvalidTypeError, kind_of
from asyncstep.summary.appender import AppendedFile, Appender
from asyncstep.summary.binning import BINS, check_bins, histogram_of, numbers_of
from asyncstep.summary.event_format import EventFormat
from asyncstep.summary.json_format import JSONFormat
from asyncstep.summary.png import image_of, pixels_of
from asyncstep.summary.values import Histogram, Image, Scalar, Summary, Text, number

__all__ = ["EventFileWriter", "JSONLinesWriter", "SummaryWriter", "directory_of", "write"]


@runtime_checkable
class SummaryWriter(Protocol):
    """Takes summaries for steps: one of asyncstep's writers, or your own.

    The methods are called on the event loop, so they must be quick; `flush` and `close` are called in a
    worker thread. A writer that has a method ``add_start(step)`` is told when a session begins, or begins
    again after a recovery: the steps from that one on are going to be made.
    """

    def add_scalar(self, tag: str, value: float, step: int, /) -> Any:
        """Take a number."""

    def add_histogram(self, tag: str, value: Histogram, step: int, /) -> Any:
        """Take a distribution."""

    def add_text(self, tag: str, value: str, step: int, /) -> Any:
        """Take a text."""

    def add_image(self, tag: str, value: Image, step: int, /) -> Any:
        """Take a picture."""

    def flush(self) -> Any:
        """Have everything written that was taken so far."""

    def close(self) -> Any:
        """`flush`, and let go of files."""


def write(writer: SummaryWriter, summary: Summary, step: int) -> None:
    """Give a summary to a writer."""
    if isinstance(summary, Scalar):
        writer.add_scalar(summary.tag, summary.value, step)
    elif isinstance(summary, Text):
        writer.add_text(summary.tag, summary.text, step)
    elif isinstance(summary, Histogram):
        writer.add_histogram(summary.tag, summary, step)
    else:
        writer.add_image(summary.tag, summary, step)


class _Format(Protocol):
    """What is in a file."""

    prefix: str
    suffix: str

    def head(self, wall_time: float) -> bytes: ...
    def start(self, step: int, wall_time: float) -> bytes: ...
    def scalar(self, tag: str, value: float, step: int, wall_time: float) -> bytes: ...
    def text(self, tag: str, text: str, step: int, wall_time: float) -> bytes: ...
    def histogram(self, tag: str, histogram: Histogram, step: int, wall_time: float) -> bytes: ...
    def image(self, tag: str, image: Image, step: int, wall_time: float) -> bytes: ...


class FileWriter:
    """Writes summaries into a new file of a directory, in a thread of its own.

    Taking a summary is an append to a list; encoding and writing are done in the thread. The file is made
    when there is something to write. A closed writer may be used again: it begins another file.

    Args:
        directory: where the file is; made if need be.
        flush_secs: for how many seconds summaries may wait to be written together.
        on_error: what becomes of an error of the disk. ``warn``: it is said once, at WARNING on the logger
            ``asyncstep``, what cannot be written is lost, and the loop goes on. ``raise``: the next call
            of a method raises it.

    All methods may be called from any thread, and ``with`` closes it. A fork of the process begins a file of
    its own. What a process has not closed when it ends is written then, but not if it is killed.

    Raises:
        InvalidArgumentError: an empty path or a URL, a number that is not positive, another `on_error`.
        InvalidTypeError: `directory` is no path, or `flush_secs` no number.
    """

    _format: ClassVar[_Format]

    def __init__(
        self, directory: str | os.PathLike[str], *, flush_secs: float = 2.0, on_error: str = "warn"
    ) -> None:
        owner = type(self).__name__
        self.directory: Path = directory_of(owner, directory)
        if isinstance(flush_secs, bool) or not isinstance(flush_secs, Real):
            raise InvalidTypeError(
                f"{owner}: flush_secs must be a number of seconds, got {kind_of(flush_secs)}"
            )
        if not float(flush_secs) > 0:
            raise InvalidArgumentError(f"{owner}: flush_secs must be more than 0 seconds, got {flush_secs!r}")
        if on_error not in ("warn", "raise"):
            raise InvalidArgumentError(f"{owner}: on_error must be 'warn' or 'raise', got {on_error!r}")
        directory, made = self.directory, self._format
        self._appender: Appender = Appender(
            lambda: _new_file(directory, made),
            directory,
            flush_secs=min(flush_secs, _LONGEST),
            raises=on_error == "raise",
        )
        self._started_at: int | None = None
        weakref.finalize(self, self._appender.stop).atexit = False  # the appender knows what to do then

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {str(self.directory)!r}>"

    def add_scalar(self, tag: str, value: float, step: int, *, wall_time: float | None = None) -> None:
        """Write a number, or an array without dimensions. Never waits.

        Raises:
            InvalidTypeError: `tag` is no string, `value` no number, or `step` no integer.
            OSError: with ``on_error="raise"``, an error of the disk that was not raised yet.
        """
        found = number(value)
        if found is None:
            raise InvalidTypeError(f"the scalar {tag!r} must be a number, got {kind_of(value)}")
        self._put(_SMALL, self._format.scalar, tag, found, step, wall_time)

    def add_text(self, tag: str, value: str, step: int, *, wall_time: float | None = None) -> None:
        """Write a text, which TensorBoard shows as Markdown; else as `add_scalar`."""
        if not isinstance(value, str):
            raise InvalidTypeError(f"the text {tag!r} must be a string, got {kind_of(value)}")
        self._put(_SMALL + len(value), self._format.text, tag, value, step, wall_time)

    def add_histogram(
        self, tag: str, value: Any, step: int, *, bins: int = BINS, wall_time: float | None = None
    ) -> None:
        """Write the distribution of an array of numbers, or a `Histogram`; else as `add_scalar`.

        An array is copied, and counted in the thread; `bins` is the number of buckets.

        Raises:
            ImportError: it is an array, and there is no numpy (``asyncstep[numpy]``).
        """
        if isinstance(value, Histogram):
            size = _SMALL + 64 * len(value.limits)
            self._put(size, self._format.histogram, tag, value, step, wall_time)
            return
        check_bins("add_histogram", bins)
        values = numbers_of(tag, value).copy()

        def encode(tag: str, values: Any, step: int, wall_time: float) -> bytes:
            return self._format.histogram(tag, histogram_of(tag, values, bins), step, wall_time)

        self._put(_SMALL + values.nbytes, encode, tag, values, step, wall_time)

    def add_image(self, tag: str, value: Any, step: int, *, wall_time: float | None = None) -> None:
        """Write a picture: an array as `asyncstep.summary.image` takes it, or an `Image`; else as `add_scalar`.

        An array is copied, and made a PNG in the thread.

        Raises:
            ImportError: it is an array, and there is no numpy (``asyncstep[numpy]``).
            InvalidArgumentError: it has the shape of no picture.
        """
        if isinstance(value, Image):
            self._put(_SMALL + len(value.png), self._format.image, tag, value, step, wall_time)
            return
        pixels = pixels_of(tag, value)

        def encode(tag: str, pixels: Any, step: int, wall_time: float) -> bytes:
            return self._format.image(tag, image_of(tag, pixels), step, wall_time)

        self._put(_SMALL + pixels.nbytes, encode, tag, pixels, step, wall_time)

    def add_start(self, step: int, *, wall_time: float | None = None) -> None:
        """Say that the steps from `step` on are going to be made, perhaps again.

        TensorBoard drops what there is of them. Said twice in a row for one step, it is written once.
        TensorFlow: the ``SessionLog.START`` event.
        """
        step = _checked_step("a start", step)
        if self._started_at != step:
            self._appender.put(
                _SMALL, self._format.start, step, time.time() if wall_time is None else wall_time
            )
            self._started_at = step

    def flush(self) -> None:
        """Wait until everything is written that was taken so far; blocks the calling thread, never the writer's."""
        self._appender.flush()

    def close(self) -> None:
        """`flush`, close the file and end the thread; blocks the calling thread. Idempotent."""
        self._appender.close()

    def _put(self, size: int, encode: Any, tag: str, value: Any, step: int, wall_time: float | None) -> None:
        if not isinstance(tag, str):
            raise InvalidTypeError(f"the tag of a summary must be a string, got {kind_of(tag)}")
        if type(step) is not int:
            step = _checked_step(f"the summary {tag!r}", step)
        self._started_at = None
        self._appender.put(size, encode, tag, value, step, time.time() if wall_time is None else wall_time)


class EventFileWriter(FileWriter):
    """Writes the event files that TensorBoard reads; needs no other library.

    A number is kept as the format has it, in 32 bits. Arguments, methods and errors are those of
    `JSONLinesWriter`.

    TensorFlow: ``tf.summary.FileWriter``.
    """

    _format = EventFormat()


class JSONLinesWriter(FileWriter):
    """Writes files of JSON lines; needs no other library.

    Each line is an object with the keys ``step``, ``wall_time``, ``tag``, ``kind`` (``scalar``, ``histogram``,
    ``text``, ``image``, ``start``) and ``value``. Numbers that are not finite are the strings ``NaN``,
    ``Infinity`` and ``-Infinity``. A picture has its PNG in base64. A line of the kind ``start`` says that what
    the lines before it tell of the steps from its own on was undone.
    """

    _format = JSONFormat()


_SMALL = 256  # bytes in memory of a scalar that waits
_LONGEST = 86400.0
_numbers = itertools.count(1)


def _new_file(directory: Path, made: _Format) -> AppendedFile:
    """A file whose name sorts behind those of all the files that there are, with its head."""
    now = time.time()
    stamp = f"{now:017.6f}.{socket.gethostname()}.{os.getpid()}.{next(_numbers):06d}"
    file = AppendedFile(directory / f"{made.prefix}{stamp}{made.suffix}")
    try:
        file.append(made.head(now))
    except BaseException:
        file.close()
        raise
    return file


def _checked_step(owner: str, step: object) -> int:
    if isinstance(step, bool) or not isinstance(step, SupportsIndex):
        raise InvalidTypeError(f"the step of {owner} must be an integer, got {kind_of(step)}")
    return operator.index(step)


def directory_of(owner: str, path: object) -> Path:
    """The absolute path of a directory for summaries, if it can be one; nothing is looked up.

    Raises:
        InvalidTypeError: it is no path at all.
        InvalidArgumentError: it is empty, a URL, or has a NUL in it.
    """
    text = os.fspath(path) if isinstance(path, (str, os.PathLike)) else None
    if not isinstance(text, str):
        raise InvalidTypeError(f"{owner}: the directory must be a string or a path, got {kind_of(path)}")
    if not text or "\0" in text:
        raise InvalidArgumentError(f"{owner}: {text!r} is no path of a directory")
    if "://" in text and text.partition("://")[0].isalnum():
        raise InvalidArgumentError(
            f"{owner}: {text!r} is a URL; summaries are written into directories of the file system"
        )
    return Path(os.path.abspath(text))
