"""The bytes of event files, read by TensorBoard's own reader and by protobuf."""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings, strategies as st
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import PyRecordReader_New

from asyncstep.summary.event_format import EventFormat, varint
from asyncstep.summary.record import framed
from asyncstep.summary.values import Histogram, Image

FORMAT = EventFormat()
STEPS = st.integers(-(2**63), 2**63 - 1)
TIMES = st.floats(allow_nan=False)


def records(path: Path) -> list[bytes]:
    """The records of a file, as TensorBoard reads them, checksums included."""
    reader = PyRecordReader_New(str(path))
    found = []
    while True:
        try:
            reader.GetNext()
        except Exception as end:
            assert type(end).__name__ == "OutOfRangeError"
            return found
        found.append(reader.record())


def event(record: bytes) -> Any:
    """The event in a record."""
    (length,) = struct.unpack("<Q", record[:8])
    assert len(record) == length + 16
    return Event.FromString(record[12:-4])


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.binary(max_size=300) | st.integers(0, 9000).map(bytes), max_size=5))
def test_records_come_back_from_tensorboards_reader(tmp_path: Path, contents: list[bytes]) -> None:
    """Whatever is framed, TensorBoard's reader finds the same records, and finds their checksums right."""
    path = tmp_path / "records"
    path.write_bytes(b"".join(map(framed, contents)))
    assert records(path) == contents


@given(st.integers(-(2**63), 2**64 - 1))
def test_a_varint_is_protobufs(number: int) -> None:
    """Seven bits a byte, the lowest first, and the sign in 64 bits."""
    from google.protobuf.internal.encoder import _VarintBytes

    assert varint(number) == _VarintBytes(number % 2**64)


@given(st.text(), st.floats(width=32), STEPS, TIMES)
def test_a_scalar(tag: str, value: float, step: int, wall_time: float) -> None:
    """Any tag, number, step and time come back from protobuf's parser."""
    found = event(FORMAT.scalar(tag, value, step, wall_time))
    [written] = found.summary.value
    assert (found.step, found.wall_time, written.tag) == (step, wall_time, tag)
    assert written.simple_value == value or (math.isnan(written.simple_value) and math.isnan(value))


@given(st.floats(min_value=1e39, allow_infinity=False))
def test_a_number_beyond_32_bits_is_infinite(value: float) -> None:
    """A number for which the format has no room is drawn where it belongs."""
    assert event(FORMAT.scalar("a", -value, 1, 0.0)).summary.value[0].simple_value == -math.inf


@given(st.text(), st.text(), STEPS)
def test_a_text(tag: str, text: str, step: int) -> None:
    """A text is a tensor of one string, marked for the text plugin."""
    found = event(FORMAT.text(tag, text, step, 1.0))
    [written] = found.summary.value
    assert (found.step, written.tag, written.metadata.plugin_data.plugin_name) == (step, tag, "text")
    assert (list(written.tensor.string_val), written.tensor.dtype) == ([text.encode()], 7)


def test_a_text_that_is_no_unicode() -> None:
    """Half a surrogate pair, as a file's name may have it, is written as its escape."""
    [written] = event(FORMAT.text("\udcff", "a\udcff", 1, 1.0)).summary.value
    assert (written.tag, list(written.tensor.string_val)) == ("\\udcff", [b"a\\udcff"])


@given(st.lists(st.tuples(st.floats(allow_nan=False), st.floats(0, 1e9)), max_size=40))
def test_a_histogram(buckets: list[tuple[float, float]]) -> None:
    """All its numbers come back as they were, in 64 bits."""
    limits, counts = tuple(limit for limit, _ in buckets), tuple(count for _, count in buckets)
    found = event(FORMAT.histogram("h", Histogram("h", -1.5, 2.5, 7, 0.1, 0.3, limits, counts), 3, 1.0))
    histo = found.summary.value[0].histo
    assert (histo.min, histo.max, histo.num, histo.sum, histo.sum_squares) == (-1.5, 2.5, 7, 0.1, 0.3)
    assert (tuple(histo.bucket_limit), tuple(histo.bucket)) == (limits, counts)


def test_an_image() -> None:
    """Width, height, channels and the file."""
    image = event(FORMAT.image("i", Image("i", 300, 2, 4, b"png"), 3, 1.0)).summary.value[0].image
    assert (image.width, image.height, image.colorspace, image.encoded_image_string) == (300, 2, 4, b"png")


def test_the_head_and_a_start() -> None:
    """The version that makes TensorBoard heed starts; and a start with its step."""
    head, start = event(FORMAT.head(2.0)), event(FORMAT.start(7, 3.0))
    assert (head.file_version, head.source_metadata.writer) == ("brain.Event:2", "asyncstep")
    assert (start.step, start.session_log.status) == (7, SessionLog.START)
