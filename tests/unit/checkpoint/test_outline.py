"""A checkpoint shown where the program's types and libraries are not at hand."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from asyncstep.checkpoint import register, registry
from asyncstep.checkpoint.decoding import Malformed
from asyncstep.checkpoint.outline import Outline, Stand, type_name
from asyncstep.checkpoint.reading import read_arrays, read_outline
from asyncstep.checkpoint.writing import write_checkpoint

from .parts import save, state


def shown(path: Path, *, arrays: bool = False) -> Any:
    """The variables as an outline."""
    return read_outline(path, Outline(read_arrays(path) if arrays else {}))[1]["variables"]


def test_arrays_are_shown_by_dtype_and_shape(tmp_path: Path) -> None:
    """Arrays that were not read stand there with dtype and shape, records too; those that were read are arrays."""
    records = np.zeros(2, [("x", "<i4")])
    path = save(tmp_path, 1, a=np.ones((2, 3), ">f4"), r=records)
    variables = shown(path)
    assert repr(variables["a"]) == "<array of >f4, shape (2, 3)>"
    assert repr(variables["r"]) == "<array of [('x', '<i4')], shape (2,)>"
    assert (variables["a"].dtype, variables["a"].shape, type_name(variables["a"])) == (
        ">f4",
        (2, 3),
        "numpy.ndarray",
    )
    assert np.array_equal(shown(path, arrays=True)["a"], np.ones((2, 3)))


def test_without_numpy_arrays_are_shown_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where numpy is missing, read arrays and scalars are shown by what they are."""
    path = save(tmp_path, 1, a=np.ones(2), s=np.float32(1))
    monkeypatch.setitem(sys.modules, "numpy", None)
    variables = shown(path, arrays=True)
    assert repr(variables["a"]) == "<array of <f8, shape (2,)>"
    assert repr(variables["s"]) == "<numpy scalar of <f4>"


def test_tensors_are_shown_by_dtype() -> None:
    """A tensor that was not read stands there with its dtype."""
    stand = Outline({}).tensor("key", "bfloat16", True)
    assert (repr(stand), type_name(stand)) == ("<tensor of bfloat16>", "torch.Tensor")


def test_pickles_are_not_opened(tmp_path: Path) -> None:
    """A pickle is shown by its length."""
    path = write_checkpoint(tmp_path, state(p=sys.exit), step=1, allow_pickle=True)
    assert repr(shown(path)["p"]).startswith("<pickle of ")


def test_types_that_have_changed_are_shown_by_their_fields(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A type that cannot be made any more is shown as it was saved, fields or not."""

    class Pair(NamedTuple):
        left: int
        right: int

    monkeypatch.setattr(registry, "_by_type", dict(registry._by_type))
    monkeypatch.setattr(registry, "_by_name", dict(registry._by_name))
    register(
        Pair, name="pair", to_plain=lambda pair: {"left": pair.left}, from_plain=lambda plain: Pair(**plain)
    )
    path = save(tmp_path, 1, p=Pair(1, 2), q={Pair(3, 4): 5})
    variables = shown(path)
    assert repr(variables["p"]) == "pair(left=1)"
    assert repr(variables["q"]) == "{pair(left=3): 5}"
    assert isinstance(variables["p"], Stand)


def test_an_impossible_array_is_damage() -> None:
    """A description that fits no array is not shown as one."""
    from asyncstep.checkpoint.arrays import Stored

    outline = Outline({"k": Stored("F32", (2,), bytearray(8))})
    with pytest.raises(Malformed):
        outline.array("k", "<f4", (3,))
    with pytest.raises(Malformed):
        outline.scalar("<f4", b"1")
