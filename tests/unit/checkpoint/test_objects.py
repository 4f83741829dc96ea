"""Checkpoints in an object store, in memory and by the protocol of S3 (contract K2, K3, K8, K9)."""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import anyio.to_thread
import numpy as np
import pytest
from click.testing import CliRunner

from asyncstep import Graph, SingularMonitoredSession, Variable
from asyncstep.checkpoint import (
    ObjectPath,
    latest_checkpoint,
    list_checkpoints,
    read_checkpoint,
    verify_checkpoint,
)
from asyncstep.checkpoint.directory import directory_at, locate
from asyncstep.checkpoint.listing import list_in
from asyncstep.checkpoint.reading import check
from asyncstep.checkpoint.retention import Retention
from asyncstep.checkpoint.writing import CheckpointWriter, write_checkpoint
from asyncstep.cli import main
from asyncstep.errors import DataLossError, FailedPreconditionError, InvalidArgumentError, NotFoundError
from asyncstep.hooks import CheckpointSaverHook, StopAtStepHook

from .parts import Crash, state

obstore = pytest.importorskip("obstore")

from obstore.exceptions import GenericError, PermissionDeniedError  # noqa: E402
from obstore.store import MemoryStore  # noqa: E402

from asyncstep.checkpoint import lease as lease_module  # noqa: E402
from asyncstep.checkpoint.lease import Lease  # noqa: E402
from asyncstep.checkpoint.objects import ObjectDirectory  # noqa: E402

ROOT = ObjectPath("s3", "bucket", "runs/a")
ARRAY = np.arange(100.0)


def in_memory(store: MemoryStore | None = None, lasts: float = 0.05) -> ObjectDirectory:
    """A directory in memory, whose leases are over soon."""
    return ObjectDirectory(store or MemoryStore(), ROOT, renewed_every=lasts / 5, lasts=lasts)


def save(directory: ObjectDirectory, step: int, **variables: Any) -> Any:
    """Save a checkpoint of a step and of these variables."""
    values = {"global_step": step, "array": ARRAY + step} | variables
    return write_checkpoint(directory, state(**values), step=step, clock=lambda: 1000.0 + step)


def keys(directory: ObjectDirectory) -> list[str]:
    """All objects but the lock."""
    found = obstore.list(directory.store).collect()
    return sorted(meta["path"] for meta in found if meta["path"] != ".lock")


def steps_found(directory: ObjectDirectory) -> list[int]:
    """The steps of the checkpoints that are listed, each of which must be sound."""
    infos = list_in(directory)
    for info in infos:
        check(directory, info.path.name)
    return [info.step for info in infos]


@pytest.fixture
def dying(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int | None], list[str]]]:
    """Gives a function: from that change of the store on, the process is dead; it returns the changes made."""
    real = {name: getattr(obstore, name) for name in ("put", "delete", "copy")}

    def at(number: int | None) -> list[str]:
        done: list[str] = []

        def changing(name: str) -> Callable[..., Any]:
            def call(store: Any, *args: Any, **kwargs: Any) -> Any:
                if number is not None and len(done) >= number:
                    raise Crash
                done.append(name)
                return real[name](store, *args, **kwargs)

            return call

        for name in real:
            monkeypatch.setattr(obstore, name, changing(name))
        return done

    def alive() -> None:
        for name, function in real.items():
            monkeypatch.setattr(obstore, name, function)

    at.alive = alive  # type: ignore[attr-defined]
    return at  # type: ignore[return-value]


def two_saves(directory: ObjectDirectory) -> None:
    """Save steps 2 and 3 beside a sound step 1, and then keep the newest only."""
    with CheckpointWriter(directory) as writer:
        for step in (2, 3):
            writer.write(state(global_step=step, array=ARRAY + step), step=step)
        writer.prune(Retention(max_to_keep=1))


def test_a_checkpoint_has_its_objects_and_nothing_else_is_there() -> None:
    """Under the name of the step are the manifest, the state and the arrays; beside it only the lock."""
    directory = in_memory()
    assert str(save(directory, 12)) == "s3://bucket/runs/a/step-0000000012"
    assert keys(directory) == [
        f"step-0000000012/{file}" for file in ("MANIFEST.json", "arrays-00000.safetensors", "state.msgpack")
    ]


