"""Everything that one case tells on its own: its faults, MONAI's statistics and what planning needs beyond them."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import replace
from typing import Any

import numpy as np

from autoseg.analysis.intensity import (
    Box,
    Channel,
    LabelMap,
    bounding_box,
    distributions,
    monai_intensity,
    pool,
    prepare_channel,
)
from autoseg.analysis.label_map import LabelFile, read_label
from autoseg.analysis.report import CaseExtras, CaseReport, Pool
from autoseg.analysis.volumes import (
    Array,
    Grid,
    Volume,
    VolumeError,
    coverage,
    onto_grid,
    read_volume,
    reoriented,
    shape_text,
)
from autoseg.errors import Faults
from autoseg.records import Case

logger = logging.getLogger(__name__)

FAULT_SHIFT = 0.1  # of the finest voxel side: further apart, a label no longer marks what it was drawn on
WARN_SHIFT = 0.01
LEAST_COVERAGE = 0.5  # of the first channel's volume
SPACING_TOLERANCE = 1e-3  # relative; headers round


def examine_case(case: Case) -> CaseReport:
    """Read the files of a case, each once. Whatever goes wrong is a fault of the report, never an exception."""
    try:
        return _Examination(case).report()
    except Exception as error:  # one odd file must not end the check of all others
        logger.debug("examining %s failed", case.id, exc_info=True)
        return failed_case(case, f"cannot be examined: {type(error).__name__}: {' '.join(str(error).split())}")


def failed_case(case: Case, message: str) -> CaseReport:
    """The report of a case that could not be examined at all."""
    faults = Faults()
    faults.add(case.image[0] if case.image else case.id, "image", message)
    return CaseReport(case.id, case.image, case.label, faults=tuple(faults.items))


class _Examination:
    """Gathers over the files of one case; holds the label map and one image file at a time."""

    def __init__(self, case: Case):
        self.case = case
        self.faults, self.warnings = Faults(), Faults()
        self.channels: list[dict[str, Any]] = []
        self.grid: Grid | None = None
        self.dtype = ""

    def report(self) -> CaseReport:
        case = self.case
        label = read_label(case.label, self.faults) if case.label else None
        label_map: LabelMap | None = None
        digest, complete = hashlib.blake2b(digest_size=16), True
        for path in case.image:
            try:
                volume = read_volume(path)
            except VolumeError as error:
                self.faults.add(path, "image", str(error))
                complete = False
                continue
            digest.update(volume.content)
            if self.grid is None:
                self.grid, self.dtype = volume.grid, volume.dtype
                label_map = self._fit_label(label, volume.grid)
            else:
                fitted = self._onto_first(volume)
                if fitted is None:
                    complete = False
                    continue
                volume = fitted
            for index, raw in enumerate(volume.channels):
                self.channels.append(self._channel(raw, volume, index, label_map))
        complete = complete and bool(self.channels)
        return CaseReport(
            case=case.id,
            image=case.image,
            label=case.label,
            faults=tuple(self.faults.items),
            warnings=tuple(self.warnings.items),
            counts=label.counts if label else {},
            monai=self._monai(label_map, label) if complete else {},
            extras=self._extras(label) if complete else None,
            content_hash=digest.hexdigest() if complete else "",
        )

    # ---- grids

    def _fit_label(self, label: LabelFile | None, grid: Grid) -> LabelMap | None:
        """The label map in the image's axes, or None where its voxels are not the image's; notes what differs."""
        if label is None:
            return None
        self._compare(label.path, label.grid, grid)
        if len(label.grid.shape) == len(grid.shape):
            turned = reoriented(label.data, label.grid, grid)
            if turned.shape == grid.shape:
                return LabelMap(turned, tuple(label.counts))
        return LabelMap(label.data, tuple(label.counts)) if label.data.shape == grid.shape else None

    def _compare(self, path: str, own: Grid, image: Grid) -> None:
        """Note in what a label's grid differs from its image's, and what mends it."""
        mine, theirs = own.to_ras(own.shape), image.to_ras(image.shape)
        if mine != theirs:
            hint = "resample the label onto the image's grid"
            if own.shape != image.shape and sorted(own.shape) == sorted(image.shape):
                hint += ", or reorder its axes if they were swapped"
            message = f"label is {shape_text(own.shape)}, the image {shape_text(image.shape)}: {hint}"
            self.faults.add(path, "shape", message)
            return
        shift = own.displacement(image)
        spacing, wanted = own.to_ras(own.spacing), image.to_ras(image.spacing)
        if shift <= FAULT_SHIFT * min(wanted):
            self._note(path, "label", "image", own, image)
        elif len(mine) == 2:
            mend = "store both in one format: a TIFF's axes run to L and P, those of other pictures to R and A"
            self.faults.add(path, "affine", f"label lies {shift:.3g} mm off the image: {mend}")
        elif np.allclose(spacing, wanted, rtol=SPACING_TOLERANCE, atol=0):
            mend = f"copy the image's affine: they differ by {shift:.3g} mm"
            self.faults.add(path, "affine", f"{mend}; or resample the label if it was drawn on another grid")
        else:
            mend = "copy the image's header if the voxels correspond, else resample the label onto its grid"
            self.faults.add(path, "spacing", f"label has {_mm(spacing)}, the image {_mm(wanted)}: {mend}")

    def _onto_first(self, volume: Volume) -> Volume | None:
        """A further file's channels on the first one's grid, resampled if need be; None where they do not belong."""
        assert self.grid is not None
        own, first, path = volume.grid, self.grid, volume.path
        if len(own.shape) != len(first.shape):
            message = f"channel is {shape_text(own.shape)}, the first channel {shape_text(first.shape)}"
            self.faults.add(path, "shape", f"{message}: a case is 2D or 3D in all its channels")
            return None
        same = own.to_ras(own.shape) == first.to_ras(first.shape)
        if same and own.displacement(first) <= FAULT_SHIFT * min(first.spacing):
            self._note(path, "channel", f"first channel ({self.case.image[0]})", own, first)
            return volume
        share = coverage(own, first)
        if share < LEAST_COVERAGE:
            covered = f"channel covers {share:.0%} of the first one's volume ({self.case.image[0]})"
            self.faults.add(path, "affine", f"{covered}: of another patient, or with a wrong header?")
            return None
        grids = [f"{shape_text(grid.to_ras(grid.shape))} of {_mm(grid.to_ras(grid.spacing))}" for grid in (own, first)]
        message = f"channel is {grids[0]}, the first one {grids[1]}: it is resampled (linear) onto the first one's grid"
        self.warnings.add(path, "spacing", message)
        channels = tuple(onto_grid(raw, own, first) for raw in volume.channels)
        return replace(volume, channels=channels, grid=first)

    def _note(self, path: str, what: str, reference: str, own: Grid, other: Grid) -> None:
        """Warn of what is odd about two grids that are one."""
        shift = own.displacement(other)
        if shift > WARN_SHIFT * min(other.spacing):
            message = f"{what} and {reference} differ by {shift:.2g} mm, within a tenth of a voxel: taken as one grid"
            self.warnings.add(path, "affine", message)
        elif own.orientation != other.orientation:
            stored = f"{what} is stored {own.orientation}, the {reference} {other.orientation}"
            self.warnings.add(path, "orientation", f"{stored}: the same grid once both are reoriented")

    # ---- intensities

    def _channel(self, raw: Array, volume: Volume, index: int, label: LabelMap | None) -> dict[str, Any]:
        """Numbers of one channel, counted in the axes of the case's first file."""
        assert self.grid is not None
        channel = prepare_channel(reoriented(raw, volume.grid, self.grid), volume.slope, volume.inter)
        name = f"channel {index}: " if len(volume.channels) > 1 else ""
        if channel.not_finite:
            message = f"{name}{channel.not_finite} voxels are NaN or infinite: replace them (by the background's value)"
            self.faults.add(volume.path, "image", message)
        constant = channel.highest == channel.least
        if constant:
            self.warnings.add(volume.path, "image", f"{name}constant: every voxel is {channel.least:g}")
        box, positive = _boxes(channel, self.grid)
        facts: dict[str, Any] = {
            "box": box,
            "constant": constant,
            "cropped_shape": self.grid.to_ras([part.stop - part.start for part in positive]),
            "labels": {},
        }
        for key, distribution in distributions(channel, label, positive):
            if key == "whole":
                facts["nonzero"] = pool(distribution.without_zero())
            elif key == "cropped":
                facts["intensity"] = monai_intensity(distribution)
            elif key == "foreground":
                facts["foreground"] = monai_intensity(distribution)
                facts["foreground_pool"] = pool(distribution)
            else:
                facts["labels"][key] = monai_intensity(distribution)
        return facts

    def _monai(self, label_map: LabelMap | None, label: LabelFile | None) -> dict[str, Any]:
        """The entry of `stats_by_cases`: MONAI reorients to RAS first, so shape and spacing are in that order."""
        assert self.grid is not None
        grid, channels = self.grid, self.channels
        shape, spacing = list(grid.to_ras(grid.shape)), list(grid.to_ras(grid.spacing))
        entry: dict[str, Any] = {
            "image_filepath": self.case.image[0],
            "label_filepath": self.case.label or "None",
            "image_stats": {
                "shape": [list(shape) for _ in channels],
                "channels": len(channels),
                "cropped_shape": [list(c["cropped_shape"]) for c in channels],
                "spacing": spacing,
                "sizemm": [a * b for a, b in zip(shape, spacing, strict=True)],
                "intensity": [c["intensity"] for c in channels],
            },
        }
        if label_map is None or label is None:
            return entry
        total = sum(label.counts.values())
        entry["image_foreground_stats"] = {"intensity": [dict(c["foreground"]) for c in channels]}
        entry["label_stats"] = {
            "labels": list(label_map.values),
            "image_intensity": [dict(c["foreground"]) for c in channels],
            "label": [
                {
                    "image_intensity": [c["labels"][value] for c in channels],
                    "foreground_percentage": label.counts[value] / total,
                }
                for value in label_map.values
            ],
        }
        return entry

    def _extras(self, label: LabelFile | None) -> CaseExtras:
        assert self.grid is not None
        grid, channels = self.grid, self.channels
        boxes: list[Box] = [c["box"] for c in channels]
        cropped = [max(b[a].stop for b in boxes) - min(b[a].start for b in boxes) for a in range(len(grid.shape))]
        pools: list[Pool | None] = [c.get("foreground_pool") for c in channels]
        return CaseExtras(
            channels=len(channels),
            dtype=self.dtype,
            orientation=grid.orientation,
            spacing=grid.to_ras(grid.spacing),
            shape=grid.to_ras(grid.shape),
            cropped_shape=grid.to_ras(cropped),
            foreground_fraction=label.foreground_fraction if label else None,
            foreground_extent=label.extent if label else None,
            foreground=tuple(p for p in pools if p is not None),
            nonzero=tuple(c["nonzero"] for c in channels),
            constant=all(c["constant"] for c in channels),
            places=label.places if label else {},
        )


def _boxes(channel: Channel, grid: Grid) -> tuple[Box, Box]:
    """(voxels above the channel's minimum, MONAI's crop), in file order; the whole volume where nothing is above.

    MONAI's ImageStats crops voxels above 0, channel by channel, but takes the first (RAS) axis of a channel for the
    channel axis: that one stays whole. Where nothing is above 0 it fails and drops the case.
    """
    whole: Box = tuple(slice(0, size) for size in channel.data.shape)
    above_least = bounding_box(channel.data, channel.above(channel.least)) or whole
    above_zero = above_least if channel.least == 0 else bounding_box(channel.data, channel.above(0.0)) or whole
    first = grid.order[0]
    return above_least, tuple(whole[a] if a == first else part for a, part in enumerate(above_zero))


def _mm(spacing: tuple[float, ...]) -> str:
    return f"{' x '.join(f'{s:.4g}' for s in spacing)} mm"
