"""What tests of several rooms plan for, and look at."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from autoseg.planning import Statistics
from autoseg.planning.statistics import Intensity

Triple = tuple[float, float, float]


def statistics(shape: Triple = (180, 160, 150), spacing: Triple = (1, 1, 1), **changes: object) -> Statistics:
    """Of a hundred cases of one channel and two labels, all of one shape and spacing."""
    base = Statistics(
        n_cases=100,
        channels=1,
        spacing_median=spacing,
        spacing_low=spacing,
        spacing_tenth=spacing,
        spacing_high=spacing,
        shape_median=shape,
        cropped_shape_median=shape,
        intensity=(Intensity(60.0, 20.0, -50.0, 200.0, 55.0, 15.0),),
        label_values=(0, 1, 2),
        voxels={},
        cases_with_label={},
    )
    return dataclasses.replace(base, **changes)  # type: ignore[arg-type]


def finest(outputs: Any) -> torch.Tensor:
    """The finest logits of a network with deep supervision, or without."""
    logits: torch.Tensor = outputs[0] if isinstance(outputs, (list, tuple)) else outputs
    return logits[:, 0] if logits.ndim > 5 else logits  # a DynUNet stacks its levels