def test_the_manifest_is_put_last_and_removed_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """K2: a checkpoint appears and disappears with its manifest, which is put only where there is none."""
    changes: list[tuple[str, str, Any]] = []
    put, delete = obstore.put, obstore.delete
    monkeypatch.setattr(
        obstore,
        "put",
        lambda store, key, *args, **more: (
            changes.append(("put", key, more.get("mode"))),
            put(store, key, *args, **more),
        )[1],
    )
    monkeypatch.setattr(
        obstore, "delete", lambda store, key: (changes.append(("delete", key, None)), delete(store, key))[1]
    )
    directory = in_memory(lasts=30)
    save(directory, 1)
    save(directory, 2)
    puts = [change for change in changes if change[1].startswith("step-0000000001")]
    assert puts[-1] == ("put", "step-0000000001/MANIFEST.json", "create")
    changes.clear()
    with CheckpointWriter(directory) as writer:
        writer.prune(Retention(max_to_keep=1))
    deleted = [change[1] for change in changes if change[0] == "delete"]
    assert deleted[0] == "step-0000000001/MANIFEST.json"
    assert len(deleted) == 3
    assert steps_found(directory) == [2]


def test_every_crash_leaves_sound_checkpoints(dying: Any) -> None:
    """K2, K3: killed at any change, the newest checkpoint is the old or the new one, and all listed are sound."""
    whole = in_memory()
    save(whole, 1)
    count = len(_run(dying, None, whole))
    seen = set()
    for number in range(count):
        directory = in_memory()
        save(directory, 1)
        with pytest.raises(Crash):
            _run(dying, number, directory)
        dying.alive()
        directory = in_memory(directory.store)  # another process
        steps = steps_found(directory)
        seen.add(tuple(steps))
        save(directory, 4)  # the next writer takes the lease over, and removes what was left over
        assert steps_found(directory) == [*steps, 4]
        assert {key.partition("/")[0] for key in keys(directory)} == {f"step-{n:010d}" for n in [*steps, 4]}
    assert seen == {(1,), (1, 2), (1, 2, 3), (2, 3), (3,)}


def _run(dying: Any, number: int | None, directory: ObjectDirectory) -> list[str]:
    done: list[str] = dying(number)
    try:
        two_saves(directory)
    finally:
        dying.alive()
    return done


def test_the_same_checkpoint_is_not_written_twice() -> None:
    """K5: saving the same state of the same step again leaves the manifest that is there as it is."""
    directory = in_memory()
    save(directory, 1)
    before = obstore.head(directory.store, "step-0000000001/MANIFEST.json")
    write_checkpoint(directory, state(global_step=1, array=ARRAY + 1), step=1)
    assert obstore.head(directory.store, "step-0000000001/MANIFEST.json") == before
    assert len(keys(directory)) == 3


def test_a_sound_checkpoint_of_another_run_is_never_overwritten() -> None:
    """K3: other content for a step that has a sound checkpoint is an error, and the checkpoint stays."""
    directory = in_memory()
    save(directory, 1)
    with pytest.raises(
        FailedPreconditionError, match="step-0000000001 is a sound checkpoint with other content"
    ):
        save(directory, 1, array=ARRAY - 1)
    assert steps_found(directory) == [1]
    assert len(keys(directory)) == 3


def test_a_damaged_checkpoint_of_the_same_step_is_replaced(caplog: pytest.LogCaptureFixture) -> None:
    """K3: a run that went back behind a damaged checkpoint saves that step again."""
    directory = in_memory()
    save(directory, 1)
    obstore.put(directory.store, "step-0000000001/state.msgpack", b"")
    obstore.put(directory.store, "step-0000000001/surplus", b"")
    with caplog.at_level(logging.WARNING):
        save(directory, 1)
    assert "it is replaced" in caplog.text
    assert steps_found(directory) == [1]
    assert len(keys(directory)) == 3


def test_what_has_no_manifest_is_no_checkpoint() -> None:
    """K2: files alone are not found, and are gone when the next writer has begun."""
    directory = in_memory()
    obstore.put(directory.store, "step-0000000007/state.msgpack", b"x")
    obstore.put(directory.store, ".new-step-0000000007-x/state.msgpack", b"x")
    obstore.put(directory.store, "notes/of/mine", b"x")
    assert directory.names() == []
    with pytest.raises(NotFoundError, match="there is no checkpoint at s3://bucket/runs/a/step-0000000007"):
        check(directory, "step-0000000007")
    save(directory, 8)
    assert {key.partition("/")[0] for key in keys(directory)} == {"notes", "step-0000000008"}


def test_long_files_are_put_and_read_in_parts() -> None:
    """A file that is longer than one request comes back as it was."""
    directory = in_memory()
    array = np.arange(3 * 2**20, dtype="f8")
    save(directory, 1, array=array)
    check(directory, "step-0000000001")


