"""Search spaces: the families' own, the user's over them, and what a trial makes of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from monai.bundle import ConfigParser
from optuna.trial import FixedTrial
from samples import finest, statistics

from autoseg.bundles import available_templates, load_algo, template_settings
from autoseg.errors import InputError
from autoseg.hpo.space import BoundSpace, Suggestion, read_space
from autoseg.planning import Machine
from autoseg.workspace import read_yaml

optuna.logging.set_verbosity(optuna.logging.ERROR)
FAMILIES = available_templates()
ONE = {"segresnet": FAMILIES["segresnet"]}
MACHINES = [Machine("cpu", 6 * 2**30, 1), Machine("cuda", 24 * 2**30, 8)]
SHAPES = {
    "hippocampus": ((36, 50, 36), (1, 1, 1)),
    "flat": ((300, 280, 20), (0.6, 0.6, 4)),
    "tiny": ((9, 8, 7), (1, 1, 1)),
}


def planned(name: str, machine: Machine = MACHINES[0], kind: str = "hippocampus") -> dict[str, Any]:
    """Settings that a family plans for cases of a kind."""
    shape, spacing = SHAPES[kind]
    return load_algo(name, FAMILIES[name]).plan(statistics(shape, spacing), machine, ["zscore"]).settings


def bound(given: Any = None, name: str = "segresnet", **settings: Any) -> BoundSpace:
    return read_space({name: FAMILIES[name]}, given).bound({name: {**planned(name), **settings}})


def domains(given: Any = None, **settings: Any) -> dict[str, Any]:
    found: dict[str, Any] = bound(given, **settings).plain()["segresnet"]
    return found


def suggestions(space: BoundSpace, number: int = 20, seed: int = 0) -> list[tuple[dict[str, Any], Suggestion]]:
    """(parameters, suggestion) of random trials."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    trials = [study.ask() for _ in range(number)]
    found = [space.suggest(trial) for trial in trials]
    return [(trial.params, one) for trial, one in zip(trials, found, strict=True)]


def faults(given: Any, folders: Mapping[str, Path] = ONE) -> list[str]:
    with pytest.raises(InputError) as error:
        read_space(folders, given)
    return [str(fault) for fault in error.value.faults]


@pytest.mark.parametrize("machine", MACHINES, ids=["cpu", "cuda"])
@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("name", FAMILIES)
def test_the_default_trial_is_the_plan(name: str, machine: Machine, kind: str) -> None:
    plan = planned(name, machine, kind)
    space = read_space({name: FAMILIES[name]}).bound({name: plan})
    everything = {**template_settings(FAMILIES[name]), **plan}
    parameters = space.default(name)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.enqueue_trial(parameters)
    trial = study.ask()
    found = space.suggest(trial)
    assert trial.params == parameters and len(parameters) > 10
    assert {**everything, **found.overrides} == everything and space.default_differs(name) == {}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_trial_gives_the_same_again_and_plain_values(name: str) -> None:
    space = bound(name=name)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    for _ in range(10):
        trial = study.ask()
        found = space.suggest(trial)
        assert space.suggest(trial) == space.suggest(FixedTrial(trial.params)) == found
        study.tell(trial, 0.5)
        assert space.suggest(study.trials[-1]) == found
        assert json.loads(json.dumps(found.overrides)) == found.overrides
    assert json.loads(json.dumps(space.plain())) == space.plain()


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_suggested_is_a_network_that_fits_its_patch(name: str) -> None:
    torch.manual_seed(0)
    config = read_yaml(FAMILIES[name] / "configs" / "network.yaml")
    settings = {**template_settings(FAMILIES[name]), **planned(name), "output_classes": 3}
    floors, built = settings["roi_multiple"] or [16] * 3, set()
    own = read_yaml(FAMILIES[name] / "configs" / "hyper_parameters.yaml").keys() - {"dropout"}
    for _, found in suggestions(bound(name=name)):
        values = {**settings, **found.overrides}
        size: list[int] = values["roi_size"]
        assert all(n % unit == 0 for n, unit in zip(size, floors, strict=True)) and size != floors
        assert values["num_images_per_batch"] >= 1 and 0 < values["learning_rate"] < 0.2
        network = json.dumps([values[key] for key in sorted(own)])
        if network in built:
            continue
        built.add(network)
        longest = max(range(3), key=lambda axis: size[axis] / floors[axis])
        small = [unit * (2 if axis == longest else 1) for axis, unit in enumerate(floors)]
        small = small if settings["roi_multiple"] else size
        patch = [n for axis, n in enumerate(small) if axis != values["slice_axis"]]
        content = ConfigParser({**values, **config}).get_parsed_content("network_def")
        outputs = content.train()(torch.zeros(1, 1, *patch))
        assert list(finest(outputs).shape) == [1, 3, *patch]
    assert len(built) > (1 if name == "unetr" else 2)  # whose width alone is searched


