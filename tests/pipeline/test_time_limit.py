"""A whole call inside its time limit, and one that is too short."""

from __future__ import annotations

import math
import time
from pathlib import Path

import pytest

from autoseg.bundles.marks import bundle_settings, patch_file
from autoseg.config import load_config
from autoseg.config.keys import READERS
from autoseg.demo import make_demo_data
from autoseg.errors import InputError
from autoseg.pipeline import run
from autoseg.planning import windows
from autoseg.records import Event
from autoseg.workspace import read_json

SMALL = {"init_filters": 8, "blocks_down": [1, 1, 1], "dsdepth": 2, "roi_size": [32, 32, 24]}


def test_a_limit_that_is_too_short_is_refused_with_the_least_and_a_longer_one_is_kept(
    odd_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where windows take too much of it, there are fewer: scores, predictions and the bundle say the same."""
    monkeypatch.setattr(windows, "MOST_SHARES", (0.0, 0.0))
    datalist = make_demo_data(odd_path / "data", training=8, testing=2, shape=(32, 32, 24))
    given = {"datalist": str(datalist), "modality": "MRI", "settings": SMALL, "work_dir": str(odd_path / "w")}
    with pytest.raises(InputError, match=r"time_limit: 10 s are too short: the least .* here is ") as caught:
        run(load_config(None, **given, time_limit="10s"))
    said = str(caught.value).split("here is ")[1].replace("in", "").replace(" ", "")  # 1m2s

    least = f"{1.5 * READERS['time_limit'](said):.0f}s"  # a machine at work for others is not as fast from now to then
    events: list[Event] = []
    started = time.monotonic()
    result = run(load_config(None, **given, time_limit=least), events.append)
    seconds = READERS["time_limit"](least)
    assert time.monotonic() - started < seconds + 30
    assert result.exit_code == 0
    assert result.evaluation is not None and len(result.predictions) == 2
    assert not (odd_path / "w" / "clock.json").exists()
    choice = read_json(odd_path / "w" / "pace.json")["choice"]
    folds = [*range(choice["folds"]), *range(5, 5 + choice["refit"])]  # those past the last one are of all cases
    assert {entry.name for entry in result.leaderboard} == {f"segresnet_{fold}" for fold in folds}
    assert all(math.isnan(entry.mean_dice) == (entry.fold >= 5) for entry in result.leaderboard)
    assert any(e.kind == "forecast" and e.message.startswith("time limit ") for e in events)
    assert all(entry.steps > 0 for entry in result.leaderboard)
    assert [e for e in events if "predictions in windows that overlap by 25% and are not mirrored" in e.message]
    for bundle in (odd_path / "w" / entry.name for entry in result.leaderboard):
        fewer, planned = {"overlap": 0.25, "mirror_axes_inference": []}, bundle_settings(bundle)
        assert read_json(patch_file(bundle)).items() >= fewer.items()
        assert (planned["overlap"], planned["mirror_axes_inference"]) == (0.5, [0]), "what is planned stays"

    events.clear()
    assert run(load_config(None, **given, time_limit=least), events.append).leaderboard == result.leaderboard
    assert not [e for e in events if e.kind == "job_started"]
