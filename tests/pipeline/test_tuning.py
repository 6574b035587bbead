"""A real sweep: trials that are done, ended early, failed, cut off and taken up again; what comes out of it."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from autoseg.config import RunConfig, load_config
from autoseg.demo import make_demo_data
from autoseg.errors import InputError
from autoseg.execution.results import read_result
from autoseg.hpo.variant import write_variant
from autoseg.pipeline import run, status, tune, tuning
from autoseg.pipeline.judging import SweepResult
from autoseg.records import Event
from autoseg.workspace import Workspace, read_json, read_yaml

TINY = {"init_filters": 8, "blocks_down": [1, 1], "dsdepth": 1, "roi_size": [24, 24, 16]}
STEPS = 40
TRIALS = 7
# which trial does what: 2 learns nothing, slowly enough to be ended before its end, 3 fails, the others differ in how
# fast they learn
SPACE = """
def space(trial):
    rate = trial.suggest_float("learning_rate", 1e-9, 1e-2, log=True)
    if trial.number == 2:
        return {"learning_rate": 1e-9, "num_images_per_batch": 64}
    if trial.number == 3:
        return {"learning_rate": rate, "loss": "no such loss"}
    return {"learning_rate": 3e-3 + 1e-3 * trial.number}
"""
SCRIPT = (
    SPACE
    + """
import sys
from autoseg.config import load_config
from autoseg.pipeline import tune
import json
tune(load_config(json.loads(sys.argv[1]), hpo_params={**json.loads(sys.argv[2]), "space": space}))
"""
)


def given(folder: Path, datalist: Path) -> dict[str, Any]:
    plain = {"work_dir": str(folder), "datalist": str(datalist), "modality": "MRI", "num_fold": 3}
    return {**plain, "algos": ["segresnet"], "settings": TINY, "max_tries": 1}


def terms(**changes: Any) -> dict[str, Any]:
    pruner = {"name": "threshold", "lower": 0.15, "n_warmup_steps": 9}
    return {"n_trials": TRIALS, "trial_steps": STEPS, "pruner": pruner, "sampler": "random", "race_folds": 2, **changes}


def space() -> Callable[[Any], dict[str, Any]]:
    names: dict[str, Any] = {}
    exec(SPACE, names)
    found: Callable[[Any], dict[str, Any]] = names["space"]
    return found


def trials(work_dir: Path) -> list[optuna.trial.FrozenTrial]:
    storage = JournalStorage(JournalFileBackend(str(work_dir / "hpo" / "journal.log")))
    return optuna.load_study(study_name="autoseg", storage=storage).trials


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunConfig, SweepResult, list[Event], int]:
    """A sweep whose process and job were killed in the middle of a trial, given once more: the trial's number, too."""
    folder = tmp_path_factory.mktemp("Suche é 1")
    datalist = make_demo_data(folder / "the data", training=9, testing=1, shape=(24, 24, 20))
    config = given(folder / "work dir", datalist)
    source = Path(config["work_dir"])
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, json.dumps(config), json.dumps(terms())])
    number = -1
    for _ in range(1200):
        time.sleep(0.1)
        running = [
            path for path in source.glob("hpo/trials/000[4-9]/*/metrics.jsonl") if "mean_dice" in path.read_text()
        ]
        running = [path for path in running if not (path.parent / "scores.json").exists()]
        if running and process.poll() is None:
            number = int(running[0].parents[1].name)
            break
    process.send_signal(signal.SIGKILL)
    process.wait()
    checked = load_config(config, hpo_params=terms(space=space()))
    events: list[Event] = []
    for _ in range(100):  # until the killed run's jobs have been ended by their guard
        if not any(os.path.exists(f"/proc/{pid}") for pid in jobs_of(source)):
            break
        time.sleep(0.1)
    return checked, tune(checked, events.append), events, number


