"""Appender: records go to a file in a thread, and whoever has them never waits for the disk.

`put` appends to a list and returns. The thread takes what there is every so often, encodes it, and writes it in
one piece. It is a daemon, because a writer that nobody closes must not keep the process from ending; at the
end of the process all appenders are closed, so what they were given is written all the same.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

__all__ = ["AppendedFile", "Appender", "File"]

logger: logging.Logger = logging.getLogger("asyncstep")

MOST_BYTES = 1 << 28
"""What may wait to be written, about; more is lost, for a disk that hangs must not fill the memory."""

HURRY_BYTES = 1 << 24
"""What is not kept waiting for more."""

_SECONDS_AT_EXIT = 10.0

Entry = tuple[Callable[..., bytes], tuple[Any, ...]]


class File(Protocol):
    """Takes bytes at its end."""

    def append(self, content: bytes) -> None:
        """Add all of it, or, with an OSError, nothing."""

    def close(self) -> None:
        """Nothing more will come."""


class AppendedFile:
    """A new file, to which bytes are appended as a whole or not at all."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(
            path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666
        )
        self._size = 0
        self._torn = False  # whether there is a part of a record at its end

    def append(self, content: bytes) -> None:
        self._mend()
        rest = memoryview(content)
        try:
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
        except OSError:
            self._torn = True
            with suppress(OSError):  # then it is tried again before anything else is written
                self._mend()
            raise
        self._size += len(content)

    def _mend(self) -> None:
        """Take back a part of a record: behind it nothing could be read any more."""
        if self._torn:
            os.ftruncate(self._descriptor, self._size)
            os.lseek(self._descriptor, self._size, os.SEEK_SET)
            self._torn = False

    def close(self) -> None:
        try:
            self._mend()
        finally:
            os.close(self._descriptor)


class Appender:
    """Appends records to a file that it opens when there is something to write.

    Args:
        open_file: makes the file, with what belongs at its beginning.
        where: the place, for messages.
        flush_secs: how long records may wait to be written together, in seconds.
        raises: raise what goes wrong, from the next call; else it is logged, once, at WARNING.

    All methods may be called from any thread. After `close` it may be used again: it opens another file.
    """

    def __init__(
        self, open_file: Callable[[], File], where: object, *, flush_secs: float, raises: bool
    ) -> None:
        self._open_file = open_file
        self._where = where
        self._flush_secs = flush_secs
        self._raises = raises
        self._forget()
        _alive.add(self)

    def _forget(self) -> None:
        """There is no thread, no file, and nothing to write."""
        self._changed = threading.Condition(threading.Lock())
        self._thread: threading.Thread | None = None
        self._file: File | None = None
        self._pending: list[Entry] = []
        self._pending_bytes = 0
        self._put = self._done = 0  # how many entries came, and how many have been written or lost
        self._lost = 0
        self._idle = self._hurry = self._stopping = False
        self._error: Exception | None = None
        self._said = False

    def put(self, size: int, encode: Callable[..., bytes], *args: Any) -> None:
        """Have the record ``encode(*args)`` written; `size` is about what waits for it in memory.

        Never waits. If something went wrong before and that is to be raised, it is raised here, once.
        """
        if self._error is not None:
            self._raise_error()
        with self._changed:
            if self._pending_bytes > MOST_BYTES:
                self._lost += 1
                full = not self._said
                self._said = True
            else:
                full = False
                self._pending.append((encode, args))
                self._pending_bytes += size
                self._put += 1
                if self._thread is None:
                    self._start()
                elif self._idle or (self._pending_bytes > HURRY_BYTES and not self._hurry):
                    self._hurry = self._hurry or not self._idle
                    self._idle = False
                    self._changed.notify_all()
        if full:
            logger.warning("%s takes no summaries as fast as they come; some are lost", self._where)

    def _start(self) -> None:
        self._hurry = True  # what is first shows whether the place can be written to
        thread = threading.Thread(target=self._run, name=f"summaries into {self._where}", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # there can be no more threads; the next summary tries again
            self._failed(error, 0)
        else:
            self._thread = thread

    def flush(self) -> None:
        """Wait until everything is written that has been put so far; blocks the thread that calls it."""
        with self._changed:
            wanted = self._put
            self._hurry = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._done >= wanted or self._thread is None)
        self._raise_error()

    def close(self, timeout: float | None = None) -> None:
        """`flush`, then close the file and end the thread; blocks the thread that calls it, for `timeout` seconds."""
        thread = self.stop()
        if thread is not None:
            thread.join(timeout)
        self._raise_error()

    def stop(self) -> threading.Thread | None:
        """Have the thread write what there is and end; return it, if it runs. Never waits."""
        with self._changed:
            if self._thread is not None:
                self._stopping = True
                self._changed.notify_all()
            return self._thread

    def _raise_error(self) -> None:
        error, self._error = self._error, None
        try:
            if error is not None:
                raise error
        finally:
            del error

    # What follows runs in the thread.

    def _run(self) -> None:
        running = True
        while running:
            entries = self._taken()
            if entries:
                self._write(entries)
            else:
                self._close_file()
            running = self._go_on(len(entries))

    def _taken(self) -> list[Entry]:
        """What there is to write, once it is time to; nothing when the thread is to end."""
        with self._changed:
            self._idle = True
            self._changed.wait_for(lambda: self._pending or self._stopping)
            self._idle = False
            self._changed.wait_for(lambda: self._hurry or self._stopping, self._flush_secs)
            entries, self._pending = self._pending, []
            self._pending_bytes = 0
            self._hurry = False
            return entries

    def _go_on(self, done: int) -> bool:
        """Count what was done; False if that was the last there is to do."""
        with self._changed:
            self._done += done
            if done == 0 and not self._pending:
                self._stopping = False
                self._thread = None
            self._changed.notify_all()
            return self._thread is not None

    def _close_file(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            try:
                file.close()
            except OSError as error:
                self._failed(error, 0)
        if self._lost and not self._raises:
            logger.info("%d summaries were not written into %s", self._lost, self._where)
        self._lost = 0
        self._said = False

    def _write(self, entries: list[Entry]) -> None:
        records: list[bytes] = []
        for encode, args in entries:
            try:
                records.append(encode(*args))
            except Exception as error:
                self._failed(error, 1)
        try:
            if self._file is None:
                self._file = self._open_file()
            self._file.append(b"".join(records))
        except Exception as error:
            self._failed(error, len(records))

    def _failed(self, error: Exception, lost: int) -> None:
        """Say so once, or keep it for the next call; the loop goes on in any case."""
        self._lost += lost
        if self._raises:
            self._error = error
        elif not self._said:
            self._said = True
            logger.warning(
                "summaries cannot be written into %s: %s: %s; the loop goes on, and these are lost",
                self._where,
                type(error).__name__,
                error,
            )


_alive: weakref.WeakSet[Appender] = weakref.WeakSet()


def _close_all() -> None:
    for appender in list(_alive):
        try:
            appender.close(_SECONDS_AT_EXIT)
        except Exception as error:
            logger.error("summaries could not be written when the process ended", exc_info=error)


def _forget_all() -> None:
    """A fork has no threads but its own; what is in the files, and what is to come, is its parent's."""
    for appender in list(_alive):
        if appender._file is not None:
            appender._file.close()
        appender._forget()


atexit.register(_close_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)
