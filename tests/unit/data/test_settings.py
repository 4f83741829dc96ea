"""The settings of a source: what is refused, and what may change from one life to the next."""

from __future__ import annotations

import re
from typing import Any

import pytest

from asyncstep.data.settings import checked_settings
from asyncstep.errors import FailedPreconditionError, InvalidArgumentError

DEFAULTS: dict[str, Any] = {
    "batch": None,
    "drop_remainder": False,
    "prefetch": 0,
    "shuffle": None,
    "seed": 0,
    "repeat": 1,
    "shard": None,
}


@pytest.mark.parametrize(
    ("option", "values", "rule"),
    [
        ("batch", [0, -1, 1.5, True, "2"], "must be at least 1, or None"),
        ("repeat", [0, -1, 1.5, True, "2"], "must be at least 1, or None"),
        ("prefetch", [-1, None, 1.5, True, "2"], "must be a number of items of at least 0"),
        ("shuffle", [0, -1, 1.5, "2"], "must be True, or the size of a window of at least 1"),
        ("seed", [None, 1.5, True, "2"], "must be an int"),
        (
            "shard",
            [3, (1,), (2, 2), (-1, 2), (0, 0), (0, 1, 2), (0.0, 1), "ab"],
            "must be (index, count) with",
        ),
    ],
)
def test_what_is_out_of_range_is_refused(option: str, values: list[Any], rule: str) -> None:
    """The error names the source, the option, what it must be and what it was."""
    for value in values:
        message = re.escape(f"{option} of the source 'letters' {rule}")
        with pytest.raises(InvalidArgumentError, match=rf"{message}.* not {re.escape(repr(value))}"):
            checked_settings("letters", **{**DEFAULTS, option: value})


def test_a_remainder_that_there_cannot_be_is_refused() -> None:
    """Without a batch nothing is left over."""
    with pytest.raises(InvalidArgumentError, match="drop_remainder of the source 'letters' needs a batch"):
        checked_settings("letters", **{**DEFAULTS, "drop_remainder": True})


@pytest.mark.parametrize(
    ("shuffle", "length", "size"),
    [(None, 9, None), (False, 9, None), (4, 9, 4), (4, None, 4), (True, 9, 9), (True, 0, None)],
)
def test_a_shuffle_is_one_of_windows(shuffle: Any, length: int | None, size: int | None) -> None:
    """D3: all items of a sequence are one window; False is no shuffle."""
    windows = checked_settings("letters", **{**DEFAULTS, "shuffle": shuffle, "seed": 5}).windows(length)
    assert (windows and (windows.size, windows.seed)) == (size and (size, 5))


@pytest.mark.parametrize(
    ("before", "now", "message"),
    [
        ({"batch": 2}, {"batch": 3}, "batch=2, and has batch=3"),
        (
            {"batch": 2, "drop_remainder": True},
            {"batch": 2},
            "drop_remainder=True, and has drop_remainder=False",
        ),
        ({"shuffle": 4}, {}, "shuffle=4, seed=0, and has shuffle=None, seed=None"),
        ({"shuffle": 4, "seed": 1}, {"shuffle": 4}, "seed=1, and has seed=0"),
        ({"shard": (0, 2)}, {"shard": (1, 2)}, r"shard=\[0, 2\], and has shard=\[1, 2\]"),
    ],
)
def test_what_changes_the_meaning_of_positions_is_refused(
    before: dict[str, Any], now: dict[str, Any], message: str
) -> None:
    """D3: the error names what was saved, and what there is now."""
    saved = checked_settings("letters", **{**DEFAULTS, **before}).saved()
    with pytest.raises(FailedPreconditionError, match=f"'letters' was saved with {message}"):
        checked_settings("letters", **{**DEFAULTS, **now}).check_saved(saved, "letters")


@pytest.mark.parametrize("now", [{"seed": 3}, {"prefetch": 9}, {"repeat": None}, {"shard": (0, 1)}])
def test_what_does_not_change_it_may_be_another(now: dict[str, Any]) -> None:
    """D3: more epochs, reading ahead, the seed of no shuffle, and a shard that is all."""
    saved = checked_settings("letters", **DEFAULTS).saved()
    checked_settings("letters", **{**DEFAULTS, **now}).check_saved(saved, "letters")
