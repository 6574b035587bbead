"""Predicting cases with several bundles, in process and as the job does it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.inferers import sliding_window_inference
from monai.transforms import Invertd

from autoseg.engine.bundle import Bundle
from autoseg.engine.checkpoints import save_checkpoint
from autoseg.engine.combination import Combination
from autoseg.engine.predictor import Predictor
from autoseg.ensemble.__main__ import main
from autoseg.ensemble.predict import predict_cases, usable_bundles
from autoseg.errors import InputError, NoResultError
from autoseg.records import Case, Event
from autoseg.workspace import read_json, read_yaml, write_json, write_yaml

CPU = torch.device("cpu")
VALUES = [0, 2, 300]


@pytest.fixture
def make_members(make_bundle: Callable[..., Path]) -> Callable[..., list[Path]]:
    """`make_members(n, **settings)`: bundles whose networks answer with smooth but unlike label maps."""

    def make(count: int = 3, **settings: Any) -> list[Path]:
        folders = []
        for fold in range(count):
            root = make_bundle(fold=fold, name=f"segresnet_{fold}", **settings)
            conv = {"_target_": "torch.nn.Conv3d", "in_channels": 1, "out_channels": 3, "kernel_size": 5, "padding": 2}
            write_yaml(root / "configs" / "network.yaml", {"network_def": conv}, versioned=False)
            write_yaml(
                root / "configs" / "hyper_parameters.yaml",
                {**Bundle.load(root).settings, "label_values": VALUES},
                versioned=False,
            )
            torch.manual_seed(fold)
            network = torch.nn.Conv3d(1, 3, 5, padding=2)
            network.weight.data.mul_(0.2).add_(torch.tensor([-0.08, 0.02, 0.05]).reshape(3, 1, 1, 1, 1))
            save_checkpoint(root / "models" / "model.pt", network.state_dict())
            folders.append(root)
        return folders

    return make


def awkward_case(folder: Path, name: str = "fall ä") -> Case:
    """A smooth blob in air, stored PIR with anisotropic voxels, an offset and its own header codes."""
    x, y, z = np.ogrid[-1:1:30j, -1:1:34j, -1:1:16j]
    data = 100 * np.exp(-3 * ((x - 0.2) ** 2 + y**2 + (z + 0.1) ** 2)) + 20 * np.sin(9 * x) * np.cos(7 * y)
    data[:4], data[:, -6:], data[:, :, :2] = data.min(), data.min(), data.min()
    affine = np.array([[0, 0, 2.5, -11], [-1.2, 0, 0, 40], [0, -0.9, 0, 7], [0, 0, 0, 1.0]])
    image = nib.Nifti1Image(data.astype(np.float32), affine)
    image.header.set_xyzt_units("mm")
    image.set_qform(affine, 1)
    image.set_sform(affine, 4)
    path = folder / f"{name}.nii.gz"
    nib.save(image, path)
    return Case(name, (str(path),))


@torch.inference_mode()
def by_monai(folders: list[Path], case: Case, mode: str) -> np.ndarray:
    """Label map as MONAI's parts make it: its sliding window, its inverse, then the mean or the vote of all."""
    each = []
    for folder in folders:
        bundle = Bundle.load(folder)
        transforms = bundle.preprocessing()
        loaded = transforms({"image": list(case.image)})
        network = bundle.trained_network()
        probabilities = sliding_window_inference(
            loaded["image"].as_tensor()[None],
            bundle.settings["roi_size"],
            1,
            lambda x, network=network: torch.softmax(network(x), 1),
            overlap=bundle.settings["overlap"],
            mode="gaussian",
        )[0]
        pred = MetaTensor(probabilities, meta=dict(loaded["image"].meta))
        back = Invertd("pred", transforms, "image", nearest_interp=False)({**loaded, "pred": pred})
        each.append(back["pred"].numpy())
    mean = np.mean(each, 0)
    if mode == "vote":
        mean = 0.5 * mean + sum(np.moveaxis(np.eye(3)[one.argmax(0)], -1, 0) for one in each)
    return np.asarray(VALUES)[mean.argmax(0)]


