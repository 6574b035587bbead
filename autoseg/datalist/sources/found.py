"""What is found in a data set, and what the caller asks for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autoseg.datalist.formats import case_id
from autoseg.records import Case


@dataclass(frozen=True)
class Wanted:
    """What the layout alone does not say.

    `labels`: the label files, as a pattern (`labels/{case}.nii.gz`) or, in a BIDS tree, as the end of their names
    (`dseg`, `label-lesion_mask`, `manual/dseg` in derivatives/manual). `testing`: a pattern of testing images.
    `channels`: their names in order.
    """

    labels: str | None = None
    testing: str | None = None
    channels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Found:
    """The cases of a data set, with absolute paths and without the checks that `load_datalist` makes.

    `source` is the file, folder or pattern that faults name. `labels` and `modality` are as declared, for the datalist
    to carry (empty or None where nothing declares them); `channels` are names, empty where there is only one without.
    """

    kind: str
    source: Path
    training: tuple[Case, ...]
    validation: tuple[Case, ...] = ()
    testing: tuple[Case, ...] = ()
    labels: dict[str, Any] = field(default_factory=dict)
    channels: tuple[str, ...] = ()
    modality: Any = None
    warnings: tuple[str, ...] = ()


def case_of(images: Iterable[Path], label: Path | None, patient: str | None = None) -> Case:
    """A case as the datalist will read it back."""
    files = tuple(str(image) for image in images)
    return Case(case_id(files[0]), files, str(label) if label else None, patient=patient)
