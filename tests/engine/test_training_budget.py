"""Steps, seconds and deadlines: whichever is reached first, with the last validation inside of a deadline."""

from __future__ import annotations

import time
from typing import Any

import pytest
from monai.data.utils import dense_patch_slices

from autoseg.engine import budget as module
from autoseg.engine.budget import (
    DEADLINE_SHARE,
    ENDING,
    ONE_SHARE,
    RECALLING,
    RECALLING_SHARE,
    SCORING,
    SECONDS_A_CASE,
    Budget,
    seconds_of,
)
from autoseg.engine.progress import Progress
from autoseg.planning.windows import windows

WINDOWS = {"overlap": 0.5, "validation_overlap": 0.5, "mirror_axes_inference": [], "roi_size": [10, 10, 1]}
NONE = {"num_iterations": None, "num_epochs": None, "max_seconds": None, "deadline": None, **WINDOWS}


def budget(cases: int = 4, **limits: Any) -> Budget:
    return Budget({**NONE, **limits}, 10, [(20, 20, 5)] * cases)


def after(step: int, validation_seconds: float | None) -> Progress:
    """A training of so many steps, and of one validation that took so long, if any."""
    if validation_seconds is None:
        return Progress(step=step)
    return Progress(step=step, validations=1, scored=1, validation_seconds=validation_seconds)


@pytest.fixture(autouse=True)
def at_noon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.time, "time", lambda: 12_000.0)


def test_steps_epochs_and_seconds() -> None:
    assert budget().endless
    assert budget(num_epochs=3).steps == 30
    assert budget(num_epochs=3, num_iterations=5).steps == 5
    assert budget(num_iterations=100, max_seconds=50).share(after(20, None), 40.0) == 0.8
    assert budget(num_iterations=100, max_seconds=50).share(after(90, None), 40.0) == 0.9
    assert budget(max_seconds=50).share(after(0, None), 60.0) == 1.0


def test_a_deadline_leaves_time_for_the_last_validation_and_the_scores() -> None:
    found = budget(deadline=12_100.0)
    assert not found.endless and found.by_time
    closing = 5.0 + 5.0 * SCORING + 4 * SECONDS_A_CASE + ENDING
    assert found.total_seconds(after(0, 5.0), 100.0) == pytest.approx(200.0 - closing)
    assert found.share(after(7, 5.0), 100.0) == pytest.approx(100.0 / (200.0 - closing))
    assert found.share(after(7, None), 100.0) == pytest.approx(100.0 / 180.0)  # a tenth, where windows were not timed
    assert found.windows() == 4 * 45 and found.windows(1) == 45
    assert Progress(window_seconds=0.1).a_validation(found.windows()) == pytest.approx(18.0)


def test_without_cases_to_validate_a_deadline_leaves_time_to_ask_of_trained_ones() -> None:
    found = budget(cases=0, deadline=12_100.0)
    assert found.total_seconds(after(200, None), 100.0) == pytest.approx(200.0 - ENDING - RECALLING * 0.5)
    slow = found.total_seconds(after(1, None), 90.0)  # a first step that took long does not end a training
    assert slow == pytest.approx(190.0 - ENDING - RECALLING_SHARE * 190.0)
    assert found.share(after(0, None), 0.0) == 0.0


def test_windows_that_overlap_more_or_are_mirrored_take_longer() -> None:
    plain, mirrored = budget(deadline=12_500.0), budget(deadline=12_500.0, mirror_axes_inference=[0])
    dense = budget(deadline=12_500.0, overlap=0.75)
    totals = [found.total_seconds(after(0, 5.0), 0.0) or 0.0 for found in (plain, mirrored, dense)]
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
    assert budget(deadline=11_000.0).share(after(3, 1.0), seconds) == 1.0


def test_whichever_is_first() -> None:
    both = budget(deadline=12_100.0, max_seconds=120.0, num_iterations=1000)
    assert both.total_seconds(after(0, 5.0), 100.0) == 120.0
    assert both.share(after(990, 5.0), 100.0) == 0.99


