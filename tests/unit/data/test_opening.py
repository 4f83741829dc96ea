"""How what a source was given is opened: where it begins, in which state, and what is closed."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from asyncstep.data.opening import Opened, Opener, state_methods, takes_start
from asyncstep.data.snapshots import Snapshot, Snapshots
from asyncstep.errors import FailedPreconditionError, InvalidTypeError

LETTERS = "abcdef"


class Pages:
    """An iterator of letters with a state, as grain's."""

    def __init__(self, at: int = 0) -> None:
        self.at = at
        self.closed = False

    def __iter__(self) -> Pages:
        return self

    def __next__(self) -> str:
        if self.at == len(LETTERS):
            raise StopIteration
        self.at += 1
        return LETTERS[self.at - 1]

    def get_state(self) -> dict[str, int]:
        return {"at": self.at}

    def set_state(self, state: dict[str, int]) -> None:
        self.at = state["at"]

    def close(self) -> None:
        self.closed = True


class Loader:
    """An iterable of letters with a state, as torchdata's: it is the one for all epochs."""

    def __init__(self) -> None:
        self.at = 0
        self.loaded = 0

    def __iter__(self) -> Iterator[str]:
        self.at, self.loaded = self.loaded, 0
        while self.at < len(LETTERS):
            self.at += 1
            yield LETTERS[self.at - 1]

    def state_dict(self) -> dict[str, int]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.loaded = state["at"]


class Book:
    """A plain iterable whose iterators have a state."""

    def __iter__(self) -> Pages:
        return Pages()


def from_start(start: int) -> Iterator[str]:
    """A function that can begin at any item."""
    return iter(LETTERS[start:])


def letters() -> Iterator[str]:
    """A function that begins at the first item."""
    yield from LETTERS


async def letters_async() -> AsyncIterator[str]:
    """One of an async iterable."""
    for letter in LETTERS:
        yield letter


def with_state_of(cls: type[Any], *places: tuple[int, int]) -> Snapshots:
    """Snapshots at these places, as (epoch, index)."""
    snapshots = Snapshots()
    for epoch, index in places:
        snapshots.add(Snapshot(epoch, index, {"at": index}))
    return snapshots


def rest(opened: Opened) -> str:
    """What is still given."""
    iterator: Any = opened.begin()
    return "".join(iterator)


NONE = Snapshots()


# What an object can do


@pytest.mark.parametrize(
    ("function", "can"),
    [
        (from_start, True),
        (lambda *, start=0: [], True),
        (functools.partial(lambda start, name: [], name="x"), True),
        (letters, False),
        (lambda begin: [], False),
        (lambda **options: [], False),
        (dict, False),  # does not tell what it takes
    ],
)
def test_a_function_that_begins_anywhere_has_a_parameter_named_start(
    function: Callable[..., Any], can: bool
) -> None:
    """Nothing but the name says so; what has no signature begins at the first item."""
    assert takes_start(function) is can


def test_states_are_got_and_loaded_by_the_names_of_either_library() -> None:
    """An object has a state if it has both methods of a pair; those of PyTorch are taken first."""

    class Both(Pages):
        def state_dict(self) -> dict[str, int]:
            return {"torch": 1}

        def load_state_dict(self, state: dict[str, int]) -> None:
            pass

    class Half:
        state_dict = None

        def load_state_dict(self, state: Any) -> None:
            pass

        def get_state(self) -> int:
            return 1

    for thing, state in ((Pages(2), {"at": 2}), (Loader(), {"at": 0}), (Both(), {"torch": 1})):
        methods = state_methods(thing)
        assert methods is not None
        assert methods.get() == state
    assert state_methods(Half()) is None
    assert state_methods([1]) is None


# Where it begins


@pytest.mark.parametrize(
    ("items", "snapshots", "wanted", "place", "given"),
    [
        (from_start, NONE, (3, 4), (3, 4), "ef"),
        (from_start, NONE, (3, 9), (3, 9), ""),
        (letters, NONE, (3, 4), (3, 0), LETTERS),
        (list(LETTERS), NONE, (3, 4), (3, 0), LETTERS),
        (Book(), NONE, (3, 4), (3, 0), LETTERS),
        (Book(), with_state_of(Pages, (2, 5), (3, 2)), (3, 4), (3, 2), "cdef"),
        (Book(), with_state_of(Pages, (2, 5), (3, 5)), (3, 4), (3, 0), LETTERS),
        (lambda: Pages(), with_state_of(Pages, (3, 2)), (3, 4), (3, 2), "cdef"),
        (Pages(), with_state_of(Pages, (3, 2)), (3, 4), (3, 2), "cdef"),
        (Pages(), NONE, (3, 4), (0, 0), LETTERS),
        (Loader(), with_state_of(Loader, (2, 5), (3, 2)), (3, 4), (3, 2), "cdef"),
        (Loader(), with_state_of(Loader, (2, 5), (3, 5)), (3, 4), (2, 5), "f"),
        (Loader(), NONE, (3, 4), (0, 0), LETTERS),
    ],
)
def test_it_is_opened_as_near_to_the_wanted_item_as_it_can(
    items: Any, snapshots: Snapshots, wanted: tuple[int, int], place: tuple[int, int], given: str
) -> None:
    """D3: at the item, in the newest state before it, or at the beginning: of the epoch, or of all if it is one."""
    opener = Opener(items, "letters")
    assert opener.nearest(*wanted, snapshots) == place
    opened = opener.open("me", *wanted, snapshots)
    assert not opened.is_async
    assert (opened.epoch, opened.index) == place
    assert rest(opened) == given


