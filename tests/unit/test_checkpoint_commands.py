"""The commands that look at checkpoints, as a shell sees them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import pytest

from asyncstep import cli
from asyncstep.checkpoint import register, registry
from asyncstep.checkpoint.retention import Metric
from asyncstep.checkpoint.state import CheckpointState
from asyncstep.checkpoint.writing import write_checkpoint
from asyncstep.checkpoint_commands import age, size


class Run(Protocol):
    """Calls the command in this process: the exit code, what it wrote to stdout and what to stderr."""

    def __call__(self, *args: object) -> tuple[object, str, str]: ...


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """The command, called in this process."""

    def call(*args: object) -> tuple[object, str, str]:
        with pytest.raises(SystemExit) as end:
            cli.main([str(arg) for arg in args])
        return (end.value.code, *capsys.readouterr())

    return call


class Point(NamedTuple):
    x: int
    y: Any


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Two checkpoints; one has a type that the command does not know."""
    place = tmp_path / "checkpoints"
    register(Point, name="mine.Point")
    state = CheckpointState(
        variables={
            "global_step": 12,
            "loss": 0.5,
            "weights": np.arange(6, dtype="f4").reshape(2, 3),
            "scalar": np.float64(2),
            "best": Point(1, [2]),
            "text": "x" * 500,
            "odd\x1bname": float("nan"),
            "when": {1: "keys"},
        },
        sources={"lines": [12, []]},
        tracked={"lines": {"a": (1, b"2")}},
    )
    write_checkpoint(place, state, step=12, metric=Metric("loss", 0.5), clock=lambda: 1e9)
    write_checkpoint(place, CheckpointState(), step=7, clock=lambda: 1e9)
    registration = registry._by_name.pop("mine.Point")
    del registry._by_type[registration.type]
    return place


def damaged(directory: Path) -> Path:
    """Damage the newer checkpoint."""
    path = directory / "step-0000000012"
    (path / "state.msgpack").write_bytes(b"")
    return path


def test_checkpoints_are_listed(run: Run, directory: Path) -> None:
    """Step, age, size, and sound or why not; the metric where there is one."""
    damaged_one = damaged(directory)
    code, out, _ = run("checkpoints", directory)
    head, first, second = out.splitlines()
    assert (code, head.split()) == (0, ["step", "age", "size"])
    assert first.split()[0] == "7"
    assert first.endswith(" bytes  sound")
    assert second.endswith(
        f"the checkpoint {damaged_one} is damaged: state.msgpack has 0 bytes instead of 896"
    ) or ("is damaged: state.msgpack has 0 bytes instead of" in second)


def test_checkpoints_are_listed_as_json(run: Run, directory: Path) -> None:
    """The same for programs."""
    damaged(directory)
    write_checkpoint(directory, CheckpointState(), step=13, metric=Metric("m", 1.5), clock=lambda: 5.0)
    code, out, _ = run("checkpoints", directory, "--json")
    first, second, third = json.loads(out)
    assert code == 0
    assert (first["step"], first["sound"], first["problem"], first["time"]) == (7, True, None, 1e9)
    assert (second["step"], second["sound"], second["size"]) == (12, False, None)
    assert "state.msgpack" in second["problem"]
    assert third["path"] == str(directory / "step-0000000013")
    assert third["metric"] == {"name": "m", "value": 1.5}


def test_an_empty_directory_has_no_checkpoints(run: Run, tmp_path: Path) -> None:
    """Nothing there is said on stderr, and is no error; a missing directory is one."""
    assert run("checkpoints", tmp_path) == (0, "", f"There are no checkpoints in {tmp_path}.\n")
    assert run("checkpoints", tmp_path, "--json") == (0, "[]\n", "")
    code, out, err = run("checkpoints", tmp_path / "missing")
    assert (code, out, err) == (2, "", f"Error: there is no directory {tmp_path / 'missing'}\n")


