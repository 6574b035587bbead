"""Bundles of templates written for MONAI's Auto3DSeg, as the engine predicts by them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

from autoseg.engine.combination import Combination
from autoseg.engine.foreign import open_bundle
from autoseg.engine.predictor import Predictor
from autoseg.records import Case, Event

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
    found, affine = Predictor([open_bundle(make_foreign(body))], CPU).predict(case)[:2]
    assert found.shape == (12, 9, 1) and (found == 1).all() and affine.shape == (4, 4)


def test_what_is_not_on_the_image_s_grid_is_refused(make_foreign: MakeForeign, demo_data: Path) -> None:
    case = Case("x", (str(next((demo_data.parent / "images").glob("*.nii.gz"))),))
    bundle = open_bundle(make_foreign("return torch.cat([image] * 3)[:, :, :, 0]"))
    with pytest.raises(
        ValueError, match=r"tinynet_0 gives probabilities of shape \(3, 24, 24\), not \(3, 24, 24, 20\)"
    ):
        Predictor([bundle], CPU).predict(case)


def answers(*probabilities: float, only: str = "") -> str:
    """Code that answers with these probabilities everywhere; with `only`, on images whose path holds that."""
    code = f"return torch.cat([image * 0 + p for p in {probabilities}])"
    return f"assert {only!r} in image_file['image'], 'not mine'; {code}" if only else code


@pytest.mark.parametrize("mode", ["mean", "vote"])
def test_one_that_fails_on_a_case_is_left_out_of_it(make_foreign: MakeForeign, demo_data: Path, mode: str) -> None:
    mine, other = (Case(p.name, (str(p),)) for p in sorted((demo_data.parent / "images").glob("*.nii.gz"))[:2])
    picky = make_foreign(answers(0, 0, 1, only=mine.id), "picky_0")
    sure = make_foreign(answers(0.4, 0.6, 0), "sure_0")
    events: list[Event] = []
    predictor = Predictor([open_bundle(picky), open_bundle(sure)], CPU, Combination(mode), notify=events.append)
    found = {case.id: predictor.probabilities(case)[0][:, 0, 0, 0] for case in (mine, other)}
    if mode == "mean":
        np.testing.assert_allclose(found[mine.id], [0.2, 0.3, 0.5], atol=1e-4)
        np.testing.assert_allclose(found[other.id], [0.4, 0.6, 0], atol=1e-4)
    assert [found[mine.id].argmax(), found[other.id].argmax()] == [2, 1]
    (event,) = events
    assert event.kind == "warning" and event.facts == {"case": other.id}
    assert event.message == f"picky_0 is left out of the prediction of {other.id}: AssertionError: not mine"
    with pytest.raises(AssertionError, match="not mine"):  # nobody is left
        Predictor([open_bundle(picky)], CPU, Combination(mode), notify=events.append).predict(other)
    assert len(events) == 1


def test_an_inferer_makes_way_where_not_all_fit(
    make_foreign: MakeForeign, demo_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case("x", (str(next((demo_data.parent / "images").glob("*.nii.gz"))),))
    bundles = [open_bundle(make_foreign(answers(1, 0, 0), f"tinynet_{fold}")) for fold in (0, 1)]
    Predictor(bundles, CPU).predict(case)
    assert all("inferer" in vars(bundle) for bundle in bundles)
    monkeypatch.setattr("autoseg.engine.predictor.WEIGHT_BYTES", -1)
    Predictor(bundles, CPU).predict(case)
    assert not any("inferer" in vars(bundle) for bundle in bundles)
