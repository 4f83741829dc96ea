"""What is Python made of? The job of ``asyncstep demo``, and a program to start your own from.

Workers take one file after another, tokenize it off the event loop and fold what is in it into variables.
Each step is a transaction, so any number of workers finds the same, killed at any instant and started again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from io import BytesIO
from keyword import iskeyword
from pathlib import Path
from tokenize import NAME, TokenError, tokenize
from typing import TYPE_CHECKING, Any

import click

import asyncstep
from asyncstep import SessionRunHook
from asyncstep.hooks import FinalOpsHook, ProgressHook, TraceHook, on_step

if TYPE_CHECKING:
    from asyncstep.distributed import TaskInfo

SUMS = ("files", "bytes", "lines", "tokens", "functions", "classes")
Names = tuple[Counter[str], ...]
Largest = tuple[tuple[int, str], ...]
Failed = tuple[tuple[str, str], ...]
Hooks = Sequence[SessionRunHook]


@dataclass(frozen=True, slots=True)
class Found:
    """What is in one file. Where `error` says why it cannot be tokenized, nothing of it is counted."""

    path: str
    sums: dict[str, int] = field(default_factory=dict)
    names: dict[str, int] = field(default_factory=dict)
    error: str | None = None


@asyncstep.op(offload="thread")
def examine(root: Path, path: str) -> Found:
    """Read and tokenize one file; in a thread, so that the event loop goes on meanwhile."""
    if not (file := root / path).is_file():
        return Found(path, error="not a file that can be read")
    try:
        content = file.read_bytes()
        tokens = tokenize(BytesIO(content).readline)
        words = Counter(token.string if token.type == NAME else "" for token in tokens)  # "": no name
    except (OSError, SyntaxError, TokenError, ValueError, LookupError) as error:
        return Found(path, error=f"{type(error).__name__}: {error}")
    sums = (1, len(content), len(content.splitlines()), words.total(), words["def"], words["class"])
    names = {word: uses for word, uses in words.items() if word and not iskeyword(word)}
    return Found(path, dict(zip(SUMS, sums, strict=True)), names)


def add(total: int, found: Found, what: str) -> int:
    """A variable's new value: one of the `SUMS`, with one more file in it."""
    return total + found.sums.get(what, 0)


def add_names(parts: Names, found: Found) -> Names:
    """The uses of names, in parts of falling size so that one more file does not touch them all."""
    new, kept = Counter(found.names), len(parts)
    while kept and len(parts[kept - 1]) <= 2 * len(new):
        kept -= 1
        new.update(parts[kept])
    return (*parts[:kept], new)


def keep_largest(largest: Largest, found: Found) -> Largest:
    """The ten largest files as (-bytes, path), in the one order that they can have."""
    return largest if found.error else tuple(sorted((*largest, (-found.sums["bytes"], found.path)))[:10])


def keep_failed(failed: Failed, found: Found) -> Failed:
    """The files that cannot be tokenized as (path, why), in the one order that they can have."""
    return tuple(sorted((*failed, (found.path, found.error)))) if found.error else failed


def progress(total: int) -> SessionRunHook:
    """Says on stderr how far the loop is: each step is one file. Without rich, a line now and then."""
    try:
        return ProgressHook(total)
    except ImportError:
        return on_step(lambda step: click.echo(f"{step:>9,} of {total:,} files", err=True), every_secs=2)


async def count(
    root: Path,
    files: Sequence[str],
    *,
    workers: int = 8,
    hooks: Hooks = (),
    directory: Path | None = None,
    task: TaskInfo | None = None,
) -> tuple[dict[str, Any], asyncstep.StopReason | None]:
    """Count `files`, going on from the newest checkpoint in `directory`: the totals, and why it ended.

    With a `task` it is one program of a launch: the chief has the `hooks`, saves, and has the totals.
    """
    with asyncstep.Graph() as graph:
        found = examine(root, asyncstep.source(files, name=f"files in {root}"))
        count_file = asyncstep.group(
            *(asyncstep.Variable(0, name=what).update(add, found, what) for what in SUMS),
            asyncstep.Variable[Names]((), name="names").update(add_names, found),
            asyncstep.Variable[Largest]((), name="largest").update(keep_largest, found),
            asyncstep.Variable[Failed]((), name="failed").update(keep_failed, found),
        )
        totals = FinalOpsHook(dict(graph.variables))
        session = asyncstep.MonitoredTrainingSession(
            task.master if task else "",
            is_chief=task.is_chief if task else True,
            chief_only_hooks=[*hooks, totals],
            checkpoint_dir=directory,
            save_checkpoint_secs=1,
        )

    async def step(ctx: asyncstep.StepContext) -> None:
        await ctx.run_with_hooks(count_file)

    async with session:
        await session.loop(step, workers=workers)
    return totals.final_ops_values, session.stop_reason


async def count_together(
    root: Path, files: Sequence[str], directory: Path | None, trace: Path | None, show: bool, task: TaskInfo
) -> tuple[dict[str, Any], asyncstep.StopReason | None]:
    """The program of a launch: one worker of `count`. The chief is that of index 0, and shows the progress."""
    hooks: list[SessionRunHook] = []
    if trace is not None:
        hooks.append(TraceHook(trace))
    if show:
        hooks.append(progress(len(files)))
    return await count(root, files, workers=1, hooks=hooks, directory=directory, task=task)
