"""Post-processing of labels, tried on out-of-fold cases. No torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from autoseg.engine.combination import PostProcessing, box_of
from autoseg.ensemble.answers import Answers, Mixture, Shares
from autoseg.evaluation import bootstrap_mean

SMALL = 0.5  # of the smallest component that any reference has: what is smaller is none
Rule = PostProcessing | None
Tried = dict[Rule, float]  # Dice of a label in a case


def smallest_components(answers: Answers) -> dict[int, dict[str, float]]:
    """By label and case, mm3 of the smallest component of the reference; infinite without one.

    One that the border of the box cuts, in which probabilities are kept, is left out.
    """
    found: dict[int, dict[str, float]] = {label: {} for label in answers.keys}
    for case in answers.cases:
        mixture = answers.mixture(case, answers.shares({answers.families[0]: 1.0}))
        for label in answers.keys:
            sizes = _whole_components(mixture.reference == label)
            found[label][case] = float(sizes.min()) * mixture.voxel if len(sizes) else math.inf
    return found


def _whole_components(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.intp]:
    """Voxels of each component that no face of the box [X, Y, Z] cuts."""
    components, _ = ndimage.label(mask)
    sizes = np.bincount(components.reshape(-1), minlength=1)
    sizes[0] = 0
    for axis in range(3):
        for end in (0, -1) if mask.shape[axis] > 1 else ():  # along one of a single voxel, a picture's, nothing is cut
            sizes[components.take(end, axis).reshape(-1)] = 0
    return sizes[sizes > 0]


class Rules:
    """The rules that may be tried on a label, by what is known of some cases."""

    def __init__(self, answers: Answers):
        self.smallest = smallest_components(answers)

    def of(self, label: int, cases: Sequence[str]) -> list[PostProcessing]:
        """Those that these cases suggest."""
        known = [self.smallest[label][case] for case in cases if math.isfinite(self.smallest[label][case])]
        small = round(SMALL * min(known, default=0.0), 3)
        rules = [PostProcessing(largest=True), PostProcessing(fill=True), PostProcessing(fill=True, largest=True)]
        return rules + [PostProcessing(fill, small) for fill in (False, True) if small]


class Trial:
    """Dice of every label in every case after every rule, as the families' `shares` decide it."""

    def __init__(self, answers: Answers, shares: Shares, rules: dict[int, set[PostProcessing]]):
        self.dice: dict[int, dict[str, Tried]] = {label: {} for label in rules}
        for case in answers.cases:
            mixture = answers.mixture(case, shares)
            decided = answers.decided(mixture.probabilities)
            for label, some in rules.items():
                answers.alive(f"post-processing of {case}")
                self.dice[label][case] = _tried(mixture, decided, label, some)

    def gains(self, label: int, rule: Rule, cases: Iterable[str]) -> list[float]:
        """What a rule adds to a label's Dice, by case; all that was marked of a label that is not there, gone, is 1."""
        found = []
        for case in cases:
            before, after = self.dice[label][case][None], self.dice[label][case][rule]
            found.append(0.0 if math.isnan(before) else 1.0 if math.isnan(after) else after - before)
        return found

    def best(self, label: int, rules: Sequence[PostProcessing], cases: Sequence[str]) -> Rule:
        """The rule that gains most by these cases, of those that gain more than noise; None without one."""
        intervals = {rule: bootstrap_mean(self.gains(label, rule, cases)) for rule in rules}
        clear = [rule for rule, (_, low, _) in intervals.items() if low > 0]
        return max(clear, key=lambda rule: intervals[rule][0], default=None)


def _tried(mixture: Mixture, decided: npt.NDArray[Any], label: int, rules: Iterable[PostProcessing]) -> Tried:
    """Dice without and with each rule: NaN where neither prediction nor reference has the label."""
    mask = decided == label
    place = box_of(mask)
    if place is None:
        return dict.fromkeys((None, *rules), 0.0 if mixture.total[label] else math.nan)
    mask, free, reference = mask[place], decided[place] == 0, mixture.reference[place] == label
    found: Tried = {}
    for rule in (None, *rules):
        changed = mask if rule is None else rule(mask, free, mixture.voxel)
        size = int(np.count_nonzero(changed)) + mixture.total[label]
        found[rule] = 2.0 * int(np.count_nonzero(changed & reference)) / size if size else math.nan
    return found
