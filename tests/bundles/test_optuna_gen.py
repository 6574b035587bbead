"""MONAI's own OptunaGen over our bundles, written as its users write it."""

from __future__ import annotations

import functools
import json
import sys
from pathlib import Path
from typing import Any

import optuna
import pytest
from monai.apps.auto3dseg import OptunaGen, import_bundle_algo_history

from autoseg.config import load_config
from autoseg.pipeline import generate
from autoseg.workspace import read_json, read_yaml

TINY = {"roi_size": [16, 16, 16], "init_filters": 8, "blocks_down": [1, 1], "dsdepth": 1, "num_iterations": 6}


class LearningRate(OptunaGen):  # type: ignore[misc]  # monai is untyped
    """The child class that MONAI asks for."""

    def get_hyperparameters(self) -> dict[str, Any]:
        return {"learning_rate": self.trial.suggest_float("learning_rate", 0.00001, 0.1)}


@pytest.fixture
def algo(demo_data: Path, tmp_path: Path) -> Any:
    """The second fold's Algo out of a generated work_dir; MONAI splits commands at spaces, so there are none."""
    folder = tmp_path / "data"
    demo_data.parent.rename(folder)
    given = {"modality": "MRI", "datalist": str(folder / demo_data.name), "settings": TINY, "num_fold": 2}
    generate(load_config(given, work_dir=str(tmp_path / "work"), algos="segresnet"))
    found = import_bundle_algo_history(str(tmp_path / "work"), only_trained=False)[1]["algo_instance"]
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    found.device_setting["CMD_PREFIX"] = str(python)
    return found


def test_a_study_by_optuna_gen(algo: Any, tmp_path: Path) -> None:
    rates = [0.01, 0.00001]
    gen: Any = LearningRate(algo=algo, params={"num_iterations": 4})
    sampler = optuna.samplers.GridSampler({"learning_rate": rates}, seed=0)
    study = optuna.create_study(sampler=sampler, direction="maximize")
    objective = functools.partial(gen, obj_filename=gen.get_obj_filename(), output_folder=str(tmp_path / "optuna"))
    study.optimize(objective, n_trials=2)
    assert sorted(trial.params["learning_rate"] for trial in study.trials) == sorted(rates)
    split = {entry["image"]: entry["fold"] for entry in read_json(tmp_path / "work" / "datalist.json")["training"]}
    fold_1 = {Path(image).name.removesuffix(".nii.gz") for image, fold in split.items() if fold == 1}
    for trial in study.trials:
        bundle = tmp_path / "optuna" / f"segresnet_1_override_learning_rate_{trial.params['learning_rate']}"
        assert trial.value == read_yaml(bundle / "progress.yaml")[-1]["best_avg_dice_score"]
        scores = read_json(bundle / "scores.json")
        assert scores["steps"] == 4, "what OptunaGen was given, and what the bundle was before, both count"
        assert {row["case"] for row in scores["cases"]} == fold_1
        lines = (bundle / "metrics.jsonl").read_text().splitlines()
        highest = max(json.loads(line)["learning_rate"] for line in lines)
        assert 0.5 < highest / trial.params["learning_rate"] <= 1
    assert study.best_params == {"learning_rate": 0.01}
    trained = import_bundle_algo_history(str(tmp_path / "optuna"), only_trained=True)
    assert {entry["best_metric"] for entry in trained} == {trial.value for trial in study.trials}


@pytest.mark.parametrize(
    ("params", "changed"),
    [
        (None, {}),
        ({"learning_rate": 0.05, "training#init_filters": 4, "no_such": 1}, {"learning_rate": 0.05, "init_filters": 4}),
        ({"num_epochs": 3}, {"num_epochs": 3, "num_iterations": None}),
    ],
)
def test_a_copy_of_a_bundle_is_what_it_was_but_for_what_is_given(algo: Any, params: Any, changed: Any) -> None:
    before = read_yaml(Path(algo.output_path) / "configs" / "hyper_parameters.yaml")
    gen = OptunaGen(algo=algo, params=params)
    gen.update_params({"learning_rate": 0.01})
    gen.generate(str(Path(algo.output_path).parent / "optuna"))
    after = read_yaml(Path(gen.algo.output_path) / "configs" / "hyper_parameters.yaml")
    places = {"datalist": "../../datalist.json", "cache_dir": "../cache/preprocessed"}
    assert after == {**before, **changed, **places}
    assert before["init_filters"] == 8 and before["fold"] == 1
