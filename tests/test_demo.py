"""The generated data set: what is promised of it, and that it is neither trivial nor random."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from autoseg.datalist import load_datalist
from autoseg.demo import make_demo_data, simulate_case
from autoseg.errors import InputError

SMALL = {"training": 3, "testing": 1, "shape": (24, 28, 20)}


def voxels(path: str | Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * (a & b).sum() / max(1, a.sum() + b.sum()))


def test_writes_a_datalist_that_loads(odd_path: Path) -> None:
    datalist = load_datalist(make_demo_data(odd_path, **SMALL))
    assert [len(datalist.training), len(datalist.testing)] == [3, 1]
    assert datalist.labels == {1: "organ", 2: "nodule"}
    for case in (*datalist.training, *datalist.testing):
        image, label = nib.load(case.image[0]), nib.load(case.label)
        assert image.shape == label.shape == (24, 28, 20)
        assert np.allclose(image.affine, label.affine)
        assert set(np.unique(np.asarray(label.dataobj))) == {0, 1, 2}


def test_channels_spacing_and_label_values(tmp_path: Path) -> None:
    path = make_demo_data(tmp_path, **SMALL, channels=2, spacing=(0.8, 0.8, 3.0), labels=(1, 3))
    datalist = load_datalist(path)
    assert datalist.labels == {1: "organ", 3: "nodule"}
    for case in datalist.training:
        assert len(case.image) == 2
        assert nib.load(case.image[1]).header.get_zooms() == pytest.approx((0.8, 0.8, 3.0))
        assert set(np.unique(voxels(case.label))) == {0, 1, 3}
    first, second = (voxels(p) for p in datalist.training[0].image)
    assert not np.array_equal(first, second)


def test_same_seed_same_voxels_other_seed_others(tmp_path: Path) -> None:
    paths = [make_demo_data(tmp_path / str(i), **SMALL, seed=seed) for i, seed in enumerate((5, 5, 6))]
    a, b, c = (voxels(path.parent / "images" / "training_01.nii.gz") for path in paths)
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)


def test_cases_differ(tmp_path: Path) -> None:
    folder = make_demo_data(tmp_path, **SMALL).parent / "labels"
    assert not np.array_equal(voxels(folder / "training_00.nii.gz"), voxels(folder / "training_01.nii.gz"))


def test_second_call_leaves_the_files_and_other_arguments_do_not(tmp_path: Path) -> None:
    path = make_demo_data(tmp_path, **SMALL)
    image = tmp_path / "images" / "training_00.nii.gz"
    before = image.stat().st_mtime_ns
    make_demo_data(tmp_path, **SMALL)
    assert image.stat().st_mtime_ns == before
    make_demo_data(tmp_path, **{**SMALL, "training": 4})
    assert image.stat().st_mtime_ns != before
    assert len(json.loads(path.read_text("utf-8"))["training"]) == 4


@pytest.mark.parametrize(
    "wrong", [{"shape": (8, 48, 48)}, {"training": 0}, {"labels": ()}, {"labels": (1, 1)}, {"labels": (0, 1)}]
)
def test_impossible_arguments_are_refused(tmp_path: Path, wrong: dict) -> None:
    with pytest.raises(InputError):
        make_demo_data(tmp_path, **{**SMALL, **wrong})
    assert not any(tmp_path.iterdir())


def test_no_threshold_solves_it() -> None:
    """The best intensity band of each case, chosen with the answer at hand, stays well below a trained network."""
    best = []
    for number in range(4):
        image, label = simulate_case(np.random.default_rng([0, number]), (48, 48, 40), 1, (1, 2))
        levels = np.percentile(image[0], np.linspace(1, 99.9, 40))
        nodule = max(dice(image[0] > low, label == 2) for low in levels)
        organ = max(dice((image[0] > low) & (image[0] <= high), label == 1) for low in levels for high in levels)
        best.append([organ, nodule])
        assert 0.02 < (label == 1).mean() < 0.2
        assert 0.002 < (label == 2).mean() < 0.05
    organ, nodule = np.mean(best, axis=0)
    assert organ < 0.8
    assert nodule < 0.75
    assert organ > 0.3  # and yet the structures stand out
    assert nodule > 0.3
