"""The command ``asyncstep``."""

from __future__ import annotations

import os
import platform
import sys
import sysconfig
from collections import Counter
from functools import partial
from importlib.util import find_spec
from itertools import zip_longest
from pathlib import Path
from signal import Signals
from typing import TYPE_CHECKING, Any

import anyio
import click

from asyncstep import Error, StopKind, demo
from asyncstep.checkpoint_commands import list_command, show_command, verify_command
from asyncstep.hooks import SignalHook, TraceHook
from asyncstep.launch_command import launch_command, run_launched
from asyncstep.terminal import print_lines

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from asyncstep import SessionRunHook


@click.group()
def main() -> None:
    """Run long async loops that are watched, stopped, killed and resumed without losing anything."""


main.add_command(list_command)
main.add_command(show_command)
main.add_command(verify_command)
main.add_command(launch_command)


@main.command("demo")
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    default=8,
    show_default=True,
    help="How many files are worked on at a time.",
)
@click.option(
    "--backend",
    type=click.Choice(["asyncio", "trio"]),
    default="asyncio",
    show_default=True,
    help="The event loop to run on.",
)
@click.option(
    "--source",
    "root",
    metavar="DIR",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Count the Python files in DIR instead of the standard library.",
)
@click.option(
    "--dir",
    "directory",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    help="Save checkpoints in DIR, and go on from the newest one there.",
)
@click.option(
    "--trace",
    metavar="FILE",
    type=click.Path(dir_okay=False, writable=True, path_type=Path),
    help="Write to FILE what was done when, for https://ui.perfetto.dev or chrome://tracing; in a cluster what the"
    " first worker did.",
)
@click.option("--progress/--no-progress", default=True, help="Say on stderr how many files are done.")
@click.option(
    "--cluster",
    metavar="local|ADDRESS",
    help="Let each worker be a program of its own: in processes of this machine, or on the Dask cluster at ADDRESS,"
    " whose machines have the same files; progress is shown where the first worker is.",
)
def run_demo(
    workers: int,
    backend: str,
    root: Path | None,
    directory: Path | None,
    trace: Path | None,
    progress: bool,
    cluster: str | None,
) -> None:
    """Count lines, tokens, functions, classes and names in the standard library of this Python.

    Ctrl-C ends it within a second, with the table of what was counted so far. With --dir it may be killed
    at any instant: start it again, and it goes on to the same table.
    """
    if find_spec(backend) is None:
        raise click.ClickException(f"{backend} is not installed; try: pip install 'asyncstep[{backend}]'")
    where = (root or Path(sysconfig.get_path("stdlib"))).resolve()
    try:
        files = python_files(where)
        if cluster is None:
            hooks: list[SessionRunHook] = [] if trace is None else [TraceHook(trace)]
            hooks.append(SignalHook())
            if progress:
                hooks.append(demo.progress(len(files)))
            job = partial(demo.count, where, files, workers=workers, hooks=hooks, directory=directory)
            values, reason = anyio.run(job, backend=backend)
        else:
            saved, traced = (path and path.absolute() for path in (directory, trace))
            program = partial(demo.count_together, where, files, saved, traced, progress)
            address = None if cluster == "local" else cluster
            results, _ = run_launched(program, address, workers=workers, backend=backend)
            values, reason = results[0]
    except (Error, OSError) as error:  # of the checkpoints: an error of a file is counted, not raised
        raise click.ClickException(str(error)) from error
    except KeyboardInterrupt:  # before the session was open, or the second Ctrl-C
        sys.exit(_ended_by(Signals.SIGINT))
    library = f"The standard library of Python {platform.python_version()}"
    print_lines(_table(f"Python files in {root}" if root else library, values))
    if reason is not None and reason.kind is StopKind.SIGNAL:
        done = values["files"] + len(values["failed"])
        print_lines([f"\nStopped by {reason.origin} after {done:,} of {len(files):,} files."])
        if directory is not None:
            print_lines(["The same command goes on from there."])
        if cluster is None:
            sys.exit(_ended_by(Signals[reason.origin]))


def python_files(root: Path) -> list[str]:
    """The files below `root` that end in ".py", sorted, as paths from there; installed packages are left out.

    Links to directories are not followed, so loops of them do no harm. A directory that cannot be read
    is in the list too, so that it is named among what was not counted.
    """
    files: list[Path] = []
    unreadable: list[OSError] = []
    for folder, subfolders, names in os.walk(root, onerror=unreadable.append):
        subfolders[:] = [name for name in subfolders if name not in ("site-packages", "dist-packages")]
        files += [Path(folder, name) for name in names if name.endswith(".py")]
    files += [Path(error.filename) for error in unreadable]
    return sorted(file.relative_to(root).as_posix() for file in files)


def _ended_by(signal: Signals) -> int:
    """The exit code of a program that a signal ended, by the custom of shells: 130 for Ctrl-C."""
    return 128 + signal


def _table(title: str, values: Mapping[str, Any]) -> Iterator[str]:
    yield f"\n{title}\n"
    for what in demo.SUMS:
        yield f"{values[what]:>14,}  {what}"
    uses = Counter[str]()
    for part in values["names"]:
        uses.update(part)
    names = sorted(uses.items(), key=lambda item: (-item[1], item[0]))[:10]
    left = [f"{times:>14,}  {name:<24}" for name, times in names]
    right = [f"{-size:>14,}  {path}" for size, path in values["largest"]]
    if right:
        yield f"\n{'uses':>14}  {'of the name':<24}{'bytes':>14}  in the file\n"
    yield from ((one + other).rstrip() for one, other in zip_longest(left, right, fillvalue=" " * 40))
    if failed := values["failed"]:
        yield f"\nNot counted ({len(failed):,}):\n"
        yield from (f"  {path}: {why}" for path, why in failed)