def test_conditions_decide_what_is_asked() -> None:
    seen = set()
    for parameters, found in suggestions(bound()):
        sgd = found.overrides["optimizer"] == "sgd"
        seen.add(sgd)
        assert ("learning_rate[optimizer=sgd]" in parameters, "momentum[optimizer=sgd]" in parameters) == (sgd, sgd)
        assert ("learning_rate" in parameters) != sgd and ("momentum" in found.overrides) == sgd
        assert found.overrides["learning_rate"] in parameters.values()
    assert seen == {True, False}


def test_a_condition_that_is_decided_is_none() -> None:
    parameters = domains({"optimizer": "sgd"})
    assert parameters["learning_rate"] == {"low": 0.003, "high": 0.1, "log": True, "step": None}
    assert "momentum" in parameters and not [name for name in parameters if "[" in name]
    assert "momentum" not in domains(optimizer="adamw") or "momentum[optimizer=sgd]" in domains()
    by_plan = domains({"optimizer": None}, optimizer="adamw")
    assert "momentum" not in by_plan and by_plan["learning_rate"]["high"] == pytest.approx(0.006)


def test_relative_bounds_keep_kind_and_multiples() -> None:
    found = domains({"roi_size": {"log": False}}, num_images_per_batch=3, init_filters=14)
    assert found["num_images_per_batch"]["low"] == 2 and found["num_images_per_batch"]["high"] == 6
    assert (found["init_filters"]["low"], found["init_filters"]["high"]) == (10, 26)  # 14 and steps of 4 around it
    space = bound(roi_size=[40, 56, 1], roi_multiple=[8, 8, 1])
    sizes = {tuple(found.overrides["roi_size"]) for _, found in suggestions(space, 60)}
    assert sizes == {(24, 32, 1), (24, 40, 1), (32, 40, 1), (32, 48, 1), (40, 48, 1), (40, 56, 1), (48, 64, 1),
                     (48, 72, 1), (40, 64, 1)} & sizes and len(sizes) > 5  # fmt: skip
    assert all(found.overrides["roi_size"][:2] != [8, 8] for _, found in suggestions(bound(roi_size=[16, 8, 8])))
    spacing = bound({"only": [], "resample_to_spacing": {"times": [1.0, 2.0]}}, resample_to_spacing=[1.0, 0.5, 2.0])
    assert spacing.suggest(FixedTrial({"resample_to_spacing": 1.5})).overrides == {
        "resample_to_spacing": [1.5, 0.75, 3.0]
    }


def test_lists_are_shortened_at_their_end() -> None:
    assert domains(blocks_down=[1, 2, 2, 4])["blocks_down"]["choices"] == [[1, 2, 2, 4], [1, 2, 2]]
    assert domains(blocks_down=[1])["blocks_down"]["choices"] == [[1]]
    space = bound({"only": ["blocks_down"]}, blocks_down=[1, 2, 2, 4])
    assert space.default("segresnet") == {"blocks_down": "[1, 2, 2, 4]"}
    assert space.suggest(FixedTrial({"blocks_down": "[1, 2, 2]"})).overrides == {"blocks_down": [1, 2, 2]}


def test_the_user_narrows_widens_adds_fixes_and_takes_out(tmp_path: Path) -> None:
    file = tmp_path / "space.yaml"
    file.write_text(
        "weight_decay: {high: 1e-3}\n"
        "loss: null\n"
        "lr_schedule: constant\n"
        "affine_rotation: {low: 0.0, high: 1.0, step: 0.3}\n"
        "segresnet:\n"
        "  init_filters: {choices: [12, 24]}\n"
        "  learning_rate: {low: 1e-3, high: 1e-3}\n"
        "  gradient_clip: [{low: 1, high: 10, when: {optimizer: sgd}}, {value: 5.0}]\n"
    )
    found = domains(file)
    assert found["weight_decay"] == {"low": 1e-6, "high": 1e-3, "log": True, "step": None}
    assert "loss" not in found and found["lr_schedule"] == {"choices": ["constant"]}
    assert found["affine_rotation"] == {"low": 0.0, "high": 0.9, "log": False, "step": 0.3}
    assert found["init_filters"] == {"choices": [12, 24]}
    assert found["gradient_clip[optimizer=sgd]"] == {"low": 1.0, "high": 10.0, "log": False, "step": None}
    space = bound(file)
    differs = space.default_differs("segresnet")
    expected = {"lr_schedule": ("cosine", "constant"), "affine_rotation": (0.35, 0.3), "init_filters": (8, 12)}
    expected["weight_decay"] = (0.05, 0.001)
    assert differs == {**expected, "learning_rate": (0.002, 0.001), "gradient_clip": (1.0, 5.0)}
    default = space.default("segresnet")
    assert "lr_schedule" not in default and "learning_rate" not in default and default["init_filters"] == 12
    overrides = space.suggest(FixedTrial(default)).overrides
    assert (overrides["lr_schedule"], overrides["learning_rate"], overrides["gradient_clip"]) == ("constant", 1e-3, 5.0)


