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
MOSTLY = 0.5  # so often a label that is not found must be there for that to be a fault
WORST = 0.1  # share of the out-of-fold cases that would be looked at


@dataclass(frozen=True)
class DoubtRule:
    """By label Dice = intercept + slope * expected; `look_below` bounds a case's mean over its labels.

    `missed`: by label, how often it is there where nothing is found of it.
    """

    lines: dict[str, tuple[float, float]]
    look_below: float
    n_cases: int
    definition: int = 1
    missed: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class CaseDoubt:
    """What is predicted of a case: its Dice by label, their mean (None where no label likely is), whether to look.

    One to look at has a low mean, or lacks a label that is likely there.
    """

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
    for row in known:
        expected.setdefault(row["case"], {})[str(row["label"])] = float(row["expected"])
    rule = DoubtRule(dict(sorted(lines.items())), 0.0, len(cases), DEFINITION)
    means = [found.mean_dice for found in doubts(rule, expected) if found.mean_dice is not None]
    return replace(rule, look_below=round(float(np.quantile(means, WORST)), 6), missed=_missed(rows))


def _missed(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """By label, the share of the predictions without it whose case has it.

    The share of all cases that have it counts as one prediction more; so it alone decides where it always was found.
    """
    found = {}
    for label in sorted({str(row["label"]) for row in rows}):
        own = [row for row in rows if str(row["label"]) == label]
        without = [row["dice"] is not None for row in own if row["expected"] is None]
        usual = fmean(row["dice"] is not None for row in own)
        found[label] = round((sum(without) + usual) / (len(without) + 1), 6)
    return found


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
        lacking = any(value is None and dice[label] is not None for label, value in by_label.items())
        found.append(CaseDoubt(case, mean, lacking or (mean is not None and mean < rule.look_below), dice))
    return sorted(found, key=lambda one: (one.mean_dice is None, one.mean_dice or 0.0, one.case))


def _dice(rule: DoubtRule, label: str, expected: float | None) -> float | None:
    """0 where nothing was found of a label that is mostly there nevertheless; None where it likely is not."""
    if expected is None:
        return 0.0 if rule.missed.get(label, 0.0) > MOSTLY else None
    if label not in rule.lines:
        return None
    intercept, slope = rule.lines[label]
    return round(min(1.0, max(0.0, intercept + slope * expected)), 4)
