"""Any value -> a tree of what MessagePack has, with arrays beside it.

MessagePack's own None, booleans, 64-bit integers, floats, strings, bytes and lists stand for themselves.
Everything else is a map with one entry, ``{tag: content}``; `asyncstep.checkpoint.decoding` reads it back:

    int     a larger integer, as little-endian two's complement bytes
    str     a string with lone surrogates, as bytes
    tuple, set, frozenset    the items
    dict    [keys, values], in their order
    type    [name, plain value] of a registered type
    array, scalar, tensor    see `asyncstep.checkpoint.arrays`
    pickle  bytes

Types are matched exactly: what comes back has the type that went in, or the save is refused.
"""

from __future__ import annotations

import pickle
import reprlib
from typing import TYPE_CHECKING, Any

import msgspec

from asyncstep.checkpoint import standard_types as standard_types
from asyncstep.checkpoint.arrays import Tensors, array_tree
from asyncstep.checkpoint.registry import qualified_name, registrable, registration_of
from asyncstep.errors import Error, InvalidArgumentError, InvalidTypeError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from asyncstep.checkpoint.registry import Registration

MAX_DEPTH = 100
"""How deep containers may be nested, so that reading a value back never exhausts the stack."""

_PLAIN = frozenset({float, bool, type(None), bytes})


def encode(value: Any, *, what: str, tensors: Tensors, allow_pickle: bool = False) -> Any:
    """The tree of a value; its arrays are added to `tensors`. The value is not changed.

    Args:
        value: what to save.
        what: the value's name for messages, as "the variable 'loss'".
        tensors: takes the arrays.
        allow_pickle: whether objects of unknown types are pickled.

    Raises:
        InvalidTypeError: something in it is of a type that cannot be saved; the message says where.
        InvalidArgumentError: it contains itself, or is nested too deeply.
    """
    try:
        return _Encoder(tensors, allow_pickle).tree(value)
    except _Refusal as refusal:
        path = "".join(reversed(refusal.path))
        where = f" at {path}" if path else ""
        raise refusal.error(f"{what} cannot be saved:{where} {refusal.reason}") from refusal.__cause__
    except RecursionError:
        raise InvalidArgumentError(
            f"{what} cannot be saved: it is nested too deeply for what is left of the stack"
        ) from None


class _Refusal(Exception):
    """A value cannot be saved; the path to it grows on the way out."""

    def __init__(self, reason: str, error: type[Error] = InvalidTypeError) -> None:
        super().__init__(reason)
        self.reason = reason
        self.error = error
        self.path: list[str] = []


