"""Write a bundle: the skeleton all families share, rendered with the hyper-parameters of one (family, fold)."""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from autoseg.bundles.templates import SKELETON
from autoseg.workspace import read_yaml, write_json, write_yaml

HEADER = "Every number that a person or a sweep may turn; the other files refer to it with @."


def relative(path: str | Path, start: str | Path) -> str:
    """`path` as seen from the bundle, so that a work_dir can be moved."""
    return Path(os.path.relpath(path, start)).as_posix()


def write_bundle(root: Path, settings: Mapping[str, Any]) -> None:
    """Complete the family's files at `root` (configs/network.yaml, docs/) to a MONAI bundle."""
    configs = root / "configs"
    network = read_yaml(configs / "network.yaml")
    safe = {**settings, "class_names": {k: escape(str(v)) for k, v in settings["class_names"].items()}}
    write_yaml(configs / "hyper_parameters.yaml", safe, versioned=False, header=HEADER)
    for name in ("train", "validate", "infer"):
        shutil.copyfile(SKELETON / "scripts" / f"{name}.py", root / "scripts" / f"{name}.py")
    patch_transforms = root / "configs" / "transforms_train.yaml"
    if not patch_transforms.exists():
        shutil.copyfile(SKELETON / "configs" / "transforms_train.yaml", patch_transforms)
    write_yaml(configs / "transforms_infer.yaml", {"preprocessing": preprocessing(safe, ["image"])}, versioned=False)
    both = {"preprocessing_with_label": preprocessing(safe, ["image", "label"])}
    write_yaml(configs / "transforms_validate.yaml", both, versioned=False)
    train = read_yaml(patch_transforms)
    write_yaml(configs / "train.yaml", train_config(safe, network, train), versioned=False)
    write_yaml(configs / "inference.yaml", inference_config(safe, network), versioned=False)
    write_json(configs / "metadata.json", bundle_metadata(safe))
    (root / "models").mkdir(exist_ok=True)
    shutil.copyfile(SKELETON / "LICENSE", root / "LICENSE")


def escape(text: str) -> str:
    """A data-derived name that ConfigParser will neither run (`$`) nor resolve (`@`, `%`)."""
    return "".join("_" if c in "$@%" else c for c in text if c.isprintable())


def preprocessing(settings: Mapping[str, Any], keys: list[str]) -> dict[str, Any]:
    """Transforms from a file to what the network sees: RAS, foreground crop, normalised, resampled.

    The order is nnU-Net's: intensities are normalised before resampling, within the crop.
    """
    steps: list[dict[str, Any]] = [
        {"_target_": "LoadImaged", "keys": keys, "image_only": True, "ensure_channel_first": True},
        {"_target_": "Orientationd", "keys": keys, "axcodes": "RAS", "labels": None},
        {
            "_target_": "CropForegroundd",
            "keys": keys,
            "source_key": "image",
            "select_fn": "$lambda x: x > x.amin(dim=(1, 2, 3), keepdim=True)",
            "allow_smaller": True,
        },
        *_normalization(settings),
    ]
    if settings["resample"]:
        spacing = {"_target_": "Spacingd", "keys": keys, "pixdim": "@resample_to_spacing"}
        steps.append({**spacing, "mode": ["bilinear", "nearest"][: len(keys)], "padding_mode": "border"})
    return {"_target_": "Compose", "transforms": steps}