def test_without_cases_to_score_all_but_the_end_is_training() -> None:
    assert budget(cases=0, deadline=time.time() + 100.0).total_seconds(after(0, None), 0.0) == 100.0 - ENDING


def test_a_validation_that_takes_a_large_part_of_the_time_is_not_made() -> None:
    """Neither the last one: the last weights are scored at once, and what it would have taken is training."""
    found = budget(deadline=12_050.0)  # 100 s in all, where 50 are spent
    quick, slow = after(20, 100.0 * ONE_SHARE), after(20, 101.0 * ONE_SHARE)
    assert found.scores(quick, 100.0 * ONE_SHARE / DEADLINE_SHARE, last=False) and found.scores(quick, 50.0, last=True)
    assert not found.scores(quick, 99.0 * ONE_SHARE / DEADLINE_SHARE, last=False)
    assert not found.scores(slow, 50.0, last=False) and not found.scores(slow, 50.0, last=True)
    gained = (found.total_seconds(slow, 50.0) or 0.0) - (found.total_seconds(quick, 50.0) or 0.0)
    assert gained == pytest.approx(100.0 * ONE_SHARE - ONE_SHARE * SCORING)
    assert not found.scores(after(2, None), 50.0, last=True)  # nothing is known: a late start
    assert budget(max_seconds=100.0).scores(slow, 50.0, last=True)  # which comes on top
    assert budget(num_iterations=100).scores(slow, 50.0, last=False)


def test_validations_take_a_tenth_of_the_time_at_most() -> None:
    found = budget(max_seconds=1000.0)
    assert found.scores(after(20, 9.0), 100.0, last=False)
    assert not found.scores(after(20, 11.0), 100.0, last=False)
    due = [step for step in range(1, 101) if found.validation_due(Progress(step=step, validations=2), 10.0 * step)]
    assert due[0] == 30  # and a checkpoint is left, scored or not: tests/engine/test_entry.py


def test_a_budget_that_has_grown_is_divided_anew() -> None:
    """Of ten validations in 1000 steps, five are over of those in 2000; a budget that is as it was changes nothing."""
    grown, ended = budget(num_iterations=2000), Progress(step=1000, validations=10)
    assert grown.validations(ended, 0.0) == 5
    ended.validations = 5
    assert not grown.validation_due(ended, 0.0) and grown.validation_due(Progress(step=1200, validations=5), 0.0)
    for number in range(1, 11):
        due = next(s for s in range(1, 1001) if budget(num_iterations=1000).share(Progress(step=s), 0.0) * 10 >= number)
        assert budget(num_iterations=1000).validations(Progress(step=due, validations=number), 0.0) == number
    assert budget(num_epochs=3).validations(ended, 0.0) == 5  # by epochs they are not counted


def test_after_a_return_windows_need_no_timing_and_memory_is_what_it_was() -> None:
    fresh = Progress()
    fresh.go_on_as(Progress(window_seconds=0.2, parts=2, patch=[8, 8, 8]))
    assert (fresh.window_seconds, fresh.parts, fresh.patch) == (0.2, 2, [8, 8, 8])
    assert not budget(deadline=12_100.0).must_know_windows(fresh, 0.0)


def test_a_window_is_timed_where_a_deadline_must_hold() -> None:
    assert budget(deadline=12_100.0).must_know_windows(Progress(), 0.0)
    assert not budget(deadline=12_100.0).must_know_windows(Progress(window_seconds=0.1), 0.0)
    assert not budget(deadline=11_900.0).must_know_windows(Progress(), 0.0)  # it is over
    assert not budget(max_seconds=100.0).must_know_windows(Progress(), 0.0)


def test_seconds_of_a_work_are_those_of_the_second_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 3.0, 10.0, 11.0, 20.0, 30.0])
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    assert seconds_of(lambda: None) == 1.0
    assert seconds_of(lambda: None) == 10.0  # LONG the first time: once is enough
