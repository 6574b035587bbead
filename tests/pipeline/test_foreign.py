"""A template written for MONAI's Auto3DSeg under our pipeline, beside a family of ours."""

from __future__ import annotations

import json
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from autoseg.config import RunConfig, load_config
from autoseg.datalist import load_datalist
from autoseg.demo import make_demo_data
from autoseg.engine import foreign_training
from autoseg.engine.foreign import open_bundle
from autoseg.engine.predictor import Predictor
from autoseg.errors import InputError, NoResultError
from autoseg.pipeline import RunResult, ensemble, generate, predict, predicting, run
from autoseg.pipeline.dry import look_ahead
from autoseg.pipeline.inputs import UNSEEN
from autoseg.pipeline.session import Session, open_session
from autoseg.pipeline.training import training_jobs
from autoseg.records import Case, Event, Job
from autoseg.workspace import read_json, read_yaml, write_json

TEMPLATES = Path(__file__).resolve().parents[1] / "templates"
OURS = {"init_filters": 8, "blocks_down": [1, 1], "dsdepth": 1, "roi_size": [24, 24, 16], "num_iterations": 60}
Finished = tuple[RunConfig, RunResult, list[Event]]


def configure(folder: Path, datalist: Path, algos: list[str], **settings: Any) -> RunConfig:
    families = {"segresnet": OURS} if "segresnet" in algos else {}
    return load_config(
        None,
        work_dir=str(folder / "work dir"),
        datalist=str(datalist),
        modality="MRI",
        num_fold=2,
        algos=algos,
        templates_path_or_url=str(TEMPLATES),
        ensemble_method="AlgoEnsembleAll",
        family_settings={**families, "tinynet": {"num_epochs": 30, "betas": [0.8, 0.99], **settings}},
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("fremd é")
    datalist = make_demo_data(folder / "data", training=6, testing=1, shape=(28, 26, 20), labels=(1, 3))
    config = configure(folder, datalist, ["tinynet", "segresnet"])
    events: list[Event] = []
    return config, run(config, events.append), events


def test_it_trains_in_parallel_is_logged_scored_and_ensembled(finished: Finished) -> None:
    config, result, events = finished
    root = Path(config.work_dir)
    assert result.exit_code == 0
    assert sorted(result.members) == ["segresnet_0", "segresnet_1", "tinynet_0", "tinynet_1"]
    assert "tinynet: epoch 30" in (root / "jobs" / "tinynet_1" / "output.log").read_text()
    for fold in (0, 1):
        scores = read_json(root / f"tinynet_{fold}" / "scores.json")
        validated = {row["case"] for row in scores["cases"]}
        assert len(validated) == 3
        for case in validated:
            written = nib.load(root / f"tinynet_{fold}" / "validation" / f"{case}.nii.gz")
            assert set(np.unique(np.asarray(written.dataobj))) <= {0, 1, 3}  # type: ignore[attr-defined]
    best = {entry.name: entry for entry in result.leaderboard}
    assert best["tinynet_0"].mean_dice > 0.3 and set(best["tinynet_0"].dice) == {"1", "3"}
    assert result.cross_validation["tinynet"]["n_cases"] == 6
    assert len(result.predictions) == 1 and not [e for e in events if e.kind == "warning"]


def test_what_the_user_sets_reaches_its_train_py_as_monai_hands_it_over(finished: Finished) -> None:
    root = Path(finished[0].work_dir)
    plan = read_json(root / "plan.json")["families"]["tinynet"]
    assert plan["settings"]["num_epochs"] == {"value": 30, "reason": "set by the user"}
    last = read_yaml(root / "tinynet_0" / "model" / "progress.yaml")[-1]
    assert (last["epoch"], last["betas"]) == (30, [0.8, 0.99])
    filled = read_yaml(root / "tinynet_1" / "configs" / "hyper_parameters.yaml")
    assert filled["bundle_root"] == str(root / "tinynet_1") and filled["fold"] == 1


def test_its_probabilities_count_as_a_member_s(finished: Finished) -> None:
    """The ensemble's labels are those of the mean of all four members' probabilities."""
    config, result, _ = finished
    ((name, path),) = result.predictions.items()
    image = Path(config.datalist).parent / "images" / f"{name}.nii.gz"
    bundles = [open_bundle(Path(config.work_dir) / member) for member in result.members]
    each = [Predictor([b], torch.device("cpu")).probabilities(Case(name, (str(image),)))[0] for b in bundles]
    expected = np.asarray([0, 1, 3])[np.mean(each, 0).argmax(0)]
    found = np.asarray(nib.load(path).dataobj)  # type: ignore[attr-defined]
    assert (found == expected).mean() > 0.9999
    foreign = bundles[[m.startswith("tinynet") for m in result.members].index(True)]
    given = foreign.inferer.infer(str(image))  # type: ignore[attr-defined]
    np.testing.assert_allclose(each[bundles.index(foreign)], given[[0, 1, 3]].numpy(), atol=1e-4)  # 2 is a gap


def test_again_nothing_is_done_anew_and_new_images_are_predicted(finished: Finished, tmp_path: Path) -> None:
    config, before, _ = finished
    events: list[Event] = []
    again = run(config, events.append)
    assert again.leaderboard == before.leaderboard
    assert len([e for e in events if e.facts.get("kept")]) >= 5  # four trainings, one prediction
    image = next((Path(config.datalist).parent / "images").glob("testing*"))
    (path,) = predict(config.work_dir, image, tmp_path / "out").values()
    assert np.asarray(nib.load(path).dataobj).shape == (28, 26, 20)  # type: ignore[attr-defined]


def test_members_that_prediction_left_out_are_said_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datalist = make_demo_data(tmp_path / "data", training=4, testing=1, shape=(20, 20, 16))
    case = load_datalist(datalist).testing[0]

    def answer(session: Session, jobs: list[Job], *how: Any) -> dict[str, Any]:
        for job in jobs:
            found = {"predictions": {case.id: case.image[0]}, "errors": {}, "left_out": ["tinynet_0 is left out"] * 2}
            write_json(Path(job.cwd) / "predictions.json", found)
        return {}

    monkeypatch.setattr(predicting, "run_jobs", answer)
    events: list[Event] = []
    with open_session(configure(tmp_path, datalist, ["tinynet"]), events.append) as session:
        asked = predicting.Asked((), [case], lambda case: tmp_path / "out.nii.gz", "predict")
        made = predicting.predict_cases(session, asked)
    assert set(made.predictions) == {case.id}
    assert [event.message for event in events if event.kind == "warning"] == ["tinynet_0 is left out"]


def test_only_what_a_template_reads_makes_its_bundle_be_written_anew(tmp_path: Path) -> None:
    """What does not reach it leaves the trained bundle alone; what does replaces it, and that is said."""
    datalist = make_demo_data(tmp_path / "data", training=4, testing=1, shape=(20, 20, 16))
    config = configure(tmp_path, datalist, ["tinynet"])
    trained, _ = generate(config)
    write_json(trained / "scores.json", {})
    before = read_json(trained / "foreign.json")
    listed = datalist.with_name("no testing.json")
    write_json(listed, {**read_json(datalist), "testing": []})
    other = {"ensemble_method": "AlgoEnsembleBestN", "n_best": 2, "tolerance_mm": 3.0, "max_parallel": 1}
    events: list[Event] = []
    generate(replace(config, datalist=str(listed), **other), events.append)
    assert (trained / "scores.json").exists() and read_json(trained / "foreign.json") == before
    said = f"tinynet_0 is replaced and trained anew: {UNSEEN}"
    assert said not in [event.message for event in events]
    generate(replace(config, modality="PET"), events.append)
    assert [event.message for event in events].count(said) == 1
    assert not (trained / "scores.json").exists() and read_json(trained / "foreign.json")["stamp"] != before["stamp"]


def test_a_foreign_training_counts_as_ours_do(tmp_path: Path) -> None:
    datalist = make_demo_data(tmp_path / "data", training=6, testing=0, shape=(20, 20, 16))
    config = configure(tmp_path, datalist, ["tinynet", "segresnet"])
    bundles = generate(config)
    listed = load_datalist(Path(config.work_dir) / "datalist.json", datalist.parent)
    with open_session(config, None) as session:
        both = {job.id: job.cost for job in training_jobs(session, bundles, listed)}
        alone = {job.id: job.cost for job in training_jobs(session, bundles[:2], listed)}
    ours = both["segresnet_0"]
    assert ours == both["segresnet_1"] > 100
    assert (both["tinynet_0"], both["tinynet_1"]) == (ours, ours)
    assert alone == {"tinynet_0": 3, "tinynet_1": 3}


def test_a_list_of_validation_cases_is_its_fold_0(tmp_path: Path) -> None:
    datalist = make_demo_data(tmp_path / "data", training=4, testing=0, shape=(20, 20, 16))
    plain = read_json(datalist)
    write_json(datalist, {**plain, "training": plain["training"][1:], "validation": plain["training"][:1]})
    config = configure(tmp_path, datalist, ["tinynet"])
    (bundle,) = generate(replace(config, num_fold=None))
    listed = read_yaml(bundle / "configs" / "hyper_parameters.yaml")["data_list_file_path"]
    assert [entry["fold"] for entry in json.loads(Path(listed).read_text())["training"]] == [0, 1, 1, 1]


def test_broken_inference_falls_back_to_its_own_score_and_joins_no_ensemble(tmp_path: Path) -> None:
    datalist = make_demo_data(tmp_path / "data", training=4, testing=1, shape=(20, 20, 16))
    shutil.copytree(TEMPLATES, tmp_path / "templates")
    script = tmp_path / "templates" / "tinynet" / "scripts" / "infer.py"
    script.write_text(script.read_text().replace("self.network.eval()", "raise OSError('no eyes')"))
    config = configure(tmp_path, datalist, ["tinynet"], num_epochs=1)
    config = replace(config, templates_path_or_url=str(tmp_path / "templates"), ensemble=False)
    result = run(config)
    own = read_yaml(Path(config.work_dir) / "tinynet_0" / "model" / "progress.yaml")[-1]["best_avg_dice_score"]
    entry = {e.name: e for e in result.leaderboard}["tinynet_0"]
    assert entry.mean_dice == pytest.approx(own) and not entry.predicts
    assert "no eyes" in (Path(config.work_dir) / "jobs" / "tinynet_0" / "output.log").read_text()
    events: list[Event] = []
    with pytest.raises(NoResultError, match="no trained network is fit"):
        ensemble(config, events.append)
    said = [event.message for event in events if event.kind == "warning"]
    assert len(said) == 2 and all("stays out of the ensemble: its InferClass could not" in words for words in said)


def test_what_its_own_code_raises_is_said_with_its_file(tmp_path: Path) -> None:
    datalist = make_demo_data(tmp_path / "data", training=4, testing=0, shape=(20, 20, 16))
    shutil.copytree(TEMPLATES, tmp_path / "templates")
    script = tmp_path / "templates" / "tinynet" / "scripts" / "algo.py"
    script.write_text(script.read_text().replace('["stats_summary"]', '["no such key"]'))
    config = configure(tmp_path, datalist, ["tinynet"])
    with pytest.raises(InputError, match=r"algo\.py: export_to_disk: KeyError: 'no such key'"):
        generate(replace(config, templates_path_or_url=str(tmp_path / "templates")))


def test_where_time_is_limited_it_is_ended_and_what_it_has_saved_counts(odd_path: Path) -> None:
    datalist = make_demo_data(odd_path / "data", training=6, testing=1, shape=(28, 26, 20), labels=(1, 3))
    endless = {"num_epochs": 1_000_000, "num_epochs_per_validation": 1}
    config = replace(configure(odd_path, datalist, ["tinynet"], **endless), time_limit=75.0)
    events: list[Event] = []
    result = run(config, events.append)
    assert result.seconds < 100.0  # as far as a machine at work for others keeps to it
    assert sorted(result.members) == ["tinynet_0", "tinynet_1"] and result.evaluation is not None
    assert any("as many steps as it makes" in event.message for event in events if event.kind == "forecast")
    log = (Path(config.work_dir) / "jobs" / "tinynet_0" / "output.log").read_text()
    assert "its time is over" in log and "tinynet: epoch 2" in log


def test_networks_on_all_cases_are_of_our_families_alone(odd_path: Path) -> None:
    """A foreign template must have cases to validate on."""
    datalist = make_demo_data(odd_path / "data", training=4, testing=0, shape=(28, 26, 20), labels=(1, 3))
    config = replace(configure(odd_path, datalist, ["tinynet", "segresnet"]), refit=1)
    events: list[Event] = []
    names = [bundle.name for bundle in generate(config, events.append)]
    assert names == ["tinynet_0", "tinynet_1", "segresnet_0", "segresnet_1", "segresnet_2"]
    assert any("tinynet is trained on folds alone" in event.message for event in events)
    standing = replace(config, algo_gen=False)
    assert [bundle.name for bundle in generate(standing)] == names


def test_a_dry_run_names_what_is_not_written_yet_also_where_time_is_limited(odd_path: Path) -> None:
    datalist = make_demo_data(odd_path / "data", training=4, testing=0, shape=(28, 26, 20), labels=(1, 3))
    config = replace(configure(odd_path, datalist, ["tinynet", "segresnet"]), time_limit=300.0)
    ahead = look_ahead(config, lambda event: None)
    names = {row.id for row in ahead.jobs if "preprocess" not in row.id}
    assert names == {"tinynet_0", "tinynet_1", "segresnet_0", "segresnet_1"}
    assert any("is chosen when their speeds have been measured" in note for note in ahead.notes)
    unnamed = replace(config, algos=None)
    assert not [row for row in look_ahead(unnamed, lambda event: None).jobs if row.id == "tinynet_0"]


def test_one_that_says_nothing_within_its_time_gives_signs_of_life(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(foreign_training, "SIGN_SECONDS", 0.2)
    caplog.set_level("INFO")
    silent = [sys.executable, "-c", "import time; time.sleep(1)"]
    assert foreign_training._run(silent, tmp_path, time.time() + 60.0) == 0
    assert caplog.text.count("it trains, and has") >= 3


def test_where_it_is_not_named_and_time_is_limited_it_is_left_out(odd_path: Path) -> None:
    datalist = make_demo_data(odd_path / "data", training=6, testing=1, shape=(28, 26, 20), labels=(1, 3))
    config = replace(configure(odd_path, datalist, ["tinynet"]), algos=None, time_limit=60.0)
    with pytest.raises(InputError, match="name foreign templates by algos"):
        run(config)


def test_a_process_that_does_not_heed_its_time_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foreign_training, "GRACE", 0.5)
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(100)"
    started = time.monotonic()
    assert foreign_training._run([sys.executable, "-c", deaf], tmp_path, time.time() + 6.0) == 0
    assert time.monotonic() - started < 30.0
    assert foreign_training._run([sys.executable, "-c", "raise SystemExit(3)"], tmp_path, time.time() + 60.0) == 3
    assert foreign_training._run([sys.executable, "-c", "raise SystemExit(3)"], tmp_path, None) == 3
