"""Opener: opens what a source was given, as near to a wanted item as that can be done."""

from __future__ import annotations

import inspect
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Generator,
    Iterable,
    Iterator,
)
from copy import deepcopy
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from asyncstep.data.snapshots import Snapshot
from asyncstep.errors import FailedPreconditionError, InvalidTypeError, kind_of

if TYPE_CHECKING:
    from asyncstep.data.snapshots import Snapshots

_NOTHING = object()


class Closable(Protocol):
    """What ends by `close`."""

    def close(self) -> object: ...


class User(Protocol):
    """Who reads what an opener has opened."""

    def stop(self) -> None:
        """Begin to read no further item."""

    async def leave(self) -> None:
        """Wait until nothing is being read, and close what is open."""


class StateMethods(NamedTuple):
    """How the state of an object is got, and how it is taken back to one."""

    get: Callable[[], Any]
    load: Callable[[Any], Any]


def state_methods(thing: object) -> StateMethods | None:
    """Those of an object that has them: by their names in PyTorch, or those in grain."""
    for get, load in (("state_dict", "load_state_dict"), ("get_state", "set_state")):
        if callable(getattr(thing, get, None)) and callable(getattr(thing, load, None)):
            return StateMethods(getattr(thing, get), getattr(thing, load))
    return None


def takes_start(function: Callable[..., Any]) -> bool:
    """Whether a function has a parameter named `start`, so that it can begin at any item."""
    try:
        return "start" in inspect.signature(function).parameters
    except (TypeError, ValueError):
        return False


class Opened:
    """An iterable of one epoch, at or before a wanted item; read when it is `begun`.

    Attributes:
        iterator: once it is begun.
        is_async: whether it has to be read by the event loop.
        epoch, index: the item that it gives first.
        state: gives the state of the iterable, if it has one that it can be taken back to.
    """

    __slots__ = ("_state", "epoch", "index", "is_async", "iterable", "iterator", "state")

    def __init__(self, iterable: Any, epoch: int, index: int, state: Any = _NOTHING) -> None:
        self.iterable: Any = iterable
        self.iterator: Iterator[Any] | AsyncIterator[Any] | None = None
        self.is_async: bool = isinstance(iterable, AsyncIterable)
        self.epoch: int = epoch
        self.index: int = index
        self.state: Callable[[], Any] | None = None
        self._state = state

    def begin(self) -> Iterator[Any] | AsyncIterator[Any]:
        """Make the iterator, and take it (or the iterable) to its state."""
        methods = state_methods(self.iterable)
        if methods is not None:
            self._load(methods)
        iterator: Iterator[Any] | AsyncIterator[Any] = (
            aiter(self.iterable) if self.is_async else iter(self.iterable)
        )
        if methods is None:
            methods = state_methods(iterator)
            if methods is not None:
                self._load(methods)
            elif self._state is not _NOTHING:
                self.index = 0  # it had a state when that was saved, and has none any more
        self.state = None if methods is None else methods.get
        self.iterator = iterator
        return iterator

    @property
    def generator(self) -> AsyncGenerator[Any, Any] | Generator[Any, Any, Any] | None:
        """The iterator if it is a generator, which has to be closed if it is not read to its end."""
        return self.iterator if isinstance(self.iterator, AsyncGenerator | Generator) else None

    @property
    def closable(self) -> Closable | None:
        """The iterator if it has a state and a `close`, which is how the iterators of grain end their threads.

        One that was given to the source, or that its function made itself, is left open: who knows who else
        reads it.
        """
        iterator: Any = self.iterator
        own = self.state is not None and self.generator is None and iterator is not self.iterable
        return iterator if own and callable(getattr(iterator, "close", None)) else None

    def _load(self, methods: StateMethods) -> None:
        if self._state is not _NOTHING:
            methods.load(deepcopy(self._state))

    def snapshot(self, epoch: int, index: int) -> Snapshot:
        """Its state now, when it has given so many items of an epoch."""
        assert self.state is not None
        return Snapshot(epoch, index, deepcopy(self.state()))


