"""Configuration: Auto3DSeg's keys, files, flags, and every fault at once."""

from __future__ import annotations

import dataclasses
import inspect
import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from autoseg.config import RunConfig, config_to_input, load_config, parse_settings
from autoseg.errors import InputError


@pytest.fixture
def datalist(odd_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A datalist file; the current directory is its neighbour, so that no other work_dir is found."""
    path = odd_path / "data" / "datalist.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"training": [], "modality": {"0": "MRI"}}))
    here = odd_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    return path


def faults(source: Any = None, **flags: Any) -> dict[str, str]:
    """Field -> message of what load_config refuses."""
    with pytest.raises(InputError) as caught:
        load_config(source, **flags)
    return {fault.field: fault.message for fault in caught.value.faults}


def test_defaults(datalist: Path) -> None:
    config = load_config({"modality": "mri", "datalist": str(datalist)})
    assert config == RunConfig(
        str(Path.cwd() / "work_dir"), str(datalist), str(datalist.parent), "MRI", settings={}, family_settings={}
    )
    assert (config.algos, config.num_fold, config.ensemble_method) == (None, None, "auto")


def test_monai_keys_are_accepted(datalist: Path) -> None:
    source = {
        **{"name": "hippocampus", "task": "segmentation", "modality": "MRI", "datalist": str(datalist)},
        **{"dataroot": str(datalist.parent), "multigpu": True, "class_names": ["Anterior", "Posterior"]},
        **{"sigmoid": False, "num_fold": 2, "algos": ["segresnet"], "analyze": True, "algo_gen": None, "train": False},
        **{"ensemble": True, "not_use_cache": True, "allow_skip": False, "templates_path_or_url": None, "hpo": False},
        **{"hpo_backend": "nni", "mlflow_tracking_uri": None, "mlflow_experiment_name": None, "work_dir": "runs/a"},
    }
    config = load_config(source)
    assert config.class_names == ("Anterior", "Posterior")
    assert (config.num_fold, config.analyze, config.algo_gen, config.train, config.ensemble) == (
        *(2, True, None, False, True),
    )
    assert (config.not_use_cache, config.allow_skip) == (True, False)
    assert config.work_dir == str(Path.cwd() / "runs" / "a")


def test_every_key_of_monai_runner_is_known() -> None:
    """The constructor of the installed MONAI's AutoRunner and the keys its documents name."""
    runner = pytest.importorskip("monai.apps.auto3dseg").AutoRunner
    from autoseg.config.keys import KNOWN

    words = set(inspect.signature(runner.__init__).parameters) - {"self", "input", "kwargs"}
    assert words | {"modality", "datalist", "dataroot", "multigpu", "class_names", "sigmoid", "num_fold"} <= set(KNOWN)


@pytest.mark.parametrize("ending", ["yaml", "json"])
def test_file_and_flags(datalist: Path, ending: str) -> None:
    source = datalist.parent / f"input.{ending}"
    plain = {
        "modality": "CT",
        "datalist": "datalist.json",
        "num_fold": 3,
        "settings": {"num_epochs": 5, "overlap": 0.5},
    }
    source.write_text(json.dumps(plain) if ending == "json" else yaml.safe_dump(plain))
    config = load_config(source, num_fold=2, seed=None, settings={"num_epochs": 7}, family_settings={"dints": {"a": 1}})
    assert config.datalist == str(datalist)  # relative to the file's folder, as it is not found from here
    assert (config.num_fold, config.seed) == (2, 0)
    assert config.settings == {"num_epochs": 7, "overlap": 0.5}
    assert config.family_settings == {"dints": {"a": 1}}


def test_current_directory_goes_before_the_files_folder(datalist: Path) -> None:
    (Path.cwd() / "datalist.json").write_text("{}")
    (datalist.parent / "input.yaml").write_text("modality: CT\ndatalist: datalist.json\n")
    assert load_config(str(datalist.parent / "input.yaml")).datalist == str(Path.cwd() / "datalist.json")


def test_yaml_numbers_and_settings(datalist: Path) -> None:
    source = datalist.parent / "input.yaml"
    source.write_text(
        f"modality: MRI\ndatalist: {datalist}\n"
        "settings:\n  learning_rate: 1e-4\n  segresnet.num_epochs: 3\n  dints:\n    roi_size: [96, 96, 96]\n"
    )
    config = load_config(source)
    assert config.settings == {"learning_rate": 1e-4}
    assert config.family_settings == {"segresnet": {"num_epochs": 3}, "dints": {"roi_size": [96, 96, 96]}}


@pytest.mark.parametrize(
    ("word", "expected"),
    [("ct", "CT"), ("Ct", "CT"), ("mr", "MRI"), ("MRI", "MRI"), ("pet", "PET"), ("T1w", "MRI"), (" CT ", "CT")],
)
def test_modality_words(datalist: Path, word: str, expected: str) -> None:
    assert load_config(None, datalist=str(datalist), modality=word).modality == expected


@pytest.mark.parametrize(
    ("listed", "expected"),
    [
        ({"modality": {"0": "MRI"}}, "MRI"),
        ({"modality": {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"}}, "MRI"),
        ({"modality": "ct"}, "CT"),
        ({"channel_names": {"0": "CT"}}, "CT"),
    ],
)
def test_modality_of_the_datalist(datalist: Path, listed: dict[str, Any], expected: str) -> None:
    datalist.write_text(json.dumps({"training": [], **listed}))
    assert load_config({"datalist": str(datalist)}).modality == expected


def test_modality_that_is_refused(datalist: Path) -> None:
    assert "did you mean 'MRI'?" in faults({"datalist": str(datalist), "modality": "MRII"})["modality"]
    found = faults({"datalist": str(datalist), "modality": "CT+PETT"})["modality"]
    assert found.startswith("'PETT' is none of") and "normalization" in found
    config = load_config({"datalist": str(datalist), "modality": "us", "normalization": "ZScore"})
    assert (config.modality, config.normalization) == ("US", "zscore")
    datalist.write_text('{"training": []}')
    assert "missing" in faults({"datalist": str(datalist)})["modality"]


@pytest.mark.parametrize(
    ("listed", "expected"),
    [
        ({"0": "CT", "1": "PET"}, "CT+PET"),
        ({"1": "CT", "0": "pt"}, "PET+CT"),
        ({"0": "CT", "1": "CT"}, "CT"),
        ({**{str(n): "T1" for n in range(2, 11)}, "1": "CT", "0": "T2"}, "MRI+CT" + 9 * "+MRI"),
        (["CT", "FLAIR"], "CT+MRI"),
    ],
)
def test_each_channel_has_its_modality(datalist: Path, listed: Any, expected: str) -> None:
    datalist.write_text(json.dumps({"channel_names": listed}))
    assert load_config({"datalist": str(datalist)}).modality == expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [("ct,zscore", ("ct", "zscore")), (["CT", " ZScore"], ("ct", "zscore")), (("zscore",), ("zscore",)), ("ct", "ct")],
)
def test_normalization_by_channel(datalist: Path, given: Any, expected: Any) -> None:
    config = load_config({"datalist": str(datalist), "modality": "CT+XR", "normalization": given})
    assert config.normalization == expected
    again = config_to_input(config)
    assert again["normalization"] == (list(expected) if isinstance(expected, tuple) else expected)
    assert load_config({**again, "datalist": str(datalist)}).normalization == expected


@pytest.mark.parametrize("given", [[], "ct,z", ["ct", 3], {"0": "ct"}])
def test_normalization_that_is_refused(datalist: Path, given: Any) -> None:
    assert "is none of ct, zscore" in faults({"datalist": str(datalist), "normalization": given})["normalization"]


def test_modality_against_the_datalist_is_warned_of(datalist: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        load_config({"datalist": str(datalist), "modality": "CT"})
    assert "CT" in caplog.text and "MRI" in caplog.text


def test_all_faults_at_once(datalist: Path) -> None:
    source = datalist.parent / "input.yaml"
    bad: dict[str, Any] = {
        **{"datalist": "datalis.json", "dataroot": "nowhere", "modality": "XR", "num_folds": 3, "num_fold": -1},
        **{"algos": ["seg_resnet"], "ensemble_method": "AlgoEnsembleBestByFlod", "ensemble_mode": "median"},
        **{"n_best": 0, "seed": -1, "minutes": 0, "max_parallel": 1.5, "tolerance_mm": "far", "check": "maybe"},
        **{"max_tries": 0, "stuck_minutes": "long"},
        **{"patient_pattern": "(", "mirror_pairs": [[3, 3]], "hpo": "maybe", "sigmoid": 1, "templates_path_or_url": 5},
        **{"class_names": ["a", "a"], "settings": [1], "normalization": "z", "not_use_cache": 1, "learning_rate": 0.1},
    }
    source.write_text(yaml.safe_dump(bad))
    found = faults(source)
    assert set(found) == set(bad) - {"modality"}  # a normalization is given, so any modality is taken
    assert "did you mean 'datalist.json'?" in found["datalist"]
    assert "did you mean 'num_fold'?" in found["num_folds"]
    assert "did you mean 'AlgoEnsembleBestByFold'?" in found["ensemble_method"]
    assert "neither true nor false" in found["hpo"]
    assert "settings" in found["learning_rate"]


def test_faults_name_their_file(datalist: Path) -> None:
    source = datalist.parent / "input.yaml"
    source.write_text("modality: MRI\nnum_fold: 0\n")
    with pytest.raises(InputError) as caught:
        load_config(source, seed="x", datalist=str(datalist))
    assert {(fault.file, fault.field) for fault in caught.value.faults} == {(str(source), "num_fold"), ("", "seed")}


@pytest.mark.parametrize("value", [[{"image": "a"}], {"training": []}, 3])
def test_datalist_as_an_object_is_refused(datalist: Path, value: Any) -> None:
    found = faults({"modality": "MRI", "datalist": value})
    assert list(found) == ["datalist"]


def test_datalist_is_missing_or_a_folder(datalist: Path) -> None:
    assert set(faults(None)) == {"datalist", "modality"}
    assert set(faults({"modality": "CT", "datalist": None})) == {"datalist"}
    assert "is a folder" in faults(None, datalist=str(datalist.parent))["datalist"]


REGIONS = [{"name": "whole tumour", "index": [1, 2, 3]}, {"name": "Kern é", "index": 3}]


def test_regions_are_read_and_written(datalist: Path) -> None:
    source = {"datalist": str(datalist), "modality": "MRI", "class_names": REGIONS, "sigmoid": True}
    config = load_config(source, work_dir="runs/r")
    assert config.class_names == (REGIONS[0], {"name": "Kern é", "index": [3]})
    assert config.sigmoid is True
    path = written(config)
    assert yaml.safe_load(path.read_text())["class_names"] == list(config.class_names)
    assert load_config(path, work_dir=config.work_dir) == config


@pytest.mark.parametrize(
    "given",
    [
        [{"name": "WT"}],
        [{"index": [1]}],
        [{"name": "WT", "index": "1,2"}],
        [{"name": "WT", "index": {"a": 1}}],
        [{"name": "WT", "index": None}],
        [{"name": "WT", "index": [1], "indices": [2]}],
        [{"name": "WT", "index": [1]}, "TC"],
        {"name": "WT", "index": [1]},
    ],
)
def test_what_is_no_region_is_refused(datalist: Path, given: Any) -> None:
    assert list(faults({"datalist": str(datalist), "class_names": given})) == ["class_names"]


@pytest.mark.parametrize(
    "text", ["- a\n- b\n", "a: [1\n", "modality: CT\nmodality: MRI\n", '{"training": []}', "just words\n"]
)
def test_file_that_is_no_configuration(datalist: Path, text: str) -> None:
    source = datalist.parent / "input.yaml"
    source.write_text(text)
    assert list(faults(source)) == [""]
    if text.startswith("a:"):
        assert "line 2 column 1" in faults(source)[""]


def test_source_that_is_no_file(datalist: Path) -> None:
    assert "no such file" in faults("nothing.yaml")[""]
    assert "list" in faults([1, 2])[""]


def test_refit_and_train_on_all_are_one_or_the_other(datalist: Path) -> None:
    with pytest.raises(InputError, match="refit: trains on all cases beside the folds"):
        load_config({"datalist": str(datalist), "train_on_all": True}, refit=1)


def test_train_on_all_has_no_folds(datalist: Path) -> None:
    source = {"datalist": str(datalist), "train_on_all": True}
    assert load_config(source, num_fold=1).train_on_all
    assert "num_fold" in faults(source, num_fold=5)


def test_work_dir_is_a_file(datalist: Path) -> None:
    assert "is a file" in faults(None, datalist=str(datalist), work_dir=str(datalist))["work_dir"]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("segresnet", ("segresnet",)),
        ("segresnet, dints", ("segresnet", "dints")),
        (("segresnet", "dints"), ("segresnet", "dints")),
        ({"segresnet": {"_target_": "segresnet.scripts.algo.X", "template_path": "segresnet"}}, ("segresnet",)),
    ],
)
def test_algos(datalist: Path, given: Any, expected: tuple[str, ...]) -> None:
    assert load_config({"datalist": str(datalist), "algos": given}).algos == expected


@pytest.mark.parametrize("given", [[], "a_b", ["a", "a"], 3, "../x", {"a": {"template_path": "elsewhere"}}, ""])
def test_algos_refused(datalist: Path, given: Any) -> None:
    assert list(faults({"datalist": str(datalist), "algos": given})) == ["algos"]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([[3, 4]], ((3, 4),)),
        ((3, 4), ((3, 4),)),
        ([], ()),
        ([["3", "4"]], ((3, 4),)),
        ("[[3, 4]]", ((3, 4),)),
        ("3,4", ((3, 4),)),
    ],
)
def test_mirror_pairs(datalist: Path, given: Any, expected: Any) -> None:
    assert load_config({"datalist": str(datalist), "mirror_pairs": given}).mirror_pairs == expected


