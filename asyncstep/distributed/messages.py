"""What a worker's session and the chief say to each other: one request, one answer.

Every request can be sent again: the chief recognizes a repetition by its numbers and gives the same answer.
`member` tells who sends it, `step` is a number that the member gives its steps, `below` the lowest of those that
are under way: the chief forgets what is below.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from asyncstep._runtime.state import SourceState
from asyncstep._runtime.transaction import Fate

Member = tuple[int, int]
"""Who takes part: the life of a program (see `Link.life`), and how many times it has joined a chief."""

Stamps = dict[str, int]
"""For some variables, the stamps of the values that the worker has; 0 for none."""

Values = dict[str, tuple[int, Any]]
"""For variables whose stamp is another one: the stamp and the value."""


Sizes = dict[str, int]
"""How many items wait in each of some queues."""

States = dict[str, SourceState]
"""How far each of some sources is."""


class Join(NamedTuple):
    """A session of a worker begins.

    `program` is the index of its task, `view` the version of the job's view that it has.
    """

    member: Member
    program: int
    view: int
    variables: tuple[str, ...]
    sources: tuple[str, ...]


class Read(NamedTuple):
    """The values of some variables, how many items wait in some queues, and how far some sources are."""

    member: Member
    have: Stamps
    sizes: tuple[str, ...]
    states: tuple[str, ...]


class Watch(NamedTuple):
    """The values of some variables, as soon as something is committed after what the worker has."""

    member: Member
    have: Stamps


class Enter(NamedTuple):
    """A step may put something into some queues, though it has taken nothing yet; `inside` as in `Take`."""

    member: Member
    step: int
    below: int
    inside: int
    queues: tuple[str, ...]


class Take(NamedTuple):
    """The next item of a source; `number` counts what the step takes.

    `inside` is the step that this one is run in, as by a hook, so that the other cannot end before it; 0 if there
    is none.
    """

    member: Member
    step: int
    below: int
    inside: int
    number: int
    source: str


class Write(NamedTuple):
    """What a step has done to one variable.

    Without updates: set it to `value`. Else: each a number of a function and its further arguments; `base` is the
    stamp of the value that the worker has applied them to.
    """

    value: Any
    base: int
    updates: tuple[tuple[int, tuple[Any, ...]], ...] | None


class Commit(NamedTuple):
    """All that a step, or a part of it, has done.

    `number` counts the commits of the step; `over`: this is the last; `owned`: it is a step of a monitored session;
    `monitored`: it is one of that session's runs, which has a global step; `items` are numbers of `Take`, `parked`
    those of runs that failed in the step; `puts` the names of queues, each with what is put; `functions` those that
    the chief has not been sent yet; `have` what the worker has of the variables that its steps read; `states` the
    sources of which it wants to know how far they are; `ahead` what the step after this one is going to take, which is
    done if that is possible at once.
    """

    member: Member
    step: int
    below: int
    number: int
    over: bool
    owned: bool
    monitored: bool
    counts: bool
    writes: dict[str, Write]
    items: tuple[int, ...]
    parked: tuple[int, ...]
    puts: tuple[tuple[str, list[Any]], ...]
    functions: dict[int, bytes]
    have: Stamps
    states: tuple[str, ...]
    ahead: Take | None = None


class Undo(NamedTuple):
    """Items were rolled back: numbers of `Take`, of which all have the same fate; `over`: so is the step."""

    member: Member
    step: int
    below: int
    numbers: tuple[int, ...]
    fate: Fate
    over: bool


class Idle(NamedTuple):
    """The loop of a session has ended: no more steps are to be waited for."""

    member: Member


class Leave(NamedTuple):
    """A session of a worker has ended."""

    member: Member


class WasCommitted(NamedTuple):
    """Whether a commit whose answer was lost with the chief is in what the next chief has."""

    member: Member
    step: int
    number: int


# The answers.


class Known(NamedTuple):
    """To `Join`, `Read`, `Watch` and `Enter`."""

    values: Values
    sizes: Sizes
    states: States


class Given(NamedTuple):
    """To `Take`: the item, or the items of a batch."""

    value: Any


class Committed(NamedTuple):
    """To `Commit`, and `WasCommitted`: the global step.

    `kept` has the stamps of those written variables whose value is what the worker made of it; `given` is what was
    asked for with `ahead`, None if that has to be asked for again.
    """

    global_step: int | None
    kept: Stamps
    values: Values
    states: States
    given: Given | None = None


class Failed(NamedTuple):
    """To any request: what it has raised."""

    error: Exception


class Ended(NamedTuple):
    """To `Take`: there is nothing more."""

    message: str


class Gone(NamedTuple):
    """To any request: the sender, or the state that it speaks of, is not known any more; it has to join anew."""

    message: str


class Done(NamedTuple):
    """To a request that needs no other answer."""


Stop = tuple[str, str, str]
"""(kind, message, origin) of a stop."""


class Answer(NamedTuple):
    """What the chief says to any request, and the stop of its session, if there is one."""

    stop: Stop | None
    reply: Any
