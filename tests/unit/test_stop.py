"""The decisions about stops: what is left of an exception, which exception wins, when a level is set."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import pytest
from hypothesis import given, strategies as st

from asyncstep import OutOfRangeError, StopKind, StopReason, StopRequested
from asyncstep._monitored.stop import (
    StopLevel,
    foremost,
    is_interrupt,
    is_own_end,
    leaves,
    name_of,
    outcome,
    raise_as_is,
    take_out,
)
from asyncstep.errors import make_stop

T = TypeVar("T")
OWN, OTHER = object(), object()
REASON = StopReason(StopKind.REQUESTED, "enough", "a test")


class Cancelled(BaseException):
    """Stands for the event loop's cancellation."""


def make(maker: Callable[[], T]) -> T:
    """A new exception for each example."""
    return maker()


def end_of_data(session: object) -> OutOfRangeError:
    """The end of a session's data, as its run marks it."""
    error = OutOfRangeError("the data has ended")
    error.session = session
    return error


def raised(error: BaseException, context: BaseException | None = None) -> BaseException:
    """The error with a traceback, and, if given, with a context."""
    try:
        if context is None:
            raise error
        try:
            raise context
        except BaseException:
            raise error  # noqa: B904 - its context is what is wanted
    except BaseException as caught:
        return caught


# Random exceptions: trees of groups whose leaves are own ends and all else that there is.

LEAVES = st.sampled_from(
    [
        lambda: make_stop(OWN, REASON),
        lambda: end_of_data(OWN),
        lambda: make_stop(OTHER, REASON),
        lambda: end_of_data(OTHER),
        lambda: end_of_data(None),
        lambda: ValueError("real"),
        lambda: KeyError("real"),
        Cancelled,
        KeyboardInterrupt,
    ]
).map(make)
NOTES = st.lists(st.sampled_from(["one note", "another note"]), max_size=2)
CAUSES = st.sampled_from([None, RuntimeError("why")])


def dressed(
    error: BaseException, notes: list[str], cause: BaseException | None, context: bool
) -> BaseException:
    """The error with notes, a cause or none, a traceback, and a context or none."""
    for note in notes:
        error.add_note(note)
    raised(error, LookupError("context") if context else None)
    if cause is not None:
        error.__cause__ = cause
    return error


def grouped(children: st.SearchStrategy[BaseException]) -> st.SearchStrategy[BaseException]:
    """Groups of one to four exceptions."""
    return st.builds(
        BaseExceptionGroup, st.sampled_from(["outer", "inner"]), st.lists(children, min_size=1, max_size=4)
    )


EXCEPTIONS = st.recursive(
    st.builds(dressed, LEAVES, NOTES, CAUSES, st.booleans()),
    lambda children: st.builds(dressed, grouped(children), NOTES, CAUSES, st.booleans()),
    max_leaves=12,
)


@dataclass(frozen=True)
class Picture:
    """All that is to be kept of an exception: identities for leaves, contents for groups."""

    leaf: int | None
    message: str
    notes: tuple[str, ...]
    cause: int
    context: int
    suppressed: bool
    trace: int
    parts: tuple[Picture, ...]


def picture(error: BaseException, own_too: bool) -> Picture | None:
    """The picture of an exception, without own ends if they are not wanted; None if nothing is left."""
    group = isinstance(error, BaseExceptionGroup)
    if not group and not own_too and is_own_end(error, OWN):
        return None
    inner = error.exceptions if isinstance(error, BaseExceptionGroup) else ()
    parts = tuple(part for each in inner if (part := picture(each, own_too)) is not None)
    if group and not parts:
        return None
    return Picture(
        None if group else id(error),
        error.message if isinstance(error, BaseExceptionGroup) else "",
        tuple(getattr(error, "__notes__", ())),
        id(error.__cause__),
        id(error.__context__),
        error.__suppress_context__,
        id(error.__traceback__),
        parts,
    )


def kept_leaves(error: BaseException) -> list[BaseException]:
    """The leaves that are no own ends, in order."""
    return [leaf for leaf in leaves(error) if not is_own_end(leaf, OWN)]


@given(EXCEPTIONS)
def test_exactly_the_own_ends_are_taken_out(error: BaseException) -> None:
    """S6: every other leaf is left, as the same object, in the same order; nothing is left of nothing."""
    expected = kept_leaves(error)
    rest = take_out(error, OWN)
    assert [id(leaf) for leaf in (leaves(rest) if rest is not None else ())] == [
        id(leaf) for leaf in expected
    ]


