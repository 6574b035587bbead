"""Where a training stands, and how it makes do with less memory."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autoseg.planning.patch import halved_patch
from autoseg.workspace import read_keys, write_json


@dataclass
class Progress:
    """Where a training stands; all of it is in the checkpoint."""

    step: int = 0
    epoch_steps: int = 0  # 0: not known; fewer where several processes make a step together, each on a batch of its own
    seconds: float = 0.0
    best_mean_dice: float = -1.0
    best_step: int = 0
    validations: int = 0
    scored: int = 0  # those of them that took the time to score the network
    validation_seconds: float = 0.0
    window_seconds: float = 0.0  # of a validation, as timed at the start; 0: it was not
    returns: int = 0  # to an earlier checkpoint, because the loss had gone astray
    parts: int = 1  # that a batch is split into, because memory ran out
    patch: list[int] = field(default_factory=list)  # smaller than planned, because memory ran out for one; else empty
    loss: float = math.nan
    history: list[dict[str, Any]] = field(default_factory=list)

    def a_validation(self, windows: int) -> float | None:
        """Seconds of a validation of so many windows; None where neither one nor a window was timed."""
        if self.scored:
            return self.validation_seconds / self.scored
        return windows * self.window_seconds if self.window_seconds else None

    def go_on_with(self, epoch_steps: int, by_epochs: bool) -> None:
        """An epoch has so many steps from now on. Where epochs are counted, those that are over stay over."""
        if by_epochs and self.epoch_steps:
            now = (steps * epoch_steps // self.epoch_steps for steps in (self.step, self.best_step))
            self.step, self.best_step = now
        self.epoch_steps = epoch_steps

    def go_on_as(self, before: Progress) -> None:
        """After a return: what fits into memory, and what a window takes, has not changed."""
        self.parts, self.patch, self.window_seconds = before.parts, before.patch, before.window_seconds

    def note_validation(self, mean_dice: float) -> None:
        """An entry of progress.yaml; `mean_dice` is NaN where there are no cases to validate on."""
        self.history.append(
            {
                "step": self.step,
                "epoch": self.step // self.epoch_steps,
                "loss": self.loss,
                "avg_dice_score": mean_dice,
                "best_avg_dice_score": math.nan if self.best_mean_dice < 0 else self.best_mean_dice,
                "best_avg_dice_score_step": self.best_step,
            }
        )

    def note_scoring(self, seconds: float) -> None:
        """A validation took so long."""
        self.scored, self.validation_seconds = self.scored + 1, self.validation_seconds + seconds

    def keep_unscored(self) -> None:
        """The weights as they stand are those to predict with, whatever was known of earlier ones."""
        self.best_mean_dice, self.best_step = -1.0, self.step

    @property
    def is_unscored(self) -> bool:
        """Whether the weights to predict with were never validated, though others may have been."""
        return self.best_step > 0 and self.best_mean_dice < 0

    def ended_with(self, mean_dice: float) -> list[dict[str, Any]]:
        """The entries of progress.yaml, with the score of weights that were not validated."""
        self.best_mean_dice = mean_dice
        self.note_validation(mean_dice)
        return self.history

    def leave_less(self, path: Path) -> None:
        """Leave word for the next try of how little memory there is."""
        write_json(path, {"parts": self.parts, "patch": self.patch})

    def recall_less(self, path: Path) -> None:
        """Take no more at a time than an earlier try has found to fit, if it has left word."""
        if path.is_file():
            parts, patch = read_keys(path, "parts", "patch")
            self.parts, self.patch = max(parts, self.parts), patch or self.patch

    def take_less(self, settings: Mapping[str, Any]) -> str | None:
        """Halve the patches at a time, or, where that is one, the patch. What to say; None where neither can be."""
        batch = int(settings["num_images_per_batch"])
        if self.parts >= batch:
            return self.take_smaller_patch(settings)
        self.parts = min(batch, 2 * self.parts)
        return f"{math.ceil(batch / self.parts)} of {batch} patches at a time"

    def take_smaller_patch(self, settings: Mapping[str, Any]) -> str | None:
        """Halve the patch of `settings`. What to say; None where it is the smallest that the network can take."""
        smaller = halved_patch(settings)
        if smaller is None:
            return None
        self.patch = smaller
        return f"patches and windows of {in_voxels(smaller)} instead of {in_voxels(settings['roi_size'])} voxels"


def in_voxels(size: list[int]) -> str:
    """A size as a person writes it: 96x96x64."""
    return "x".join(map(str, size))
