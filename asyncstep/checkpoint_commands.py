"""The commands ``asyncstep checkpoints``, ``asyncstep show`` and ``asyncstep verify``."""

from __future__ import annotations

import json
import math
import os
import reprlib
import sys
import time
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from asyncstep.checkpoint.directory import object_path
from asyncstep.checkpoint.listing import latest_checkpoint, list_checkpoints, survey
from asyncstep.checkpoint.outline import Outline, Stand, type_name
from asyncstep.checkpoint.reading import metric_of, read_arrays, read_outline, verify_checkpoint
from asyncstep.checkpoint.registry import qualified_name
from asyncstep.checkpoint.state import SECTIONS
from asyncstep.errors import DataLossError, Error, NotFoundError
from asyncstep.terminal import print_lines

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from asyncstep.checkpoint.listing import Finding
    from asyncstep.checkpoint.manifest import Manifest

DAMAGED = 1
NOT_FOUND = 2
NOT_CHECKED = 3
"""It is there, but could not be read: of a newer format, or the rights are missing."""

_SHORT = 60
"""Characters of a value in a list of values."""

_repr = reprlib.Repr()
_repr.maxstring = _repr.maxother = _SHORT

_as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.command("checkpoints")
@click.argument("directory", metavar="DIR")
@_as_json
def list_command(directory: str, as_json: bool) -> None:
    """List the checkpoints in DIR, oldest first, each checked in every byte: step, age, size, sound or why not."""
    with _exit_codes():
        findings = survey(directory)
        if not findings and object_path(directory) is None and not os.path.isdir(directory):
            raise NotFoundError(f"there is no directory {directory}")
    if as_json:
        print_lines([json.dumps([_finding_json(finding) for finding in findings], indent=2)])
    elif findings:
        print_lines([f"{'step':>12}  {'age':>8}  {'size':>10}", *map(_finding_line, findings)])
    else:
        click.echo(f"There are no checkpoints in {directory}.", err=True)


@click.command("show")
@click.argument("path", metavar="PATH")
@click.argument("name", metavar="[NAME]", required=False)
@_as_json
def show_command(path: str, name: str | None, as_json: bool) -> None:
    """Show what the checkpoint at PATH holds: names, types, shapes, small values; or one value, NAME, in full.

    PATH is a checkpoint, or a directory of checkpoints, of which the newest sound one is shown.
    """
    with _exit_codes():
        shown = latest_checkpoint(path) if list_checkpoints(path) else None
        path = path if shown is None else str(shown)
        manifest, sections = read_outline(path, Outline({} if name is None else read_arrays(path)))
        if name is not None:
            sections = _only(name, sections)
    if as_json:
        print_lines([json.dumps(_outline_json(path, manifest, sections, full=name is not None), indent=2)])
    elif name is None:
        print_lines(_outline_lines(path, manifest, sections))
    else:
        print_lines(repr(value) for entries in sections.values() for value in entries.values())


@click.command("verify")
@click.argument("path", metavar="PATH")
def verify_command(path: str) -> None:
    """Check every byte of the checkpoint at PATH.

    The exit code is 0 if it is sound, 1 if it is damaged, 2 if there is none, 3 if it cannot be read here.
    """
    with _exit_codes():
        verify_checkpoint(path)
    print_lines([f"{path} is sound"])


@contextmanager
def _exit_codes() -> Iterator[None]:
    try:
        yield
    except (Error, OSError) as error:
        click.echo(f"Error: {error}", err=True)
        codes: dict[type, int] = {NotFoundError: NOT_FOUND, DataLossError: DAMAGED}
        sys.exit(codes.get(type(error), NOT_CHECKED))


def _finding_line(finding: Finding) -> str:
    info = finding.info
    if info is None:
        return f"{finding.step:>12}  {'':>8}  {'':>10}  {finding.reason}"
    metric = "" if info.metric is None else f", {info.metric.name} {info.metric.value:g}"
    return f"{info.step:>12}  {age(time.time() - info.time):>8}  {size(info.size):>10}  sound{metric}"


def _finding_json(finding: Finding) -> dict[str, Any]:
    info = finding.info
    return {
        "path": str(finding.path),
        "step": finding.step,
        "time": info and info.time,
        "size": info and info.size,
        "metric": info
        and info.metric
        and {"name": info.metric.name, "value": _json_value(info.metric.value)},
        "sound": info is not None,
        "problem": finding.reason,
    }


def age(seconds: float) -> str:
    """How long ago, in its largest unit."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{int(seconds // length)} {unit}"
    return f"{max(0, int(seconds))} s"


def size(length: float) -> str:
    """A number of bytes in its largest unit."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if length < 1000:
            return f"{length:.3g} {unit}" if unit != "bytes" else f"{length} {unit}"
        length /= 1000
    return f"{length:,.1f} TB"


def _only(name: str, sections: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Mapping[str, Any]]:
    """The entries of that name."""
    found = {section: {name: entries[name]} for section, entries in sections.items() if name in entries}
    if not found:
        there = ", ".join(_printable(other) for entries in sections.values() for other in entries)
        raise NotFoundError(f"the checkpoint has nothing named {name!r}; it has {there or 'nothing'}")
    return found


def _outline_lines(path: str, manifest: Manifest, sections: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    saved = datetime.fromtimestamp(manifest.time).isoformat(" ", "seconds")
    metric = metric_of(manifest)
    yield f"{path}: step {manifest.step}, saved {saved}, {size(manifest.size)}" + (
        "" if metric is None else f", {metric.name} {metric.value:g}"
    )
    for section in SECTIONS:
        entries = sections[section]
        if entries:
            yield f"\n{section}\n"
        width = max(map(len, map(_printable, entries)), default=0)
        for name, value in entries.items():
            yield f"  {_printable(name):<{width}}  {type_name(value)}  {_short(value)}"


def _outline_json(
    path: str, manifest: Manifest, sections: Mapping[str, Mapping[str, Any]], *, full: bool
) -> dict[str, Any]:
    described = {
        section: {name: _value_json(value, full=full) for name, value in entries.items()}
        for section, entries in sections.items()
    }
    return {
        "path": path,
        "step": manifest.step,
        "time": manifest.time,
        "size": manifest.size,
        **described,
    }


def _value_json(value: Any, *, full: bool) -> dict[str, Any]:
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    described: dict[str, Any] = {"type": type_name(value)}
    if dtype is not None:
        described["dtype"] = str(dtype)
    if shape is not None:
        described["shape"] = list(shape)
    if not isinstance(value, Stand):
        plain = _json_value(value)
        if full or len(json.dumps(plain)) <= 10 * _SHORT:
            described["value"] = plain
    elif shape is None and dtype is None:
        described["value"] = value.text
    return described


def _json_value(value: Any) -> Any:
    """The value in JSON: itself if JSON has it, lists for tuples and arrays, else what Python shows."""
    kind = type(value)
    if value is None or kind in (bool, int, str) or (kind is float and math.isfinite(value)):
        return value
    if kind in (list, tuple):
        return [_json_value(item) for item in value]
    if kind is dict and all(type(key) is str for key in value):
        return {key: _json_value(item) for key, item in value.items()}
    if qualified_name(kind) in ("numpy.ndarray", "torch.Tensor"):
        return _json_value(value.tolist())
    return repr(value)


def _short(value: Any) -> str:
    text = value.text if isinstance(value, Stand) else _repr.repr(value)
    return text if len(text) <= _SHORT else text[: _SHORT - 3] + "..."


def _printable(name: str) -> str:
    return name if name.isprintable() else repr(name)
