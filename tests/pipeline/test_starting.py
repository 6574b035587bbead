"""Runs that start from weights: of an earlier run, of one family of several, and weights that do not fit."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from autoseg.config import load_config
from autoseg.demo import make_demo_data
from autoseg.errors import InputError
from autoseg.pipeline import generate, run, train, tune_ahead
from autoseg.pipeline.prepare import families, ours
from autoseg.pipeline.starting import refuse_bad_start
from autoseg.records import Event
from autoseg.workspace import read_json, read_yaml

TINY = {"init_filters": 8, "blocks_down": [1, 1], "dsdepth": 1, "roi_size": [24, 24, 16], "num_images_per_batch": 2}


def given(work_dir: Path, datalist: Path, **changes: Any) -> dict[str, Any]:
    plain = {"work_dir": str(work_dir), "datalist": str(datalist), "modality": "MRI", "num_fold": 1}
    return {**plain, "algos": ["segresnet"], **changes}


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on other data: two labels, one channel."""
    folder = tmp_path_factory.mktemp("frühere Läufe")
    datalist = make_demo_data(folder / "data", training=4, testing=0, shape=(24, 24, 20))
    train(load_config(given(folder / "run", datalist, settings={**TINY, "num_iterations": 4})))
    return folder / "run"


@pytest.fixture(scope="module")
def datalist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three labels, two channels."""
    folder = tmp_path_factory.mktemp("data")
    return make_demo_data(folder, training=4, testing=1, shape=(24, 24, 20), labels=(1, 2, 3), channels=2)


def test_a_run_starts_from_an_earlier_one_s_weights(earlier: Path, datalist: Path, tmp_path: Path) -> None:
    """Its network is built as theirs was; the copy of the weights outlives them, and the work_dir can be moved."""
    source = tmp_path / "source"
    shutil.copytree(earlier, source)
    plain = given(tmp_path / "run", datalist, pretrained=str(source), settings={"num_iterations": 2})
    plain["settings"] |= {"num_images_per_batch": 2, "head_warmup": 0.5}
    events: list[Event] = []
    result = run(load_config(plain), events.append)
    assert len(result.predictions) == 1
    bundle = tmp_path / "run" / "segresnet_0"
    settings = read_yaml(bundle / "configs" / "hyper_parameters.yaml")
    assert [settings[key] for key in ("init_filters", "blocks_down", "dsdepth")] == [8, [1, 1], 1]
    assert settings["pretrained"].startswith("../pretrained/")
    plan = read_json(tmp_path / "run" / "plan.json")["families"]["segresnet"]["settings"]
    assert plan["init_filters"]["reason"] == "as in the pretrained weights"
    table = json.loads((bundle / "pretrained.json").read_text())["tensors"]
    assert {how for how in table.values() if how not in ("loaded", "new")} == {"1 to 2 channels", "3 to 4 outputs"}
    (said,) = [event.message for event in events if "tensors taken over" in event.message]
    assert said.startswith(f"segresnet starts from {source}")
    shutil.rmtree(source)
    kept: list[Event] = []
    run(load_config(None, work_dir=str(tmp_path / "run")), kept.append)
    assert not [event for event in kept if event.kind == "job_started"]


def test_one_family_of_several_has_weights(earlier: Path, datalist: Path, tmp_path: Path) -> None:
    plain = given(tmp_path / "run", datalist, algos=["segresnet", "dints"], pretrained=str(earlier))
    events: list[Event] = []
    generate(load_config(plain), events.append)
    warnings = [event.message for event in events if event.kind == "warning"]
    assert any(said.startswith("dints starts from scratch: there is nothing of it in") for said in warnings)
    found = [read_yaml(p)["pretrained"] for p in sorted((tmp_path / "run").glob("*_0/configs/hyper_parameters.yaml"))]
    assert found[0] is None and found[1]


def test_weights_of_unknown_origin_go_to_whom_they_fit(earlier: Path, datalist: Path, tmp_path: Path) -> None:
    weights = tmp_path / "weights.pt"
    shutil.copyfile(earlier / "segresnet_0" / "models" / "model.pt", weights)
    plain = given(tmp_path / "run", datalist, algos=["segresnet", "dints"], pretrained=str(weights))
    plain["family_settings"] = {"segresnet": {key: TINY[key] for key in ("init_filters", "blocks_down", "dsdepth")}}
    events: list[Event] = []
    generate(load_config(plain), events.append)
    assert any("dints starts from scratch: dints" not in e.message and "another network" in e.message for e in events)
    settings = read_yaml(tmp_path / "run" / "dints_0" / "configs" / "hyper_parameters.yaml")
    assert settings["pretrained"] is None


def test_weights_that_fit_nothing_are_refused(earlier: Path, datalist: Path, tmp_path: Path) -> None:
    torch.save({"layer.weight": torch.zeros(3)}, tmp_path / "other.pt")
    for named in ({"pretrained": str(tmp_path / "other.pt")}, {"settings": {"pretrained": str(tmp_path / "other.pt")}}):
        with pytest.raises(InputError, match=r"other\.pt: pretrained: segresnet: is of another network"):
            generate(load_config(given(tmp_path / "run", datalist, **named)))
    own = {"segresnet": {"pretrained": str(earlier), "init_filters": 16}}
    with pytest.raises(InputError, match="is 8x1x3x3x3 there"):
        generate(load_config(given(tmp_path / "run", datalist, family_settings=own)))


def test_families_without_weights_freeze_nothing(earlier: Path, datalist: Path, tmp_path: Path) -> None:
    """And the run goes on where the weights are gone, those of no family remembered as well as the others."""
    source = tmp_path / "source"
    shutil.copytree(earlier, source)
    plain = given(tmp_path / "run", datalist, algos=["segresnet", "dints"], pretrained=str(source))
    for algos in (["segresnet"], ["segresnet", "dints"], ["segresnet"]):
        generate(load_config({**plain, "algos": algos, "settings": {"frozen": ["encoder"]}}))
    shutil.rmtree(source)
    generate(load_config({**plain, "settings": {"frozen": ["encoder"]}}))
    found = {
        name: read_yaml(tmp_path / "run" / f"{name}_0" / "configs" / "hyper_parameters.yaml") for name in plain["algos"]
    }
    assert (found["segresnet"]["frozen"], found["dints"]["frozen"]) == (["encoder"], [])
    with pytest.raises(InputError, match="nothing is pretrained"):
        generate(load_config(given(tmp_path / "other", datalist, settings={"frozen": ["encoder"]})))


def test_a_misfit_is_planned_as_if_there_were_no_weights(earlier: Path, datalist: Path, tmp_path: Path) -> None:
    plain = given(tmp_path / "run", datalist, algos=["segresnet", "unet"], pretrained=str(earlier))
    plain["family_settings"] = {"segresnet": {"pretrained": str(earlier), "init_filters": 16}}
    with pytest.raises(InputError, match="is 8x"):
        generate(load_config(plain))
    weights = tmp_path / "weights.pt"
    shutil.copyfile(earlier / "segresnet_0" / "models" / "model.pt", weights)
    plain = given(tmp_path / "run", datalist, algos=["segresnet", "dints"], settings={"pretrained": str(weights)})
    with pytest.raises(InputError, match="another network"):
        generate(load_config(plain))


def test_a_run_does_not_start_from_itself(earlier: Path, datalist: Path) -> None:
    with pytest.raises(InputError, match="the run's own work_dir"):
        generate(load_config(given(earlier, datalist, pretrained=str(earlier))))


def test_weights_that_no_trained_family_has_are_refused(earlier: Path, datalist: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(earlier, source)
    shutil.move(source / "segresnet_0", source / "unet_0")
    with pytest.raises(InputError, match="holds no weights of"):
        generate(load_config(given(tmp_path / "run", datalist, algos=None, pretrained=str(source))))


def test_a_dry_run_and_a_sweep_ahead_say_what_the_weights_are_for(
    earlier: Path, datalist: Path, tmp_path: Path
) -> None:
    plain = given(tmp_path / "run", datalist, num_fold=3, pretrained=str(earlier))
    dry = run(load_config({**plain, "num_fold": 1}), dry_run=True).dry
    assert dry is not None and dry.families["segresnet"]["settings"]["init_filters"]["value"] == 8
    lines = tune_ahead(load_config(plain))
    assert not any("init_filters" in line or "blocks_down" in line for line in lines)
    assert any("learning_rate" in line for line in lines)
    assert not (tmp_path / "run").exists()


def test_what_is_no_file_of_weights_is_refused_with_all_else_before_anything(datalist: Path, tmp_path: Path) -> None:
    plain = given(tmp_path / "run", datalist, pretrained=str(tmp_path / "away.pt"), settings={"nonsense": 1})
    with pytest.raises(InputError) as refused:
        generate(load_config(plain))
    assert {fault.field for fault in refused.value.faults} == {"pretrained", "--set nonsense"}
    assert not (tmp_path / "run").exists()


def test_a_work_dir_without_the_family_is_refused_where_it_was_named_for_it(earlier: Path, datalist: Path) -> None:
    plain = given(datalist.parent / "run", datalist, algos=["segresnet", "dints"])
    with pytest.raises(InputError, match="holds no weights of dints"):
        generate(load_config({**plain, "family_settings": {"dints": {"pretrained": str(earlier)}}}))


def test_beside_weights_nothing_is_searched(earlier: Path, datalist: Path) -> None:
    """Those of SegResNet, which has no search, and of no DiNTS, say nothing against one."""
    plain = given(datalist.parent / "run", datalist, algos=["segresnet", "dints"], settings={"search": True})
    config = load_config({**plain, "pretrained": str(earlier)})
    folders = ours(families(config))
    refuse_bad_start(config, folders)
    state = datalist.parent / "w.pt"
    torch.save({"a": torch.zeros(1)}, state)
    with pytest.raises(InputError) as refused:
        refuse_bad_start(replace(config, pretrained=str(state)), folders)
    assert [(f.field, "none is searched" in f.message) for f in refused.value.faults] == [("--set dints.search", True)]
