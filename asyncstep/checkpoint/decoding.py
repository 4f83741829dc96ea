"""The tree that `asyncstep.checkpoint.encoding` made -> the value.

The tree comes from a file and is trusted in nothing: whatever is wrong with it is a `Malformed`.
"""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from asyncstep.checkpoint import standard_types as standard_types
from asyncstep.checkpoint.arrays import Stored, numpy_array, numpy_scalar, torch_tensor
from asyncstep.checkpoint.registry import registration_named
from asyncstep.errors import Error, FailedPreconditionError, kind_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sized

C = TypeVar("C", bound="Sized")

_PLAIN = frozenset({float, bool, type(None), bytes, int, str})


class Malformed(Exception):
    """A tree is none that `encode` makes; the message says what is wrong with it."""


class Rebuilder(Protocol):
    """What becomes of the parts of a tree that are more than plain values."""

    def registered(self, name: str, plain: Any) -> Any:
        """An instance of the registered type `name`."""

    def array(self, key: str, description: Any, shape: tuple[int, ...]) -> Any:
        """A numpy array."""

    def scalar(self, description: Any, content: Any) -> Any:
        """A numpy scalar."""

    def tensor(self, key: str, dtype: str, requires_grad: bool) -> Any:
        """A torch tensor."""

    def pickled(self, content: bytes) -> Any:
        """An object that was pickled."""


def decode(tree: Any, rebuilder: Rebuilder) -> Any:
    """The value of a tree.

    Raises:
        Malformed: it is no such tree.
        Error: what the rebuilder raises.
    """
    try:
        return _Decoder(rebuilder).value(tree)
    except RecursionError:
        raise Malformed("it is nested too deeply") from None


class _Decoder:
    def __init__(self, rebuilder: Rebuilder) -> None:
        self._rebuilder = rebuilder
        self._tags: dict[str, Callable[[Any], Any]] = {
            "int": lambda content: int.from_bytes(_of(bytes, content), "little", signed=True),
            "str": _surrogates,
            "tuple": lambda content: tuple(self._items(content)),
            "set": lambda content: _distinct(set, self._items(content)),
            "frozenset": lambda content: _distinct(frozenset, self._items(content)),
            "dict": self._dict,
            "type": self._registered,
            "array": self._array,
            "scalar": self._scalar,
            "tensor": self._tensor,
            "pickle": lambda content: rebuilder.pickled(_of(bytes, content)),
        }

    def value(self, tree: Any) -> Any:
        kind = type(tree)
        if kind in _PLAIN:
            return tree
        if kind is list:
            return self._items(tree)
        if kind is not dict or len(tree) != 1:
            raise Malformed(f"there is {kind_of(tree)} where a value should be")
        ((tag, content),) = tree.items()
        read = self._tags.get(tag)
        if read is None:
            raise Malformed(f"there is a value of an unknown kind, {tag!r}")
        return read(content)

    def _items(self, trees: Any) -> list[Any]:
        if set(map(type, _of(list, trees))) <= _PLAIN:
            return list(trees)
        return [self.value(tree) for tree in trees]

    def _dict(self, content: Any) -> dict[Any, Any]:
        keys, values = map(self._items, _parts(content, 2))
        if len(keys) != len(values):
            raise Malformed(f"a dict has {len(keys)} keys and {len(values)} values")
        return _distinct(lambda keys: dict(zip(keys, values, strict=True)), keys)

    def _registered(self, content: Any) -> Any:
        name, plain = _parts(content, 2)
        return self._rebuilder.registered(_of(str, name), self.value(plain))

    def _array(self, content: Any) -> Any:
        key, description, shape = _parts(content, 3)
        if not all(type(length) is int and length >= 0 for length in _of(list, shape)):
            raise Malformed(f"an array has the shape {shape!r}")
        return self._rebuilder.array(_of(str, key), self.value(description), tuple(shape))

    def _scalar(self, content: Any) -> Any:
        description, plain = _parts(content, 2)
        return self._rebuilder.scalar(self.value(description), self.value(plain))

    def _tensor(self, content: Any) -> Any:
        key, dtype, requires_grad = _parts(content, 3)
        return self._rebuilder.tensor(_of(str, key), _of(str, dtype), _of(bool, requires_grad))


def _of(kind: type, content: Any) -> Any:
    if type(content) is not kind:
        raise Malformed(f"there is {kind_of(content)} in place of {kind.__name__}")
    return content


def _parts(content: Any, number: int) -> list[Any]:
    if len(_of(list, content)) != number:
        raise Malformed(f"a value has {len(content)} parts in place of {number}")
    return list(content)


def _surrogates(content: Any) -> str:
    try:
        return str(_of(bytes, content), "utf-8", "surrogatepass")
    except UnicodeDecodeError as error:
        raise Malformed(f"a string is no string: {error}") from None


def _distinct(make: Callable[[list[Any]], C], items: list[Any]) -> C:
    """A set or dict of items that must differ."""
    try:
        made = make(items)
    except TypeError as error:
        raise Malformed(f"a set or dict has an item that cannot be in one: {error}") from None
    if len(made) != len(items):
        raise Malformed("a set or dict has an item twice")
    return made


class Restorer:
    """Rebuilds the values as they were saved.

    Args:
        stored: the arrays of the files, by key.
        allow_pickle: whether pickled objects are made, by running what the pickle says.
    """

    def __init__(self, stored: Mapping[str, Stored], *, allow_pickle: bool) -> None:
        self._stored = stored
        self._allow_pickle = allow_pickle

    def registered(self, name: str, plain: Any) -> Any:
        registration = registration_named(name)
        if registration is None:
            raise FailedPreconditionError(
                f"it has a value of the type {name!r}, which is not registered in this program;"
                " import the module that registers it (asyncstep.checkpoint.register) before restoring"
            )
        try:
            return registration.from_plain(plain)
        except Error:
            raise
        except Exception as error:
            raise FailedPreconditionError(
                f"its value of the type {name!r} cannot be made again: {error!r}"
            ) from error

    def array(self, key: str, description: Any, shape: tuple[int, ...]) -> Any:
        return _fitting(lambda: numpy_array(self._content(key), description, shape))

    def scalar(self, description: Any, content: Any) -> Any:
        return _fitting(lambda: numpy_scalar(description, content))

    def tensor(self, key: str, dtype: str, requires_grad: bool) -> Any:
        return _fitting(lambda: torch_tensor(self._content(key), dtype, requires_grad))

    def pickled(self, content: bytes) -> Any:
        if not self._allow_pickle:
            raise FailedPreconditionError(
                "it was saved with pickle, which can run any code when it is read;"
                " allow pickle when restoring, if you trust who wrote the checkpoint"
            )
        return pickle.loads(content)

    def _content(self, key: str) -> Stored:
        stored = self._stored.get(key)
        if stored is None:
            raise Malformed(f"the array {key!r} is in none of the files")
        return stored


def _fitting(make: Callable[[], Any]) -> Any:
    try:
        return make()
    except Error:
        raise
    except (ValueError, TypeError, AttributeError) as error:
        raise Malformed(f"an array does not fit its description: {error}") from error