@pytest.mark.parametrize("given", [[3], "left,right", "[[3,", [[0, 1]], [[1, 2], [2, 3]], [[1, 2, 3]]])
def test_mirror_pairs_refused(datalist: Path, given: Any) -> None:
    assert list(faults({"datalist": str(datalist), "mirror_pairs": given})) == ["mirror_pairs"]


@pytest.mark.parametrize("given", [0, -3, 1.5, True, "many", float("nan"), float("inf"), [5]])
def test_num_fold_refused(datalist: Path, given: Any) -> None:
    assert list(faults({"datalist": str(datalist), "num_fold": given})) == ["num_fold"]


@pytest.mark.parametrize("given", ["0", "-5", float("inf"), True, "soon"])
def test_minutes_refused(datalist: Path, given: Any) -> None:
    assert list(faults({"datalist": str(datalist), "minutes": given})) == ["minutes"]


def test_mlflow_is_warned_of(datalist: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        load_config({"datalist": str(datalist), "mlflow_tracking_uri": "http://x"})
    assert "MLflow" in caplog.text


# input.yaml of a work_dir


def written(config: RunConfig, **changes: Any) -> Path:
    work_dir = Path(config.work_dir)
    work_dir.mkdir(parents=True, exist_ok=True)
    path = work_dir / "input.yaml"
    path.write_text(yaml.safe_dump(config_to_input(config) | changes, sort_keys=False, allow_unicode=True))
    return path


def full_config(datalist: Path) -> RunConfig:
    return load_config(
        {"datalist": str(datalist), "modality": "CT", "class_names": ["a", "b ö"], "mirror_pairs": [[1, 2]]},
        **{"num_fold": 2, "algos": "segresnet,dints", "seed": 4, "ensemble_method": "AlgoEnsembleBestN", "n_best": 2},
        **{"settings": {"learning_rate": 1e-4}, "family_settings": {"dints": {"roi_size": [32, 32]}}, "minutes": 12.5},
        **{"max_parallel": 3, "tolerance_mm": 2, "patient_pattern": r"^(\d+)_", "normalization": "zscore"},
        **{"ensemble_mode": "vote", "allow_skip": False, "work_dir": "runs/W ä", "max_tries": 2, "stuck_minutes": 5},
    )


def test_input_yaml_is_read_back(datalist: Path) -> None:
    config = full_config(datalist)
    path = written(config)
    assert load_config(path, work_dir=config.work_dir) == config
    assert load_config(None, work_dir=config.work_dir) == config  # found in the work_dir by itself
    assert load_config(None, work_dir=config.work_dir, num_fold=1) == dataclasses.replace(config, num_fold=1)


def test_input_yaml_has_monai_keys(datalist: Path) -> None:
    plain = config_to_input(load_config({"datalist": str(datalist), "modality": "CT"}, train=False, work_dir="W"))
    assert plain == {
        **{"modality": "CT", "datalist": str(datalist), "dataroot": str(datalist.parent)},
        "multigpu": True,
    }


def test_a_datalist_flag_means_a_new_run(datalist: Path) -> None:
    config = full_config(datalist)
    written(config)
    other = datalist.parent / "other" / "datalist.json"
    other.parent.mkdir()
    other.write_text("{}")
    fresh = load_config(None, work_dir=config.work_dir, datalist=str(other), modality="PET")
    assert (fresh.dataroot, fresh.num_fold, fresh.settings) == (str(other.parent), None, {})


def test_moved_work_dir(datalist: Path) -> None:
    config = full_config(datalist)
    path = written(config, datalist=str(Path(config.work_dir) / "datalist.json"))
    (path.parent / "datalist.json").write_text("{}")
    moved = Path.cwd() / "moved"
    path.parent.rename(moved)
    found = load_config(None, work_dir="moved")
    assert (found.datalist, found.work_dir) == (str(moved / "datalist.json"), str(moved))


def test_data_that_is_gone(datalist: Path) -> None:
    config = full_config(datalist)
    written(config, dataroot="/no/such/folder")
    assert list(faults(None, work_dir=config.work_dir)) == ["dataroot"]
    assert load_config(None, check_paths=False, work_dir=config.work_dir).dataroot == "/no/such/folder"


# --set


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("x=1e-4", 1e-4),
        ("x=1E5", 1e5),
        ("x=.5", 0.5),
        ("x=3", 3),
        ("x=true", True),
        ("x=null", None),
        ("x=[96,96,96]", [96, 96, 96]),
        ("x=96,96,96", [96, 96, 96]),
        ("x=1e-3, 2", [1e-3, 2]),
        ("x='1e-4'", "1e-4"),
        ("x=a=b", "a=b"),
        ("x = adamw", "adamw"),
        ("x={a: 1}", {"a": 1}),
    ],
)
def test_set_words(word: str, value: Any) -> None:
    assert parse_settings([word]) == ({"x": value}, {})


