"""What is wrong with a sweep: told in a line each, all at once, before anything is spent. Nothing is trained here."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from autoseg.cli import main
from autoseg.config import load_config
from autoseg.demo import make_demo_data
from autoseg.errors import InputError, NoResultError
from autoseg.execution.fake import FakeExecutor, FakeRun
from autoseg.pipeline import training, tune
from autoseg.records import Event, Job
from autoseg.workspace import read_json, write_json

FOREIGN = Path(__file__).resolve().parents[1] / "templates"
Tune = Callable[..., list[str]]


@pytest.fixture(scope="module")
def datalist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_demo_data(tmp_path_factory.mktemp("Daten ü"), training=6, testing=1, shape=(24, 24, 20))


def fails(job: Job) -> FakeRun:
    """Trainings end with an error, of which one is commoner than the other."""
    if not job.id.startswith("trial_"):
        return FakeRun()
    return FakeRun(exit_code=1, log="ValueError: rare\n" if job.id == "trial_0001_0" else "RuntimeError: common\n")


@pytest.fixture(autouse=True)
def executors(monkeypatch: pytest.MonkeyPatch) -> list[FakeExecutor]:
    """Those that jobs were started with."""
    made: list[FakeExecutor] = []

    def make() -> FakeExecutor:
        made.append(FakeExecutor(fails))
        return made[-1]

    monkeypatch.setattr(training, "LocalExecutor", make)
    return made


@pytest.fixture
def refused(datalist: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Tune:
    """`refused(*flags)`: what `autoseg tune` says on standard error, a line a fault, when it ends with code 2."""

    def call(*flags: str, **others: str) -> list[str]:
        given = {"datalist": str(datalist), "modality": "MRI", "algos": "segresnet", **others}
        words = [word for name, value in given.items() for word in (f"--{name}", value)]
        capsys.readouterr()
        assert main(["tune", "--work_dir", str(tmp_path / "w"), *words, *flags]) == 2
        said = capsys.readouterr()
        assert "Traceback" not in said.err + said.out
        lines = said.err.splitlines()
        assert all(line.startswith("error: ") for line in lines)
        return [line.removeprefix("error: ") for line in lines]

    return call


@pytest.mark.parametrize(
    ("flags", "faults"),
    [
        (["--sampler", "tpee"], ["sampler: 'tpee' is none of .* (did you mean 'tpe'?)"]),
        (["--pruner", "medium"], ["pruner: 'medium' is none of .* (did you mean 'median'?)"]),
        (["--objective", "dicee"], ["objective: 'dicee' is none of .* (did you mean 'dice'?)"]),
        (["--sampler", "{name: tpe, n_start: 3}"], ["sampler.n_start: unknown to 'tpe'.*'n_startup_trials'.*"]),
        (["--pruner", "{name: median, n_startup_trials: many}"], ["pruner.n_startup_trials: must be int, not 'many'"]),
        (["--sampler", "{n_startup_trials: 3}"], ["sampler: .* has no name"]),
        (["--sampler", "{name: tpe"], ["--sampler: .* line 1 column 11"]),
        (["--objective", "seconds"], ["objective: seconds alone .*"]),
        (["--objective", "dice,dice"], ["objective: mean_dice twice.*"]),
        (["--objective", "dice,seconds,memory"], ["objective: 3 objectives: one or two"]),
        (["--objective", "{organ: -1}"], ["objective: -1 is not a number above 0"]),
        (["--objective", "{organn: 1, x: 2}"], ["objective: 'organn' is no label .*'organ'.*", "objective: 'x' is .*"]),
        (["--objective", "dice,seconds", "--pruner", "median"], ["pruner: 'median' cannot do 2 objectives; .*: none"]),
        (["--objective", "dice,memory", "--sampler", "cmaes"], ["sampler: 'cmaes' cannot do 2 objectives; .*"]),
        (["--trial_minutes", "1", "--trial_steps", "9"], ["trial_steps: bounds a trial, which trial_minutes does.*"]),
        (
            ["--held_out", "1.5", "--race_folds", "0"],
            ["race_folds: 0 is less than 1", "held_out: 1.5 is not a share.*"],
        ),
        (
            ["--trial_spacing", "0.5", "--trial_folds", "0"],
            ["trial_folds: 0 .*", "trial_spacing: 0.5 is less than 1.*"],
        ),
        (["--ntrials", "3", "--pruners", "median"], ["--ntrials: .*'--n_trials'.*", "--pruners: .*'--pruner'.*"]),
        (["--n_trials", "many"], ["--n_trials: 'many' is not a whole number"]),
        (["--space", "nowhere.yaml"], ["space: no such file: .*/nowhere.yaml"]),
        (["--set", "space=x"], ["--set space: no bundle knows this hyper-parameter.*"]),
    ],
)
def test_words_that_cannot_be(refused: Tune, tmp_path: Path, flags: list[str], faults: list[str]) -> None:
    lines = refused(*flags)
    assert len(lines) == len(faults)
    for pattern in faults:
        assert any(re.fullmatch(pattern.replace("(did", r"\(did").replace("?)", r"\?\)"), line) for line in lines), (
            lines
        )
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize(
    ("space", "faults"),
    [
        ("", ["space: is empty"]),
        ("{}", ["space: is empty"]),
        ("[1, 2]", ["space: is no mapping of hyper-parameters to ranges"]),
        ("learning_rate: {low: 0.1", ["cannot be parsed: .*"]),
        ("replace: true", ["space: nothing is left to search"]),
        ("learning_rate: {low: 1, high: 0.1}", ["space.learning_rate: low, 1, is above high, 0.1"]),
        ("dice_share: {choices: []}", [r"space.dice_share: choices: \[\] is not a list of values"]),
        (
            "segresnet: {init_filters: {low: 8, choices: [8]}}",
            ["space.segresnet.init_filters: mixes choices and range.*"],
        ),
        ("momentum: {value: 0.9, when: {optimizer: lion}}", [r"space.momentum\[optimizer=lion\]: .* none of .*"]),
        (
            "{learningrate: {low: 0, high: 1}, num_epochs: {choices: [1, 2]}, loss: {choices: [3]}}",
            ["space.learningrate: .*'learning_rate'.*", "space.num_epochs: cannot be .*", "space.loss: 3 is not of .*"],
        ),
    ],
)
def test_spaces_that_cannot_be(refused: Tune, tmp_path: Path, space: str, faults: list[str]) -> None:
    file = tmp_path / "space.yaml"
    file.write_text(space)
    lines = refused("--space", str(file))
    assert len(lines) == len(faults)
    for pattern in faults:
        assert any(re.fullmatch(f"{re.escape(str(file))}: {pattern}", line) for line in lines), lines
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize("flags", [["--n_trials", "0"], []])
def test_all_that_is_wrong_is_told_at_once(refused: Tune, datalist: Path, tmp_path: Path, flags: list[str]) -> None:
    """Whether the configuration itself has a fault or not."""
    space, listed = tmp_path / "space.yaml", datalist.parent / "missing.json"
    space.write_text(yaml.safe_dump({"learning_rate": {"low": 1, "high": 0.1}}))
    plain = read_json(datalist)
    plain["training"][0]["image"] = "images/nowhere.nii.gz"
    write_json(listed, plain)
    words = ["--set", "initfilters=3", "--sampler", "tpee", "--pruner", "medium", "--objective", "dicee"]
    storage = f"sqlite:///{tmp_path}/no/such/folder.db"
    lines = refused(*words, *flags, "--space", str(space), "--storage", storage, datalist=str(listed))
    starts = ["--set initfilters", f"{listed}: ", "objective: ", "sampler: ", "pruner: ", f"{space}: ", "sqlite:"]
    starts += ["n_trials: "] if flags else []
    assert sorted(start for start in starts for line in lines if line.startswith(start)) == sorted(starts)
    assert len(lines) == len(starts)
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize(
    ("storage", "fault"),
    [
        ("postgresql://nobody:geheim@127.0.0.1:1/x", r"postgresql://nobody:\*\*\*@127.0.0.1:1/x: storage: .*refused.*"),
        ("sqlite:////no/such/folder/x.db", "sqlite:////no/such/folder/x.db: storage: unable to open database file"),
        ("oracle://geheim@x", "oracle://geheim@x: storage: needs the package .*"),
        ("journal.log", "storage: is no URL such as .*"),
    ],
)
def test_a_storage_that_cannot_be_reached(refused: Tune, tmp_path: Path, storage: str, fault: str) -> None:
    (line,) = refused("--storage", storage)
    assert re.fullmatch(fault, line)
    assert not (tmp_path / "w").exists()


def test_a_file_that_is_no_database_is_left_alone(refused: Tune, tmp_path: Path) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("not a database, but somebody's notes " * 20)
    (line,) = refused("--storage", f"sqlite:///{notes}")
    assert line == f"sqlite:///{notes}: storage: file is not a database"
    assert notes.read_text().startswith("not a database")


def test_too_few_patients(refused: Tune, datalist: Path, tmp_path: Path) -> None:
    few = datalist.parent / "few.json"
    write_json(few, {**read_json(datalist), "training": read_json(datalist)["training"][:2]})
    assert refused(datalist=str(few)) == [
        f"{few}: training: a sweep needs 3 patients with labels at least, there are 2"
    ]
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize("algos", ["tinynet", "segresnet,tinynet"])
def test_a_template_of_auto3dseg_s_own_is_not_tuned(refused: Tune, tmp_path: Path, algos: str) -> None:
    lines = refused("--templates_path_or_url", str(FOREIGN), algos=algos)
    assert lines == ["algos: tinynet cannot be tuned: its template is written for MONAI's Auto3DSeg"]
    assert not (tmp_path / "w").exists()


def test_a_folder_of_such_templates_has_nothing_to_tune(datalist: Path, tmp_path: Path) -> None:
    given = {"modality": "MRI", "datalist": str(datalist), "work_dir": str(tmp_path / "w")}
    with pytest.raises(InputError, match="tinynet cannot be tuned"):
        tune(load_config(given, templates_path_or_url=str(FOREIGN)))


def test_a_grid_has_no_conditions(refused: Tune, executors: list[FakeExecutor]) -> None:
    """Which of them there are follows from the plan, and so from the images; no job is started."""
    lines = refused("--sampler", "grid")
    assert [line.partition("[")[0] for line in lines] == [
        f"sampler: a grid has no conditions, and {name}" for name in ("learning_rate", "momentum")
    ]
    assert not executors


def test_a_study_of_other_data(
    refused: Tune, datalist: Path, tmp_path: Path, executors: list[FakeExecutor], capsys: pytest.CaptureFixture[str]
) -> None:
    storage = f"sqlite:///{tmp_path}/s.db"
    flags = ["--storage", storage, "--n_trials", "1", "--trial_steps", "2"]
    words = ["--datalist", str(datalist), "--modality", "MRI", "--algos", "segresnet", *flags]
    assert main(["tune", "--work_dir", str(tmp_path / "first"), *words]) == 4
    executors.clear()
    other = datalist.parent / "other.json"
    write_json(other, {**read_json(datalist), "training": read_json(datalist)["training"][1:]})
    data, budget = "'autoseg' was made with data", "'autoseg' was made with trial's budget num_iterations 2, .* 3"
    lines = refused(*flags[:-1], "3", datalist=str(other))
    assert all(line.startswith(f"{storage}: study: ") for line in lines)
    assert sum(data in line for line in lines) == sum(bool(re.search(budget, line)) for line in lines) == 1
    assert not executors, "neither a trial nor the preprocessing has started"
    lines = refused("--n_trials", "1", "--trial_steps", "2", "--storage", storage, "--objective", "dice,seconds")
    assert any("directions" in line for line in lines)


def test_every_trial_fails(datalist: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--datalist", str(datalist), "--modality", "MRI", "--algos", "segresnet", "--max_parallel", "1"]
    assert main(["tune", "--work_dir", str(tmp_path / "w"), *words, "--n_trials", "4", "--trial_steps", "2"]) == 4
    (line,) = capsys.readouterr().err.splitlines()
    assert re.fullmatch("error: every trial failed: 3 .*RuntimeError: common; .*ValueError: rare.*", line)


def test_every_trial_fails_before_it_is_trained(datalist: Path, tmp_path: Path, executors: list[FakeExecutor]) -> None:
    """A callable that was right when it was tried out, and later never again; the planned trial is the executor's."""

    def space(trial: Any) -> dict[str, Any]:
        name = "learnin_rate" if trial.study.study_name == "autoseg" else "learning_rate"
        return {name: trial.suggest_float("x", 0.001, 0.1)}

    given = {"modality": "MRI", "datalist": str(datalist), "work_dir": str(tmp_path / "w"), "algos": "segresnet"}
    config = load_config(given, hpo_params={"n_trials": 5, "trial_steps": 2, "space": space}, max_tries=1)
    events: list[Event] = []
    with pytest.raises(NoResultError, match=r"every trial failed: 4 .*'learning_rate'.*; .*RuntimeError: common"):
        tune(config, events.append)
    assert len([event for event in events if event.kind == "trial"]) == 5
    started = [process.job.id for executor in executors for process in executor.history]
    assert [name for name in started if name.startswith("trial_")] == ["trial_0000_0"]
    assert json.loads((tmp_path / "w" / "hpo" / "trials" / "0000" / "trial.json").read_text())["overrides"] == {}


def test_a_callable_that_cannot_be(datalist: Path, tmp_path: Path) -> None:
    given = {"modality": "MRI", "datalist": str(datalist), "work_dir": str(tmp_path / "w"), "algos": "segresnet"}
    for space, said in [
        (lambda trial: 1 / 0, "the callable failed: ZeroDivisionError"),
        (lambda trial: None, "the callable gave None"),
        (lambda trial: {"fold": 1}, "cannot be searched"),
    ]:
        with pytest.raises(InputError, match=said) as caught:
            tune(load_config(given, hpo_params={"space": space, "sampler": "tpee"}))
        assert len(caught.value.faults) == 2
    assert not (tmp_path / "w").exists()


def test_a_run_that_begins_with_a_sweep(datalist: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is wrong with the sweep is told beside what is wrong with the run."""
    source = tmp_path / "input.yaml"
    given = {"modality": "MRI", "datalist": str(datalist), "algos": ["segresnet"], "hpo": True, "num_fold": 0}
    source.write_text(yaml.safe_dump({**given, "hpo_params": {"sampler": "tpee", "trials": 3}}))
    assert main(["run", "--input", str(source), "--work_dir", str(tmp_path / "w"), "--set", "initfilters=3"]) == 2
    lines = capsys.readouterr().err.splitlines()
    told = [
        next((name for name in ("trials", "num_fold", "initfilters", "tpee") if name in line), line) for line in lines
    ]
    assert sorted(told) == ["initfilters", "num_fold", "tpee", "trials"]
    assert not (tmp_path / "w").exists()
