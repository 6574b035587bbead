"""AutoRunner: MONAI's names and meanings, what reaches the pipeline, and what is refused or said."""

from __future__ import annotations

import inspect
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from autoseg import AutoRunner
from autoseg.bundles import find_templates, template_settings
from autoseg.config import RunConfig
from autoseg.errors import InputError
from autoseg.hpo.space import read_space
from autoseg.pipeline import RunResult


@pytest.fixture
def source(odd_path: Path) -> dict[str, Any]:
    """An input as in the notebook: a datalist of two training and three testing cases."""
    for name in (*"abcde", "a_label", "b_label"):
        (odd_path / f"{name}.nii.gz").touch()
    listed = {
        "labels": {"0": "background", "1": "x"},
        "training": [{"image": f"{name}.nii.gz", "label": f"{name}_label.nii.gz"} for name in "ab"],
        "testing": [{"image": f"{name}.nii.gz"} for name in "cde"],
    }
    path = odd_path / "datalist.json"
    path.write_text(json.dumps(listed), "utf-8")
    return {"modality": "MRI", "datalist": str(path), "dataroot": str(odd_path)}


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[RunConfig]:
    """The configurations that `run` was called with; nothing is trained."""
    heard: list[RunConfig] = []

    def run(config: RunConfig, notify: Any, **others: Any) -> RunResult:
        heard.append(config)
        return RunResult(Path(config.work_dir))

    monkeypatch.setattr("autoseg.pipeline.run", run)
    return heard


@pytest.fixture
def runner(source: dict[str, Any], tmp_path: Path) -> AutoRunner:
    return AutoRunner(work_dir=str(tmp_path / "w"), input=source)


def test_the_signatures_are_those_of_monai() -> None:
    """Every public method and argument of MONAI's class is there, in its order; a sweep is another library's."""
    monai_runner = pytest.importorskip("monai.apps.auto3dseg").AutoRunner
    theirs = {name: f for name, f in inspect.getmembers(monai_runner, inspect.isfunction) if name.startswith("set_")}
    theirs |= {"__init__": monai_runner.__init__, "run": monai_runner.run}
    for name, function in theirs.items():
        ours = list(inspect.signature(getattr(AutoRunner, name)).parameters.values())
        for position, parameter in enumerate(inspect.signature(function).parameters.values()):
            if parameter.kind is inspect.Parameter.VAR_KEYWORD:
                assert ours[-1].kind is inspect.Parameter.VAR_KEYWORD, name
                continue
            assert ours[position].name == parameter.name, name
            if parameter.name != "hpo_backend":
                assert ours[position].default == parameter.default, f"{name}: {parameter.name}"


def test_one_call(runner: AutoRunner, ran: list[RunConfig], tmp_path: Path, source: dict[str, Any]) -> None:
    result = runner.run()
    assert result.work_dir == tmp_path / "w"
    assert (ran[0].modality, ran[0].datalist, ran[0].algos) == ("MRI", source["datalist"], None)


