"""The section `autoseg` of datastats.yaml: what planning needs beyond MONAI's statistics.

Spacing in mm, sizes in voxels, axes in RAS order; a 2D data set (`image_dims` 2) has a third axis of one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from autoseg.analysis.alike import alike_across
from autoseg.analysis.report import CaseExtras, CaseReport, Pool, discovered_labels
from autoseg.analysis.volumes import Array

SPREAD = {"percentile_00_5": 0.5, "percentile_10": 10.0, "percentile_99_5": 99.5}


def autoseg_section(reports: Sequence[CaseReport], labels: Mapping[int, str] | None) -> dict[str, Any]:
    """`reports` must hold extras. Keys that are label values are strings, as in every JSON of autoseg."""
    named = dict(labels) if labels else discovered_labels(reports)
    values = sorted({0, *named})
    extras = [report.extras for report in reports if report.extras is not None]
    channels = Counter(extra.channels for extra in extras).most_common(1)[0][0]
    alike = [extra for extra in extras if extra.channels == channels]
    nonzero = [_pooled([extra.nonzero[channel] for extra in alike]) for channel in range(channels)]
    foreground = [
        _pooled([extra.foreground[channel] for extra in alike if extra.foreground]) for channel in range(channels)
    ]
    fractions = [extra.foreground_fraction for extra in extras if extra.foreground_fraction is not None]
    return {
        "schema_version": 1,
        "n_cases": len(extras),
        "channels": channels,
        "image_dims": Counter(len(extra.shape) for extra in extras).most_common(1)[0][0],
        "image_files": Counter(len(report.image) for report in reports).most_common(1)[0][0],
        # with nothing labelled anywhere, what is not zero is the best guess at what matters
        "intensity_foreground": [
            (own or other or _NOTHING) | _typical_label(reports, channel)
            for channel, (own, other) in enumerate(zip(foreground, nonzero, strict=True))
        ],
        "intensity_nonzero": [pooled or _NOTHING for pooled in nonzero],
        "voxels": {str(value): sum(report.counts.get(value, 0) for report in reports) for value in values},
        "cases_with_label": {
            str(value): sum(report.counts.get(value, 0) > 0 for report in reports) for value in values
        },
        "label_values": values,
        "labels": {str(value): named[value] for value in sorted(named)},
        "spacing": _spread([extra.spacing for extra in extras], 1.0),
        "shape": _spread([extra.shape for extra in extras], 1),
        "cropped_shape": _spread([extra.cropped_shape for extra in extras], 1),
        "orientation": _tally(extra.orientation for extra in extras),
        "dtype": _tally(extra.dtype for extra in extras),
        "foreground_fraction_median": float(np.median(fractions)) if fractions else 0.0,
        "foreground_extent": _extent(extras),
        "alike_across": alike_across(reports, values, channels),
    }


_NOTHING = dict.fromkeys(("mean", "std", "min", "median", "max", *("percentile_00_5", "percentile_99_5")), 0.0)


def _typical_label(reports: Sequence[CaseReport], channel: int) -> dict[str, float]:
    """Median and deviation of a channel's intensities in a typical label: means over cases, then the labels' median.

    Labels of bone and of soft tissue together are far wider spread than either; this is the spread within one.
    """
    found: dict[int, list[tuple[float, float]]] = {}
    for report in reports:
        stats = report.monai.get("label_stats", {"labels": [], "label": []})
        for value, label in zip(stats["labels"], stats["label"], strict=True):
            if value > 0 and channel < len(label["image_intensity"]):
                one = label["image_intensity"][channel]
                found.setdefault(value, []).append((one["median"], one["stdev"]))
    if not found:
        return {}
    median, std = np.median([np.mean(rows, axis=0) for rows in found.values()], axis=0)
    return {"label_median": float(median), "label_std": float(std)}


def _pooled(pools: Sequence[Pool | None]) -> dict[str, float] | None:
    """Moments and percentiles over cases of equal weight (nnU-Net's fingerprint samples as many voxels of each)."""
    known = [pool for pool in pools if pool is not None]
    if not known:
        return None
    means = np.array([pool.mean for pool in known])
    squares = np.array([pool.std for pool in known]) ** 2 + (means - means.mean()) ** 2
    samples = np.concatenate([pool.sample for pool in known])
    weights = np.concatenate([np.full(len(pool.sample), 1.0 / len(pool.sample)) for pool in known])
    low, median, high = _weighted_percentiles(samples, weights, [0.5, 50.0, 99.5])
    return {
        "mean": float(means.mean()),
        "std": float(np.sqrt(squares.mean())),
        "min": min(pool.min for pool in known),
        "median": median,
        "max": max(pool.max for pool in known),
        "percentile_00_5": low,
        "percentile_99_5": high,
    }


def _weighted_percentiles(values: Array, weights: Array, percents: Sequence[float]) -> list[float]:
    """Interpolated between the midpoints of the weights."""
    order = np.argsort(values, kind="stable")
    ordered = weights[order]
    middle = (np.cumsum(ordered) - ordered / 2) / ordered.sum()
    return [float(v) for v in np.interp(np.array(percents) / 100, middle, values[order])]


def _spread(rows: Sequence[Sequence[float]], missing: float) -> dict[str, list[float]]:
    table = np.array([[*row, missing, missing][:3] for row in rows])
    result = {"median": np.median(table, axis=0), "min": table.min(axis=0), "max": table.max(axis=0)}
    result |= {key: np.percentile(table, percent, axis=0) for key, percent in SPREAD.items()}
    return {key: value.tolist() for key, value in result.items()}


def _extent(extras: Sequence[CaseExtras]) -> dict[str, list[float]] | None:
    """Of the labelled voxels' bounding boxes; None where nothing is labelled."""
    rows = [[*extra.foreground_extent, 1, 1][:3] for extra in extras if extra.foreground_extent is not None]
    if not rows:
        return None
    return {"median": np.median(rows, axis=0).tolist(), "max": np.max(rows, axis=0).tolist()}


def _tally(words: Any) -> dict[str, int]:
    return dict(sorted(Counter(words).items()))
