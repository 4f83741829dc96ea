"""Checkpoints in an object store: Amazon S3, Google Cloud Storage, Azure and what speaks their protocols.

A store has no rename. So the files of a checkpoint are put under its name first, and its ``MANIFEST.json``
last, on the condition that there is none: what has no manifest is no checkpoint. To delete one, its manifest
goes first. What is left over of a save or a deletion that did not end is removed by the next writer.

One that takes the place of a damaged checkpoint of the same step waits under ``.new-...`` until its commit.

All this is synchronous, and is called from worker threads, so it goes with every event loop.
"""

from __future__ import annotations

import io
import logging
import uuid
from itertools import chain
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import obstore
from obstore.exceptions import AlreadyExistsError
from obstore.store import AzureStore, GCSStore, S3Store

from asyncstep.checkpoint.directory import ObjectPath
from asyncstep.checkpoint.lease import LASTS, RENEWED_EVERY, Lease
from asyncstep.checkpoint.manifest import MANIFEST, step_of
from asyncstep.checkpoint.object_errors import as_os_errors
from asyncstep.errors import DataLossError, FailedPreconditionError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from obstore.store import ObjectStore

_logger = logging.getLogger("asyncstep")

_NEW = ".new-"
_PART = 8 * 2**20
"""Bytes in one request; files that are shorter need no more than one. Stores take 10,000 parts."""

_PARTS_AT_ONCE = 4


class ObjectDirectory:
    """A prefix of an object store with checkpoints under it.

    Args:
        store: the store; all its objects are below the prefix.
        root: where that is, for people.
        renewed_every: seconds between two renewals of a writer's lease.
        lasts: seconds without a renewal after which another writer may take over.
    """

    def __init__(
        self,
        store: ObjectStore,
        root: ObjectPath,
        *,
        renewed_every: float = RENEWED_EVERY,
        lasts: float = LASTS,
    ) -> None:
        self.store = store
        self.root = root
        self._renewed_every = renewed_every
        self._lasts = lasts
        self._lease = self._new_lease()

    @classmethod
    def at(cls, root: ObjectPath) -> ObjectDirectory:
        """The directory of a URL; credentials and endpoints are those of the environment, as obstore reads it."""
        prefix = root.key or None
        with as_os_errors(str(root)):
            if root.scheme == "s3":
                return cls(S3Store(root.bucket, prefix=prefix), root)
            if root.scheme == "gs":
                return cls(GCSStore(root.bucket, prefix=prefix), root)
            return cls(AzureStore(root.bucket, prefix=prefix), root)

    def names(self) -> list[str]:
        return [name for name, files in self._groups("step-").items() if _is_whole(name, files)]

    def path(self, name: str) -> ObjectPath:
        return self.root / name

    def files(self, name: str) -> dict[str, int]:
        sizes = self._files(name)
        if MANIFEST not in sizes:
            inside = {deeper for deeper, _, file in (key.partition("/") for key in sizes) if file == MANIFEST}
            hint = f"; it has checkpoints inside, as {max(inside)}" if inside else ""
            raise NotFoundError(f"there is no checkpoint at {self.path(name)}{hint}")
        return sizes

    def open(self, name: str, file: str) -> BinaryIO:
        key = f"{name}/{file}"
        try:
            with as_os_errors(f"{self.root / key}"):
                size = obstore.head(self.store, key)["size"]
        except FileNotFoundError as error:
            raise DataLossError(f"{file} is missing") from error
        return cast("BinaryIO", _Reader(self.store, self.root, key, size))

    def lock(self) -> Lease:
        lease = self._new_lease()
        if not self._lease.held:  # else the new one will be refused
            self._lease = lease
        return lease

    def _new_lease(self) -> Lease:
        return Lease(self.store, str(self.root), renewed_every=self._renewed_every, lasts=self._lasts)

    def clear(self) -> None:
        for name, files in self._groups(None).items():
            if name.startswith(_NEW) or (step_of(name) is not None and MANIFEST not in files):
                self.remove(name, files)

    def draft(self, name: str) -> ObjectDraft:
        self._lease.renew()
        there = self._files(name)
        if MANIFEST in there:
            return ObjectDraft(self, name, f"{_NEW}{name}-{uuid.uuid4().hex}")
        self._delete(name, there)  # an earlier one could not be discarded
        return ObjectDraft(self, name, name)

    def delete(self, name: str) -> None:
        self._lease.renew()
        rest = self._files(name)
        if rest.pop(MANIFEST, None) is not None:
            self._delete(name, [MANIFEST])
        self.remove(name, rest)

    def make_room(self, name: str) -> None:
        """Remove a checkpoint, and all that is left of it."""
        self._lease.renew()
        self._delete(name, sorted(self._files(name), key=lambda file: file != MANIFEST))

    def remove(self, name: str, files: Iterable[str]) -> None:
        """Remove what nobody reads; if that fails, the next writer tries again."""
        try:
            self._delete(name, files)
        except OSError as error:
            _logger.warning("%s could not be removed: %s", self.path(name), error)

    def put(self, key: str, chunks: Iterable[memoryview]) -> None:
        """Make an object of these bytes; one that fits into a part by one request."""
        self._lease.renew()
        iterator = iter(chunks)
        first: list[memoryview] = []
        while sum(map(len, first)) < _PART:
            chunk = next(iterator, None)
            if chunk is None:
                self._put(key, b"".join(first), use_multipart=False)
                return
            first.append(chunk)
        self._put(key, chain(first, iterator), use_multipart=True)

    def _put(self, key: str, content: bytes | Iterator[memoryview], *, use_multipart: bool) -> None:
        with as_os_errors(f"{self.root / key}"):
            obstore.put(
                self.store,
                key,
                content,
                use_multipart=use_multipart,
                chunk_size=_PART,
                max_concurrency=_PARTS_AT_ONCE,
            )

    def publish(self, name: str, manifest: bytes) -> None:
        """Put the manifest, if there is none and this process still has the directory."""
        self._lease.renew()
        key = f"{name}/{MANIFEST}"
        with as_os_errors(f"{self.root / key}"):
            try:
                obstore.put(self.store, key, manifest, mode="create")
            except AlreadyExistsError:
                # It may be our own: the answer to a request can get lost, and the request is sent again.
                if bytes(obstore.get(self.store, key).bytes()) != manifest:
                    raise FailedPreconditionError(
                        f"another writer has put {self.path(name)} meanwhile; each directory has one writer"
                    ) from None

    def move(self, old: str, new: str) -> None:
        """Copy files to where nobody looks for a manifest yet; the old ones stay."""
        for file in self._files(old):
            with as_os_errors(f"{self.path(new) / file}"):
                obstore.copy(self.store, f"{old}/{file}", f"{new}/{file}")

    def _files(self, name: str) -> dict[str, int]:
        """What is under a name, with lengths; what is deeper has slashes in its name."""
        with as_os_errors(str(self.path(name))):
            return {
                meta["path"].removeprefix(f"{name}/"): meta["size"]
                for some in obstore.list(self.store, name, chunk_size=1000)
                for meta in some
            }

    def discard(self, name: str) -> None:
        """Remove what was written under a name that has no manifest; does not raise."""
        if not self._lease.held:  # by now it may be another writer's
            return
        try:
            files = self._files(name)
        except OSError as error:
            _logger.warning("%s could not be removed: %s", self.path(name), error)
            return
        if MANIFEST not in files:
            self.remove(name, files)

    def _groups(self, after: str | None) -> dict[str, list[str]]:
        """The files by the name that they are under, of names that sort after this one."""
        groups: dict[str, list[str]] = {}
        with as_os_errors(str(self.root)):
            for some in obstore.list(self.store, offset=after, chunk_size=1000):
                for meta in some:
                    name, _, file = meta["path"].partition("/")
                    groups.setdefault(name, []).append(file)
        return groups

    def _delete(self, name: str, files: Iterable[str]) -> None:
        for file in files:
            try:
                with as_os_errors(f"{self.path(name) / file}"):
                    obstore.delete(self.store, f"{name}/{file}")
            except FileNotFoundError:
                pass


