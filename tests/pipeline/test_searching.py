"""Searches as jobs: before the trainings, kept where nothing changed, and nothing that a run fails by."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autoseg.bundles.marks import architecture_file
from autoseg.config import RunConfig, load_config
from autoseg.demo import make_demo_data
from autoseg.pipeline import generate, run, searching
from autoseg.pipeline.dry import look_ahead
from autoseg.pipeline.standing import KEPT, RUNS
from autoseg.records import Event
from autoseg.workspace import read_yaml

SMALL: dict[str, Any] = {
    **{"search": True, "search_iterations": 3, "num_iterations": 3, "roi_size": [16, 16, 16], "channel_mul": 0.125},
    "precision": "float32",
}


def configure(folder: Path, **changes: Any) -> RunConfig:
    datalist = make_demo_data(folder / "data", training=4, testing=1, shape=(24, 24, 20))
    settings = {**SMALL, **changes.pop("settings", {})}
    given = {"modality": "MRI", "num_fold": 2, "algos": ["dints"], "settings": settings, **changes}
    return load_config(None, work_dir=str(folder / "w"), datalist=str(datalist), **given)


def warnings(events: list[Event]) -> list[str]:
    told = [event.message for event in events if event.kind == "warning"]
    return [message for message in told if "because it was asked for" not in message]  # DiNTS on a CPU


def test_a_run_searches_trains_and_keeps_what_it_found(odd_path: Path) -> None:
    config = configure(odd_path)
    bundles = [odd_path / "w" / name for name in ("dints_0", "dints_1")]
    assert {job.id: job.fate for job in look_ahead(config, print).jobs}["search_dints_0"] == RUNS
    events: list[Event] = []
    result = run(config, events.append)
    assert result.members == ("dints_0", "dints_1") and result.evaluation is not None
    found = [architecture_file(bundle).read_text() for bundle in bundles]
    assert not warnings(events)
    done = [event.facts["id"] for event in events if event.kind == "job_done"]
    assert done.index("search_dints_0") < done.index("dints_0")
    events.clear()
    run(config, events.append)
    assert not [event for event in events if event.kind == "job_started"]
    fates = {job.id: job.fate for job in look_ahead(config, print).jobs if "preprocess" not in job.id}
    assert set(fates.values()) == {KEPT} and "search_dints_1" in fates
    assert found == [architecture_file(bundle).read_text() for bundle in bundles]
    changed = replace(config, settings={**config.settings, "search_iterations": 4})
    run(changed, events.append)
    done = [event.facts["id"] for event in events if event.kind == "job_done"]
    assert {"search_dints_0", "search_dints_1", "dints_0", "dints_1"} <= set(done)


def test_a_search_that_fails_costs_the_search_alone(odd_path: Path) -> None:
    config = configure(
        odd_path, settings={"search_rate": 0.0, "search_memory": 0.0}, max_tries=1
    )  # a budget of nothing
    events: list[Event] = []
    result = run(config, events.append)
    assert result.members == ("dints_0", "dints_1")
    assert any("found nothing, the fixed architecture is trained" in message for message in warnings(events))
    assert not architecture_file(odd_path / "w" / "dints_0").exists()


def test_where_time_is_too_short_the_fixed_architecture_is_trained(
    odd_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(searching, "LEAST_SECONDS", 1000.0)
    config = configure(odd_path, time_limit="100s", settings={"num_iterations": 3})
    events: list[Event] = []
    assert run(config, events.append).members
    assert any("too short to search" in message for message in warnings(events))
    assert not [event for event in events if event.kind == "job_started" and "search" in event.facts["id"]]


def test_minutes_are_shared_with_the_search(odd_path: Path) -> None:
    config = configure(odd_path, minutes=10.0, settings={"num_iterations": None})
    (first, _) = generate(config)
    settings = read_yaml(first / "configs" / "hyper_parameters.yaml")
    whole = settings["search_seconds"] + settings["max_seconds"]
    assert settings["search_seconds"] == pytest.approx(0.3 * whole, abs=0.2)