@pytest.mark.parametrize("file", ["MANIFEST.json", "state.msgpack", "arrays-00000.safetensors"])
def test_a_missing_file_is_damage(file: str) -> None:
    """K3: one that disappears while it is looked at is missing, whatever the store calls it."""
    with pytest.raises(DataLossError, match=f"{file} is missing"):
        in_memory().open("step-0000000001", file)


def test_a_second_writer_of_this_process_is_refused() -> None:
    """K9: it is refused at once, and named; the first one keeps the directory; then the way is free."""
    store = MemoryStore()
    with CheckpointWriter(in_memory(store, lasts=30)) as writer:
        for other in (in_memory(store, lasts=30), writer._directory):
            with pytest.raises(
                FailedPreconditionError,
                match=f"runs/a is being written to by another saver of this process .{os.getpid()}",
            ):
                write_checkpoint(other, state(), step=1)
        writer.write(state(global_step=1), step=1)
    save(in_memory(store), 2)


def test_a_writer_that_renews_its_lease_is_refused_to_nobody_s_harm() -> None:
    """K9: another process that is alive is known by its renewal, and is named."""
    store = MemoryStore()
    content = {"pid": 77, "host": "far", "token": "t", "renewals": 1, "renewed_every": 0.02, "lasts": 30}
    obstore.put(store, ".lock", json.dumps(content).encode())
    renewed = json.dumps(content | {"renewals": 2}).encode()
    lease = Lease(store, "runs/a", wait=lambda _: obstore.put(store, ".lock", renewed))
    with pytest.raises(FailedPreconditionError, match="written to by the process 77 on far; let it end"):
        lease.__enter__()
    assert keys(in_memory(store)) == []


def test_a_live_writer_is_told_from_a_dead_one() -> None:
    """K9: the renewals of a writer elsewhere are seen by who wants the lease; when it has ended, the way is free."""
    store = MemoryStore()
    with Lease(store, "here", renewed_every=0.02, lasts=30):
        lease_module._of_this_process.clear()  # it is as if of another process
        with pytest.raises(
            FailedPreconditionError, match=f"here is being written to by the process {os.getpid()}"
        ):
            Lease(store, "here").__enter__()
    with Lease(store, "here") as lease:
        assert lease.held


