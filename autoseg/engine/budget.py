"""How long a training goes on: steps, seconds or a deadline, whichever is reached first."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from autoseg.planning.windows import Shapes, windows_of

if TYPE_CHECKING:
    from autoseg.engine.progress import Progress

FIRST_GUESS = 0.1  # of the time, for what comes after the last step, where windows could not be timed
VALIDATIONS = 10  # where the budget is in steps or seconds, not in epochs
VALIDATION_SHARE = 0.1  # of a budget in seconds, the last validation apart: fewer of them where they take long
# where a deadline alone ends a training: annealed weights are the best ones, and nobody compares it on the way
ONE_SHARE, DEADLINE_SHARE = 0.025, 0.05
SCORING = 1.15  # times the windows' share: resampling to the image's grid, Dice, files
SECONDS_A_CASE = 0.08  # of reading and writing, when a case is scored
LONG = 8.0  # seconds of a work in which what the first time takes more is little
ENDING = 2.0  # seconds: weights, the process's end
RECALLING, RECALLING_SHARE = 6.0, 0.03  # steps' time, of all at most, in which a network is asked of trained cases


class Budget:
    """The limits that `settings` give: `num_iterations` or `num_epochs`, `max_seconds`, `deadline`.

    `max_seconds` bounds the training and its validations; `deadline` (seconds since the epoch) is when all must be
    over, the scoring at their own geometry of the cases that are validated included: `shapes`, in voxels as they are
    preprocessed.
    """

    def __init__(self, settings: Mapping[str, Any], steps_per_epoch: int, shapes: Sequence[Sequence[int]]):
        self.settings, self.steps_per_epoch = settings, steps_per_epoch
        self.shapes = tuple(tuple(int(n) for n in shape) for shape in shapes)
        self.steps = budget_steps(settings, steps_per_epoch)
        self.by_time = bool(settings["max_seconds"] or settings["deadline"])
        self.endless = not self.by_time and self.steps is None

    @property
    def in_parts(self) -> bool:
        """Whether validations come at each of VALIDATIONS parts of it, and not every so many epochs."""
        return bool(self.settings["num_iterations"]) or self.by_time

    def windows(self, cases: int | None = None) -> int:
        """How many windows a validation of all or of the first cases is."""
        return windows_of(
            self.shapes[:cases], tuple(self.settings["roi_size"]), float(self.settings["validation_overlap"])
        )

    def scores(self, progress: Progress, seconds: float, last: bool) -> bool:
        """Whether a validation that is due scores the network, `seconds` of training being spent.

        Where time is limited none does while those before have taken over VALIDATION_SHARE of it, the last one apart.
        With a deadline there are none at all where one would take more: the last weights are scored at once, as
        predictions are. Where nothing but a deadline ends the training, these shares are DEADLINE_SHARE and ONE_SHARE.
        """
        if not self.by_time or not self.shapes:
            return True
        if not last and progress.validation_seconds > self._shares[0] * seconds:
            return False
        return not self.settings["deadline"] or self._has_time(seconds, progress.a_validation(self.windows()))

    def _has_time(self, seconds: float, validation_seconds: float | None) -> bool:
        """Whether one validation is known to be a small part of all the time there is until the deadline."""
        if validation_seconds is None:
            return False
        return validation_seconds <= self._shares[1] * (seconds + self._left())

    @property
    def _shares(self) -> tuple[float, float]:
        """Of the time, that validations may take but for the last one, and that one may take."""
        alone = self.steps is None and not self.settings["max_seconds"]
        return (DEADLINE_SHARE, ONE_SHARE) if alone else (VALIDATION_SHARE, VALIDATION_SHARE)

    def _left(self) -> float:
        return max(0.0, float(self.settings["deadline"]) - time.time())

    def must_know_windows(self, progress: Progress, seconds: float) -> bool:
        """Whether a window is to be timed before the first step: a deadline leaves time for those of the end."""
        unknown = progress.a_validation(self.windows()) is None
        return bool(self.settings["deadline"] and self.shapes) and unknown and self.share(progress, seconds) < 1.0

    def validation_due(self, progress: Progress, seconds: float) -> bool:
        """At the end; else every num_epochs_per_validation, or a tenth of a budget in steps or seconds."""
        share = self.share(progress, seconds)
        if share >= 1.0:
            return True
        if self.in_parts:
            return share * VALIDATIONS >= progress.validations + 1
        return progress.step % (int(self.settings["num_epochs_per_validation"]) * self.steps_per_epoch) == 0

    def validations(self, progress: Progress, seconds: float) -> int:
        """Of those made, how many count: a budget that has grown since is divided anew."""
        if self.in_parts:
            return min(progress.validations, int(self.share(progress, seconds) * VALIDATIONS))
        return progress.validations

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
            closing = self._closing(progress, seconds)
            limits.append(seconds + max(0.0, self._left() - closing))
        return min(limits, default=None)

    def _closing(self, progress: Progress, seconds: float) -> float:
        """Seconds of the last validation and of scoring, by what a validation takes with its own windows."""
        if not self.shapes:
            recalling = RECALLING * seconds / max(1, progress.step)  # too much after a slow first step, or a return
            return ENDING + min(recalling, RECALLING_SHARE * (seconds + self._left()))
        validation_seconds = progress.a_validation(self.windows())
        if validation_seconds is None:
            return FIRST_GUESS * (seconds + self._left())
        last = validation_seconds if self._has_time(seconds, validation_seconds) else 0.0
        return last + scoring_seconds(self.settings, validation_seconds, self.shapes) + ENDING


def seconds_of(work: Callable[[], object], times: int = 2) -> float:
    """What a work takes: the second time, for the first one is slow; that one if it took LONG."""
    took = 0.0
    for _ in range(times):
        before = time.monotonic()
        work()
        took = time.monotonic() - before
        if took > LONG:
            break
    return took


def scoring_seconds(settings: Mapping[str, Any], validation_seconds: float, shapes: Shapes) -> float:
    """What predicting and scoring cases at their own geometry takes, by what it takes to validate them.

    Windows then overlap as in predictions, and are mirrored; small volumes are one window in any case.
    """
    patch = tuple(settings["roi_size"])
    once, last = (windows_of(shapes, patch, float(settings[key])) for key in ("validation_overlap", "overlap"))
    mirrored = 2 ** len(settings["mirror_axes_inference"])
    return validation_seconds * SCORING * float(mirrored) * last / max(1, once) + SECONDS_A_CASE * len(shapes)


def budget_steps(settings: Mapping[str, Any], steps_per_epoch: int) -> int | None:
    """The budget in steps, None where only time bounds it; num_iterations wins over num_epochs."""
    if settings["num_iterations"]:
        return int(settings["num_iterations"])
    epochs = settings["num_epochs"]
    return max(1, int(epochs) * steps_per_epoch) if epochs else None