class Opener:
    """Opens the items of one source, of which there are these kinds:

    - a function that can begin at any item, by its parameter `start`;
    - an object that is an iterable with a state: it is one for all epochs and sessions, and can go on only
      where it stands, or from a state that it had;
    - a function, or a plain iterable, that gives an iterator from the first item, whose state, if it has
      one, leads to other items of the same epoch.

    Attributes:
        starts: whether it is of the first kind.
    """

    def __init__(self, items: Any, name: str) -> None:
        self._items = items
        self._name = name
        self._function: Callable[..., Any] | None = items if callable(items) else None
        self.starts: bool = self._function is not None and takes_start(self._function)
        self._shared = self._function is None and state_methods(items) is not None
        self._first: Any = _NOTHING
        self._user: User | None = None
        self._former: list[User] = []

    def nearest(self, epoch: int, index: int, snapshots: Snapshots) -> tuple[int, int]:
        """The item before which an iterable would be opened for a wanted one."""
        if self.starts:
            return epoch, index
        snapshot = snapshots.nearest(epoch, index)
        if snapshot is not None and (self._shared or snapshot.epoch == epoch):
            return snapshot.place
        return (0, 0) if self._shared else (epoch, 0)

    def open(self, user: User, epoch: int, index: int, snapshots: Snapshots) -> Opened:
        """An iterable at the `nearest` item, to be begun when the `others_left`.

        Of a shared object, whoever used it before can do so no longer.
        """
        place = self.nearest(epoch, index, snapshots)
        if self.starts:
            return Opened(self._called(index), *place)
        snapshot = snapshots.nearest(*place)
        state = snapshot.state if snapshot is not None and snapshot.place == place else _NOTHING
        if not self._shared:
            return Opened(self._called(0), *place, state)
        first = self._first_state()
        if self._user is not None and self._user is not user:
            self._user.stop()
            self._former.append(self._user)
        self._user = user
        return Opened(self._items, *place, first if state is _NOTHING else state)

    def follow(self, epoch: int) -> Opened:
        """The iterable of an epoch, when that of the one before has been read to its end."""
        if not self._shared:
            return Opened(self._called(0), epoch, 0)
        ended_for_good = isinstance(self._items, Iterator | AsyncIterator)
        return Opened(self._items, epoch, 0, self._first if ended_for_good else _NOTHING)

    @property
    def free(self) -> bool:
        """Whether nobody but its user can still be in a shared object."""
        return not self._former

    async def others_left(self, user: User) -> None:
        """Wait until those are out of a shared object that used it before, if that is this user's still.

        An incarnation may have ended in the middle of an item, and its closing may have been cancelled. So
        who reads next waits here: an object cannot be taken to a state while another one reads it.

        Checkpoint: if somebody reads.
        """
        while self._former and self._user is user:
            former = self._former[0]
            await former.leave()
            if former in self._former:
                self._former.remove(former)

    def check(self, user: User) -> None:
        """Raise FailedPreconditionError if another has opened a shared object since this user did."""
        if self._shared and self._user is not user:
            raise FailedPreconditionError(
                f"the items of the source {self._name!r} are {kind_of(self._items)}, which another session has"
                " begun to read; give a function that makes it, so that each session has its own"
            )

    def _first_state(self) -> Any:
        """The state that a shared object began with; nothing while it is in that state."""
        if self._first is not _NOTHING:
            return self._first
        methods = state_methods(self._items)
        assert methods is not None
        self._first = deepcopy(methods.get())
        return _NOTHING

    def _called(self, start: int) -> Any:
        if self._function is None:
            return self._items
        items = self._function(start=start) if self.starts else self._function()
        if isinstance(items, AsyncIterable | Iterable):
            return items
        if inspect.iscoroutine(items):
            items.close()
        raise InvalidTypeError(
            f"the function of the source {self._name!r} must return an iterable or an async iterable,"
            f" not {kind_of(items)}"
        )
