"""Checkpoints read back. Whatever is wrong with one is a DataLossError that says what (contract K3)."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import msgspec

from asyncstep.checkpoint import tensor_file
from asyncstep.checkpoint.decoding import Malformed, Rebuilder, Restorer, decode
from asyncstep.checkpoint.directory import locate, raise_if_damage
from asyncstep.checkpoint.hashing import CHUNK, HashedReader
from asyncstep.checkpoint.manifest import MANIFEST, SIZE_LIMIT, STATE, FileRecord, Manifest, parse, step_of
from asyncstep.checkpoint.retention import Metric
from asyncstep.checkpoint.state import SECTIONS, described
from asyncstep.errors import DataLossError, FailedPreconditionError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from asyncstep.checkpoint.arrays import Stored
    from asyncstep.checkpoint.directory import CheckpointPath, Directory, StrPath

Trees = dict[str, dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What is in a checkpoint: read-only mappings by name.

    Attributes:
        path: where it is.
        step: the global step.
        time: when it was saved, in seconds since the epoch.
        variables: the values of the variables, the global step among them.
        sources: the positions of the sources.
        tracked: the states of the tracked objects.
        hooks: the states of the hooks.
        metric: what `KeepBest` measured, if it did.
    """

    path: CheckpointPath
    step: int
    time: float
    variables: Mapping[str, Any]
    sources: Mapping[str, Any]
    tracked: Mapping[str, Any]
    hooks: Mapping[str, Any]
    metric: Metric | None = None


def read_checkpoint(path: StrPath, *, allow_pickle: bool = False) -> Checkpoint:
    """Read a checkpoint. What is given was checked against the checksums as it was read; it blocks.

    Args:
        path: the checkpoint's directory, as ``checkpoints/step-0000012300``.
        allow_pickle: whether objects that were pickled are made, which can run any code. Without it nothing
            of a checkpoint is executed (contract K6).

    Raises:
        NotFoundError: there is no checkpoint at that path.
        DataLossError: it is damaged; the message says how.
        FailedPreconditionError: it is of a newer format, or holds something that is not to be had here: a
            type that is not registered, a pickle that is not allowed, arrays without numpy.
    """
    directory, name = locate(path)
    with _naming(directory, name):
        manifest = read_manifest(directory, name)
        trees = _read_state(directory, name, manifest)
        stored = _read_arrays(directory, name, manifest)
        values = rebuild(trees, Restorer(stored, allow_pickle=allow_pickle))
    return Checkpoint(
        path=directory.path(name),
        step=manifest.step,
        time=manifest.time,
        metric=metric_of(manifest),
        **values,
    )


def verify_checkpoint(path: StrPath) -> None:
    """Check every byte of a checkpoint; return if it is sound. It blocks.

    Raises:
        NotFoundError: there is no checkpoint at that path.
        DataLossError: it is damaged; the message says how.
        FailedPreconditionError: it is of a newer format.
    """
    check(*locate(path))


def check(directory: Directory, name: str) -> Manifest:
    """`verify_checkpoint` by the name in a directory; gives its manifest."""
    with _naming(directory, name):
        manifest = read_manifest(directory, name)
        buffer = memoryview(bytearray(CHUNK))
        for file, record in manifest.files.items():
            with _checked(directory, name, file, record) as reader:
                rest = record.size
                while rest and reader.fill(buffer[: min(rest, CHUNK)]):
                    rest -= min(rest, CHUNK)
    return manifest


def read_outline(path: StrPath, rebuilder: Rebuilder) -> tuple[Manifest, Mapping[str, Mapping[str, Any]]]:
    """The manifest, and the sections as `rebuilder` makes them; the files of arrays are not read."""
    directory, name = locate(path)
    with _naming(directory, name):
        manifest = read_manifest(directory, name)
        return manifest, rebuild(_read_state(directory, name, manifest), rebuilder)


def read_arrays(path: StrPath) -> dict[str, Stored]:
    """The arrays of a checkpoint by key."""
    directory, name = locate(path)
    with _naming(directory, name):
        return _read_arrays(directory, name, read_manifest(directory, name))


