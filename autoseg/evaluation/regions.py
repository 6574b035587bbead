"""Regions: sets of label values that may overlap, such as the whole tumour and its core.

What regions hold of a voxel is written as bits: bit r of an integer map says that the voxel lies in region r.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

MOST = 32  # regions that fit into the bits of a map

Regions = Sequence[Sequence[int]]
Bits = npt.NDArray[np.uint32]


@dataclass(frozen=True)
class Nesting:
    """How one label map holds regions: in how many each lies (itself included), and the value it is written as."""

    depths: tuple[int, ...]
    values: tuple[int, ...]


def nesting(regions: Regions) -> Nesting | None:
    """How a label map can hold the regions without loss, or None where it cannot.

    It can where any two are disjoint or one holds the other, and each has a label value that none within it has: the
    smallest of those is what its voxels are written as, where they lie in no inner region.
    """
    sets = [frozenset(region) for region in regions]
    for a, b in itertools.combinations(sets, 2):
        if a & b and not a < b and not b < a:
            return None
    own = [s.difference(*(t for t in sets if t < s)) for s in sets]
    if not all(own):
        return None
    depths = tuple(sum(s <= t for t in sets) for s in sets)
    return Nesting(depths, tuple(min(values) for values in own))


def bits_of_values(values: Sequence[int], regions: Regions) -> Bits:
    """For each of the label values, the bits of the regions that hold it."""
    return np.array([sum(1 << r for r, region in enumerate(regions) if v in region) for v in values], np.uint32)


def bits_of_labels(labels: npt.NDArray[Any], regions: Regions) -> Bits:
    """Bits [X, Y, Z] of a label map [X, Y, Z] of whole numbers from 0 on."""
    bits: Bits = bits_of_values(range(int(labels.max()) + 1), regions)[labels]
    return bits


def bits_of_channels(channels: npt.NDArray[Any]) -> Bits:
    """Bits [X, Y, Z] of one mask a region, [X, Y, Z, R]."""
    bits = np.zeros(channels.shape[:-1], np.uint32)
    for r in range(channels.shape[-1]):
        bits |= (channels[..., r] > 0).astype(np.uint32) << r
    return bits


def region(bits: Bits, number: int) -> npt.NDArray[np.uint8]:
    """The mask of the region `number`, counted from 1 as scores count them."""
    mask: npt.NDArray[np.uint8] = (bits >> np.uint32(number - 1) & np.uint32(1)).astype(np.uint8)
    return mask
