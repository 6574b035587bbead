"""From the grid a network sees back to the grid of the image file: axis-aligned, separable, in chunks of planes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from monai.data import MetaTensor
from monai.data.utils import to_affine_nd

TOLERANCE = 1e-3  # voxels: a coordinate this near a whole one is meant to be it
SHEAR = 0.5  # voxels of the network, from one end of the image to the other, that its axes may diverge: headers round
ROUNDED = 1e-4  # cosine of an angle that is meant to be right
Outside = Callable[[torch.Tensor, int, torch.Tensor], torch.Tensor]
OUTSIDE = 0.5 + TOLERANCE  # voxels beyond the border of the network's grid that still take its edge value


def file_grid(image: MetaTensor) -> tuple[npt.NDArray[np.float64], list[int]]:
    """(affine [4, 4], shape of three axes) of the file that an image was loaded from; pictures have 1 mm pixels."""
    affine = to_affine_nd(3, np.asarray(image.meta.get("original_affine", np.eye(4)), float))
    shape = [int(n) for n in np.asarray(image.meta["spatial_shape"])[:3]]
    return np.asarray(affine), [*shape, 1][:3]


def straightened(affine: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """An affine [4, 4] whose axes stand at right angles, for one of a gantry's tilt, say, whose do not.

    Voxels keep their sides, axes turn as little as may be (polar decomposition), the first voxel stays where it is.
    What is at right angles, but for what headers round, is returned as it is.
    """
    whole: npt.NDArray[np.float64] = np.asarray(affine, float)
    sides = np.linalg.norm(whole[:3, :3], axis=0)
    directions = whole[:3, :3] / sides
    if np.abs(directions.T @ directions - np.eye(3)).max() < ROUNDED:
        return whole
    left, _, right = np.linalg.svd(directions)
    straight = np.array(whole)
    straight[:3, :3] = left @ right * sides
    return straight


def without_shear(image: MetaTensor) -> None:
    """Move an image, which may have been turned and cropped since it was loaded, to its file's straightened grid.

    Its voxels stay as they are. Resampling along its axes then has a way back, which a sheared one has not.
    """
    affine, _ = file_grid(image)
    straight = straightened(affine)
    if not np.array_equal(straight, affine):
        image.affine = torch.as_tensor(straight @ np.linalg.inv(affine) @ image.affine.numpy())


def longest_axis(affine: npt.ArrayLike, shape: Sequence[int]) -> int:
    """The axis along which a grid (affine [4, 4] in mm, three sizes in voxels) extends furthest in space.

    A patch is about as long in mm along every axis, so sums of one patch depth are smallest along this one.
    """
    extent = np.linalg.norm(np.asarray(affine, float)[:3, :3], axis=0) * np.asarray(shape[:3], float)
    return int(np.argmax(np.round(extent / extent.max(), 6)))  # of equal ones the first, though headers round


def background(block: torch.Tensor, axis: int, index: torch.Tensor) -> torch.Tensor:
    """Probabilities [K, ...] of exclusive classes with class 0 at `index` along a spatial axis."""
    block = block.index_fill(1 + axis, index, 0.0)
    block[0].index_fill_(axis, index, 1.0)
    return block


@dataclass(frozen=True)
class AxisMap:
    """For each axis of the original grid: its network axis, and network index = scale * original index + offset.

    The original grid is walked in chunks of planes along its `chunk_axis`, the network's along `stream_axis`.
    """

    axes: tuple[int, int, int]
    scales: tuple[float, float, float]
    offsets: tuple[float, float, float]
    network_shape: tuple[int, int, int]
    original_shape: tuple[int, int, int]
    chunk_axis: int

    @classmethod
    def between(
        cls,
        network_affine: npt.ArrayLike,
        network_shape: Sequence[int],
        original_affine: npt.ArrayLike,
        original_shape: Sequence[int],
        chunk_axis: int | None = None,
    ) -> AxisMap:
        """Affines [4, 4] map voxels to mm; without a `chunk_axis`, chunks run along the network's first axis.

        Raises ValueError where the grids are rotated or sheared against one another, by more than SHEAR somewhere.
        """
        matrix = np.linalg.solve(np.asarray(network_affine, float), np.asarray(original_affine, float))
        linear = matrix[:3, :3]
        axes = [int(a) for a in np.abs(linear).argmax(0)]
        scales = linear[axes, range(3)]
        rest = linear.copy()
        rest[axes, range(3)] = 0.0
        if sorted(axes) != [0, 1, 2] or (np.abs(rest) @ np.asarray(original_shape[:3], float)).max() > SHEAR:
            raise ValueError(
                "the network's grid is rotated or sheared against the image's, so there is no way back: "
                "preprocessing must keep the image's axes"
            )
        offsets = matrix[axes, 3]
        return cls(
            (axes[0], axes[1], axes[2]),
            (float(scales[0]), float(scales[1]), float(scales[2])),
            (float(offsets[0]), float(offsets[1]), float(offsets[2])),
            (int(network_shape[0]), int(network_shape[1]), int(network_shape[2])),
            (int(original_shape[0]), int(original_shape[1]), int(original_shape[2])),
            axes.index(0) if chunk_axis is None else chunk_axis,
        )

    @property
    def stream_axis(self) -> int:
        """The network axis that runs along `chunk_axis`: chunks of the original grid need few planes of it."""
        return self.axes[self.chunk_axis]

    def coordinates(self, axis: int, start: int, stop: int) -> npt.NDArray[np.float64]:
        """Network indices of the original indices start..stop-1 along an original axis; whole ones where meant so."""
        exact = self.scales[axis] * np.arange(start, stop) + self.offsets[axis]
        whole = np.rint(exact)
        return np.where(np.abs(exact - whole) < TOLERANCE, whole, exact)

    def planes(self, start: int, stop: int) -> tuple[int, int]:
        """The planes [first, last) along the network's `stream_axis` that a chunk of the original grid needs."""
        points = self.coordinates(self.chunk_axis, start, stop)
        points = np.clip(points, 0, self.network_shape[self.stream_axis] - 1)
        return int(np.floor(points.min())), int(np.ceil(points.max())) + 1

    def chunk_length(self, voxel_bytes: int, limit: int) -> int:
        """Planes of the original grid a chunk may have, at least 1, for `limit` bytes in either grid.

        `voxel_bytes` is what one voxel takes (4 bytes a class, say); a coarse image may need many fine planes.
        """
        original = voxel_bytes * int(np.prod(self.original_shape)) // self.original_shape[self.chunk_axis]
        network = voxel_bytes * int(np.prod(self.network_shape)) // self.network_shape[self.stream_axis]
        needed = abs(self.scales[self.chunk_axis]) * network  # bytes of network planes for one more original plane
        return max(1, int(min(limit / max(1, original), (limit - 2 * network) / max(1.0, needed))))

    def resample(
        self, block: torch.Tensor, first: int, start: int, stop: int, outside: Outside = background
    ) -> torch.Tensor:
        """Probabilities of a chunk of the original grid, [K, ...] in its axis order.

        `block` is [K, ...] in the network's axis order; along `stream_axis` it holds the planes from `first` on.
        Linear between voxels; out of the network's grid (it saw a crop) all is what `outside` fills in.
        """
        points = [self.coordinates(a, *((start, stop) if a == self.chunk_axis else self._all(a))) for a in range(3)]
        # what shrinks goes first: no step between holds more than what came or what goes
        for axis in sorted(range(3), key=lambda a: len(points[a]) / block.shape[1 + self.axes[a]]):
            dim = self.axes[axis]
            inside = np.clip(points[axis], 0, self.network_shape[dim] - 1)
            block = _interpolate(block, 1 + dim, inside - (first if axis == self.chunk_axis else 0))
        block = block.permute(0, *(1 + a for a in self.axes))
        for axis in range(3):
            size = self.network_shape[self.axes[axis]]
            beyond = np.flatnonzero((points[axis] < -OUTSIDE) | (points[axis] > size - 1 + OUTSIDE))
            if beyond.size:
                block = outside(block, axis, torch.from_numpy(beyond).to(block.device))
        return block

    def _all(self, axis: int) -> tuple[int, int]:
        return 0, self.original_shape[axis]


def _interpolate(block: torch.Tensor, dim: int, points: npt.NDArray[np.float64]) -> torch.Tensor:
    """Linear interpolation along one dimension at fractional `points` within it."""
    low = np.floor(points).astype(np.int64)
    weight = points - low
    if not weight.any():
        if len(low) == block.shape[dim] and (low == np.arange(len(low))).all():
            return block
        return block.index_select(dim, torch.from_numpy(low).to(block.device))
    high = np.minimum(low + 1, block.shape[dim] - 1)
    shape = [-1 if d == dim else 1 for d in range(block.dim())]
    share = torch.from_numpy(weight).to(block.device, block.dtype).reshape(shape)
    below = block.index_select(dim, torch.from_numpy(low).to(block.device))
    return below.lerp_(block.index_select(dim, torch.from_numpy(high).to(block.device)), share)
