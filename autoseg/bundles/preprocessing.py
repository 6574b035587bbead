"""The transforms of a bundle from files to what its network sees, as MONAI configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from autoseg.planning.patch import NEAR

# [C, X, Y] as [C, X, Y, 1]; ITK gives such an image an affine of two axes, which then has a third of 1 mm
PLANE = (
    "$lambda x: x if x.ndim == 4 else "
    "monai.data.MetaTensor(x[..., None], affine=monai.data.utils.to_affine_nd(3, x.affine), meta=x.meta)"
)


def image_keys(settings: Mapping[str, Any]) -> list[str]:
    """Keys under which the files of a case's image enter preprocessing; after it there is `image` alone."""
    files = int(settings["image_files"])
    return ["image"] if files == 1 else [f"image_{number}" for number in range(files)]


def image_item(paths: Sequence[str], settings: Mapping[str, Any]) -> dict[str, str]:
    """A case's files under their keys. Raises ValueError where there are more or fewer than the bundle was made for."""
    return dict(zip(image_keys(settings), paths, strict=True))


def preprocessing(settings: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    """Transforms from files to `keys` (image, perhaps label): RAS, foreground crop, normalised, resampled.

    Resampling is the last: along every axis or, without `resample`, along those whose spacing is not NEAR the target.
    Files of a case are brought onto the grid of the first. A 2D image gets a third axis of one voxel. The order is
    nnU-Net's: intensities are normalised before resampling, within the crop.
    """
    files = image_keys(settings)
    loaded = [*files, *(key for key in keys if key != "image")]
    steps: list[dict[str, Any]] = [
        {"_target_": "LoadImaged", "keys": loaded, "image_only": True, "ensure_channel_first": True},
    ]
    if int(settings["image_dims"]) == 2:
        steps.append({"_target_": "Lambdad", "keys": loaded, "func": PLANE})
    if len(files) > 1:
        onto = {"_target_": "ResampleToMatchd", "keys": files[1:], "key_dst": files[0]}
        steps.append({**onto, "mode": "bilinear", "padding_mode": "border"})
        steps.append({"_target_": "ConcatItemsd", "keys": files, "name": "image"})
        steps.append({"_target_": "DeleteItemsd", "keys": files})  # Spacingd takes image_0 for a dictionary of image's
    steps += [
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
    spacing: dict[str, Any] = {"_target_": "Spacingd", "keys": keys, "pixdim": "@resample_to_spacing"}
    if not settings["resample"]:  # the cases are alike: others that are not may come
        spacing["min_pixdim"] = f"$[{1 - NEAR} * s for s in @resample_to_spacing]"
        spacing["max_pixdim"] = f"$[{1 + NEAR} * s for s in @resample_to_spacing]"
    steps.append({**spacing, "mode": ["bilinear", "nearest"][: len(keys)], "padding_mode": "border"})
    return {"_target_": "Compose", "transforms": steps}


def _normalization(settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Z-scores by channel; CT numbers are clipped and scaled by `intensity_bounds`, null for other channels."""
    z_scores = {"_target_": "NormalizeIntensityd", "keys": "image", "channel_wise": True}
    if settings["normalize_mode"] == "zscore":
        return [z_scores]
    low, high = (
        f"torch.tensor([{sign}torch.inf if b is None else b[{index}] for b in @intensity_bounds]).view(-1, 1, 1, 1)"
        for index, sign in enumerate("-+")
    )
    scale = {"subtrahend": 2, "divisor": 3}
    steps: list[dict[str, Any]] = [
        {"_target_": "Lambdad", "keys": "image", "func": f"$lambda x, low={low}, high={high}: x.clip(low, high)"},
        z_scores | {k: f"$[None if b is None else b[{i}] for b in @intensity_bounds]" for k, i in scale.items()},
    ]
    if settings["intensity_asinh"]:
        scaled = "torch.tensor([b is not None for b in @intensity_bounds]).view(-1, 1, 1, 1)"
        compress = f"$lambda x, scaled={scaled}: torch.where(scaled, torch.asinh(x), x)"
        steps.append({"_target_": "Lambdad", "keys": "image", "func": compress})
    return steps
