"""A dry run says what would run, what is kept and why; and it changes nothing."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autoseg import AutoRunner
from autoseg.config import RunConfig, load_config
from autoseg.demo import make_demo_data
from autoseg.engine.bundle import Bundle
from autoseg.engine.cache import source_stamp
from autoseg.errors import InputError
from autoseg.execution import FakeExecutor, FakeRun, read_result
from autoseg.pipeline import inputs, run, training
from autoseg.pipeline.inputs import UNSEEN
from autoseg.pipeline.standing import UNNAMED, Outlook
from autoseg.records import Event, Job, Speed
from autoseg.workspace import Workspace, read_json, write_json

TEMPLATES = Path(__file__).resolve().parents[1] / "templates"
SMALL = {"init_filters": 8, "roi_size": [16, 16, 16], "num_iterations": 60}


def configure(work_dir: Path, datalist: Path, **changes: Any) -> RunConfig:
    given = {"modality": "MRI", "num_fold": 2, "algos": ["segresnet", "dints"], "settings": SMALL, **changes}
    given |= {"templates_path_or_url": str(TEMPLATES)} if given["algos"] == ["tinynet"] else {}
    return load_config(None, work_dir=str(work_dir), datalist=str(datalist), **given)


def pretend(job: Job) -> FakeRun:
    """Leave what a job leaves, without its work."""
    root = Path(job.cwd)
    if job.id.startswith("preprocess_"):
        for case in Bundle.load(job.argv[-2]).datalist().training:
            folder = root / job.outputs[0] / case.id
            write_json(folder / "case.json", {"source": source_stamp(case)})
            for name, shape in (("image", (1, 2, 2, 2)), ("label", (2, 2, 2)), ("places", (0, 4))):
                np.save(folder / f"{name}.npy", np.zeros(shape, np.int32))
    elif job.id.startswith("measure_"):
        write_json(job.argv[-1], Speed(start=1.0, step=0.5, case=0.1))
    elif job.id.startswith("predict_"):
        write_json(root / "predictions.json", {"predictions": {}, "errors": {}})
    else:
        cases = [{"case": "x", "label": 1, "dice": 0.8}]
        write_json(root / "scores.json", {"mean_dice": 0.8, "dice": {"1": 0.8}, "cases": cases})
        (root / "models").mkdir(exist_ok=True)
        (root / "models" / "checkpoint.pt").touch()
    return FakeRun(1.0)


@pytest.fixture(autouse=True)
def _nothing_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "LocalExecutor", lambda: FakeExecutor(pretend))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunConfig]:
    """A run of two families and two folds that ended well; tests leave it as it is."""
    folder = tmp_path_factory.mktemp("Lauf é")
    datalist = make_demo_data(folder / "data", training=6, testing=2, shape=(24, 24, 20))
    config = configure(folder / "work dir", datalist)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "LocalExecutor", lambda: FakeExecutor(pretend))
        run(config)
    yield config


@pytest.fixture
def copied(finished: RunConfig, tmp_path: Path) -> RunConfig:
    """The same run where a test may change it."""
    shutil.copytree(finished.work_dir, tmp_path / "w")
    return replace(finished, work_dir=str(tmp_path / "w"))


def ahead(config: RunConfig, **options: Any) -> dict[str, Outlook]:
    found = run(config, dry_run=True, **options).dry
    assert found is not None
    return {"preprocess" if row.id.startswith("preprocess_") else row.id: row for row in found.jobs}


def fates(rows: dict[str, Outlook]) -> dict[str, str]:
    return {name: row.fate for name, row in rows.items()}


def tree(root: Path) -> dict[str, str]:
    """Digest of every file outside of cache/."""
    files = (path for path in root.rglob("*") if path.is_file() and "cache" not in path.relative_to(root).parts)
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_all_runs_where_nothing_was_run_and_no_folder_is_made(finished: RunConfig, tmp_path: Path) -> None:
    rows = ahead(replace(finished, work_dir=str(tmp_path / "new")))
    trained = ["segresnet_0", "segresnet_1", "dints_0", "dints_1"]
    assert list(rows) == ["preprocess", *trained, "predict"]
    assert set(fates(rows).values()) == {"runs"}
    assert rows["segresnet_0"].reason == "never run" and rows["preprocess"].reason == "6 of 6 cases"
    assert not list(tmp_path.iterdir())


def test_all_is_kept_after_the_end_and_no_file_changes(finished: RunConfig) -> None:
    before = tree(Path(finished.work_dir))
    events: list[Event] = []
    rows = ahead(finished, notify=events.append)
    assert list(rows)[-1] == "predict_0" and set(fates(rows).values()) == {"kept"}
    assert tree(Path(finished.work_dir)) == before
    assert [e.facts["read"] for e in events if "read" in e.facts] == [0]  # images are not read again
    assert not any("autoseg_" in e.message for e in events)  # nor is the folder named that goes away


def test_a_setting_of_one_family_touches_only_its_jobs(finished: RunConfig) -> None:
    before = tree(Path(finished.work_dir))
    rows = ahead(replace(finished, family_settings={"dints": {"learning_rate": 1e-3}}))
    assert fates(rows) == {"preprocess": "kept", "segresnet_0": "kept", "segresnet_1": "kept",
                           "dints_0": "runs anew", "dints_1": "runs anew", "predict": "runs anew"}  # fmt: skip
    assert rows["dints_1"].reason.startswith("learning_rate ") and rows["dints_1"].reason.endswith(" -> 0.001")
    assert rows["predict"].reason == "after dints_0, dints_1"
    assert tree(Path(finished.work_dir)) == before


def test_what_the_dry_run_said_is_what_the_run_does(copied: RunConfig) -> None:
    config = replace(copied, family_settings={"dints": {"learning_rate": 1e-3}})
    said = {name for name, row in ahead(config).items() if row.fate == "runs anew"} - {"predict"}
    events: list[Event] = []
    run(config, events.append)
    started = {e.facts["id"] for e in events if e.kind == "job_started"}
    assert started == said | {"predict_0"} == {"dints_0", "dints_1", "predict_0"}


def test_a_replaced_bundle_is_said_with_what_changed(copied: RunConfig) -> None:
    (Path(copied.work_dir) / "dints_0" / "models" / "model.pt").write_text("trained")
    events: list[Event] = []
    run(replace(copied, family_settings={"dints": {"learning_rate": 1e-3}}), events.append)
    said = [event.message for event in events if event.kind == "warning" and "replaced" in event.message]
    assert [message.split(" -> ")[0] for message in said] == [
        f"dints_{fold} is replaced and trained anew: learning_rate 0.002" for fold in (0, 1)
    ]


def test_data_that_changed_are_counted(finished: RunConfig) -> None:
    label = sorted((Path(finished.datalist).parent / "labels").iterdir())[-1]
    stat = label.stat()
    os.utime(label, ns=(stat.st_atime_ns, stat.st_mtime_ns + 10**9))
    try:
        rows = ahead(finished)
    finally:
        os.utime(label, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert {rows[name].reason for name in ("segresnet_0", "dints_1")} == {"data of 6 cases: 1 changed"}
    assert rows["preprocess"] == replace(rows["preprocess"], fate="runs", reason="1 of 6 cases")
    assert fates(ahead(finished))["segresnet_0"] == "kept"


def test_another_version_trains_anew_not_from_its_checkpoints(
    copied: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inputs, "__version__", "9.9")
    rows = ahead(copied)
    assert rows["segresnet_0"].fate == "runs anew" and rows["segresnet_0"].reason.endswith(" -> 9.9")
    assert rows["preprocess"].fate == "kept"
    checkpoint = Path(copied.work_dir) / "segresnet_0" / "models" / "checkpoint.pt"
    checkpoint.write_text("of the version before")
    events: list[Event] = []
    run(copied, events.append)
    assert checkpoint.read_text() == ""  # the new training's own
    warned = [e.message for e in events if e.kind == "warning"]
    assert any(message.startswith("segresnet_0 is trained anew: autoseg") for message in warned)
    assert set(fates(ahead(copied)).values()) == {"kept"}


def cut_off(root: Path, name: str, status: str, **changes: Any) -> None:
    folder = root / "jobs" / name
    result = read_result(folder)
    assert result is not None
    write_json(folder / "result.json", replace(result, status=status, **changes))


@pytest.mark.parametrize(
    ("status", "error", "reason"),
    [
        ("running", None, "interrupted at step 20 of 60, after 12 s"),
        ("cancelled", "cancelled while it ran", "interrupted at step 20 of 60, after 12 s"),
        ("failed", "ValueError: no\nmore", "failed before at step 20 of 60, after 12 s: ValueError: no"),
    ],
)
def test_what_was_cut_off_goes_on(copied: RunConfig, status: str, error: str | None, reason: str) -> None:
    root = Path(copied.work_dir)
    cut_off(root, "dints_1", status, error=error)
    lines = [{"step": 20, "num_iterations": 60, "seconds": 12.2, "mean_dice": None}, {"step": 31, "seconds": 15}]
    (root / "dints_1" / "metrics.jsonl").write_text("\n".join(json.dumps(line) for line in lines) + '\n{"st')
    rows = ahead(copied)
    assert (rows["dints_1"].fate, rows["dints_1"].reason) == ("goes on", reason)
    assert rows["dints_0"].fate == "kept" and rows["predict"].reason == "after dints_1"
    (root / "dints_1" / "models" / "checkpoint.pt").unlink()
    assert ahead(copied)["dints_1"].fate == "runs anew"


@pytest.mark.parametrize(
    ("gone", "fate"), [("models/model.pt", "runs anew"), ("scores.json", "goes on"), ("progress.yaml", "runs anew")]
)
def test_a_lost_output_is_named(copied: RunConfig, gone: str, fate: str) -> None:
    (Path(copied.work_dir) / "segresnet_0" / gone).unlink()
    assert ahead(copied)["segresnet_0"] == Outlook("segresnet_0", fate, f"missing: {gone}")


def test_a_bundle_edited_by_hand_is_replaced(copied: RunConfig) -> None:
    with open(Path(copied.work_dir) / "segresnet_1" / "configs" / "network.yaml", "a") as file:
        file.write("# mine\n")
    row = ahead(copied)["segresnet_1"]
    assert (row.fate, row.reason) == ("runs anew", "configs/network.yaml changed")


def test_a_lost_record_is_no_evidence(copied: RunConfig) -> None:
    root = Path(copied.work_dir)
    (root / "jobs" / "segresnet_0" / "result.json").write_text("{")
    assert ahead(copied)["segresnet_0"] == Outlook("segresnet_0", "goes on", "its record is lost")
    record = root / "jobs" / "dints_0" / "job.json"
    write_json(record, {**read_json(record), "inputs": {}})  # as one of an earlier version
    row = ahead(replace(copied, settings={**SMALL, "num_iterations": 61}))["dints_0"]
    assert (row.fate, row.reason) == ("runs anew", "num_iterations 60 -> 61")  # by the bundle that stands there
    cut_off(root, "dints_0", "done", fingerprint="another")
    assert ahead(copied)["dints_0"] == Outlook("dints_0", "runs anew", UNNAMED)


def test_cases_in_another_order_are_other_patches(finished: RunConfig, tmp_path: Path) -> None:
    plain = read_json(Path(finished.work_dir) / "datalist.json")  # with its folds
    write_json(tmp_path / "turned.json", {**plain, "training": plain["training"][::-1]})
    rows = ahead(replace(finished, datalist=str(tmp_path / "turned.json"), num_fold=None))
    assert rows["segresnet_0"] == Outlook("segresnet_0", "runs anew", "the order of its cases changed")


def test_cases_in_other_folds_are_counted(finished: RunConfig) -> None:
    rows = ahead(replace(finished, num_fold=3))
    assert rows["segresnet_2"].reason == "never run"
    assert (
        rows["segresnet_0"].reason.startswith("data of 6 cases: ") and "in another fold" in rows["segresnet_0"].reason
    )


def test_predictions_of_fewer_families_are_others(copied: RunConfig) -> None:
    alone = replace(copied, algos=("segresnet",))
    assert ahead(alone)["predict"] == Outlook("predict", "runs anew", "the ensemble is chosen anew")
    run(alone)
    assert ahead(alone)["predict_0"].fate == "kept" and ahead(copied)["predict"].fate == "runs anew"


def test_training_alone_has_no_predictions_and_no_training_has_no_jobs(finished: RunConfig) -> None:
    assert "predict_0" not in ahead(finished, stop_after="train")
    assert "predict_0" not in ahead(replace(finished, ensemble=False))
    assert not ahead(replace(finished, train=False))
    assert fates(ahead(finished)) == fates(ahead(replace(finished, analyze=False, algo_gen=False)))


def test_not_use_cache_keeps_nothing(finished: RunConfig) -> None:
    rows = ahead(replace(finished, not_use_cache=True))
    assert {(row.fate, row.reason) for row in rows.values()} == {("runs anew", "not_use_cache")}
    assert set(fates(ahead(finished)).values()) == {"kept"}


def test_other_members_are_other_predictions(finished: RunConfig) -> None:
    rows = ahead(replace(finished, ensemble_method="AlgoEnsembleAll"))
    assert rows["predict_0"].fate == "runs anew" and rows["predict_0"].reason.startswith("members changed")
    rows = ahead(replace(finished, ensemble_mode="vote"))
    assert rows["predict_0"].reason == "ensemble changed: mode"


def test_a_comment_in_the_settings_is_no_setting(copied: RunConfig) -> None:
    with open(Path(copied.work_dir) / "segresnet_1" / "configs" / "hyper_parameters.yaml", "a") as file:
        file.write("# mine\n")
    assert ahead(copied)["segresnet_1"] == Outlook("segresnet_1", "runs anew", "its files changed")


def test_a_foreign_template(odd_path: Path, demo_data: Path) -> None:
    config = configure(odd_path / "w", demo_data, algos=["tinynet"], settings={})
    assert set(fates(ahead(config)).values()) == {"runs"} and not (odd_path / "w").exists()
    run(config)
    before = tree(odd_path / "w")
    assert set(fates(ahead(config)).values()) == {"kept"}
    row = ahead(replace(config, family_settings={"tinynet": {"num_epochs": 7}}))["tinynet_0"]
    assert row == Outlook("tinynet_0", "runs anew", "num_epochs not set -> 7")
    assert ahead(replace(config, modality="PET"))["tinynet_0"] == Outlook("tinynet_0", "runs anew", UNSEEN)
    assert tree(odd_path / "w") == before


def test_a_time_limit_lists_what_was_chosen(odd_path: Path, demo_data: Path) -> None:
    config = configure(odd_path / "w", demo_data, algos=None, time_limit="10m", settings={"roi_size": [16, 16, 16]})
    first = run(config, dry_run=True).dry
    assert first is not None and first.notes[0].endswith("is chosen when their speeds have been measured")
    result = run(config)
    again = run(config, dry_run=True).dry
    assert again is not None and "as an earlier call chose them" in again.notes[0]
    trained = {row.id for row in again.jobs if not row.id.startswith("preprocess_")}
    assert trained == {entry.name for entry in result.leaderboard} | {"predict_0"}
    assert {row.fate for row in again.jobs} == {"kept"}


def test_a_run_at_work_is_named(finished: RunConfig) -> None:
    with Workspace(finished.work_dir).lock(), pytest.raises(InputError, match="in use by process"):
        ahead(finished)


def test_a_file_in_the_place_of_the_work_dir_is_refused(finished: RunConfig, tmp_path: Path) -> None:
    (tmp_path / "w").touch()
    with pytest.raises(InputError, match="not a folder"):
        ahead(replace(finished, work_dir=str(tmp_path / "w")))


def test_auto_runner_looks_ahead(finished: RunConfig) -> None:
    runner = AutoRunner(work_dir=finished.work_dir)
    found = runner.run(lambda event: None, dry_run=True).dry
    assert found is not None and {row.fate for row in found.jobs} == {"kept"}
    assert read_json(Path(finished.work_dir) / "plan.json")["families"] == json.loads(json.dumps(found.families))
