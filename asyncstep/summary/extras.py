"""numpy, which is an extra, for what cannot do without."""

from __future__ import annotations

from typing import Any

__all__ = ["numpy_for"]


def numpy_for(what: str) -> Any:
    """The module numpy; ImportError names the extra that `what` needs."""
    try:
        import numpy
    except ImportError:
        raise ImportError(f"{what} needs numpy: pip install 'asyncstep[numpy]'") from None
    return numpy
