"""Whole runs on generated data: the files, the scores, the second time, the faults."""

from __future__ import annotations

import json
import math
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.apps.auto3dseg import AlgoEnsemble, AlgoEnsembleBuilder, import_bundle_algo_history
from monai.utils.enums import AlgoKeys

from autoseg import AutoRunner
from autoseg.config import RunConfig, load_config
from autoseg.demo import make_demo_data
from autoseg.engine.bundle import Bundle
from autoseg.ensemble.members import collapsed
from autoseg.errors import InputError, NoResultError
from autoseg.pipeline import RunResult, check, ensemble, evaluate, generate, predict, run, status
from autoseg.pipeline.dry import look_ahead
from autoseg.pipeline.standing import KEPT
from autoseg.records import Event
from autoseg.workspace import Workspace, read_json, write_json

TINY = {"init_filters": 8, "blocks_down": [1, 1, 1], "dsdepth": 2, "roi_size": [32, 32, 24], "num_iterations": 60}


def configure(work_dir: Path, datalist: Path, **changes: Any) -> RunConfig:
    """One family: tests/test_families.py runs them all."""
    settings = {**TINY, **changes.pop("settings", {})}
    given = {"modality": "MRI", "num_fold": 2, "algos": ["segresnet"], "settings": settings, **changes}
    return load_config(None, work_dir=str(work_dir), datalist=str(datalist), **given)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunConfig, RunResult, list[Event]]:
    """One whole run of two folds, shared by the tests that look at it."""
    folder = tmp_path_factory.mktemp("Lauf é 1")
    datalist = make_demo_data(folder / "the data", training=8, testing=2, shape=(32, 32, 24))
    config = configure(folder / "work dir", datalist)
    events: list[Event] = []
    return config, run(config, events.append), events


def test_a_run_ends_with_scores_that_were_earned(finished: tuple[RunConfig, RunResult, list[Event]]) -> None:
    config, result, _ = finished
    assert result.exit_code == 0
    assert result.members == ("segresnet_0", "segresnet_1")
    assert result.evaluation is not None
    assert result.evaluation.mean_dice > 0.5
    assert result.evaluation.dice["1"].mean > 0.75
    again = evaluate_by_hand(config, result)
    assert result.evaluation.dice["1"].mean == pytest.approx(again, abs=1e-6)
    assert result.cross_validation["segresnet"]["n_cases"] == 8


def evaluate_by_hand(config: RunConfig, result: RunResult) -> float:
    """Dice of label 1 over the testing cases, from the files alone."""
    scores = []
    for entry in json.loads(Path(config.datalist).read_text())["testing"]:
        case = Path(entry["image"]).name.removesuffix(".nii.gz")
        a = np.asanyarray(nib.load(result.predictions[case]).dataobj) == 1  # type: ignore[attr-defined]
        b = np.asanyarray(nib.load(Path(config.datalist).parent / entry["label"]).dataobj) == 1  # type: ignore[attr-defined]
        scores.append(2 * (a & b).sum() / (a.sum() + b.sum()))
    return float(np.mean(scores))


def test_the_files_of_a_run(finished: tuple[RunConfig, RunResult, list[Event]]) -> None:
    config, result, _ = finished
    root = Path(config.work_dir)
    for name in ("input.yaml", "datalist.json", "datastats.yaml", "datastats_by_case.yaml", "plan.json"):
        assert (root / name).is_file(), name
    for name in ("leaderboard.json", "evaluation.json", "evaluation.csv", "events.jsonl", "algorithm_templates"):
        assert (root / name).exists(), name
    for bundle in ("segresnet_0", "segresnet_1"):
        for name in ("models/model.pt", "models/model_final.pt", "progress.yaml", "metrics.jsonl", "training.log"):
            assert (root / bundle / name).is_file(), name
        assert (root / bundle / "algo_object.json").is_file()
        assert json.loads((root / "jobs" / bundle / "result.json").read_text())["status"] == "done"
    plan = json.loads((root / "plan.json").read_text())["families"]["segresnet"]["settings"]
    assert plan["roi_size"] == {"value": [32, 32, 24], "reason": "set by the user"}
    board = json.loads((root / "leaderboard.json").read_text())
    assert [set(e) for e in board["entries"]] == [
        {"algo", "fold", "status", "mean_dice", "dice", "steps", "seconds", "predicts", "recall_dice"}
    ] * 2
    assert all(path.name.endswith("_ensemble.nii.gz") for path in result.predictions.values())
    assert not list(root.rglob("*.tmp"))


