"""The scripts of a bundle keep Auto3DSeg's contract."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import pytest
import torch

from autoseg.engine import entry
from autoseg.engine.budget import Budget
from autoseg.engine.bundle import Bundle
from autoseg.engine.entry import fold_cases, score_validation
from autoseg.engine.trainer import Hook, Trainer
from autoseg.workspace import read_yaml

MakeBundle = Callable[..., Path]


def test_train_py_runs_from_anywhere_with_overrides_and_refuses_unknown_ones(make_bundle: MakeBundle) -> None:
    root = make_bundle()
    configs = ",".join(str(p) for p in sorted((root / "configs").iterdir()))
    command = [sys.executable, str(root / "scripts" / "train.py"), "run", f"--config_file={configs}"]
    refused = subprocess.run([*command, "--num_iteration=2"], cwd="/", capture_output=True, text=True)
    assert refused.returncode == 2
    assert "num_iterations" in refused.stdout
    assert not (root / "models" / "model.pt").exists()
    # as MONAI's AutoRunner writes a list, and Auto3DSeg's own words, which change no result
    said = ["--num_iterations=2", "--roi_size='16,16,8'", "--mirror_axes='1'", "--cache_rate=1.0"]
    done = subprocess.run([*command, *said], cwd="/", capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    scores = json.loads((root / "scores.json").read_text())
    assert scores["steps"] == 2
    assert {row["case"] for row in scores["cases"]} == {
        Path(c["image"]).name.removesuffix(".nii.gz") for c in fold_cases(str(root), "validation")
    }
    assert "mean Dice" in (root / "training.log").read_text()
    # what the weights need stays with them, what only trained them does not
    kept = Bundle.load(root).settings
    assert kept["roi_size"] == read_yaml(root / "configs" / "inference.yaml")["roi_size"] == [16, 16, 8]
    assert kept["num_iterations"] != 2


def test_train_py_runs_inside_the_bundle_for_so_many_epochs(make_bundle: MakeBundle) -> None:
    root = make_bundle(num_iterations=None, num_epochs=9)
    names = "configs/hyper_parameters.yaml,configs/network.yaml"
    command = [sys.executable, "scripts/train.py", "run", "--config_file", names, "--training#num_epochs", "2"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((root / "scores.json").read_text())["steps"] == 2 * 2  # three cases, two a step


def test_overrides_of_a_command_line_become_what_the_bundle_holds(make_bundle: MakeBundle) -> None:
    words = {"roi_size": "16,16,8", "mirror_axes": "1", "learning_rate": "1e-4", "gamma_range": (0.8, 1.2), "rank": 0}
    changed = entry._bundle(make_bundle(), {**words, "training#num_epochs": 3, "num_iterations": None}).settings
    assert (changed["roi_size"], changed["mirror_axes"], changed["learning_rate"]) == ([16, 16, 8], [1], 1e-4)
    assert (changed["gamma_range"], changed["num_epochs"], changed["num_iterations"]) == ([0.8, 1.2], 3, None)


def test_infer_class_gives_probabilities_on_the_image_s_grid(make_bundle: MakeBundle) -> None:
    root = make_bundle(num_iterations=1)
    Trainer(Bundle.load(root)).run()
    spec = importlib.util.spec_from_file_location("InferClass", root / "scripts" / "infer.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    inferer = module.InferClass([str(root / "configs" / "network.yaml")], rank=0, image_save_func=None)
    case = Bundle.load(root).datalist().testing[0]
    for given in (case.image[0], {"image": case.image[0], "label": case.label}):
        found = inferer.infer(given)
        assert found.shape == (3, *nib.load(case.image[0]).shape)  # type: ignore[attr-defined]
        assert torch.allclose(found.sum(0), torch.ones(found.shape[1:]), atol=5e-3)
        assert found.meta["filename_or_obj"] == case.image[0]


def test_scores_are_of_the_validation_fold_alone(make_bundle: MakeBundle) -> None:
    root = make_bundle(fold=1, num_iterations=1)
    bundle = Bundle.load(root)
    Trainer(bundle).run()
    score_validation(bundle, {})
    rows = json.loads((root / "scores.json").read_text())["cases"]
    assert {row["case"] for row in rows} == {case.id for case in bundle.cases()[1]}
    assert not {row["case"] for row in rows} & {case.id for case in bundle.cases()[0]}


def test_a_training_without_time_for_a_validation_is_scored_by_its_last_weights(
    make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Budget, "_has_time", lambda *_: False)
    root = make_bundle(num_iterations=20, deadline=time.time() + 600)
    entry.train(root, {})
    assert same_weights(root, "model", "model_final")
    lines = [json.loads(line) for line in (root / "metrics.jsonl").read_text().splitlines()]
    assert not any("mean_dice" in line for line in lines)
    assert [line["step"] for line in lines if line.get("checkpoint")] == list(range(2, 21, 2))
    (only,) = read_yaml(root / "progress.yaml")
    assert only["avg_dice_score"] == only["best_avg_dice_score"] == score_of(root) and only["step"] == 20


def test_weights_that_were_validated_early_give_way_to_the_last(
    make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the machine became slow, there is no time for another validation."""
    monkeypatch.setattr(Budget, "_has_time", lambda *_: not list(root.glob("models/checkpoint.pt")))
    root = make_bundle(num_iterations=20, deadline=time.time() + 600)
    entry.train(root, {})
    assert same_weights(root, "model", "model_final")
    assert [e["step"] for e in read_yaml(root / "progress.yaml")] == [2, 20]
    assert read_yaml(root / "progress.yaml")[-1]["avg_dice_score"] == score_of(root)