def jobs_of(work_dir: Path) -> list[str]:
    """Processes that train in the work_dir."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(work_dir / "hpo").encode() in path.read_bytes():
                found.append(path.parent.name)
        except OSError:
            continue
    return found


def test_every_trial_ended_once_and_as_it_had_to(swept: tuple[RunConfig, SweepResult, list[Event], int]) -> None:
    config, result, events, number = swept
    found = trials(Path(config.work_dir))
    assert [t.state.name for t in found] == [
        "PRUNED" if n == 2 else "FAIL" if n == 3 else "COMPLETE" for n in range(TRIALS)
    ]
    assert result.trials == {"done": TRIALS - 2, "ended early": 1, "failed": 1} and result.exit_code == 3
    assert number >= 4, "the sweep was to be killed in the middle of a trial"
    told = [event.facts["number"] for event in events if event.kind == "trial"]
    assert number in told, "the trial that was cut off is told by the call that took it up"
    assert not set(told) & {0, 3}, "what was told before is not told again"


def test_the_trial_that_was_cut_off_went_on(swept: tuple[RunConfig, SweepResult, list[Event], int]) -> None:
    config, _, _, number = swept
    workspace = Workspace(config.work_dir)
    result = read_result(workspace.job(f"trial_{number:04d}_0"))
    assert result is not None and result.status == "done" and result.tries == 2
    log = (workspace.hpo / "trials" / f"{number:04d}" / "segresnet_0" / "training.log").read_text()
    assert "resumed at step" in log


def test_the_pruned_trial_says_why_and_left_nothing_big(swept: tuple[RunConfig, SweepResult, list[Event], int]) -> None:
    config, *_ = swept
    workspace = Workspace(config.work_dir)
    result = read_result(workspace.job("trial_0002_0"))
    assert result is not None and result.status == "stopped" and "ThresholdPruner" in str(result.error)
    assert not list((workspace.hpo / "trials" / "0002" / "segresnet_0" / "models").glob("*.pt"))
    assert not list(workspace.hpo.glob("trials/*/*/models/checkpoint*"))
    assert trials(workspace.root)[2].intermediate_values


def test_the_default_comes_first_and_is_compared_on_cases_no_trial_saw(
    swept: tuple[RunConfig, SweepResult, list[Event], int],
) -> None:
    config, result, *_ = swept
    workspace = Workspace(config.work_dir)
    assert read_json(workspace.hpo / "trials" / "0000" / "trial.json")["overrides"] == {}
    split = read_json(workspace.hpo / "datalist.json")
    seen = {case["image"] for case in split["training"]}
    unseen = {case["image"] for case in split["testing"]}
    assert len(seen) == 6 and len(unseen) == 3 and not seen & unseen
    assert result.gain is not None and result.gain.n == 3
    assert result.default is not None and result.best is not None
    assert result.gain.mean == pytest.approx(result.best - result.default, abs=1e-6)
    assert f"{result.gain.n} cases that no trial has seen" in result.sentence
    written = list(workspace.hpo.glob("held_out/*/*.nii.gz"))
    assert len(written) == 6
    best = read_yaml(workspace.hpo / "best.yaml")
    assert best == ({result.family: result.overrides} if result.better else {})


def test_the_table_of_trials(swept: tuple[RunConfig, SweepResult, list[Event], int]) -> None:
    config, *_ = swept
    rows = list(csv.DictReader((Path(config.work_dir) / "hpo" / "trials.csv").open()))
    assert [row["number"] for row in rows] == [str(number) for number in range(TRIALS)]
    assert "no such loss" in " ".join(rows[3].values())
    assert status(config.work_dir)["jobs"]["trial_0002_0"]["status"] == "stopped"


def test_the_same_command_again_repeats_nothing(swept: tuple[RunConfig, SweepResult, list[Event], int]) -> None:
    config, before, *_ = swept
    events: list[Event] = []
    again = tune(config, events.append)
    assert (again.winner, again.sentence, again.better) == (before.winner, before.sentence, before.better)
    assert not [event for event in events if event.kind in ("trial", "job_started")]


def test_other_terms_are_another_study(swept: tuple[RunConfig, SweepResult, list[Event], int]) -> None:
    config, *_ = swept
    other = load_config(given(Path(config.work_dir), Path(config.datalist)), hpo_params=terms(trial_steps=STEPS + 1))
    with pytest.raises(InputError, match="budget"):
        tune(other)


def test_a_better_configuration_is_trained_beside_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datalist = make_demo_data(tmp_path / "data", training=6, testing=1, shape=(24, 24, 20))
    found = SweepResult(tmp_path, 5, "segresnet", {"learning_rate": 5e-3}, True, "trial 5 is better")
    monkeypatch.setattr(tuning, "sweep", lambda session, datalist, reuse: found)
    source = {**given(tmp_path / "work", datalist), "settings": {**TINY, "num_iterations": 10}, "num_fold": 1}
    result = run(load_config(source, hpo=True))
    assert {entry.name for entry in result.leaderboard} == {"segresnet_0", "segresnettuned_0"}
    tuned = read_yaml(tmp_path / "work" / "segresnettuned_0" / "configs" / "hyper_parameters.yaml")
    assert tuned["learning_rate"] == 5e-3 and tuned["name"] == "segresnettuned"
    assert result.sweep is found
    monkeypatch.setattr(tuning, "sweep", lambda session, datalist, reuse: replace(found, better=False))
    assert {entry.algo for entry in run(load_config(source, hpo=True)).leaderboard} == {"segresnet"}


def test_a_variant_is_a_template_of_its_own(tmp_path: Path) -> None:
    from autoseg.bundles.contract import check_template
    from autoseg.bundles.templates import available_templates

    target = write_variant(available_templates()["segresnet"], tmp_path)
    assert target.name == "segresnettuned" and not check_template(target)
    assert "class SegresnettunedAlgo(" in (target / "scripts" / "algo.py").read_text()
