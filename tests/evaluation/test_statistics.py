"""Means and their bootstrap intervals."""

from __future__ import annotations

import math

import numpy as np
import pytest

from autoseg.evaluation import bootstrap_mean, mean_dice, mean_dice_by_label
from autoseg.evaluation.statistics import bootstrap_class_mean

NAN = math.nan


@pytest.mark.parametrize("seed", range(5))
def test_the_interval_covers_the_mean_and_is_the_same_again(seed: int) -> None:
    values = np.random.default_rng(seed).beta(8, 2, 30).tolist()
    mean, low, high = bootstrap_mean(values)
    assert mean == pytest.approx(sum(values) / 30)
    assert min(values) < low < mean < high < max(values)
    assert bootstrap_mean(values) == (mean, low, high)
    assert bootstrap_mean(values, seed=1) != (mean, low, high)


def test_the_interval_is_as_wide_as_the_normal_one_where_that_holds() -> None:
    values = np.random.default_rng(0).normal(0.8, 0.05, 400)
    mean, low, high = bootstrap_mean(values, draws=4000)
    half = 1.96 * values.std() / math.sqrt(400)
    assert high - mean == pytest.approx(half, rel=0.1)
    assert mean - low == pytest.approx(half, rel=0.1)


def test_the_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    random = np.random.default_rng(1)
    held = 0
    for _ in range(200):
        _, low, high = bootstrap_mean(random.normal(0.5, 0.1, 40), draws=400)
        held += low <= 0.5 <= high
    assert 175 <= held <= 199  # 95 % of 200 is 190


def test_cases_without_a_value_are_left_out() -> None:
    assert bootstrap_mean([0.5, NAN, 0.7, NAN]) == bootstrap_mean([0.5, 0.7])
    assert all(math.isnan(value) for value in bootstrap_mean([NAN, NAN]))
    assert all(math.isnan(value) for value in bootstrap_mean([]))


def test_one_value_and_equal_values_have_an_interval_of_no_width() -> None:
    assert bootstrap_mean([0.9]) == (0.9, 0.9, 0.9)
    mean, low, high = bootstrap_mean([0.9] * 7)
    assert low <= mean <= high
    assert high - low < 1e-12


def test_mean_dice_is_over_cases_then_over_classes() -> None:
    table = [{"1": 1.0, "2": 0.2}, {"1": 0.5, "2": NAN}, {"1": 0.6, "2": NAN}]
    assert mean_dice_by_label(table) == pytest.approx({"1": 0.7, "2": 0.2})
    assert mean_dice(table) == pytest.approx(0.45)  # the mean of all five values would be 0.575
    assert mean_dice([{"1": 0.5, "2": NAN}]) == 0.5
    assert math.isnan(mean_dice([{"1": NAN}]))
    assert math.isnan(mean_dice([]))


def test_the_mean_over_classes_has_an_interval_of_whole_cases() -> None:
    """Two classes that err together are as unsure as one; drawn apart they would seem surer."""
    values = np.random.default_rng(2).uniform(0.4, 1.0, 25)
    alone = bootstrap_mean(values)
    assert bootstrap_class_mean(np.stack([values, values], 1)) == pytest.approx(alone)
    table = np.array([[1.0, 0.2], [0.5, NAN], [0.6, NAN]])
    mean, low, high = bootstrap_class_mean(table)
    assert mean == pytest.approx(0.45)
    assert low < mean < high