class ObjectDraft:
    """A checkpoint on its way into an `ObjectDirectory`.

    Args:
        directory: the directory.
        name: the name that the checkpoint will have.
        place: the name that its files are under until then.
    """

    def __init__(self, directory: ObjectDirectory, name: str, place: str) -> None:
        self._directory = directory
        self._name = name
        self._place = place

    def write(self, file: str, chunks: Iterable[memoryview]) -> None:
        self._directory.put(f"{self._place}/{file}", chunks)

    def commit(self, manifest: bytes) -> ObjectPath:
        directory = self._directory
        if self._place != self._name:
            directory.make_room(self._name)
            directory.move(self._place, self._name)
        directory.publish(self._name, manifest)
        if self._place != self._name:
            directory.discard(self._place)
        return directory.path(self._name)

    def discard(self) -> None:
        self._directory.discard(self._place)


class _Reader(io.RawIOBase):
    """An object, read from its first byte to its last, a part at a time."""

    def __init__(self, store: ObjectStore, root: ObjectPath, key: str, size: int) -> None:
        self._store = store
        self._where = f"{root / key}"
        self._key = key
        self._size = size
        self._position = 0
        self._part = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, target: Any) -> int:
        if not self._part and self._position < self._size:
            self._fetch()
        count = min(len(target), len(self._part))
        target[:count] = self._part[:count]
        self._part = self._part[count:]
        return count

    def _fetch(self) -> None:
        end = min(self._position + _PART, self._size)
        try:
            with as_os_errors(self._where):
                part = obstore.get_range(self._store, self._key, start=self._position, end=end)
        except FileNotFoundError as error:
            raise DataLossError("it was removed while it was read") from error
        self._part, self._position = memoryview(part), end


def _is_whole(name: str, files: Iterable[str]) -> bool:
    return step_of(name) is not None and MANIFEST in files
