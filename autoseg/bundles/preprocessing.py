"""The transforms of a bundle from a file to what its network sees, as MONAI configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


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
