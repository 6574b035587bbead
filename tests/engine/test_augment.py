"""Rotation, scaling and crop in one, against MONAI's two transforms one after the other."""

from __future__ import annotations

import pytest
import torch
from monai.transforms import Affine, CenterSpatialCrop

from autoseg.engine.augment import RandAffineCropd

ROI = (12, 16, 8)


def transform(prob: float = 1.0) -> RandAffineCropd:
    return RandAffineCropd(["image", "label"], ROI, prob, (0.4, 0.4, 0.4), (0.2, 0.2, 0.2), ["bilinear", "nearest"])


def patch() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    image = torch.rand((2, 20, 24, 14), generator=generator)
    return {"image": image, "label": (image[:1] > 0.5).float()}


@pytest.mark.parametrize("seed", range(4))
def test_it_is_monais_affine_and_then_its_crop(seed: int) -> None:
    ours = transform().set_random_state(seed)
    found, given = ours(patch()), patch()
    matrix = ours.affine.rand_affine_grid.get_transformation_matrix()
    assert not torch.allclose(torch.as_tensor(matrix).float(), torch.eye(4), atol=0.02)
    for key, mode, share in (("image", "bilinear", 1.0), ("label", "nearest", 0.998)):
        moved, _ = Affine(affine=matrix, padding_mode="zeros", mode=mode)(given[key])
        wanted = CenterSpatialCrop(ROI)(moved)
        assert found[key].shape == wanted.shape == (len(given[key]), *ROI)
        alike = torch.isclose(torch.as_tensor(found[key]), torch.as_tensor(wanted), atol=1e-4)
        assert alike.float().mean() >= share  # of labels, a voxel may lie on the border of two


def test_without_a_rotation_it_is_the_middle() -> None:
    found = transform(prob=0.0).set_random_state(0)(patch())
    assert torch.equal(torch.as_tensor(found["image"]), patch()["image"][:, 4:16, 4:20, 3:11])


def test_one_random_state_gives_the_same_patches_again_and_another_others() -> None:
    one, again, other = (transform().set_random_state(seed)(patch())["image"] for seed in (1, 1, 2))
    assert torch.equal(torch.as_tensor(one), torch.as_tensor(again)) and not torch.equal(one, other)


def test_it_happens_as_often_as_is_asked() -> None:
    rotated = transform(prob=0.3).set_random_state(0)
    middle = patch()["image"][:, 4:16, 4:20, 3:11]
    changed = sum(not torch.equal(torch.as_tensor(rotated(patch())["image"]), middle) for _ in range(200))
    assert 40 <= changed <= 80
