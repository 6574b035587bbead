"""Rules of geometry: the spacing networks see, the patch (roi_size) they see it in, and how often they halve it.

Sources: "nnU-Net": Isensee et al., Nature Methods 18 (2021), supplementary note 2; "Auto3DSeg": MONAI 1.6's
documented SegResNet recipe. Spacings in mm, sizes in voxels, axes in RAS order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from autoseg.planning.statistics import Machine, Statistics, Triple

NEAR = 0.05  # of the target: where all cases are no further off, those that are not are left as they are
ANISOTROPY = 3.0  # nnU-Net: an axis three times coarser than the finest is anisotropic
GROWTH = 1.15  # Auto3DSeg: the patch may outgrow the median size so far
# of a case's size, on a CPU: a patch as large does (hippocampus, 36x50x35 voxels: 32x48x32 for 40x56x40 makes 1.3 times
# the steps in 100 s of a core, and scores 0.0089 more)
NEARLY = 0.85
CPU_PATCH_VOXELS = 160_000  # a step of 16 filters at batch 2 then takes under a second on two cores
GPU_PATCH_VOXELS = 224 * 224 * 144  # Auto3DSeg
SMALLEST_BOTTLENECK = 4  # nnU-Net stops halving an axis below 4 voxels


@dataclass(frozen=True)
class Patch:
    """A patch of `size` voxels, halved along axis k `halvings[k]` times; size is a multiple of 2 ** halvings."""

    size: tuple[int, int, int]
    levels: int
    halvings: tuple[int, int, int]


def target_spacing(stats: Statistics) -> tuple[list[float], str]:
    """The spacing to resample to: the median of each axis; on an anisotropic one its 10th percentile (nnU-Net)."""
    median = stats.spacing_median
    coarse = max(range(3), key=lambda axis: median[axis])
    if median[coarse] > ANISOTROPY * min(median):
        spacing = list(median)
        spacing[coarse] = max(stats.spacing_tenth[coarse], *(median[a] for a in range(3) if a != coarse))
        return _rounded(spacing), f"median; axis {coarse} is over {ANISOTROPY:g} times coarser: its 10th percentile"
    return _rounded(median), "median spacing of the cases on each axis"


def resample_needed(stats: Statistics) -> tuple[bool, str]:
    """Whether spacings differ enough to resample (Auto3DSeg: p0.5 under half or p99.5 over 1.5 times the target).

    Stricter than Auto3DSeg: any case off by over 5 % is resampled, for sizes in mm carry meaning; data of one
    spacing is left as it is.
    """
    target = target_spacing(stats)[0]
    lowest = min(stats.spacing_low[a] / target[a] for a in range(3))
    highest = max(stats.spacing_high[a] / target[a] for a in range(3))
    needed = lowest < 1 - NEAR or highest > 1 + NEAR
    return needed, f"spacings lie between {lowest:.2f} and {highest:.2f} of the target"


def median_size(stats: Statistics, spacing: list[float]) -> Triple:
    """Median cropped size in voxels after resampling to `spacing`."""
    sizes = [stats.cropped_shape_median[a] * stats.spacing_median[a] / spacing[a] for a in range(3)]
    return sizes[0], sizes[1], sizes[2]


@dataclass(frozen=True)
class PatchRule:
    """What a family asks of its patches.

    `levels`: resolutions at most, or, where `fixed`, always and along every axis: shorter axes are then padded.
    `voxels_cpu`, `voxels_gpu`: the most a patch may have there. `smallest_batch` and `largest_batch` bound the patches
    of a step, which together have the voxels of `smallest_batch` patches of the most voxels. `batch_cpu`: patches of a
    step there, instead.
    """

    levels: int
    fixed: bool = False
    voxels_cpu: int = CPU_PATCH_VOXELS
    voxels_gpu: int = GPU_PATCH_VOXELS
    smallest_batch: int = 2
    largest_batch: int = 2
    batch_cpu: int | None = None

    def voxels(self, machine: Machine) -> int:
        return self.voxels_gpu if machine.kind == "cuda" else self.voxels_cpu


def plan_patch(
    stats: Statistics,
    spacing: list[float],
    machine: Machine,
    rule: PatchRule,
    bytes_per_voxel: float,
    slice_axis: int | None = None,
) -> tuple[Patch, str]:
    """The patch for a network that keeps `bytes_per_voxel` of activations; one plane across `slice_axis`, if given.

    Starts from the median size, shrinks the axis longest in mm until the voxels fit the device's budget (70 % of
    its memory for a smallest batch, or the rule's voxels), then rounds to the network's stride: down, and up again
    along the axes that lost most as long as the patch stays within GROWTH of the budget and of the median size.
    """
    budget = min(rule.voxels(machine), int(0.7 * machine.memory / (bytes_per_voxel * rule.smallest_batch)))
    median = median_size(stats, spacing)
    seen = [axis for axis in range(3) if axis != slice_axis]
    least = 2.0 ** (rule.levels - 1) if rule.fixed else 1.0
    size = [max(least, s) if axis in seen else 1.0 for axis, s in enumerate(median)]
    while math.prod(size) > budget and any(size[a] > least for a in seen):
        axis = max((a for a in seen if size[a] > least), key=lambda a: size[a] * spacing[a])
        size[axis] = max(least, 0.97 * size[axis])
    halvings, levels = _halvings(size, spacing, rule, seen)
    enough = 1.0 if machine.kind == "cuda" else NEARLY
    shape = _rounded_to_strides(size, median, spacing, [2**h for h in halvings], budget, enough)
    reason = (
        f"median size {'x'.join(f'{m:.0f}' for m in median)} within {budget} voxels ({machine.kind}), "
        f"multiples of {'x'.join(str(2**h) for h in halvings)}"
    )
    return Patch((shape[0], shape[1], shape[2]), levels, halvings), reason


def _rounded_to_strides(
    size: list[float], median: Triple, spacing: list[float], strides: list[int], budget: int, enough: float
) -> tuple[int, int, int]:
    """Multiples of the strides near `size`, not larger where the next smaller one has the share `enough` of a case;
    never one voxel at the deepest level, which cannot be normalised.
    """
    shape = [max(stride, math.floor(s / stride + 1e-6) * stride) for s, stride in zip(size, strides, strict=True)]
    open_axes = {axis for axis in range(3) if shape[axis] < min(size[axis], enough * median[axis])}
    while open_axes:
        axis = max(open_axes, key=lambda a: (size[a] - shape[a]) * spacing[a])
        grown = [n + strides[axis] * (a == axis) for a, n in enumerate(shape)]
        if math.prod(grown) <= GROWTH * budget and grown[axis] <= max(GROWTH * median[axis], strides[axis]):
            shape = grown
        open_axes.discard(axis)
    if shape == strides and max(strides) > 1:
        shape[max(range(3), key=lambda a: size[a] * spacing[a])] *= 2
    return shape[0], shape[1], shape[2]


def planar(roi_size: Sequence[int], slice_axis: int | None) -> list[int]:
    """A patch as a network of slices takes it: 1 along `slice_axis`, which two sizes leave out; others as they are.

    Of three sizes the one across the planes is put aside: a 1, wherever it stands, else the one along `slice_axis`.
    """
    size = [int(n) for n in roi_size]
    if slice_axis is None:
        return size
    if len(size) == 3:
        size.pop(slice_axis if size[slice_axis] == 1 or 1 not in size else size.index(1))
    return [*size[:slice_axis], 1, *size[slice_axis:]]


def halved_patch(settings: Mapping[str, Any]) -> list[int] | None:
    """The patch of a bundle's `settings`, half as long along the axis that is longest in mm, in whole `roi_multiple`.

    None where that is not said, or where the network would be left with one voxel at its deepest level, which cannot
    be normalised.
    """
    multiple, size = settings["roi_multiple"], [int(n) for n in settings["roi_size"]]
    for axis in sorted(range(3), key=lambda a: -size[a] * float(settings["resample_to_spacing"][a])):
        if multiple and size[axis] > multiple[axis]:
            half = max(1, size[axis] // (2 * multiple[axis])) * multiple[axis]
            smaller = [half if a == axis else n for a, n in enumerate(size)]
            if math.prod(smaller) > math.prod(multiple):
                return smaller
    return None


def plan_batch(patch: Patch, machine: Machine, rule: PatchRule, bytes_per_voxel: float) -> tuple[int, str]:
    """Patches of a step: small ones are more, within the rule and 70 % of the memory."""
    if machine.kind != "cuda" and rule.batch_cpu is not None:
        return rule.batch_cpu, "more steps in the same time"
    voxels = math.prod(patch.size)
    by_rule = min(rule.largest_batch, rule.smallest_batch * rule.voxels(machine) // voxels)
    by_memory = int(0.7 * machine.memory / (bytes_per_voxel * voxels))
    batch = max(1, rule.smallest_batch, min(by_rule, by_memory))
    return batch, f"{batch} x {voxels} voxels, between {rule.smallest_batch} and {rule.largest_batch} patches"


def _halvings(
    size: list[float], spacing: list[float], rule: PatchRule, seen: list[int]
) -> tuple[tuple[int, int, int], int]:
    """How often each axis is halved (never one that is not `seen`), and the number of levels.

    Coarse axes wait until the finer ones have caught up (a factor of two each time), as SegResNetDS does for a
    given resolution; a network of slices halves both of its axes alike. No axis falls under SMALLEST_BOTTLENECK voxels.
    """
    if rule.fixed:
        first, second, third = (rule.levels - 1 if a in seen else 0 for a in range(3))
        return (first, second, third), rule.levels
    behind = [math.floor(math.log2(max(spacing) / s) + 1e-6) if len(seen) == 3 else 0 for s in spacing]
    levels = rule.levels
    while levels > 1:
        halvings = [max(0, levels - 1 - max(behind) + b) if a in seen else 0 for a, b in enumerate(behind)]
        if all(size[a] / 2 ** halvings[a] >= min(SMALLEST_BOTTLENECK, size[a]) for a in seen):
            return (halvings[0], halvings[1], halvings[2]), levels
        levels -= 1
    return (0, 0, 0), 1


def _rounded(spacing: list[float] | Triple) -> list[float]:
    """Six significant digits: sub-micrometre spacings must not round to 0."""
    return [float(f"{value:.6g}") for value in spacing]
