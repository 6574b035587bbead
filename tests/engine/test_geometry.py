"""The way back to the image's grid, against MONAI's own inverse and against ramps whose every value is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, CropForegroundd, Invertd, LoadImaged, Orientationd, Spacingd

from autoseg.engine.geometry import AxisMap, longest_axis

ORIENTATIONS = {
    "RAS": np.diag([1.5, 0.8, 2.5, 1.0]),
    "LPS": np.diag([-1.5, -0.8, 2.5, 1.0]),
    "ASR": np.array([[0, 0, 2.5, 0], [1.5, 0, 0, 0], [0, 0.8, 0, 0], [0, 0, 0, 1.0]]),
    "PIR": np.array([[0, 0, 2.5, 0], [-1.5, 0, 0, 0], [0, -0.8, 0, 0], [0, 0, 0, 1.0]]),
}


def preprocess(path: Path, spacing: tuple[float, ...] | None, crop: bool) -> tuple[dict[str, Any], Compose]:
    steps: list[Any] = [LoadImaged("image", ensure_channel_first=True), Orientationd("image", "RAS", labels=None)]
    steps += [CropForegroundd("image", "image", allow_smaller=True)] if crop else []
    steps += [Spacingd("image", spacing, padding_mode="border")] if spacing else []
    transforms = Compose(steps)
    return transforms({"image": str(path)}), transforms


def save(path: Path, data: np.ndarray, affine: np.ndarray) -> Path:
    affine = affine.copy()
    affine[:3, 3] = [11.0, -7.0, 30.0]
    nib.save(nib.Nifti1Image(data.astype(np.float32), affine), path)
    return path


def grid_map(image: MetaTensor, chunk_axis: int | None = None) -> AxisMap:
    shape = [int(n) for n in image.meta["spatial_shape"]]
    return AxisMap.between(image.affine.numpy(), image.shape[1:], image.meta["original_affine"], shape, chunk_axis)


def way_back(volume: torch.Tensor, grid: AxisMap, step: int) -> torch.Tensor:
    """The volume [K, ...] on the original grid, by chunks of `step` planes that see only the planes they ask for."""
    chunks = []
    for start in range(0, grid.original_shape[grid.chunk_axis], step):
        stop = min(grid.original_shape[grid.chunk_axis], start + step)
        first, last = grid.planes(start, stop)
        chunks.append(grid.resample(volume.narrow(1 + grid.stream_axis, first, last - first), first, start, stop))
    return torch.cat(chunks, 1 + grid.chunk_axis)


@pytest.mark.parametrize("chunk_axis", [None, 0, 1, 2])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_without_resampling_every_voxel_comes_back(odd_path: Path, orientation: str, chunk_axis: int | None) -> None:
    data = np.zeros((13, 9, 11), np.float32)
    data[2:10, 1:8, 3:9] = 1 + np.random.default_rng(0).random((8, 7, 6))
    loaded, _ = preprocess(save(odd_path / "image.nii.gz", data, ORIENTATIONS[orientation]), None, crop=True)
    image = loaded["image"]
    assert sorted(image.shape[1:]) == [6, 7, 8]
    grid = grid_map(image, chunk_axis)
    both = torch.cat([torch.zeros_like(image.as_tensor()), image.as_tensor()])  # class 0 is made 1 outside of the crop
    back = way_back(both, grid, step=4)
    assert np.array_equal(back[1].numpy(), data)
    assert np.array_equal(back[0].numpy(), data == 0)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (2.1, 1.3, 0.9), (0.7, 0.7, 5.0)])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_resampled_and_cropped_as_monai_inverts_it(
    tmp_path: Path, orientation: str, spacing: tuple[float, ...]
) -> None:
    data = np.zeros((32, 40, 30), np.float32)
    data[3:22, 4:29, 2:20] = 1
    loaded, transforms = preprocess(save(tmp_path / "i.nii.gz", data, ORIENTATIONS[orientation]), spacing, crop=True)
    image = loaded["image"]
    values = torch.rand((3, *image.shape[1:]), generator=torch.Generator().manual_seed(3))
    smooth = torch.nn.functional.avg_pool3d(values[None], 3, 1, 1)[0]
    inverted = Invertd("pred", transforms, "image", nearest_interp=False)(
        {**loaded, "pred": MetaTensor(smooth, meta=image.meta)}
    )["pred"].numpy()
    grid = grid_map(image)
    back = way_back(smooth, grid, step=7).numpy()
    inside = data > 0
    difference = np.abs(back - inverted)[:, inside]
    assert back.shape == inverted.shape
    assert np.mean(difference > 1e-3) < 1e-3
    # outside all is background, but for what the edge voxels of the network's grid fill: half a voxel of it, and
    # half a one more where its size was rounded up
    margin = [int(1 / abs(scale)) + 1 for scale in grid.scales]
    near = tuple(slice(max(0, a - m), b + m) for a, b, m in zip((3, 4, 2), (22, 29, 20), margin, strict=True))
    far = np.ones_like(inside)
    far[near] = False
    assert far.any()
    assert (back[0][far] == 1).all() and (back[1:][:, far] == 0).all()


def test_a_ramp_is_a_ramp_again_so_the_affines_are_right(tmp_path: Path) -> None:
    x, y, z = np.meshgrid(*(np.arange(n) for n in (24, 20, 16)), indexing="ij")
    ramp = 10 + x + 30.0 * y + 700.0 * z
    path = save(tmp_path / "ramp.nii.gz", ramp, ORIENTATIONS["PIR"])
    image = preprocess(path, (1.0, 1.1, 1.3), crop=False)[0]["image"]
    back = way_back(image.as_tensor(), grid_map(image), step=5)[0].numpy()
    middle = (slice(3, -3),) * 3
    np.testing.assert_allclose(back[middle], ramp[middle], atol=0.5)  # an error of half a voxel in z would be 350


def test_rotated_and_sheared_grids_are_refused() -> None:
    turned = np.eye(4)
    turned[:2, :2] = [[np.cos(0.1), -np.sin(0.1)], [np.sin(0.1), np.cos(0.1)]]
    sheared = np.eye(4)
    sheared[0, 1] = 0.1
    for affine in (turned, sheared):
        with pytest.raises(ValueError, match="rotated or sheared"):
            AxisMap.between(np.eye(4), (9, 9, 9), affine, (9, 9, 9))


def test_a_header_that_is_rounded_is_not_sheared() -> None:
    rounded = np.eye(4)
    rounded[0, 2] = 0.004  # a tenth of a voxel over 25 slices
    assert AxisMap.between(np.eye(4), (25, 25, 25), rounded, (25, 25, 25)).scales == (1.0, 1.0, 1.0)
    with pytest.raises(ValueError, match="rotated or sheared"):
        AxisMap.between(np.eye(4), (25, 25, 150), rounded, (25, 25, 150))


def test_an_oblique_image_keeps_its_way_back(tmp_path: Path) -> None:
    c, s = np.cos(0.3), np.sin(0.3)
    affine = np.array([[c, -s, 0, 0], [s, c, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]) @ np.diag([0.9, 0.9, 3.0, 1.0])
    path = save(tmp_path / "oblique.nii.gz", np.random.default_rng(1).random((12, 14, 8)), affine)
    image = preprocess(path, (1.2, 1.2, 3.0), crop=False)[0]["image"]
    grid = grid_map(image)
    assert grid.scales == pytest.approx((0.75, 0.75, 1.0), abs=1e-6)


def test_chunks_along_the_longest_axis_keep_within_the_limit() -> None:
    assert longest_axis(np.diag([0.8, 0.8, 5.0, 1]), (512, 512, 100)) == 2
    assert longest_axis(np.diag([-1.0, 1.0, 1.0, 1]), (64, 64, 64)) == 0
    assert longest_axis(np.diag([2e-6, 2e-6, 5e-6, 1]), (64, 64, 64)) == 2  # micrometres of a micrometre
    assert longest_axis(np.diag([0.7, 0.7 + 1e-9, 0.7, 1]), (64, 64, 64)) == 0
    # a coarse image of 40 planes, seen by the network five times as fine in all axes
    grid = AxisMap.between(np.diag([1.0, 1, 1, 1]), (200, 250, 300), np.diag([5.0, 5, 5, 1]), (40, 50, 60))
    limit = 30 * 250 * 300 * 4
    step = grid.chunk_length(4, limit)
    assert step == 5
    assert all(
        np.diff(grid.planes(start, start + step))[0] * 250 * 300 * 4 <= limit for start in range(0, 40 - step, step)
    )
    assert grid.chunk_length(4, 1) == 1
