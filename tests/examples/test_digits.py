"""examples/digits.py and digits_torch.py: they learn the digits, and go on from any kill to the very same weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import anyio
import pytest

from asyncstep.checkpoint import latest_checkpoint, read_checkpoint

pytest.importorskip("sklearn", reason="the digits are scikit-learn's")


@pytest.fixture
def digits(load: Callable[[str], Any]) -> Any:
    """The program."""
    return load("digits")


def state(directory: Path) -> dict[str, Any]:
    """All that is in the newest checkpoint."""
    found = read_checkpoint(latest_checkpoint(directory))
    return {name: getattr(found, name) for name in ("variables", "sources", "tracked", "hooks")}


def same(one: Any, other: Any) -> bool:
    """Whether two states are equal to the bit."""
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool((one == other).all() if hasattr(one, "shape") else one == other)


hashes: set[str] = set()
"""The last lines that the event loops have led to."""


@pytest.mark.anyio
async def test_it_learns_the_digits_and_stops_early(digits: Any) -> None:
    """At least 95 % of the images that it has never seen, before the data ends, on any event loop alike."""
    network, reason = await digits.train()
    test = digits.split_digits(0)[2]
    assert (digits.look(network, test)[1].argmax(axis=1) == test.labels).mean() >= 0.95
    assert reason.origin == "EarlyStoppingHook"
    *_, last = digits.table(network, test)
    hashes.add(last)
    assert hashes == {last}


@pytest.mark.anyio
async def test_each_image_is_seen_once_an_epoch(digits: Any, tmp_path: Path) -> None:
    """1,257 images in batches of 32 are 40 steps an epoch; then the data ends, and all is saved."""
    network, reason = await digits.train(epochs=2, directory=tmp_path)
    assert reason.kind == "end_of_data"
    assert same(state(tmp_path)["variables"]["network"], network)
    assert state(tmp_path)["variables"]["global_step"] == 2 * 40


def test_killed_and_resumed_the_weights_are_the_same_to_the_bit(
    digits: Any, tmp_path: Path, run_killed: Callable[..., int]
) -> None:
    """K4: killed twice and run again, its state is that of a run that was not: weights, images, patience."""
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    for checkpoints in (2, 3):
        assert run_killed("digits", checkpoints, "--epochs", 8, "--dir", killed) < 0
    assert run_killed("digits", None, "--epochs", 8, "--dir", killed) == 0
    anyio.run(digits.train, 8, 0, whole)
    assert same(state(killed), state(whole))


def test_the_torch_variant_goes_on_with_its_module_and_optimizer(
    tmp_path: Path, run_killed: Callable[..., int]
) -> None:
    """K4: killed once, it ends with the parameters and the optimizer's moments of a run that was not."""
    pytest.importorskip("torch", reason="examples/digits_torch.py needs torch")
    assert run_killed("digits_torch", 5, tmp_path / "killed") < 0
    assert run_killed("digits_torch", None, tmp_path / "killed") == 0
    assert run_killed("digits_torch", None, tmp_path / "whole") == 0
    assert same(state(tmp_path / "killed"), state(tmp_path / "whole"))
