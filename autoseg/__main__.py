"""`python -m autoseg` is the command `autoseg`."""

from __future__ import annotations

from autoseg.cli import main
from autoseg.engine.lean import start_lean


def run() -> int:
    """The command in a process of its own; returns the exit code."""
    start_lean()
    return main()


if __name__ == "__main__":
    raise SystemExit(run())