def read_manifest(directory: Directory, name: str) -> Manifest:
    """The manifest, if the files that it lists are there, have its sizes, and no others are there."""
    sizes = directory.files(name)
    if MANIFEST not in sizes:
        raise DataLossError(f"{MANIFEST} is missing")
    if sizes[MANIFEST] > SIZE_LIMIT:
        raise DataLossError(f"{MANIFEST} has {sizes[MANIFEST]} bytes, too many for one")
    with directory.open(name, MANIFEST) as file:
        content = bytearray(sizes[MANIFEST])
        HashedReader(file).fill(memoryview(content))
    manifest = parse(bytes(content))
    if step_of(name) not in (None, manifest.step):
        raise DataLossError(f"{MANIFEST} is that of step {manifest.step}")
    expected = {file: record.size for file, record in manifest.files.items()} | {MANIFEST: sizes[MANIFEST]}
    if expected != sizes:
        raise DataLossError("; ".join(_differences(expected, sizes)))
    return manifest


def metric_of(manifest: Manifest) -> Metric | None:
    """What the checkpoint was measured by."""
    return None if manifest.metric is None else Metric(manifest.metric.name, manifest.metric.value)


def rebuild(trees: Trees, rebuilder: Rebuilder) -> dict[str, Mapping[str, Any]]:
    """The sections with their values; an error names the variable, source, object or hook."""
    return {
        section: MappingProxyType(
            {name: _rebuilt(section, name, tree, rebuilder) for name, tree in entries.items()}
        )
        for section, entries in trees.items()
    }


def _rebuilt(section: str, name: str, tree: Any, rebuilder: Rebuilder) -> Any:
    what = described(section, name)
    try:
        return decode(tree, rebuilder)
    except Malformed as error:
        raise DataLossError(f"{STATE} holds no value for {what}: {error}") from error.__cause__
    except FailedPreconditionError as error:
        raise FailedPreconditionError(f"{what} cannot be restored: {error}") from error.__cause__
    except Exception as error:
        error.add_note(f"while restoring {what}")
        raise


def _read_state(directory: Directory, name: str, manifest: Manifest) -> Trees:
    record = manifest.files[STATE]
    with _checked(directory, name, STATE, record) as reader:
        content = bytearray(record.size)
        reader.fill(memoryview(content))
    try:
        trees: Any = msgspec.msgpack.decode(content, type=dict[str, dict[str, Any]])
    except (msgspec.MsgspecError, ValueError, RecursionError, TypeError) as error:
        raise DataLossError(f"{STATE} cannot be read: {error}") from None
    if set(trees) != set(SECTIONS):
        raise DataLossError(f"{STATE} has the sections {', '.join(map(repr, trees))}")
    return dict(trees)


def _read_arrays(directory: Directory, name: str, manifest: Manifest) -> dict[str, Stored]:
    stored: dict[str, Stored] = {}
    for file, record in sorted(manifest.files.items()):
        if file == STATE:
            continue
        with _checked(directory, name, file, record) as reader:
            found = tensor_file.read(reader, record.size)
        if stored.keys() & found.keys():
            raise DataLossError(f"{file} has the array {min(stored.keys() & found.keys())!r} again")
        stored |= found
    return stored


@contextmanager
def _checked(directory: Directory, name: str, file: str, record: FileRecord) -> Iterator[HashedReader]:
    """A file to be read from first byte to last; what was read must then be what the manifest says."""
    with directory.open(name, file) as opened:
        reader = HashedReader(opened)
        try:
            yield reader
        except DataLossError as error:
            raise DataLossError(f"{file} is damaged: {error}") from None
        except OSError as error:
            raise_if_damage(error, file)
            raise
    if reader.record() != record:
        raise DataLossError(f"{file} does not match its checksum")


def _differences(expected: Mapping[str, int], found: Mapping[str, int]) -> Iterator[str]:
    for file in sorted(expected.keys() | found.keys()):
        if file not in found:
            yield f"{file} is missing"
        elif file not in expected:
            yield f"{file!r} does not belong to it"
        elif expected[file] != found[file]:
            yield f"{file} has {found[file]} bytes instead of {expected[file]}"


@contextmanager
def _naming(directory: Directory, name: str) -> Iterator[None]:
    """Say in an error which checkpoint it is about."""
    path = directory.path(name)
    try:
        yield
    except DataLossError as error:
        raise DataLossError(f"the checkpoint {path} is damaged: {error}") from error.__cause__
    except FailedPreconditionError as error:
        raise FailedPreconditionError(f"the checkpoint {path} cannot be used: {error}") from error.__cause__