def test_a_spacing_that_no_case_had_is_resampled_and_one_that_is_near_is_not(
    make_members: Callable[..., list[Path]], odd_path: Path
) -> None:
    case, labels = awkward_case(odd_path), {}
    own = [float(n) for n in nib.as_closest_canonical(nib.load(case.image[0])).header.get_zooms()]
    near = [0.97 * n for n in own]
    for name, target in (("far", [1.4, 1.4, 1.4]), ("near", near)):
        for resample in (False, True):
            (root,) = make_members(1, resample=resample, resample_to_spacing=target)
            bundle = Bundle.load(root)
            seen = bundle.preprocess(case).pixdim.tolist()
            labels[name, resample] = Predictor([bundle], CPU).predict(case).labels
            assert seen == pytest.approx(own if (name, resample) == ("near", False) else target, rel=1e-3)
    assert np.array_equal(labels["far", False], labels["far", True])
    assert not np.array_equal(labels["near", False], labels["near", True])


def test_a_bundle_of_before_is_preprocessed_as_its_files_say(
    make_members: Callable[..., list[Path]], odd_path: Path
) -> None:
    """Its cases were alike, so its last step is not the resampling: no step is left out."""
    case = awkward_case(odd_path)
    own = [float(n) for n in nib.as_closest_canonical(nib.load(case.image[0])).header.get_zooms()]
    (root,) = make_members(1, resample=False, resample_to_spacing=own)
    now = Bundle.load(root).preprocess(case)
    path = root / "configs" / "transforms_infer.yaml"
    config = read_yaml(path)
    assert config["preprocessing"]["transforms"].pop()["_target_"] == "Spacingd"
    write_yaml(path, config, versioned=False)
    assert torch.equal(Bundle.load(root).preprocess(case).as_tensor(), now.as_tensor())


@pytest.mark.parametrize("mode", ["mean", "vote"])
@pytest.mark.parametrize("resample", [False, True])
def test_agrees_with_monai_on_an_awkward_image(
    make_members: Callable[..., list[Path]], odd_path: Path, resample: bool, mode: str
) -> None:
    case = awkward_case(odd_path)
    own = [float(n) for n in nib.as_closest_canonical(nib.load(case.image[0])).header.get_zooms()]
    folders = make_members(resample=resample, resample_to_spacing=[1.4, 1.4, 1.4] if resample else own)
    output = odd_path / "out" / "x_ensemble.nii.gz"
    done = predict_cases(
        folders, [case], lambda case: output, combination=Combination(mode), device=CPU, scratch=odd_path
    )
    assert (done.predictions, done.errors) == ({case.id: output}, {})
    found, source = nib.load(output), nib.load(case.image[0])
    labels = np.asarray(found.dataobj)
    expected = by_monai(folders, case, mode)
    assert set(np.unique(expected)) == set(VALUES) == set(np.unique(labels))
    if resample:  # MONAI fills outside of the crop itself, this the half voxel around the network's grid
        inside = np.asarray(source.dataobj) > np.asarray(source.dataobj).min()
        assert (labels == expected)[inside].mean() >= 0.999
        assert (labels == expected).mean() >= 0.98
    else:
        assert (labels == expected).mean() >= 0.9999
    assert found.get_data_dtype() == np.uint16 and found.shape == source.shape
    np.testing.assert_array_equal(found.affine, source.affine)
    for field in ("qform_code", "sform_code", "xyzt_units", "pixdim"):
        np.testing.assert_array_equal(found.header[field], source.header[field])


def test_a_case_that_fails_stops_no_other(make_members: Callable[..., list[Path]], odd_path: Path) -> None:
    good = awkward_case(odd_path)
    (odd_path / "torn.nii.gz").write_bytes(Path(good.image[0]).read_bytes()[:300])
    cases = [Case("torn", (str(odd_path / "torn.nii.gz"),)), Case("gone", (str(odd_path / "no.nii"),)), good]
    events: list[Event] = []
    folder = odd_path / "out"
    done = predict_cases(
        make_members(1), cases, lambda case: folder / f"{case.id}.nii.gz", device=CPU, notify=events.append
    )
    assert set(done.predictions) == {good.id} and set(done.errors) == {"torn", "gone"}
    assert [path.name for path in folder.iterdir()] == [f"{good.id}.nii.gz"]
    assert [e.facts["case"] for e in events if e.kind == "warning"] == ["torn", "gone"]
    assert [e.facts["done"] for e in events if e.kind == "progress"] == [1, 2, 3]