def test_the_user_replaces_or_keeps_some() -> None:
    assert set(domains({"replace": True, "dice_share": {"low": 0.1, "high": 0.9}})) == {"dice_share"}
    kept = domains({"only": ["optimizer", "learning_rate"], "init_filters": 8})
    assert set(kept) == {"optimizer", "learning_rate", "learning_rate[optimizer=sgd]", "init_filters"}
    whole = {"segresnet": {"replace": True, "loss": {"choices": ["dice_ce", "dice_focal"]}}, "loss": None}
    space = read_space({**ONE, "dints": FAMILIES["dints"]}, whole)
    assert set(space.entries["segresnet"]) == {"loss"} and "loss" not in space.entries["dints"]


def test_what_is_set_elsewhere_is_not_searched() -> None:
    space = read_space(ONE, {"loss": "dice_focal"}, {"segresnet": ["optimizer", "learning_rate", "loss"]})
    found = space.bound({"segresnet": {**planned("segresnet"), "optimizer": "sgd"}}).plain()["segresnet"]
    assert not {"optimizer", "learning_rate", "loss"} & set(found) and "momentum" in found


def test_families_are_a_parameter() -> None:
    folders = {name: FAMILIES[name] for name in ("segresnet", "dints")}
    space = read_space(folders, {"dints": {"channel_mul": None}}).bound({name: planned(name) for name in folders})
    seen = set()
    for parameters, found in suggestions(space):
        seen.add(found.family)
        assert parameters.pop("family") == found.family
        assert all(name.startswith(f"{found.family}.") for name in parameters)
        assert set(found.overrides) <= set(template_settings(folders[found.family]))
    assert seen == set(folders)
    default = space.default("dints")
    assert space.suggest(FixedTrial(default)).family == "dints" and "dints.learning_rate" in default
    with pytest.raises(InputError, match="a grid is of one family"):
        space.grid()


def test_a_grid_has_choices_steps_and_three_points_of_a_range() -> None:
    given = {
        "only": ["loss"],
        "weight_decay": {"low": 1e-6, "high": 1e-2, "log": True},
        "foreground_share": {"low": 0.1, "high": 0.4, "step": 0.1},
        "num_images_per_batch": {"low": 1, "high": 4},
        "blocks_down": {"choices": [[1, 2], [1, 2, 2]]},
    }
    grid = bound(given).grid()
    assert grid["loss"] == ["dice_ce", "dice_focal"] and grid["blocks_down"] == ["[1, 2]", "[1, 2, 2]"]
    assert grid["weight_decay"] == pytest.approx([1e-6, 1e-4, 1e-2])
    assert grid["foreground_share"] == [0.1, 0.2, 0.3, 0.4] and grid["num_images_per_batch"] == [1, 2, 4]
    study = optuna.create_study(sampler=optuna.samplers.GridSampler({**grid, "weight_decay": [1e-4]}))
    study.optimize(lambda trial: float(len(bound(given).suggest(trial).overrides)))
    assert len(study.trials) == 2 * 2 * 4 * 3
    with pytest.raises(InputError) as error:
        bound().grid()
    assert [f.message.split()[6] for f in error.value.faults] == [
        "learning_rate[optimizer=sgd]",
        "momentum[optimizer=sgd]",
    ]


