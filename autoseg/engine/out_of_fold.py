"""Probabilities of a validation case in a file, by which an ensemble is chosen. No torch is loaded here.

Kept is the box that holds every voxel in which a foreground class, or a region, has a probability of LEAST or more, and
0 where none has: float16, compressed. The background of exclusive classes is what the others leave.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from autoseg.errors import Fault, InputError, one_line
from autoseg.evaluation import Scored
from autoseg.workspace import atomic_file

if TYPE_CHECKING:
    import torch

LEAST = 0.01  # probability of a class or region, under which it counts as none
NOTHING = 0.5  # voxels: what is expected of less is absent
LARGEST = 2**29  # bytes of what is kept of a case: choosing an ensemble takes a few times as much memory
Half = npt.NDArray[np.float16]


@dataclass(frozen=True)
class OutOfFold:
    """What a network that has not seen a case says of it, and what is true.

    `probabilities`: [K, x, y, z] of the foreground classes or regions in a box that begins at voxel `corner` of the
    image's grid; `reference`: [x, y, z] there, label values or the bits of regions; `total`: voxels of the reference in
    the whole image, by label value or number of the region; `voxel`: its volume in mm3.
    """

    probabilities: Half
    corner: tuple[int, int, int]
    reference: npt.NDArray[Any]
    total: dict[int, int]
    voxel: float

    def save(self, path: Path) -> int:
        """Write the file, whole or not at all; returns its bytes."""
        path.parent.mkdir(parents=True, exist_ok=True)
        arrays: dict[str, Any] = {"probabilities": self.probabilities, "reference": self.reference}
        arrays |= {"corner": self.corner, "total": list(self.total.items()), "voxel": self.voxel}
        with (
            atomic_file(path, "wb") as file,
            zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as parts,
        ):
            for name, array in arrays.items():
                with parts.open(f"{name}.npy", "w", force_zip64=True) as part:
                    np.lib.format.write_array(part, np.asarray(array), allow_pickle=False)
        return path.stat().st_size

    @classmethod
    def load(cls, path: Path) -> OutOfFold:
        """Read a file; InputError where it is none, or damaged."""
        try:
            with np.load(path, allow_pickle=False) as found:
                corner, total = found["corner"].tolist(), found["total"].reshape(-1, 2).tolist()
                voxel = float(found["voxel"])
                return cls(found["probabilities"], tuple(corner), found["reference"], dict(total), voxel)
        except (OSError, KeyError, ValueError, zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise InputError([Fault(str(path), "", f"holds no probabilities: {one_line(error)}")]) from error


class Collector:
    """Takes the probabilities of a case chunk by chunk along an `axis` of the image's grid.

    `first`: the first channel that is foreground. What takes more than `limit` bytes of memory is let go.
    """

    def __init__(self, axis: int, first: int, limit: int = LARGEST):
        self.axis, self.first, self.most, self.limit = axis, first, limit, limit
        self._pieces: list[tuple[list[int], Half]] = []
        self._classes = 0

    def add(self, probabilities: torch.Tensor, start: int) -> None:
        """Take combined probabilities [K, ...] of a chunk whose first plane is `start`."""
        foreground = probabilities[self.first :]
        self._classes = len(foreground)
        corner, block = _boxed(foreground.amax(0) >= LEAST, foreground)
        if block is None or self.limit <= 0:
            return
        self.limit -= 2 * block.numel()
        if self.limit <= 0:
            self._pieces.clear()
            return
        corner[self.axis] += start
        kept = block.where((block >= LEAST).any(0), 0.0).half()  # voxels of traces alone are not worth their bytes
        self._pieces.append((corner, kept.cpu().numpy()))

    def taken(self, reference: npt.NDArray[Any], scored: Scored, spacing: Sequence[float]) -> OutOfFold | None:
        """All chunks together with the reference [X, Y, Z], as `scored` reads it; None where it was too much."""
        if self.limit <= 0:
            return None
        low = np.min([corner for corner, _ in self._pieces], 0) if self._pieces else np.zeros(3, int)
        ends = [np.add(corner, block.shape[1:]) for corner, block in self._pieces]
        size = (np.max(ends, 0) if ends else low) - low
        if 2 * self._classes * int(np.prod(size)) > self.most:  # pieces far apart
            return None
        whole: Half = np.zeros((self._classes, *size), np.float16)
        for corner, block in self._pieces:
            place = _place(np.subtract(corner, low), block.shape[1:])
            whole[:, place[0], place[1], place[2]] = block
        place = _place(low, size)
        voxels = {key: int(np.count_nonzero(scored.mask(reference, key))) for key in scored.names}
        volume = float(np.prod([float(side) for side in spacing]))
        start = (int(low[0]), int(low[1]), int(low[2]))
        return OutOfFold(whole, start, np.ascontiguousarray(reference[place]), voxels, volume)


def _place(corner: npt.ArrayLike, size: Sequence[int] | npt.NDArray[Any]) -> tuple[slice, ...]:
    return tuple(slice(int(a), int(a) + int(n)) for a, n in zip(np.asarray(corner), size, strict=True))


def _boxed(mask: torch.Tensor, values: torch.Tensor) -> tuple[list[int], torch.Tensor | None]:
    """(corner of the box around the mask [x, y, z], the values [K, ...] in it; None where the mask is empty)."""
    corner: list[int] = []
    for axis in range(3):
        others = tuple(a for a in range(3) if a != axis)
        inside = mask.any(others[1]).any(others[0]).nonzero()
        if not len(inside):
            return [], None
        corner.append(int(inside[0]))
        values = values.narrow(1 + axis, corner[-1], int(inside[-1]) - corner[-1] + 1)
    return corner, values


def together(found: Mapping[str, OutOfFold]) -> tuple[tuple[slice, ...], dict[str, tuple[slice, ...]]]:
    """(the shape of the box that holds the boxes of all, as slices from 0 on; the place of each one in it)."""
    boxes = [one for one in found.values() if one.reference.size]
    low = np.min([one.corner for one in boxes], 0) if boxes else np.zeros(3, int)
    high = np.max([np.add(one.corner, one.reference.shape) for one in boxes], 0) if boxes else low
    places = {
        name: _place(np.subtract(one.corner, low) if one.reference.size else np.zeros(3, int), one.reference.shape)
        for name, one in found.items()
    }
    return _place(np.zeros(3, int), high - low), places
