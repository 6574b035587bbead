"""Where the benchmarks' real data set lies: Task04_Hippocampus, beside the project and never in it."""

from __future__ import annotations

import sys
from pathlib import Path

DATA = Path(__file__).resolve().parents[2] / "shared" / "datasets" / "Task04_Hippocampus"


def missing(data: Path) -> bool:
    """Whether there is no datalist in the folder; then that is said."""
    if (data / "datalist.json").exists():
        return False
    print(f"{data} is not there: the data set lies beside the project, not in it", file=sys.stderr)
    return True
