"""What the benchmarks make of rows of scores."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from statistics import fmean
from typing import Any


def dice_by_case(rows: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Mean Dice of every case over its labels; `rows` of {case, dice}, a case and label each, None for no Dice."""
    cases: dict[str, list[float]] = {}
    for entry in rows:
        if entry["dice"] is not None:
            cases.setdefault(entry["case"], []).append(entry["dice"])
    return {case: fmean(values) for case, values in cases.items()}
