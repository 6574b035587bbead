"""Validation: fast, on preprocessed cases, while training; and whole, at the original geometry, at the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.inferers import sliding_window_inference

from autoseg.engine.cache import CachedCase
from autoseg.engine.classes import Classes
from autoseg.engine.memory import free_memory, out_of_memory
from autoseg.engine.precision import Autocast
from autoseg.engine.slices import run_network, slice_axis
from autoseg.evaluation import mean_dice, mean_dice_by_label


@torch.inference_mode()
def validate_cached(
    network: torch.nn.Module,
    cases: Sequence[CachedCase],
    settings: Mapping[str, Any],
    device: torch.device,
    autocast: Autocast,
) -> tuple[dict[str, float], float]:
    """(Dice by label value or region, mean Dice) over preprocessed cases, at the spacing the network sees."""
    classes = Classes.of(settings)
    scores = []
    for case in cases:
        image = torch.from_numpy(np.asarray(case.image, np.float32))[None]
        with autocast():
            logits = _logits(network, image, settings, device)
        scores.append(classes.dice(logits[0], np.asarray(case.label)))
    return mean_dice_by_label(scores), mean_dice(scores)


def _logits(
    network: torch.nn.Module, image: torch.Tensor, settings: Mapping[str, Any], device: torch.device
) -> torch.Tensor:
    """Logits [1, K, X, Y, Z], put together on the device or, where they do not fit there, in main memory."""
    axis = slice_axis(settings)

    def put_together(home: torch.device) -> torch.Tensor:
        logits: torch.Tensor = sliding_window_inference(
            image.to(home),
            settings["roi_size"],
            int(settings["sw_batch_size"]),
            lambda windows: run_network(network, windows, axis),
            overlap=float(settings["validation_overlap"]),
            mode="gaussian",
            sw_device=device,
            device=home,
        )
        return logits

    try:
        return put_together(device)
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error) or device.type == "cpu":
            raise
    free_memory()  # out of the handler, whose frames hold tensors
    return put_together(torch.device("cpu"))
