"""The records of the analysis: what is known of one case after its files were read once. Numbers only."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from autoseg.errors import Fault


@dataclass(frozen=True)
class Pool:
    """Intensities of one channel within some voxels of a case: exact moments and a sample of the distribution.

    `sample` holds the quantiles at the midpoints of equal strata, so that a case counts the same in a pool over
    cases however many voxels it has (as nnU-Net's fixed number of voxels a case), without chance.
    """

    n: int
    mean: float
    std: float
    min: float
    max: float
    sample: tuple[float, ...]


@dataclass(frozen=True)
class Place:
    """Where a label lies in its case, in mm along the RAS axes of the voxels: the mean of its voxels' places, counted
    from the first voxel, and their standard deviation along each axis.
    """

    centre: tuple[float, ...]
    spread: tuple[float, ...]


@dataclass(frozen=True)
class CaseExtras:
    """What planning needs beyond MONAI's statistics. Spacing in mm, sizes in voxels, all in RAS axis order.

    `cropped_shape` bounds the voxels above their channel's minimum, in any channel; `foreground_extent` bounds the
    labelled voxels (None: no label, or an empty one). `foreground` has one pool a channel over the labelled voxels
    (empty without), `nonzero` one over all voxels but zeros (None for a channel of zeros). `places`: of every label
    value above 0 that occurs.
    """

    channels: int
    dtype: str
    orientation: str
    spacing: tuple[float, ...]
    shape: tuple[int, ...]
    cropped_shape: tuple[int, ...]
    foreground_fraction: float | None
    foreground_extent: tuple[int, ...] | None
    foreground: tuple[Pool, ...]
    nonzero: tuple[Pool | None, ...]
    constant: bool
    places: dict[int, Place] = field(default_factory=dict)


@dataclass(frozen=True)
class CaseReport:
    """One case, read once. `counts` are voxels by label value (0 included; empty without a readable label map).

    `monai` is the entry of `stats_by_cases` as MONAI's DataAnalyzer writes it; it and `extras` are empty where the
    image could not be read. `content_hash` is equal for images of equal voxels, whatever the file is called.
    """

    case: str
    image: tuple[str, ...]
    label: str | None
    faults: tuple[Fault, ...] = ()
    warnings: tuple[Fault, ...] = ()
    counts: dict[int, int] = field(default_factory=dict)
    monai: dict[str, Any] = field(default_factory=dict)
    extras: CaseExtras | None = None
    content_hash: str = ""


@dataclass(frozen=True)
class CheckResult:
    """What is wrong with the data: faults must be mended before a run, warnings should be known."""

    faults: tuple[Fault, ...]
    warnings: tuple[Fault, ...]


def label_counts(reports: Iterable[CaseReport]) -> dict[str, dict[int, int]]:
    """Voxels by label value (0 included) of every case that has a readable label map."""
    return {report.case: dict(report.counts) for report in reports if report.counts}


def discovered_labels(reports: Iterable[CaseReport]) -> dict[int, str]:
    """The label values found in any case, without 0 and negative ones, named `class_<value>`."""
    values = {value for report in reports for value, voxels in report.counts.items() if voxels and value > 0}
    return {value: f"class_{value}" for value in sorted(values)}
