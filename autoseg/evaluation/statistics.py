"""Means over cases and classes, and how sure they are."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

CONFIDENCE = 95.0  # per cent
DRAWS = 1000


@dataclass(frozen=True)
class Interval:
    """A mean over cases, its 95 % interval, and the number of cases that it is of (those with a value)."""

    mean: float
    low: float
    high: float
    n: int


def bootstrap_mean(values: Iterable[float], seed: int = 0, draws: int = DRAWS) -> tuple[float, float, float]:
    """(mean, low, high): the mean of the values that are not NaN, and its 95 % percentile bootstrap interval.

    Cases are drawn with replacement (Efron, 1979); the same values and seed give the same interval. NaN three times
    where there is no value; with one value the interval is that value and says nothing.
    """
    known = [float(value) for value in values if not math.isnan(value)]
    return bootstrap_class_mean(np.asarray(known)[:, None], seed, draws)


def bootstrap_class_mean(
    table: npt.NDArray[np.float64], seed: int = 0, draws: int = DRAWS
) -> tuple[float, float, float]:
    """(mean, low, high) of the mean over cases, then over classes, of a table [cases, classes] with NaN for no value.

    Whole cases are drawn, all classes of one together, as their errors go together.
    """
    cases = len(table)
    if not cases or np.isnan(table).all():
        return math.nan, math.nan, math.nan
    times_drawn = np.random.default_rng(seed).multinomial(cases, np.full(cases, 1.0 / cases), size=draws)
    mean = float(_class_means(np.ones((1, cases)), table)[0])
    means = _class_means(times_drawn.astype(float), table)
    edge = (100.0 - CONFIDENCE) / 2
    low, high = np.nanpercentile(means, [edge, 100.0 - edge])
    return mean, min(float(low), mean), max(float(high), mean)  # equal values differ by rounding


def _class_means(weights: npt.NDArray[np.float64], table: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """For each row of `weights` [draws, cases]: the weighted mean over cases, then over the classes that have one."""
    known = ~np.isnan(table)
    sums, counts = weights @ np.where(known, table, 0.0), weights @ known
    there = counts > 0
    by_class = np.divide(sums, counts, out=np.zeros_like(sums), where=there)
    classes = there.sum(1)
    means: npt.NDArray[np.float64] = np.full(len(weights), math.nan)
    np.divide(by_class.sum(1), classes, out=means, where=classes > 0)
    return means


def mean_dice_by_label(table: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean over cases by label value of what `dice_by_label` gave for each case; NaN is left out."""
    labels = sorted({label for row in table for label in row}, key=int)
    return {label: _mean(row[label] for row in table if label in row) for label in labels}


def mean_dice(table: Sequence[Mapping[str, float]]) -> float:
    """The one definition of mean Dice: over cases, then over classes; a class that no case has is left out."""
    return _mean(mean_dice_by_label(table).values())


def _mean(values: Iterable[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan
