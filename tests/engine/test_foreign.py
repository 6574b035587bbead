"""Bundles of templates written for MONAI's Auto3DSeg, as the engine predicts by them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

from autoseg.engine.foreign import open_bundle
from autoseg.engine.predictor import Predictor
from autoseg.records import Case

MakeForeign = Callable[..., Path]
CPU = torch.device("cpu")
ONE = "return torch.cat([image * 0, image * 0 + 0.75, image * 0 + 0.25])"


@pytest.mark.parametrize("ending", ["png", "nii.gz"])
@pytest.mark.parametrize("body", [ONE, f"{ONE}[..., None]"])
def test_pictures_are_answered_in_two_or_three_dimensions(
    make_foreign: MakeForeign, tmp_path: Path, ending: str, body: str
) -> None:
    path = tmp_path / f"picture.{ending}"
    pixels = np.arange(12 * 9, dtype=np.uint8).reshape(12, 9)
    if ending == "png":
        Image.fromarray(pixels.T).save(path)  # rows are the second axis
    else:
        nib.save(nib.Nifti1Image(pixels, np.diag([2.0, 3.0, 1.0, 1.0])), path)
    case = Case("picture", (str(path),))
    found, affine = Predictor([open_bundle(make_foreign(body))], CPU).labels(case)
    assert found.shape == (12, 9, 1) and (found == 1).all() and affine.shape == (4, 4)


def test_what_is_not_on_the_image_s_grid_is_refused(make_foreign: MakeForeign, demo_data: Path) -> None:
    case = Case("x", (str(next((demo_data.parent / "images").glob("*.nii.gz"))),))
    bundle = open_bundle(make_foreign("return torch.cat([image] * 3)[:, :, :, 0]"))
    with pytest.raises(
        ValueError, match=r"tinynet_0 gives probabilities of shape \(3, 24, 24\), not \(3, 24, 24, 20\)"
    ):
        Predictor([bundle], CPU).labels(case)
