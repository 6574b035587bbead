"""The windows in which volumes are predicted: how many there are, and with how few of them where time is short. Pure.

Measured by cross-validation of networks of 5 minutes (see `benchmarks/windows.py`): half the windows, which overlap by
a quarter instead of a half, cost up to 0.001 of Dice; half of those again, not mirrored, cost 0.001 to 0.007.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Container, Mapping, Sequence
from typing import Any

FEWER_OVERLAP = 0.25
# of all time, that windows may take at each level but the last: as planned, with less overlap, not mirrored either
MOST_SHARES = (0.05, 0.2)
LEVELS = range(len(MOST_SHARES) + 1)
Shapes = tuple[tuple[int, ...], ...]


def fewer_windows(settings: Mapping[str, Any], level: int, said: Container[str] = ()) -> dict[str, Any]:
    """The hyper-parameters that differ from the planned ones at a level; what was `said` stays."""
    wanted: list[tuple[str, Any]] = [
        ("overlap", min(FEWER_OVERLAP, float(settings["overlap"]))),
        ("mirror_axes_inference", []),
    ]
    return {key: value for key, value in wanted[:level] if key not in said and settings[key] != value}


def level_within(shares: Sequence[float | None]) -> int:
    """The first level whose windows take no more than their share of the time, the last one where none does.

    Of those that take as much as one before, the first. None: nothing is worth training at a level.
    """
    level = LEVELS[-1]
    for number, most in enumerate(MOST_SHARES):
        share = shares[number]
        if share is not None and share <= most:
            level = number
            break
    return level if shares[level] is None else shares.index(shares[level])


def passes(shape: Sequence[int], settings: Mapping[str, Any]) -> int:
    """How many windows of a volume a network is asked for, mirrored ones included."""
    mirrorings: int = 2 ** len(settings["mirror_axes_inference"])
    return mirrorings * windows(shape, settings["roi_size"], float(settings["overlap"]))


@functools.lru_cache(maxsize=8)
def windows_of(shapes: Shapes, patch: tuple[int, ...], overlap: float) -> int:
    """The windows of all these volumes together; asked for at every step."""
    return sum(windows(shape, patch, overlap) for shape in shapes)


def windows(shape: Sequence[int], patch: Sequence[int], overlap: float) -> int:
    """How many sliding windows of `patch` voxels cover a volume, one overlapping the next by a share of `overlap`."""
    steps = [max(1, int(size * (1 - overlap))) for size in patch]
    return math.prod(max(0, -(-(n - size) // step)) + 1 for n, size, step in zip(shape, patch, steps, strict=True))
