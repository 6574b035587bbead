"""From case reports to `datastats.yaml` and `datastats_by_case.yaml`, with the keys of MONAI 1.6's DataAnalyzer."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from autoseg.analysis.intensity import PERCENTILES
from autoseg.analysis.pooled import autoseg_section
from autoseg.analysis.report import CaseReport
from autoseg.analysis.volumes import Array
from autoseg.errors import Fault, InputError

logger = logging.getLogger(__name__)

MEANS = ("mean", "median", "stdev", *PERCENTILES)  # MONAI's summary of these is the mean over cases
INTENSITY_KEYS = ("max", "mean", "median", "min", "stdev", *PERCENTILES)


def summarize(
    reports: Sequence[CaseReport], labels: Mapping[int, str] | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(datastats, datastats by case) as the YAML files hold them.

    `stats_summary` and `stats_by_cases` as MONAI's DataAnalyzer writes them, one difference: in the summary a label's
    entry is that of its value, where MONAI takes the value for a position in each case's list (wrong as soon as
    values have a gap or a case lacks a label). Key `autoseg` holds what planning needs beyond it, see `pooled`.
    `labels` are the declared ones, value -> name without 0; without, those that occur. Cases that could not be read
    are left out with a logged warning; raises InputError when none is left.
    """
    usable = [report for report in reports if report.extras is not None and report.monai]
    for report in reports:
        if report.extras is None or not report.monai:
            logger.warning("case %s could not be read: it is not in the statistics", report.case)
    if not usable:
        raise InputError([Fault("", "datalist", "no case could be read: there is nothing to make statistics of")])
    entries = [report.monai for report in usable]
    summary: dict[str, Any] = {"image_stats": _image_stats([entry["image_stats"] for entry in entries])}
    labelled = [entry for entry in entries if "label_stats" in entry]
    if labelled:
        foreground = [entry["image_foreground_stats"]["intensity"] for entry in labelled]
        summary["image_foreground_stats"] = {"intensity": _intensity(foreground)}
        summary["label_stats"] = _label_stats([entry["label_stats"] for entry in labelled])
    summary["n_cases"] = len(usable)
    extra = autoseg_section(usable, labels)
    return (
        {"stats_summary": summary, "stats_by_cases": [], "autoseg": extra},
        {"stats_summary": summary, "stats_by_cases": entries},
    )


def _image_stats(images: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        "shape": _operations(_rows([row for image in images for row in image["shape"]])),
        "channels": _operations(np.array([image["channels"] for image in images])),
        "cropped_shape": _operations(_rows([row for image in images for row in image["cropped_shape"]])),
        "spacing": _operations(_rows([image["spacing"] for image in images])),
        "sizemm": _operations(_rows([image["sizemm"] for image in images])),
        "intensity": _intensity([image["intensity"] for image in images]),
    }


def _label_stats(cases: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    values = sorted({value for case in cases for value in case["labels"]})
    found = []
    for value in values:
        own = [case["label"][case["labels"].index(value)] for case in cases if value in case["labels"]]
        share = _operations(np.array([label["foreground_percentage"] for label in own]))
        intensity = _intensity([label["image_intensity"] for label in own])
        found.append({"foreground_percentage": share, "image_intensity": intensity})
    return {
        "labels": values,
        "image_intensity": _intensity([case["image_intensity"] for case in cases]),
        "label": found,
    }


def _rows(rows: Sequence[Sequence[float]]) -> Array:
    """[rows, axes]; where 2D and 3D cases are mixed (a fault elsewhere), 2D ones get a third axis of one."""
    width = max(map(len, rows))
    return np.array([[*row, *(1 for _ in range(width - len(row)))] for row in rows])


def _operations(values: Array) -> dict[str, Any]:
    """MONAI's SampleOperations over cases (axis 0); its percentiles keep the type of the data, so sizes truncate."""
    percentiles = np.percentile(values, list(PERCENTILES.values()), axis=0).astype(values.dtype)
    result = {
        "max": values.max(axis=0),
        "mean": values.mean(axis=0),
        "median": np.median(values, axis=0),
        "min": values.min(axis=0),
        "stdev": values.std(axis=0),
        "percentile": percentiles,
        **dict(zip(PERCENTILES, percentiles, strict=True)),
    }
    return {key: value.tolist() for key, value in result.items()}


def _intensity(cases: Sequence[Sequence[Mapping[str, Any]]]) -> dict[str, float]:
    """MONAI's SummaryOperations: of each case's first channel; max of maxima, min of minima, else means."""
    reduce: dict[str, Any] = {"max": np.max, "min": np.min, **dict.fromkeys(MEANS, np.mean)}
    return {key: float(reduce[key]([case[0][key] for case in cases])) for key in INTENSITY_KEYS}
