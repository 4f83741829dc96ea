"""Whatever happens to the files of a checkpoint is found, said, and never taken for a state (contract K3)."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import numpy as np
import pytest

from asyncstep.checkpoint import (
    latest_checkpoint,
    list_checkpoints,
    read_checkpoint,
    verify_checkpoint,
)
from asyncstep.checkpoint.local import LocalDirectory
from asyncstep.checkpoint.manifest import MANIFEST, STATE, FileRecord, Manifest, MetricRecord, render
from asyncstep.checkpoint.reading import check
from asyncstep.errors import DataLossError, Error, FailedPreconditionError, NotFoundError

from .parts import save

ARRAYS = "arrays-00000.safetensors"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A small checkpoint with all kinds of files."""
    return save(tmp_path, 7, array=np.arange(3, dtype=np.int16), text="abc")


def forged(path: Path, content: dict[str, bytes], **changes: Any) -> None:
    """Give a checkpoint other files, with a manifest whose checksums hold."""
    for file in path.iterdir():
        file.unlink()
    for name, data in content.items():
        (path / name).write_bytes(data)
    records = {
        name: FileRecord(len(data), hashlib.sha256(data).hexdigest()) for name, data in content.items()
    }
    manifest = Manifest(**{"step": 7, "time": 0.0, "files": records} | changes)
    (path / MANIFEST).write_bytes(render(manifest))


def forged_manifest(path: Path, body: bytes) -> None:
    """Give a checkpoint a manifest of that body, with the right checksum of it."""
    checksum = hashlib.sha256(body).hexdigest().encode()
    (path / MANIFEST).write_bytes(b'{"manifest":%s,"sha256":"%s"}\n' % (body, checksum))


def state_of(**sections: Any) -> bytes:
    """The content of a state file with these trees."""
    return msgspec.msgpack.encode({"variables": {}, "sources": {}, "tracked": {}, "hooks": {}} | sections)


def test_every_flipped_bit_is_found(path: Path) -> None:
    """K3: with any bit of any byte of any file flipped it is damaged, for verify, read and latest alike."""
    for file in sorted(path.iterdir()):
        content = file.read_bytes()
        for position in range(len(content)):
            flipped = bytearray(content)
            flipped[position] ^= 1 << position % 8
            file.write_bytes(flipped)
            for examine in (verify_checkpoint, read_checkpoint):
                with pytest.raises(DataLossError, match=file.name):
                    examine(path)
        file.write_bytes(content)
    verify_checkpoint(path)


def test_every_truncation_is_found(path: Path) -> None:
    """K3: a file that ends anywhere too early, the empty one too, is named with what is wrong."""
    for file in sorted(path.iterdir()):
        content = file.read_bytes()
        for length in range(len(content)):
            file.write_bytes(content[:length])
            for examine in (verify_checkpoint, read_checkpoint):
                with pytest.raises(DataLossError, match=file.name):
                    examine(path)
        file.write_bytes(content)


@pytest.mark.parametrize("file", [MANIFEST, STATE, ARRAYS])
@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda path: path.unlink(), "is missing"),
        (lambda path: path.write_bytes(b""), "cannot be read|has 0 bytes instead of"),
        (
            lambda path: path.write_bytes(path.read_bytes() + b"\n"),
            "not as asyncstep writes it|bytes instead of",
        ),
        (lambda path: (path.unlink(), path.mkdir()), "is not a file"),
        (lambda path: (path.unlink(), path.symlink_to("/dev/zero")), "is not a file"),
        (lambda path: (path.unlink(), os.mkfifo(path)), "is not a file"),
    ],
    ids=["missing", "empty", "longer", "directory", "link", "pipe"],
)
def test_damage_is_said(path: Path, file: str, damage: Callable[[Path], object], said: str) -> None:
    """K3: the error names the checkpoint, the file and what is wrong with it."""
    damage(path / file)
    for examine in (verify_checkpoint, read_checkpoint):
        with pytest.raises(DataLossError, match=said) as caught:
            examine(path)
        assert str(caught.value).startswith(f"the checkpoint {path} is damaged: ")
        assert file in str(caught.value)
    assert list_checkpoints(path.parent) == []


@pytest.mark.parametrize("name", ["more", ARRAYS.replace("0", "1"), ".DS_Store"])
def test_surplus_files_are_said(path: Path, name: str) -> None:
    """K3: a file that the manifest does not list is named."""
    (path / name).write_text("")
    with pytest.raises(DataLossError, match=f"'{name}' does not belong to it"):
        verify_checkpoint(path)


def test_several_things_are_said_together(path: Path) -> None:
    """All files that are missing, surplus or of a wrong length are in one error."""
    (path / STATE).unlink()
    (path / ARRAYS).write_text("x")
    (path / "more").write_text("x")
    with pytest.raises(
        DataLossError,
        match=r"has 1 bytes instead of \d+; 'more' does not belong to it; state.msgpack is missing",
    ):
        verify_checkpoint(path)


