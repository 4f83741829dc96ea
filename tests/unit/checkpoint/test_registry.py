"""Types of one's own in checkpoints."""

from __future__ import annotations

import enum
from collections import namedtuple
from dataclasses import InitVar, dataclass, field
from types import ModuleType
from typing import Any, Generic, NamedTuple, TypeVar

import pytest

from asyncstep.checkpoint import register, registry
from asyncstep.checkpoint.arrays import Tensors
from asyncstep.checkpoint.decoding import Restorer, decode
from asyncstep.checkpoint.encoding import encode
from asyncstep.errors import FailedPreconditionError, InvalidArgumentError, InvalidTypeError

from .parts import round_trip

T = TypeVar("T")


@pytest.fixture(autouse=True)
def as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is gone when it ends."""
    monkeypatch.setattr(registry, "_by_type", dict(registry._by_type))
    monkeypatch.setattr(registry, "_by_name", dict(registry._by_name))


@dataclass(frozen=True, slots=True)
class Point(Generic[T]):
    x: T
    tags: tuple[str, ...] = ()


@dataclass
class Line:
    start: Point[int]
    length: InitVar[int] = 3
    ends: list[int] = field(default_factory=list, init=False)
    calls: int = 0

    def __post_init__(self, length: int) -> None:
        self.ends = [self.start.x, self.start.x + length]
        self.calls += 1


class Named(NamedTuple):
    a: int
    b: Any = None


class Colour(enum.Enum):
    RED = "r"
    CRIMSON = "r"  # noqa: PIE796 - an alias


class Rights(enum.Flag):
    READ = 1
    WRITE = 2


class Level(enum.IntEnum):
    LOW = 1


class Words(list[str]):
    pass


@pytest.mark.parametrize(
    "value",
    [
        Point(1, ("a",)),
        Point(Point(1.0)),
        Line(Point(1)),
        Named(1, [Named(2)]),
        Colour.CRIMSON,
        Rights.READ | Rights.WRITE,
        Rights(0),
        Level.LOW,
        {Point(1): {Named(1), Named(2)}},
    ],
    ids=lambda value: type(value).__name__,
)
def test_registered_types_come_back(value: Any) -> None:
    """Dataclasses, named tuples and enums that were registered come back as what they were."""
    for kind in (Point, Line, Named, Colour, Rights, Level):
        register(kind)
    back = round_trip(value)
    assert back == value
    assert type(back) is type(value)


def test_no_code_of_the_type_runs_on_the_way_back() -> None:
    """A dataclass is put together from its fields; its __post_init__ is not called again (contract K6)."""
    register(Point)
    register(Line)
    line = Line(Point(1))
    line.ends.append(99)
    back = round_trip(line)
    assert (back.ends, back.calls) == ([1, 4, 99], 1)


def test_register_gives_the_type_back() -> None:
    """It serves as a decorator."""
    assert register(Named) is Named


def test_a_decorator_with_a_name() -> None:
    """Under its name a type is known in any module, also in a program's main module."""

    @register(name="geometry.Spot")
    @dataclass(frozen=True)
    class Spot:
        x: int

    assert registry.registration_named("geometry.Spot").type is Spot
    assert round_trip(Spot(1)) == Spot(1)


def test_functions_make_any_type_saveable() -> None:
    """With to_plain and from_plain a subclass of a builtin type, too, is saved and comes back."""
    register(Words, to_plain=list, from_plain=Words)
    back = round_trip((Words(["a"]), ["a"]))
    assert back == (Words(["a"]), ["a"])
    assert [type(part) for part in back] == [Words, list]


def test_a_subclass_is_a_type_of_its_own() -> None:
    """A subclass of a registered type is refused unless it is registered itself."""

    class Special(Point[int]):
        pass

    register(Point)
    with pytest.raises(InvalidTypeError, match="Special, which is not registered"):
        round_trip(Special(1))


