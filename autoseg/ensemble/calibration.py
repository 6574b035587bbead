"""The temperature that makes probabilities as sure as they are right (Guo et al., On calibration of modern neural
networks, 2017), found on out-of-fold cases. No torch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar

from autoseg.engine.out_of_fold import LEAST
from autoseg.ensemble.answers import Mixture
from autoseg.evaluation import Scored

VOXELS, ALL_VOXELS = 4000, 60_000  # most of a case, of all, among those where a class or region has LEAST or more
SMALLEST = 1e-6
RANGE = (0.4, 4.0)  # of temperatures
BINS = 15  # of the calibration error
Table = npt.NDArray[np.float64]


def drawn(mixture: Mixture, scored: Scored, cases: int = 1, seed: int = 0) -> tuple[Table, Table]:
    """(probabilities [voxels, classes, background first, or 2 of a region], ones where these are true), of one of so
    many cases.
    """
    most = max(100, min(VOXELS, ALL_VOXELS // cases))
    foreground = mixture.probabilities.reshape(len(mixture.probabilities), -1)
    masks = [scored.mask(mixture.reference, key).reshape(-1) for key in sorted(scored.names)]
    truth = np.stack(masks) if masks else np.zeros(foreground.shape, bool)
    generator = np.random.default_rng(seed)
    if scored.regions:
        pairs = [_some(p, t, generator, most) for p, t in zip(foreground, truth, strict=True)]
        p, t = (np.concatenate(values) for values in zip(*pairs, strict=True))
        return np.stack([1 - p, p], 1), np.stack([~t, t], 1).astype(float)
    place = np.flatnonzero(foreground.max(0, initial=0.0) >= LEAST)
    place = generator.permutation(place)[:most]
    p, t = foreground[:, place].T.astype(np.float64), truth[:, place].T
    p, t = np.clip(p, 0, 1), t.astype(float)
    rest = 1 - p.sum(1, keepdims=True)
    return np.hstack([np.clip(rest, 0, 1), p]), np.hstack([1 - t.sum(1, keepdims=True), t])


def _some(
    p: npt.NDArray[np.float32], t: npt.NDArray[np.bool_], generator: np.random.Generator, most: int
) -> tuple[Table, Table]:
    place = generator.permutation(np.flatnonzero(p >= LEAST))[:most]
    return np.clip(p[place].astype(np.float64), 0, 1), t[place]


def tempered(probabilities: Table, temperature: float) -> Table:
    """Probabilities [voxels, classes] at a temperature: above 1 less sure."""
    powers = np.maximum(probabilities, SMALLEST) ** (1.0 / temperature)
    return powers / powers.sum(1, keepdims=True)  # type: ignore[no-any-return]


def likelihood(probabilities: Table, truth: Table, temperature: float) -> float:
    """Mean negative log-likelihood of what is true."""
    return float(-(np.log(tempered(probabilities, temperature)) * truth).sum(1).mean())


def fitted(samples: Sequence[tuple[Table, Table]]) -> float:
    """The temperature with the least negative log-likelihood over all samples; 1 where there is no voxel."""
    p, t = (np.concatenate(tables) for tables in zip(*samples, strict=True))
    if not len(p):
        return 1.0
    low, high = np.log(RANGE)
    found = minimize_scalar(lambda log: likelihood(p, t, float(np.exp(log))), bounds=(low, high), method="bounded")
    return round(float(np.exp(found.x)), 3)


def calibration_error(probabilities: npt.NDArray[np.floating], truth: npt.NDArray[np.bool_]) -> float:
    """Expected calibration error of the probabilities of one class: over BINS of equal width, the mean distance of what
    was said from how often it is true, by voxels (Naeini et al., 2015). NaN without a voxel.
    """
    if not probabilities.size:
        return float("nan")
    place = np.clip((probabilities * BINS).astype(int), 0, BINS - 1)
    said = np.bincount(place, probabilities, BINS)
    true = np.bincount(place, truth.astype(float), BINS)
    return float(np.abs(said - true).sum() / probabilities.size)