def test_a_checkpoint_under_another_step_is_damaged(path: Path) -> None:
    """A directory whose name is of another step than its manifest is not taken for that step."""
    moved = path.rename(path.parent / "step-0000000008")
    with pytest.raises(DataLossError, match=r"MANIFEST.json is that of step 7"):
        verify_checkpoint(moved)


def test_a_checkpoint_may_be_moved_under_a_name_of_its_own(path: Path) -> None:
    """Copied somewhere under a name that is no step's, it is read as before."""
    moved = path.rename(path.parent / "best model")
    assert read_checkpoint(moved).step == 7
    assert read_checkpoint(str(moved) + "/.").variables["text"] == "abc"


@pytest.mark.parametrize("where", ["nothing", "step-0000000009", "empty", "file"])
def test_where_there_is_nothing_nothing_is_found(path: Path, where: str) -> None:
    """A path that leads to no checkpoint is NotFoundError, not damage."""
    (path.parent / "empty").mkdir()
    (path.parent / "file").write_text("")
    for examine in (verify_checkpoint, read_checkpoint):
        with pytest.raises(NotFoundError, match=f"there is no checkpoint at .*{where}"):
            examine(path.parent / where)


def test_the_directory_of_checkpoints_is_none_itself(path: Path) -> None:
    """Given the directory of checkpoints in place of one of them, the error gives one."""
    with pytest.raises(NotFoundError, match="it has checkpoints inside, as step-0000000007"):
        verify_checkpoint(path.parent)


def test_a_newer_format_is_no_damage(path: Path) -> None:
    """A sound manifest of a newer format, whatever else is in it, is an error that says what to do."""
    forged_manifest(path, b'{"format":2,"something":["new"]}')
    for examine in (verify_checkpoint, read_checkpoint):
        with pytest.raises(
            FailedPreconditionError, match="cannot be used: it has format 2, of a newer asyncstep"
        ):
            examine(path)
    with pytest.raises(FailedPreconditionError, match="Install a newer asyncstep, or move the checkpoint"):
        latest_checkpoint(path.parent)


@pytest.mark.parametrize(
    "body",
    [
        b"{}",
        b"[]",
        b'{"format":0}',
        b'{"format":1}',
        b'{"format":"1"}',
        b"[" * 100_000,
        b'{"format":' + b"9" * 5000 + b"}",
        b'{"format":1,"step":7,"time":0.0,"files":{},"metric":null}',
        b'{"format":0,"step":7,"time":0.0,"files":{},"metric":null}',
        b'{"files":{},"format":1,"metric":null,"step":7,"time":1e999}',
        b'{"format":1,"step":-7,"time":0.0,"files":{"state.msgpack":{"size":0,"sha256":"0"}},"metric":null}',
        b'{"format":1,"step":' + b"9" * 400 + b',"time":0.0,"files":{},"metric":null}',
    ],
    ids=lambda body: body[:30].decode(),
)
def test_impossible_manifests_are_damage(path: Path, body: bytes) -> None:
    """A manifest whose checksum holds, but which no asyncstep wrote, is damage."""
    forged_manifest(path, body)
    with pytest.raises(DataLossError, match=MANIFEST):
        verify_checkpoint(path)


@pytest.mark.parametrize(
    "name",
    [
        "../x",
        "a/b",
        "..",
        "/etc/passwd",
        "a\0b",
        "",
        "MANIFEST.json",
        "x.safetensors",
        "arrays-1.safetensors",
    ],
)
def test_names_of_other_files_are_refused(path: Path, name: str) -> None:
    """K6: a manifest that lists anything but the files of a checkpoint is damage; no such file is opened."""
    record = FileRecord(0, hashlib.sha256().hexdigest())
    files = {STATE: record, name: record}
    (path / MANIFEST).write_bytes(render(Manifest(step=7, time=0.0, files=files)))
    with pytest.raises(DataLossError, match="which is no file of a checkpoint"):
        verify_checkpoint(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"time": float("inf")},
        {"step": -1},
        {"files": {STATE: FileRecord(-1, "0" * 64)}},
        {"files": {STATE: FileRecord(1, "0" * 63)}},
        {"files": {STATE: FileRecord(1, "G" * 64)}},
    ],
    ids=str,
)
def test_impossible_numbers_are_damage(path: Path, changes: dict[str, Any]) -> None:
    """Steps, times, sizes and checksums that cannot be are damage."""
    manifest = dataclasses.replace(
        Manifest(step=7, time=0.0, files={STATE: FileRecord(1, "0" * 64)}), **changes
    )
    (path / MANIFEST).write_bytes(render(manifest))
    with pytest.raises(DataLossError, match=MANIFEST):
        verify_checkpoint(path)


@pytest.mark.parametrize("text", ["high", "1", "", "1_0.0"])
def test_impossible_metrics_are_damage(path: Path, text: str) -> None:
    """A metric is a number as Python writes a float."""
    forged(path, {STATE: state_of()}, metric=MetricRecord("x", text))
    with pytest.raises(DataLossError, match="metric that is no number"):
        verify_checkpoint(path)


