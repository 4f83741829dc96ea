"""Names of fetches: those that they have, and those that they are given."""

from __future__ import annotations

from types import MappingProxyType

from asyncstep import Graph, Variable
from asyncstep.hooks.named import listed, name_of_fetch, named_fetches


async def rate() -> float:
    """A fetch."""
    return 0.5


def test_names_of_their_own() -> None:
    """Nodes, coroutine functions and strings have names; nestings have none."""
    with Graph():
        loss = Variable(0.0, name="loss")
    assert [name_of_fetch(fetch) for fetch in (loss, rate, "node", [loss])] == ["loss", "rate", "node", None]


def test_named_fetches_are_a_dict_of_their_own() -> None:
    """The result is a plain dict in the order given, which later changes of the argument do not reach."""
    values = {"b": "x", "a": rate}
    named = named_fetches("LoggingHook", MappingProxyType(values))
    values.clear()
    assert list(named.items()) == [("b", "x"), ("a", rate)]
    assert named_fetches("LoggingHook", (rate, "x")) == {"rate": rate, "x": "x"}


def test_values_as_people_read_them() -> None:
    """Names and values, separated by commas."""
    assert listed({"loss": 0.25, "name": "x"}) == "loss = 0.25, name = x"
