"""What a network's outputs mean: exclusive classes (softmax) or regions that may overlap (sigmoid).

Everything that differs between the two is here: targets of the loss, activation, decision, what a file holds, Dice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from autoseg.engine.geometry import background
from autoseg.evaluation import Scored, dice_by_label
from autoseg.evaluation.regions import bits_of_channels, bits_of_values, nesting
from autoseg.planning.plan import mirrored_outputs


@dataclass(frozen=True)
class Classes:
    """`values`: the label values, background first, for which label indices stand. `regions`: sets of them, or none."""

    values: tuple[int, ...]
    regions: tuple[tuple[int, ...], ...] = ()

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Classes:
        """From a bundle's `label_values` and `regions`."""
        regions = tuple(tuple(int(v) for v in r) for r in settings.get("regions") or ())
        return cls(tuple(int(v) for v in settings["label_values"]), regions)

    @property
    def outputs(self) -> int:
        """Channels of the network: a class each, background included, or a region each."""
        return len(self.regions) or len(self.values)

    @property
    def keys(self) -> tuple[int, ...]:
        """By what scores go: label values without background, or numbers of the regions from 1 on."""
        return tuple(range(1, len(self.regions) + 1)) if self.regions else self.values[1:]

    @property
    def scored(self) -> Scored:
        """The same for the evaluation, which has no need of names here."""
        return Scored(dict.fromkeys(self.keys, ""), self.regions)

    @cached_property
    def _nesting(self) -> Any:
        return nesting(self.regions) if self.regions else None

    @property
    def in_channels(self) -> bool:
        """Whether a prediction is a file of one channel a region, for no label map can hold them."""
        return bool(self.regions) and self._nesting is None

    @property
    def dtype(self) -> np.dtype[Any]:
        """The smallest unsigned integer that holds what a prediction's file holds."""
        highest = 1 if self.in_channels else max(self._nesting.values if self.regions else self.values)
        return np.min_scalar_type(highest)

    # ---- in training

    def target(self, label: torch.Tensor) -> torch.Tensor:
        """Label indices [B, 1, ...] as the loss wants them: as they are, or masks of the regions [B, R, ...]."""
        if not self.regions:
            return label
        table = torch.tensor([[v in r for v in self.values] for r in self.regions], dtype=label.dtype)
        return torch.stack([row[label[:, 0].long()] for row in table.to(label.device)], 1)

    def dice(self, logits: torch.Tensor, label: npt.NDArray[np.uint8]) -> dict[str, float]:
        """Dice by key of logits [K, ...] against label indices [...]."""
        return self.dice_of(self.answer(logits), label)

    def answer(self, logits: torch.Tensor) -> npt.NDArray[Any]:
        """What logits [K, ...] decide: label indices [...], or the bits of regions [...]."""
        if self.regions:
            return bits_of_channels((logits > 0).movedim(0, -1).cpu().numpy())
        return argmax(logits).to(torch.uint8).cpu().numpy()

    def dice_of(self, answer: npt.NDArray[Any], label: npt.NDArray[np.uint8]) -> dict[str, float]:
        """Dice by key of an answer against label indices of the same shape."""
        if self.regions:
            return self.scored.dice(answer, bits_of_values(self.values, self.regions)[label])
        found = dice_by_label(answer, label, range(1, len(self.values)))
        return {str(self.values[int(index)]): value for index, value in found.items()}

    def present(self, label: npt.NDArray[Any]) -> set[str]:
        """The keys, as `dice` writes them, that a map of label indices has a voxel of."""
        values = {self.values[int(index)] for index in np.unique(label)}
        parts = self.regions or [(value,) for value in self.keys]
        return {str(key) for key, part in zip(self.keys, parts, strict=True) if values & set(part)}

    # ---- in prediction

    def activate(self, logits: torch.Tensor) -> torch.Tensor:
        """Probabilities of logits [B, K, ...]."""
        return torch.sigmoid(logits) if self.regions else torch.softmax(logits, 1)

    def votes(self, probabilities: torch.Tensor) -> torch.Tensor:
        """What one network decides of probabilities [K, ...], as ones and zeros of that shape."""
        if self.regions:
            return (probabilities > 0.5).to(probabilities.dtype)
        return torch.zeros_like(probabilities).scatter_(0, argmax(probabilities)[None], 1.0)

    def decide(self, combined: torch.Tensor) -> npt.NDArray[Any]:
        """Probabilities [K, ...] as a file holds them: label values [...], or masks [..., R] of regions.

        A voxel of nested regions takes the value of the innermost one that has more than one half; of two that lie
        equally deep, that of the likelier.
        """
        if not self.regions:
            return np.take(np.asarray(self.values, self.dtype), argmax(combined).cpu().numpy())
        inside = combined > 0.5
        if self.in_channels:
            return inside.movedim(0, -1).cpu().numpy().astype(self.dtype)
        depths = torch.tensor(self._nesting.depths, device=combined.device)
        rank = torch.where(inside, combined + depths.view(-1, *[1] * (combined.dim() - 1)), 0.0)
        values = np.asarray((*self._nesting.values, 0), self.dtype)
        chosen = torch.where(inside.any(0), argmax(rank), len(self.regions))
        return np.take(values, chosen.cpu().numpy())

    def outside(self, block: torch.Tensor, axis: int, index: torch.Tensor) -> torch.Tensor:
        """Probabilities [K, ...] with nothing at `index` along a spatial axis: class 0, or no region."""
        return block.index_fill(1 + axis, index, 0.0) if self.regions else background(block, axis, index)

    def mirrored(self, pairs: Sequence[Sequence[int]]) -> list[int]:
        """The output that each one becomes when left and right (pairs of label values) change places."""
        return mirrored_outputs(self.regions or [(value,) for value in self.values], pairs)


def argmax(block: torch.Tensor) -> torch.Tensor:
    """Index of the largest along the first axis; torch's argmax takes three times as long there."""
    return block.max(0).indices
