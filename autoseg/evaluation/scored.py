"""What is scored: label values of a map, or regions, sets of label values that may overlap."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from autoseg.evaluation.label_maps import LabelMap, read_label_map
from autoseg.evaluation.metrics import dice_by_label, evaluate_case, label_values
from autoseg.evaluation.regions import region


@dataclass(frozen=True)
class Scored:
    """Names by label value; or, where there are `regions`, by the number of a region, counted from 1."""

    names: Mapping[int, str] = field(default_factory=dict)
    regions: tuple[tuple[int, ...], ...] = ()

    def read(self, path: str | Path) -> LabelMap:
        """A label map, or the bits of the regions of one (or of a file with a mask a region)."""
        return read_label_map(path, self.regions)

    def present(self, data: npt.NDArray[Any]) -> frozenset[int]:
        """The labels, or the regions' numbers, that what `read` gave holds."""
        if not self.regions:
            return frozenset(label_values(data))
        bits = int(np.bitwise_or.reduce(data, axis=None))
        return frozenset(k for k in range(1, len(self.regions) + 1) if bits >> (k - 1) & 1)

    def mask(self, data: npt.NDArray[Any], key: int) -> npt.NDArray[np.bool_]:
        """Where a label, or the region of that number, lies in what `read` gave."""
        mask: npt.NDArray[np.bool_] = region(data, key) > 0 if self.regions else data == key
        return mask

    def dice(self, prediction: npt.NDArray[Any], reference: npt.NDArray[Any]) -> dict[str, float]:
        """Dice by label or region, of arrays as `read` gives them."""
        if not self.regions:
            return dice_by_label(prediction, reference, sorted(self.names))
        return {str(k): dice_by_label(region(prediction, k), region(reference, k), [1])["1"] for k in self.names}

    def metrics(
        self,
        prediction: npt.NDArray[Any],
        reference: npt.NDArray[Any],
        spacing: Sequence[float],
        tolerance_mm: float,
        labels: Sequence[int],
    ) -> dict[int, dict[str, float]]:
        """Every metric by label or region; `labels` are those to score."""
        if not self.regions:
            found = evaluate_case(prediction, reference, spacing, labels, tolerance_mm)
            return {k: found[str(k)] for k in labels}
        return {
            k: evaluate_case(region(prediction, k), region(reference, k), spacing, [1], tolerance_mm)["1"]
            for k in labels
        }
