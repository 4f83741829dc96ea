"""Arrays and tensors in checkpoints."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from asyncstep.checkpoint import read_checkpoint
from asyncstep.checkpoint.arrays import Stored, Tensors, numpy_array
from asyncstep.checkpoint.decoding import Malformed, Restorer, decode
from asyncstep.checkpoint.encoding import encode
from asyncstep.checkpoint.hashing import HashedReader
from asyncstep.checkpoint.tensor_file import read
from asyncstep.errors import FailedPreconditionError, InvalidTypeError

from .parts import encode_all, round_trip, save, state

DTYPES = ["?", "i1", "u1", *(f"{kind}{size}" for kind in "iuf" for size in (2, 4, 8)), "c8"]
OTHER_DTYPES = ["c16", "M8[ns]", "m8[D]", "U3", "S3", "V5", "g", [("x", "i4"), ("y", ">f8", (2,))]]
EXTENDED = [ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2, ml_dtypes.float8_e8m0fnu]


def same(one: Any, other: Any) -> bool:
    """Whether two arrays agree in dtype, byte order, shape and every bit."""
    return bool(one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes())


def filled(dtype: Any, shape: tuple[int, ...]) -> Any:
    """An array of that dtype with bytes that count up, which every dtype has a meaning for."""
    dtype = np.dtype(dtype)
    if dtype.kind == "b":
        return np.arange(np.prod(shape, dtype=int)).reshape(shape) % 2 == 0
    if dtype.kind == "U":
        return np.full(shape, "a\N{SNOWMAN}", dtype)
    return np.frombuffer(bytes(i % 251 for i in range(dtype.itemsize * int(np.prod(shape)))), dtype).reshape(
        shape
    )


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("dtype", [*DTYPES, *OTHER_DTYPES], ids=str)
def test_every_dtype_without_objects_comes_back(dtype: Any, order: str) -> None:
    """Arrays keep dtype and byte order, values and shape; those of dtypes that safetensors lacks as well."""
    array = filled(np.dtype(dtype).newbyteorder(order), (2, 3))
    assert same(round_trip(array), array)


@pytest.mark.parametrize("dtype", EXTENDED, ids=str)
def test_small_floats_come_back(dtype: Any) -> None:
    """The dtypes of ml_dtypes that safetensors has come back."""
    array = filled(dtype, (5,))
    assert same(round_trip(array), array)


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<c16", "<U2", "V0", "U0"])
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1, 1)])
def test_no_dimensions_and_no_items_come_back(dtype: str, shape: tuple[int, ...]) -> None:
    """0-d arrays stay arrays, and empty ones keep their shape."""
    array = np.zeros(shape, dtype)
    assert same(round_trip(array), array)


@pytest.mark.parametrize(
    "view",
    [
        lambda array: array.T,
        lambda array: array[::2, ::-1],
        lambda array: np.broadcast_to(array[0], (3, 6)),
        np.asfortranarray,
        lambda array: array.astype(">i4")[:, 1:3],
    ],
)
def test_views_come_back(view: Any) -> None:
    """Arrays that are not contiguous come back with their values; the saved one is not changed."""
    base = np.arange(24, dtype="<i4").reshape(4, 6)
    array = view(base)
    assert same(round_trip(array), array)
    assert same(base, np.arange(24, dtype="<i4").reshape(4, 6))


@pytest.mark.parametrize(
    "scalar",
    [
        np.float32(1.5),
        np.float64(0.1),
        np.int64(-3),
        np.bool_(True),
        np.complex128(1 + 2j),
        np.longdouble("0.1"),
        np.array((1, 2.0), dtype="i4,f8")[()],
        ml_dtypes.bfloat16(2),
    ],
    ids=repr,
)
def test_scalars_stay_scalars(scalar: Any) -> None:
    """A numpy scalar comes back as one, not as a Python number and not as an array."""
    back = round_trip(scalar)
    assert type(back) is type(scalar)
    assert (back.dtype, back.tobytes()) == (scalar.dtype, scalar.tobytes())


def test_scalars_of_text_and_time_stay_scalars() -> None:
    """So do those without a buffer; text keeps its zeros at the end, which an array would lose."""
    scalars = [
        np.datetime64("2024-02-29", "us"),
        np.timedelta64("NaT", "D"),
        np.str_("a\0"),
        np.bytes_(b"\0"),
    ]
    back = round_trip(scalars)
    assert [type(scalar) for scalar in back] == [type(scalar) for scalar in scalars]
    assert repr(back[:2]) == repr(scalars[:2])
    assert [scalar[:] for scalar in back[2:]] == ["a\0", b"\0"]


def test_what_comes_back_is_one_s_own() -> None:
    """An array that came back can be written to, and no other changes by it."""
    array = np.arange(3)
    one, other = round_trip([array, array])
    one[0] = 7
    assert (one[0], other[0], array[0]) == (7, 0, 0)


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (np.array([object()]), "a numpy.ndarray of dtype object"),
        (np.array([(1, None)], dtype=[("a", "i4"), ("b", "O")]), "a numpy.ndarray of dtype"),
        (np.array(["a"], dtype=np.dtypes.StringDType()), r"a numpy.ndarray of dtype StringDType\(\)"),
        (np.zeros(2).view(np.recarray), "a numpy.rec.recarray"),
        (np.ma.masked_array([1], [True]), "a numpy.ma.MaskedArray"),
        (np.array([1], dtype=ml_dtypes.int4), "a numpy.ndarray of dtype int4"),
    ],
)
def test_arrays_that_cannot_be_saved_are_named(value: Any, named: str) -> None:
    """Arrays with objects inside, and subclasses of arrays, are refused with their variable and type."""
    with pytest.raises(
        InvalidTypeError, match=f"the variable 'bad' cannot be saved: at .'w'. there is {named}"
    ):
        encode_all(state(bad={"w": value}))


def test_arrays_of_objects_can_be_pickled() -> None:
    """With pickle allowed at both ends an array of objects comes back."""
    array = np.array([{1: 2}, None], dtype=object)
    assert round_trip(array, allow_pickle=True).tolist() == [{1: 2}, None]


def test_other_readers_can_open_the_files(tmp_path: Path) -> None:
    """The file of arrays is a safetensors file, with the variables' names for keys."""
    arrays = {f"a{dtype}": filled(dtype, (3, 2)) for dtype in DTYPES}
    path = save(tmp_path, 1, **arrays, nested=[np.zeros(()), {"deep": np.ones((0, 2))}])
    found = load_file(path / "arrays-00000.safetensors")
    assert found.keys() == {f"variables/{name}" for name in arrays} | {
        "variables/nested",
        "variables/nested.1",
    }
    assert all(same(found[f"variables/{name}"], array) for name, array in arrays.items())


