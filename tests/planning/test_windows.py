"""In which windows volumes are predicted, and with how few of them where time is short."""

from __future__ import annotations

from typing import Any

import pytest

from autoseg.planning.windows import LEVELS, MOST_SHARES, fewer_windows, level_within, passes

PLANNED = {"roi_size": [40, 48, 40], "overlap": 0.5, "mirror_axes_inference": [0]}


def test_each_level_asks_for_fewer_windows() -> None:
    counts = [passes((80, 80, 64), {**PLANNED, **fewer_windows(PLANNED, level)}) for level in LEVELS]
    assert counts == [2 * 27, 2 * 12, 12]


@pytest.mark.parametrize(
    ("settings", "said", "expected"),
    [
        ({}, (), [{}, {"overlap": 0.25}, {"overlap": 0.25, "mirror_axes_inference": []}]),
        ({"overlap": 0.1}, (), [{}, {}, {"mirror_axes_inference": []}]),
        ({"mirror_axes_inference": []}, (), [{}, {"overlap": 0.25}, {"overlap": 0.25}]),
        ({}, ("overlap",), [{}, {}, {"mirror_axes_inference": []}]),
        ({}, ("overlap", "mirror_axes_inference"), [{}, {}, {}]),
    ],
)
def test_what_is_fewer_already_or_was_said_stays(settings: Any, said: Any, expected: Any) -> None:
    assert [fewer_windows({**PLANNED, **settings}, level, said) for level in LEVELS] == expected


def test_the_level_is_the_first_that_leaves_time_for_training() -> None:
    first, second = MOST_SHARES
    assert level_within([first, 0.0, 0.0]) == 0
    assert level_within([first + 0.01, second, 0.0]) == 1
    assert level_within([0.6, second + 0.01, 0.3]) == 2
    assert level_within([None, None, 0.3]) == level_within([None, None, None]) == 2
    assert level_within([second, second, 0.0]) == 0, "less overlap that saves nothing is none"
    assert level_within([0.6, 0.4, 0.4]) == 1
