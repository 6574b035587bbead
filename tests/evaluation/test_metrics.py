"""Metrics of one case: known answers, MONAI's answers, and what they are where a mask is empty."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest

from autoseg.evaluation import METRICS, dice_by_label, evaluate_case
from autoseg.evaluation.metrics import label_values, surface_points

OVERLAPS = ("dice", "iou", "sensitivity", "specificity", "precision")
SPACING = (0.7, 1.3, 2.5)


def blobs(seed: int, shape: tuple[int, ...] = (18, 20, 12), values: int = 3) -> np.ndarray:
    """A random label map of smooth patches."""
    from scipy import ndimage

    noise = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal(shape), 1.5)
    return np.digitize(noise, np.quantile(noise, np.linspace(0.5, 1, values + 1)[:-1])).astype(np.uint8)


def cube(start: tuple[int, int, int], size: int = 6, shape: tuple[int, int, int] = (24, 24, 24)) -> np.ndarray:
    mask = np.zeros(shape, np.uint8)
    mask[tuple(slice(s, s + size) for s in start)] = 1
    return mask


def test_a_perfect_prediction_scores_one_and_lies_nowhere_apart() -> None:
    labels = blobs(0)
    for scores in evaluate_case(labels, labels, SPACING, [1, 2, 3]).values():
        assert {scores[name] for name in (*OVERLAPS, "surface_dice")} == {1.0}
        assert {scores[name] for name in ("hd95", "asd", "volume_difference", "relative_volume_difference")} == {0.0}


def test_overlaps_are_the_ratios_of_counted_voxels() -> None:
    prediction, reference = np.zeros((2, 4, 4, 4), np.uint8)
    reference.flat[:10] = 1
    prediction.flat[6:14] = 1  # 4 true positives, 4 false positives, 6 false negatives, 50 true negatives
    scores = evaluate_case(prediction, reference, (1, 2, 5), [1])["1"]
    assert scores["dice"] == pytest.approx(8 / 18)
    assert scores["iou"] == pytest.approx(4 / 14)
    assert scores["sensitivity"] == pytest.approx(4 / 10)
    assert scores["precision"] == pytest.approx(4 / 8)
    assert scores["specificity"] == pytest.approx(50 / 54)
    assert scores["volume_difference"] == pytest.approx(-2 * 10 / 1000)  # 10 mm3 a voxel
    assert scores["relative_volume_difference"] == pytest.approx(-0.2)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("voxels", [1, 3])
def test_a_shifted_cube_has_known_distances(axis: int, voxels: int) -> None:
    """A cube of 6 voxels moved by k along an axis: its two faces there move by k, of the others' voxels k rows."""
    start = [8, 8, 8]
    start[axis] += voxels
    moved, still = cube((start[0], start[1], start[2])), cube((8, 8, 8))
    shift = voxels * SPACING[axis]
    scores = evaluate_case(moved, still, SPACING, [1], tolerance_mm=1e6)["1"]
    assert scores["hd95"] == pytest.approx(shift)  # the face is 36 of 152 surface voxels, well over 5 %
    assert scores["surface_dice"] == 1.0
    assert scores["volume_difference"] == 0.0
    assert 0 < scores["asd"] < shift
    assert evaluate_case(moved, still, SPACING, [1], tolerance_mm=shift)["1"]["surface_dice"] == 1.0
    assert evaluate_case(moved, still, SPACING, [1], tolerance_mm=shift * 0.99)["1"]["surface_dice"] < 1.0


def test_slabs_a_known_distance_apart() -> None:
    """Every surface voxel of one slab is as far from the other: all distances are that."""
    prediction, reference = np.zeros((2, 10, 10, 10), np.uint8)
    prediction[:, :, 2], reference[:, :, 6] = 1, 1
    scores = evaluate_case(prediction, reference, SPACING, [1], tolerance_mm=9.9)["1"]
    assert scores["hd95"] == pytest.approx(4 * 2.5)
    assert scores["asd"] == pytest.approx(4 * 2.5)
    assert scores["surface_dice"] == 0.0