def test_validation_folds_are_disjoint_and_scored_by_the_network_that_did_not_see_them(
    finished: tuple[RunConfig, RunResult, list[Event]],
) -> None:
    root = Path(finished[0].work_dir)
    folds = {e["image"]: e["fold"] for e in json.loads((root / "datalist.json").read_text())["training"]}
    for fold in (0, 1):
        scored = {row["case"] for row in json.loads((root / f"segresnet_{fold}" / "scores.json").read_text())["cases"]}
        assert scored == {Path(p).name.removesuffix(".nii.gz") for p, f in folds.items() if f == fold}
        assert {p.name for p in (root / f"segresnet_{fold}" / "validation").iterdir()} == {
            f"{c}{ending}" for c in scored for ending in (".nii.gz", ".npz")
        }


def test_the_same_command_again_trains_nothing(finished: tuple[RunConfig, RunResult, list[Event]]) -> None:
    config, before, _ = finished
    stamp = (Path(config.work_dir) / "segresnet_0" / "models" / "model.pt").stat().st_mtime_ns
    started = time.monotonic()
    again = run(config)
    assert (Path(config.work_dir) / "segresnet_0" / "models" / "model.pt").stat().st_mtime_ns == stamp
    assert again.leaderboard == before.leaderboard
    assert time.monotonic() - started < 30


def test_other_settings_replace_a_bundle_with_a_word_and_leave_the_other_files(odd_path: Path) -> None:
    datalist = make_demo_data(odd_path / "data", training=4, testing=1, shape=(24, 24, 20))
    small = {"roi_size": [16, 16, 16], "num_iterations": 2}
    run(configure(odd_path / "w", datalist, settings=small))
    events: list[Event] = []
    result = run(configure(odd_path / "w", datalist, settings={**small, "num_iterations": 3}), events.append)
    assert [e.message.split(" ")[0] for e in events if e.kind == "warning"] == ["segresnet_0", "segresnet_1"]
    assert {entry.steps for entry in result.leaderboard} == {3}
    stamp = (odd_path / "w" / "segresnet_0" / "models" / "model.pt").stat().st_mtime_ns
    switched = {"settings": {**small, "num_iterations": 9}, "analyze": False, "algo_gen": False}
    assert {entry.steps for entry in run(configure(odd_path / "w", datalist, **switched)).leaderboard} == {3}
    assert (odd_path / "w" / "segresnet_0" / "models" / "model.pt").stat().st_mtime_ns == stamp


def test_monai_reads_the_history(finished: tuple[RunConfig, RunResult, list[Event]]) -> None:
    history = import_bundle_algo_history(finished[0].work_dir, only_trained=True)
    assert sorted(entry["identifier"] for entry in history) == ["segresnet_0", "segresnet_1"]
    scores = {entry["identifier"]: entry["identifier"] and entry["algo_instance"].get_score() for entry in history}
    assert all(0 < score <= 1 for score in scores.values())


class FirstOnly(AlgoEnsemble):
    """As a user of MONAI writes one: takes the first of what was trained."""

    def collect_algos(self) -> None:
        assert all({"identifier", "algo_instance", "best_metric"} <= set(algo) for algo in self.algos)
        self.algo_ensemble = [
            algo for algo in self.algos if algo[AlgoKeys.ID] == "segresnet_0" and algo[AlgoKeys.SCORE]
        ]


def test_monai_s_ensemble_predicts_from_our_work_dir(finished: tuple[RunConfig, RunResult, list[Event]]) -> None:
    config, _, _ = finished
    history = import_bundle_algo_history(config.work_dir, only_trained=True)
    builder = AlgoEnsembleBuilder(history, str(Path(config.work_dir) / "input.yaml"))
    builder.set_ensemble_method(FirstOnly())
    predictions = builder.get_ensemble()()
    assert [tuple(p.shape) for p in predictions] == [(1, 32, 32, 24)] * 2
    assert {int(v) for p in predictions for v in p.unique()} == {0, 1, 2}