def test_a_checkpoint_is_shown(run: Run, directory: Path) -> None:
    """Names, types, shapes and small values, of types that are not registered too; control characters are escaped."""
    code, out, _ = run("show", directory / "step-0000000012")
    lines = [" ".join(line.split()) for line in out.splitlines() if line]
    assert code == 0
    assert lines[0].endswith("loss 0.5")
    assert lines[1:10] == [
        "variables",
        "global_step int 12",
        "loss float 0.5",
        "weights numpy.ndarray <array of <f4, shape (2, 3)>",
        "scalar numpy.float64 np.float64(2.0)",
        "best mine.Point mine.Point(x=1, y=[2])",
        f"text str '{'x' * 27}...{'x' * 28}'",
        r"'odd\x1bname' float nan",
        "when dict {1: 'keys'}",
    ]
    assert lines[10:] == ["sources", "lines list [12, []]", "tracked", "lines dict {'a': (1, b'2')}"]


def test_one_value_is_shown_in_full(run: Run, directory: Path) -> None:
    """By its name, from every section that has it; arrays with their values."""
    assert run("show", directory, "text") == (0, repr("x" * 500) + "\n", "")
    assert run("show", directory, "lines") == (0, "[12, []]\n{'a': (1, b'2')}\n", "")
    assert run("show", directory, "best") == (0, "mine.Point(x=1, y=[2])\n", "")
    code, out, _ = run("show", directory, "weights")
    assert (code, out) == (0, repr(np.arange(6, dtype="f4").reshape(2, 3)) + "\n")


def test_a_checkpoint_is_shown_as_json(run: Run, directory: Path) -> None:
    """The same for programs; a large value only when it is asked for."""
    code, out, _ = run("show", directory, "--json")
    shown = json.loads(out)
    assert (code, shown["step"], shown["time"]) == (0, 12, 1e9)
    assert shown["variables"]["weights"] == {"type": "numpy.ndarray", "dtype": "<f4", "shape": [2, 3]}
    assert shown["variables"]["loss"] == {"type": "float", "value": 0.5}
    assert shown["variables"]["text"]["type"] == "str"
    assert shown["variables"]["best"] == {"type": "mine.Point", "value": "mine.Point(x=1, y=[2])"}
    assert shown["variables"]["odd\x1bname"]["value"] == "nan"
    assert shown["tracked"]["lines"]["value"] == {"a": [1, "b'2'"]}
    _, out, _ = run("show", directory, "weights", "--json")
    assert json.loads(out)["variables"]["weights"]["value"] == [[0, 1, 2], [3, 4, 5]]
    _, out, _ = run("show", directory, "text", "--json")
    assert json.loads(out)["variables"]["text"]["value"] == "x" * 500


def test_a_directory_is_shown_by_its_newest_sound_checkpoint(run: Run, directory: Path) -> None:
    """With the newest damaged, the one before is shown."""
    damaged(directory)
    code, out, _ = run("show", directory)
    assert code == 0
    assert out.startswith(str(directory / "step-0000000007"))


def test_unknown_names_are_not_found(run: Run, directory: Path) -> None:
    """A name that is not there is an error that lists those that are."""
    code, _, err = run("show", directory, "lost")
    assert code == 2
    assert "nothing named 'lost'; it has global_step, loss, weights" in err


def test_verify_tells_by_its_exit_code(run: Run, directory: Path, tmp_path: Path) -> None:
    """0 sound, 1 damaged, 2 not found, 3 not to be read here."""
    path = directory / "step-0000000012"
    assert run("verify", path) == (0, f"{path} is sound\n", "")
    code, out, err = run("verify", damaged(directory))
    assert (code, out) == (1, "")
    assert "state.msgpack has 0 bytes" in err
    assert run("verify", tmp_path / "missing")[0] == 2
    assert run("verify", directory)[0] == 2
    assert run("verify", "s3://bucket/step-0000000001")[0] == 3


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(-5, "0 s"), (0, "0 s"), (59.9, "59 s"), (60, "1 min"), (7199, "1 h"), (86400 * 400, "400 d")],
)
def test_ages_are_in_their_largest_unit(seconds: float, said: str) -> None:
    """An age is short."""
    assert age(seconds) == said


@pytest.mark.parametrize(
    ("length", "said"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1500, "1.5 kB"),
        (123_456_789, "123 MB"),
        (5e9, "5 GB"),
        (5e15, "5,000.0 TB"),
    ],
)
def test_sizes_are_in_their_largest_unit(length: float, said: str) -> None:
    """A size is short."""
    assert size(length) == said
