"""What is done to a label's voxels after the decision, and what ensemble.json says of it."""

from __future__ import annotations

import numpy as np
import pytest

from autoseg.engine.combination import Combination, PostProcessing, post_processed
from autoseg.records import to_plain


@pytest.fixture
def labels() -> np.ndarray:
    """Label 1: a cube of 125 with a hole, and one of 8; label 2: a voxel in another hole of the cube, and 27 more."""
    found = np.zeros((20, 12, 10), np.uint8)
    found[2:7, 2:7, 2:7] = 1
    found[4, 4, 4], found[3, 3, 3] = 0, 2
    found[12:14, 2:4, 2:4] = 1
    found[12:15, 7:10, 5:8] = 2
    return found


@pytest.mark.parametrize(
    ("rule", "ones"),
    [
        (PostProcessing(), 123 + 8),
        (PostProcessing(fill=True), 124 + 8),  # the other label keeps its voxel
        (PostProcessing(largest=True), 123),
        (PostProcessing(smallest_mm3=17), 123),  # 8 voxels of 2 mm3 are less
        (PostProcessing(smallest_mm3=16), 123 + 8),
        (PostProcessing(fill=True, smallest_mm3=17), 124),
        (PostProcessing(smallest_mm3=1000), 0),
        (PostProcessing(smallest_mm3=1000, largest=True), 0),
    ],
)
def test_rules(labels: np.ndarray, rule: PostProcessing, ones: int) -> None:
    found = post_processed(labels.copy(), {1: rule, 3: PostProcessing(largest=True)}, 2.0)
    assert np.count_nonzero(found == 1) == ones
    assert np.array_equal(found == 2, labels == 2) and found.dtype == labels.dtype


def test_corners_do_not_join(labels: np.ndarray) -> None:
    labels[7, 7, 7] = 1
    assert np.count_nonzero(post_processed(labels, {1: PostProcessing(largest=True)}, 1.0) == 1) == 123


def test_holes_of_a_picture_are_filled() -> None:
    labels = np.zeros((9, 9, 1), np.uint8)
    labels[2:7, 2:7], labels[4, 4] = 1, 0
    assert np.count_nonzero(post_processed(labels, {1: PostProcessing(fill=True)}, 1.0)) == 25


def test_there_and_back() -> None:
    given = Combination("mean", {"a_0": 0.5}, 1.3, {2: PostProcessing(fill=True, smallest_mm3=3.5)})
    plain = to_plain(given)
    plain["post_processing"] = {str(key): value for key, value in plain["post_processing"].items()}
    assert Combination.of(plain) == given
    assert Combination.of({"members": ["a_0"]}) == Combination()
