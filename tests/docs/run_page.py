"""Runs the Python of one page, from top to bottom: ``python run_page.py PAGE``.

A block of text right after a block of Python is what that prints; ``...`` in it stands for anything.
"""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def main(page: Path) -> None:
    """Run the page's blocks in one namespace; an error says which line of the page it is."""
    source = page.read_text()
    blocks = list(FENCE.finditer(source))
    namespace = {"__name__": "__main__"}
    printed = sys.stdout = io.StringIO()
    for block, after in zip(blocks, [*blocks[1:], None], strict=True):
        if block[1] != "python":
            continue
        line = source.count("\n", 0, block.start()) + 1
        start = printed.tell()
        exec(compile("\n" * line + block[2], page, "exec"), namespace)
        if after is not None and after[1] == "text" and not source[block.end() : after.start()].strip():
            expected = ".*".join(map(re.escape, after[2].split("...")))
            found = printed.getvalue()[start:]
            if not re.fullmatch(expected, found, re.DOTALL):
                raise AssertionError(f"{page}:{line} prints\n{found}\nnot\n{after[2]}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
