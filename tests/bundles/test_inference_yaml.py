"""`inference.yaml` alone predicts what the engine predicts, on at least 99.9 % of the voxels."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow

from autoseg.bundles import available_templates
from autoseg.bundles.marks import patch_file
from autoseg.engine.bundle import Bundle
from autoseg.engine.predictor import Predictor
from autoseg.engine.search import ArchitectureSearch
from autoseg.engine.trainer import Trainer
from autoseg.workspace import read_yaml, write_json

BundleOf = Callable[..., Path]
KINDS = ["anisotropic", "channels", "nested", "crossing", "pictures"]
FAST = [("segresnet", "nested"), ("segresnet", "crossing"), ("segresnet2d", "pictures")]
ALL = [(f, k) for k in KINDS for f in sorted(available_templates()) if k != "pictures" or f == "segresnet2d"]


def predicted_by_monai(root: Path, images: Path, output: Path) -> None:
    ConfigWorkflow(
        config_file=str(root / "configs" / "inference.yaml"),
        meta_file=str(root / "configs" / "metadata.json"),
        workflow_type="inference",
        logging_file=False,
        bundle_root=str(root),
        dataset_dir=str(images),
        output_dir=str(output),
    ).run()


def compare(root: Path, folder: Path) -> None:
    """Both on the testing cases; their files agree in values and geometry."""
    bundle = Bundle.load(root)
    Trainer(bundle).run()
    cases = bundle.datalist().testing
    (folder / "images").mkdir()
    for case in cases:
        for file in case.image:
            shutil.copy(file, folder / "images")
    workflow_output = folder / "out"
    predicted_by_monai(root, folder / "images", workflow_output)
    predictor = Predictor([bundle], torch.device("cpu"))
    wrong = found = voxels = 0
    for case in cases:
        expected, affine = predictor.predict(case)[:2]
        (path,) = workflow_output.rglob(f"{case.id.removesuffix('_0000')}*_seg.nii.gz")
        image = nib.load(path)
        labels = np.asarray(image.dataobj)
        assert labels.shape == expected.shape[: labels.ndim], "MONAI drops a last axis of one voxel"
        labels = labels.reshape(expected.shape)
        np.testing.assert_allclose(image.affine, affine, atol=1e-4)
        assert set(np.unique(labels)) <= {0, *np.unique(expected)}
        wrong += int((labels != expected).sum())
        found += int((expected > 0).sum())
        voxels += expected.size
    assert found > 0.01 * voxels, "a network that finds nothing proves nothing"
    assert wrong <= 0.001 * voxels


@pytest.mark.parametrize(("family", "kind"), FAST)
def test_it_predicts_as_the_engine(family: str, kind: str, bundle_of_family: BundleOf, odd_path: Path) -> None:
    compare(bundle_of_family(family, kind, num_iterations=40), odd_path)


def test_it_mirrors_as_the_engine(bundle_of_family: BundleOf, odd_path: Path) -> None:
    compare(bundle_of_family("segresnet", "channels", num_iterations=40, mirror_axes_inference=[0, 1]), odd_path)


def test_it_takes_the_windows_that_the_weights_were_scored_with(bundle_of_family: BundleOf, odd_path: Path) -> None:
    fewer = {"overlap": 0.25, "mirror_axes_inference": []}
    root = bundle_of_family("segresnet", "channels", num_iterations=40, overlap=0.5, mirror_axes_inference=[0])
    write_json(patch_file(root), fewer)
    assert {key: Bundle.load(root).settings[key] for key in fewer} == fewer
    parser = ConfigParser({**read_yaml(root / "configs" / "inference.yaml"), "bundle_root": str(root)})
    asked = list[torch.Tensor]()
    parser.get_parsed_content("mirrored")(torch.zeros(1), one=asked.append)
    assert parser.get_parsed_content("inferer").overlap == 0.25 and len(asked) == 1
    compare(root, odd_path)


def test_it_takes_the_architecture_that_was_found(bundle_of_family: BundleOf, odd_path: Path) -> None:
    root = bundle_of_family("dints", "isotropic", num_iterations=40, search=True, search_iterations=3)
    ArchitectureSearch(Bundle.load(root)).run()
    compare(root, odd_path)


@pytest.mark.slow
@pytest.mark.parametrize(("family", "kind"), [pair for pair in ALL if pair not in FAST])
def test_every_family_does(family: str, kind: str, bundle_of_family: BundleOf, odd_path: Path) -> None:
    compare(bundle_of_family(family, kind, num_iterations=60), odd_path)