def _normalization(settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    if settings["normalize_mode"] != "ct":
        return [{"_target_": "NormalizeIntensityd", "keys": "image", "nonzero": False, "channel_wise": True}]
    low, high = "$min(b[0] for b in @intensity_bounds)", "$max(b[1] for b in @intensity_bounds)"
    threshold = {"_target_": "ThresholdIntensityd", "keys": "image"}
    return [
        {**threshold, "threshold": low, "above": True, "cval": low},
        {**threshold, "threshold": high, "above": False, "cval": high},
        {
            "_target_": "NormalizeIntensityd",
            "keys": "image",
            "subtrahend": "$[b[2] for b in @intensity_bounds]",
            "divisor": "$[b[3] for b in @intensity_bounds]",
            "channel_wise": True,
        },
    ]


def inference_config(settings: Mapping[str, Any], network: Mapping[str, Any]) -> dict[str, Any]:
    """`inference.yaml`: parses alone, needs MONAI and pytorch-ignite only; predicts `dataset_dir` into `output_dir`."""
    config: dict[str, Any] = {
        "imports": ["$import glob", "$import os"],
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
        "data": "$[{'image': f} for f in sorted(glob.glob(os.path.join(@dataset_dir, '*')))]",
        "transform": "@preprocessing",
    }
    config["dataloader"] = {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1, "num_workers": 0}
    config["inferer"] = {
        "_target_": "SlidingWindowInferer",
        "roi_size": "@roi_size",
        "sw_batch_size": "@sw_batch_size",
        "overlap": "@overlap",
        "mode": "gaussian",
    }
    config["postprocessing"] = _postprocessing()
    load = {"_target_": "CheckpointLoader", "load_path": "$@bundle_root + '/models/model.pt'"}
    config["handlers"] = [{**load, "load_dict": {"model": "@network"}}]
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
    inferer = {"_target_": "SlidingWindowInferer", "roi_size": "@roi_size", "overlap": "@validation_overlap"}
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
        "inferer": {**inferer, "sw_batch_size": "@sw_batch_size", "mode": "gaussian"},
    }
    config["run"] = ["$@train#trainer.run()"]
    return config


def _referenced(settings: Mapping[str, Any], network: Mapping[str, Any]) -> dict[str, Any]:
    """The hyper-parameters that inference needs: those its parts name with @."""
    text = json.dumps(network) + json.dumps(preprocessing(settings, ["image"]))
    wanted = {"roi_size", "sw_batch_size", "overlap", "label_values"}
    return {key: value for key, value in settings.items() if key in wanted or f"@{key}" in text}


def bundle_metadata(settings: Mapping[str, Any]) -> dict[str, Any]:
    """`metadata.json` as MONAI's bundle specification asks."""
    names = {"0": "background", **{str(k): str(v) for k, v in settings["class_names"].items()}}
    channels = {str(i): names[str(v)] for i, v in enumerate(settings["label_values"])}
    shape = list(settings["roi_size"])
    image = {
        "type": "image",
        "format": "hounsfield" if settings["normalize_mode"] == "ct" else "magnitude",
        "modality": settings["modality"],
        "num_channels": settings["input_channels"],
        "spatial_shape": shape,
        "dtype": "float32",
        "value_range": [],
        "is_patch_data": True,
        "channel_def": {str(c): f"image_{c}" for c in range(settings["input_channels"])},
    }
    pred = {
        "type": "image",
        "format": "segmentation",
        "num_channels": settings["output_classes"],
        "spatial_shape": shape,
        "dtype": "float32",
        "value_range": [0, 1],
        "is_patch_data": True,
        "channel_def": channels,
    }
    versions = {name: metadata.version(name) for name in ("monai", "torch", "numpy")}
    return {
        "version": "0.1.0",
        "changelog": {"0.1.0": "trained by autoseg"},
        "monai_version": versions["monai"],
        "pytorch_version": versions["torch"].split("+")[0],
        "numpy_version": versions["numpy"],
        "required_packages_version": {"nibabel": metadata.version("nibabel")},
        "optional_packages_version": {},
        "name": f"{settings['name']}_{settings['fold']}",
        "task": f"{settings['modality']} segmentation",
        "description": f"{settings['name']}, fold {settings['fold']}, configured and trained by autoseg",
        "authors": "autoseg",
        "copyright": "Apache-2.0; the weights follow the licence of the training data",
        "data_source": "the user's own",
        "data_type": "nifti",
        "image_classes": "intensity image",
        "label_classes": "one channel of label values",
        "pred_classes": "one channel a class, background first",
        "eval_metrics": {},
        "intended_use": "research only",
        "references": [],
        "network_data_format": {"inputs": {"image": image}, "outputs": {"pred": pred}},
    }
