"""How long a training goes on: steps, seconds or a deadline, whichever is reached first."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autoseg.engine.progress import Progress

FIRST_GUESS = 0.1  # of the time, for what comes after the last step, until steps or a validation have been timed
VALIDATIONS = 10  # where the budget is in steps or seconds, not in epochs
VALIDATION_SHARE = 0.1  # of a budget in seconds, the last validation apart: fewer of them where they take long
FORWARD = 0.2  # of the time of a step: what the network takes without learning (SegResNetDS, one core)
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
        self.settings, self.steps_per_epoch, self.shapes = settings, steps_per_epoch, shapes
        self.steps = budget_steps(settings, steps_per_epoch)
        self.by_time = bool(settings["max_seconds"] or settings["deadline"])
        self.endless = not self.by_time and self.steps is None

    def validation_seconds(self, step_seconds: float) -> float:
        """What a validation may take, by what a step does, until one has been timed."""
        size, overlap = self.settings["roi_size"], float(self.settings["validation_overlap"])
        patches = sum(windows(shape, size, overlap) for shape in self.shapes)
        return FORWARD * step_seconds * patches / int(self.settings["num_images_per_batch"])

    def scores(self, progress: Progress, seconds: float, last: bool) -> bool:
        """Whether a validation that is due scores the network, `seconds` of training being spent.

        Of a time that is limited such scores take VALIDATION_SHARE at most, the last ones apart. With a deadline there
        are none at all where they would take more once: the last weights are scored at once, as predictions are.
        """
        once = progress.a_validation(seconds, self)
        if not self.by_time:
            return True
        if once is None:
            return last
        return (last or progress.validation_seconds <= VALIDATION_SHARE * seconds) and self._has_time(seconds, once)

    def _has_time(self, seconds: float, validation_seconds: float) -> bool:
        """Whether one validation is a small part of all the time there is until the deadline."""
        if not self.settings["deadline"]:
            return True
        return validation_seconds <= VALIDATION_SHARE * (seconds + self._left())

    def _left(self) -> float:
        return max(0.0, float(self.settings["deadline"]) - time.time())

    def validation_due(self, progress: Progress, seconds: float) -> bool:
        """Every num_epochs_per_validation, or a tenth of a budget in steps or seconds, while it is not the end."""
        if self.settings["num_iterations"] or self.by_time:
            return self.share(progress, seconds) * VALIDATIONS >= progress.validations + 1
        return progress.step % (int(self.settings["num_epochs_per_validation"]) * self.steps_per_epoch) == 0

    def share(self, progress: Progress, seconds: float) -> float:
        """Share spent, 0 to 1, after `seconds` of training."""
        total = self.total_seconds(progress, seconds)
        by_time = (seconds / total if total > 0 else 1.0) if total is not None else 0.0
        by_steps = progress.step / self.steps if self.steps else 0.0
        return min(1.0, max(by_time, by_steps))

    def total_seconds(self, progress: Progress, seconds: float) -> float | None:
        """Seconds of training at its end, if `seconds` are spent now; None where no time is given."""
        limits = [float(self.settings["max_seconds"])] if self.settings["max_seconds"] else []
        if self.settings["deadline"]:
            closing = self._closing(seconds, progress.a_validation(seconds, self))
            limits.append(seconds + max(0.0, self._left() - closing))
        return min(limits, default=None)

    def _closing(self, seconds: float, validation_seconds: float | None) -> float:
        """Seconds of the last validation and of scoring, by what a validation takes with its own windows."""
        if not self.shapes:
            return ENDING
        if validation_seconds is None:
            return FIRST_GUESS * (seconds + self._left())
        last = validation_seconds if self._has_time(seconds, validation_seconds) else 0.0
        return last + scoring_seconds(self.settings, validation_seconds, self.shapes) + ENDING


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
