"""Any value that a checkpoint takes comes back as it was; any tree that no value makes is refused."""

from __future__ import annotations

import datetime as dt
import struct
from collections import Counter, deque
from typing import Any

import msgspec
import numpy as np
from hypothesis import given, settings, strategies as st
from hypothesis.extra import numpy as arrays

from asyncstep.checkpoint.arrays import Stored, Tensors
from asyncstep.checkpoint.decoding import Malformed, Restorer, decode
from asyncstep.checkpoint.encoding import encode
from asyncstep.errors import Error

zones = st.one_of(
    st.none(),
    st.timezones(),
    st.builds(dt.timezone, st.timedeltas(dt.timedelta(hours=-23), dt.timedelta(hours=23))),
)
keys = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(allow_nan=False),
        st.text(st.characters(exclude_categories=())),
        st.binary(),
        st.complex_numbers(allow_nan=False),
        st.datetimes(timezones=zones),
        st.dates(),
        st.times(),
        st.timedeltas(),
        st.decimals(allow_nan=False),
        st.fractions(),
        st.uuids(),
    ),
    lambda inner: st.one_of(st.tuples(inner, inner), st.frozensets(inner, max_size=3)),
    max_leaves=4,
)
dtypes = st.one_of(
    arrays.boolean_dtypes(),
    arrays.integer_dtypes(),
    arrays.unsigned_integer_dtypes(),
    arrays.floating_dtypes(),
    arrays.complex_number_dtypes(),
    arrays.datetime64_dtypes(),
    arrays.timedelta64_dtypes(),
    arrays.unicode_string_dtypes(),
    arrays.byte_string_dtypes(),
)
some_arrays = arrays.arrays(dtypes, arrays.array_shapes(min_dims=0, min_side=0, max_side=4))
leaves = st.one_of(keys, st.floats(), some_arrays, st.builds(bytearray, st.binary()))
values = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(keys, inner, max_size=4),
        st.sets(keys, max_size=4),
        st.lists(inner, max_size=4).map(lambda items: deque(items, maxlen=5)),
        st.dictionaries(keys, st.integers(), max_size=3).map(Counter),
    ),
    max_leaves=12,
)


def canonical(value: Any) -> Any:
    """The value as nested tuples that are equal only if types, orders and bits are."""
    kind = type(value)
    if kind is float:
        return kind, struct.pack("<d", value)
    if kind is complex:
        return kind, struct.pack("<2d", value.real, value.imag)
    if isinstance(value, np.ndarray):
        return kind, value.dtype.str, value.shape, value.tobytes()
    if kind in (list, tuple, deque):
        return kind, getattr(value, "maxlen", None), *map(canonical, value)
    if kind in (dict, Counter):
        return kind, *[(canonical(key), canonical(item)) for key, item in value.items()]
    if kind in (set, frozenset):
        return kind, frozenset(map(canonical, value))
    return kind, repr(value)


def stored(tensors: Tensors) -> dict[str, Stored]:
    """The arrays as a file would give them back."""
    return {
        key: Stored(tensor.dtype, tensor.shape, bytearray(tensor.content()))
        for key, tensor in tensors.by_key.items()
    }


@given(values)
def test_any_value_comes_back(value: Any) -> None:
    """What goes in comes out, with the same types, orders and bits, and what went in is not changed."""
    before = canonical(value)
    tensors = Tensors()
    content = msgspec.msgpack.encode(encode(value, what="", tensors=tensors))
    back = decode(msgspec.msgpack.decode(content), Restorer(stored(tensors), allow_pickle=False))
    assert canonical(back) == before
    assert canonical(value) == before


tags = st.sampled_from(
    ["int", "str", "tuple", "set", "frozenset", "dict", "type", "array", "scalar", "tensor", "pickle", "x"]
)
names = st.sampled_from(
    ["datetime.datetime", "decimal.Decimal", "complex", "range", "collections.deque", "<f4", "k"]
)
trees = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(-3, 3), st.floats(), st.text(max_size=3), st.binary(), names
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.one_of(tags, st.text(max_size=1)), inner, max_size=2)
    ),
    max_leaves=12,
)


@settings(max_examples=500)
@given(trees)
def test_no_tree_does_harm(tree: Any) -> None:
    """Any tree at all is a value, or an error that is the checkpoint's: nothing else is raised."""
    try:
        decode(tree, Restorer({"k": Stored("F32", (2,), bytearray(8))}, allow_pickle=False))
    except (Malformed, Error):
        pass
