"""What families of networks say out of fold, mixed in any shares, and how right that is. No torch.

A case is answered by the network of each family that has not seen it; so a mixture of families stands for an ensemble
of theirs, but for what it gains by having several folds of each.
"""

from __future__ import annotations

import functools
import logging
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from autoseg.bundles.marks import out_of_fold_file
from autoseg.engine.out_of_fold import LEAST, NOTHING, OutOfFold, together
from autoseg.errors import InputError, NoResultError
from autoseg.evaluation import Scored, mean_dice, nesting
from autoseg.evaluation.regions import Nesting, bits_of_channels, bits_of_values

IN_MEMORY = 2 * 2**30  # bytes of files that are read once; the others each time
ENOUGH = 0.5  # of the cases that the family with the most has answered: one with fewer takes no part
SIGN_SECONDS = 20.0  # between two signs of life
Shares = tuple[float, ...]  # of each family, in their order; they sum up to 1
Scores = dict[str, float]  # Dice by label value or number of the region, as text
logger = logging.getLogger(__name__)


class NoTimeError(NoResultError):
    """The deadline is over."""


class Mixture(NamedTuple):
    """Mixed probabilities of a case in a box, [K, x, y, z] float32 of the foreground, and what is true there."""

    probabilities: npt.NDArray[np.float32]
    reference: npt.NDArray[Any]
    total: Mapping[int, int]
    voxel: float


