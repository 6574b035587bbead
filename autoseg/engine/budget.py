"""How long a training goes on: steps, seconds or a deadline, whichever is reached first."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

FIRST_GUESS = 0.1  # of the time, for what comes after the last step, until a validation has been timed
SCORING = 1.15  # times the windows' share: resampling to the image's grid, Dice, files
SECONDS_A_CASE = 0.15  # of reading and writing, when a case is scored
ENDING = 2.0  # seconds: weights, the process's end


class Budget:
    """The limits that `settings` give: `num_iterations` or `num_epochs`, `max_seconds`, `deadline`.

    `max_seconds` bounds the training and its validations; `deadline` (seconds since the epoch) is when all must be
    over, the scoring of `cases` at their own geometry included.
    """

    def __init__(self, settings: Mapping[str, Any], steps_per_epoch: int, cases: int):
        self.settings, self.cases = settings, cases
        self.steps = _steps(settings, steps_per_epoch)
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
        if not self.cases:
            return ENDING
        if validation_seconds is None:
            return FIRST_GUESS * total
        return validation_seconds + scoring_seconds(self.settings, validation_seconds, self.cases) + ENDING


def scoring_seconds(settings: Mapping[str, Any], validation_seconds: float, cases: int) -> float:
    """What predicting and scoring `cases` at their own geometry takes, by what it takes to validate them."""
    mirrored = 2 ** len(settings["mirror_axes_inference"])
    step, last = (1.0 - float(settings[key]) for key in ("validation_overlap", "overlap"))
    windows = mirrored * (step / last) ** int(settings["spatial_dims"])
    return validation_seconds * SCORING * float(windows) + SECONDS_A_CASE * cases


def _steps(settings: Mapping[str, Any], steps_per_epoch: int) -> int | None:
    """The budget in steps, None where only time bounds it; num_iterations wins over num_epochs."""
    if settings["num_iterations"]:
        return int(settings["num_iterations"])
    epochs = settings["num_epochs"]
    return max(1, int(epochs) * steps_per_epoch) if epochs else None
