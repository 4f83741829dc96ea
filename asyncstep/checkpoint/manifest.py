"""MANIFEST.json: what a checkpoint consists of. It is written last, and makes the checkpoint whole.

The file is ``{"manifest": {...}, "sha256": checksum of that object}``, always rendered the same way, so that
not one byte of it can differ unnoticed. This envelope stays as it is in all formats; a manifest whose
checksum holds and whose format is newer than `FORMAT` is not damaged but written by a newer asyncstep.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Any

import msgspec

from asyncstep.errors import DataLossError, FailedPreconditionError

FORMAT = 1
MANIFEST = "MANIFEST.json"
STATE = "state.msgpack"
SIZE_LIMIT = 16 * 2**20
"""The longest manifest that is read; a longer one is no manifest."""

_STEP_DIGITS = 10
_CHECKPOINT_NAME = re.compile(r"step-(\d{10}|[1-9]\d{10,18})", re.ASCII)
_FILE_NAME = re.compile(r"state\.msgpack|arrays-\d{5}\.safetensors", re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)


@dataclass(frozen=True, slots=True)
class FileRecord:
    """One file of a checkpoint: its length in bytes, and its SHA-256 in hexadecimal digits."""

    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class MetricRecord:
    """What `KeepBest` measured at the save; the value as Python writes a float, so inf and nan are kept."""

    name: str
    text: str

    @property
    def value(self) -> float:
        """The number."""
        return float(self.text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a checkpoint consists of.

    Attributes:
        format: the version of the layout.
        step: the global step.
        time: when it was saved, in seconds since the epoch.
        files: its files by name, all but the manifest.
        metric: what it was measured by, if it was.
    """

    format: int = FORMAT
    step: int
    time: float
    files: dict[str, FileRecord]
    metric: MetricRecord | None = None

    @property
    def size(self) -> int:
        """How many bytes the files have."""
        return sum(record.size for record in self.files.values())


class _Format(msgspec.Struct, frozen=True):
    format: int


class _Envelope(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    manifest: msgspec.Raw
    sha256: str


def checkpoint_name(step: int) -> str:
    """The name of the checkpoint of a step, as ``step-0000012300``; they sort by step up to ten digits."""
    return f"step-{step:0{_STEP_DIGITS}d}"


def step_of(name: str) -> int | None:
    """The step of a checkpoint's name; None if it is no such name."""
    match = _CHECKPOINT_NAME.fullmatch(name)
    return None if match is None else int(match[1])


def arrays_name(index: int) -> str:
    """The name of the file of arrays with that index."""
    return f"arrays-{index:05d}.safetensors"


def render(manifest: Manifest) -> bytes:
    """The manifest as the content of its file."""
    return _rendered(msgspec.to_builtins(manifest))


def parse(content: bytes) -> Manifest:
    """The manifest out of its file's content.

    Raises:
        DataLossError: it is damaged: any difference from what `render` gives.
        FailedPreconditionError: it is sound, and of a newer format.
    """
    try:
        envelope = msgspec.json.decode(content, type=_Envelope)
        if hashlib.sha256(envelope.manifest).hexdigest() != envelope.sha256:
            raise DataLossError(f"{MANIFEST} does not match its checksum")
        newer = msgspec.json.decode(envelope.manifest, type=_Format).format
        if newer > FORMAT:
            raise FailedPreconditionError(
                f"it has format {newer}, of a newer asyncstep; this one reads up to format {FORMAT}."
                " Install a newer asyncstep, or move the checkpoint elsewhere"
            )
        manifest = msgspec.json.decode(envelope.manifest, type=Manifest)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise DataLossError(f"{MANIFEST} cannot be read: {error}") from None
    wrong = _what_is_wrong(manifest)
    if wrong is None and render(manifest) != content:
        wrong = "is not as asyncstep writes it"
    if wrong is not None:
        raise DataLossError(f"{MANIFEST} {wrong}")
    return manifest


def _what_is_wrong(manifest: Manifest) -> str | None:
    if manifest.format != FORMAT:
        return f"has the unknown format {manifest.format}"
    if step_of(checkpoint_name(manifest.step)) != manifest.step:
        return f"has the impossible step {manifest.step}"
    if STATE not in manifest.files:
        return f"does not list {STATE}"
    for name, record in manifest.files.items():
        if _FILE_NAME.fullmatch(name) is None:
            return f"lists {name!r}, which is no file of a checkpoint"
        if record.size < 0 or _SHA256.fullmatch(record.sha256) is None:
            return f"has an impossible size or checksum of {name}"
    return _what_is_wrong_with(manifest.metric)


def _what_is_wrong_with(metric: MetricRecord | None) -> str | None:
    try:
        right = metric is None or repr(metric.value) == metric.text
    except ValueError:
        right = False
    return None if right else "has a metric that is no number"


def _rendered(manifest: Any) -> bytes:
    body = msgspec.json.encode(manifest, order="deterministic")
    checksum = hashlib.sha256(body).hexdigest()
    return b'{"manifest":%s,"sha256":"%s"}\n' % (body, checksum.encode())
