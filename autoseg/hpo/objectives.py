"""What a sweep looks for: a metric, classes by weight, seconds or memory; read from a trial's scores.json."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from autoseg.errors import Faults, nearest
from autoseg.evaluation import METRICS

SMALLER = ("hd95", "asd", "volume_difference", "relative_volume_difference")  # is better
COSTS = {"seconds": "seconds_a_case", "memory": "memory"}  # objective -> key of scores.json
SPELLINGS = {"mean_dice": "dice"}
FIELD = "objective"


@dataclass(frozen=True)
class Objective:
    """One aim of a sweep: a metric over the validation cases (`weights` by label or region, 1 where empty), or a cost.

    `seconds`: of predicting a case; `memory`: bytes at the peak of the trial's process, on a GPU those of the GPU.
    """

    name: str
    metric: str | None = None
    weights: Mapping[str, float] = field(default_factory=dict)

    @property
    def direction(self) -> str:
        return "maximize" if self.metric and self.metric not in SMALLER else "minimize"

    def value(self, scores: Sequence[Mapping[str, Any]]) -> float:
        """Of a trial that was trained on one or several folds; NaN where no label of any case has a value."""
        if self.metric is None:
            return fmean(float(found[COSTS[self.name]]) for found in scores)
        return _weighted([row for found in scores for row in found["cases"]], self.metric, self.weights)

    def by_case(self, scores: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """The metric of every case, negative where less is better: more is better in any case."""
        rows: dict[str, list[Mapping[str, Any]]] = {}
        for row in (row for found in scores for row in found["cases"]):
            rows.setdefault(str(row["case"]), []).append(row)
        metric = self.metric or "dice"
        sign = -1.0 if metric in SMALLER else 1.0
        values = {case: sign * _weighted(own, metric, self.weights) for case, own in rows.items()}
        return {case: value for case, value in values.items() if not math.isnan(value)}

    def reported(self, dice: Mapping[str, Any]) -> float:
        """What a validation while training says of it, by its Dice by label: other metrics are not known then."""
        rows = [{"case": "", "label": label, "dice": value} for label, value in dice.items()]
        value = _weighted(rows, "dice", self.weights)
        return value if self.direction == "maximize" else 1.0 - value


def _weighted(rows: Sequence[Mapping[str, Any]], metric: str, weights: Mapping[str, float]) -> float:
    """Over cases, then over labels by their weight; what has no value is left out."""
    by_label: dict[str, list[float]] = {}
    for row in rows:
        value = row.get(metric)
        if value is not None and not math.isnan(value):
            by_label.setdefault(str(row["label"]), []).append(float(value))
    shares = {label: weights.get(label, 0.0 if weights else 1.0) for label in by_label}
    total = sum(shares.values())
    return sum(shares[label] * fmean(values) for label, values in by_label.items()) / total if total else math.nan


def read_objectives(given: Any, scored: Mapping[int, str] | None = None) -> tuple[Objective, ...]:
    """One objective, or two; InputError with all that is wrong.

    `given`: the name of a metric, {label: weight} (by value or name), or a list of two of them, of which the second
    may be seconds or memory. `scored`: the labels' names by value; None where they are not known yet.
    """
    faults = Faults()
    items = given if isinstance(given, (list, tuple)) else [given]
    found = [_read(item, number, scored, faults) for number, item in enumerate(items)]
    names = [objective.name for objective in found]
    if len(set(names)) < len(names):
        faults.add("", FIELD, f"{names[0]} twice: two objectives are two")
    faults.raise_if_any()
    return tuple(found)


def _read(item: Any, number: int, scored: Mapping[int, str] | None, faults: Faults) -> Objective:
    if isinstance(item, Mapping):
        return Objective("weighted_dice", "dice", _by_value(item, scored, faults))
    name = SPELLINGS.get(str(item), str(item))
    if name in METRICS:
        return Objective(f"mean_{name}", name)
    if name in COSTS:
        if not number:
            faults.add("", FIELD, f"{name} alone makes the quickest network, not a good one: give dice,{name}")
        return Objective(name)
    known = (*METRICS, *COSTS)
    faults.add("", FIELD, f"'{item}' is none of {', '.join(known)}{nearest(str(item), known)}")
    return Objective(name)


def _by_value(item: Mapping[Any, Any], scored: Mapping[int, str] | None, faults: Faults) -> dict[str, float]:
    """Weights by label value, or by a region's number, as text."""
    values = {name: str(value) for value, name in (scored or {}).items()} | {str(v): str(v) for v in scored or {}}
    for label in item:
        if scored is not None and str(label) not in values:
            faults.add("", FIELD, f"'{label}' is no label{nearest(str(label), values)}")
    return {values.get(str(label), str(label)): float(weight) for label, weight in item.items()}