@given(EXCEPTIONS)
def test_what_is_left_as_a_group_keeps_all_that_it_had(error: BaseException) -> None:
    """S6: nesting, messages, notes, causes, contexts and tracebacks are those of before."""
    expected = picture(error, own_too=False)
    rest = take_out(error, OWN)
    if rest is not None and len(kept_leaves(error)) > 1:
        assert picture(rest, own_too=True) == expected


@given(EXCEPTIONS)
def test_what_is_taken_apart_is_not_changed(error: BaseException) -> None:
    """S6: the exception that came in is what it was, save that a single leaf may get its groups' notes."""
    before = picture(error, own_too=True)
    rest = take_out(error, OWN)
    if isinstance(rest, BaseExceptionGroup) or rest is None:
        assert picture(error, own_too=True) == before


@given(EXCEPTIONS)
def test_an_exception_without_own_ends_is_left_as_it_is(error: BaseException) -> None:
    """S6, E2: the same object, also where it is a group of one."""
    if len(kept_leaves(error)) == len(list(leaves(error))):
        assert take_out(error, OWN) is error


@given(EXCEPTIONS)
def test_one_leaf_left_of_a_group_is_that_leaf_with_the_groups_notes(error: BaseException) -> None:
    """S6: its cause, context and traceback are its own; no note of a group around it is lost."""
    kept = kept_leaves(error)
    if len(kept) != 1 or len(list(leaves(error))) == 1:
        return
    leaf = kept[0]
    before = (leaf.__cause__, leaf.__context__, leaf.__traceback__, leaf.__suppress_context__)
    notes = notes_around(error, leaf)
    rest = take_out(error, OWN)
    assert rest is leaf
    assert (leaf.__cause__, leaf.__context__, leaf.__traceback__, leaf.__suppress_context__) == before
    assert notes <= set(getattr(leaf, "__notes__", ()))


def notes_around(error: BaseException, leaf: BaseException) -> set[str]:
    """The notes on a leaf and on the groups around it."""
    if not isinstance(error, BaseExceptionGroup):
        return set(getattr(error, "__notes__", ())) if error is leaf else set()
    if all(each is not leaf for each in leaves(error)):
        return set()
    inner = [notes_around(each, leaf) for each in error.exceptions]
    return set(getattr(error, "__notes__", ())).union(*inner)


def test_nothing_taken_out_of_nothing_is_nothing() -> None:
    """A block that ended normally has nothing to take out."""
    assert take_out(None, OWN) is None


def test_a_group_of_a_users_class_stays_of_that_class() -> None:
    """S6: what is left is derived from the group, as `except*` would."""

    class Mine(ExceptionGroup[Exception]):
        def derive(self, excs: Any) -> Any:
            return Mine(self.message, excs)

    rest = take_out(Mine("mine", [end_of_data(OWN), ValueError("1"), ValueError("2")]), OWN)
    assert isinstance(rest, Mine)


def test_leaves_come_in_order() -> None:
    """Depth first, as they are printed; a bare exception is its own leaf."""
    first, second, third = ValueError("1"), ValueError("2"), ValueError("3")
    group = ExceptionGroup("", [ExceptionGroup("", [first, ExceptionGroup("", [second])]), third])
    assert list(leaves(group)) == [first, second, third]
    assert list(leaves(first)) == [first]


def test_an_own_end_is_told_by_identity() -> None:
    """S6, S7: whatever a session compares equal to."""

    class EqualToAll:
        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = None  # type: ignore[assignment]

    session = EqualToAll()
    assert is_own_end(make_stop(session, REASON), session)
    assert not is_own_end(make_stop(OTHER, REASON), session)
    assert not is_own_end(end_of_data(None), session)


# Who wins

BODY_MAKERS: list[Callable[[], BaseException | None]] = [
    lambda: None,
    lambda: ValueError("body"),
    Cancelled,
    lambda: KeyboardInterrupt("body"),
]
BODIES = st.sampled_from(BODY_MAKERS).map(make)
CLOSING_ERRORS = st.lists(
    st.sampled_from(
        [lambda: ValueError("closing"), lambda: KeyError("closing"), lambda: SystemExit(1), Cancelled]
    ).map(make),
    max_size=3,
)


@given(BODIES, CLOSING_ERRORS)
def test_an_interrupt_goes_before_all_else(body: BaseException | None, errors: list[BaseException]) -> None:
    """C1, C5: the first interrupt leaves as the same object, with everything else noted on it."""
    interrupts = [each for each in (body, *errors) if is_interrupt(each)]
    if not interrupts:
        return
    final = outcome(body, errors, Cancelled)
    assert final is interrupts[0]
    notes = "\n".join(getattr(final, "__notes__", ()))
    for each in (body, *errors):
        assert each is None or each is final or repr(each) in notes


