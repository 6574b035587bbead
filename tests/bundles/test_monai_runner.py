"""Our templates under MONAI's own AutoRunner: its analysis, its commands, its ensemble."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from monai.apps.auto3dseg import AutoRunner, import_bundle_algo_history

from autoseg.bundles import TemplateAlgo, available_templates, load_algo, template_settings
from autoseg.bundles.templates import templates_folder
from autoseg.demo import make_demo_data
from autoseg.planning import Plan, read_statistics
from autoseg.workspace import read_json, read_yaml, write_json

FAMILIES = sorted(available_templates())
CHEAP = {"init_filters": 8, "feature_size": 12}


def folded_data(folder: Path, channels: int) -> Path:
    """Four training cases with folds, one testing case."""
    datalist = make_demo_data(folder, training=4, testing=1, shape=(32, 28, 24), channels=channels)
    plain = json.loads(datalist.read_text())
    for number, entry in enumerate(plain["training"]):
        entry["fold"] = number % 2
    write_json(datalist, plain)
    return datalist


def monai_runs(family: str, folder: Path, channels: int, templates: Path | None = None) -> Path:
    """Two folds of two epochs by MONAI's AutoRunner, from its analysis to its ensemble; returns its work_dir."""
    datalist = folded_data(folder / "data", channels)
    runner = AutoRunner(
        work_dir=str(folder / "work"),
        input={"modality": "mri", "datalist": str(datalist), "dataroot": str(datalist.parent)},
        algos=family,
        templates_path_or_url=str(templates or templates_folder()),
        allow_skip=False,
    )
    known = {} if templates else template_settings(available_templates()[family])
    cheap = {key: value for key, value in CHEAP.items() if key in known}
    runner.set_analyze_params({"device": "cpu"}).set_device_info(
        cuda_visible_devices="", cmd_prefix=python_without_spaces(folder)
    )
    runner.set_training_params({"num_epochs": 2, "num_epochs_per_validation": 1, **cheap}).set_num_fold(2)
    runner.run()
    return folder / "work"


def python_without_spaces(folder: Path) -> str:
    """MONAI splits its command at spaces; a checkout, and so this interpreter, may lie in a folder that has some."""
    wrapper = folder / "python"
    wrapper.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    wrapper.chmod(0o755)
    return str(wrapper)


def has_trained_and_predicted(family: str, work: Path) -> None:
    history = import_bundle_algo_history(str(work), only_trained=True)
    assert [entry["identifier"] for entry in history] == [f"{family}_0", f"{family}_1"]
    for entry in history:
        progress = read_yaml(work / entry["identifier"] / "progress.yaml")
        assert progress[-1]["best_avg_dice_score"] == entry["best_metric"]
    (prediction,) = (work / "ensemble_output").rglob("*_ensemble.nii.gz")
    found = nib.load(prediction)
    assert found.shape == (32, 28, 24)  # type: ignore[attr-defined]
    assert set(np.unique(np.asarray(found.dataobj))) <= {0, 1, 2}  # type: ignore[attr-defined]


def test_monai_s_runner_trains_and_ensembles_segresnet(tmp_path: Path) -> None:
    work = monai_runs("segresnet", tmp_path, channels=2)
    has_trained_and_predicted("segresnet", work)
    stats = read_statistics(read_yaml(work / "datastats.yaml"))
    assert (stats.n_cases, stats.channels, len(stats.intensity), stats.label_values) == (4, 2, 2, (0, 1, 2))
    assert stats.shape_median == (32, 28, 24)
    assert read_json(work / "segresnet_0" / "scores.json")["steps"] == 4


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_monai_s_runner_trains_and_ensembles(family: str, tmp_path: Path) -> None:
    has_trained_and_predicted(family, monai_runs(family, tmp_path, channels=1))


@pytest.mark.slow
def test_the_foreign_template_of_our_tests_is_one_of_monai_s(tmp_path: Path) -> None:
    work = monai_runs("tinynet", tmp_path, 1, Path(__file__).resolve().parents[1] / "templates")
    assert len(import_bundle_algo_history(str(work), only_trained=True)) == 2
    assert len(list((work / "ensemble_output").rglob("*_ensemble.nii.gz"))) == 1


@pytest.mark.parametrize("reason", [None, "it does not suit"])
def test_a_family_that_does_not_suit_is_skipped_by_monai(
    reason: str | None, monkeypatch: pytest.MonkeyPatch, awkward_data: Path, family_bundle: Path
) -> None:
    work, family = family_bundle.parent, family_bundle.name[:-2]
    algo = load_algo(family, available_templates()[family])
    algo.set_data_stats(str(work / "datastats.yaml"))
    algo.set_data_source(str(work / "input.yaml"))
    made = TemplateAlgo.make_plan

    def make_plan(self: TemplateAlgo, *given: object) -> Plan:
        plan: Plan = made(self, *given)  # type: ignore[arg-type]
        plan.skip = reason
        return plan

    monkeypatch.setattr(TemplateAlgo, "make_plan", make_plan)
    assert algo.pre_check_skip_algo() == (reason is not None, reason or "")
