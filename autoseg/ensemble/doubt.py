"""Which predictions to look at: Dice predicted from what probabilities expect, as cross-validation has shown. No torch.

Fitted on out-of-fold cases, each predicted by the network that had not seen it; so is the bound below which a case is
one to look at.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any

import numpy as np

LEAST_CASES = 8  # fewer say nothing
DEFINITION = 2  # of what is expected: a rule of another one is of no use
MOSTLY = 0.5  # of the cases
WORST = 0.1  # share of the out-of-fold cases that would be looked at


@dataclass(frozen=True)
class DoubtRule:
    """By label Dice = intercept + slope * expected; `look_below` bounds a case's mean over its labels.

    `missed`: by label, in what share of the cases of which nothing was found it was there; 1 where it always was found.
    """

    lines: dict[str, tuple[float, float]]
    look_below: float
    n_cases: int
    definition: int = 1
    missed: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class CaseDoubt:
    """What is predicted of a case: its Dice by label, their mean (None where no label likely is), whether to look."""

    case: str
    mean_dice: float | None
    look: bool
    dice: dict[str, float | None] = field(default_factory=dict)


def fit_doubt(rows: Iterable[Mapping[str, Any]]) -> DoubtRule | None:
    """The rule that out-of-fold rows {case, label, dice, expected} teach; None where there are too few of them.

    A line a label by least squares, never falling; a label with too few cases takes the line of all.
    """
    rows = [row for row in rows if "expected" in row]  # an older version's have none
    known = [row for row in rows if row["expected"] is not None]
    pairs = [row for row in known if row.get("dice") is not None]
    by_label: dict[str, list[tuple[float, float]]] = {}
    for row in pairs:
        by_label.setdefault(str(row["label"]), []).append((float(row["expected"]), float(row["dice"])))
    cases = {row["case"] for row in pairs}
    if len(cases) < LEAST_CASES:
        return None
    everything = _line([pair for label in by_label.values() for pair in label])
    labels = {str(row["label"]) for row in known}
    lines = {
        label: _line(by_label[label]) if len(by_label.get(label, ())) >= LEAST_CASES else everything for label in labels
    }
    expected: dict[str, dict[str, float | None]] = {}
    there: dict[str, list[bool]] = {}
    for row in rows:
        expected.setdefault(row["case"], {})[str(row["label"])] = row["expected"]
        not_found = there.setdefault(str(row["label"]), [])
        if row["expected"] is None:
            not_found.append(row["dice"] is not None)
    missed = {label: round(fmean(found), 6) if found else 1.0 for label, found in sorted(there.items())}
    rule = DoubtRule(dict(sorted(lines.items())), 0.0, len(cases), DEFINITION, missed)
    means = [found.mean_dice for found in doubts(rule, expected) if found.mean_dice is not None]
    return replace(rule, look_below=round(float(np.quantile(means, WORST)), 6))


def _line(pairs: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """(intercept, slope) of the least squares through (expected, Dice)."""
    expected, dice = np.asarray(pairs).T
    spread = expected - expected.mean()
    variance = float((spread**2).sum())
    slope = max(0.0, float((spread * dice).sum()) / variance) if variance > 1e-12 else 0.0
    return round(float(dice.mean() - slope * expected.mean()), 6), round(slope, 6)


def doubts(rule: DoubtRule, expected: Mapping[str, Mapping[str, float | None]]) -> list[CaseDoubt]:
    """What the rule says of cases, by case id and label; the one to look at first comes first."""
    found = []
    for case, by_label in expected.items():
        dice = {label: _dice(rule, label, value) for label, value in by_label.items()}
        known = [value for value in dice.values() if value is not None]
        mean = round(fmean(known), 4) if known else None
        found.append(CaseDoubt(case, mean, mean is not None and mean < rule.look_below, dice))
    return sorted(found, key=lambda one: (one.mean_dice is None, one.mean_dice or 0.0, one.case))


def _dice(rule: DoubtRule, label: str, expected: float | None) -> float | None:
    """0 where nothing was found of a label that is mostly there nevertheless; None where it likely is not."""
    if expected is None:
        return 0.0 if rule.missed.get(label, 0.0) > MOSTLY else None
    if label not in rule.lines:
        return None
    intercept, slope = rule.lines[label]
    return round(min(1.0, max(0.0, intercept + slope * expected)), 4)
