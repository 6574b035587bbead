"""Searches as jobs: before the trainings, kept where nothing changed, and nothing that a run fails by."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autoseg.bundles.marks import SEARCH_STATE, architecture_file
from autoseg.config import RunConfig, load_config
from autoseg.demo import make_demo_data
from autoseg.devices import detect_devices, plan_slots
from autoseg.engine.journal import write_line
from autoseg.errors import InputError
from autoseg.pipeline import generate, pace, run, searching
from autoseg.pipeline.collapse import reseed_collapsed
from autoseg.pipeline.dry import look_ahead
from autoseg.pipeline.prepare import stored_datalist
from autoseg.pipeline.session import Session, open_session
from autoseg.pipeline.standing import ANEW, GOES_ON, KEPT, RUNS, Outlook, outlook
from autoseg.pipeline.training import training_jobs
from autoseg.planning.budget import SEARCH_START
from autoseg.records import Datalist, Event, JobResult, LeaderboardEntry
from autoseg.workspace import read_json, read_yaml, write_json, write_yaml

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
    collapses_with_its_architecture(config, bundles)
    changed = replace(config, settings={**config.settings, "search_iterations": 4})
    run(changed, events.append)
    done = [event.facts["id"] for event in events if event.kind == "job_done"]
    assert {"search_dints_0", "search_dints_1", "dints_0", "dints_1"} <= set(done)


def collapses_with_its_architecture(config: RunConfig, bundles: list[Path]) -> None:
    """A fold that is trained once more with another seed keeps what was found for it."""
    board = [LeaderboardEntry("dints", fold, "done", dice, {"1": dice}) for fold, dice in enumerate((0.8, 0.1))]
    results = {bundle.name: JobResult(bundle.name, "done") for bundle in bundles}
    with open_session(config, None) as session:
        datalist = stored_datalist(session.workspace)
        assert reseed_collapsed(session, bundles, datalist, board, results, 1000.0) == ["dints_1"]
        assert architecture_file(bundles[1]).exists() and not (bundles[1] / "models" / "model.pt").exists()
        assert not searching.searches_left(session, bundles, datalist)
        job = training_jobs(session, bundles, datalist)[1]
        assert "--seed" in job.argv and "architecture" in job.inputs


def test_a_search_that_fails_costs_the_search_alone(odd_path: Path) -> None:
    config = configure(odd_path, max_tries=1)
    for bundle in generate(config):  # no picture can be put there
        (bundle / "docs" / "architecture.svg" / "x").mkdir(parents=True)
    events: list[Event] = []
    result = run(config, events.append)
    assert result.members == ("dints_0", "dints_1")
    assert any("found nothing, the fixed architecture is trained" in message for message in warnings(events))
    assert not architecture_file(odd_path / "w" / "dints_0").exists()
    # what stands without a search is not replaced by the same command, and a dry run says so
    fates = {job.id: (job.fate, job.reason) for job in look_ahead(config, print).jobs}
    assert fates["search_dints_0"] == (KEPT, "its training was begun with the fixed architecture")
    assert fates["dints_0"][0] == fates["dints_1"][0] == KEPT
    events.clear()
    run(config, events.append)
    assert not [event for event in events if event.kind == "job_started"]
    # with another setting it is searched for again
    changed = replace(config, settings={**config.settings, "search_iterations": 4})
    assert {job.id: job.fate for job in look_ahead(changed, print).jobs}["search_dints_0"] == ANEW


def test_a_search_that_is_cut_off_goes_on_and_a_stale_one_leaves_nothing(odd_path: Path) -> None:
    config = configure(odd_path)
    bundles = generate(config)
    states = [bundle / SEARCH_STATE for bundle in bundles]
    with open_session(config, None) as session:
        datalist = stored_datalist(session.workspace)
        for job, state in zip(searching.search_jobs(session, bundles, datalist), states, strict=True):
            stale = job.id == "search_dints_1"
            mark = "another" if stale else job.fingerprint
            write_json(session.workspace.job(job.id) / "result.json", JobResult(job.id, "cancelled", mark))
            state.parent.mkdir(exist_ok=True)
            state.write_bytes(b"as far as it came")
        fates = {job.id: job.fate for job in searching_fates(session, bundles, datalist)}
        assert fates == {"search_dints_0": GOES_ON, "search_dints_1": ANEW}
        searching.forget_stale(session, bundles, datalist)
    assert [state.exists() for state in states] == [True, False]


def searching_fates(session: Session, bundles: list[Path], datalist: Datalist) -> list[Outlook]:
    jobs = searching.search_jobs(session, bundles, datalist)
    return [outlook(job, session.workspace.job(job.id), goes_on_from=SEARCH_STATE) for job in jobs]


def test_odd_settings_are_refused_at_once(odd_path: Path) -> None:
    odd = {"search_share": 1.0, "search_memory": 0.0, "search_rate": None, "search_iterations": None}
    with pytest.raises(InputError) as refused:
        generate(configure(odd_path, settings=odd))
    assert {fault.field.rsplit(".")[-1] for fault in refused.value.faults} == {
        *list(odd)[:3],
        "search_iterations, search_seconds",
    }
    with pytest.raises(InputError, match="search_seconds: '60s' must be a number"):
        generate(configure(odd_path, settings={"search_seconds": "60s"}))
    assert not (odd_path / "w").exists()
    generate(configure(odd_path, settings={"search_iterations": None}, time_limit="1000s"))  # its share says how long


def test_within_a_limit_searches_leave_the_trainings_their_time(odd_path: Path) -> None:
    config = configure(odd_path, time_limit="1000s")
    bundles = generate(config)
    with open_session(config, None, timed=True) as session:
        datalist = stored_datalist(session.workspace)
        left = searching.searches_left(session, bundles, datalist)
        assert [job.id for job in left] == ["search_dints_0", "search_dints_1"]
        span = searching.time_to_search(session, left, 2)
        assert span is not None and span.together == pytest.approx(300.0, abs=20.0)
        assert span.together == pytest.approx(span.seconds * (2 if len(session.slots(2)) == 1 else 1))
        half = searching.time_to_search(session, left, 4)  # beside as many trainings without a search
        assert half is not None and half.together == pytest.approx(150.0, abs=10.0)
        assert searching.time_to_search(session, [], 2) is None
        assert searching.time_to_search(session, left, 200) is None
        write_line(Path(left[0].cwd) / "search.jsonl", {"step": 9, "seconds": 20.0})  # one that was begun goes on
        going_on = searching.time_to_search(session, left, 200)
        assert going_on is not None and going_on.seconds < searching.LEAST_SECONDS
        set_in(bundles[0], search_seconds=20)  # said by the user: short, but not for want of time
        short = searching.time_to_search(session, left, 2)
        assert short is not None and short.seconds == 20 + SEARCH_START


def set_in(bundle: Path, **settings: Any) -> None:
    path = bundle / "configs" / "hyper_parameters.yaml"
    write_yaml(path, {**read_yaml(path), **settings}, versioned=False)


def test_within_a_limit_what_is_chosen_is_searched_and_trained(odd_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(searching, "LEAST_SECONDS", 1.0)
    monkeypatch.setattr(pace, "SEARCH_LEAVES", 1)
    events: list[Event] = []
    result = run(configure(odd_path, time_limit="600s"), events.append)  # which few steps need not
    done = [event.facts["id"] for event in events if event.kind == "job_done"]
    chosen = [name.removeprefix("search_") for name in done if name.startswith("search_")]
    assert chosen and {entry.name for entry in result.leaderboard} == set(chosen), "no search for what is not trained"
    assert done.index("measure_dints_0") < done.index(f"search_{chosen[0]}") < done.index(chosen[0])
    assert all(architecture_file(odd_path / "w" / name).exists() for name in chosen)
    assert read_json(odd_path / "w" / "pace.json")["choice"]["search"] is True


def test_a_search_does_not_make_a_limit_too_short(odd_path: Path) -> None:
    """Where trainings would get too little beside one, the fixed architecture is trained."""
    config = configure(odd_path, time_limit="130s")
    events: list[Event] = []
    assert run(config, events.append).members
    assert any("too short to search" in message for message in warnings(events))


def test_minutes_are_shared_with_the_search(odd_path: Path) -> None:
    config = configure(odd_path, minutes=10.0, settings={"num_iterations": None})
    (first, _) = generate(config)
    settings = read_yaml(first / "configs" / "hyper_parameters.yaml")
    rounds = 2 / len(plan_slots(detect_devices(), 2))
    assert settings["search_seconds"] == pytest.approx(0.3 * 600 / rounds - SEARCH_START, abs=0.2)
    assert settings["search_seconds"] + settings["max_seconds"] < 600 / rounds - SEARCH_START
    own = configure(odd_path, minutes=10.0, settings={"num_iterations": None, "search_seconds": 60.0})
    again = read_yaml(generate(own)[0] / "configs" / "hyper_parameters.yaml")
    assert again["search_seconds"] == 60.0 and settings["max_seconds"] < again["max_seconds"] < 600 / rounds - 60