def test_an_ensemble_of_monai_s_kind_chooses_our_members(
    finished: tuple[RunConfig, RunResult, list[Event]], tmp_path: Path
) -> None:
    config, before, _ = finished
    root = tmp_path / "moved"
    shutil.copytree(config.work_dir, root)
    runner = AutoRunner(work_dir=str(root), input=root / "input.yaml").set_ensemble_method(FirstOnly)
    result = runner.run(lambda event: None)
    assert result.members == ("segresnet_0",) and result.leaderboard == before.leaderboard
    assert json.loads((root / "ensemble.json").read_text())["method"] == "FirstOnly"
    assert "FirstOnly" not in (root / "input.yaml").read_text()
    assert set(result.predictions) == set(before.predictions)


def test_prediction_of_new_data_equals_the_run_s_own(
    finished: tuple[RunConfig, RunResult, list[Event]], odd_path: Path
) -> None:
    config, result, _ = finished
    images = Path(config.datalist).parent / json.loads(Path(config.datalist).read_text())["testing"][0]["image"]
    made = predict(config.work_dir, images, odd_path / "out put", uncertainty_maps=True)
    (case, path) = next(iter(made.items()))
    assert path == odd_path / "out put" / f"{case}.nii.gz"
    one, other = (np.asanyarray(nib.load(p).dataobj) for p in (path, result.predictions[case]))  # type: ignore[attr-defined]
    assert (one == other).all()
    doubtful = nib.load(odd_path / "out put" / "uncertainty" / f"{case}.nii.gz")  # type: ignore[attr-defined]
    percent = np.asanyarray(doubtful.dataobj)
    assert percent.shape == one.shape and percent.dtype == np.uint8 and 0 < percent.max() <= 67  # of three classes
    assert read_json(odd_path / "out put" / "doubt.json")["cases"][0]["case"] == case
    scored = evaluate(odd_path / "out put", odd_path / "out put", odd_path / "e.json")
    assert scored.mean_dice == 1.0


def test_doubt_is_said_of_every_case(finished: tuple[RunConfig, RunResult, list[Event]]) -> None:
    config, result, events = finished
    workspace = Workspace(config.work_dir)
    found = read_json(workspace.doubt_json)
    assert {row["case"] for row in found["cases"]} == set(result.predictions)
    assert all(0 < row["mean_dice"] <= 1 and set(row["dice"]) == {"1", "2"} for row in found["cases"])
    assert found["n_cases"] == 8  # all that were out of a fold
    below = [row["case"] for row in found["cases"] if row["mean_dice"] < found["look_below"]]
    assert list(result.look_at) == below == [row["case"] for row in found["cases"] if row["look"]]
    assert any(event.message.startswith("look at") for event in events) == bool(below)
    rows = read_json(workspace.cross_validation_json)["families"]["segresnet"]["cases"]
    assert all(0 <= row["expected"] <= 1 for row in rows)


def test_status_tells_jobs_and_members(finished: tuple[RunConfig, RunResult, list[Event]]) -> None:
    found = status(finished[0].work_dir)
    assert found["jobs"]["segresnet_0"]["status"] == "done"
    assert found["members"] == ["segresnet_0", "segresnet_1"]


@pytest.fixture
def copied(finished: tuple[RunConfig, RunResult, list[Event]], odd_path: Path) -> RunConfig:
    """The finished run's configuration, for a copy of its work_dir that a test may spoil."""
    work_dir = odd_path / "w"
    shutil.copytree(finished[0].work_dir, work_dir)
    return replace(finished[0], work_dir=str(work_dir))


def test_a_run_that_is_cut_off_after_one_fold_can_predict(copied: RunConfig, odd_path: Path) -> None:
    work_dir = Path(copied.work_dir)
    for file in ("leaderboard.json", "ensemble.json", "jobs/segresnet_1/result.json"):
        (work_dir / file).unlink()

    def stop(event: Event) -> None:
        if event.kind == "job_started" and event.facts["id"] == "segresnet_1":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(copied, stop)
    assert read_json(work_dir / "ensemble.json")["members"] == ["segresnet_0"]
    image = next((Path(copied.datalist).parent / "images").glob("*.nii.gz"))
    assert len(predict(work_dir, image, odd_path / "out")) == 1


