"""Reading one volume, whole and once, in its own data type: NIfTI and NumPy files directly, others as MONAI does."""

from __future__ import annotations

import gzip
import hashlib
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, cast

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import affine_transform

from autoseg.datalist.formats import NUMPY, unreadable

Array = NDArray[Any]
EDGE = 1e-3  # voxels beyond the border that headers may round away


class VolumeError(Exception):
    """A file that cannot be used; the message says why, without the path."""


@dataclass(frozen=True)
class Grid:
    """Where voxels lie: shape and affine (voxel -> mm) of the file, and for each RAS axis the file axis along it."""

    shape: tuple[int, ...]
    affine: Array  # [r + 1, r + 1] for r spatial axes
    order: tuple[int, ...]
    flips: tuple[int, ...]  # by file axis: 1, or -1 where it runs against its RAS axis
    orientation: str

    @property
    def spacing(self) -> tuple[float, ...]:
        """Voxel size in mm by file axis."""
        rank = len(self.shape)
        return tuple(float(s) for s in np.sqrt(np.sum(self.affine[:rank, :rank] ** 2, axis=0)))

    def to_ras(self, values: Any) -> tuple[Any, ...]:
        """Values by file axis in RAS order."""
        return tuple(values[axis] for axis in self.order)

    def corners(self) -> Array:
        """The corners of the volume in mm, [2**r, r], in RAS order of their voxel indices."""
        ends = []
        for axis in self.order:
            span = (0, self.shape[axis] - 1)
            ends.append(span if self.flips[axis] > 0 else span[::-1])
        back = np.argsort(self.order)
        indices = np.array([[corner[i] for i in back] + [1] for corner in product(*ends)], dtype=float)
        return cast(Array, (indices @ self.affine.T)[:, :-1])

    def displacement(self, other: Grid) -> float:
        """The furthest, in mm, that a voxel of this grid lies from the same voxel (RAS order) of `other`."""
        return float(np.max(np.linalg.norm(self.corners() - other.corners(), axis=1)))


@dataclass(frozen=True)
class Volume:
    """Channels of one file, each [x, y(, z)] in file order; a voxel's value is raw * slope + inter."""

    path: str
    channels: tuple[Array, ...]
    slope: float
    inter: float
    grid: Grid
    dtype: str
    content: bytes  # digest of the raw voxels


def make_grid(shape: tuple[int, ...], affine: Array) -> Grid:
    """Raises VolumeError for an affine with zero, infinite or missing axes: nothing can be measured on it."""
    rank = len(shape)
    full = np.eye(rank + 1)
    size = min(rank, len(affine) - 1)
    full[:size, :size] = affine[:size, :size]
    full[:size, -1] = affine[:size, -1]
    spacing = np.sqrt(np.sum(full[:rank, :rank] ** 2, axis=0))
    if not np.all(np.isfinite(full)) or not np.all(spacing > 0):
        raise VolumeError(f"spacing {' x '.join(f'{s:g}' for s in spacing)} mm: the header's affine is not usable")
    axes = nib.orientations.io_orientation(full)
    if np.any(np.isnan(axes)):
        raise VolumeError("the header's affine is degenerate: two axes run along one direction")
    targets = [int(axis) for axis in axes[:, 0]]
    order = tuple(targets.index(axis) for axis in range(rank))
    ends = (("L", "R"), ("P", "A"), ("I", "S"))[:rank]
    codes = nib.orientations.ornt2axcodes(axes, ends)
    return Grid(shape, full, order, tuple(int(f) for f in axes[:, 1]), "".join(str(code) for code in codes))


def onto_grid(data: Array, source: Grid, target: Grid) -> Array:
    """`data` (on `source`) at the voxels of `target`, linear, as float32; beyond its border the edge's value."""
    rank = len(source.shape)
    way = np.linalg.solve(source.affine, target.affine)
    values = data.astype(np.float32, copy=False)
    moved = affine_transform(values, way[:rank, :rank], way[:rank, -1], target.shape, order=1, mode="nearest")
    return cast(Array, moved)


def coverage(source: Grid, target: Grid) -> float:
    """The share of `target`'s volume that lies within `source`'s, counted at up to 32 points an axis."""
    axes = [(np.arange(k) + 0.5) / k * size - 0.5 for size, k in ((size, min(size, 32)) for size in target.shape)]
    points = np.stack([*np.meshgrid(*axes, indexing="ij"), np.ones([len(axis) for axis in axes])], axis=-1)
    indices = (points @ np.linalg.solve(source.affine, target.affine).T)[..., :-1]
    inside = (indices > -0.5 - EDGE) & (indices < np.array(source.shape) - 0.5 + EDGE)
    return float(inside.all(axis=-1).mean())


def reoriented(data: Array, source: Grid, target: Grid) -> Array:
    """A view of `data` (on `source`) whose axes run as those of `target`."""
    if source.order == target.order and source.flips == target.flips:
        return data
    moved = data.transpose([source.order[target.order.index(axis)] for axis in range(len(target.order))])
    for axis in range(moved.ndim):
        own = source.order[target.order.index(axis)]
        if source.flips[own] != target.flips[axis]:
            moved = np.flip(moved, axis)
    return cast(Array, moved)


