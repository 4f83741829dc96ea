"""Arrays of numpy and tensors of torch -> bytes in safetensors files, and back.

In the tree of a value an array is ``{"array": [key, dtype, shape]}``, a numpy scalar ``{"scalar": [dtype,
bytes]}``, a torch tensor ``{"tensor": [key, dtype, requires_grad]}``; the key names the tensor in the
files. A dtype that safetensors has is stored as that, little-endian; any other dtype without Python
objects (complex128, strings, datetime64, records) as its raw bytes. The numpy dtype in the tree says what
it was, byte order included. What is not kept: the order in memory (arrays come back in C order), sharing
between arrays, and a tensor's device (tensors come back on the CPU).

Neither library is imported unless a value needs it.
"""

from __future__ import annotations

import importlib
import math
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from asyncstep.errors import FailedPreconditionError

if TYPE_CHECKING:
    from collections.abc import Callable

ITEM_SIZES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "F8_E8M0": 1, "F8_E4M3FNUZ": 1, "F8_E5M2FNUZ": 1,
    "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4,
    "U64": 8, "I64": 8, "F64": 8, "C64": 8,
}  # fmt: skip
"""The dtypes of safetensors whose items are whole bytes, with their sizes."""

_NATIVE = {"b1": "BOOL", "c8": "C64"} | {
    f"{kind}{size}": f"{kind.upper()}{size * 8}"
    for kind in "uif"
    for size in (1, 2, 4, 8)
    if kind + str(size) != "f1"
}
_EXTENDED = {
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "float8_e8m0fnu": "F8_E8M0",
    "float8_e4m3fnuz": "F8_E4M3FNUZ",
    "float8_e5m2fnuz": "F8_E5M2FNUZ",
}
_TORCH = {
    "bool": "BOOL", "complex64": "C64", "float16": "F16", "float32": "F32", "float64": "F64",
    "int8": "I8", "int16": "I16", "int32": "I32", "int64": "I64",
    "uint8": "U8", "uint16": "U16", "uint32": "U32", "uint64": "U64",
    **_EXTENDED,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Tensor:
    """One array on its way into a file.

    Attributes:
        dtype: one of `ITEM_SIZES`.
        shape: its shape there.
        content: gives its bytes in C order and little-endian; a copy only where the array is neither.
    """

    dtype: str
    shape: tuple[int, ...]
    content: Callable[[], memoryview]

    @property
    def size(self) -> int:
        """Its length in bytes."""
        return math.prod(self.shape) * ITEM_SIZES[self.dtype]


@dataclass(slots=True)
class Tensors:
    """The arrays of one checkpoint by their keys: the names of the values that they are part of.

    Attributes:
        name: the name of the value that is being encoded.
        by_key: what has been added.
    """

    name: str = "value"
    by_key: dict[str, Tensor] = field(default_factory=dict)
    _numbers: dict[str, int] = field(default_factory=dict)

    def add(self, tensor: Tensor) -> str:
        """Take an array; return its key."""
        key = self.name
        while key in self.by_key:
            number = self._numbers[self.name] = self._numbers.get(self.name, 0) + 1
            key = f"{self.name}.{number}"
        self.by_key[key] = tensor
        return key


def array_tree(value: Any, tensors: Tensors, tree: Callable[[Any], Any]) -> dict[str, Any] | None:
    """The tree of a numpy array or scalar or a torch tensor; None if it is none, or holds Python objects.

    `tree` encodes the description of a dtype.
    """
    np = sys.modules.get("numpy")
    if np is not None and (type(value) is np.ndarray or isinstance(value, np.generic)):
        return _numpy_tree(np, value, tensors, tree)
    torch = sys.modules.get("torch")
    if torch is not None and type(value) is torch.Tensor:
        return _torch_tree(torch, value, tensors)
    return None


def _numpy_tree(np: Any, value: Any, tensors: Tensors, tree: Callable[[Any], Any]) -> dict[str, Any] | None:
    if type(value) in (np.str_, np.bytes_):  # as arrays they would lose trailing zeros
        return {"scalar": [value.dtype.kind, tree(value[:])]}
    dtype = value.dtype
    code = _code(dtype)
    described = dtype.name if dtype.name in _EXTENDED else _description(np, dtype)
    if described is None or (not isinstance(value, np.ndarray) and type(value) is not dtype.type):
        return None
    if isinstance(value, np.generic):
        return {"scalar": [tree(described), value.tobytes()]}
    if code is None:
        tensor = Tensor("U8", (value.nbytes,), lambda: _bytes_of(np, value))
    else:
        tensor = Tensor(
            code, value.shape, lambda: _bytes_of(np, value.astype(dtype.newbyteorder("<"), copy=False))
        )
    return {"array": [tensors.add(tensor), tree(described), list(value.shape)]}


def _code(dtype: Any) -> str | None:
    """The dtype's name in safetensors, if it has one."""
    return _EXTENDED.get(dtype.name) or _NATIVE.get(f"{dtype.kind}{dtype.itemsize}")


def _description(np: Any, dtype: Any) -> Any:
    """Plain values from which numpy makes the dtype again; None if there are none."""
    if dtype.hasobject or dtype.kind not in "biufcmMSUV":
        return None
    description = dtype.str if dtype.names is None else np.lib.format.dtype_to_descr(dtype)
    try:
        again = np.lib.format.descr_to_dtype(description)
    except (TypeError, ValueError):  # a dtype of some extension
        return None
    return description if again == dtype and (dtype.kind != "V" or again.type is dtype.type) else None


def _bytes_of(np: Any, array: Any) -> memoryview:
    if array.nbytes == 0:
        return memoryview(b"")
    return memoryview(np.ascontiguousarray(array).reshape(-1).view(np.uint8))


def _torch_tree(torch: Any, value: Any, tensors: Tensors) -> dict[str, Any] | None:
    name = str(value.dtype).removeprefix("torch.")
    if name not in _TORCH or value.layout is not torch.strided:
        return None

    def content() -> memoryview:
        flat = value.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
        return memoryview(flat.view(torch.uint8).numpy()) if flat.numel() else memoryview(b"")

    tensor = Tensor(_TORCH[name], tuple(value.shape), content)
    return {"tensor": [tensors.add(tensor), name, bool(value.requires_grad)]}


@dataclass(frozen=True, slots=True)
class Stored:
    """One array as it was read from a file; `content` is memory of its own, and may be changed."""

    dtype: str
    shape: tuple[int, ...]
    content: bytearray


def numpy_array(stored: Stored, description: Any, shape: tuple[int, ...]) -> Any:
    """The array again.

    Raises:
        ValueError, TypeError: the three do not fit together.
        FailedPreconditionError: numpy, or ml_dtypes for its dtypes, is not installed.
    """
    np = _imported("numpy", "arrays", "asyncstep[numpy]")
    dtype = _dtype(np, description)
    code = _code(dtype)
    if code != stored.dtype and not (code is None and stored.dtype == "U8"):
        raise ValueError(f"a tensor of {stored.dtype} is no array of {dtype}")
    if math.prod(shape) * dtype.itemsize != len(stored.content):
        raise ValueError(f"{len(stored.content)} bytes are no array of {dtype} and shape {shape}")
    if code is None:
        return np.ndarray(shape, dtype, stored.content or bytearray(1))
    array = np.ndarray(shape, dtype.newbyteorder("<"), stored.content or bytearray(1))
    return array.astype(dtype, copy=False)


def numpy_scalar(description: Any, content: Any) -> Any:
    """The numpy scalar again; errors as from `numpy_array`."""
    np = _imported("numpy", "arrays", "asyncstep[numpy]")
    if description == "U" or description == "S":
        return np.str_(content) if description == "U" else np.bytes_(content)
    dtype = _dtype(np, description)
    if dtype.itemsize != len(content):
        raise ValueError(f"{len(content)} bytes are no {dtype}")
    return np.ndarray((), dtype, bytearray(content or b"\0"))[()]


def torch_tensor(stored: Stored, name: str, requires_grad: bool) -> Any:
    """The tensor again, on the CPU; errors as from `numpy_array`."""
    torch = _imported("torch", "tensors", "torch")
    if _TORCH.get(name) != stored.dtype:
        raise ValueError(f"a tensor of {stored.dtype} is no torch tensor of {name}")
    dtype = getattr(torch, name, None)
    if dtype is None:
        raise FailedPreconditionError(
            f"the installed torch {torch.__version__} has no dtype {name}; install a newer one"
        )
    if stored.content:
        tensor = torch.frombuffer(stored.content, dtype=torch.uint8).view(dtype).reshape(stored.shape)
    else:
        tensor = torch.empty(stored.shape, dtype=dtype)
    return tensor.requires_grad_() if requires_grad else tensor


def _dtype(np: Any, description: Any) -> Any:
    if isinstance(description, str) and description in _EXTENDED:
        return np.dtype(getattr(_imported("ml_dtypes", f"arrays of {description}", "ml_dtypes"), description))
    dtype = np.lib.format.descr_to_dtype(description)
    if _description(np, dtype) is None:
        raise ValueError(f"{description!r} is no dtype that a checkpoint can hold")
    return dtype


def _imported(module: str, what: str, requirement: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError:
        raise FailedPreconditionError(
            f"the checkpoint has {what}, which need {module}: pip install '{requirement}'"
        ) from None