def test_average_surface_distance_weighs_both_surfaces() -> None:
    """A cube and one with a far voxel: 1 of 153 voxels is 10 mm off one way, none the other way."""
    still = cube((8, 8, 8))
    speck = still.copy()
    speck[10, 10, 23] = 1  # ten voxels behind the face at 13
    scores = evaluate_case(speck, still, (1, 1, 1), [1])["1"]
    assert len(surface_points(still == 1, (1, 1, 1))) == 152
    assert scores["asd"] == pytest.approx(10 / (152 + 153))
    assert scores["hd95"] == 0.0  # one voxel in 153 is less than 5 %
    assert scores["surface_dice"] == pytest.approx(304 / 305)


@pytest.mark.parametrize("seed", range(6))
def test_invariants_of_random_masks(seed: int) -> None:
    a, b = blobs(seed), blobs(seed + 100)
    one_way, other_way = evaluate_case(a, b, SPACING, [1, 2, 3]), evaluate_case(b, a, SPACING, [1, 2, 3])
    doubled = evaluate_case(a, b, [2 * side for side in SPACING], [1, 2, 3], tolerance_mm=2.0)
    turned = evaluate_case(a.T[::-1], b.T[::-1], SPACING[::-1], [1, 2, 3])
    for label in ("1", "2", "3"):
        first, back = one_way[label], other_way[label]
        for metric in ("dice", "iou", "hd95", "asd", "surface_dice"):
            assert first[metric] == pytest.approx(back[metric]), metric
        assert first["sensitivity"] == pytest.approx(back["precision"])
        assert first["volume_difference"] == pytest.approx(-back["volume_difference"])
        assert first["iou"] == pytest.approx(first["dice"] / (2 - first["dice"]))
        assert all(0 <= first[metric] <= 1 for metric in (*OVERLAPS, "surface_dice"))
        assert 0 < first["asd"] <= math.hypot(*(n * s for n, s in zip(a.shape, SPACING, strict=True)))
        assert doubled[label]["hd95"] == pytest.approx(2 * first["hd95"])
        assert doubled[label]["surface_dice"] == pytest.approx(first["surface_dice"])
        assert turned[label] == pytest.approx(first)


def test_a_tolerance_of_less_than_a_micrometre_is_kept() -> None:
    still, moved = np.zeros((2, 6, 6, 6), np.uint8)
    still[2:4, 2:4, 2:4], moved[3:5, 2:4, 2:4] = 1, 1
    near, far = (
        evaluate_case(moved, still, [5e-7] * 3, [1], tolerance_mm=part * 5e-7)["1"]["surface_dice"] for part in (1, 0.9)
    )
    assert near == 1 and far < 1


def test_surface_dice_grows_with_the_tolerance() -> None:
    a, b = blobs(1), blobs(2)
    grown = [evaluate_case(a, b, SPACING, [1], mm)["1"]["surface_dice"] for mm in (0, 0.7, 1.5, 3, 100)]
    assert grown == sorted(grown)
    assert grown[0] < grown[-1] == 1.0


