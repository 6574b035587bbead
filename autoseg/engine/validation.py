"""Validation: fast, on preprocessed cases, while training; and whole, at the original geometry, at the end."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.inferers import sliding_window_inference

from autoseg.engine.cache import CachedCase
from autoseg.evaluation import dice_by_label

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
        scores.append(dice_by_label(indices, np.asarray(case.label), list(range(1, len(values)))))
    return summarize_dice(scores, {str(i): str(v) for i, v in enumerate(values)})


def summarize_dice(
    scores: Sequence[Mapping[str, float]], names: Mapping[str, str] | None = None
) -> tuple[dict[str, float], float]:
    """Means over cases by label, then over labels; NaN (absent from both) is left out. `names` renames the labels."""
    labels = sorted({label for score in scores for label in score}, key=int)
    dice = {}
    for label in labels:
        present = [s[label] for s in scores if label in s and not math.isnan(s[label])]
        dice[(names or {}).get(label, label)] = sum(present) / len(present) if present else math.nan
    known = [value for value in dice.values() if not math.isnan(value)]
    return dice, sum(known) / len(known) if known else math.nan
