"""`train.yaml` of a bundle: the training of `scripts/train.py` under the names that MONAI's tools look for."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from autoseg.bundles.inference import searched, sliding_window
from autoseg.bundles.preprocessing import preprocessing

ELSEWHERE = ("name", "fold", "bundle_root", "dataroot", "num_epochs")  # given by other names, or not to be turned


def train_config(settings: Mapping[str, Any], network: Mapping[str, Any]) -> dict[str, Any]:
    """`train.yaml`: every hyper-parameter that is overridden here reaches the trainer, as `train#trainer#max_epochs`
    and `dataset_dir` do. The datasets are of whole preprocessed cases; the trainer cuts and augments its patches.
    """
    found = searched(settings)
    config: dict[str, Any] = {
        **({"imports": [f"$import {name}" for name in ("json", "os", "pathlib")]} if found else {}),
        "dataset_dir": settings["dataroot"],
        **settings,
        **found,
        **copy.deepcopy(dict(network)),
    }
    config["device"] = "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')"
    config["network"] = "$@network_def.to(@device)"
    cases = {"_target_": "autoseg.engine.entry.fold_cases", "bundle_root": "@bundle_root", "dataroot": "@dataset_dir"}
    overrides = {key: f"@{key}" for key in settings if key not in ELSEWHERE}
    config["train"] = {
        "preprocessing": preprocessing(settings, ["image", "label"]),
        "dataset": {
            "_target_": "Dataset",
            "data": {**cases, "part": "training"},
            "transform": "@train#preprocessing",
        },
        "inferer": {"_target_": "SimpleInferer"},
        "handlers": [],
        "trainer": {
            "_target_": "autoseg.engine.entry.BundleTrainer",
            "bundle_root": "@bundle_root",
            "max_epochs": "@num_epochs",
            "overrides": {**overrides, "dataroot": "@dataset_dir"},
        },
    }
    config["validate"] = {
        "preprocessing": "@train#preprocessing",
        "dataset": {
            "_target_": "Dataset",
            "data": {**cases, "part": "validation"},
            "transform": "@validate#preprocessing",
        },
        "inferer": sliding_window(settings, "@validation_overlap"),
    }
    config["run"] = ["$@train#trainer.run()"]
    return config
