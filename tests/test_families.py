"""Every family that comes with autoseg on every kind of data: it plans, trains, is scored, predicts what it may."""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from samples import finest

from autoseg.bundles import available_templates
from autoseg.bundles.contract import check_template
from autoseg.config import load_config
from autoseg.engine.bundle import Bundle
from autoseg.engine.classes import Classes
from autoseg.engine.entry import score_validation
from autoseg.engine.predictor import Predictor
from autoseg.engine.trainer import Trainer
from autoseg.pipeline import generate
from autoseg.planning.patch import halved_patch
from autoseg.workspace import read_json

CPU = torch.device("cpu")
FAMILIES = sorted(available_templates())
KINDS = ["isotropic", "anisotropic", "channels", "gaps", "nested", "crossing", "tiny"]
FAST = ["gaps", "thick channels"]
BundleOf = Callable[..., Path]


def written_values(classes: Classes) -> set[int]:
    """What a prediction's file may hold."""
    if classes.in_channels:
        return {0, 1}
    return {0, *(values[0] for values in map(sorted, classes.regions))} if classes.regions else {*classes.values}


def train_and_predict(root: Path, folder: Path) -> Bundle:
    """Train the bundle, score its fold, predict a testing case; all that must be true of any family and data is."""
    bundle = Bundle.load(root)
    progress = Trainer(bundle).run()
    assert math.isfinite(progress.loss) and progress.step > 0
    score_validation(bundle, {})
    classes = Classes.of(bundle.settings)
    scores = read_json(root / "scores.json")
    assert set(scores["dice"]) == {str(key) for key in classes.keys}
    assert 0 <= scores["mean_dice"] <= 1
    assert len(scores["cases"]) == 2 * len(classes.keys)
    case = bundle.datalist().testing[0]
    found = Predictor([bundle], CPU).write(case, folder / "prediction.nii.gz").labels
    prediction = nib.load(folder / "prediction.nii.gz")  # type: ignore[attr-defined]
    assert set(np.unique(found)) <= written_values(classes)
    assert (np.asarray(prediction.dataobj) == found).all()
    masks = (classes.outputs,) if classes.in_channels else ()
    if case.image[0].endswith(".nii.gz"):
        source = nib.load(case.image[0])  # type: ignore[attr-defined]
        assert prediction.shape == (*source.shape[:3], *masks)
        np.testing.assert_allclose(prediction.affine, source.affine)
    return bundle


@pytest.mark.parametrize("kind", FAST)
@pytest.mark.parametrize("family", FAMILIES)
def test_two_epochs(family: str, kind: str, bundle_of_family: BundleOf, odd_path: Path) -> None:
    root = bundle_of_family(family, kind, num_epochs=2)
    bundle = train_and_predict(root, odd_path)
    lines = [json.loads(line) for line in (root / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["epoch"] == 2
    if kind == "gaps":
        assert bundle.settings["label_values"] == [0, 1, 3]
    else:
        assert (bundle.settings["input_channels"], bundle.settings["image_files"]) == (2, 2)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_kind_of_data(family: str, kind: str, bundle_of_family: BundleOf, odd_path: Path) -> None:
    settings: dict[str, Any] = {"num_iterations": 6}
    if kind == "tiny":  # smaller than the patch
        settings["roi_size"] = [32, 32, 1] if family == "segresnet2d" else [64, 32, 32]
    train_and_predict(bundle_of_family(family, kind, **settings), odd_path)


def test_pictures_are_for_networks_of_slices(bundle_of_family: BundleOf, data_of_kind: Any, odd_path: Path) -> None:
    root = bundle_of_family("segresnet2d", "pictures", num_epochs=2)
    bundle = train_and_predict(root, odd_path)
    case = bundle.datalist().testing[0]
    assert case.image[0].endswith(".png")
    prediction = nib.load(odd_path / "prediction.nii.gz")  # type: ignore[attr-defined]
    assert prediction.shape[:2] == (32, 30) and prediction.shape[2:] in ((), (1,))
    config = load_config(None, work_dir=str(odd_path / "w"), datalist=str(data_of_kind("pictures")[0]), modality="MRI")
    assert {path.name.rpartition("_")[0] for path in generate(config)} == {"segresnet2d"}
    plans = read_json(odd_path / "w" / "plan.json")["families"]
    skipped = {name: plan["skip"] for name, plan in plans.items() if plan["skip"]}
    assert skipped == dict.fromkeys(set(FAMILIES) - {"segresnet2d"}, "the images are 2D")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_template_keeps_the_contract(family: str, bundle_of_family: BundleOf) -> None:
    """DESIGN: it plans, materialises, has metadata, trains two iterations on a CPU, and infers."""
    assert check_template(available_templates()[family]) == []
    root = bundle_of_family(family, "isotropic", num_iterations=2)
    for name in ("hyper_parameters", "network", "train", "inference", "transforms_train", "transforms_infer"):
        assert (root / "configs" / f"{name}.yaml").is_file(), name
    assert read_json(root / "configs" / "metadata.json")["network_data_format"]["inputs"]["image"]
    assert Trainer(Bundle.load(root)).run().step == 2
    spec = importlib.util.spec_from_file_location("infer", root / "scripts" / "infer.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    configs = [str(path) for path in (root / "configs").iterdir() if path.suffix == ".yaml"]
    case = Bundle.load(root).datalist().testing[0]
    probabilities = module.InferClass(configs, rank=0).infer({"image": case.image[0]})
    assert probabilities.shape == (3, 32, 30, 24)
    torch.testing.assert_close(probabilities.as_tensor().sum(0), torch.ones(32, 30, 24), atol=1e-3, rtol=0)
    smallest = Bundle.load(root)  # where memory has run out again and again
    while (half := halved_patch(smallest.settings)) is not None:
        smallest.settings["roi_size"] = half
    patch = [n for n in smallest.settings["roi_size"] if n > 1]
    assert torch.isfinite(finest(smallest.network().train()(torch.rand(1, 1, *patch)))).all()
