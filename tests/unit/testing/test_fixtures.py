"""The plugin for pytest, as the page on testing shows it: run by a pytest of its own."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).parents[3] / "docs" / "howto" / "testing.md"


def test_the_module_of_the_page_passes(tmp_path: Path) -> None:
    """The last two blocks, as a conftest.py and a module of tests: on asyncio and on trio, in no time."""
    *_, conftest, module = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    (tmp_path / "conftest.py").write_text(conftest)
    (tmp_path / "test_loop.py").write_text(f"import anyio\nimport asyncstep\n{module}")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-v",
        "-W",
        "error",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:asyncio",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.findall(r"test_a_flaky\w+\[(\w+)\] PASSED", done.stdout) == ["asyncio", "trio"]
