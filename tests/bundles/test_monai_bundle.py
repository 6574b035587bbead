"""Every family's bundle under MONAI's own tools: specification, properties, commands, prediction without autoseg."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jsonschema
import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow, ckpt_export, verify_net_in_out

from autoseg.bundles.metadata import bundle_metadata
from autoseg.bundles.templates import skeleton_settings
from autoseg.engine.bundle import Bundle
from autoseg.engine.predictor import Predictor
from autoseg.engine.trainer import Trainer
from autoseg.workspace import read_json

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = json.loads(Path(__file__).with_name("metadata.schema.json").read_text())
# `python -m monai.bundle ...` where nobody can import autoseg
WITHOUT_AUTOSEG = """
import runpy, sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "autoseg":
            raise ImportError("autoseg is blocked")
sys.meta_path.insert(0, Blocked())
runpy.run_module("monai.bundle", run_name="__main__", alter_sys=True)
"""


@pytest.fixture
def trained(family_bundle: Path, tmp_path: Path) -> Path:
    """A copy of the family's work_dir, so that a test may write into its bundle."""
    shutil.copytree(family_bundle.parent, tmp_path / "moved")
    return tmp_path / "moved" / family_bundle.name


def workflow(root: Path, name: str, **overrides: object) -> ConfigWorkflow:
    kind = {"train": "train", "inference": "inference"}[name]
    files = {"config_file": str(root / "configs" / f"{name}.yaml"), "meta_file": str(root / "configs/metadata.json")}
    found = ConfigWorkflow(**files, workflow_type=kind, logging_file=False, bundle_root=str(root), **overrides)
    found.initialize()
    return found


def test_metadata_is_as_the_specification_asks(family_bundle: Path) -> None:
    jsonschema.validate(read_json(family_bundle / "configs" / "metadata.json"), SCHEMA)


@pytest.mark.parametrize(
    ("changes", "outputs"),
    [
        ({"normalize_mode": "ct", "modality": "CT", "label_values": [0, 4], "class_names": {"4": "liver"}}, 2),
        ({"regions": [[1, 2], [2]], "class_names": {"1": "whole", "2": "core"}, "output_classes": 2}, 2),
        ({"spatial_dims": 2, "slice_axis": 1, "roi_size": [64, 1, 48]}, 2),
    ],
)
def test_metadata_of_other_data(changes: dict[str, object], outputs: int) -> None:
    settings = {**skeleton_settings(), "name": "some", **changes}
    found = bundle_metadata(settings)
    jsonschema.validate(found, SCHEMA)
    prediction = found["network_data_format"]["outputs"]["pred"]
    assert len(prediction["channel_def"]) == prediction["num_channels"] == outputs
    assert prediction["format"] == ("classes" if "regions" in changes else "labels")
    assert 1 not in prediction["spatial_shape"]


def test_the_schema_can_fail() -> None:
    found = bundle_metadata({**skeleton_settings(), "name": "some"})
    for key in ("task", "network_data_format"):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({k: v for k, v in found.items() if k != key}, SCHEMA)


@pytest.mark.parametrize("name", ["train", "inference"])
def test_no_property_is_missing_or_misplaced(family_bundle: Path, name: str) -> None:
    found = workflow(family_bundle, name)
    assert found.check_properties() == []
    assert found.bundle_root == str(family_bundle)
    if name == "train":
        case = found.train_dataset[0]
        assert case["image"].shape == case["label"].shape
        assert set(np.unique(case["label"])) <= {0, 1, 3}
        assert len(found.train_dataset) + len(found.val_dataset) == 4


def test_the_network_is_as_its_metadata_says_and_can_be_exported(trained: Path) -> None:
    configs = trained / "configs"
    files = {"meta_file": str(configs / "metadata.json"), "config_file": str(configs / "inference.yaml")}
    verify_net_in_out("network_def", **files, device="cpu")
    exported = trained / "models" / "model.ts"
    weights = str(trained / "models" / "model.pt")
    # traced: not every network of MONAI can be scripted (SwinUNETR cannot)
    where = {"filepath": str(exported), "ckpt_file": weights, "bundle_root": str(trained)}
    ckpt_export("network_def", use_trace=True, **where, **files)
    bundle = Bundle.load(trained)
    shape = read_json(configs / "metadata.json")["network_data_format"]["inputs"]["image"]["spatial_shape"]
    patch = torch.rand(1, int(bundle.settings["input_channels"]), *shape)
    with torch.inference_mode():
        torch.testing.assert_close(torch.jit.load(exported).eval()(patch), bundle.trained_network()(patch))