LR = {"learning_rate": {"low": 1e-4, "high": 1e-2}}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "space: is empty"),
        ([1], "space: is no mapping"),
        ({"only": []}, "nothing is left to search"),
        ({"replace": True, "lr_schedule": "constant"}, "nothing is left to search"),
        ({"replace": "yes", **LR}, "space.replace: 'yes' is neither true nor false"),
        ({"only": ["loss", "learning_rte"]}, "as 'learning_rte' (did you mean 'learning_rate'?)"),
        ({"only": ["gradient_clip"]}, "space.only: 'gradient_clip' is not searched by itself"),
        ({"learning_rte": 1}, "space.learning_rte: neither a hyper-parameter nor one of the families (did you mean"),
        ({"segresnet": {"channel_mul": {"low": 1, "high": 2}}}, "space.segresnet.channel_mul: no such hyper-parameter"),
        ({"segresnet": 3}, "space.segresnet: 3 is no mapping"),
        ({"num_epochs": {"low": 1, "high": 2}}, "space.num_epochs: cannot be searched: how long a trial trains"),
        ({"seed": {"choices": [1, 2]}}, "cannot be searched: the luckiest seed"),
        ({"label_values": None}, "says what the data are"),
        ({"weight_decay": {"low": 1}}, "space.weight_decay: low, 1, is above high, 0.1"),
        ({"foreground_share": {"low": 0, "high": 1, "log": True}}, "low is 0: a logarithmic scale begins above 0"),
        ({"foreground_share": {"low": "a", "high": float("nan")}}, "low: 'a' is not a number"),
        ({"foreground_share": {"step": 2}}, "step: 2 is larger than the range from 0.1 to 0.9"),
        ({"foreground_share": {"step": -1}}, "step: -1 is not a number above 0"),
        ({"weight_decay": {"log": True, "step": 0.01}}, "log and step: give one of them"),
        ({"weight_decay": {"log": "yes"}}, "log: 'yes' is neither true nor false"),
        ({"gradient_clip": {"high": 3}}, "space.gradient_clip: low missing"),
        ({"gradient_clip": {"log": True}}, "says none of low and high, times, choices"),
        ({"gradient_clip": {"loow": 3}}, "unknown field 'loow' (did you mean 'low'?)"),
        ({"gradient_clip": {"low": 1, "high": 2, "times": [1, 2]}}, "mixes range and times"),
        ({"loss": {"choices": ["dice_ce"], "log": True}}, "log: nothing that choices could have"),
        ({"loss": {"choices": []}}, "choices: [] is not a list of values"),
        ({"loss": {"choices": ["dice_ce", 3]}}, "3 is not of the kind of its default, 'dice_ce'"),
        ({"loss": {"choices": ["dice_ce", "dice_ce"]}}, "holds a value twice"),
        ({"loss": {"choices": ["dice_ce", "$print(1)"]}}, "would be run or resolved by MONAI"),
        ({"loss": {"low": 1, "high": 2}}, "a range is of numbers, and its default is 'dice_ce'"),
        ({"loss": {"times": [1, 2]}}, "there are no multiples"),
        ({"loss": 7}, "7 is not of the kind of its default"),
        ({"resolution": {"choices": [[1, 1, 2], 3]}}, "are not of one kind"),
        ({"weight_decay": float("nan")}, "nan is not a plain, finite value"),
        ({"init_filters": {"low": 8.5, "high": 16}}, "is of whole numbers"),
        ({"init_filters": {"times": [0, 2]}}, "has a factor that is not above 0"),
        ({"init_filters": {"times": 2}}, "is not a list of two factors"),
        ({"init_filters": {"times": [2, 1]}}, "is above"),
        ({"init_filters": {"step": 0.5}}, "step: 0.5 is not a whole number above 0"),
        ({"roi_size": {"multiple": "roi_multple"}}, "as 'roi_multple' (did you mean 'roi_multiple'?)"),
        ({"init_filters": {"shorten": [0, 1]}}, "only lists can be shorter"),
        ({"blocks_down": {"shorten": [2, 1]}}, "shorten: 2 is above 1"),
        ({"blocks_down": {"shorten": 1}}, "is not a list of two whole numbers"),
        ({"momentum": {"low": 0.5, "high": 0.9, "when": {"optimiser": "sgd"}}}, "'optimiser' (did you mean"),
        ({"momentum": {"low": 0.5, "high": 0.9, "when": {"optimizer": "lion"}}}, "'lion' is none of what is searched"),
        ({"momentum": {"low": 0.5, "high": 0.9, "when": {"augmentation": 3}}}, "augmentation: 3 is none of what"),
        ({"momentum": {"low": 0.5, "high": 0.9, "when": {"precision": 16}}}, "precision: 16 is not of the kind"),
        ({"momentum": {"low": 0.5, "high": 0.9, "when": "sgd"}}, "when: 'sgd' is not a mapping"),
        ({"momentum": [{"choices": [0.5, 0.9]}, {"choices": [0.6]}]}, "two entries under the same condition"),
        ({"optimizer": {"choices": ["adamw", "sgd"], "when": {"momentum": 0.9}}}, "when: each waits for the next: "),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(given: Any, said: str) -> None:
    found = faults(given)
    assert len(found) <= 2 and any(said in fault for fault in found), found