def test_set_families_files_and_order(odd_path: Path) -> None:
    file = odd_path / "mehr.yaml"
    file.write_text("learning_rate: 1e-3\nsegresnet:\n  init_filters: 8\nsegresnet.overlap: 0.25\n")
    words = ["num_epochs=1", "segresnet.num_epochs=2", "segresnet.init_filters=4", f"@{file}", "learning_rate=0.1"]
    assert parse_settings(words) == (
        {"num_epochs": 1, "learning_rate": 0.1},
        {"segresnet": {"num_epochs": 2, "init_filters": 8, "overlap": 0.25}},
    )
    assert parse_settings([]) == ({}, {})


def test_set_faults_all_at_once(tmp_path: Path) -> None:
    (tmp_path / "list.yaml").write_text("- 1\n")
    words = ["learning_rate", "=5", "a.b.c=1", "x=", "y=[1", "@nowhere.yaml", f"@{tmp_path / 'list.yaml'}", "ok=1"]
    with pytest.raises(InputError) as caught:
        parse_settings(words)
    told = [str(fault) for fault in caught.value.faults]
    assert len(told) == 7
    assert "--set learning_rate: is not key=value" in told[0]
    assert all(
        part in line for part, line in zip(["=5", "a.b.c", "x=", "y=[1", "nowhere", "list"], told[1:], strict=True)
    )


