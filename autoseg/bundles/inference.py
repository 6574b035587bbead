"""`inference.yaml` of a bundle: parses alone, and needs MONAI and pytorch-ignite alone."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from autoseg.bundles.marks import ARCHITECTURE, FOUND, named_in
from autoseg.bundles.preprocessing import preprocessing
from autoseg.evaluation import nesting
from autoseg.planning.plan import mirrored_outputs, mirrorings

# As the engine computes, for near a tie of classes anything else decides otherwise: in its precision (`compute_dtype`;
# MONAI's `amp` knows CUDA alone), and probabilities, not logits, are averaged over the windows. What the engine leaves
# to oneDNN (`OneDnnConvolutions`) is the same up to rounding.
HALF = "('bfloat16' if getattr(torch.cpu, '_is_avx512_bf16_supported', bool)() else 'float32')"
DTYPE = f"$getattr(torch, {HALF} if @device.type == 'cpu' and @precision != 'float32' else @precision)"
AUTOCAST = "torch.autocast(@device.type, @dtype, enabled=@dtype is not torch.float32)"


def inference_config(settings: Mapping[str, Any], network: Mapping[str, Any]) -> dict[str, Any]:
    """`inference.yaml`: parses alone, needs MONAI and pytorch-ignite only; predicts `dataset_dir` into `output_dir`."""
    config: dict[str, Any] = {
        "imports": [f"$import {name}" for name in ("glob", "itertools", "json", "os", "pathlib", "re")],
        "bundle_root": ".",
        "output_dir": "$@bundle_root + '/predictions'",
        "dataset_dir": "$@bundle_root + '/images'",
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        **referenced(settings, network),
        **searched(settings),
    }
    config["patch_file"] = "$@bundle_root + '/models/patch.json'"
    # other windows than planned, in which the network was scored
    config["window_size"] = _if_there("patch_file", "roi_size", "@roi_size")
    config["window_overlap"] = _if_there("patch_file", "overlap", "@overlap")
    config["network_def"] = copy.deepcopy(network["network_def"])
    config["dtype"] = DTYPE
    activate = "sigmoid()" if settings["regions"] else "softmax(1)"
    config["probabilities"] = f"$lambda x, logits=@network_def.forward: {AUTOCAST}(logits)(x).float().{activate}"
    config["window_mirrors"] = _if_there("patch_file", "mirror_axes_inference", str(settings["mirror_axes_inference"]))
    config["mirrored"] = f"$lambda x, one=@probabilities, axes=@window_mirrors: {_mirrored(settings)}"
    config["network"] = "$(setattr(@network_def, 'forward', @mirrored), @network_def.to(@device))[1]"
    config["preprocessing"] = preprocessing(settings, ["image"])
    config["dataset"] = {
        "_target_": "Dataset",
        "data": _data(settings),
        "transform": "@preprocessing",
    }
    config["dataloader"] = {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1, "num_workers": 0}
    config["inferer"] = sliding_window(settings, "@window_overlap", "@window_size")
    config["postprocessing"] = _postprocessing(settings)
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


def searched(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Entries of a configuration of a family whose architecture is searched: what was found, if something was."""
    if not settings.get("search"):
        return {}
    found = {key: _if_there("architecture_file", key, str(settings[key])) for key in ARCHITECTURE}
    return {"architecture_file": f"$@bundle_root + '/{FOUND}'", **found}


def _if_there(file: str, key: str, otherwise: str) -> str:
    """What a JSON file of the bundle, given by the entry `file`, holds under `key`; without it, another expression."""
    held = f"json.loads(pathlib.Path(@{file}).read_text()).get('{key}', {otherwise})"
    return f"${held} if os.path.exists(@{file}) else {otherwise}"


