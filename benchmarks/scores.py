"""What the benchmarks make of rows of scores."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

from autoseg.evaluation import bootstrap_mean


def dice_by_case(rows: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Mean Dice of every case over its labels; `rows` of {case, dice}, a case and label each, None for no Dice."""
    cases: dict[str, list[float]] = {}
    for entry in rows:
        if entry["dice"] is not None:
            cases.setdefault(entry["case"], []).append(entry["dice"])
    return {case: fmean(values) for case, values in cases.items()}


def paired(ours: Sequence[float], others: Sequence[float]) -> str:
    """The mean difference of figures in the same order of cases, with its 95 % interval."""
    mean, low, high = bootstrap_mean([a - b for a, b in zip(ours, others, strict=True)])
    return f"{mean:+.4f} [{low:+.4f}, {high:+.4f}]"