def test_family_settings_must_be_mappings(datalist: Path) -> None:
    assert "family_settings" in faults({"datalist": str(datalist), "family_settings": {"learning_rate": 1}})


def test_loads_no_torch() -> None:
    code = "import sys, autoseg.config, autoseg.datalist; print([m for m in ('torch', 'monai') if m in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


def test_every_fault_of_a_sweep_at_once(datalist: Path, tmp_path: Path) -> None:
    params = {
        **{
            "n_trials": 0,
            "time_limit": "soon",
            "sampler": {"seed": 1},
            "pruner": 5,
            "space": str(tmp_path / "none.yaml"),
        },
        **{"objective": ["dice", "seconds", "memory"], "trial_minutes": -1, "trial_steps": 1.5, "trial_folds": 0},
        **{"trial_spacing": 0.5, "held_out": 2, "storage": 3, "study": "", "trials": 9},
    }
    with pytest.raises(InputError) as caught:
        load_config(
            {"modality": "MRI", "datalist": str(datalist), "hpo": True, "hpo_params": params, "hpo_backend": "nni"}
        )
    found = {fault.field: fault.message for fault in caught.value.faults}
    assert set(found) == {f"hpo_params.{key}" for key in params} | {"hpo_backend"}
    assert "n_trials" in found["hpo_params.trials"]