def test_files_of_others_can_be_read(tmp_path: Path) -> None:
    """What the safetensors library writes is read."""
    arrays = {"one": np.arange(6.0).reshape(2, 3), "two": np.ones((), np.int8)}
    save_file(arrays, tmp_path / "x", metadata=None)
    with open(tmp_path / "x", "rb") as file:
        found = read(HashedReader(file), (tmp_path / "x").stat().st_size)
    assert same(numpy_array(found["one"], "<f8", (2, 3)), arrays["one"])
    assert same(numpy_array(found["two"], "|i1", ()), arrays["two"])


def test_names_of_arrays_never_collide() -> None:
    """Arrays whose names would be the same are all there."""
    tensors = Tensors()
    for name in ("x", "x.1", "x"):
        tensors.name = name
        encode([np.zeros(1), np.zeros(2)], what="", tensors=tensors)
    assert len(tensors.by_key) == 6


def test_many_small_arrays_and_a_large_one_come_back(tmp_path: Path) -> None:
    """Files are written in pieces and hashed by a thread; every array is what it was."""
    arrays = {f"a{i}": np.full(i, i, np.int16) for i in range(200)}
    large = np.random.default_rng(0).integers(0, 255, 11_000_003, np.uint8)
    back = read_checkpoint(save(tmp_path, 1, large=large, strided=large[::3], **arrays)).variables
    assert same(back["large"], large)
    assert same(back["strided"], large[::3])
    assert all(same(back[name], array) for name, array in arrays.items())


@pytest.mark.parametrize(
    "tree",
    [
        {"array": ["missing", "<f4", [2]]},
        {"array": ["key", "<f4", [3]]},
        {"array": ["key", "<f4", [-1, -2]]},
        {"array": ["key", "<f4", [True, 2]]},
        {"array": ["key", "<f4", [2**70]]},
        {"array": ["key", "<i4", [2]]},
        {"array": ["key", "|O", [1]]},
        {"array": ["key", "nonsense", [2]]},
        {"array": ["key", 7, [2]]},
        {"array": ["key", ["f4"], [2]]},
        {"array": ["key", "<f4"]},
        {"array": "key"},
        {"scalar": ["<f4", b"123"]},
        {"scalar": ["<f4", "1234"]},
        {"scalar": ["|O", b"12345678"]},
        {"tensor": ["key", "float32", 1]},
    ],
    ids=str,
)
def test_impossible_arrays_are_malformed(tree: Any) -> None:
    """A description that does not fit the bytes is an error; nothing is read beyond them."""
    stored = {"key": Stored("F32", (2,), bytearray(8))}
    with pytest.raises(Malformed):
        decode(tree, Restorer(stored, allow_pickle=False))


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrays where numpy is not installed are an error that says how to install it."""
    tensors = Tensors()
    tree = encode(np.float32(1), what="", tensors=tensors)
    monkeypatch.setitem(sys.modules, "numpy", None)
    with pytest.raises(FailedPreconditionError, match=r"need numpy: pip install 'asyncstep\[numpy\]'"):
        decode(tree, Restorer({}, allow_pickle=False))


def test_plain_checkpoints_need_no_numpy() -> None:
    """Saving and reading plain values imports neither numpy nor torch."""
    program = (
        "import sys, tempfile\n"
        "from asyncstep.checkpoint import read_checkpoint\n"
        "from asyncstep.checkpoint.state import CheckpointState\n"
        "from asyncstep.checkpoint.writing import write_checkpoint\n"
        "with tempfile.TemporaryDirectory() as place:\n"
        "    path = write_checkpoint(place, CheckpointState(variables={'a': (1, {2})}), step=1)\n"
        "    assert read_checkpoint(path).variables == {'a': (1, {2})}\n"
        "print({'numpy', 'torch'} & set(sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
