"""How the members of an ensemble answer together: weights, temperature, and what is done to a label's voxels after."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class PostProcessing:
    """What is done to the mask of a label, in this order. A component is one of voxels that share a face.

    `fill`: holes of background become the label; `smallest_mm3`: components of less volume become background (0: none);
    `largest`: all but the largest component do.
    """

    fill: bool = False
    smallest_mm3: float = 0.0
    largest: bool = False

    def __call__(self, mask: Mask, free: Mask, voxel: float) -> Mask:
        """The mask [X, Y, Z] afterwards; holes are filled where `free`. `voxel`: volume of one in mm3."""
        if self.fill:
            flat = tuple(n for n in mask.shape if n > 1)  # a picture, say: along an axis of one voxel nothing is closed
            mask = mask | (ndimage.binary_fill_holes(mask.reshape(flat)).reshape(mask.shape) & free)
        if self.largest or self.smallest_mm3 > 0:
            components, count = ndimage.label(mask)
            sizes = np.bincount(components.reshape(-1), minlength=count + 1)
            kept = sizes * voxel >= self.smallest_mm3
            if self.largest and count:
                kept &= np.arange(count + 1) == 1 + int(np.argmax(sizes[1:]))
            kept[0] = False
            mask = kept[components]
        return mask


@dataclass(frozen=True)
class Combination:
    """`mode`: mean of the members' probabilities, or vote. `weights`: by a member's folder name, 1 for others; a vote
    has none. `temperature`: see `Predictor`. `post_processing`: by label value; of regions there is none.
    """

    mode: str = "mean"
    weights: dict[str, float] = field(default_factory=dict)
    temperature: float = 1.0
    post_processing: dict[int, PostProcessing] = field(default_factory=dict)

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> Combination:
        """From what ensemble.json holds, or an older version's, which knew the mode alone."""
        done = {int(key): PostProcessing(**how) for key, how in (plain.get("post_processing") or {}).items()}
        weights = {str(name): float(weight) for name, weight in (plain.get("weights") or {}).items()}
        return cls(str(plain.get("mode", "mean")), weights, float(plain.get("temperature") or 1.0), done)


def box_of(mask: Mask) -> tuple[slice, ...] | None:
    """The box around what is true of a mask; None where nothing is, which a mask without a voxel may be, too."""
    found: list[tuple[slice, ...]] = ndimage.find_objects(mask.astype(np.uint8)) if mask.size else []
    return found[0] if found else None


def post_processed(labels: npt.NDArray[Any], rules: Mapping[int, PostProcessing], voxel: float) -> npt.NDArray[Any]:
    """A label map [X, Y, Z] after the rules, each label in its turn; `voxel`: volume of one in mm3."""
    for value, rule in rules.items():
        mask = labels == value
        place = box_of(mask)
        if place is None:
            continue
        inside = labels[place]  # holes lie within the box of the mask
        changed = rule(mask[place], inside == 0, voxel)
        inside[mask[place] & ~changed] = 0
        inside[changed] = value
    return labels
