"""`train.yaml` of a bundle: the training of `scripts/train.py` under the names that MONAI's tools look for."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from autoseg.bundles.inference import sliding_window


def train_config(settings: Mapping[str, Any], network: Mapping[str, Any], patches: Mapping[str, Any]) -> dict[str, Any]:
    """`train.yaml`: the same training as `scripts/train.py`, under the names that MONAI's tools look for."""
    config: dict[str, Any] = {
        "dataset_dir": settings["dataroot"],
        **settings,
        **copy.deepcopy(dict(network)),
        **patches,
    }
    config["device"] = "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')"
    config["network"] = "$@network_def.to(@device)"
    cases = {"_target_": "autoseg.engine.entry.fold_cases", "bundle_root": "@bundle_root"}
    config["train"] = {
        "dataset": {"_target_": "Dataset", "data": {**cases, "part": "training"}, "transform": "@patch_transforms"},
        "inferer": {"_target_": "SimpleInferer"},
        "handlers": [],
        "trainer": {
            "_target_": "autoseg.engine.entry.BundleTrainer",
            "bundle_root": "@bundle_root",
            "max_epochs": "@num_epochs",
        },
    }
    config["validate"] = {
        "dataset": {"_target_": "Dataset", "data": {**cases, "part": "validation"}},
        "inferer": sliding_window(settings, "@validation_overlap"),
    }
    config["run"] = ["$@train#trainer.run()"]
    return config
