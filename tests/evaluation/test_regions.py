"""Regions that may overlap: when one label map holds them, their bits, and scores by region."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from autoseg.errors import InputError
from autoseg.evaluation import Scored, evaluate_pairs, nesting, read_label_map
from autoseg.evaluation.regions import MOST, bits_of_channels, bits_of_labels, bits_of_values, region

BRATS = ((1, 2, 3), (1, 3), (3,))  # whole tumour, its core, what enhances; oedema is 2
CROSSING = ((1, 2), (2, 3))


@pytest.mark.parametrize(
    ("regions", "depths", "values"),
    [
        (BRATS, (1, 2, 3), (2, 1, 3)),
        (((3,), (1, 2, 3)), (2, 1), (3, 1)),  # in any order
        (((1,), (2,)), (1, 1), (1, 2)),  # exclusive ones, as `sigmoid` makes of labels
        (((4, 2), (2,), (7, 9)), (1, 2, 1), (4, 2, 7)),
        (((5, 6, 7, 8), (5, 6), (7,)), (1, 2, 2), (8, 5, 7)),
    ],
)
def test_nested_regions_fit_into_one_label_map(regions: Any, depths: Any, values: Any) -> None:
    found = nesting(regions)
    assert found is not None
    assert (found.depths, found.values) == (depths, values)
    # a voxel that is written so lies in that region and in those that hold it, and in no other
    for number, value in enumerate(found.values):
        inside = {r for r, held in enumerate(regions) if value in held}
        assert inside == {r for r, held in enumerate(regions) if {*regions[number]} <= {*held}}


@pytest.mark.parametrize(
    "regions",
    [
        CROSSING,
        ((1, 2, 3), (1, 2), (2, 3)),
        ((1, 2), (1,), (2,)),  # nothing is left that is the whole alone
        ((1, 2), (2, 1)),
    ],
)
def test_what_no_label_map_holds(regions: Any) -> None:
    assert nesting(regions) is None


def test_bits_tell_in_which_regions_a_voxel_lies() -> None:
    assert bits_of_values((0, 1, 2, 3), BRATS).tolist() == [0b000, 0b011, 0b001, 0b111]
    labels = np.array([[[0, 1, 2, 3, 4]]], np.uint16)
    bits = bits_of_labels(labels, BRATS)
    assert bits.ravel().tolist() == [0, 0b011, 0b001, 0b111, 0]
    assert [region(bits, number).ravel().tolist() for number in (1, 2, 3)] == [
        [0, 1, 1, 1, 0],
        [0, 1, 0, 1, 0],
        [0, 0, 0, 1, 0],
    ]


def test_as_many_regions_as_there_are_bits() -> None:
    channels = np.random.default_rng(0).integers(0, 2, (3, 4, 5, MOST), np.uint8)
    bits = bits_of_channels(channels)
    for number in range(1, MOST + 1):
        assert (region(bits, number) == channels[..., number - 1]).all()
    assert bits_of_values([5], [[5]] * MOST)[0] == 2**MOST - 1


def save(path: Path, data: np.ndarray) -> str:
    nib.save(nib.Nifti1Image(data, np.diag([1.0, 1.0, 2.0, 1.0])), path)
    return str(path)


def test_files_of_label_values_and_of_masks_say_the_same(odd_path: Path) -> None:
    labels = np.random.default_rng(1).integers(0, 4, (5, 6, 7), np.uint8)
    masks = np.stack([np.isin(labels, held) for held in CROSSING], -1).astype(np.uint8)
    as_labels = read_label_map(save(odd_path / "a.nii.gz", labels), CROSSING)
    as_masks = read_label_map(save(odd_path / "b.nii.gz", masks), CROSSING)
    as_floats = read_label_map(save(odd_path / "c.nii", masks.astype(np.float32)), CROSSING)
    assert as_labels.data.shape == (5, 6, 7)
    assert (as_labels.data == as_masks.data).all() and (as_masks.data == as_floats.data).all()


def test_files_that_hold_no_masks_of_these_regions(odd_path: Path) -> None:
    three = save(odd_path / "three.nii.gz", np.zeros((5, 6, 7, 3), np.uint8))
    with pytest.raises(InputError, match="4D"):
        read_label_map(three, CROSSING)
    with pytest.raises(InputError, match="4D"):
        read_label_map(save(odd_path / "two.nii.gz", np.zeros((5, 6, 7, 2), np.uint8)))
    probabilities = np.full((5, 6, 7, 2), 0.25, np.float32)
    with pytest.raises(InputError, match="not integers"):
        read_label_map(save(odd_path / "probabilities.nii.gz", probabilities), CROSSING)


def test_dice_and_presence_by_region() -> None:
    scored = Scored({1: "whole", 2: "core", 3: "enhancing"}, BRATS)
    reference = bits_of_labels(np.array([[[1, 2, 2, 0]]]), BRATS)
    prediction = bits_of_labels(np.array([[[2, 2, 0, 0]]]), BRATS)
    assert scored.present(reference) == {1, 2}
    assert scored.present(prediction) == {1}
    dice = scored.dice(prediction, reference)
    assert dice["1"] == pytest.approx(2 * 2 / (2 + 3))
    assert dice["2"] == 0.0
    assert math.isnan(dice["3"])
    labels = Scored({1: "a", 3: "b"})
    assert labels.present(np.array([0, 3, 7])) == {3, 7}
    assert labels.dice(np.array([[[1, 3]]]), np.array([[[1, 1]]])) == {"1": pytest.approx(2 / 3), "3": 0.0}


def boxes(**values: tuple[int, int]) -> np.ndarray:
    """[12, 12, 12] where `v2=(1, 7)` puts value 2 in [1, 7) along the first axis, [3, 9) along the others."""
    data = np.zeros((12, 12, 12), np.uint8)
    for name, (start, stop) in values.items():
        data[start:stop, 3:9, 3:9] = int(name[1:])
    return data


@pytest.mark.parametrize("as_masks", [False, True])
def test_evaluation_by_region(odd_path: Path, as_masks: bool) -> None:
    """Case a: whole 2..10 against 2..9, core 4..8 against 5..8. Case b: core missed. Case c: nothing anywhere."""
    drawn = {
        "a": (boxes(v1=(2, 9), v3=(5, 8)), boxes(v1=(2, 10), v3=(4, 8))),
        "b": (boxes(v1=(2, 6)), boxes(v1=(2, 6), v3=(2, 4))),
        "c": (boxes(), boxes()),
    }
    regions = ((1, 3), (3,))
    pairs = []
    for case, (prediction, reference) in drawn.items():
        if as_masks:
            prediction = np.stack([np.isin(prediction, held) for held in regions], -1).astype(np.uint8)
        files = (save(odd_path / f"{case}{end}.nii.gz", data) for end, data in (("_p", prediction), ("_r", reference)))
        pairs.append((case, *files))
    found = evaluate_pairs(pairs, {1: "whole", 2: "core"}, regions=regions, tolerance_mm=0.0)
    assert found.labels == {"1": "whole", "2": "core"}
    scores = {(s.case, s.label): s for s in found.cases}
    assert scores["a", 1].dice == pytest.approx(2 * 7 / (7 + 8))
    assert scores["a", 2].dice == pytest.approx(2 * 3 / (3 + 4))
    assert scores["a", 2].sensitivity == pytest.approx(3 / 4)
    assert scores["a", 2].volume_difference == pytest.approx(-6 * 6 * 1 * 2 / 1000)
    assert scores["b", 1].dice == 1.0
    assert scores["b", 2].dice == 0.0
    presence = {key: score.presence for key, score in scores.items()}
    assert presence["a", 2] == "both" and presence["b", 2] == "missed" and presence["c", 1] == "absent"
    assert found.dice["1"].mean == pytest.approx((14 / 15 + 1) / 2)
    assert found.dice["2"].mean == pytest.approx((6 / 7 + 0) / 2)
    assert found.mean_dice == pytest.approx(((14 / 15 + 1) / 2 + 3 / 7) / 2)


def test_other_values_of_a_prediction_are_of_no_region(odd_path: Path) -> None:
    prediction, reference = boxes(v1=(2, 6), v9=(8, 10)), boxes(v1=(2, 6))
    pair = ("a", save(odd_path / "p.nii.gz", prediction), save(odd_path / "r.nii.gz", reference))
    assert evaluate_pairs([pair], {1: "whole"}, regions=((1, 3),)).mean_dice == 1.0