def sliding_window(settings: Mapping[str, Any], overlap: str, size: str = "@roi_size") -> dict[str, Any]:
    """Windows of `size` with Gaussian weights; those of a 2D network move over the planes of a volume."""
    config = {"roi_size": size, "sw_batch_size": "@sw_batch_size", "overlap": overlap, "mode": "gaussian"}
    if int(settings["spatial_dims"]) == 3:
        return {"_target_": "SlidingWindowInferer", **config}
    config["roi_size"] = f"$[n for axis, n in enumerate({size}) if axis != @slice_axis]"
    return {"_target_": "SliceInferer", "spatial_dim": "@slice_axis", **config}


def _mirrored(settings: Mapping[str, Any]) -> str:
    """The mean of the answers `one` gives to a batch `x` and to its mirror images, left and right put back in place.

    Without `axes`, its answer to `x`.
    """
    across = settings["slice_axis"]
    axes = [int(axis) for axis in settings["mirror_axes_inference"] if axis != across]
    if not axes:
        return "one(x)"
    parts = settings["regions"] or [(value,) for value in settings["label_values"]]
    same, swapped = list(range(len(parts))), mirrored_outputs(parts, settings["mirror_pairs"] or [])
    views = [
        ([2 + axis - (across is not None and axis > across) for axis in group], swapped if 0 in group else same)
        for group in mirrorings(axes)
    ]
    return f"sum(one(x.flip(d)).flip(d)[:, o] for d, o in {views}) / {len(views)} if axes else one(x)"


def _data(settings: Mapping[str, Any]) -> str:
    """The images of `dataset_dir`; with several files a case, those are <case>_0000, <case>_0001, ..."""
    files = "sorted(glob.glob(os.path.join(@dataset_dir, '*')))"
    if int(settings["image_files"]) == 1:
        return f"$[{{'image': f}} for f in {files}]"
    case = r"lambda f: re.split(r'_\d{4}(?=\.|$)', os.path.basename(f))[0]"
    named = "{'image_%d' % i: f for i, f in enumerate(group)}"
    return f"$[{named} for _, group in itertools.groupby({files}, {case})]"


def _postprocessing(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Probabilities, back onto the image's own grid, decided, saved with the labels' own values."""
    regions = settings["regions"]
    invert = {
        "_target_": "Invertd",
        "keys": "pred",
        "transform": "@preprocessing",
        "orig_keys": "image",
        "nearest_interp": False,
        "to_tensor": True,
    }
    steps: list[dict[str, Any]] = [invert]
    nested = nesting(regions) if regions else None
    if regions and nested is None:
        steps.append({"_target_": "AsDiscreted", "keys": "pred", "threshold": 0.5})
    else:
        values = "@label_values"
        if nested is not None:  # the innermost region that has more than one half decides; in none, background
            depths = f"torch.tensor({list(nested.depths)}, device=x.device).view(-1, 1, 1, 1)"
            rank = f"$lambda x: torch.cat([x[:1] * 0, (x > 0.5) * (x + {depths})])"
            steps.append({"_target_": "Lambdad", "keys": "pred", "func": rank})
            values = str([0, *nested.values])
        steps.append({"_target_": "AsDiscreted", "keys": "pred", "argmax": True})
        own = {"orig_labels": f"$list(range(len({values})))", "target_labels": f"${values}"}
        steps.append({"_target_": "MapLabelValued", "keys": "pred", **own})
    highest = 1 if regions and nested is None else max(nested.values if nested else settings["label_values"])
    save = {"_target_": "SaveImaged", "keys": "pred", "output_dir": "@output_dir", "output_postfix": "seg"}
    steps.append({**save, "output_dtype": f"$np.{np.min_scalar_type(highest)}"})
    return {"_target_": "Compose", "transforms": steps}


def referenced(settings: Mapping[str, Any], network: Mapping[str, Any]) -> dict[str, Any]:
    """The hyper-parameters that inference needs: those its parts name with @."""
    text = json.dumps(network) + json.dumps(preprocessing(settings, ["image"]))
    wanted = {"roi_size", "sw_batch_size", "overlap", "label_values", "slice_axis", "precision"}
    named = named_in(text, settings)
    return {key: value for key, value in settings.items() if key in wanted or key in named}