def test_events_tell_the_story(finished: tuple[RunConfig, RunResult, list[Event]]) -> None:
    config, _, events = finished
    kinds = [event.kind for event in events]
    assert {"stage", "job_started", "job_done", "jobs", "progress", "result"} <= set(kinds)
    logged = [json.loads(line)["kind"] for line in Workspace(config.work_dir).events_jsonl.read_text().splitlines()]
    assert "job_done" in logged
    assert "progress" not in logged


def test_a_job_that_fails_leaves_a_valid_result(odd_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fold 1's bundle is broken after it is written: fold 0 alone makes the ensemble, and the exit code says 3."""
    from autoseg.pipeline import training

    datalist = make_demo_data(odd_path / "data", training=6, testing=1, shape=(24, 24, 20))
    config = configure(odd_path / "w", datalist, settings={"num_iterations": 3, "roi_size": [16, 16, 16]})
    original = training.training_jobs

    def sabotage(*given: Any) -> Any:
        jobs = original(*given)
        (Path(config.work_dir) / "segresnet_1" / "configs" / "network.yaml").write_text("network_def: {_target_: Nope}")
        return jobs

    monkeypatch.setattr(training, "training_jobs", sabotage)
    result = run(config)
    assert result.exit_code == 3
    assert result.members == ("segresnet_0",)
    assert [job.id for job in result.failed] == ["segresnet_1"]
    assert "Nope" in str(result.failed[0].error)


def test_a_collapsed_fold_is_trained_once_more_with_another_seed(
    finished: tuple[RunConfig, RunResult, list[Event]], copied: RunConfig
) -> None:
    config, result, _ = finished
    again, work_dir = replace(copied, ensemble=False), Path(copied.work_dir)
    scores = work_dir / "segresnet_1" / "scores.json"

    def collapse() -> None:
        write_json(scores, {**read_json(scores), "mean_dice": 0.02})
        result = work_dir / "jobs" / "segresnet_1" / "result.json"
        plain = read_json(result)
        write_json(result, {**plain, "sizes": {**plain["sizes"], "scores.json": scores.stat().st_size}})

    collapse()
    events: list[Event] = []
    board = {entry.name: entry for entry in run(again, events.append).leaderboard}
    assert [e.facts["seed"] for e in events if "trained once more" in e.message] == [7919]
    assert [e.facts["id"] for e in events if e.kind == "job_started"] == ["segresnet_1"]
    assert board["segresnet_1"].mean_dice > 0.3
    assert board["segresnet_0"] == next(e for e in result.leaderboard if e.name == "segresnet_0")
    weights = [
        torch.load(w / "segresnet_1/models/model.pt", weights_only=True) for w in (Path(config.work_dir), work_dir)
    ]
    assert not all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])

    collapse()  # as if that had not helped
    events.clear()
    board = {entry.name: entry for entry in run(again, events.append).leaderboard}
    assert not [e for e in events if e.kind == "job_started"]
    assert board["segresnet_1"].mean_dice == 0.02
    assert collapsed(list(board.values())) == [board["segresnet_1"]]


def test_all_jobs_failing_is_no_result(odd_path: Path) -> None:
    datalist = make_demo_data(odd_path / "data", training=4, testing=1, shape=(24, 24, 20))
    config = configure(odd_path / "w", datalist, settings={"roi_size": [7, 7, 7]})  # not a multiple of the stride
    with pytest.raises(NoResultError, match="no training ended well"):
        run(config)


def test_train_on_all_has_no_score_and_predicts(odd_path: Path) -> None:
    datalist = make_demo_data(odd_path / "data", training=4, testing=1, shape=(24, 24, 20))
    settings = {"num_iterations": 3, "roi_size": [16, 16, 16]}
    config = configure(odd_path / "w", datalist, num_fold=None, train_on_all=True, settings=settings)
    result = run(config)
    assert len(result.leaderboard) == 1
    assert math.isnan(result.leaderboard[0].mean_dice)
    assert result.evaluation is not None


