"""A job with all that a checkpoint holds, run as often as one likes: ``run(directory, workers, backend, ...)``.

One worker changes its variables by functions that depend on the order; eight by commutative ones only. Some
steps fail at the first attempt when half of their writes are made, and are run again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import anyio
import numpy as np

import asyncstep
from asyncstep.hooks import CheckpointSaverHook, CheckpointSaverListener

ITEMS = 60
Event = Callable[[], None]


class Tally:
    """A tracked object: what the hooks were told of."""

    def __init__(self) -> None:
        self.of_remainder = dict.fromkeys(range(5), 0)

    def count(self, item: int) -> None:
        """One more step with an item of this remainder."""
        self.of_remainder[item % 5] += 1

    def state_dict(self) -> dict[int, int]:
        """The counts."""
        return dict(self.of_remainder)

    def load_state_dict(self, state: dict[int, int]) -> None:
        """Go back to those counts."""
        self.of_remainder = dict(state)


class Watch(asyncstep.SessionRunHook):
    """A hook with a state: keeps the tally, the number of steps that it saw, and the sum of their items."""

    def __init__(self, item: Any, tally: Tally, event: Event) -> None:
        self._item = item
        self._tally = tally
        self._event = event
        self.sum = 0

    def state_dict(self) -> dict[str, int]:
        """The sum."""
        return {"sum": self.sum}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from there."""
        self.sum = state["sum"]

    async def before_run(self, run_context: asyncstep.SessionRunContext) -> asyncstep.SessionRunArgs:
        """Ask for the item of the step."""
        self._event()
        return asyncstep.SessionRunArgs(self._item)

    async def after_run(
        self, run_context: asyncstep.SessionRunContext, run_values: asyncstep.SessionRunValues
    ) -> None:
        """Count the item, which is committed; the kill may come in between."""
        self._event()
        self._tally.count(run_values.results)
        self.sum += run_values.results
        self._event()


class Announce(CheckpointSaverListener):
    """Says which checkpoints are durable."""

    def __init__(self, say: Callable[[int], None]) -> None:
        self._say = say

    async def after_save(self, session: asyncstep.Session, step: int) -> None:
        """Say it."""
        self._say(step)


def add_item(items: tuple[int, ...], item: int) -> tuple[int, ...]:
    """The items in order, whatever the order they came in."""
    return tuple(sorted((*items, item)))


def add_to_vector(vector: np.ndarray[Any, np.dtype[np.float64]], item: int) -> Any:
    """A new array, with the item where it belongs; sums of whole numbers are exact in any order."""
    new = vector.copy()
    new[item % len(new)] += item
    return new


def add_digest(digest: bytes, item: int) -> bytes:
    """Commutative: the exclusive or of the digests of the items."""
    other = hashlib.sha256(str(item).encode()).digest()
    return bytes(a ^ b for a, b in zip(digest, other, strict=True))


def chain_digest(digest: bytes, item: int) -> bytes:
    """Not commutative: the digest of all items so far, in their order."""
    return hashlib.sha256(digest + str(item).encode()).digest()


def job(
    directory: Path | str,
    workers: int,
    *,
    event: Event = lambda: None,
    begin: Callable[[int], None] = lambda item: None,
    say: Callable[[int], None] = lambda step: None,
    hooks: Sequence[asyncstep.SessionRunHook] = (),
) -> Callable[[], Any]:
    """The async function that goes on from the newest checkpoint to the end of the data.

    Args:
        directory: of the checkpoints; one after every third step.
        workers: how many.
        event: called in ops, hooks and the step function: where a kill is interesting.
        begin: called with each item that is worked on.
        say: called with each step that is durable.
        hooks: more of them.
    """

    @asyncstep.op
    async def work(item: int) -> int:
        """Wait for as long as it takes to write a small checkpoint, more or less."""
        begin(item)
        event()
        await anyio.sleep(workers * (item * 7 % 5) / 500)
        event()
        return item

    tally = Tally()
    with asyncstep.Graph() as graph:
        graph.track("tally", tally)
        item = asyncstep.source(range(ITEMS), name="numbers")
        done = work(item)
        begun = asyncstep.Variable(0, name="begun").update(lambda total, new: total + new, item)
        rest = asyncstep.group(
            asyncstep.Variable[tuple[int, ...]]((), name="items").update(add_item, done),
            asyncstep.Variable(np.zeros(7), name="vector").update(add_to_vector, done),
            asyncstep.Variable(bytes(32), name="digest").update(
                chain_digest if workers == 1 else add_digest, done
            ),
        )
        if workers == 1:
            last = asyncstep.Variable(-1, name="last").assign(done)
            rest = asyncstep.group(rest, last)

    async def step(ctx: asyncstep.StepContext) -> None:
        """One item in two runs, which are one transaction; some fail in between, and are run again."""
        number, _ = await ctx.session.run([item, begun])
        event()
        if ctx.attempt == 1 and number % 6 == 0:
            raise asyncstep.AbortedError("once")
        await ctx.run_with_hooks(rest, {item: number})

    async def run() -> asyncstep.StopReason | None:
        saver = CheckpointSaverHook(directory, save_steps=3, listeners=[Announce(say)])
        creator = asyncstep.ChiefSessionCreator(graph=graph, checkpoint_dir=directory)
        all_hooks = [*hooks, Watch(item, tally, event), saver]
        recovery = asyncstep.Recovery(wait_initial=0.0, jitter=0.0)
        async with asyncstep.MonitoredSession(creator, all_hooks, recovery=recovery) as session:
            await session.loop(step, workers=workers)
        return session.stop_reason

    return run
