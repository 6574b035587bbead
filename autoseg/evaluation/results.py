"""The records of an evaluation, its means, and its files: evaluation.json and the table of cases as CSV."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from autoseg.errors import Fault, InputError
from autoseg.evaluation.metrics import METRICS
from autoseg.evaluation.statistics import Interval, bootstrap_class_mean, bootstrap_mean
from autoseg.records import SCHEMA_VERSION, from_plain
from autoseg.workspace import atomic_file, read_json, write_json

PRESENCES = ("both", "missed", "spurious", "absent")


@dataclass(frozen=True)
class CaseScore:
    """The metrics of one label in one case; NaN where one is not defined.

    `presence`: "both" hold the label, the prediction "missed" it, it is "spurious" there, or it is "absent" from both.
    """

    case: str
    label: int
    presence: str
    dice: float
    iou: float
    sensitivity: float
    specificity: float
    precision: float
    hd95: float
    asd: float
    surface_dice: float
    volume_difference: float
    relative_volume_difference: float

    def value(self, metric: str) -> float:
        """The value of one of METRICS."""
        return float(getattr(self, metric))


@dataclass(frozen=True)
class Evaluation:
    """Scores of a set of cases.

    `dice` and `metrics` hold the mean of each metric over cases by label value, `means` that over cases, then over
    labels; `counts` how often a label was in both, missed, spurious, absent; `labels` the names.
    """

    mean_dice: float
    dice: dict[str, Interval]
    metrics: dict[str, dict[str, Interval]]
    means: dict[str, Interval]
    counts: dict[str, dict[str, int]]
    labels: dict[str, str]
    tolerance_mm: float
    cases: tuple[CaseScore, ...]
    warnings: tuple[str, ...] = field(default=())


def summarize(
    scores: Sequence[CaseScore], names: Mapping[str, str], tolerance_mm: float = 1.0, warnings: Sequence[str] = ()
) -> Evaluation:
    """Means with intervals over cases, by metric and label and over the labels; `names` says which labels count."""
    rows: dict[str, dict[str, CaseScore]] = {}
    for score in scores:
        rows.setdefault(score.case, {})[str(score.label)] = score
    metrics: dict[str, dict[str, Interval]] = {}
    means: dict[str, Interval] = {}
    for metric in METRICS:
        table = np.array(
            [[row[label].value(metric) if label in row else math.nan for label in names] for row in rows.values()]
        ).reshape(len(rows), len(names))
        known = ~np.isnan(table)
        metrics[metric] = {
            label: Interval(*bootstrap_mean(table[:, column]), int(known[:, column].sum()))
            for column, label in enumerate(names)
        }
        means[metric] = Interval(*bootstrap_class_mean(table), int(known.any(1).sum()))
    counts = {
        label: {
            presence: sum(1 for row in rows.values() if label in row and row[label].presence == presence)
            for presence in PRESENCES
        }
        for label in names
    }
    return Evaluation(
        mean_dice=means["dice"].mean,
        dice=metrics["dice"],
        metrics=metrics,
        means=means,
        counts=counts,
        labels=dict(names),
        tolerance_mm=tolerance_mm,
        cases=tuple(scores),
        warnings=tuple(warnings),
    )


def write_evaluation(evaluation: Evaluation, json_path: str | Path, csv_path: str | Path | None = None) -> None:
    """Write evaluation.json and, where a path is given, one row a case and label as CSV (an empty cell: no value)."""
    if csv_path is not None and Path(csv_path).absolute() == Path(json_path).absolute():
        raise InputError(
            [Fault(str(json_path), "output", "is the name of the JSON file and of its table: end it in .json")]
        )
    try:
        write_json(json_path, evaluation)
        if csv_path is not None:
            _write_table(evaluation, csv_path)
    except OSError as error:
        raise InputError(
            [Fault(str(error.filename or json_path), "output", f"cannot be written: {error.strerror}")]
        ) from error


def _write_table(evaluation: Evaluation, path: str | Path) -> None:
    with atomic_file(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["case", "label", "name", "presence", *METRICS])
        for score in evaluation.cases:
            values = (score.value(metric) for metric in METRICS)
            cells = ["" if math.isnan(value) else f"{value:.6g}" for value in values]
            name = evaluation.labels.get(str(score.label), "")
            writer.writerow([score.case, score.label, name, score.presence, *cells])


def read_evaluation(path: str | Path) -> Evaluation:
    """Read what `write_evaluation` wrote; an InputError where the file is none, or of another version."""
    plain = read_json(path)
    try:
        if plain["schema_version"] != SCHEMA_VERSION:
            raise ValueError(f"schema_version is {plain['schema_version']}, this version reads {SCHEMA_VERSION}")
        return from_plain(Evaluation, plain)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise InputError([Fault(str(path), "", f"is not an evaluation: {error}")]) from error
