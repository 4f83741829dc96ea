"""What is in a checkpoint, for people: also where the program's own types are not at hand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from asyncstep.checkpoint.decoding import Restorer
from asyncstep.checkpoint.registry import qualified_name
from asyncstep.errors import Error, FailedPreconditionError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from asyncstep.checkpoint.arrays import Stored


class Stand:
    """Stands for a value that is not made: an array that was not read, an instance of an unknown type, a pickle.

    Attributes:
        type: the name of the value's type.
        text: how to show it.
        shape: the shape of an array, else None.
        dtype: the dtype of an array, else None.
    """

    __slots__ = ("dtype", "shape", "text", "type")

    def __init__(
        self, kind: str, text: str, *, shape: tuple[int, ...] | None = None, dtype: str | None = None
    ) -> None:
        self.type: str = kind
        self.text: str = text
        self.shape: tuple[int, ...] | None = shape
        self.dtype: str | None = dtype

    def __repr__(self) -> str:
        return self.text


class Outline:
    """A `Rebuilder` that needs nothing of the program that wrote the checkpoint, and runs nothing.

    Args:
        stored: the arrays that were read; the others, and all where their library is missing, are shown by
            dtype and shape.
    """

    def __init__(self, stored: Mapping[str, Stored]) -> None:
        self._stored = stored
        self._restorer = Restorer(stored, allow_pickle=False)

    def registered(self, name: str, plain: Any) -> Any:
        try:
            return self._restorer.registered(name, plain)
        except Error:  # the type is not known here, or has changed since
            return Stand(name, f"{name}({_arguments(plain)})")

    def array(self, key: str, description: Any, shape: tuple[int, ...]) -> Any:
        dtype = description if isinstance(description, str) else repr(description)
        stand = Stand("numpy.ndarray", f"<array of {dtype}, shape {shape}>", shape=shape, dtype=dtype)
        return self._read(key, stand, lambda: self._restorer.array(key, description, shape))

    def scalar(self, description: Any, content: Any) -> Any:
        try:
            return self._restorer.scalar(description, content)
        except FailedPreconditionError:  # the library is not there
            return Stand("numpy.generic", f"<numpy scalar of {description}>")

    def tensor(self, key: str, dtype: str, requires_grad: bool) -> Any:
        stand = Stand("torch.Tensor", f"<tensor of {dtype}>", dtype=dtype)
        return self._read(key, stand, lambda: self._restorer.tensor(key, dtype, requires_grad))

    def pickled(self, content: bytes) -> Any:
        return Stand("pickle", f"<pickle of {len(content)} bytes>")

    def _read(self, key: str, stand: Stand, make: Callable[[], Any]) -> Any:
        if key not in self._stored:
            return stand
        try:
            return make()
        except FailedPreconditionError:  # the library is not there
            return stand


def type_name(value: Any) -> str:
    """The name of the type that the value has, or had when it was saved."""
    return value.type if isinstance(value, Stand) else qualified_name(type(value))


def _arguments(plain: Any) -> str:
    if isinstance(plain, dict) and all(isinstance(name, str) for name in plain):
        return ", ".join(f"{name}={value!r}" for name, value in plain.items())
    return repr(plain)