@pytest.mark.parametrize("kind", [int, object, list, ModuleType, Words])
def test_types_without_fields_need_functions(kind: type) -> None:
    """A type that is no dataclass, named tuple or enum cannot be registered without functions."""
    with pytest.raises(InvalidTypeError, match="register it with to_plain= and from_plain="):
        register(kind)


def test_a_dataclass_that_is_more_than_its_fields_needs_functions() -> None:
    """A dataclass that is also a dict would lose the dict."""

    @dataclass
    class Odd(dict[str, int]):
        x: int = 0

    with pytest.raises(InvalidTypeError, match="a kind of dict"):
        register(Odd)


def test_what_is_no_type_is_refused() -> None:
    """register takes a type, and either both functions or none."""
    with pytest.raises(InvalidTypeError, match="needs a type, not an int"):
        register(1)  # type: ignore[type-var]
    with pytest.raises(InvalidArgumentError, match="both of to_plain and from_plain"):
        register(Words, to_plain=list)  # type: ignore[call-overload]


def test_a_name_is_one_type_s() -> None:
    """A name that another type has is refused; the same type loaded anew takes the place of the old one."""
    register(Point, name="shape")
    with pytest.raises(
        InvalidArgumentError, match=r"'shape' is registered for .*Point; give .*Named another"
    ):
        register(Named, name="shape")
    again = dataclass(frozen=True)(
        type("Point", (), {"__annotations__": {"x": "int"}, "__module__": __name__})
    )
    register(again, name="shape")
    assert type(round_trip(again(1))) is again  # type: ignore[call-arg]
    with pytest.raises(InvalidTypeError, match="not registered"):
        round_trip(Point(1))


def _saved_and_changed(saved: Any, known: type | None) -> Any:
    """Save a value whose type is registered as "thing"; restore with another type of that name."""
    register(type(saved), name="thing")
    tree = encode(saved, what="", tensors=Tensors())
    del registry._by_name["thing"], registry._by_type[type(saved)]
    if known is not None:
        register(known, name="thing")
    return decode(tree, Restorer({}, allow_pickle=False))


def test_an_unknown_type_is_named() -> None:
    """A type that the restoring program has not registered is an error that says what to do."""
    with pytest.raises(
        FailedPreconditionError, match="type 'thing', which is not registered in this program"
    ):
        _saved_and_changed(Named(1), None)


def test_new_fields_take_their_defaults() -> None:
    """A field that the class got since the save has its default; each instance a new one from a factory."""

    @dataclass
    class Newer:
        a: int
        b: Any
        more: list[int] = field(default_factory=list)
        last: int = 7

    assert _saved_and_changed(Named(1), Newer) == Newer(1, None, [], 7)


def test_new_fields_of_named_tuples_take_their_defaults_too() -> None:
    """A named tuple is as a dataclass in this."""
    newer = namedtuple("Newer", "a b c", defaults=[5])  # noqa: PYI024 - defaults
    assert _saved_and_changed(Named(1), newer) == (1, None, 5)


def test_other_changes_of_fields_are_errors() -> None:
    """A field that is gone, or new and without a default, is named."""

    @dataclass
    class Changed:
        a: int
        c: int

    with pytest.raises(
        FailedPreconditionError, match="c not saved, and without a default; b saved, but not there"
    ):
        _saved_and_changed(Named(1), Changed)


def test_a_member_that_is_gone_is_an_error() -> None:
    """An enum that lost the member cannot make it."""
    with pytest.raises(FailedPreconditionError, match="'thing' cannot be made again: KeyError\\('RED'\\)"):
        _saved_and_changed(Colour.RED, Level)


def test_an_error_of_to_plain_names_the_type() -> None:
    """What a registered function raises is the cause of an error that says where."""

    def refuse(value: Words) -> Any:
        raise OSError("no")

    register(Words, to_plain=refuse, from_plain=Words)
    with pytest.raises(
        InvalidTypeError, match=r"at \[1\] to_plain of .*Words raised OSError\('no'\)"
    ) as caught:
        round_trip([1, Words()])
    assert isinstance(caught.value.__cause__, OSError)