def test_a_file_and_its_keys(source: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "input.yaml"
    file.write_text(json.dumps({**source, "ensemble": False, "work_dir": str(tmp_path / "other")}), "utf-8")
    config = AutoRunner(input=str(file)).config
    assert config.ensemble is False
    assert config.work_dir == str(tmp_path / "other")


def test_without_input_the_work_dir_has_it(source: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "input.yaml").write_text(json.dumps(source), "utf-8")
    assert AutoRunner(work_dir=str(tmp_path / "w")).config.datalist == source["datalist"]


def test_all_faults_at_construction(source: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        AutoRunner(work_dir=str(tmp_path / "w"), input={**source, "modality": "CTT", "num_fold": 0})
    assert {fault.field for fault in caught.value.faults} == {"modality", "num_fold"}
    assert not (tmp_path / "w").exists()


def test_settings_reach_the_configuration(runner: AutoRunner) -> None:
    params = {"num_epochs": 2, "num_epochs_per_validation": 1, "segresnet": {"learning_rate": 1e-3}}
    config = runner.set_training_params(params).set_num_fold(1).config
    assert config.settings == {"num_epochs": 2, "num_epochs_per_validation": 1}
    assert config.family_settings == {"segresnet": {"learning_rate": 1e-3}}
    assert config.num_fold == 1
    assert runner.set_training_params().config.settings == {}


def test_every_set_method_returns_the_runner(runner: AutoRunner) -> None:
    methods: list[Callable[[], AutoRunner]] = [
        runner.set_num_fold,
        runner.set_training_params,
        runner.set_device_info,
        runner.set_ensemble_method,
        runner.set_image_save_transform,
        runner.set_prediction_params,
        runner.set_analyze_params,
        runner.set_hpo_params,
        runner.set_gpu_customization,
        lambda: runner.set_nni_search_space({"learning_rate": {"_type": "choice", "_value": [1e-3, 1e-4]}}),
    ]
    assert all(method() is runner for method in methods)


def test_ensemble_and_prediction(runner: AutoRunner) -> None:
    config = runner.set_ensemble_method("AlgoEnsembleBestN", n_best=3).set_prediction_params({"mode": "vote"}).config
    assert (config.ensemble_method, config.n_best, config.ensemble_mode) == ("AlgoEnsembleBestN", 3, "vote")


def test_sliced_testing_cases(runner: AutoRunner, ran: list[RunConfig], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []

    def run(config: RunConfig, notify: Any, **others: Any) -> RunResult:
        from autoseg.datalist import load_datalist

        datalist = load_datalist(config.datalist, config.dataroot)
        seen.append([case.id for case in datalist.testing])
        assert len(datalist.training) == 2
        return RunResult(Path(config.work_dir))

    monkeypatch.setattr("autoseg.pipeline.run", run)
    runner.set_prediction_params({"files_slices": slice(0, 2)}).run(notify=print)
    runner.set_prediction_params().run(notify=print)
    assert seen == [["c", "d"], ["c", "d", "e"]]


@pytest.mark.parametrize("given", [[1, 3], "1,3"])
def test_devices_are_visible_during_the_run_only(
    runner: AutoRunner, monkeypatch: pytest.MonkeyPatch, given: Any
) -> None:
    seen = []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    monkeypatch.setattr("autoseg.pipeline.run", lambda *_, **others: seen.append(os.environ["CUDA_VISIBLE_DEVICES"]))
    runner.set_device_info(given).run()
    assert seen == ["1,3"]
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "7"


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda r: r.set_num_fold(0), "num_fold"),
        (lambda r: r.set_ensemble_method("AlgoEnsembleBestFold"), "ensemble_method"),
        (lambda r: r.set_image_save_transform(output_dirr="x"), "output_dirr"),
        (lambda r: r.set_prediction_params({"mod": "vote"}), "mod"),
        (lambda r: r.set_prediction_params({"mode": "best"}), "ensemble_mode"),
        (lambda r: r.set_prediction_params({"files_slices": 2}), "files_slices"),
        (lambda r: r.set_nni_search_space({"learning_rate": [1e-3]}), "learning_rate"),
        (lambda r: r.set_nni_search_space({"learning_rate": {"_type": "normal", "_value": [0, 1]}}), "learning_rate"),
        (lambda r: r.set_nni_search_space({"learning_rate": {"_type": "uniform", "_value": [0]}}), "learning_rate"),
        (lambda r: r.set_nni_search_space({"learning_rate": {"_type": "choice", "_value": 1e-3}}), "learning_rate"),
        (lambda r: r.set_nni_search_space({}), "search_space"),
        (lambda r: r.set_hpo_params({"nni_dry_run": True}), "nni_dry_run"),
        (lambda r: r.set_hpo_params({"n_trial": 4}), "n_trial"),
        (lambda r: r.set_hpo_params({"maxExperimentDuration": "soon"}), "time_limit"),
        (lambda r: r.set_hpo_params({"trial_steps": 4, "trial_minutes": 1}), "trial_steps"),
    ],
)
def test_what_cannot_be_is_refused(runner: AutoRunner, call: Callable[[AutoRunner], Any], field: str) -> None:
    with pytest.raises(InputError) as caught:
        call(runner)
    assert [fault.field for fault in caught.value.faults] == [field]


def test_a_sweep_is_optuna_s(source: dict[str, Any]) -> None:
    assert AutoRunner(input=source, hpo=True).config.hpo
    assert AutoRunner(input={**source, "hpo": True}).config.hpo
    assert not AutoRunner(input={**source, "hpo_backend": "nni"}).config.hpo
    assert not AutoRunner(input=source, hpo_backend="nni").config.hpo, "MONAI's default means nothing without hpo"
    calls: list[Callable[[], AutoRunner]] = [
        lambda: AutoRunner(input=source, hpo=True, hpo_backend="nni"),
        lambda: AutoRunner(input={**source, "hpo_backend": "nni"}, hpo=True),
    ]
    for call in calls:
        with pytest.raises(InputError, match="leave it out or give optuna") as caught:
            call()
        assert [fault.field for fault in caught.value.faults] == ["hpo_backend"]


def test_the_keys_of_a_sweep(runner: AutoRunner) -> None:
    def space(trial: Any) -> dict[str, Any]:
        return {}

    params = {"n_trials": 5, "time_limit": "1h", "sampler": "random", "objective": "dice,seconds", "space": space}
    sweep = runner.set_hpo_params(params).config.hpo_params
    assert (sweep.n_trials, sweep.time_limit, sweep.sampler) == (5, 3600, "random")
    assert sweep.objective == ["dice", "seconds"] and sweep.space is space
    assert runner.set_hpo_params().config.hpo_params.n_trials is None


@pytest.mark.parametrize("space_first", [True, False])
def test_monai_s_own_example_of_a_search(
    source: dict[str, Any], caplog: pytest.LogCaptureFixture, space_first: bool
) -> None:
    """As in MONAI's integration test: NNI's keys, and hyper-parameters beside them."""
    runner = AutoRunner(input=source, algos="segresnet", hpo=True)
    rates = [0.0001, 0.001, 0.01, 0.1]
    params = {"maxTrialNumber": 20, "maxExperimentDuration": "1h", "trialConcurrency": 1, "num_epochs": 2}
    params |= {"num_images_per_batch": 1, "trialGpuNumber": 0, "tuner": {"name": "GridSearch"}}
    calls: list[Callable[[], AutoRunner]] = [
        lambda: runner.set_nni_search_space({"learning_rate": {"_type": "choice", "_value": rates}}),
        lambda: runner.set_hpo_params(params),
    ]
    with caplog.at_level(logging.WARNING):
        for call in calls if space_first else reversed(calls):
            call()
    config = runner.set_training_params({"precision": "float32"}).config
    assert config.settings == {"precision": "float32", "num_epochs": 2, "num_images_per_batch": 1}
    assert (config.hpo_params.n_trials, config.hpo_params.time_limit, config.max_parallel) == (20, 3600, 1)
    assert config.hpo_params.space == {"replace": True, "learning_rate": {"choices": rates}}
    assert config.hpo_params.sampler == "grid", "four points need no thirty trials"
    (said,) = caplog.messages
    assert "maxTrialNumber is taken as n_trials" in said and "trialGpuNumber, tuner: without effect" in said


