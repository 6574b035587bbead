"""Reading a label map: whole numbers, one map a case, and how many voxels hold each value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from autoseg.analysis.intensity import CHUNK, Box, bounding_box, slabs
from autoseg.analysis.report import Place
from autoseg.analysis.volumes import Array, Grid, Volume, VolumeError, read_volume, shape_text
from autoseg.errors import Faults

MOST_SPAN = 1 << 16  # between the lowest and the highest value
MOST_VALUES = 2048  # more different values than any label map has: an image was given as label


@dataclass(frozen=True)
class LabelFile:
    """An integer label map as it lies in its file; `counts` are voxels by value, ascending."""

    path: str
    data: Array
    grid: Grid
    counts: dict[int, int]
    extent: tuple[int, ...] | None  # bounding box of the values above 0, in RAS order
    places: dict[int, Place]  # of every value above 0

    @property
    def foreground_fraction(self) -> float:
        labelled = sum(voxels for value, voxels in self.counts.items() if value > 0)
        return labelled / sum(self.counts.values())


def read_label(path: str, faults: Faults) -> LabelFile | None:
    """The label map, or None with its fault noted: unreadable, 4D, not integers, or values like an image's."""
    try:
        volume = read_volume(path)
    except VolumeError as error:
        faults.add(path, "label", str(error))
        return None
    if path.lower().endswith((".jpg", ".jpeg")):
        faults.add(path, "label", "is a jpg, whose compression alters label values: store labels as png")
        return None
    if len(volume.channels) > 1:
        shape = shape_text((*volume.grid.shape, len(volume.channels)))
        what = f"is 4D ({shape})" if len(volume.grid.shape) == 3 else f"has {len(volume.channels)} channels ({shape})"
        message = f"{what}: one map of label values is wanted; of one-hot channels, store the argmax"
        faults.add(path, "label", message)
        return None
    data = _whole_numbers(volume, faults)
    if data is None:
        return None
    low, high = int(data.min()), int(data.max())
    if high - low >= MOST_SPAN:
        faults.add(path, "label", f"label values run from {low} to {high}: is this an image?")
        return None
    counts = np.zeros(high - low + 1, dtype=np.int64)
    for z in range(data.shape[-1]):
        counts += np.bincount((data[..., z].astype(np.intp) - low).ravel(order="K"), minlength=counts.size)
    found = {int(index) + low: int(counts[index]) for index in np.flatnonzero(counts)}
    if len(found) > MOST_VALUES:
        faults.add(path, "label", f"holds {len(found)} different values: is this an image?")
        return None
    box = bounding_box(data, 0)
    extent = None if box is None else volume.grid.to_ras([part.stop - part.start for part in box])
    places = {} if box is None else _places(data, box, volume.grid, list(found))
    return LabelFile(path, data, volume.grid, found, extent, places)


def _places(data: Array, box: Box, grid: Grid, values: Sequence[int]) -> dict[int, Place]:
    """The place of every value above 0. `values`: all of `data`, ascending; `box` bounds those above 0.

    Voxels are counted by value and index along each axis, a slab at a time: only slabs are held as larger integers.
    """
    inner, low = data[box], values[0]
    tables = [np.zeros(len(values) * size, dtype=np.int64) for size in inner.shape]
    rows = np.zeros(values[-1] - low + 1, dtype=np.intp)
    rows[np.array(values) - low] = np.arange(len(values))
    for part in slabs(inner, max(CHUNK, *(table.size for table in tables))):
        at = inner[..., part].astype(np.intp) - low
        for axis, table in enumerate(tables):
            index = np.arange(inner.shape[axis])[part if axis == data.ndim - 1 else slice(None)]
            key = (rows * inner.shape[axis])[at]
            key += np.expand_dims(index, [a for a in range(data.ndim) if a != axis])
            table += np.bincount(key.ravel(order="K"), minlength=table.size)
    first = sum(value <= 0 for value in values)
    centres, spreads = [], []
    for axis in grid.order:
        table = tables[axis].reshape(len(values), -1)[first:]
        index = np.arange(box[axis].start, box[axis].stop)
        if grid.flips[axis] < 0:
            index = grid.shape[axis] - 1 - index
        n = table.sum(axis=1)
        mean = table @ index / n
        variance = np.maximum(table @ index**2 / n - mean**2, 0.0)
        centres.append(mean * grid.spacing[axis])
        spreads.append(np.sqrt(variance) * grid.spacing[axis])
    numbers = (np.stack(some, axis=1).tolist() for some in (centres, spreads))
    return {value: Place(tuple(c), tuple(s)) for value, c, s in zip(values[first:], *numbers, strict=True)}


def _whole_numbers(volume: Volume, faults: Faults) -> Array | None:
    """The voxels as integers; None with the fault noted where some are not."""
    raw = volume.channels[0]
    if raw.dtype.kind == "b":
        return raw.view(np.uint8)
    if raw.dtype.kind in "iu" and volume.slope == 1 and volume.inter == 0:
        return raw
    data = raw.astype(np.float32, copy=False)
    if volume.slope != 1 or volume.inter != 0:
        data = data * np.float32(volume.slope) + np.float32(volume.inter)
    odd: set[float] = set()
    for z in range(data.shape[-1]):
        piece = data[..., z]
        with np.errstate(invalid="ignore"):
            wrong = ~np.isfinite(piece) | (piece != np.rint(piece))
        if wrong.any():
            odd.update(float(v) for v in np.unique(piece[wrong])[:4])
        if len(odd) >= 4:
            break
    if odd:
        examples = ", ".join(f"{v:g}" for v in sorted(odd)[:4])
        message = f"label values are not integers ({examples}): was it resampled? Use nearest neighbour for labels"
        faults.add(volume.path, "label", message)
        return None
    if max(abs(float(data.min())), abs(float(data.max()))) >= 2**31:
        faults.add(volume.path, "label", f"label values up to {float(data.max()):g}: is this an image?")
        return None
    return data.astype(np.int32)