@pytest.mark.parametrize("key", ["sampler", "pruner", "space", "objective"])
def test_text_of_a_sweep_that_is_no_yaml(datalist: Path, key: str) -> None:
    with pytest.raises(InputError, match=f"{key}: cannot be parsed"):
        load_config({"modality": "MRI", "datalist": str(datalist)}, hpo_params={key: "{name: ["})


def test_a_sweep_by_file_and_flags(datalist: Path) -> None:
    source = {"modality": "MRI", "datalist": str(datalist), "hpo_params": {"n_trials": 9, "trial_steps": 20}}
    sweep = load_config(
        source, hpo_params={"n_trials": 4, "pruner": "{name: hyperband, reduction_factor: 2}"}
    ).hpo_params
    assert (sweep.n_trials, sweep.trial_steps) == (4, 20)
    assert sweep.pruner == {"name": "hyperband", "reduction_factor": 2}
    with pytest.raises(InputError, match="trial_steps"):
        load_config(source, hpo_params={"trial_minutes": 1})
    before_a_run = load_config(source, tune="2h")
    assert before_a_run.hpo and before_a_run.hpo_params.time_limit == 7200 and before_a_run.time_limit is None
    with pytest.raises(InputError, match="tune: 'soon'"):
        load_config(source, tune="soon")
