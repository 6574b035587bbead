"""Validation: fast, on preprocessed cases, while training; and whole, at the original geometry, at the end."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.inferers import sliding_window_inference

from autoseg.engine.cache import CachedCase
from autoseg.evaluation import dice_by_label, mean_dice, mean_dice_by_label

Autocast = Callable[[], contextlib.AbstractContextManager[Any]]


@torch.inference_mode()
def validate_cached(
    network: torch.nn.Module,
    cases: Sequence[CachedCase],
    settings: Mapping[str, Any],
    device: torch.device,
    autocast: Autocast,
) -> tuple[dict[str, float], float]:
    """(Dice by label value, mean Dice) over preprocessed cases, at the spacing the network sees."""
    values = settings["label_values"]
    scores = []
    for case in cases:
        image = torch.from_numpy(np.asarray(case.image, np.float32))[None].to(device)
        with autocast():
            logits = sliding_window_inference(
                image,
                settings["roi_size"],
                int(settings["sw_batch_size"]),
                network,
                overlap=float(settings["validation_overlap"]),
                mode="gaussian",
            )
        indices = logits[0].argmax(0).to(torch.uint8).cpu().numpy()
        found = dice_by_label(indices, np.asarray(case.label), list(range(1, len(values))))
        scores.append({str(values[int(index)]): value for index, value in found.items()})
    return mean_dice_by_label(scores), mean_dice(scores)
