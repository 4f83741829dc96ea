"""What is said when an extra is missing."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from asyncstep.hooks.extras import require


def test_a_module_that_is_there_is_imported() -> None:
    """It is given as `import` would give it."""
    assert require("os.path", "none") is sys.modules["os.path"]


@pytest.mark.parametrize("module", ["no_such_package", "no_such_package.part"])
def test_a_missing_module_names_the_extra_to_install(module: str) -> None:
    """The ImportError says what is missing and which command brings it."""
    with pytest.raises(
        ImportError, match=rf"{module} is not installed; try: pip install 'asyncstep\[extra\]'"
    ):
        require(module, "extra")


def test_what_a_module_itself_misses_is_not_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the module is there, and imports something that is not, the error is about that."""
    (tmp_path / "half_there.py").write_text("import no_such_package\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="No module named 'no_such_package'"):
        require("half_there", "extra")