def test_a_state_of_items_that_have_none_any_more_is_not_used() -> None:
    """D3: they are read from the beginning of the epoch, then, and say so."""
    opened = Opener(letters, "letters").open("me", 3, 4, with_state_of(Pages, (3, 2)))
    assert rest(opened) == LETTERS
    assert (opened.epoch, opened.index) == (3, 0)


def test_an_async_iterable_is_known_as_such() -> None:
    """It has to be read by the event loop."""
    opened = Opener(letters_async, "letters").open("me", 0, 0, NONE)
    assert opened.is_async
    assert isinstance(opened.begin(), AsyncIterator)


def test_a_snapshot_does_not_change_with_the_items() -> None:
    """D2: it is a copy of the state; and what is loaded is a copy of it."""

    class Changing(Pages):
        def __init__(self) -> None:
            super().__init__()
            self.state = {"at": 0}

        def get_state(self) -> dict[str, int]:
            self.state["at"] = self.at
            return self.state

        def set_state(self, state: dict[str, int]) -> None:
            self.state = state
            self.at = state["at"]

    opener = Opener(Changing(), "letters")
    opened = opener.open("me", 0, 0, NONE)
    iterator: Any = opened.begin()
    next(iterator)
    snapshot = opened.snapshot(0, 1)
    next(iterator)
    assert opened.snapshot(0, 2).state == {"at": 2}
    assert snapshot == Snapshot(0, 1, {"at": 1})
    kept = Snapshots([(*snapshot.place, snapshot.state)])
    for _ in range(2):
        assert rest(opener.open("me", 0, 1, kept)) == LETTERS[1:]


# The next epoch, and the next session


@pytest.mark.parametrize("items", [from_start, letters, list(LETTERS), Book(), Loader(), Pages()])
def test_the_next_epoch_begins_at_the_first_item(items: Any) -> None:
    """D3: each epoch has all items, also of an iterator that can be gone through only once but for its state."""
    opener = Opener(items, "letters")
    assert rest(opener.open("me", 0, 0, NONE)) == LETTERS
    for epoch in (1, 2):
        opened = opener.follow(epoch)
        assert (opened.epoch, opened.index) == (epoch, 0)
        assert rest(opened) == LETTERS


class Reading:
    """One that reads what an opener opens."""

    def __init__(self) -> None:
        self.stopped = False

    def stop(self) -> None:
        self.stopped = True

    async def leave(self) -> None:
        raise AssertionError("nobody waits for it here")


def test_an_object_with_a_state_is_read_by_the_last_who_opened_it() -> None:
    """D1: two sessions cannot read one iterator; each of them can open it anew, from its first item."""
    opener, one, two = Opener(Loader(), "letters"), Reading(), Reading()
    assert rest(opener.open(one, 0, 0, NONE)) == LETTERS
    opener.check(one)
    other: Any = opener.open(two, 0, 0, NONE).begin()
    assert (one.stopped, two.stopped) == (True, False)
    assert next(other) == "a"
    opener.check(two)
    with pytest.raises(FailedPreconditionError, match=r"'letters' are .*Loader.* another session"):
        opener.check(one)
    assert rest(opener.open(one, 0, 0, NONE)) == LETTERS


@pytest.mark.parametrize("items", [from_start, letters, Book()])
def test_what_is_made_anew_for_each_can_be_read_by_all(items: Any) -> None:
    """D1: functions and plain iterables have no one to whom they belong."""
    opener = Opener(items, "letters")
    opener.open("one", 0, 0, NONE)
    opener.check("other")


# What is closed


def test_generators_and_iterators_with_a_state_are_closed() -> None:
    """A generator always; another iterator if it has a state and `close`, and nobody else can have it."""
    opened = Opener(letters, "letters").open("me", 0, 0, NONE)
    assert opened.generator is None
    generator: Any = opened.begin()
    assert opened.generator is generator
    assert opened.closable is None
    own = Opener(Book(), "letters").open("me", 0, 0, NONE)
    pages: Any = own.begin()
    assert own.generator is None
    assert own.closable is pages
    for items in (Pages(), Pages, from_start):
        others = Opener(items, "letters").open("me", 0, 0, NONE)
        others.begin()
        assert others.generator is None
        assert others.closable is None


# What cannot be opened


async def coroutine_of_letters() -> str:
    """What it returns has to be awaited first."""
    return LETTERS


@pytest.mark.parametrize(
    ("result", "named"), [(lambda: 3, "int"), (lambda: None, "None"), (coroutine_of_letters, "coroutine")]
)
def test_a_function_that_returns_no_iterable_is_refused(result: Callable[[], Any], named: str) -> None:
    """The error names the source and what was returned; a coroutine is not left unawaited."""
    opener = Opener(lambda: result(), "letters")
    with pytest.raises(InvalidTypeError, match=rf"'letters' must return an iterable .*{named}"):
        opener.open("me", 0, 0, NONE)
