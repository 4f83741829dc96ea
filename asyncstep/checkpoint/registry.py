"""Which types checkpoints can hold besides the plain ones, and how each becomes plain values and back.

A type is known by a name, which stands in the checkpoint; nothing in a checkpoint names code to import.
"""

from __future__ import annotations

import dataclasses
import enum
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, overload

from asyncstep._graph.node import MISSING
from asyncstep.errors import InvalidArgumentError, InvalidTypeError, kind_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

T = TypeVar("T")
C = TypeVar("C", bound=type)


@dataclasses.dataclass(frozen=True, slots=True)
class Registration:
    """How the instances of one type are saved.

    Attributes:
        name: what the type is called in checkpoints.
        type: the type itself; its subclasses are types of their own.
        to_plain: makes plain values (or values of other registered types) of an instance.
        from_plain: makes an equal instance of what `to_plain` gave.
    """

    name: str
    type: type
    to_plain: Callable[[Any], Any]
    from_plain: Callable[[Any], Any]


_by_type: dict[type, Registration] = {}
_by_name: dict[str, Registration] = {}


@overload
def register(kind: C, /, *, name: str | None = None) -> C: ...


@overload
def register(
    kind: type[T],
    /,
    *,
    name: str | None = None,
    to_plain: Callable[[T], Any],
    from_plain: Callable[[Any], T],
) -> type[T]: ...


@overload
def register(
    *,
    name: str | None = None,
    to_plain: Callable[[Any], Any] | None = None,
    from_plain: Callable[[Any], Any] | None = None,
) -> Callable[[C], C]: ...


def register(
    kind: Any = MISSING,
    /,
    *,
    name: str | None = None,
    to_plain: Callable[[Any], Any] | None = None,
    from_plain: Callable[[Any], Any] | None = None,
) -> Any:
    """Let checkpoints hold instances of a type (``@register`` or ``@register(name=...)``); returns the type.

    A dataclass, a named tuple and an enum need no more than ``@register``: fields are saved by name, and
    members of an enum by name (a Flag by value). An instance is put together from its fields; neither
    ``__init__`` nor ``__post_init__`` is called. For any other type give the two functions. Register a
    type at the top level of the module that defines it, so that it is known before anything is restored.

    Args:
        kind: the type. A subclass of it is another type, to be registered by itself.
        name: what checkpoints call it; default: its module and qualified name. Give one if the type may
            move, or is defined in a program's main module.
        to_plain: makes plain values of an instance.
        from_plain: makes an equal instance of these.

    Raises:
        InvalidTypeError: it is no dataclass, named tuple or enum, and the functions are missing.
        InvalidArgumentError: the name belongs to another type, or only one of the functions is given.
    """
    if kind is MISSING:
        return partial(register, name=name, to_plain=to_plain, from_plain=from_plain)
    if not isinstance(kind, type):
        raise InvalidTypeError(f"register needs a type, not {kind_of(kind)}")
    if name is None:
        name = qualified_name(kind)
    if (to_plain is None) is not (from_plain is None):
        raise InvalidArgumentError(f"register of {name} needs both of to_plain and from_plain, or neither")
    if to_plain is None or from_plain is None:
        to_plain, from_plain = _by_fields(kind)
    known = _by_name.get(name)
    if known is not None and qualified_name(known.type) != qualified_name(kind):
        raise InvalidArgumentError(
            f"the name {name!r} is registered for {qualified_name(known.type)};"
            f" give {qualified_name(kind)} another"
        )
    if known is not None:  # the module was loaded anew
        _by_type.pop(known.type, None)
    former = _by_type.get(kind)
    if former is not None:
        del _by_name[former.name]
    _by_type[kind] = _by_name[name] = Registration(name, kind, to_plain, from_plain)
    return kind


def registration_of(kind: type) -> Registration | None:
    """The registration of exactly this type."""
    return _by_type.get(kind)


def registration_named(name: str) -> Registration | None:
    """The registration that checkpoints call `name`."""
    return _by_name.get(name)


def qualified_name(kind: type) -> str:
    """The module and name of a type, for messages and as its default name."""
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def registrable(kind: type) -> bool:
    """Whether ``@register`` alone is enough for this type."""
    try:
        _by_fields(kind)
    except InvalidTypeError:
        return False
    return True


def _by_fields(kind: type) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    if issubclass(kind, enum.Flag):
        return lambda member: member.value, kind
    if issubclass(kind, enum.Enum):
        return lambda member: member.name, lambda name: kind[name]
    if issubclass(kind, tuple) and isinstance(getattr(kind, "_fields", None), tuple):
        return lambda values: dict(values._asdict()), lambda fields: _tuple_of(kind, fields)
    if dataclasses.is_dataclass(kind):
        inherited = [base for base in kind.__mro__ if base.__module__ == "builtins" and base is not object]
        if inherited:
            raise InvalidTypeError(
                f"{qualified_name(kind)} has more to it than its fields, for it is a kind of"
                f" {inherited[0].__name__}; register it with to_plain= and from_plain="
            )
        return _fields_of, lambda fields: _instance_of(kind, fields)
    raise InvalidTypeError(
        f"{qualified_name(kind)} is no dataclass, named tuple or enum;"
        " register it with to_plain= and from_plain="
    )


def _fields_of(instance: Any) -> dict[str, Any]:
    return {field.name: getattr(instance, field.name) for field in dataclasses.fields(instance)}


def _tuple_of(kind: Any, fields: Any) -> Any:
    given = kind._field_defaults | _checked(kind, fields, kind._fields, kind._field_defaults)
    return tuple.__new__(kind, [given[name] for name in kind._fields])


def _instance_of(kind: Any, fields: Any) -> Any:
    declared = {field.name: field for field in dataclasses.fields(kind)}
    optional = [name for name, field in declared.items() if _has_default(field)]
    given = _checked(kind, fields, declared, optional)
    instance = object.__new__(kind)
    for name, field in declared.items():
        object.__setattr__(instance, name, given[name] if name in given else _default_of(field))
    return instance


def _has_default(field: dataclasses.Field[Any]) -> bool:
    return field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING


def _default_of(field: dataclasses.Field[Any]) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _checked(kind: type, fields: Any, declared: Collection[str], optional: Collection[str]) -> dict[str, Any]:
    """The saved fields, if they are those of the type; one with a default may be new since."""
    if not isinstance(fields, dict):
        raise TypeError(f"the fields of {qualified_name(kind)} are {kind_of(fields)}")
    missing = sorted(set(declared) - fields.keys() - set(optional))
    surplus = sorted(map(str, fields.keys() - set(declared)))
    if missing or surplus:
        raise TypeError(
            f"the fields of {qualified_name(kind)} have changed since:"
            + (f" {', '.join(missing)} not saved, and without a default;" if missing else "")
            + (f" {', '.join(surplus)} saved, but not there any more;" if surplus else "")
        )
    return fields