class _Encoder:
    """Encodes one value.

    `_open` holds the ids of the containers around the place that is being encoded: one of them met again
    contains itself, and their number is the depth.
    """

    def __init__(self, tensors: Tensors, allow_pickle: bool) -> None:
        self._tensors = tensors
        self._allow_pickle = allow_pickle
        self._open: set[int] = set()
        self._known: dict[type, Callable[[Any], Any]] = {
            int: _int_tree,
            str: _str_tree,
            list: lambda value: self._inside(value, self._list),
            tuple: lambda value: self._inside(value, self._tuple),
            set: lambda value: self._inside(value, self._set),
            frozenset: lambda value: self._inside(value, self._frozenset),
            dict: lambda value: self._inside(value, self._dict),
        }

    def tree(self, value: Any) -> Any:
        kind = type(value)
        if kind in _PLAIN:
            return value
        known = self._known.get(kind)
        if known is not None:
            return known(value)
        registration = registration_of(kind)
        if registration is not None:
            return self._inside(value, lambda value: self._registered(registration, value))
        found = array_tree(value, self._tensors, self.tree)
        return self._other(value, kind) if found is None else found

    def _inside(self, value: Any, encode: Callable[[Any], Any]) -> Any:
        key = id(value)
        if key in self._open:
            raise _Refusal(f"{_a(type(value))} contains itself", InvalidArgumentError)
        if len(self._open) >= MAX_DEPTH:
            raise _Refusal(f"it is nested deeper than {MAX_DEPTH} levels", InvalidArgumentError)
        self._open.add(key)
        try:
            return encode(value)
        finally:
            self._open.discard(key)

    def _list(self, value: list[Any]) -> list[Any]:
        return self._items(value, "[{}]")

    def _tuple(self, value: tuple[Any, ...]) -> dict[str, Any]:
        return {"tuple": self._items(value, "[{}]")}

    def _set(self, value: set[Any]) -> dict[str, Any]:
        return {"set": self._unordered(value)}

    def _frozenset(self, value: frozenset[Any]) -> dict[str, Any]:
        return {"frozenset": self._unordered(value)}

    def _unordered(self, value: Collection[Any]) -> list[Any]:
        """The items of a set in an order of their own, so that equal states make equal files."""
        return sorted(self._items(list(value), "{{item {}}}"), key=msgspec.msgpack.encode)

    def _dict(self, value: dict[Any, Any]) -> dict[str, Any]:
        values = []
        for key, item in value.items():
            try:
                values.append(self.tree(item))
            except _Refusal as refusal:
                refusal.path.append(f"[{reprlib.repr(key)}]")
                raise
        return {"dict": [self._items(list(value), "{{key {}}}"), values]}

    def _items(self, values: Collection[Any], place: str) -> list[Any]:
        """The trees of the items; `place` is how to speak of one of them."""
        if _stand_for_themselves(values):
            return list(values)
        trees = []
        for index, value in enumerate(values):
            try:
                trees.append(self.tree(value))
            except _Refusal as refusal:
                refusal.path.append(place.format(index))
                raise
        return trees

    def _registered(self, registration: Registration, value: Any) -> dict[str, Any]:
        try:
            plain = registration.to_plain(value)
        except Error as error:
            raise _Refusal(str(error)) from error
        except Exception as error:
            raise _Refusal(f"to_plain of {registration.name} raised {error!r}") from error
        return {"type": [registration.name, self.tree(plain)]}

    def _other(self, value: Any, kind: type) -> dict[str, Any]:
        what = _a(kind) + (f" of dtype {value.dtype}" if hasattr(kind, "dtype") else "")
        if not self._allow_pickle:
            raise _Refusal(
                f"there is {what}, {_advice(kind)}; or allow pickle when saving and when restoring"
            )
        try:
            return {"pickle": pickle.dumps(value, protocol=5)}
        except Exception as error:
            raise _Refusal(f"there is {what}, which not even pickle can save: {error!r}") from error


def _int_tree(value: int) -> Any:
    if -(2**63) <= value < 2**63:
        return value
    return {"int": value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)}


def _str_tree(value: str) -> Any:
    try:
        value.encode()
    except UnicodeEncodeError:
        return {"str": value.encode("utf-8", "surrogatepass")}
    return value


def _stand_for_themselves(values: Collection[Any]) -> bool:
    """Whether no item needs a tag: the fast way for long lists of numbers."""
    kinds = set(map(type, values))
    if kinds == {int}:
        return bool(min(values) >= -(2**63) and max(values) < 2**63)
    return kinds <= _PLAIN


def _a(kind: type) -> str:
    name = qualified_name(kind)
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


def _advice(kind: type) -> str:
    if registrable(kind):
        return "which is not registered: decorate the class with @asyncstep.checkpoint.register"
    plain = next(
        (base for base in kind.__mro__[1:] if base in (bool, int, float, str, bytes, list, tuple, set, dict)),
        None,
    )
    if plain is not None:
        return (
            f"which is a subclass of {plain.__name__}: convert it to {plain.__name__},"
            " or register it by asyncstep.checkpoint.register with to_plain= and from_plain="
        )
    return (
        "of which checkpoints know no plain form: keep it out of the state,"
        " or register it by asyncstep.checkpoint.register with to_plain= and from_plain="
    )
