"""EventFileWriter and JSONLinesWriter: files that are read back whole, and a caller that never waits."""

from __future__ import annotations

import base64
import errno
import gc
import io
import logging
import math
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Picture
from tensorboard.backend.event_processing.plugin_event_accumulator import (
    EventAccumulator as PluginEventAccumulator,
)

from asyncstep.errors import InvalidArgumentError, InvalidTypeError
from asyncstep.summary import EventFileWriter, Histogram, JSONLinesWriter, SummaryWriter, appender
from asyncstep.summary.binning import histogram_of
from asyncstep.summary.png import image_of

from .parts import Disk, events, lines, scalars, texts, threads

WRITERS = [EventFileWriter, JSONLinesWriter]
NEVER = 1e9


def test_tensorboard_reads_it_whole(tmp_path: Path) -> None:
    """Every number, distribution, text and picture comes back with its tag, step and time."""
    rows = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    with EventFileWriter(tmp_path) as writer:
        for step in range(1, 1001):
            writer.add_scalar("loss", 1 / step, step, wall_time=1000.0 + step)
        writer.add_scalar("not a number", math.nan, 1)
        writer.add_scalar("zero dimensions", np.array(2.5), np.int64(3))  # type: ignore[arg-type]
        writer.add_histogram("weights", np.arange(10.0), 5, bins=5)
        writer.add_histogram("ready made", histogram_of("ready made", [1.0, 2.0], 2), 6)
        writer.add_text("words", "müde *Wörter*", 7)
        writer.add_text("long", "x" * 100_000, 8)
        writer.add_image("face", rows, 9)
        writer.add_image("ready made face", image_of("face", rows), 10)
    found = events(tmp_path)
    assert [(event.step, event.wall_time) for event in found.Scalars("loss")] == [
        (step, 1000.0 + step) for step in range(1, 1001)
    ]
    assert [event.value for event in found.Scalars("loss")] == [
        float(np.float32(1 / step)) for step in range(1, 1001)
    ]
    assert math.isnan(found.Scalars("not a number")[0].value)
    assert scalars(tmp_path, "zero dimensions") == [(3, 2.5)]
    [weights], [ready] = found.Histograms("weights"), found.Histograms("ready made")
    assert (weights.step, weights.histogram_value.num, weights.histogram_value.bucket) == (5, 10, [2.0] * 5)
    assert (ready.step, ready.histogram_value.bucket_limit) == (6, [1.5, 2.0])
    assert (texts(tmp_path, "words"), texts(tmp_path, "long")) == (
        [(7, "müde *Wörter*")],
        [(8, "x" * 100_000)],
    )
    assert found.SummaryMetadata("words").plugin_data.plugin_name == "text"
    for tag, step in [("face", 9), ("ready made face", 10)]:
        [face] = found.Images(tag)
        assert (face.step, face.width, face.height) == (step, 6, 4)
        with Picture.open(io.BytesIO(face.encoded_image_string)) as picture:
            assert np.array_equal(np.asarray(picture), rows)


def test_json_reads_it_whole(tmp_path: Path) -> None:
    """Every line is an object with the five keys; what JSON has no number for is a string."""
    rows = np.zeros((2, 3), np.uint8)
    with JSONLinesWriter(tmp_path) as writer:
        writer.add_start(1, wall_time=0.5)
        writer.add_scalar("loss", 0.1, 1, wall_time=1.5)
        for value in (math.nan, math.inf, -math.inf):
            writer.add_scalar("odd", value, 2)
        writer.add_histogram("weights", [0.0, 1.0, math.inf], 3, bins=1)
        writer.add_text("words", "ä\n\udcff", 4)
        writer.add_image("face", rows, 5)
    found = lines(tmp_path)
    assert all(sorted(line) == ["kind", "step", "tag", "value", "wall_time"] for line in found)
    assert found[0] == {"step": 1, "wall_time": 0.5, "tag": None, "kind": "start", "value": None}
    assert found[1] == {"step": 1, "wall_time": 1.5, "tag": "loss", "kind": "scalar", "value": 0.1}
    assert [line["value"] for line in found[2:5]] == ["NaN", "Infinity", "-Infinity"]
    assert math.isnan(float(found[2]["value"])) and float(found[4]["value"]) == -math.inf
    assert found[5]["value"] == {
        "min": 0.0, "max": 1.0, "num": 2.0, "sum": 1.0, "sum_squares": 1.0,
        "limits": [1.0], "counts": [2.0], "skipped": 1,
    }  # fmt: skip
    assert (found[6]["step"], found[6]["value"]) == (4, "ä\n\udcff")
    picture = found[7]["value"]
    assert (picture["width"], picture["height"], picture["channels"]) == (3, 2, 1)
    assert base64.b64decode(picture["png"]) == image_of("face", rows).png


