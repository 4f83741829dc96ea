"""What a checkpoint of the job of job.py holds, whether it agrees with itself, and with that of another run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from asyncstep.checkpoint import Checkpoint, latest_checkpoint, read_checkpoint


def state(directory: Path) -> dict[str, Any]:
    """All that the newest checkpoint holds, with every byte of it."""
    path = latest_checkpoint(directory)
    assert path is not None, "there is no checkpoint"
    found = read_checkpoint(path)
    content = {file.name: file.read_bytes() for file in path.iterdir() if file.name != "MANIFEST.json"}
    return {**contents(found), "content": content}


def contents(found: Checkpoint) -> dict[str, Any]:
    """What a checkpoint holds, by section."""
    return {
        "step": found.step,
        "variables": dict(found.variables),
        "sources": dict(found.sources),
        "tracked": dict(found.tracked),
        "hooks": dict(found.hooks),
    }


def half_steps(found: dict[str, Any]) -> list[str]:
    """What of a checkpoint does not agree with the items in it (contract K1)."""
    variables = found["variables"]
    items = variables["items"]
    source = found["sources"]["numbers"]
    finished = [*range(source["position"])]
    for start, stop in source["finished"]:
        finished += range(start, stop)
    remainders = {remainder: sum(item % 5 == remainder for item in items) for remainder in range(5)}
    facts = {
        "items of the variables and finished positions": (list(items), sorted(finished)),
        "number of items and global step": (len(items), found["step"]),
        "the first run of the step": (sum(items), variables["begun"]),
        "the array": (sum(items), int(variables["vector"].sum())),
        "the tracked object": (remainders, found["tracked"]["tally"]),
        "the hook": ({"sum": sum(items)}, found["hooks"]["Watch"]),
    }
    return [f"{what}: {one} is not {other}" for what, (one, other) in facts.items() if one != other]


def difference(expected: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """What is not the same to the bit."""
    if expected["content"] == found["content"]:
        return []
    return [
        f"the {section} of the run that was killed are {found[section]}, not {expected[section]}"
        for section in ("step", "variables", "sources", "tracked", "hooks")
        if repr(expected[section]) != repr(found[section])
    ] or ["the files of the checkpoints differ"]


def disagreements(expected: Path, found: Path) -> list[str]:
    """Where the newest checkpoints of two directories differ in what steps have done, whoever did them."""
    one, other = state(expected), state(found)
    return [
        f"the {section} of the run that was killed are {other[section]}, not {one[section]}"
        for section in ("step", "variables", "sources")
        if repr(one[section]) != repr(other[section])
    ]
