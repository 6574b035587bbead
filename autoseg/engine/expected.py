"""What probabilities say of the Dice that their own decision will have, where no reference is there to ask."""

from __future__ import annotations

import numpy as np
import torch

from autoseg.engine.classes import Classes, argmax
from autoseg.engine.out_of_fold import LEAST, NOTHING


class ExpectedDice:
    """Sums over a case's voxels, chunk by chunk: of a class or region with probability p in each voxel and mask m,

    2 sum(m p) / (sum(m) + sum(p)), which is the Dice of the mask where every voxel is foreground with its probability;
    one under LEAST counts as none, or the many of a large image would add up. Networks that are too sure of themselves
    make it too high: `autoseg.ensemble.doubt` learns by how much.
    """

    def __init__(self, classes: Classes):
        self.classes = classes
        self._inside, self._decided, self._total = (np.zeros(classes.outputs) for _ in range(3))

    def add(self, probabilities: torch.Tensor) -> None:
        """Add the voxels of combined probabilities [K, ...]."""
        flat = probabilities.flatten(1)
        if self.classes.regions:
            mask = flat > 0.5
            inside, decided = (flat * mask).sum(1, dtype=torch.float64), mask.sum(1)
        else:
            index = argmax(flat)
            decided = torch.bincount(index, minlength=self.classes.outputs)
            inside = torch.bincount(index, flat.gather(0, index[None])[0].double(), minlength=self.classes.outputs)
        self._inside += inside.double().cpu().numpy()
        self._decided += decided.double().cpu().numpy()
        counted = torch.where(flat >= LEAST, flat, 0.0)
        self._total += counted.sum(1, dtype=torch.float64).cpu().numpy()

    def by_key(self) -> dict[int, float | None]:
        """Expected Dice by label value or number of the region; None where nothing is decided, and nothing expected."""
        first = 0 if self.classes.regions else 1
        found: dict[int, float | None] = {}
        for number, key in enumerate(self.classes.keys, first):
            decided, total = float(self._decided[number]), float(self._total[number])
            absent = decided == 0 and total < NOTHING
            found[key] = None if absent else 2 * float(self._inside[number]) / (decided + total)
        return found


def uncertainty(probabilities: torch.Tensor, regions: bool) -> torch.Tensor:
    """Percent (uint8, 0 to 100) by voxel of combined probabilities [K, ...] that speaks against what is decided there:
    against the likeliest class, or against the least certain of the regions.
    """
    against = torch.minimum(probabilities, 1 - probabilities).amax(0) if regions else 1 - probabilities.amax(0)
    return against.mul(100).round_().clamp_(0, 100).to(torch.uint8)
