"""What planning knows of the data and of the machine, read from `datastats.yaml`, ours or MONAI's plain one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Triple = tuple[float, float, float]
Pairs = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Machine:
    """Where a job will run: `kind` is cuda, mps or cpu, `memory` the bytes its network may fill, cores of its slot."""

    kind: str
    memory: int
    cores: int


@dataclass(frozen=True)
class Intensity:
    """Pooled foreground intensities of one channel, in the image's own units, and those within a typical label."""

    mean: float
    std: float
    percentile_00_5: float
    percentile_99_5: float
    label_median: float
    label_std: float


@dataclass(frozen=True)
class Statistics:
    """The data set as planning sees it. Spacings in mm, shapes in voxels; axes in RAS order where analysis knows it.

    `voxels` and `cases_with_label` are empty when they come from MONAI's plain file, which has no counts.
    `image_dims` is 2 for pictures, 3 for volumes; `image_files` the files of a case, 1 or one a channel.
    `alike_across`: by RAS axis the pairs of label values that look alike on opposite sides; none where nobody looked.
    """

    n_cases: int
    channels: int
    spacing_median: Triple
    spacing_low: Triple  # 0.5th percentile
    spacing_tenth: Triple  # 10th percentile
    spacing_high: Triple  # 99.5th percentile
    shape_median: Triple
    cropped_shape_median: Triple
    intensity: tuple[Intensity, ...]
    label_values: tuple[int, ...]
    voxels: Mapping[str, int]
    cases_with_label: Mapping[str, int]
    image_dims: int = 3
    image_files: int = 1
    alike_across: tuple[Pairs, Pairs, Pairs] = ((), (), ())


def read_statistics(datastats: Mapping[str, Any]) -> Statistics:
    """Statistics from the mapping that `datastats.yaml` holds.

    Uses autoseg's own section where there is one; otherwise MONAI DataAnalyzer's `stats_summary`, whose foreground
    percentiles are means over cases. Raises KeyError naming what is missing.
    """
    extra = datastats.get("autoseg")
    return _from_autoseg(extra) if extra else _from_monai(datastats["stats_summary"])


def _from_autoseg(extra: Mapping[str, Any]) -> Statistics:
    spacing, shape = extra["spacing"], extra["shape"]
    return Statistics(
        n_cases=int(extra["n_cases"]),
        channels=int(extra["channels"]),
        spacing_median=_triple(spacing["median"]),
        spacing_low=_triple(spacing["percentile_00_5"]),
        spacing_tenth=_triple(spacing["percentile_10"]),
        spacing_high=_triple(spacing["percentile_99_5"]),
        shape_median=_triple(shape["median"]),
        cropped_shape_median=_triple(extra["cropped_shape"]["median"]),
        intensity=tuple(_intensity(channel, "std") for channel in extra["intensity_foreground"]),
        label_values=tuple(sorted(int(value) for value in extra["label_values"])),
        voxels=dict(extra["voxels"]),
        cases_with_label=dict(extra["cases_with_label"]),
        image_dims=int(extra.get("image_dims", 3)),
        image_files=int(extra.get("image_files", 1)),
        alike_across=_alike(extra.get("alike_across", [[], [], []])),
    )


def _from_monai(summary: Mapping[str, Any]) -> Statistics:
    image, foreground = summary["image_stats"], summary["image_foreground_stats"]["intensity"]
    channels = int(_number(image["channels"]["max"]))
    intensities = foreground if isinstance(foreground, list) else [foreground] * channels  # MONAI pools channels
    spacing = image["spacing"]
    return Statistics(
        n_cases=int(summary["n_cases"]),
        channels=channels,
        spacing_median=_triple(spacing["median"]),
        spacing_low=_triple(spacing["percentile_00_5"]),
        spacing_tenth=_triple(spacing["percentile_10_0"]),
        spacing_high=_triple(spacing["percentile_99_5"]),
        shape_median=_triple(image["shape"]["median"]),
        cropped_shape_median=_triple(image["cropped_shape"]["median"]),
        intensity=tuple(_intensity(channel, "stdev") for channel in intensities),
        label_values=tuple(sorted(int(value) for value in summary["label_stats"]["labels"])),
        voxels={},
        cases_with_label={},
        image_dims=len(_flat(image["shape"]["median"])),
    )


def _number(value: Any) -> float:
    return float(value[0] if isinstance(value, Sequence) else value)


def _triple(values: Sequence[Any]) -> Triple:
    """Three numbers; a data set of 2D images gets a third axis of one."""
    padded = [float(v) for v in _flat(values)] + [1.0, 1.0]
    return padded[0], padded[1], padded[2]


def _flat(values: Sequence[Any]) -> Sequence[Any]:
    """Of the first channel, where MONAI nests by channel."""
    while values and isinstance(values[0], Sequence) and not isinstance(values[0], str):
        values = values[0]
    return values


def _alike(across: Sequence[Any]) -> tuple[Pairs, Pairs, Pairs]:
    x, y, z = (tuple((int(a), int(b)) for a, b in pairs) for pairs in across)
    return x, y, z


def _intensity(channel: Mapping[str, Any], std: str) -> Intensity:
    return Intensity(
        mean=_number(channel["mean"]),
        std=_number(channel[std]),
        percentile_00_5=_number(channel["percentile_00_5"]),
        percentile_99_5=_number(channel["percentile_99_5"]),
        label_median=_number(channel.get("label_median", channel["mean"])),
        label_std=_number(channel.get("label_std", channel[std])),
    )
