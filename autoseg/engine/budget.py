"""How long a training goes on: steps, seconds or a deadline, whichever is reached first."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

FIRST_GUESS = 0.1  # of the time, for what comes after the last step, until a validation has been timed
SCORING = 1.15  # times the windows' share: resampling to the image's grid, Dice, files
SECONDS_A_CASE = 0.08  # of reading and writing, when a case is scored
ENDING = 2.0  # seconds: weights, the process's end


class Budget:
    """The limits that `settings` give: `num_iterations` or `num_epochs`, `max_seconds`, `deadline`.

    `max_seconds` bounds the training and its validations; `deadline` (seconds since the epoch) is when all must be
    over, the scoring at their own geometry of the cases that are validated included: `shapes`, in voxels as they are
    preprocessed.
    """

    def __init__(self, settings: Mapping[str, Any], steps_per_epoch: int, shapes: Sequence[Sequence[int]]):
        self.settings, self.shapes = settings, shapes
        self.steps = budget_steps(settings, steps_per_epoch)
        self.by_time = bool(settings["max_seconds"] or settings["deadline"])
        self.endless = not self.by_time and self.steps is None

    def share(self, step: int, seconds: float, validation_seconds: float | None) -> float:
        """Share spent, 0 to 1, after `step` steps and `seconds`; `validation_seconds`: of one, where it is known."""
        total = self.total_seconds(seconds, validation_seconds)
        by_time = (seconds / total if total > 0 else 1.0) if total is not None else 0.0
        by_steps = step / self.steps if self.steps else 0.0
        return min(1.0, max(by_time, by_steps))

    def total_seconds(self, seconds: float, validation_seconds: float | None) -> float | None:
        """Seconds of training at its end, if `seconds` are spent now; None where no time is given."""
        limits = [float(self.settings["max_seconds"])] if self.settings["max_seconds"] else []
        if self.settings["deadline"]:
            left = max(0.0, float(self.settings["deadline"]) - time.time())
            limits.append(seconds + max(0.0, left - self._closing(seconds + left, validation_seconds)))
        return min(limits, default=None)

    def _closing(self, total: float, validation_seconds: float | None) -> float:
        """Seconds of the last validation and of scoring, by what a validation took with its own windows."""
        if not self.shapes:
            return ENDING
        if validation_seconds is None:
            return FIRST_GUESS * total
        return validation_seconds + scoring_seconds(self.settings, validation_seconds, self.shapes) + ENDING


def scoring_seconds(settings: Mapping[str, Any], validation_seconds: float, shapes: Sequence[Sequence[int]]) -> float:
    """What predicting and scoring cases at their own geometry takes, by what it takes to validate them.

    Windows then overlap as in predictions, and are mirrored; small volumes are one window in any case.
    """
    once, last = (
        sum(windows(shape, settings["roi_size"], float(settings[key])) for shape in shapes)
        for key in ("validation_overlap", "overlap")
    )
    mirrored = 2 ** len(settings["mirror_axes_inference"])
    return validation_seconds * SCORING * float(mirrored) * last / max(1, once) + SECONDS_A_CASE * len(shapes)


def windows(shape: Sequence[int], patch: Sequence[int], overlap: float) -> int:
    """How many sliding windows of `patch` voxels cover a volume, one overlapping the next by a share of `overlap`."""
    steps = [max(1, int(size * (1 - overlap))) for size in patch]
    return math.prod(max(0, -(-(n - size) // step)) + 1 for n, size, step in zip(shape, patch, steps, strict=True))


def budget_steps(settings: Mapping[str, Any], steps_per_epoch: int) -> int | None:
    """The budget in steps, None where only time bounds it; num_iterations wins over num_epochs."""
    if settings["num_iterations"]:
        return int(settings["num_iterations"])
    epochs = settings["num_epochs"]
    return max(1, int(epochs) * steps_per_epoch) if epochs else None
