"""Small generated cases to break in every way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from autoseg.records import Case


def save(path: Path, data: np.ndarray, affine: np.ndarray | None = None) -> str:
    nib.save(nib.Nifti1Image(data, np.eye(4) if affine is None else affine), path)
    return str(path)


@pytest.fixture
def write_case(tmp_path: Path) -> Callable[..., Case]:
    """write_case(name, image=..., label=..., affine=..., label_affine=..., suffix=..., **Case fields) -> Case."""
    folder = tmp_path / "Daten für çocuk"
    folder.mkdir()

    def write(
        name: str,
        image: np.ndarray | Sequence[np.ndarray] | None = None,
        label: Any = "default",
        affine: np.ndarray | None = None,
        label_affine: np.ndarray | None = None,
        suffix: str = ".nii.gz",
        **fields: Any,
    ) -> Case:
        rng = np.random.default_rng(sum(map(ord, name)))
        images = image if isinstance(image, (list, tuple)) else [image]
        images = [rng.integers(-100, 300, (12, 10, 8)).astype(np.int16) if i is None else i for i in images]
        if isinstance(label, str):
            label = np.zeros(images[0].shape[:3], np.uint8)
            label[3:7, 3:6, 2:4], label[3:7, 6:8, 2:4] = 1, 2
        paths = [save(folder / f"{name}{f'_{i}' if i else ''}{suffix}", data, affine) for i, data in enumerate(images)]
        label_affine = affine if label_affine is None else label_affine
        label_path = None if label is None else save(folder / f"{name}_label{suffix}", label, label_affine)
        return Case(name, tuple(paths), label_path, **fields)

    return write