def test_a_start_undoes_the_steps_from_there_on(tmp_path: Path) -> None:
    """TensorBoard drops what it has of them, of every tag and in every file of the directory."""
    with EventFileWriter(tmp_path) as writer:
        writer.add_start(1)
        for step in range(1, 6):
            writer.add_scalar("loss", step, step)
            writer.add_text("words", f"{step}", step)
    with EventFileWriter(tmp_path) as writer:
        writer.add_start(4)
        writer.add_scalar("loss", 40, 4)
    assert scalars(tmp_path, "loss") == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 40.0)]
    plugins = PluginEventAccumulator(str(tmp_path))
    plugins.Reload()
    assert [event.step for event in plugins.Tensors("words")] == [1, 2, 3]


def test_a_start_that_is_said_twice_is_written_once(tmp_path: Path) -> None:
    """Several hooks of one writer each say it; a summary in between makes the next one count."""
    with JSONLinesWriter(tmp_path) as writer:
        writer.add_start(1)
        writer.add_start(1)
        writer.add_start(2)
        writer.add_scalar("a", 1, 2)
        writer.add_start(2)
    assert [(line["kind"], line["step"]) for line in lines(tmp_path)] == [
        ("start", 1), ("start", 2), ("scalar", 2), ("start", 2),
    ]  # fmt: skip


@pytest.mark.parametrize("kind", WRITERS)
def test_they_are_summary_writers(tmp_path: Path, kind: type[EventFileWriter]) -> None:
    """Both have the methods of the protocol."""
    assert isinstance(kind(tmp_path), SummaryWriter)


@pytest.mark.parametrize("kind", WRITERS)
def test_nothing_is_made_before_there_is_something(tmp_path: Path, kind: type[EventFileWriter]) -> None:
    """Neither a directory, nor a file, nor a thread; and closing what did nothing is nothing."""
    with kind(tmp_path / "there") as writer:
        writer.flush()
    writer.close()
    assert (list(tmp_path.iterdir()), threads()) == ([], [])


def test_the_caller_does_not_wait_for_the_disk(tmp_path: Path, disk: type[Disk]) -> None:
    """While the disk hangs, summaries are taken; when it goes on, all of them are written, in order."""
    disk.goes_on.clear()
    writer = EventFileWriter(tmp_path)
    for step in range(100):
        writer.add_scalar("loss", step, step)
    writer.add_image("face", np.zeros((4, 4)), 100)
    disk.goes_on.set()
    writer.close()
    assert [step for step, _ in scalars(tmp_path, "loss")] == list(range(100))
    assert len(events(tmp_path).Images("face")) == 1


def test_arrays_may_be_changed_once_they_are_given(tmp_path: Path, disk: type[Disk]) -> None:
    """A histogram and a picture are of the array as it was."""
    disk.goes_on.clear()
    array, rows = np.zeros(4), np.zeros((1, 1), np.uint8)
    with JSONLinesWriter(tmp_path) as writer:
        writer.add_histogram("weights", array, 1)
        writer.add_image("face", rows, 1)
        array += 1.0
        rows += 1
        disk.goes_on.set()
    weights, face = (line["value"] for line in lines(tmp_path))
    assert weights["sum"] == 0.0
    assert base64.b64decode(face["png"]) == image_of("face", np.zeros((1, 1), np.uint8)).png


def test_flush_writes_what_there_is(tmp_path: Path) -> None:
    """After it everything can be read, although nothing else would have been written for years."""
    writer = EventFileWriter(tmp_path, flush_secs=NEVER)
    for step in range(3):
        writer.add_scalar("loss", step, step)
        writer.flush()
        assert len(scalars(tmp_path, "loss")) == step + 1
    writer.close()


