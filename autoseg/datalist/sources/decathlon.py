"""A folder of the Medical Segmentation Decathlon: dataset.json lists `training` ({image, label}) and `test` (paths).

Its dataset.json is nearly a datalist, and `load_datalist` reads and checks it as one. http://medicaldecathlon.com
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autoseg.datalist.reading import load_datalist
from autoseg.datalist.sources.found import Found


def find_decathlon(folder: Path, plain: Mapping[str, Any]) -> Found:
    """The cases of dataset.json, whose contents are `plain`; raises InputError with every fault."""
    source = folder / "dataset.json"
    datalist = load_datalist(source)
    labels, modality = plain.get("labels") or {}, plain.get("modality")
    said, found = plain.get("numTraining"), len(datalist.training)
    odd = isinstance(said, int) and said != found
    return Found(
        "Decathlon folder", source, datalist.training, datalist.validation, datalist.testing, labels,
        channels=tuple(map(str, modality.values())) if isinstance(modality, dict) else (),
        modality=modality,
        warnings=(f"dataset.json says numTraining {said} and lists {found} cases",) if odd else (),
    )  # fmt: skip
