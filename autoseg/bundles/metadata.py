"""`metadata.json` of a bundle, as MONAI's bundle specification asks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

MODALITIES = {"MRI": "MR"}  # the specification's word where it is not ours
IGNITE = "pytorch-ignite"


def bundle_metadata(settings: Mapping[str, Any], packages: Sequence[str] = ()) -> dict[str, Any]:
    """The versions that trained it, and what goes into the network and comes out (patches; logits, channel first).

    `packages`: what its network needs beside MONAI.
    """
    return {
        "version": "0.1.0",
        "changelog": {"0.1.0": "trained by autoseg"},
        "monai_version": _version("monai"),
        "pytorch_version": _version("torch"),
        "numpy_version": _version("numpy"),
        # what inference.yaml needs: MONAI's evaluators stand on ignite (train.yaml and the scripts need autoseg)
        "required_packages_version": {name: _version(name) for name in ("nibabel", *packages)} | {IGNITE: _ignite()},
        "name": f"{settings['name']}_{settings['fold']}",
        "task": f"{settings['modality']} segmentation",
        "description": f"{settings['name']}, fold {settings['fold']}, configured and trained by autoseg",
        "authors": "autoseg",
        "copyright": "Apache-2.0; the weights follow the licence of the training data",
        "data_source": "the user's own",
        "data_type": "nifti",
        "image_classes": "intensity image",
        "label_classes": "one channel of label values",
        "pred_classes": "one channel a region" if _regions(settings) else "one channel a class, background first",
        "eval_metrics": {},
        "intended_use": "research only",
        "references": [],
        "network_data_format": {"inputs": {"image": _image(settings)}, "outputs": {"pred": _prediction(settings)}},
    }


def _image(settings: Mapping[str, Any]) -> dict[str, Any]:
    channels = settings["input_channels"]
    return {
        "type": "image",
        "format": "hounsfield" if settings["normalize_mode"] == "ct" else "magnitude",
        "modality": MODALITIES.get(settings["modality"].upper(), settings["modality"].upper()),
        "num_channels": channels,
        **_patch(settings),
        "channel_def": {str(c): f"image_{c}" for c in range(channels)},
    }


def _prediction(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Exclusive classes are the specification's `labels`, overlapping regions its `classes`."""
    names = {str(key): str(name) for key, name in settings["class_names"].items()}
    if _regions(settings):
        channels = [names.get(str(number), f"region_{number}") for number in range(1, settings["output_classes"] + 1)]
    else:
        channels = [{"0": "background", **names}.get(str(v), f"class_{v}") for v in settings["label_values"]]
    return {
        "type": "image",
        "format": "classes" if _regions(settings) else "labels",
        "modality": "n/a",
        "num_channels": settings["output_classes"],
        **_patch(settings),
        "channel_def": {str(number): name for number, name in enumerate(channels)},
    }


def _patch(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A network of slices sees the axes of the patch that are not flat."""
    shape = [int(n) for axis, n in enumerate(settings["roi_size"]) if axis != settings["slice_axis"]]
    return {"spatial_shape": shape, "dtype": "float32", "value_range": [], "is_patch_data": True}


def _regions(settings: Mapping[str, Any]) -> bool:
    return bool(settings["regions"])


def _version(package: str) -> str:
    return metadata.version(package).split("+")[0]


def _ignite() -> str:
    """The installed version, or the least that `inference.yaml` was run with: it is not needed to write a bundle."""
    try:
        return _version(IGNITE)
    except metadata.PackageNotFoundError:
        return "0.5.0"
