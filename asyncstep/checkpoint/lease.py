"""One writer per directory of an object store (contract K9), by a lease.

The lease is the object ``.lock``. Every change of it is conditional on the version that was seen, so of two that
want it one gets it. Its holder renews it every few seconds from a thread of its own; it is given back when the
writer ends. A process that was killed does not renew it: whoever wants it next watches it for as long as a lease
lasts, by its own clock (those of two machines are never compared), and takes it over if it was not renewed
meanwhile; if it was, that is another writer, and a refusal. A holder that was asleep for longer learns before
it writes a manifest or deletes anything that it has lost the lease.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
import uuid
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import obstore
from obstore.exceptions import AlreadyExistsError, PreconditionError

from asyncstep.checkpoint.object_errors import as_os_errors
from asyncstep.errors import FailedPreconditionError

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from obstore import PutMode, PutResult, UpdateVersion
    from obstore.store import ObjectStore

LOCK = ".lock"
RENEWED_EVERY = 5.0
LASTS = 30.0

_logger = logging.getLogger("asyncstep")
_of_this_process: set[str] = set()
"""The tokens of the leases that this process holds."""


class _Seen(NamedTuple):
    """The lease as it was read: its content, and the version that it has."""

    content: dict[str, Any]
    version: UpdateVersion


class _Changed(Exception):
    """The lease is not as it was seen."""


class Lease:
    """The right to write into a directory of an object store: a context manager that its holder may enter again.

    Args:
        store: the directory.
        where: what it is called in messages.
        renewed_every: seconds between two renewals.
        lasts: seconds without a renewal after which another process may have it.
        wait: waits for so many seconds; for tests. A store tells nobody of changes, so who watches a lease
            has to look again and again; it does so in a worker thread, and only while another's lease is there.
    """

    def __init__(
        self,
        store: ObjectStore,
        where: str,
        *,
        renewed_every: float = RENEWED_EVERY,
        lasts: float = LASTS,
        wait: Callable[[float], object] | None = None,
    ) -> None:
        self._wait = threading.Event().wait if wait is None else wait
        self._store = store
        self._where = where
        self._renewed_every = renewed_every
        self._lasts = lasts
        self._depth = 0
        self._token = ""
        self._process = 0
        self._renewals = 0
        self._version: UpdateVersion | None = None
        self._renewing = threading.Lock()
        self._over = threading.Event()

    @property
    def held(self) -> bool:
        """Whether this process has it, as far as it knows."""
        return self._version is not None and self._process == os.getpid()

    def __enter__(self) -> Self:
        if self._depth == 0:
            self._take()
        self._depth += 1
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._depth -= 1
        if self._depth == 0:
            self._give_back()

    def renew(self) -> None:
        """Have it for another while; FailedPreconditionError if another process has taken it over."""
        with self._renewing:
            if self.held and not self._put(self._signature(), self._version):
                self._version = None
                _of_this_process.discard(self._token)
            if not self.held:
                raise FailedPreconditionError(
                    f"this process has lost the right to write into {self._where}: it did not renew it for"
                    f" {self._lasts:g} s, and another process has taken it over"
                )

    def _take(self) -> None:
        self._token, self._process = uuid.uuid4().hex, os.getpid()
        seen = None if self._put(self._signature(), None) else self._read()
        if seen is not None:
            if seen.content.get("token") is not None:
                self._watch(seen)
            if not self._put(self._signature(), seen.version):
                raise self._refusal(self._read())
        elif not self.held:  # it was there, and was removed by hand meanwhile
            raise self._refusal(None)
        _of_this_process.add(self._token)
        self._over = threading.Event()
        # No daemon: one that is inside the store's library when the interpreter ends would crash it.
        threading.Thread(target=self._keep, args=(self._over,), name="asyncstep-lease", daemon=False).start()

    def _watch(self, seen: _Seen) -> None:
        """Return when the lease has not been renewed for as long as it lasts; raise if it was."""
        if seen.content.get("token") in _of_this_process:
            raise self._refusal(seen)
        lasts, every = self._lasts, self._renewed_every
        try:
            lasts, every = max(lasts, float(seen.content["lasts"])), float(seen.content["renewed_every"])
        except (LookupError, TypeError, ValueError):
            pass
        _logger.warning(
            "%s is being written to by %s, or was when that was killed: waiting up to %g s to see which",
            self._where,
            _holder(seen),
            lasts,
        )
        end = time.monotonic() + lasts
        while time.monotonic() < end:
            self._wait(max(0.01, min(every, 1.0, end - time.monotonic())))
            now = self._read()
            if now is None or now.content.get("token") != seen.content.get("token") or now != seen:
                raise self._refusal(now or seen)

    def _give_back(self) -> None:
        self._over.set()
        with self._renewing:
            _of_this_process.discard(self._token)
            if not self.held:
                self._version = None
                return
            try:
                self._put({"token": None}, self._version)
            except Exception as error:  # it ends by itself
                _logger.warning("the lock of %s could not be given back: %s", self._where, error)
            finally:
                self._version = None

    def _keep(self, over: threading.Event) -> None:
        """Renew until it is given back, lost, or the program ends."""
        next_time = time.monotonic() + self._renewed_every
        while threading.main_thread().is_alive():
            if over.wait(max(0.0, min(next_time - time.monotonic(), 1.0))):
                return
            if time.monotonic() < next_time:
                continue
            next_time = time.monotonic() + self._renewed_every
            try:
                self.renew()
            except FailedPreconditionError as error:
                if not over.is_set():
                    _logger.error("%s", error)
                return
            except Exception as error:
                _logger.warning("the lock of %s could not be renewed: %s", self._where, error)

    def _signature(self) -> dict[str, Any]:
        # The versions of some stores are checksums of the content, so each renewal has another content.
        self._renewals += 1
        return {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "token": self._token,
            "renewals": self._renewals,
            "renewed_every": self._renewed_every,
            "lasts": self._lasts,
        }

    def _put(self, content: dict[str, Any], seen: UpdateVersion | None) -> bool:
        """Write the lease if it is as it was seen (None: not there); whether that was so."""
        mode: PutMode = "create" if seen is None else seen
        try:
            with as_os_errors(f"{self._where}/{LOCK}"):
                result = self._try_to_put(json.dumps(content).encode(), mode)
        except (_Changed, FileNotFoundError) as error:
            if seen is None and isinstance(error, FileNotFoundError):  # there is not even a bucket
                raise
            # It may be our own: the answer to a request can get lost, and the request is sent again.
            now = self._read()
            if now is None or now.content != content:
                return False
            self._version = now.version
        else:
            self._version = _version(result)
        return True

    def _try_to_put(self, content: bytes, mode: PutMode) -> PutResult:
        try:
            return obstore.put(self._store, LOCK, content, mode=mode)
        except (AlreadyExistsError, PreconditionError) as error:
            raise _Changed from error

    def _read(self) -> _Seen | None:
        try:
            with as_os_errors(f"{self._where}/{LOCK}"):
                found = obstore.get(self._store, LOCK)
                version = _version(found.meta)
                content = json.loads(bytes(found.bytes()))
        except FileNotFoundError:
            return None
        except ValueError:
            content = None
        return _Seen(content if isinstance(content, dict) else {"token": "unknown"}, version)

    def _refusal(self, seen: _Seen | None) -> FailedPreconditionError:
        return FailedPreconditionError(
            f"{self._where} is being written to by {_holder(seen)}; let it end,"
            " or save into another directory: each has one writer"
        )


def _holder(seen: _Seen | None) -> str:
    """The process that has the lease, as far as can be told."""
    content = {} if seen is None else seen.content
    if content.get("token") in _of_this_process:
        return f"another saver of this process ({os.getpid()})"
    if "pid" in content and "host" in content:
        return f"the process {content['pid']} on {content['host']}"
    return "another process"


def _version(result: PutResult | obstore.ObjectMeta) -> UpdateVersion:
    """What a later change is conditional on."""
    version: UpdateVersion = {}
    if result["e_tag"] is not None:
        version["e_tag"] = result["e_tag"]
    if result["version"] is not None:
        version["version"] = result["version"]
    return version
