"""Validation: fast, on preprocessed cases, while training; and whole, at the original geometry, at the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from monai.inferers import sliding_window_inference

from autoseg.engine.cache import CachedCase
from autoseg.engine.classes import Classes
from autoseg.engine.memory import free_memory, out_of_memory
from autoseg.engine.precision import Autocast
from autoseg.engine.slices import run_network, slice_axis
from autoseg.evaluation import mean_dice, mean_dice_by_label

LOOKED_AT = 8  # cases that a network has been trained on


@dataclass(frozen=True)
class Piece:
    """A part of a preprocessed case: image [C, x, y, z], label [x, y, z] of label indices."""

    image: npt.NDArray[Any]
    label: npt.NDArray[Any]


@torch.inference_mode()
def validate_cached(
    network: torch.nn.Module,
    cases: Sequence[CachedCase],
    settings: Mapping[str, Any],
    device: torch.device,
    autocast: Autocast,
) -> tuple[dict[str, float], float]:
    """(Dice by label value or region, mean Dice) over preprocessed cases, at the spacing the network sees."""
    scores = [_dice(network, case, settings, device, autocast) for case in cases]
    return mean_dice_by_label(scores), mean_dice(scores)


def _dice(
    network: torch.nn.Module,
    case: CachedCase | Piece,
    settings: Mapping[str, Any],
    device: torch.device,
    autocast: Autocast,
) -> dict[str, float]:
    """Dice of one case by label value or region."""
    image = torch.from_numpy(np.asarray(case.image, np.float32))[None]
    with autocast():
        logits = _logits(network, image, settings, device)
    return Classes.of(settings).dice(logits[0], np.asarray(case.label))


@torch.inference_mode()
def recall_dice(
    network: torch.nn.Module,
    cases: Sequence[CachedCase],
    settings: Mapping[str, Any],
    device: torch.device,
    autocast: Autocast,
) -> float:
    """Mean Dice of a network in one window each of LOOKED_AT cases that it was trained on, around a foreground voxel.

    Of what is there alone. No measure of how good it is: where it is low, the network has not even learned these. NaN
    without foreground.
    """
    some = [cases[int(number)] for number in np.linspace(0, len(cases) - 1, min(LOOKED_AT, len(cases)))]
    scores = []
    for number, case in enumerate(some):
        if case.places:
            window = window_around(case, number, settings["roi_size"])
            there = Classes.of(settings).present(window.label)
            found = _dice(network, window, settings, device, autocast)
            scores.append({key: value for key, value in found.items() if key in there})
    return mean_dice(scores)


def window_around(case: CachedCase, number: int, size: Sequence[int]) -> Piece:
    """The window, within the volume, that is nearest to a voxel of the case's `number`th label, counted round."""
    labels = sorted(case.places)
    places = case.places[labels[number % len(labels)]]
    starts = [
        min(max(int(place) - width // 2, 0), max(0, n - width))
        for place, width, n in zip(places[len(places) // 2], size, case.label.shape, strict=True)
    ]
    box = tuple(slice(start, start + width) for start, width in zip(starts, size, strict=True))
    channels = (slice(None),)
    return Piece(case.image[channels + box], case.label[box])


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