def test_inference_yaml_predicts_what_the_engine_predicts(trained: Path, tmp_path: Path) -> None:
    """Spacings that differ, so that resampling and its inverse act; gaps in the labels; a volume below the patch."""
    bundle = Bundle.load(trained)
    cases = bundle.datalist().testing
    images = tmp_path / "images"
    images.mkdir()
    for case in cases:
        shutil.copy(case.image[0], images)
    workflow(trained, "inference", dataset_dir=str(images), output_dir=str(tmp_path / "out")).run()
    predictor = Predictor([bundle], torch.device("cpu"))
    wrong = foreground = voxels = 0
    for case in cases:
        expected, affine = predictor.predict(case)[:2]
        found = nib.load(tmp_path / "out" / case.id / f"{case.id}_seg.nii.gz")
        np.testing.assert_allclose(found.affine, affine, atol=1e-4)
        labels = np.asarray(found.dataobj)
        assert set(np.unique(labels)) <= {0, 1, 3}
        wrong += (labels != expected).sum()
        foreground += (expected > 0).sum()
        voxels += expected.size
    assert foreground > 0.01 * voxels, "a network that finds nothing proves nothing"
    assert wrong <= 0.001 * voxels, f"{wrong} of {voxels} voxels differ"


def command(arguments: list[str], cwd: Path, code: str | None = None) -> str:
    """Output of `python -m monai.bundle ...`; without autoseg on its path where `code` runs it."""
    environment = {**os.environ, "PYTHONPATH": "" if code else str(ROOT)}
    start = [sys.executable, "-c", code] if code else [sys.executable, "-m", "monai.bundle"]
    done = subprocess.run([*start, *arguments], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def train_inside(root: Path) -> None:
    shutil.rmtree(root / "models")
    command(["run", "--config_file", "configs/train.yaml", "--train#trainer#max_epochs", "2"], root)
    bundle = Bundle.load(root)
    a_step = int(bundle.settings["num_images_per_batch"])
    assert read_json(root / "scores.json")["steps"] == 2 * math.ceil(len(bundle.cases()[0]) / a_step)
    assert (root / "models" / "model.pt").is_file()


def train_elsewhere(root: Path) -> None:
    shutil.rmtree(root / "models")
    arguments = ["run", "--config_file", str(root / "configs" / "train.yaml"), "--bundle_root", str(root)]
    command([*arguments, "--num_iterations", "3", "--learning_rate", "0.0005"], Path("/"))
    assert read_json(root / "scores.json")["steps"] == 3
    line = json.loads((root / "metrics.jsonl").read_text().splitlines()[-1])
    assert line["num_iterations"] == 3 and line["learning_rate"] <= 0.0005


def predict_without_autoseg(root: Path) -> None:
    images = root.parent / "images"
    images.mkdir(exist_ok=True)
    case = Bundle.load(root).datalist().testing[0]
    shutil.copy(case.image[0], images)
    arguments = ["run", "--config_file", "configs/inference.yaml", "--dataset_dir", str(images)]
    command([*arguments, "--output_dir", str(root.parent / "out")], root, WITHOUT_AUTOSEG)
    assert (root.parent / "out" / case.id / f"{case.id}_seg.nii.gz").is_file()


def verify_and_export(root: Path) -> None:
    configs = ["--meta_file", "configs/metadata.json", "--config_file", "configs/inference.yaml"]
    assert "verified with no error" in command(["verify_net_in_out", "--net_id", "network_def", *configs], root)
    command(["ckpt_export", "--net_id", "network_def", "--use_trace", "True", *configs], root)
    assert (root / "models" / "model.ts").is_file()


@pytest.fixture
def first_bundle(make_bundle: Callable[..., Path]) -> Path:
    """A bundle of segresnet with weights, for the commands that are slow to start."""
    root = make_bundle(num_iterations=1, num_epochs=5)
    Trainer(Bundle.load(root)).run()
    return root


COMMANDS = [train_inside, train_elsewhere, predict_without_autoseg, verify_and_export]


@pytest.mark.parametrize("act", COMMANDS[:3])
def test_commands(act: Callable[[Path], None], first_bundle: Path) -> None:
    act(first_bundle)


@pytest.mark.slow
@pytest.mark.parametrize("act", COMMANDS)
def test_commands_on_every_family(act: Callable[[Path], None], trained: Path) -> None:
    act(trained)