def test_what_nni_calls_a_search_space_is_one_of_ours(runner: AutoRunner, source: dict[str, Any]) -> None:
    space = {
        "training#learning_rate": {"_type": "loguniform", "_value": [1e-4, 1e-2]},
        "foreground_share": {"_type": "uniform", "_value": [0.2, 0.8]},
        "augmentation": {"_type": "quniform", "_value": [0, 2, 0.5]},
        "init_filters": {"_type": "randint", "_value": [8, 33]},
        "optimizer": {"_type": "choice", "_value": ["sgd", "adamw"]},
    }
    sweep = runner.set_nni_search_space(space).config.hpo_params
    assert sweep.sampler == "tpe"
    folders = find_templates(("segresnet",))
    bound = read_space(folders, sweep.space).bound({"segresnet": template_settings(folders["segresnet"])})
    found = bound.plain()["segresnet"]
    assert set(found) == {"learning_rate", "foreground_share", "augmentation", "init_filters", "optimizer"}
    assert found["learning_rate"] == {"low": 1e-4, "high": 1e-2, "log": True, "step": None}
    assert found["foreground_share"] == {"low": 0.2, "high": 0.8, "log": False, "step": None}
    assert found["augmentation"] == {"low": 0.0, "high": 2.0, "log": False, "step": 0.5}
    assert (found["init_filters"]["low"], found["init_filters"]["high"]) == (8, 32), "NNI leaves out the upper bound"
    assert found["optimizer"] == {"choices": ["sgd", "adamw"]}


def test_the_later_space_counts(runner: AutoRunner) -> None:
    ours, nni = {"learning_rate": {"choices": [0.1, 0.2]}}, {"dice_share": {"_type": "choice", "_value": [0.4, 0.6]}}
    assert runner.set_nni_search_space(nni).set_hpo_params({"space": ours}).config.hpo_params.space == ours
    assert "dice_share" in runner.set_nni_search_space(nni).config.hpo_params.space
    assert "dice_share" in runner.set_hpo_params({"n_trials": 3}).config.hpo_params.space


def test_every_fault_of_a_search_space_at_once(runner: AutoRunner) -> None:
    with pytest.raises(InputError) as caught:
        runner.set_nni_search_space({"a": 3, "b": {"_type": "choise", "_value": [1]}, "c": {"_type": "choice"}})
    assert {fault.field: fault.message for fault in caught.value.faults} == {
        "a": "has no _value",
        "b": "_type: 'choise' is none of choice, uniform, loguniform, quniform, randint (did you mean 'choice'?)",
        "c": "has no _value",
    }


def test_the_sweep_alone(runner: AutoRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[Any] = []

    def tune(*given: Any) -> str:
        heard.append(given)
        return "result"

    monkeypatch.setattr("autoseg.pipeline.tune", tune)
    found: Any = runner.set_hpo_params({"n_trials": 2}).tune(notify=print)
    assert found == "result"
    ((config, notify),) = heard
    assert config.hpo_params.n_trials == 2 and notify is print


def test_the_runner_loads_no_optuna() -> None:
    code = "import sys, autoseg; autoseg.AutoRunner; print([m for m in ('torch', 'optuna') if m in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "call",
    [
        lambda r: r.set_analyze_params({"do_ccp": False, "device": "cpu"}),
        lambda r: r.set_gpu_customization(True),
        lambda r: r.set_device_info(num_nodes=2),
        lambda r: r.set_image_save_transform(output_dir="x"),
        lambda r: r.set_hpo_params({"maxTrialNumber": 2}),
    ],
)
def test_what_has_no_effect_says_so(
    runner: AutoRunner, caplog: pytest.LogCaptureFixture, call: Callable[[AutoRunner], Any]
) -> None:
    with caplog.at_level(logging.WARNING):
        call(runner)
    assert len(caplog.records) == 1


def test_algos_as_in_auto3dseg(source: dict[str, Any], tmp_path: Path) -> None:
    templates = tmp_path / "my templates"
    templates.mkdir()
    named = {"segresnet": {"_target_": "segresnet.scripts.algo.SegresnetAlgo", "template_path": "segresnet"}}
    assert AutoRunner(input=source, algos=named).config.algos == ("segresnet",)
    assert AutoRunner(input=source, algos=["segresnet"]).config.algos == ("segresnet",)
    named["segresnet"]["template_path"] = str(templates / "segresnet")
    assert AutoRunner(input=source, algos=named).config.templates_path_or_url == str(templates)
