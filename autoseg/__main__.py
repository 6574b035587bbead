"""`python -m autoseg` is the command `autoseg`."""

from __future__ import annotations

from autoseg.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