def test_a_foreign_member_that_fails_costs_no_case_and_is_named(
    make_members: Callable[..., list[Path]], make_foreign: Callable[..., Path], odd_path: Path
) -> None:
    case, (ours,) = awkward_case(odd_path), make_members(1)
    broken = make_foreign("raise OSError('no eyes')", label_values=VALUES)
    unmade = make_foreign("pass", "blind_0", label_values=VALUES)
    (unmade / "scripts" / "infer.py").write_text("class InferClass: ...")
    events: list[Event] = []
    outputs = [odd_path / "alone.nii.gz", odd_path / "out.nii.gz"]
    predict_cases([ours], [case], lambda case: outputs[0], device=CPU)
    done = predict_cases([ours, broken, unmade], [case], lambda case: outputs[1], device=CPU, notify=events.append)
    assert (done.predictions, done.errors) == ({case.id: outputs[1]}, {})
    assert done.left_out == [event.message for event in events if event.kind == "warning"]
    assert [words in said for words, said in zip(("blind_0", "no eyes"), done.left_out, strict=True)] == [True, True]
    alone, found = (np.asarray(nib.load(path).dataobj) for path in outputs)
    np.testing.assert_array_equal(found, alone)


def test_members_without_usable_weights_are_left_out_with_a_word(make_members: Callable[..., list[Path]]) -> None:
    missing, torn, nan, good = make_members(4)
    (missing / "models" / "model.pt").unlink()
    (torn / "models" / "model.pt").write_bytes(b"PK\x03\x04 no checkpoint")
    state = torch.load(nan / "models" / "model.pt", weights_only=True)
    state["bias"][1] = float("nan")
    save_checkpoint(nan / "models" / "model.pt", state)
    events: list[Event] = []
    bundles = usable_bundles([missing, torn, nan, good.parent / "no such bundle", good], events.append)
    assert [bundle.root.name for bundle in bundles] == [good.name]
    words = [event.message for event in events]
    assert [event.kind for event in events] == ["warning"] * 4
    assert "missing" in words[0] and "cannot be read" in words[1] and "not finite" in words[2]
    assert "no such bundle" in words[3]
    with pytest.raises(NoResultError):
        usable_bundles([missing], events.append)


def test_members_must_agree_on_the_labels(make_members: Callable[..., list[Path]]) -> None:
    one, other = make_members(2)
    settings = Bundle.load(other).settings
    write_yaml(other / "configs" / "hyper_parameters.yaml", {**settings, "label_values": [0, 1, 5]}, versioned=False)
    with pytest.raises(InputError, match="label_values"):
        usable_bundles([one, other], print)
    with pytest.raises(InputError, match="neither mean nor vote"):
        predict_cases([one], [], lambda case: one, combination=Combination("median"), device=CPU)


def spec_for(folder: Path, bundles: list[Path], cases: list[Case]) -> Path:
    outputs = {case.id: str(folder / "ensemble_output" / case.id / f"{case.id}_ensemble.nii.gz") for case in cases}
    spec = {
        "bundles": bundles,
        "cases": cases,
        "outputs": outputs,
        "combination": {"mode": "mean"},
        "scratch": folder / "scratch",
    }
    spec |= {"results": folder / "predictions.json", "progress": folder / "metrics.jsonl"}
    write_json(folder / "spec.json", spec)
    return folder / "spec.json"


def test_the_prediction_process(make_members: Callable[..., list[Path]], odd_path: Path) -> None:
    case, gone = awkward_case(odd_path), Case("gone", (str(odd_path / "gone.nii.gz"),))
    spec = spec_for(odd_path, make_members(2), [case, gone])
    (odd_path / "metrics.jsonl").write_text('{"step": 7}\n')  # an earlier try's
    command = [sys.executable, "-m", "autoseg.ensemble", "predict", str(spec)]
    root = str(Path(__file__).resolve().parents[2])
    answer = subprocess.run(
        command, capture_output=True, text=True, cwd=odd_path, env={**os.environ, "PYTHONPATH": root}
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    results = read_json(odd_path / "predictions.json")
    assert list(results["predictions"]) == [case.id] and Path(results["predictions"][case.id]).is_file()
    assert list(results["errors"]) == ["gone"]
    lines = [json.loads(line) for line in (odd_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["num_iterations"]) for line in lines] == [(1, 2), (2, 2)]


def test_exit_codes(make_members: Callable[..., list[Path]], odd_path: Path) -> None:
    bundles = make_members(1)
    gone = Case("gone", (str(odd_path / "gone.nii.gz"),))
    assert main(["predict", str(spec_for(odd_path, bundles, [gone]))]) == 1
    assert list(read_json(odd_path / "predictions.json")["errors"]) == ["gone"]
    (bundles[0] / "models" / "model.pt").unlink()
    assert main(["predict", str(spec_for(odd_path, bundles, [gone]))]) == 4
    write_json(odd_path / "spec.json", {"cases": []})
    assert main(["predict", str(odd_path / "spec.json")]) == main(["predict"]) == 2