def test_a_training_goes_on_from_a_checkpoint_without_a_score(
    make_bundle: MakeBundle, stop_at: Callable[[int], Hook], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Budget, "_has_time", lambda *_: False)
    # by steps alone: were time counted, the first training of a process would learn at other rates than the second
    monkeypatch.setattr(Budget, "share", lambda budget, progress, seconds: progress.step / budget.steps)
    whole, torn = (make_bundle(name=name, num_iterations=20, deadline=time.time() + 600) for name in ("w_0", "t_0"))
    Trainer(Bundle.load(whole)).run()
    with pytest.raises(KeyboardInterrupt):
        Trainer(Bundle.load(torn), hooks=(stop_at(7),)).run()
    assert torch.load(torn / "models" / "checkpoint.pt", weights_only=True)["progress"]["step"] == 6
    Trainer(Bundle.load(torn)).run()
    one, other = (torch.load(root / "models" / "model.pt", weights_only=True) for root in (whole, torn))
    assert all(torch.equal(one[key], other[key]) for key in other)


def test_a_training_that_goes_on_when_its_time_is_over_is_scored(
    make_bundle: MakeBundle, stop_at: Callable[[int], Hook], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was killed without ever having been validated, and there is no time for another step."""
    monkeypatch.setattr(Budget, "_has_time", lambda *_: False)
    root = make_bundle(num_iterations=20, deadline=time.time() + 600)
    with pytest.raises(KeyboardInterrupt):
        Trainer(Bundle.load(root), hooks=(stop_at(19),)).run()
    assert not (root / "progress.yaml").exists()
    entry.train(root, {"deadline": time.time() - 1})
    (only,) = read_yaml(root / "progress.yaml")
    assert only["step"] == 18 and only["avg_dice_score"] == score_of(root)


def same_weights(root: Path, *names: str) -> bool:
    one, other = (torch.load(root / "models" / f"{name}.pt", weights_only=True) for name in names)
    return all(torch.equal(one[key], other[key]) for key in other)


def score_of(root: Path) -> float:
    return float(json.loads((root / "scores.json").read_text())["mean_dice"])