@given(BODIES, CLOSING_ERRORS)
def test_errors_go_before_a_cancellation_and_that_before_nothing(
    body: BaseException | None, errors: list[BaseException]
) -> None:
    """C1, E2: one error is itself, several are a group, and an error of the body is the first of it."""
    if any(is_interrupt(each) for each in (body, *errors)):
        return
    final = outcome(body, errors, Cancelled)
    if not errors:
        assert final is body
        return
    failed = [*([body] if body is not None and not isinstance(body, Cancelled) else []), *errors]
    if len(failed) == 1:
        assert final is failed[0]
    else:
        assert isinstance(final, BaseExceptionGroup)
        assert list(final.exceptions) == failed


def test_errors_beside_an_interrupt_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    """C5, E3: a note on an interrupt may be seen by nobody, so the log has it, too."""
    outcome(KeyboardInterrupt(), [ValueError("closing failed")], Cancelled)
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert caplog.records[0].exc_info is not None
    assert isinstance(caplog.records[0].exc_info[1], ValueError)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (KeyboardInterrupt(), True),
        (SystemExit(0), True),
        (GeneratorExit(), True),
        (Cancelled(), False),
        (ValueError(), False),
        (make_stop(OWN, REASON), False),
        (None, False),
    ],
)
def test_interrupts_are_what_ends_the_program(error: BaseException | None, expected: bool) -> None:
    """C1: KeyboardInterrupt and SystemExit; and a generator that is thrown away, which must not go on."""
    assert is_interrupt(error) is expected


# The level


def test_a_level_is_set_once(caplog: pytest.LogCaptureFixture) -> None:
    """S1: the first reason stays, and is what is logged, at INFO."""
    caplog.set_level(logging.INFO, logger="asyncstep")
    level = StopLevel()
    level.set(REASON)
    level.set(StopReason(StopKind.ERROR, "later"))
    assert level.reason is REASON
    assert [record.getMessage() for record in caplog.records] == [f"stopping: {REASON}"]


def test_a_level_tells_who_asked_to_be_told() -> None:
    """Once, when it is set; at once, if it is set already; and not, if that was taken back."""
    level, told = StopLevel(), list[str]()
    forgotten = lambda: told.append("forgotten")  # noqa: E731 - the same object is taken back
    level.when_set(lambda: told.append("before"))
    level.when_set(forgotten)
    level.forget(forgotten)
    level.forget(forgotten)
    level.set(REASON)
    level.when_set(lambda: told.append("after"))
    level.set(REASON)
    assert told == ["before", "after"]


@pytest.mark.parametrize(
    ("reason", "text"),
    [
        (StopReason(StopKind.REQUESTED), "requested"),
        (StopReason(StopKind.HOOK, "", "StopAtStepHook"), "hook by StopAtStepHook"),
        (StopReason(StopKind.ERROR, "it broke"), "error: it broke"),
        (StopReason(StopKind.SIGNAL, "SIGINT", "SignalHook"), "signal by SignalHook: SIGINT"),
    ],
)
def test_a_reason_reads_as_a_sentence(reason: StopReason, text: str) -> None:
    """S1: kind, origin and message, as far as they are known."""
    assert str(reason) == text


def test_a_reason_cannot_be_changed() -> None:
    """S1: nobody edits the reason of a stop afterwards."""
    with pytest.raises(AttributeError):
        REASON.message = "another"  # type: ignore[misc]


# Raising


def test_raising_as_is_leaves_the_context_alone() -> None:
    """What is raised from inside a handler does not drag along what is handled there."""
    error = ValueError("real")
    with pytest.raises(ValueError, match="real") as caught:
        try:
            raise RuntimeError("handled")
        except RuntimeError:
            raise_as_is(error)
    assert caught.value is error
    assert error.__context__ is None


def test_a_stop_is_made_with_its_session_and_reason() -> None:
    """S2: by the session only, past the constructor that users meet."""
    stop = make_stop(OWN, REASON)
    assert type(stop) is StopRequested
    assert (stop.session, stop.reason) == (OWN, REASON)


def test_the_name_of_a_function_is_its_qualified_name() -> None:
    """What has no name is shown as it is."""
    assert name_of(raised) == "raised"
    assert name_of(7) == "7"


def test_an_interrupt_is_foremost() -> None:
    """C1: what a nursery that was cancelled and interrupted at once raises is the interrupt."""
    interrupt = KeyboardInterrupt()
    first = Cancelled()
    assert (
        foremost(BaseExceptionGroup("both", [first, BaseExceptionGroup("inner", [interrupt])])) is interrupt
    )
    assert foremost(BaseExceptionGroup("both", [first, Cancelled()])) is first
    assert foremost(first) is first