def test_refit_trains_on_all_cases_beside_the_folds(odd_path: Path) -> None:
    datalist = make_demo_data(odd_path / "data", training=4, testing=1, shape=(24, 24, 20))
    settings = {"num_iterations": 3, "roi_size": [16, 16, 16]}
    config = configure(odd_path / "w", datalist, num_fold=2, refit=2, settings=settings)
    result = run(config)
    assert result.members == ("segresnet_0", "segresnet_1", "segresnet_2", "segresnet_3")
    board = {entry.name: entry for entry in result.leaderboard}
    assert math.isnan(board["segresnet_2"].mean_dice) and not board["segresnet_2"].dice
    assert [entry.name for entry in result.leaderboard if entry.recall_dice is not None] == [
        "segresnet_2",
        "segresnet_3",
    ]
    assert result.cross_validation["segresnet"]["n_cases"] == 4
    alike = [Bundle.load(odd_path / "w" / f"segresnet_{fold}") for fold in (2, 3)]
    assert [tuple(map(len, bundle.cases())) for bundle in alike] == [(4, 0), (4, 0)]
    assert len({bundle.settings["seed"] for bundle in alike}) == 2
    assert ensemble(config).members == result.members
    jobs = {job.id: job.fate for job in look_ahead(config, print).jobs}
    assert set(jobs.values()) == {KEPT} and {"segresnet_2", "segresnet_3", "predict_0"} <= jobs.keys()


def test_refit_beside_one_of_several_folds(odd_path: Path) -> None:
    datalist = make_demo_data(odd_path / "data", training=6, testing=1, shape=(24, 24, 20))
    config = configure(odd_path / "w", datalist, num_fold=1, refit=1, settings={"roi_size": [16, 16, 16]})
    bundles = [Bundle.load(path) for path in generate(config)]
    assert [tuple(map(len, bundle.cases())) for bundle in bundles] == [(5, 1), (6, 0)]


def test_refit_beside_a_validation_list_is_refused(odd_path: Path) -> None:
    datalist = make_demo_data(odd_path / "data", training=4, testing=1, shape=(24, 24, 20))
    plain = json.loads(datalist.read_text())
    plain["validation"] = [plain["training"].pop()]
    for case in plain["training"]:
        case.pop("fold", None)
    datalist.write_text(json.dumps(plain))
    with pytest.raises(InputError, match="refit: the datalist has a validation list"):
        run(configure(odd_path / "w", datalist, num_fold=None, refit=1))
    assert not (odd_path / "w").exists()


def test_bad_input_is_refused_at_once_and_touches_nothing(odd_path: Path) -> None:
    datalist = make_demo_data(odd_path / "data", training=4, testing=1, shape=(24, 24, 20))
    plain = json.loads(datalist.read_text())
    plain["training"][0]["image"] = "nowhere.nii.gz"
    datalist.write_text(json.dumps(plain))
    config = configure(odd_path / "w", datalist, settings={"learnin_rate": 1.0})
    with pytest.raises(InputError, match="learning_rate") as caught:
        run(config)
    assert "nowhere.nii.gz" in str(caught.value)
    assert not (odd_path / "w").exists()


def test_faults_of_the_images_stop_a_run_before_training(odd_path: Path) -> None:
    datalist = make_demo_data(odd_path / "data", training=4, testing=1, shape=(24, 24, 20))
    entries = json.loads(datalist.read_text())["training"]
    for entry in entries[:2]:
        path = datalist.parent / entry["image"]
        path.write_bytes(path.read_bytes()[:200])
    config = configure(odd_path / "w", datalist)
    for call in (check, run):
        with pytest.raises(InputError) as caught:
            call(config)
        assert len(caught.value.faults) == 2
    assert not list((odd_path / "w").glob("segresnet*"))


def test_a_work_dir_in_use_is_refused_with_who_holds_it(odd_path: Path) -> None:
    datalist = make_demo_data(odd_path / "data", training=4, testing=1, shape=(24, 24, 20))
    config = configure(odd_path / "w", datalist)
    with Workspace(config.work_dir).lock(), pytest.raises(InputError, match="in use by process"):
        run(config)
