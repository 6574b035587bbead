"""Post-processing of one label, tried on out-of-fold cases. No torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from autoseg.engine.combination import Mask, PostProcessing
from autoseg.ensemble.answers import Answers, Shares
from autoseg.evaluation import bootstrap_mean

SMALL = 0.5  # of the smallest component that any reference has: what is smaller is none


@dataclass
class _Drawn:
    """A case's mask of the label in the box around it, what is background there, and the reference."""

    mask: Mask
    free: Mask
    reference: Mask
    total: int
    voxel: float
    smallest: float  # mm3: of the reference's components; infinite without one
    found: dict[PostProcessing | None, float] = field(default_factory=dict)

    def dice(self, rule: PostProcessing | None) -> float:
        """Dice after a rule; NaN where neither prediction nor reference has the label."""
        if rule not in self.found:
            mask = self.mask if rule is None or not self.mask.size else rule(self.mask, self.free, self.voxel)
            size = int(np.count_nonzero(mask)) + self.total
            self.found[rule] = 2.0 * int(np.count_nonzero(mask & self.reference)) / size if size else math.nan
        return self.found[rule]

    def gain(self, rule: PostProcessing | None) -> float:
        """What a rule adds; all that was marked wrongly of a label that is not there, gone, is a gain of 1."""
        before, after = self.dice(None), self.dice(rule)
        return 0.0 if math.isnan(before) else 1.0 if math.isnan(after) else after - before


class Trial:
    """A label in all cases, as the families' `shares` decide it."""

    def __init__(self, answers: Answers, shares: Shares, label: int):
        self.cases: dict[str, _Drawn] = {}
        for case in answers.cases:
            mixture = answers.mixture(case, shares)
            decided = answers.decided(mixture.probabilities)
            smallest = _smallest(mixture.reference == label) * mixture.voxel
            mask = decided == label
            place: Any = next(iter(ndimage.find_objects(mask.astype(np.uint8))), None) or (slice(0, 0),) * 3
            reference = mixture.reference[place] == label
            drawn = mask[place], decided[place] == 0, reference, mixture.total[label], mixture.voxel, smallest
            self.cases[case] = _Drawn(*drawn)

    def dice(self, case: str, rule: PostProcessing | None) -> float:
        return self.cases[case].dice(rule)

    def gains(self, rule: PostProcessing | None, cases: Sequence[str]) -> list[float]:
        """What a rule adds to the label's Dice, by case."""
        return [self.cases[case].gain(rule) for case in cases]

    def best(self, cases: Sequence[str]) -> PostProcessing | None:
        """The rule that gains most by these cases, of those that gain more than noise; None without one."""
        known = [self.cases[case].smallest for case in cases if math.isfinite(self.cases[case].smallest)]
        small = round(SMALL * min(known, default=0.0), 3)
        rules = [PostProcessing(largest=True), PostProcessing(fill=True), PostProcessing(fill=True, largest=True)]
        rules += [PostProcessing(smallest_mm3=small), PostProcessing(fill=True, smallest_mm3=small)] if small else []
        intervals = {rule: bootstrap_mean(self.gains(rule, cases)) for rule in rules}
        clear = [rule for rule, (_, low, _) in intervals.items() if low > 0]
        return max(clear, key=lambda rule: intervals[rule][0], default=None)


def _smallest(mask: npt.NDArray[np.bool_]) -> float:
    """Voxels of the smallest component; infinite without one."""
    components, count = ndimage.label(mask)
    return float(np.bincount(components.reshape(-1))[1:].min()) if count else math.inf