def read_volume(path: str) -> Volume:
    """Read every voxel of `path`; raises VolumeError saying what is wrong with it."""
    reason = unreadable(path)
    if reason:
        raise VolumeError(reason)
    try:
        if path.lower().endswith((".nii", ".nii.gz")):
            return _read_nifti(path)
        return _read_numpy(path) if path.lower().endswith(NUMPY) else _read_other(path)
    except VolumeError:
        raise
    except EOFError:
        raise VolumeError("is truncated: the compressed data ends early") from None
    except MemoryError:
        raise VolumeError("cannot be read: more voxels than fit in memory") from None
    except Exception as error:  # of a damaged header readers raise anything; only here it is known in which file
        reason = " ".join(str(error).split()) or type(error).__name__
        raise VolumeError(f"cannot be read: {reason.replace(path, 'the file')}") from None


def _read_nifti(path: str) -> Volume:
    image = cast(Any, nib.load(path))
    proxy = image.dataobj
    if proxy.dtype.fields or proxy.dtype.kind not in "biuf":
        raise VolumeError(f"holds {proxy.dtype} voxels: one real number a voxel is wanted")
    if 0 in proxy.shape or len(proxy.shape) < 2:
        raise VolumeError(f"holds no image: its shape is {shape_text(proxy.shape)}")
    raw = _native(_read_gzip(path, proxy) if path.lower().endswith(".gz") else _read_plain(proxy))
    slope, inter = float(proxy.slope), float(proxy.inter)
    content = _digest(raw, (raw.dtype.str, proxy.shape, slope, inter))
    channels = _split(_single(raw))
    return Volume(path, channels, slope, inter, make_grid(channels[0].shape, image.affine), str(raw.dtype), content)


def _native(raw: Array) -> Array:
    return raw if raw.dtype.isnative else raw.astype(raw.dtype.newbyteorder("="))


def _single(raw: Array) -> Array:
    """Floating-point voxels in the precision that networks get them in."""
    if raw.dtype.kind != "f" or raw.dtype.itemsize == 4:
        return raw
    with np.errstate(over="ignore"):  # beyond float32 becomes infinite, which is then reported
        return raw.astype(np.float32)


def _read_gzip(path: str, proxy: Any) -> Array:
    """All voxels, and then to the end of the stream, where gzip compares its checksum: bit rot is found too."""
    size = int(np.prod(proxy.shape, dtype=np.int64)) * proxy.dtype.itemsize
    buffer = np.empty(size, np.uint8)
    view = memoryview(cast(Any, buffer))
    with gzip.open(path, "rb") as file:
        file.read(proxy.offset)
        done = 0
        while done < size:
            got = file.readinto(view[done:])
            if not got:
                raise VolumeError(f"is truncated: {done} of {size} bytes of voxels are there")
            done += got
        while file.read(1 << 16):
            pass
    return cast(Array, buffer.view(proxy.dtype).reshape(proxy.shape, order=proxy.order))


def _read_plain(proxy: Any) -> Array:
    size = int(np.prod(proxy.shape, dtype=np.int64)) * proxy.dtype.itemsize
    there = Path(proxy.file_like).stat().st_size - proxy.offset
    if there < size:
        raise VolumeError(f"is truncated: {max(0, there)} of {size} bytes of voxels are there")
    return np.asarray(proxy.get_unscaled())


def _split(raw: Array) -> tuple[Array, ...]:
    """Channels stand last in a NIfTI. Of a vector image (5D) MONAI would take the fourth axis for one of space."""
    if raw.ndim > 4:
        shape = shape_text(raw.shape)
        raise VolumeError(f"has {raw.ndim} dimensions ({shape}): store channels along a fourth one, or one a file")
    return (raw,) if raw.ndim < 4 else tuple(raw[..., channel] for channel in range(raw.shape[3]))


def _read_numpy(path: str) -> Volume:
    """One channel on a grid of 1 mm, its axes taken for R, A and S: all that the file says, and MONAI's reading."""
    loaded = np.load(path, allow_pickle=False)
    if isinstance(loaded, np.lib.npyio.NpzFile):
        with loaded:
            loaded = loaded[loaded.files[0]]
    raw = _native(loaded)
    content = _digest(raw, (raw.dtype.str, raw.shape))
    return Volume(path, (_single(raw),), 1.0, 0.0, make_grid(raw.shape, np.eye(4)), str(raw.dtype), content)


def _read_other(path: str) -> Volume:
    # torch comes with it: only where a format needs it
    from monai.transforms.io.array import LoadImage

    try:
        loaded = LoadImage(image_only=True, ensure_channel_first=True)(path)
    except Exception as error:  # readers raise whatever their libraries do
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise VolumeError(f"cannot be read: {reason}") from None
    array = np.asarray(loaded.numpy(), dtype=np.float32)
    affine = np.asarray(loaded.affine, dtype=float)
    if 0 in array.shape:
        raise VolumeError(f"holds no voxels: shape {shape_text(array.shape)}")
    content = _digest(array, (array.dtype.str, array.shape))
    return Volume(path, tuple(array), 1.0, 0.0, make_grid(array.shape[1:], affine), str(array.dtype), content)


def _digest(raw: Array, facts: tuple[Any, ...]) -> bytes:
    digest = hashlib.blake2b(repr(facts).encode(), digest_size=16)
    digest.update(cast(Any, raw.T if raw.flags.f_contiguous else np.ascontiguousarray(raw)))
    return digest.digest()


def shape_text(shape: tuple[int, ...]) -> str:
    """`12 x 10 x 8`, for messages."""
    return " x ".join(str(n) for n in shape)
