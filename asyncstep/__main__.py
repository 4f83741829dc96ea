"""``python -m asyncstep``: the command line."""

from __future__ import annotations

from asyncstep.cli import main

if __name__ == "__main__":
    main()
