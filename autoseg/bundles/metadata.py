"""`metadata.json` of a bundle, as MONAI's bundle specification asks."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata
from typing import Any


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
