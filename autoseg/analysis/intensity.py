"""Distributions of intensities: exact statistics from counts by level, or from sorted values where levels are many.

Integer images (most CT and MRI files) are counted jointly by label and level in one pass, which is exact, fast and
needs no copy of the volume; the others are sorted.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from autoseg.analysis.report import Pool
from autoseg.analysis.volumes import Array

MOST_LEVELS = 1 << 17  # counts above cost more memory than sorting does
MOST_COUNTS = 1 << 23
CHUNK = 1 << 17  # voxels handled at once: their 8-byte indices stay in the processor's cache
STRATA = 1000
PERCENTILES = {"percentile_00_5": 0.5, "percentile_10_0": 10.0, "percentile_90_0": 90.0, "percentile_99_5": 99.5}


@dataclass(frozen=True)
class LabelMap:
    """An integer label map in the image's axes, and its values, ascending."""

    data: Array
    values: tuple[int, ...]


@dataclass(frozen=True)
class Distribution:
    """Values, ascending, and how often each stands (`counts` None: once each)."""

    levels: Array
    counts: Array | None = None

    @property
    def n(self) -> int:
        return int(self.levels.size if self.counts is None else self.counts.sum())

    def at(self, ranks: Array) -> Array:
        """The values at ranks 0 .. n - 1 of the sorted data, as float64."""
        if self.counts is None:
            return np.asarray(self.levels[ranks], dtype=np.float64)
        return np.asarray(self.levels[np.searchsorted(np.cumsum(self.counts), ranks, side="right")], dtype=np.float64)

    def quantiles(self, shares: Array) -> Array:
        """Linear interpolation between ranks, as NumPy's default and torch.quantile."""
        exact = (self.n - 1) * shares
        below = np.floor(exact).astype(np.int64)
        low, high = self.at(below), self.at(np.minimum(below + 1, self.n - 1))
        return np.asarray(low + (high - low) * (exact - below))

    def moments(self) -> tuple[float, float]:
        """(mean, population standard deviation), accumulated in float64 by chunks."""
        if self.counts is not None:
            weights = self.counts / self.n
            mean = float(np.dot(self.levels, weights))
            return mean, float(np.sqrt(np.dot((self.levels - mean) ** 2, weights)))
        mean = float(self.levels.mean(dtype=np.float64))
        chunks = (self.levels[i : i + CHUNK].astype(np.float64) - mean for i in range(0, self.n, CHUNK))
        return mean, float(np.sqrt(sum(float(np.dot(c, c)) for c in chunks) / self.n))

    def without_zero(self) -> Distribution:
        if self.counts is not None:
            kept = self.levels != 0
            return Distribution(self.levels[kept], self.counts[kept])
        first, last = np.searchsorted(self.levels, 0, "left"), np.searchsorted(self.levels, 0, "right")
        return Distribution(np.concatenate((self.levels[:first], self.levels[last:])))


