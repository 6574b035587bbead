"""Steps, seconds and deadlines: whichever is reached first, with the last validation inside of a deadline."""

from __future__ import annotations

import time
from typing import Any

import pytest
from monai.data.utils import dense_patch_slices

from autoseg.engine import budget as module
from autoseg.engine.budget import ENDING, SCORING, SECONDS_A_CASE, Budget, windows

WINDOWS = {"overlap": 0.5, "validation_overlap": 0.5, "mirror_axes_inference": [], "roi_size": [10, 10, 1]}
NONE = {"num_iterations": None, "num_epochs": None, "max_seconds": None, "deadline": None, **WINDOWS}


def budget(cases: int = 4, **limits: Any) -> Budget:
    return Budget({**NONE, **limits}, 10, [(20, 20, 5)] * cases)


@pytest.fixture(autouse=True)
def at_noon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.time, "time", lambda: 12_000.0)


def test_steps_epochs_and_seconds() -> None:
    assert budget().endless
    assert budget(num_epochs=3).steps == 30
    assert budget(num_epochs=3, num_iterations=5).steps == 5
    assert budget(num_iterations=100, max_seconds=50).share(20, 40.0, None) == 0.8
    assert budget(num_iterations=100, max_seconds=50).share(90, 40.0, None) == 0.9
    assert budget(max_seconds=50).share(0, 60.0, None) == 1.0


def test_a_deadline_leaves_time_for_the_last_validation_and_the_scores() -> None:
    found = budget(deadline=12_100.0)
    assert not found.endless and found.by_time
    closing = 5.0 + 5.0 * SCORING + 4 * SECONDS_A_CASE + ENDING
    assert found.total_seconds(100.0, 5.0) == pytest.approx(200.0 - closing)
    assert found.share(7, 100.0, 5.0) == pytest.approx(100.0 / (200.0 - closing))
    assert found.share(7, 100.0, None) == pytest.approx(100.0 / 180.0)  # a tenth is kept until one has been timed


def test_windows_that_overlap_more_or_are_mirrored_take_longer() -> None:
    plain, mirrored = budget(deadline=12_500.0), budget(deadline=12_500.0, mirror_axes_inference=[0])
    dense = budget(deadline=12_500.0, overlap=0.75)
    totals = [found.total_seconds(0.0, 5.0) or 0.0 for found in (plain, mirrored, dense)]
    assert totals[0] - totals[1] == pytest.approx(5.0 * SCORING)
    assert totals[0] - totals[2] == pytest.approx((36 / 9 - 1) * 5.0 * SCORING)


@pytest.mark.parametrize(
    ("shape", "overlap", "count"),
    [((8, 8, 1), 0.9, 1), ((10, 10, 5), 0.5, 5), ((20, 10, 1), 0.5, 3), ((20, 20, 1), 0.0, 4), ((21, 10, 1), 0.0, 3)],
)
def test_windows_are_those_of_monai(shape: tuple[int, ...], overlap: float, count: int) -> None:
    patch = (10, 10, 1)
    assert windows(shape, patch, overlap) == count
    padded = [max(n, size) for n, size in zip(shape, patch, strict=True)]
    interval = [max(1, int(size * (1 - overlap))) for size in patch]
    assert len(dense_patch_slices(padded, patch, interval)) == count


@pytest.mark.parametrize("seconds", [0.0, 30.0])
def test_a_deadline_that_is_over_is_the_end(seconds: float) -> None:
    assert budget(deadline=11_000.0).share(3, seconds, 1.0) == 1.0


def test_whichever_is_first() -> None:
    both = budget(deadline=12_100.0, max_seconds=120.0, num_iterations=1000)
    assert both.total_seconds(100.0, 5.0) == 120.0
    assert both.share(990, 100.0, 5.0) == 0.99


def test_without_cases_to_score_all_but_the_end_is_training() -> None:
    assert budget(cases=0, deadline=time.time() + 100.0).total_seconds(0.0, None) == 100.0 - ENDING