class Answers:
    """The files of `families` (bundles by fold), for the cases that all of them have answered.

    A family that has answered far fewer cases than another takes no part, a file that cannot be read costs its case.
    `deadline`: seconds since the epoch, from when on reading raises NoTimeError.
    """

    def __init__(
        self, families: Mapping[str, Mapping[int, Path]], cases: Mapping[str, int], scored: Scored, deadline: float
    ):
        self.scored, self.deadline, self.keys = scored, deadline, sorted(scored.names)
        self._said = time.monotonic()
        found = {
            name: {case: out_of_fold_file(folds[fold], case) for case, fold in cases.items() if fold in folds}
            for name, folds in families.items()
        }
        found = {name: {case: path for case, path in own.items() if path.is_file()} for name, own in found.items()}
        most = max((len(own) for own in found.values()), default=0)
        self.families = tuple(name for name, own in found.items() if own and len(own) >= ENOUGH * most)
        self.files: dict[str, dict[str, Path]] = {}
        self.fold: dict[str, int] = {}
        self._read: dict[str, dict[str, OutOfFold]] = {}
        self._room = IN_MEMORY
        self._scores: dict[Shares, dict[str, Scores]] = {}
        for case, fold in cases.items():
            if self.families and all(case in found[name] for name in self.families):
                self.files[case] = {name: found[name][case] for name in self.families}
                try:
                    self.of_case(case)
                except InputError as error:
                    logger.warning("%s takes no part: %s", case, error)
                    del self.files[case]
                else:
                    self.fold[case] = fold

    @property
    def cases(self) -> list[str]:
        return list(self.files)

    def shares(self, weights: Mapping[str, float]) -> Shares:
        """By family, of weights by its name."""
        total = sum(weights.values())
        return tuple(round(weights.get(name, 0.0) / total, 6) for name in self.families)

    def alive(self, doing: str) -> None:
        """A sign of life now and then; NoTimeError from the deadline on."""
        if time.time() > self.deadline:
            raise NoTimeError("there was no time")
        if time.monotonic() - self._said > SIGN_SECONDS:
            self._said = time.monotonic()
            logger.info("%s", doing)

    def of_case(self, case: str) -> dict[str, OutOfFold]:
        """What each family says of a case."""
        self.alive(f"reading {case}")
        if case in self._read:
            return self._read[case]
        found = {name: OutOfFold.load(path) for name, path in self.files[case].items()}
        size = sum(one.probabilities.nbytes + one.reference.nbytes for one in found.values())
        if size <= self._room:
            self._room -= size
            self._read[case] = found
        return found

    def mixture(self, case: str, shares: Shares) -> Mixture:
        """What families say of a case together."""
        return self.mixed(self.of_case(case), shares)

    def mixed(self, found: Mapping[str, OutOfFold], shares: Shares) -> Mixture:
        """What families that say this say together."""
        box, places = together(found)
        first = next(iter(found.values()))
        shape = tuple(place.stop for place in box)
        mixture = np.zeros((len(first.probabilities), *shape), np.float32)
        reference = np.zeros(shape, first.reference.dtype)
        for name, share in zip(self.families, shares, strict=True):
            place = places[name]
            reference[place] = found[name].reference
            if share:
                mixture[:, place[0], place[1], place[2]] += np.float32(share) * found[name].probabilities
        return Mixture(mixture, reference, first.total, first.voxel)

    def scores(self, wanted: Iterable[Shares]) -> list[dict[str, Scores]]:
        """Dice by case, then by label, of mixtures: each case is read once for all of them."""
        wanted = list(wanted)
        missing = [shares for shares in dict.fromkeys(wanted) if shares not in self._scores]
        made: dict[Shares, dict[str, Scores]] = {shares: {} for shares in missing}
        for case in self.files if missing else ():
            found = self.of_case(case)
            for shares in missing:
                mixture = self.mixed(found, shares)
                made[shares][case] = dice(mixture, self.decided(mixture.probabilities), self.scored)
        self._scores |= made
        return [self._scores[shares] for shares in wanted]

    @functools.cached_property
    def _nesting(self) -> Nesting | None:
        return nesting(self.scored.regions)

    def decided(self, probabilities: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
        """Label values [x, y, z] of probabilities of the foreground, or the bits of regions, as a prediction's file
        would hold them (see `Classes.decide`).
        """
        regions = self.scored.regions
        if not regions:
            values = np.asarray(self.keys, np.int32)
            likeliest, background = probabilities.argmax(0), 1.0 - probabilities.sum(0)
            return np.where(probabilities.max(0, initial=0.0) > background, values[likeliest], 0)
        inside = probabilities > 0.5
        if self._nesting is None:
            return bits_of_channels(np.moveaxis(inside, 0, -1))
        depths = np.asarray(self._nesting.depths, np.float32).reshape(-1, 1, 1, 1)
        innermost = np.where(inside, probabilities + depths, 0.0).argmax(0)
        bits: npt.NDArray[np.uint32] = bits_of_values(self._nesting.values, regions)[innermost]
        bits[~inside.any(0)] = 0
        return bits


def dice(mixture: Mixture, decided: npt.NDArray[Any], scored: Scored) -> Scores:
    """Dice by label of what is decided in the box: NaN where neither it nor the reference has the label."""
    found = {}
    for key in sorted(scored.names):
        mask = scored.mask(decided, key)
        total = int(np.count_nonzero(mask)) + mixture.total[key]
        inside = int(np.count_nonzero(mask & scored.mask(mixture.reference, key)))
        found[str(key)] = 2.0 * inside / total if total else math.nan
    return found


def expected(mixture: Mixture, decided: npt.NDArray[Any], scored: Scored) -> dict[str, float | None]:
    """What the probabilities expect of the Dice, as `autoseg.engine.expected` does."""
    found: dict[str, float | None] = {}
    for key, probabilities in zip(sorted(scored.names), mixture.probabilities, strict=True):
        mask = probabilities > 0.5 if scored.regions else scored.mask(decided, key)
        size = int(np.count_nonzero(mask))
        total = float(probabilities[probabilities >= LEAST].sum(dtype=np.float64))
        inside = float(probabilities[mask].sum(dtype=np.float64))
        found[str(key)] = 2 * inside / (size + total) if size or total >= NOTHING else None
    return found


def mean_of(scores: Mapping[str, Scores], cases: Sequence[str]) -> float:
    """Mean Dice over some cases."""
    return mean_dice([scores[case] for case in cases])


def by_case(scores: Mapping[str, Scores]) -> dict[str, float]:
    """Mean Dice over labels of every case that has one."""
    means = {case: mean_dice([row]) for case, row in scores.items()}
    return {case: value for case, value in means.items() if not math.isnan(value)}