def monai_intensity(distribution: Distribution) -> dict[str, Any]:
    """The entries of MONAI's SampleOperations; the median is the lower one, as torch's. No voxels: all 0, as there."""
    if not distribution.n:
        distribution = Distribution(np.zeros(1))
    mean, std = distribution.moments()
    n = distribution.n
    low, median, high = distribution.at(np.array([0, (n - 1) // 2, n - 1])).tolist()
    percentiles = distribution.quantiles(np.array(list(PERCENTILES.values())) / 100).tolist()
    return {
        "max": high,
        "mean": mean,
        "median": median,
        "min": low,
        "stdev": std,
        "percentile": percentiles,
        **dict(zip(PERCENTILES, percentiles, strict=True)),
    }


def pool(distribution: Distribution) -> Pool | None:
    """None where there is no voxel."""
    n = distribution.n
    if not n:
        return None
    mean, std = distribution.moments()
    strata = min(STRATA, n)
    sample = distribution.quantiles((np.arange(strata) + 0.5) / strata)
    low, high = distribution.at(np.array([0, n - 1])).tolist()
    return Pool(n, mean, std, low, high, tuple(float(f"{value:.7g}") for value in sample))


@dataclass(frozen=True)
class Channel:
    """One channel, ready to be counted: integers `data` of few `levels`, or float32 `data` (levels None)."""

    data: Array
    levels: Array | None  # intensity by data - offset
    offset: int = 0
    not_finite: int = 0

    def above(self, value: float) -> float:
        """The raw threshold t for which `data > t` says that a voxel's intensity is above `value`."""
        if self.levels is None:
            return value
        return self.offset + int(np.searchsorted(self.levels, value, side="right")) - 1

    @property
    def least(self) -> float:
        return float(self.levels[0]) if self.levels is not None else float(self.data.min())

    @property
    def highest(self) -> float:
        return float(self.levels[-1]) if self.levels is not None else float(self.data.max())


def prepare_channel(raw: Array, slope: float, inter: float) -> Channel:
    """Choose how a channel is counted. Voxels that are not finite are counted and read as the lowest finite one."""
    if raw.dtype.kind == "b":
        raw = raw.view(np.uint8)
    if raw.dtype.kind == "f" and slope == 1 and inter == 0:
        raw = _as_integers(raw)
    if raw.dtype.kind in "iu" and slope > 0:
        low, high = int(raw.min()), int(raw.max())
        if high - low < MOST_LEVELS:
            levels = np.arange(low, high + 1, dtype=np.float64) * slope + inter
            return Channel(raw, levels.astype(np.float32).astype(np.float64), low)  # as MONAI reads them
    data = raw.astype(np.float32, copy=False)
    if slope != 1 or inter != 0:
        data = data * np.float32(slope) + np.float32(inter)
    if np.isfinite(data.min()) and np.isfinite(data.max()):
        return Channel(data, None)
    wrong = ~np.isfinite(data)
    bad = int(np.count_nonzero(wrong))
    least = float(data[~wrong].min()) if bad < data.size else 0.0
    return Channel(np.where(wrong, np.float32(least), data), None, not_finite=bad)


def _as_integers(raw: Array) -> Array:
    """Floating-point voxels as int32 where they are whole numbers of a small range, else as they are."""
    low, high = float(raw.min()), float(raw.max())
    if not (abs(low) < 1 << 24 and abs(high) < 1 << 24 and high - low < MOST_LEVELS):  # NaN fails too
        return raw
    for part in slabs(raw):
        if not np.array_equal(raw[..., part], np.rint(raw[..., part])):
            return raw
    return raw.astype(np.int32)


def slabs(data: Array, size: int = CHUNK) -> Iterator[slice]:
    """Parts of the last axis (the slowest of a NIfTI) that hold about `size` voxels."""
    step = max(1, size * data.shape[-1] // max(1, data.size))
    for start in range(0, data.shape[-1], step):
        yield slice(start, start + step)


Box = tuple[slice, ...]


def bounding_box(data: Array, threshold: Any) -> Box | None:
    """The smallest box that holds every voxel above `threshold`; None where there is none."""
    plane = np.zeros(data.shape[:-1], dtype=bool)
    last = np.zeros(data.shape[-1], dtype=bool)
    for part in slabs(data):
        mask = data[..., part] > threshold
        plane |= mask.any(axis=-1)
        last[part] = mask.any(axis=tuple(range(data.ndim - 1)))
    if not last.any():
        return None
    axes = range(plane.ndim)
    seen = [np.asarray(plane.any(axis=tuple(a for a in axes if a != axis))).reshape(-1) for axis in axes]
    seen.append(last)
    ends = [(int(np.argmax(s)), len(s) - int(np.argmax(s[::-1]))) for s in seen]
    return tuple(slice(first, stop) for first, stop in ends)


def distributions(channel: Channel, label: LabelMap | None, box: Box) -> Iterator[tuple[str | int, Distribution]]:
    """("whole", all voxels), ("cropped", those in `box`), ("foreground", label > 0), and each label value's.

    One at a time, so that no more than one copy of the volume lives.
    """
    if channel.levels is not None and len(channel.levels) * (len(label.values) if label else 1) <= MOST_COUNTS:
        yield from _counted(channel, channel.levels, label, box)
    else:
        yield from _sorted(channel, label, box)


def _counted(
    channel: Channel, levels: Array, label: LabelMap | None, box: Box
) -> Iterator[tuple[str | int, Distribution]]:
    data, low = channel.data, channel.offset
    joint = _count(data, low, len(levels), label)
    whole = joint.sum(axis=0)
    yield "whole", Distribution(levels, whole)
    outside = sum((_count(data[piece], low, len(levels), None)[0] for piece in _outside(box, data.shape)), start=0)
    yield "cropped", Distribution(levels, whole - outside)
    if label is None:
        return
    rows = dict(zip(label.values, joint, strict=True))
    foreground = sum((row for value, row in rows.items() if value > 0), start=np.zeros_like(whole))
    yield "foreground", Distribution(levels, foreground)
    for value, row in rows.items():
        yield value, Distribution(levels, row)


def _count(data: Array, low: int, levels: int, label: LabelMap | None) -> Array:
    """[labels, levels] voxel counts (one row without a label map)."""
    rows = len(label.values) if label else 1
    counts = np.zeros(rows * levels, dtype=np.int64)
    offsets = _row_offsets(label.values, levels) if label else None
    for part in slabs(data, max(CHUNK, counts.size)):
        index = data[..., part].astype(np.intp)
        index -= low
        if label is not None and offsets is not None:
            key = label.data[..., part].astype(np.intp)
            key -= label.values[0]
            index += offsets[key]
        counts += np.bincount(index.ravel(order="K"), minlength=counts.size)
    return counts.reshape(rows, levels)


def _row_offsets(values: tuple[int, ...], levels: int) -> Array:
    offsets = np.zeros(values[-1] - values[0] + 1, dtype=np.intp)
    offsets[np.array(values) - values[0]] = np.arange(len(values)) * levels
    return offsets


def _outside(box: Box, shape: tuple[int, ...]) -> Iterator[Box]:
    """Disjoint boxes that hold what `box` leaves of a volume."""
    region = [slice(None)] * len(shape)
    for axis, (part, size) in enumerate(zip(box, shape, strict=True)):
        for rest in (slice(0, part.start), slice(part.stop, size)):
            if rest.start < rest.stop:
                yield (*region[:axis], rest, *region[axis + 1 :])
        region[axis] = part


def _sorted(channel: Channel, label: LabelMap | None, box: Box) -> Iterator[tuple[str | int, Distribution]]:
    data = channel.data
    if channel.levels is not None:  # integers of few levels but too many labels to count jointly
        data = channel.levels.astype(np.float32)[data.astype(np.intp) - channel.offset]
    yield "whole", _sort(data.copy(order="K"))
    yield "cropped", _sort(data[box].copy(order="K"))
    if label is None:
        return
    yield "foreground", _sort(data[label.data > 0])
    for value in label.values:
        yield value, _sort(data[label.data == value])


def _sort(values: Array) -> Distribution:
    flat = values.ravel(order="K")
    flat.sort()
    return Distribution(flat)