def test_much_is_written_early(tmp_path: Path, disk: type[Disk], monkeypatch: pytest.MonkeyPatch) -> None:
    """What would fill the memory does not wait for `flush_secs`."""
    written = threading.Event()
    append = disk.append

    def watched(self: Disk, content: bytes) -> None:
        append(self, content)
        if b"much" in content:
            written.set()

    monkeypatch.setattr(disk, "append", watched)
    monkeypatch.setattr(appender, "HURRY_BYTES", 1000)
    writer = EventFileWriter(tmp_path, flush_secs=NEVER)
    writer.add_scalar("first", 1, 1)
    writer.flush()
    writer.add_text("some", "x", 2)
    writer.add_text("much", "x" * 2000, 2)
    assert written.wait(30)
    writer.close()


def test_a_disk_that_hangs_does_not_fill_the_memory(
    tmp_path: Path, disk: type[Disk], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Beyond a limit summaries are lost, which is said once; what was taken is written when the disk goes on."""
    monkeypatch.setattr(appender, "MOST_BYTES", 10_000)
    disk.goes_on.clear()
    writer = EventFileWriter(tmp_path)
    for step in range(1000):
        writer.add_scalar("loss", step, step)
    disk.goes_on.set()
    writer.flush()
    writer.add_scalar("loss", 1000, 1000)
    writer.close()
    steps = [step for step, _ in scalars(tmp_path, "loss")]
    assert steps == sorted(set(steps))
    assert (steps[0], steps[-1], 20 < len(steps) < 900) == (0, 1000, True)
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1 and "as fast as they come" in warnings[0]


def test_a_closed_writer_begins_another_file(tmp_path: Path) -> None:
    """It may be used again; the names of the files sort in the order of their making."""
    writer = JSONLinesWriter(tmp_path)
    for step in range(12):
        writer.add_scalar("loss", step, step)
        writer.close()
        writer.close()
    assert (len(list(tmp_path.iterdir())), threads()) == (12, [])
    assert [line["step"] for line in lines(tmp_path)] == list(range(12))


@pytest.mark.parametrize("kind", WRITERS)
def test_a_full_disk_is_said_once_and_the_caller_goes_on(
    tmp_path: Path, disk: type[Disk], kind: type[EventFileWriter], caplog: pytest.LogCaptureFixture
) -> None:
    """What cannot be written is lost; what comes when there is space again is written, and can be read."""
    caplog.set_level(logging.INFO, logger="asyncstep")
    writer = kind(tmp_path)
    for step in range(6):
        disk.full = step in (0, 2, 3)
        writer.add_scalar("loss", step, step)
        writer.flush()
    writer.close()
    found = (
        scalars(tmp_path, "loss") if kind is EventFileWriter else [(x["step"], 0) for x in lines(tmp_path)]
    )
    assert [step for step, _ in found] == [1, 4, 5]
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert f"cannot be written into {tmp_path}: OSError: [Errno 28]" in caplog.messages[0]
    assert caplog.messages[1] == f"3 summaries were not written into {tmp_path}"


@pytest.mark.parametrize("refusals", [0, 1, 2])
def test_a_record_is_there_as_a_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusals: int
) -> None:
    """When the disk is full in the middle of a record, its beginning is taken back before another one is written."""
    write, truncate = os.write, os.ftruncate
    left = 10**9

    def limited(descriptor: int, content: Any) -> int:
        nonlocal left
        if not left:
            raise OSError(errno.ENOSPC, "No space left on device")
        done = write(descriptor, memoryview(content)[:left])
        left -= done
        return done

    def refused(descriptor: int, size: int) -> None:
        nonlocal refusals
        if refusals:
            refusals -= 1
            raise OSError(errno.EIO, "Input/output error")
        truncate(descriptor, size)

    monkeypatch.setattr(os, "write", limited)
    monkeypatch.setattr(os, "ftruncate", refused)
    refused_once_more = refusals == 2
    with EventFileWriter(tmp_path) as writer:
        writer.add_scalar("loss", 1, 1)
        writer.flush()
        left = 20
        writer.add_scalar("loss", 2, 2)
        writer.flush()
        left = 10**9
        for step in (3, 4):
            writer.add_scalar("loss", step, step)
            writer.flush()
    assert [step for step, _ in scalars(tmp_path, "loss")] == ([1, 4] if refused_once_more else [1, 3, 4])


def test_where_there_can_be_no_thread_the_caller_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is said, and what was taken is written as soon as there can be one."""

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with EventFileWriter(tmp_path) as writer:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            writer.add_scalar("loss", 1, 1)
            writer.flush()
        writer.add_scalar("loss", 2, 2)
    assert len(scalars(tmp_path, "loss")) == 2
    assert len(caplog.records) == 1 and "can't start new thread" in caplog.text


def test_asked_to_it_raises(tmp_path: Path, disk: type[Disk], caplog: pytest.LogCaptureFixture) -> None:
    """With on_error="raise" the next call raises the disk's error, each once, and nothing is logged."""
    writer = EventFileWriter(tmp_path, on_error="raise")
    disk.full = True
    writer.add_scalar("loss", 1, 1)
    with pytest.raises(OSError, match="No space left"):
        writer.flush()
    writer.add_scalar("loss", 2, 2)
    with pytest.raises(OSError, match="No space left"):
        writer.close()
    disk.full = False
    writer.add_scalar("loss", 3, 3)
    writer.close()
    assert (scalars(tmp_path, "loss"), caplog.records) == ([(3, 3.0)], [])


def test_a_place_that_can_be_no_directory(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A file where the directory should be is such an error, too."""
    (tmp_path / "file").touch()
    with EventFileWriter(tmp_path / "file") as writer:
        writer.add_scalar("loss", 1, 1)
    assert "FileExistsError" in caplog.messages[0]


def test_a_forgotten_writer_leaves_no_thread(tmp_path: Path) -> None:
    """When nobody has it any more, what it took is written, and its thread ends."""
    writer = EventFileWriter(tmp_path, flush_secs=NEVER)
    writer.add_scalar("loss", 1, 1)
    writer.flush()
    writer.add_scalar("loss", 2, 2)
    [thread] = [each for each in threading.enumerate() if each.name.startswith("summaries into")]
    del writer
    gc.collect()
    thread.join(30)
    assert (thread.is_alive(), len(scalars(tmp_path, "loss"))) == (False, 2)


def test_threads_share_a_writer(tmp_path: Path) -> None:
    """Summaries of many threads, with flushes and closings in between, are each written once."""

    def work(number: int) -> None:
        for step in range(200):
            writer.add_scalar(f"{number}", step, step)
            if step % 50 == number:
                writer.flush()
            if step == 100 + number:
                writer.close()

    with JSONLinesWriter(tmp_path, flush_secs=0.001) as writer:
        workers = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    found = [(line["tag"], line["step"]) for line in lines(tmp_path)]
    assert sorted(found) == sorted((f"{number}", step) for number in range(4) for step in range(200))
    for number in range(4):
        assert [step for tag, step in found if tag == f"{number}"] == list(range(200))


def run(program: str, directory: Path) -> subprocess.CompletedProcess[str]:
    """A program of its own process, with a writer of the directory."""
    begin = (
        "import os, signal, sys\nfrom asyncstep.summary import EventFileWriter\n"
        f"writer = EventFileWriter({str(directory)!r}, flush_secs=1e6)\n"
    )
    return subprocess.run(
        [sys.executable, "-c", begin + program], capture_output=True, text=True, timeout=60, check=False
    )


def test_a_process_that_ends_writes_what_it_has(tmp_path: Path) -> None:
    """A writer that nobody closed neither keeps the process from ending nor loses anything."""
    done = run("for step in range(5):\n    writer.add_scalar('loss', 1, step)\n", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert [step for step, _ in scalars(tmp_path, "loss")] == list(range(5))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_fork_writes_a_file_of_its_own(tmp_path: Path) -> None:
    """A child goes on with the writer of its parent: each writes its own summaries, once."""
    done = run(
        "writer.add_scalar('parent', 1, 1)\nwriter.flush()\nwriter.add_scalar('parent', 2, 2)\n"
        "child = os.fork()\n"
        "if not child:\n    writer.add_scalar('child', 3, 3)\n    sys.exit()\n"
        "sys.exit(os.waitpid(child, 0)[1])\n",
        tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.iterdir())) == 2
    assert (scalars(tmp_path, "parent"), scalars(tmp_path, "child")) == ([(1, 1.0), (2, 2.0)], [(3, 3.0)])


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="the size of files cannot be limited here")
def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    """Where the system takes no more bytes, the file ends with a whole record, and the program goes on."""
    done = run(
        "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "for step in range(100):\n    writer.add_scalar('loss', 1, step)\n    writer.flush()\n"
        "print('went on')\n",
        tmp_path,
    )
    assert (done.returncode, done.stdout) == (0, "went on\n")
    assert done.stderr.count("cannot be written") == 1
    steps = [step for step, _ in scalars(tmp_path, "loss")]
    assert len(steps) > 10 and steps == list(range(len(steps)))


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"directory": ""}, "no path"),
        ({"directory": "a\0b"}, "no path"),
        ({"directory": "s3://bucket/logs"}, "is a URL"),
        ({"flush_secs": 0}, "flush_secs must be more than 0"),
        ({"flush_secs": math.nan}, "flush_secs must be more than 0"),
        ({"on_error": "ignore"}, "on_error must be 'warn' or 'raise'"),
    ],
    ids=str,
)
def test_arguments_are_checked(arguments: Any, problem: str) -> None:
    """A value that cannot be used is a ValueError that names the writer."""
    with pytest.raises(InvalidArgumentError, match=rf"EventFileWriter: .*{problem}"):
        EventFileWriter(**{"directory": "logs", **arguments})


@pytest.mark.parametrize(
    "arguments",
    [{"directory": None}, {"directory": b"logs"}, {"flush_secs": "1"}, {"flush_secs": True}],
    ids=str,
)
def test_types_are_checked(arguments: Any) -> None:
    """A value of a wrong type is a TypeError."""
    with pytest.raises(InvalidTypeError, match="JSONLinesWriter: "):
        JSONLinesWriter(**{"directory": "logs", **arguments})


@pytest.mark.parametrize(
    ("method", "arguments", "problem"),
    [
        ("add_scalar", ("loss", "high", 1), "the scalar 'loss' must be a number, got a str"),
        ("add_scalar", (None, 1.0, 1), "the tag of a summary must be a string, got a NoneType"),
        ("add_scalar", ("loss", 1.0, 1.5), "the step of the summary 'loss' must be an integer, got a float"),
        ("add_scalar", ("loss", 1.0, None), "the step of the summary 'loss' must be an integer"),
        ("add_text", ("words", 3, 1), "the text 'words' must be a string, got an int"),
        ("add_histogram", ("weights", ["a"], 1), "the histogram 'weights' needs an array of real numbers"),
        ("add_image", ("face", np.zeros(3), 1), "the image 'face' needs the shape"),
        ("add_start", (None,), "the step of a start must be an integer"),
    ],
    ids=lambda value: value if isinstance(value, str) and value.startswith("add") else "",
)
def test_summaries_are_checked(tmp_path: Path, method: str, arguments: Any, problem: str) -> None:
    """What is wrong with a summary is raised where it is given, and nothing is written."""
    with EventFileWriter(tmp_path) as writer, pytest.raises(InvalidArgumentError, match=problem):
        getattr(writer, method)(*arguments)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("method", ["add_histogram", "add_image"])
def test_without_numpy_the_extra_is_named(
    tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Arrays need numpy; numbers, texts, and summaries that are ready made do not."""
    monkeypatch.setitem(sys.modules, "numpy", None)
    with EventFileWriter(tmp_path) as writer:
        writer.add_scalar("loss", 1, 1)
        writer.add_histogram("ready", Histogram("ready", 0, 0, 0, 0, 0, (), ()), 1)
        with pytest.raises(ImportError, match=r"asyncstep\[numpy\]"):
            getattr(writer, method)("x", [[1.0]], 1)
    monkeypatch.undo()
    assert len(scalars(tmp_path, "loss")) == 1
