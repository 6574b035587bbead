"""Reading label maps from files, and bringing a reference onto the grid of its prediction."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, cast

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from autoseg.datalist import unreadable
from autoseg.errors import Fault, InputError
from autoseg.evaluation.regions import Regions, bits_of_channels, bits_of_labels

ROUNDING = 1e-3  # what a stored label may differ from an integer: files with a scale hold 0.9999999
HIGHEST = (1 << 16) - 1
# How far, in voxels, grids may lie apart: beyond the first they are not one grid, beyond the second a word is due.
# Headers round, and a quaternion in single precision moves the far corner of an image by hundredths of a millimetre.
FAULT_SHIFT, WARN_SHIFT = 0.1, 0.01
NIFTI = (".nii", ".nii.gz")


@dataclass(frozen=True)
class LabelMap:
    """An integer label map [X, Y, Z] as it lies in its file, and its affine [4, 4] (voxel -> mm, RAS)."""

    path: str
    data: npt.NDArray[Any]
    affine: npt.NDArray[np.float64]

    @property
    def spacing(self) -> tuple[float, ...]:
        """Voxel size in mm by axis."""
        return tuple(float(side) for side in np.linalg.norm(self.affine[:3, :3], axis=0))

    def shift(self, other: LabelMap) -> float:
        """The furthest, in mm, that a voxel of this map lies from the same voxel of `other`, of the same shape."""
        corners = np.array([(*corner, 1) for corner in product(*((0, size - 1) for size in self.data.shape))], float)
        apart = corners @ (self.affine - other.affine).T
        return float(np.linalg.norm(apart[:, :3], axis=1).max())

    def turned_as(self, other: LabelMap) -> LabelMap:
        """The same map with its axes in the order and direction of `other`'s: files may store one grid in many ways."""
        orientations: Any = nib.orientations
        own, wanted = (orientations.io_orientation(affine) for affine in (self.affine, other.affine))
        if np.isnan(own).any() or np.isnan(wanted).any() or np.array_equal(own, wanted):
            return self
        turn = orientations.ornt_transform(own, wanted)
        data = orientations.apply_orientation(self.data, turn)
        return LabelMap(self.path, data, self.affine @ orientations.inv_ornt_aff(turn, self.data.shape))


def read_label_map(path: str | Path, regions: Regions = ()) -> LabelMap:
    """Read a label map (NIfTI by nibabel, other formats by MONAI); an InputError says why a file cannot be one.

    With `regions`, the data are their bits; a file with one mask a region, [X, Y, Z, R], is read as well then.
    """
    path = str(path)
    try:
        data, affine = _read_nifti(path) if path.lower().endswith(NIFTI) else _read_other(path)
        if data.ndim == 2:
            data = data[..., None]
        masks = data.ndim == 4 and data.shape[-1] == len(regions) > 0
        if data.ndim != 3 and not masks:
            shape = shape_text(data.shape)
            raise _UnfitError("shape", f"is {data.ndim}D ({shape}); one map of label values is wanted, not channels")
        if not np.isfinite(affine).all() or not np.linalg.det(affine[:3, :3]):
            raise _UnfitError("affine", "is not usable: an axis has no length, or two run along one direction")
        if masks:
            whole = np.stack([_whole_numbers(data[..., r]) for r in range(len(regions))], -1)
            return LabelMap(path, bits_of_channels(whole), affine)
        labels = _whole_numbers(data)
        return LabelMap(path, bits_of_labels(labels, regions) if regions else labels, affine)
    except _UnfitError as error:
        raise InputError([Fault(path, error.field, str(error))]) from None


def onto_grid_of(prediction: LabelMap, reference: LabelMap) -> tuple[LabelMap, float]:
    """(the reference with the prediction's axes, how far in voxels the two grids lie apart).

    An InputError with what mends it where they are not one grid: another shape, or more than a tenth of a voxel apart.
    """
    turned = reference.turned_as(prediction)
    own, wanted = prediction.data.shape, turned.data.shape
    if own != wanted:
        message = f"is {shape_text(own)}, its reference {shape_text(wanted)} ({reference.path}): "
        raise InputError(
            [
                Fault(
                    prediction.path,
                    "shape",
                    message + "resample the prediction onto the reference's grid, by nearest neighbour",
                )
            ]
        )
    shift = prediction.shift(turned)
    voxels = shift / min(turned.spacing)
    if voxels > FAULT_SHIFT:
        message = f"its voxels lie up to {shift:.3g} mm from those of its reference ({reference.path}): "
        mend = "copy the reference's affine if they correspond, else resample it onto the reference's grid"
        if not np.allclose(prediction.spacing, turned.spacing, rtol=1e-3):
            sides = [" x ".join(f"{side:.4g}" for side in item.spacing) for item in (prediction, turned)]
            message = f"spacing is {sides[0]} mm, its reference's {sides[1]} mm ({reference.path}): "
        raise InputError([Fault(prediction.path, "affine", message + mend)])
    return turned, voxels


