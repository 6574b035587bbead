"""Where a training stands, and how it makes do with less memory."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoseg.planning.patch import halved_patch
from autoseg.workspace import read_keys, write_json

if TYPE_CHECKING:
    from autoseg.engine.budget import Budget


FIRST_STEPS = 3  # until they tell how long steps take


@dataclass
class Progress:
    """Where a training stands; all of it is in the checkpoint."""

    step: int = 0
    epoch_steps: int = 0  # 0: not known; fewer where several processes make a step together, each on a batch of its own
    seconds: float = 0.0
    best_mean_dice: float = -1.0
    best_step: int = 0
    validations: int = 0
    scored: int = 0  # those of them that took the time to score the network; the last one's step
    scored_step: int = 0
    validation_seconds: float = 0.0
    returns: int = 0  # to an earlier checkpoint, because the loss had gone astray
    parts: int = 1  # that a batch is split into, because memory ran out
    patch: list[int] = field(default_factory=list)  # smaller than planned, because memory ran out for one; else empty
    loss: float = math.nan
    history: list[dict[str, Any]] = field(default_factory=list)

    def a_validation(self, seconds: float, budget: Budget) -> float | None:
        """Seconds of a validation, timed, or by what steps take, of which there were `seconds`; None without these."""
        if self.scored:
            return self.validation_seconds / self.scored
        return budget.validation_seconds(seconds / self.step) if self.step >= FIRST_STEPS else None

    def go_on_with(self, epoch_steps: int, by_epochs: bool) -> None:
        """An epoch has so many steps from now on. Where epochs are counted, those that are over stay over."""
        if by_epochs and self.epoch_steps:
            for name in ("step", "best_step", "scored_step"):
                setattr(self, name, getattr(self, name) * epoch_steps // self.epoch_steps)
        self.epoch_steps = epoch_steps

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

    def ended_with(self, mean_dice: float) -> list[dict[str, Any]]:
        """The entries of progress.yaml of a training that had no time for its last validation, but was scored."""
        self.best_mean_dice, self.best_step = mean_dice, self.step
        self.note_validation(mean_dice)
        return self.history

    @property
    def is_scored(self) -> bool:
        """Whether the network as it stands was validated; where it was not at the end, nothing better is known."""
        return bool(self.scored) and self.scored_step == self.step

    def note_seconds(self, seconds: float) -> None:
        """A validation at this step took so long."""
        self.scored, self.scored_step = self.scored + 1, self.step
        self.validation_seconds += seconds

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
