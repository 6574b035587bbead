"""`inference.yaml` of a bundle: parses alone, and needs MONAI and pytorch-ignite alone."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from typing import Any

from autoseg.bundles.preprocessing import preprocessing

# Every file of the folder is a case; or, where a case has one file a channel, the files <case>_0000, <case>_0001, ...
IMAGES = "$[{'image': f} for f in sorted(glob.glob(os.path.join(@dataset_dir, '*')))]"
CASES = (
    "$[{'image': list(files)} for _, files in itertools.groupby("
    "sorted(glob.glob(os.path.join(@dataset_dir, '*'))), key=lambda f: re.split(r'_\\d{4}(?=\\.|$)', f)[0])]"
)


def inference_config(settings: Mapping[str, Any], network: Mapping[str, Any]) -> dict[str, Any]:
    """`inference.yaml`: parses alone, needs MONAI and pytorch-ignite only; predicts `dataset_dir` into `output_dir`."""
    config: dict[str, Any] = {
        "imports": ["$import glob", "$import itertools", "$import os", "$import re"],
        "bundle_root": ".",
        "output_dir": "$@bundle_root + '/predictions'",
        "dataset_dir": "$@bundle_root + '/images'",
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        **_referenced(settings, network),
    }
    config["network_def"] = copy.deepcopy(network["network_def"])
    config["network"] = "$@network_def.to(@device)"
    config["preprocessing"] = preprocessing(settings, ["image"])
    config["dataset"] = {
        "_target_": "Dataset",
        "data": IMAGES if settings["image_files"] == 1 else CASES,
        "transform": "@preprocessing",
    }
    config["dataloader"] = {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1, "num_workers": 0}
    config["inferer"] = inferer(settings, "@overlap")
    config["postprocessing"] = _postprocessing()
    load = {"_target_": "CheckpointLoader", "load_path": "$@bundle_root + '/models/model.pt'"}
    config["handlers"] = [{**load, "load_dict": {"model": "@network"}, "map_location": "@device"}]
    config["evaluator"] = {
        "_target_": "SupervisedEvaluator",
        "device": "@device",
        "val_data_loader": "@dataloader",
        "network": "@network",
        "inferer": "@inferer",
        "postprocessing": "@postprocessing",
        "val_handlers": "@handlers",
        "amp": False,
    }
    config["initialize"] = ["$monai.utils.set_determinism(0)"]
    config["run"] = ["$@evaluator.run()"]
    return config


def inferer(settings: Mapping[str, Any], overlap: str) -> dict[str, Any]:
    """Gaussian-weighted windows of roi_size; for networks of slices, planes across the axis where it is 1."""
    windows = {"sw_batch_size": "@sw_batch_size", "overlap": overlap, "mode": "gaussian"}
    if settings["spatial_dims"] == 2:
        flat = [int(n) for n in settings["roi_size"]].index(1)
        plane = f"$@roi_size[:{flat}] + @roi_size[{flat + 1}:]"
        return {"_target_": "SliceInferer", "spatial_dim": flat, "roi_size": plane, **windows}
    return {"_target_": "SlidingWindowInferer", "roi_size": "@roi_size", **windows}


def _postprocessing() -> dict[str, Any]:
    """Softmax, back onto the image's own grid, labels with their own values, saved."""
    return {
        "_target_": "Compose",
        "transforms": [
            {"_target_": "Activationsd", "keys": "pred", "softmax": True},
            {
                "_target_": "Invertd",
                "keys": "pred",
                "transform": "@preprocessing",
                "orig_keys": "image",
                "nearest_interp": False,
                "to_tensor": True,
            },
            {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
            {
                "_target_": "MapLabelValued",
                "keys": "pred",
                "orig_labels": "$list(range(len(@label_values)))",
                "target_labels": "@label_values",
            },
            {"_target_": "SaveImaged", "keys": "pred", "output_dir": "@output_dir", "output_postfix": "seg"},
        ],
    }


def _referenced(settings: Mapping[str, Any], network: Mapping[str, Any]) -> dict[str, Any]:
    """The hyper-parameters that inference needs: those its parts name with @."""
    text = json.dumps(network) + json.dumps(preprocessing(settings, ["image"]))
    wanted = {"roi_size", "sw_batch_size", "overlap", "label_values"}
    return {key: value for key, value in settings.items() if key in wanted or f"@{key}" in text}