@pytest.mark.parametrize("seed", range(3))
def test_the_same_as_monai(seed: int) -> None:
    torch = pytest.importorskip("torch")
    from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance, compute_surface_dice

    a, b = blobs(seed, values=2), blobs(seed + 50, values=2)
    ours = evaluate_case(a, b, SPACING, [1, 2], tolerance_mm=1.5)
    hot: Any = [torch.from_numpy(np.stack([x == v for v in (0, 1, 2)]))[None].float() for x in (a, b)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = {
            "hd95": compute_hausdorff_distance(*hot, percentile=95, spacing=SPACING),
            "asd": compute_average_surface_distance(*hot, symmetric=True, spacing=SPACING),
            "surface_dice": compute_surface_dice(*hot, class_thresholds=[1.5, 1.5], spacing=SPACING),
        }
    for metric, values in theirs.items():
        for column, label in enumerate(("1", "2")):
            assert ours[label][metric] == pytest.approx(float(values[0, column]), rel=1e-5), metric


def test_absent_from_both_is_not_a_number_but_for_specificity() -> None:
    empty = np.zeros((5, 6, 7), np.uint8)
    scores = evaluate_case(empty, empty, SPACING, [1])["1"]
    assert set(scores) == set(METRICS)
    assert scores.pop("specificity") == 1.0
    assert all(math.isnan(value) for value in scores.values())


@pytest.mark.parametrize("missed", [True, False])
def test_absent_from_one_costs_the_most(missed: bool) -> None:
    full, empty = cube((3, 3, 3), shape=(10, 12, 14)), np.zeros((10, 12, 14), np.uint8)
    prediction, reference = (empty, full) if missed else (full, empty)
    scores = evaluate_case(prediction, reference, SPACING, [1])["1"]
    diagonal = math.sqrt((10 * 0.7) ** 2 + (12 * 1.3) ** 2 + (14 * 2.5) ** 2)
    assert {scores[name] for name in ("dice", "iou", "sensitivity", "precision", "surface_dice")} == {0.0}
    assert scores["hd95"] == scores["asd"] == pytest.approx(diagonal)
    ml = 216 * 0.7 * 1.3 * 2.5 / 1000
    assert scores["volume_difference"] == pytest.approx(-ml if missed else ml)
    if missed:
        assert scores["specificity"] == 1.0
        assert scores["relative_volume_difference"] == -1.0
    else:
        assert scores["specificity"] == pytest.approx(1 - 216 / (10 * 12 * 14))
        assert math.isnan(scores["relative_volume_difference"])


def test_a_mask_that_fills_the_image_ends_at_its_border() -> None:
    full = np.ones((6, 6, 6), np.uint8)
    smaller = cube((1, 1, 1), 4, (6, 6, 6))
    scores = evaluate_case(smaller, full, (1, 1, 1), [1])["1"]
    assert math.isnan(scores["specificity"])  # the reference has no background
    # of the outer 152 voxels 8 corners lie sqrt(3) away and 48 on edges sqrt(2): rank 0.95 * 151 = 143.45 is between
    assert scores["hd95"] == pytest.approx(0.55 * math.sqrt(2) + 0.45 * math.sqrt(3))


def test_one_slice_is_measured_in_its_plane() -> None:
    """A 2D image stored as [X, Y, 1]: were its faces surface, every voxel would be one."""
    a, b = np.zeros((2, 20, 20), np.uint8)
    a[4:12, 4:12], b[6:14, 4:12] = 1, 1
    flat = evaluate_case(a, b, (2.0, 1.0), [1])["1"]
    sliced = evaluate_case(a[..., None], b[..., None], (2.0, 1.0, 1.0), [1])["1"]
    assert flat["hd95"] == pytest.approx(4.0)
    assert sliced == pytest.approx(flat)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", [np.bool_, np.uint8, np.int16, ">i2", np.int64])
def test_order_and_type_of_arrays_do_not_matter(order: Any, dtype: Any) -> None:
    a, b = ((blobs(seed) > 0).astype(dtype, order=order) for seed in (1, 2))
    expected = evaluate_case((blobs(1) > 0).astype(np.int32), (blobs(2) > 0).astype(np.int32), SPACING, [1])
    assert evaluate_case(a, b, SPACING, [1]) == expected


def test_background_and_values_beyond_the_type_can_be_asked_for() -> None:
    a, b = blobs(1), blobs(2)
    scores = evaluate_case(a, b, SPACING, [0, 300])
    assert scores["0"]["dice"] == dice_by_label(a, b, [0])["0"]
    assert math.isnan(scores["300"]["dice"])


def test_dice_agrees_with_the_full_table() -> None:
    a, b = blobs(3), blobs(4)
    full = evaluate_case(a, b, SPACING, [1, 2, 3, 9])
    short = dice_by_label(a, b, [1, 2, 3, 9])
    assert math.isnan(short.pop("9"))
    assert short == pytest.approx({label: full[label]["dice"] for label in short})
    assert dice_by_label(np.zeros_like(a), b, [1]) == {"1": 0.0}


def test_label_values_are_found() -> None:
    assert label_values(np.array([[[0, 7], [300, 7]]], np.int16)) == [7, 300]
    assert label_values(np.zeros((2, 2, 2), np.uint8)) == []


def test_what_does_not_fit_is_refused() -> None:
    a = np.zeros((4, 4, 4), np.uint8)
    with pytest.raises(ValueError, match="differ in shape"):
        evaluate_case(a, a[1:], SPACING, [1])
    with pytest.raises(ValueError, match="differ in shape"):
        dice_by_label(a, a[1:], [1])
    with pytest.raises(ValueError, match="spacing"):
        evaluate_case(a, a, (1, 1), [1])
    with pytest.raises(ValueError, match="spacing"):
        evaluate_case(a, a, (1, 0, 1), [1])
    with pytest.raises(ValueError, match="float"):
        evaluate_case(a.astype(float), a.astype(float), SPACING, [1])