def shape_text(shape: tuple[int, ...]) -> str:
    """A shape as people write it."""
    return " x ".join(str(size) for size in shape)


class _UnfitError(Exception):
    def __init__(self, field: str, message: str):
        super().__init__(message)
        self.field = field


def _read_nifti(path: str) -> tuple[npt.NDArray[Any], npt.NDArray[np.float64]]:
    try:
        image = cast(Any, nib.load(path))
        data = np.asanyarray(image.dataobj)
    except FileNotFoundError:
        raise _UnfitError("", "no such file") from None
    except MemoryError:
        raise _UnfitError("", "cannot be read: more voxels than fit in memory; use fewer workers") from None
    except EOFError:
        raise _UnfitError("", "is truncated: the compressed data ends early") from None
    except (OSError, ValueError, OverflowError, zlib.error, ImageFileError, HeaderDataError) as error:
        reason = " ".join(str(error).split()).replace(path, "the file") or type(error).__name__
        raise _UnfitError("", f"cannot be read: {reason}") from None
    while data.ndim > 3 and data.shape[-1] == 1:  # axes of one voxel behind the third mean nothing
        data = data[..., 0]
    return data, np.asarray(image.affine, float)


def _read_other(path: str) -> tuple[npt.NDArray[Any], npt.NDArray[np.float64]]:
    reason = unreadable(path)
    if reason:
        raise _UnfitError("", reason)
    # torch comes with it: only where a format needs it
    from monai.transforms.io.array import LoadImage

    try:
        loaded = LoadImage(image_only=True, ensure_channel_first=True)(path)
    except Exception as error:  # readers raise whatever their libraries do
        raise _UnfitError("", f"cannot be read: {' '.join(str(error).split())[:300]}") from None
    array, affine = np.asarray(loaded.numpy()), np.eye(4)
    if array.ndim == 3:  # [channels, x, y], which must not pass for a volume
        array = array[..., None]
    own = np.asarray(loaded.affine, float)
    rank = min(array.ndim, len(own)) - 1  # of a picture ITK gives [3, 3]
    affine[:rank, :rank], affine[:rank, -1] = own[:rank, :rank], own[:rank, -1]
    return array[0] if len(array) == 1 else np.moveaxis(array, 0, -1), affine


def _whole_numbers(data: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The voxels as integers, none of them negative."""
    if data.dtype.kind not in "biuf":
        raise _UnfitError("", f"holds {data.dtype} voxels: one integer a voxel is wanted")
    if not data.size:
        raise _UnfitError("shape", f"holds no voxels ({shape_text(data.shape)})")
    whole = _rounded(data) if data.dtype.kind == "f" else data.view(np.uint8) if data.dtype.kind == "b" else data
    low, high = int(whole.min()), int(whole.max())
    if low < 0 or high > HIGHEST:
        raise _UnfitError(
            "labels", f"values run from {low} to {high}: a label map holds 0 to {HIGHEST}; is this an image?"
        )
    return whole


def _rounded(data: npt.NDArray[Any]) -> npt.NDArray[np.int32]:
    whole = np.empty(data.shape, np.int32, order="F")
    for plane in range(data.shape[2]):  # a whole volume of float64 and its differences would be a lot of memory
        values = data[..., plane].astype(np.float64)
        rounded = np.rint(values)
        with np.errstate(invalid="ignore"):
            odd = ~(np.abs(values - rounded) <= ROUNDING)
        if odd.any():
            shown = ", ".join(f"{value:g}" for value in np.unique(values[odd])[:3])
            message = (
                f"values are not integers ({shown}): probabilities, an image, or not resampled by nearest neighbour?"
            )
            raise _UnfitError("labels", message)
        if np.abs(rounded).max() >= 2**31:
            raise _UnfitError("labels", f"values up to {np.abs(rounded).max():g}: is this an image?")
        whole[..., plane] = rounded
    return whole
