"""What tests of the example programs share: how one is loaded, and how one is killed and run again."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent.parent
KILLED = Path(__file__).with_name("killed.py")


@pytest.fixture
def load() -> Iterator[Callable[[str], ModuleType]]:
    """Loads an example by its name, as a program of its own: what is in it belongs to one event loop."""
    loaded: list[str] = []

    def load_example(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(f"example_{name}", ROOT / "examples" / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
        loaded.append(spec.name)
        spec.loader.exec_module(module)
        return module

    yield load_example
    for name in loaded:
        del sys.modules[name]


@pytest.fixture
def run_killed() -> Callable[..., int]:
    """Runs an example as a process that is killed when so many checkpoints are complete; None: it lives on."""

    def run(name: str, checkpoints: int | None, *options: object) -> int:
        command = [sys.executable, KILLED, str(checkpoints or 0), ROOT / "examples" / f"{name}.py"]
        ended = subprocess.run(
            [*map(str, command + list(options))], capture_output=True, text=True, timeout=60
        )
        assert ended.returncode <= 0, ended.stderr
        return ended.returncode

    return run