def test_a_file_that_ends_while_it_is_read_is_damage(path: Path) -> None:
    """K3: a file that has lost bytes since its length was looked up is damage."""
    directory = LocalDirectory(path.parent)
    real = directory.files

    def files(name: str) -> dict[str, int]:
        found = real(name)
        os.truncate(path / ARRAYS, 10)
        return found

    directory.files = files  # type: ignore[method-assign]
    with pytest.raises(DataLossError, match=f"{ARRAYS} does not match its checksum"):
        check(directory, path.name)


def test_an_endless_manifest_is_not_read(path: Path) -> None:
    """A manifest that claims to be huge is damage, without being read."""
    os.truncate(path / MANIFEST, 2**40)
    with pytest.raises(DataLossError, match="too many for one"):
        verify_checkpoint(path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xc1",
        b"\x80",
        b"\x90",
        b"\x91" * 100_000,
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xdb\xff\xff\xff\xff",
        state_of() + b"\0",
        state_of(more={}),
        state_of(variables=[]),
        state_of(variables={"x": {"nonsense": 1}}),
        state_of(variables={"x": {}}),
        state_of(variables={"x": {"dict": [[[]], [1]]}}),
        state_of(variables={"x": {"dict": [[1, 1], [1, 1]]}}),
        state_of(variables={"x": {"dict": [[1], []]}}),
        state_of(variables={"x": {"set": [1, True]}}),
        state_of(variables={"x": {"str": b"\xff"}}),
        state_of(variables={"x": {"int": "7"}}),
        state_of(variables={"x": {"array": ["none", "<f4", [2**40]]}}),
    ],
    ids=range(20),
)
def test_bombs_are_damage(path: Path, content: bytes) -> None:
    """A state with a right checksum that claims too much, nests too deeply or makes no sense: damage, no crash."""
    forged(path, {STATE: content})
    tracemalloc.start()
    with pytest.raises(DataLossError, match=STATE):
        read_checkpoint(path)
    assert tracemalloc.get_traced_memory()[1] < 20_000_000
    tracemalloc.stop()


def header(entries: Any, data: bytes = b"", *, length: int | None = None) -> bytes:
    """A file of arrays with this header."""
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 7,
        header({}, length=2**63),
        header({}, length=3),
        header(b"[" * 100_000),
        header(b"nonsense"),
        header({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}),
        header({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, b"1234"),
        header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 8]}}, b"12345678"),
        header({"a": {"dtype": "F32", "shape": [-1, -2], "data_offsets": [0, 8]}}, b"12345678"),
        header({"a": {"dtype": "F32", "shape": [1] * 10_000, "data_offsets": [0, 4]}}, b"1234"),
        header({"a": {"dtype": "F7", "shape": [1], "data_offsets": [0, 4]}}, b"1234"),
        header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, b"12345678"),
        header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}, b"1234"),
        header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, b"12345678"),
        header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4], "more": 1}}, b"1234"),
        header(
            {
                "a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
                "b": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
            },
            b"1234",
        ),
    ],
    ids=range(17),
)
def test_absurd_headers_are_damage(path: Path, content: bytes) -> None:
    """K3: a file of arrays whose header claims what is not there is damage; nothing is allocated by a claim."""
    forged(path, {STATE: state_of(), ARRAYS: content})
    verify_checkpoint(path)  # its checksums do hold
    tracemalloc.start()
    with pytest.raises(DataLossError, match=ARRAYS):
        read_checkpoint(path)
    assert tracemalloc.get_traced_memory()[1] < 20_000_000
    tracemalloc.stop()


def test_an_array_in_two_files_is_damage(path: Path) -> None:
    """The key of an array is in one file only."""
    content = header({"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}, b"1")
    forged(path, {STATE: state_of(), ARRAYS: content, "arrays-00001.safetensors": content})
    with pytest.raises(DataLossError, match=r"arrays-00001.safetensors has the array 'a' again"):
        read_checkpoint(path)


class BadDisk(LocalDirectory):
    """A directory on a disk whose files cannot be read."""

    def __init__(self, root: Path, error: int) -> None:
        super().__init__(root)
        self.error = error

    def open(self, name: str, file: str) -> BinaryIO:
        opened = super().open(name, file)
        if file == STATE:
            error = self.error

            class Broken:
                def readinto(self, target: memoryview) -> int:
                    raise OSError(error, os.strerror(error))

                def __enter__(self) -> Any:
                    return self

                def __exit__(self, *_: object) -> None:
                    opened.close()

            return Broken()  # type: ignore[return-value]
        return opened


def test_a_bad_sector_is_damage(path: Path) -> None:
    """K3: a file that the disk cannot read is damage."""
    with pytest.raises(DataLossError, match=r"state.msgpack cannot be read: Input/output error"):
        check(BadDisk(path.parent, errno.EIO), path.name)


def test_lacking_means_are_no_damage(path: Path) -> None:
    """Too many open files, or missing rights, say nothing of the checkpoint: raised as they are."""
    with pytest.raises(OSError, match="Too many open files") as caught:
        check(BadDisk(path.parent, errno.EMFILE), path.name)
    assert not isinstance(caught.value, Error)
