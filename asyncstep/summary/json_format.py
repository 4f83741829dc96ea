"""Summaries as JSON lines: an object a line, with the keys step, wall_time, tag, kind and value.

JSON has no numbers that are not finite. They are the strings "NaN", "Infinity" and "-Infinity", from which
Python's ``float`` and JavaScript's ``Number`` make them again.
"""

from __future__ import annotations

import base64
import json
import math
from typing import Any

from asyncstep.summary.values import Histogram, Image

__all__ = ["JSONFormat"]


class JSONFormat:
    """Makes the lines of a file of JSON lines."""

    prefix = "summaries."
    suffix = ".jsonl"

    def head(self, wall_time: float) -> bytes:
        """Nothing."""
        return b""

    def start(self, step: int, wall_time: float) -> bytes:
        """From here on the steps from `step` on are made (again): what there is of them is to be dropped."""
        return _line(step, wall_time, None, "start", None)

    def scalar(self, tag: str, value: float, step: int, wall_time: float) -> bytes:
        """A number."""
        return _line(step, wall_time, tag, "scalar", _number(value))

    def text(self, tag: str, text: str, step: int, wall_time: float) -> bytes:
        """A text."""
        return _line(step, wall_time, tag, "text", text)

    def histogram(self, tag: str, histogram: Histogram, step: int, wall_time: float) -> bytes:
        """A distribution, as an object of the attributes of a `Histogram`."""
        value = {
            "min": _number(histogram.min),
            "max": _number(histogram.max),
            "num": _number(histogram.num),
            "sum": _number(histogram.sum),
            "sum_squares": _number(histogram.sum_squares),
            "limits": [_number(limit) for limit in histogram.limits],
            "counts": [_number(count) for count in histogram.counts],
            "skipped": histogram.skipped,
        }
        return _line(step, wall_time, tag, "histogram", value)

    def image(self, tag: str, image: Image, step: int, wall_time: float) -> bytes:
        """A picture, whose PNG is in base64."""
        value = {
            "width": image.width,
            "height": image.height,
            "channels": image.channels,
            "png": base64.b64encode(image.png).decode("ascii"),
        }
        return _line(step, wall_time, tag, "image", value)


def _line(step: int, wall_time: float, tag: str | None, kind: str, value: Any) -> bytes:
    content = {"step": step, "wall_time": wall_time, "tag": tag, "kind": kind, "value": value}
    return json.dumps(content, allow_nan=False).encode("ascii") + b"\n"


def _number(value: float) -> float | str:
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
