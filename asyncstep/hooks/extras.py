"""What hooks need that is installed only on request."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

__all__ = ["require"]


def require(module: str, extra: str) -> ModuleType:
    """Import a module of an extra of asyncstep.

    Args:
        module: its full name, such as ``rich.text``.
        extra: the name of the extra, such as ``progress``.

    Raises:
        ImportError: it is not installed; the message says how to install it.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # the module is there, and something that it needs itself is not
        raise ImportError(
            f"{module} is not installed; try: pip install 'asyncstep[{extra}]'", name=module
        ) from error
