"""What families of networks say out of fold, mixed in any shares, and how right that is. No torch.

A case is answered by the network of each family that has not seen it; so a mixture of families stands for an ensemble
of theirs, but for what it gains by having several folds of each.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from autoseg.bundles.marks import out_of_fold_file
from autoseg.engine.out_of_fold import LEAST, OutOfFold, mask_of, together
from autoseg.errors import NoResultError
from autoseg.evaluation import Scored, mean_dice

IN_MEMORY = 2 * 2**30  # bytes of files that are read once; the others each time
Shares = tuple[float, ...]  # of each family, in their order; they sum up to 1
Scores = dict[str, float]  # Dice by label value or number of the region, as text


class Mixture(NamedTuple):
    """Mixed probabilities of a case in a box, [K, x, y, z] float32 of the foreground, and what is true there."""

    probabilities: npt.NDArray[np.float32]
    reference: npt.NDArray[Any]
    total: Mapping[int, int]
    voxel: float


class Answers:
    """The files of `families` (bundles by fold), for the cases that all of them have answered.

    `values`: label values without background, or numbers of the regions. `deadline`: seconds since the epoch, from when
    on reading raises NoResultError.
    """

    def __init__(
        self, families: Mapping[str, Mapping[int, Path]], cases: Mapping[str, int], scored: Scored, deadline: float
    ):
        self.families, self.scored, self.deadline = tuple(families), scored, deadline
        self.keys = sorted(scored.names)
        self.files: dict[str, dict[str, Path]] = {}
        self.fold: dict[str, int] = {}
        for case, fold in cases.items():
            files = {name: out_of_fold_file(folds[fold], case) for name, folds in families.items() if fold in folds}
            if len(files) == len(families) and all(path.is_file() for path in files.values()):
                self.files[case], self.fold[case] = files, fold
        self._read: dict[str, dict[str, OutOfFold]] = {}
        self._room = IN_MEMORY
        self._scores: dict[Shares, dict[str, Scores]] = {}

    @property
    def cases(self) -> list[str]:
        return list(self.files)

    def shares(self, weights: Mapping[str, float]) -> Shares:
        """By family, of weights by its name."""
        total = sum(weights.values())
        return tuple(round(weights.get(name, 0.0) / total, 6) for name in self.families)

    def mixture(self, case: str, shares: Shares) -> Mixture:
        """What families say of a case together."""
        found = self._found(case)
        box, places = together(found)
        first = next(iter(found.values()))
        shape = tuple(place.stop for place in box)
        mixed = np.zeros((len(first.probabilities), *shape), np.float32)
        reference = np.zeros(shape, first.reference.dtype)
        for name, share in zip(self.families, shares, strict=True):
            place = places[name]
            reference[place] = found[name].reference
            if share:
                mixed[:, place[0], place[1], place[2]] += np.float32(share) * found[name].probabilities
        return Mixture(mixed, reference, first.total, first.voxel)

    def _found(self, case: str) -> dict[str, OutOfFold]:
        if time.time() > self.deadline:
            raise NoResultError("there was no time to choose the ensemble by what its members say out of fold")
        if case in self._read:
            return self._read[case]
        found = {name: OutOfFold.load(path) for name, path in self.files[case].items()}
        size = sum(one.probabilities.nbytes + one.reference.nbytes for one in found.values())
        if size <= self._room:
            self._room -= size
            self._read[case] = found
        return found

    def scores(self, wanted: Iterable[Shares]) -> list[dict[str, Scores]]:
        """Dice by case, then by label, of mixtures: each case is read once for all of them."""
        wanted = list(wanted)
        missing = [shares for shares in dict.fromkeys(wanted) if shares not in self._scores]
        made: dict[Shares, dict[str, Scores]] = {shares: {} for shares in missing}
        for case in self.files if missing else ():
            for shares in missing:
                mixture = self.mixture(case, shares)
                made[shares][case] = dice(mixture, self.decided(mixture.probabilities), self.scored)
        self._scores |= made
        return [self._scores[shares] for shares in wanted]

    def decided(self, probabilities: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
        """Label values [x, y, z] of probabilities of the foreground, or the bits of regions; of one that lies within
        another, both.
        """
        regions = self.scored.regions
        if regions:
            bits = np.zeros(probabilities.shape[1:], np.uint32)
            for number, mask in enumerate(probabilities > 0.5):
                holding = sum(1 << r for r, region in enumerate(regions) if set(regions[number]) <= set(region))
                bits |= mask.astype(np.uint32) * np.uint32(holding)
            return bits
        likeliest, background = probabilities.argmax(0), 1.0 - probabilities.sum(0)
        values = np.asarray(self.keys, np.int32)
        return np.where(probabilities.max(0, initial=0.0) > background, values[likeliest], 0)


def dice(mixture: Mixture, decided: npt.NDArray[Any], scored: Scored) -> Scores:
    """Dice by label of what is decided in the box: NaN where neither it nor the reference has the label."""
    found = {}
    for key in sorted(scored.names):
        mask = mask_of(decided, key, scored)
        total = int(np.count_nonzero(mask)) + mixture.total[key]
        inside = int(np.count_nonzero(mask & mask_of(mixture.reference, key, scored)))
        found[str(key)] = 2.0 * inside / total if total else math.nan
    return found


def expected(mixture: Mixture, decided: npt.NDArray[Any], scored: Scored) -> dict[str, float | None]:
    """What the probabilities expect of the Dice, as `autoseg.engine.expected` does."""
    found: dict[str, float | None] = {}
    for key, probabilities in zip(sorted(scored.names), mixture.probabilities, strict=True):
        mask = mask_of(decided, key, scored)
        size = int(np.count_nonzero(mask))
        total = float(probabilities[probabilities >= LEAST].sum(dtype=np.float64))
        inside = float(probabilities[mask].sum(dtype=np.float64))
        found[str(key)] = 2 * inside / (size + total) if size + total > 0 else None
    return found


def mean_of(scores: Mapping[str, Scores], cases: Sequence[str]) -> float:
    """Mean Dice over some cases."""
    return mean_dice([scores[case] for case in cases])


def by_case(scores: Mapping[str, Scores]) -> dict[str, float]:
    """Mean Dice over labels of every case that has one."""
    means = {case: mean_dice([row]) for case, row in scores.items()}
    return {case: value for case, value in means.items() if not math.isnan(value)}