@pytest.mark.parametrize("content", [b'{"token": "t", "lasts": "x"}', b"[]", b"", b"\xff"])
def test_a_lease_that_nobody_renews_is_taken_over(content: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """K9: a killed process does not keep the directory for ever, whatever its lease says."""
    store = MemoryStore()
    obstore.put(store, ".lock", content)
    with caplog.at_level(logging.WARNING):
        save(in_memory(store), 1)
    assert "is being written to by another process, or was when that was killed" in caplog.text
    assert steps_found(in_memory(store)) == [1]


def test_the_holder_renews_its_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    """K9: while it is held, the lease changes; given back, it has no holder."""
    store, renewed = MemoryStore(), threading.Event()
    with Lease(store, "here", renewed_every=0.01, lasts=30) as lease:
        put = obstore.put

        def watched(*args: Any, **more: Any) -> Any:
            result = put(*args, **more)
            renewed.set()
            return result

        monkeypatch.setattr(obstore, "put", watched)
        assert renewed.wait(10)
        content = json.loads(bytes(obstore.get(store, ".lock").bytes()))
        assert (content["pid"], content["host"]) == (os.getpid(), socket.gethostname())
        assert content["renewals"] > 1
        assert lease.held
    assert not lease.held
    assert json.loads(bytes(obstore.get(store, ".lock").bytes())) == {"token": None}


def test_who_has_lost_the_lease_writes_nothing_more() -> None:
    """K9: a writer that slept for too long learns that another has taken over, and leaves its files alone."""
    directory = in_memory(lasts=30)
    with CheckpointWriter(directory) as writer:
        draft = directory.draft("step-0000000001")
        obstore.put(directory.store, ".lock", b'{"token": "other"}')
        obstore.put(directory.store, "step-0000000001/state.msgpack", b"of the other")
        for act in (
            lambda: draft.write("state.msgpack", []),
            lambda: draft.commit(b"{}"),
            lambda: directory.delete("step-0000000001"),
            lambda: writer.write(state(), step=1),
        ):
            with pytest.raises(
                FailedPreconditionError, match="has lost the right to write into s3://bucket/runs/a"
            ):
                act()
        draft.discard()
    assert keys(directory) == ["step-0000000001/state.msgpack"]
    assert bytes(obstore.get(directory.store, ".lock").bytes()) == b'{"token": "other"}'


def test_losing_the_lease_is_logged_at_once(caplog: pytest.LogCaptureFixture) -> None:
    """K9: the thread that renews the lease ends with an ERROR when another process has it."""
    store = MemoryStore()
    with Lease(store, "here", renewed_every=0.01, lasts=30) as lease:
        obstore.put(store, ".lock", b'{"token": "other"}')
        for thread in threading.enumerate():
            if thread.name == "asyncstep-lease":
                thread.join(10)
        assert not lease.held
    assert "has lost the right to write into here" in caplog.text
    assert bytes(obstore.get(store, ".lock").bytes()) == b'{"token": "other"}'


def test_a_store_out_of_reach_does_not_end_the_lease(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A renewal or a giving back that fails is a WARNING: the next one may succeed, and the lease ends by itself."""
    tried = threading.Event()

    def broken(*_: Any, **__: Any) -> None:
        if threading.current_thread().name == "asyncstep-lease":
            tried.set()
        raise GenericError("no route")

    with Lease(MemoryStore(), "here", renewed_every=0.01, lasts=30) as lease:
        monkeypatch.setattr(obstore, "put", broken)
        tried.clear()
        assert tried.wait(10)
        assert lease.held
    assert not lease.held
    assert "the lock of here could not be given back: here/.lock: no route" in caplog.text


def test_rests_that_cannot_be_removed_are_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Without the right to delete, left-overs stay, with a WARNING, and saving goes on."""
    directory = in_memory()
    obstore.put(directory.store, "step-0000000007/state.msgpack", b"x")

    def refused(*_: Any) -> None:
        raise PermissionDeniedError("not you")

    monkeypatch.setattr(obstore, "delete", refused)
    save(directory, 8)
    assert "step-0000000007 could not be removed" in caplog.text
    assert "not you" in caplog.text
    assert steps_found(directory) == [8]


def test_a_lost_answer_is_no_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request whose answer got lost is sent again, and finds its own object; that is success."""
    put = obstore.put

    def twice(store: Any, key: str, *args: Any, **more: Any) -> Any:
        put(store, key, *args, **more)
        return put(store, key, *args, **more)

    monkeypatch.setattr(obstore, "put", twice)
    directory = in_memory(lasts=30)
    save(directory, 1)
    assert steps_found(directory) == [1]


def test_the_manifest_of_another_is_not_overwritten() -> None:
    """K2: of two that put a manifest, the first has made the checkpoint; the second gets an error."""
    directory = in_memory(lasts=30)
    with CheckpointWriter(directory):
        draft = directory.draft("step-0000000001")
        obstore.put(directory.store, "step-0000000001/MANIFEST.json", b"other")
        with pytest.raises(FailedPreconditionError, match="another writer has put"):
            draft.commit(b"mine")
        draft.discard()
    assert keys(directory) == ["step-0000000001/MANIFEST.json"]


@pytest.mark.parametrize("url", ["s3://", "s3:///x", "gs://b/a//c", "az://b/../c", "s3://b/a?x", "s3://b/\0"])
def test_what_is_no_place_in_a_store_is_refused(url: str) -> None:
    """A URL without a bucket, or with an impossible key, is an error that says how one is written."""
    with pytest.raises(InvalidArgumentError, match="is no place in an object store"):
        list_checkpoints(url)


def test_a_bucket_is_no_checkpoint() -> None:
    """What is asked for as a checkpoint must have a name."""
    with pytest.raises(InvalidArgumentError, match="s3://b is a whole bucket"):
        read_checkpoint("s3://b/")


def test_without_obstore_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """A URL where obstore is not installed is an error that says what to install."""
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(FailedPreconditionError, match=r"pip install 'asyncstep\[objects\]'"):
        latest_checkpoint("gs://bucket/x")


@pytest.mark.parametrize("url", ["s3://b/x/y", "gs://b/x/y", "az://b/x/y"])
def test_urls_lead_to_their_stores(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each scheme has its store; a checkpoint's URL is taken apart into directory and name."""
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    monkeypatch.setenv("GOOGLE_SKIP_SIGNATURE", "true")
    directory, name = locate(url)
    assert isinstance(directory, ObjectDirectory)
    assert (str(directory.root), name) == (url.removesuffix("/y"), "y")
    assert directory.path(name) == directory.root / "y"
    assert os.fspath(directory.path(name)) == url
    assert directory.path(name).parent == directory.root


# What follows goes over HTTP, to a server on the loopback device.


def test_checkpoints_come_back_from_s3(bucket: str, caplog: pytest.LogCaptureFixture) -> None:
    """What is saved is listed, verified and restored; a damaged one is passed over with a WARNING (K3)."""
    directory = f"{bucket}/runs/a b%20c"
    assert latest_checkpoint(directory) is None
    big = np.arange(3 * 2**20, dtype="f8")
    paths = [write_checkpoint(directory, state(x=step, big=big), step=step) for step in (1, 2)]
    assert [info.path for info in list_checkpoints(directory)] == paths
    assert latest_checkpoint(directory) == paths[1]
    verify_checkpoint(str(paths[1]))
    assert read_checkpoint(paths[1]).variables["x"] == 2
    assert np.array_equal(read_checkpoint(paths[1]).variables["big"], big)
    store = directory_at(directory).store  # type: ignore[attr-defined]
    content = bytearray(bytes(obstore.get(store, "step-0000000002/state.msgpack").bytes()))
    content[-1] ^= 1
    obstore.put(store, "step-0000000002/state.msgpack", bytes(content))
    with pytest.raises(DataLossError, match=r"state\.msgpack does not match its checksum"):
        verify_checkpoint(paths[1])
    with caplog.at_level(logging.WARNING):
        assert latest_checkpoint(directory) == paths[0]
    assert "does not match its checksum" in caplog.text
    listed = CliRunner().invoke(main, ["checkpoints", directory, "--json"])
    assert [(found["path"], found["sound"]) for found in json.loads(listed.stdout)] == [
        (str(paths[0]), True),
        (str(paths[1]), False),
    ]
    assert CliRunner().invoke(main, ["verify", str(paths[1])]).exit_code == 1
    with pytest.raises(NotFoundError, match="it has checkpoints inside, as step-0000000002"):
        read_checkpoint(directory)
    obstore.delete(store, "step-0000000001/state.msgpack")
    with pytest.raises(DataLossError, match="none of the checkpoints"):
        latest_checkpoint(directory)


def test_a_second_writer_of_s3_is_refused_and_old_ones_are_deleted(bucket: str) -> None:
    """K8, K9: conditional requests keep a second writer out; retention removes all that a checkpoint had."""
    with CheckpointWriter(f"{bucket}/a") as writer, CheckpointWriter(bucket):
        with pytest.raises(FailedPreconditionError, match="another saver of this process"):
            write_checkpoint(f"{bucket}/a", state(), step=1)
        for step in (1, 2, 3):
            writer.write(state(step=step), step=step)
        assert [path.name for path in writer.prune(Retention(max_to_keep=1))] == [
            "step-0000000001",
            "step-0000000002",
        ]
        assert [info.step for info in list_checkpoints(f"{bucket}/a")] == [3]
    write_checkpoint(f"{bucket}/a", state(step=4), step=4)
    found = obstore.list(directory_at(f"{bucket}/a").store).collect()  # type: ignore[attr-defined]
    assert len(found) == 1 + 2 * 2


def test_a_bucket_that_is_missing_is_no_damage(bucket: str) -> None:
    """What the store says is an OSError: it is neither an empty directory nor a damaged one."""
    with pytest.raises(OSError, match=r"s3://no-such-bucket/a: .*404"):
        list_checkpoints("s3://no-such-bucket/a")
    with pytest.raises(OSError, match="s3://no-such-bucket/a"):
        write_checkpoint("s3://no-such-bucket/a", state(), step=1)


@pytest.mark.anyio
async def test_a_session_saves_into_s3_and_goes_on_from_there(bucket: str) -> None:
    """K4: steps of a second session go on from the newest checkpoint, on each event loop."""
    directory = f"{bucket}/runs/a"

    async def run(last_step: int) -> int:
        graph = Graph()
        with graph:
            total = Variable(0, name="total")
            add = total.assign_add(1)
        async with SingularMonitoredSession(
            hooks=[CheckpointSaverHook(directory, save_steps=2), StopAtStepHook(last_step=last_step)],
            graph=graph,
            checkpoint_dir=directory,
        ) as session:
            while not session.should_stop():
                await session.run(add)
        newest = await anyio.to_thread.run_sync(latest_checkpoint, directory)
        assert newest is not None
        return int(read_checkpoint(newest).variables["total"])

    assert await run(3) == 3
    assert await run(7) == 7
