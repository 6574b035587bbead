"""Validation: fast, on preprocessed cases, while training; and whole, at the original geometry, at the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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

LEAST_WINDOWS, MOST_WINDOWS = 8, 32  # in which a network is asked of cases that it was trained on


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


@torch.inference_mode()
def recall_dice(
    network: torch.nn.Module,
    cases: Sequence[CachedCase],
    settings: Mapping[str, Any],
    device: torch.device,
    autocast: Autocast,
) -> float | None:
    """Mean Dice over labels or regions, of all windows together, in cases that a network was trained on.

    Every other window is around a voxel of a label, of one label after the other, the others are anywhere; labels that
    none was around do not count. No measure of how good a network is: where it is low, it has not even learned these.
    None without foreground.
    """
    classes = Classes.of(settings)
    number = min(MOST_WINDOWS, max(LEAST_WINDOWS, 2 * len(classes.values[1:])))
    channels = (slice(None),)
    asked, answers, labels = set[int](), list[npt.NDArray[Any]](), list[npt.NDArray[Any]]()
    for window, index in enumerate(np.linspace(0, len(cases) - 1, number).round()):
        case = cases[int(index)]
        middle: npt.NDArray[Any] = np.random.default_rng(window).integers(case.label.shape)
        if window % 2 == 0 and case.places:
            label = sorted(case.places)[window // 2 % len(case.places)]
            middle = case.places[label][len(case.places[label]) // 2]
            asked.add(label)
        box = box_around(middle.tolist(), settings["roi_size"], case.label.shape)
        image = torch.from_numpy(np.asarray(case.image[channels + box], np.float32))[None]
        with autocast():
            answers.append(classes.answer(_logits(network, image, settings, device)[0]).ravel())
        labels.append(np.asarray(case.label[box]).ravel())
    if not asked:
        return None
    found = classes.dice_of(np.concatenate(answers), np.concatenate(labels))
    return mean_dice([{key: found[key] for key in classes.present(np.array(list(asked)))}])


def box_around(middle: Sequence[int], size: Sequence[int], shape: Sequence[int]) -> tuple[slice, ...]:
    """The part of a volume, of `size` or smaller, whose middle is nearest to a voxel."""
    starts = [min(max(int(m) - s // 2, 0), max(0, n - s)) for m, s, n in zip(middle, size, shape, strict=True)]
    return tuple(slice(start, start + s) for start, s in zip(starts, size, strict=True))


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
