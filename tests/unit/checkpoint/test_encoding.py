"""Which values a checkpoint holds, and what is said of those that it cannot hold."""

from __future__ import annotations

import datetime as dt
import enum
import inspect
import io
import math
import re
import struct
import sys
import threading
import uuid
from collections import Counter, OrderedDict, defaultdict, deque
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import pytest

from asyncstep.checkpoint import register
from asyncstep.checkpoint.arrays import Tensors
from asyncstep.checkpoint.decoding import Restorer, decode
from asyncstep.checkpoint.encoding import MAX_DEPTH, encode
from asyncstep.checkpoint.state import CheckpointState
from asyncstep.errors import FailedPreconditionError, InvalidArgumentError, InvalidTypeError

from .parts import encode_all, round_trip, state

heard: list[str] = []


def shout(word: str) -> None:
    """What unpickling a `Loud` runs."""
    heard.append(word)


class Loud:
    """Shouts when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return shout, ("boom",)


@dataclass
class Unregistered:
    x: int


class Pair(NamedTuple):
    left: int
    right: int


class Colour(enum.Enum):
    RED = 1


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        0,
        -1,
        2**63 - 1,
        2**63,
        -(2**63),
        -(2**63) - 1,
        10**400,
        -(10**400),
        0.1,
        math.inf,
        -math.inf,
        5e-324,
        "",
        "text \0 \N{SNOWMAN}",
        "lone \ud800 surrogate",
        b"",
        b"\x00\xff",
        [],
        (),
        {},
        set(),
        frozenset(),
        [True, 1, 1.0, None, b"1", "1"],
        [1, 2**70, -3],
        ((), [()], {(): []}),
        {1: "int", "1": "str", 1.5: "float", None: "none", (1, (2,)): "tuple", b"1": "bytes"},
        {frozenset({1, 2}): {(1,)}},
        {"b": 1, "a": 2},
        {True: "bool", 2: "int"},
        [[["deep"]]],
        1 + 2j,
        complex(math.inf, -0.0),
        bytearray(b"abc"),
        range(3, 10, 2),
        Decimal("1.10"),
        Fraction(1, 3),
        uuid.UUID(int=5),
        Counter({"a": 2}),
        OrderedDict([("b", 1), ("a", 2)]),
        deque([1, 2], maxlen=3),
        dt.date(2024, 2, 29),
        dt.time(1, 2, 3, 4, fold=1),
        dt.datetime(2024, 2, 29, 1, 2, 3, 4),
        dt.datetime(2024, 2, 29, tzinfo=dt.UTC),
        dt.datetime(2024, 2, 29, tzinfo=dt.timezone(dt.timedelta(hours=5, minutes=45), "there")),
        dt.datetime(2024, 10, 27, 2, 30, tzinfo=ZoneInfo("Europe/Berlin"), fold=1),
        dt.timedelta(days=-1, microseconds=3),
    ],
    ids=repr,
)
def test_what_goes_in_comes_out(value: object) -> None:
    """A value comes back equal, of the same type, with the order of its dicts."""
    assert repr(round_trip(value)) == repr(value)
    assert type(round_trip(value)) is type(value)


def test_sets_of_anything_come_back() -> None:
    """Sets and frozensets come back with all of their items and their types."""
    value = ({1, "x", (1,), None, b"x", 2**70}, frozenset({frozenset(), 1.5}))
    back = round_trip(value)
    assert back == value
    assert [type(items) for items in back] == [set, frozenset]


def test_zeros_and_nans_come_back_to_the_bit() -> None:
    """-0.0 keeps its sign, and a NaN its payload."""
    nan = struct.unpack("<d", b"\x01\x02\x03\x04\x05\x06\xf8\xff")[0]
    back = round_trip([-0.0, nan])
    assert struct.pack("<2d", *back) == struct.pack("<2d", -0.0, nan)


def test_aware_datetimes_keep_the_kind_of_their_zone() -> None:
    """UTC stays UTC, and a named zone is the zone again, not its offset."""
    back = round_trip([dt.UTC, ZoneInfo("Europe/Berlin")])
    assert back[0] is dt.UTC
    assert back[1] is ZoneInfo("Europe/Berlin")


@pytest.mark.parametrize(
    ("value", "where", "kind"),
    [
        (threading.Lock(), "there is", "a _thread.lock"),
        ({"a": [1, (threading.Lock(),)]}, "at ['a'][1][0] there is", "a _thread.lock"),
        ({threading.main_thread(): 1}, "at {key 0} there is", "a threading._MainThread"),
        ({Unregistered}, "at {item 0} there is", "a type"),
        ([Unregistered(1)], "at [0] there is", "Unregistered, which is not registered"),
        (Pair(1, 2), "there is", "Pair, which is not registered"),
        (Colour.RED, "there is", "Colour, which is not registered"),
        (defaultdict(int), "there is", "a collections.defaultdict, which is a subclass of dict"),
        (enum.IntFlag, "there is", "an enum.EnumType"),
        (len, "there is", "a builtin_function_or_method"),
        (object(), "there is", "an object"),
    ],
    ids=lambda value: re.sub("0x[0-9a-f]+|started [0-9]+", "...", str(value)),  # the same in every process
)
def test_a_value_that_cannot_be_saved_is_named(value: object, where: str, kind: str) -> None:
    """The error says which variable it is, where in its value, of which type, and what can be done."""
    with pytest.raises(InvalidTypeError) as caught:
        encode_all(state(good=1, bad=value))
    message = str(caught.value)
    assert message.startswith(f"the variable 'bad' cannot be saved: {where} ")
    assert kind in message
    assert "register" in message


@pytest.mark.parametrize("section", ["sources", "tracked", "hooks"])
def test_the_section_is_named(section: str) -> None:
    """What is no variable is not called one."""
    with pytest.raises(InvalidTypeError, match=r"^the (source|tracked object|hook) 'bad' cannot be saved"):
        encode_all(CheckpointState(**{section: {"bad": object()}}))


def test_a_value_in_itself_is_refused() -> None:
    """A list that contains itself is an error, at any depth; the same list twice is not."""
    inner: list[Any] = []
    assert round_trip([inner, inner]) == [[], []]
    inner.append({"again": inner})
    with pytest.raises(InvalidArgumentError, match=r"at \[0\]\['again'\] a list contains itself"):
        round_trip([inner][0])


def test_nesting_is_bounded() -> None:
    """The deepest allowed nesting comes back, one more level is an error, a hundred thousand are the same."""
    value: Any = 1
    for _ in range(MAX_DEPTH):
        value = {"next": [value]}["next"]
    assert round_trip(value) == value
    with pytest.raises(InvalidArgumentError, match=f"nested deeper than {MAX_DEPTH} levels"):
        round_trip([value])
    for _ in range(100_000):
        value = (value,)
    with pytest.raises(InvalidArgumentError, match=f"nested deeper than {MAX_DEPTH} levels"):
        round_trip(value)
    while type(value) is tuple:  # taken apart here, for the interpreter does it by recursion
        (value,) = value


def test_a_stack_that_is_nearly_full_is_an_error_that_says_so() -> None:
    """Saving from deep inside a recursion fails with a clear error, not with RecursionError."""
    value: Any = 1
    for _ in range(MAX_DEPTH):
        value = {0: value}

    with pytest.raises(InvalidArgumentError, match="what is left of the stack"):
        _at_the_bottom_of_the_stack(lambda: round_trip(value))


def _at_the_bottom_of_the_stack(act: Any, room: int = 60) -> Any:
    """Call `act` with about so many frames left."""
    depth = len(inspect.stack(0))

    def down(levels: int) -> Any:
        return act() if levels == 0 else down(levels - 1)

    return down(sys.getrecursionlimit() - depth - room)


def test_pickle_needs_both_ends() -> None:
    """What checkpoints have no form for is pickled when that was allowed, and read when that is allowed too."""
    value = {"pair": Pair(1, 2), "plain": [1]}
    assert round_trip(value, allow_pickle=True) == value
    with pytest.raises(InvalidTypeError, match="allow pickle when saving and when restoring"):
        round_trip(value)


def test_what_cannot_even_be_pickled_is_named() -> None:
    """With pickle too, a lock is an error that names the variable."""
    with pytest.raises(
        InvalidTypeError, match=r"'bad' cannot be saved: there is a _thread.lock, which not even pickle"
    ):
        encode_all(state(bad=threading.Lock()), allow_pickle=True)


def test_a_zone_without_a_key_is_refused() -> None:
    """A ZoneInfo that was read from a file has no name to find it by again."""
    utc = b"TZif" + bytes(16) + struct.pack(">6l", 0, 0, 0, 0, 1, 4) + struct.pack(">lbb", 0, 0, 0) + b"UTC\0"
    with pytest.raises(
        InvalidTypeError, match=r"'bad' cannot be saved: at \[7\] there is a ZoneInfo without a key"
    ):
        encode_all(state(bad=dt.datetime(2024, 1, 1, tzinfo=ZoneInfo.from_file(io.BytesIO(utc)))))


def test_any_error_while_encoding_names_the_variable() -> None:
    """Whatever goes wrong with a value, as another thread changing it, a note says with which."""
    value: dict[int, Any] = {}

    class Growing:
        pass

    def grow(_: Growing) -> Any:
        return value.setdefault(len(value), 0)

    register(Growing, to_plain=grow, from_plain=lambda _: Growing())
    value |= {0: Growing(), 1: 1}
    with pytest.raises(RuntimeError, match="changed size during iteration") as caught:
        encode_all(state(bad=value))
    assert caught.value.__notes__ == ["while saving the variable 'bad'"]


def test_names_are_strings_that_can_be_written() -> None:
    """A name with a lone surrogate, or that is no string, is refused; any other name is fine."""
    encode_all(state(**{"layer/0/weights": 1, "..": 2, "\0": 3, "": 4}))
    with pytest.raises(InvalidArgumentError, match="lone surrogate"):
        encode_all(state(**{"\ud800": 1}))
    with pytest.raises(InvalidTypeError, match="its name is no string"):
        encode_all(CheckpointState(variables={1: 1}))  # type: ignore[dict-item]


def test_equal_sets_make_equal_trees() -> None:
    """The order of a set's items does not depend on how it came about, so equal states are equal files."""
    one, other = set(range(0, 80, 8)), set(range(72, -8, -8))
    trees = [encode(value, what="", tensors=Tensors()) for value in (one, other)]
    assert list(one) != list(other)
    assert trees[0] == trees[1]


def test_a_pickle_bomb_does_not_run() -> None:
    """Reading a pickle that was not allowed is an error, and nothing of it is executed."""
    tree = encode(Loud(), what="", tensors=Tensors(), allow_pickle=True)
    with pytest.raises(FailedPreconditionError, match="pickle"):
        decode(tree, Restorer({}, allow_pickle=False))
    assert heard == []
    decode(tree, Restorer({}, allow_pickle=True))
    assert heard == ["boom"]