def test_every_fault_is_told_at_once_with_its_file(tmp_path: Path) -> None:
    file = tmp_path / "space.yaml"
    file.write_text("learning_rte: 3\nseed: {choices: [1]}\nsegresnet: {loss: {choices: []}}\nmomentum: {low: 2}\n")
    found = faults(file)
    assert len(found) == 4 and all(fault.startswith(f"{file}: space.") for fault in found)
    assert faults(tmp_path / "none.yaml") == [f"{tmp_path / 'none.yaml'}: no such file"]
    twice = {"loss": {"choices": []}}
    assert len(faults(twice, FAMILIES)) == 1  # of all families, once


def test_a_template_may_have_no_space_and_its_faults_name_its_file(tmp_path: Path) -> None:
    folder = tmp_path / "segresnet"
    shutil.copytree(FAMILIES["segresnet"], folder)
    file = folder / "search_space.yaml"
    file.write_text("init_filters: {low: 9, high: 3}\n")
    assert faults(None, {"segresnet": folder}) == [f"{file}: space.segresnet.init_filters: low, 9, is above high, 3"]
    file.unlink()
    assert "init_filters" not in read_space({"segresnet": folder}).entries["segresnet"]


def test_bounds_that_mean_nothing_beside_the_plan_are_refused() -> None:
    with pytest.raises(InputError, match="num_workers: the planned value is None, of which there is no multiple"):
        bound({"num_workers": {"times": [1, 2]}})
    with pytest.raises(InputError, match="init_filters: no number 12 or a multiple"):
        bound({"segresnet": {"init_filters": {"times": [1.1, 1.2], "step": 12}}})
    with pytest.raises(InputError, match="nothing is left to search beside the plan"):
        bound({"only": ["blocks_down"]}, blocks_down=[1])


def by_hand(trial: optuna.trial.BaseTrial) -> dict[str, Any]:
    return {"learning_rate": trial.suggest_float("rate", 1e-4, 1e-2, log=True), "loss": "dice_focal"}


def test_a_callable_asks_for_itself() -> None:
    space = read_space(ONE, by_hand, {"segresnet": ["optimizer"]}).bound({"segresnet": planned("segresnet")})
    assert space.suggest(FixedTrial({"rate": 1e-3})).overrides == {"learning_rate": 1e-3, "loss": "dice_focal"}
    planned_trial = FixedTrial({})
    planned_trial.set_user_attr("planned_family", "segresnet")
    assert space.suggest(planned_trial) == Suggestion("segresnet", {})
    assert space.plain() == {"callable": f"{__name__}.by_hand"}
    with pytest.raises(InputError, match="a callable has no grid"):
        space.grid()
    both = {**ONE, "dints": FAMILIES["dints"]}
    chosen = read_space(both, lambda trial: {"family": "dints", "channel_mul": 0.5}).bound({n: {} for n in both})
    assert chosen.suggest(FixedTrial({})) == Suggestion("dints", {"channel_mul": 0.5})


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"learning_rte": 1.0}, "no such hyper-parameter (did you mean 'learning_rate'?)"),
        ({"seed": 3}, "it cannot be searched: the luckiest seed"),
        ({"loss": 3}, "3 is not of the kind"),
        ({"optimizer": "sgd"}, "and so does --set"),
        ({"family": "dints"}, "space.family: 'dints' is none of segresnet"),
        (None, "the callable gave None, not a mapping"),
        (KeyError("x"), "the callable failed: KeyError: 'x'"),
    ],
)
def test_a_callable_is_tried_out(said: Any, message: str) -> None:
    def function(trial: optuna.trial.BaseTrial) -> Any:
        if isinstance(said, Exception):
            raise said
        return said

    with pytest.raises(InputError) as error:
        read_space(ONE, function, {"segresnet": ["optimizer"]})
    assert message in str(error.value)


def test_templates_of_auto3dseg_are_not_searched() -> None:
    folder = Path(__file__).parents[1] / "templates" / "tinynet"
    assert "cannot be searched" in faults(None, {"tinynet": folder})[0]
