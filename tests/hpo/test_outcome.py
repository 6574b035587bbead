"""What a sweep leaves: the table, the front, importances, and pictures that can be read."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial
from PIL import Image

from autoseg.hpo.outcome import importances, write_outcome

RATE, DROPOUT = FloatDistribution(1e-4, 1.0, log=True), FloatDistribution(0.0, 0.5)
LOSS, DEPTH = CategoricalDistribution(["dice_$ce$", "dice", "a loss of a very long name"]), IntDistribution(2, 5)
PICTURES = {"history.png", "importances.png", "learning_curves.png", "parallel.png", "slice.png"}


def trial(number: int, state: TrialState = TrialState.COMPLETE, **attributes: Any) -> FrozenTrial:
    """A trial whose Dice depends on its learning rate alone; one in three has a depth, too."""
    rate, dropout = 10 ** -(number * 7 % 40 / 10), number * 3 % 10 / 20
    params = {"learning_rate": rate, "dropout": dropout, "loss": LOSS.choices[number % 3]}
    kinds = {"learning_rate": RATE, "dropout": DROPOUT, "loss": LOSS}
    if number % 3 == 0:
        params, kinds = {**params, "depth": 2 + number % 4}, {**kinds, "depth": DEPTH}
    dice = 0.9 - abs(rate - 0.1) / 4
    reports = {step: dice * step / 10 for step in range(1, {"PRUNED": 4}.get(state.name, 10) + 1)}
    given = {} if state in (TrialState.FAIL, TrialState.RUNNING) else {"intermediate_values": reports}
    value = {"value": dice} if state is TrialState.COMPLETE else {}
    return create_trial(state=state, params=params, distributions=kinds, user_attrs=attributes, **value, **given)


def sweep(states: str, **attributes: Any) -> optuna.Study:
    """A study with a trial of each state: c(omplete), p(runed), f(ailed), r(unning)."""
    study = optuna.create_study(direction="maximize")
    named = {"c": TrialState.COMPLETE, "p": TrialState.PRUNED, "f": TrialState.FAIL, "r": TrialState.RUNNING}
    for number, state in enumerate(states):
        study.add_trial(trial(number, named[state], **(attributes if state == "f" else {})))
    return study


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_table_has_a_row_a_trial(tmp_path: Path) -> None:
    error = 'RuntimeError: out of memory, "really"\r\nsecond line'
    outcome = write_outcome(sweep("ccpfr", error=error, seconds=3, list=[1]), tmp_path, ["mean Dice"])
    table = rows(outcome.files["trials.csv"])
    assert list(table[0]) == [
        *("number", "state", "mean Dice", "seconds", "started"),
        *("learning_rate", "dropout", "loss", "depth", "attribute.seconds", "error"),
    ]
    assert [row["number"] for row in table] == list("01234")
    assert [row["state"] for row in table] == ["complete", "complete", "pruned", "fail", "running"]
    assert float(table[0]["mean Dice"]) == pytest.approx(0.675) and table[3]["mean Dice"] == ""
    assert table[3]["error"] == error.replace("\r", "") and table[0]["error"] == ""
    assert table[3]["attribute.seconds"] == "3"
    assert float(table[1]["learning_rate"]) == pytest.approx(10**-0.7)
    assert table[0]["depth"] == "2" and table[1]["depth"] == ""


def test_the_family_stands_once_and_before_the_parameters(tmp_path: Path) -> None:
    study = optuna.create_study()
    kinds = {"family": CategoricalDistribution(["dints", "segresnet"]), "a": DROPOUT}
    params = {"a": 0.1, "family": "dints"}
    study.add_trial(create_trial(value=1, params=params, distributions=kinds, user_attrs={"family": "dints"}))
    study.add_trial(create_trial(value=1, params={"a": 0.2}, distributions={"a": DROPOUT}))
    (first, second) = rows(write_outcome(study, tmp_path, ["x"]).files["trials.csv"])
    assert list(first) == ["number", "state", "x", "seconds", "started", "family", "a"]
    assert first["family"] == "dints" and second["family"] == ""


def test_a_column_never_hides_another(tmp_path: Path) -> None:
    study = optuna.create_study()
    study.add_trial(create_trial(value=1, params={"state": 0.1}, distributions={"state": DROPOUT}))
    (row,) = rows(write_outcome(study, tmp_path, ["seconds"]).files["trials.csv"])
    assert row["state"] == "complete" and row["parameter.state"] == "0.1"
    assert row["seconds"] == "1" and "trial.seconds" in row


def test_two_objectives_have_a_front_and_its_picture(tmp_path: Path) -> None:
    study = optuna.create_study(directions=["maximize", "minimize"])
    for number, values in enumerate([(0.9, 9.0), (0.8, 5.0), (0.7, 6.0), (0.6, 1.0)] * 3):
        one = trial(number)
        study.add_trial(create_trial(values=values, params=one.params, distributions=one.distributions))
    outcome = write_outcome(study, tmp_path, ["Dice", "seconds"])
    front, table = rows(outcome.files["pareto.csv"]), rows(outcome.files["trials.csv"])
    assert {(row["Dice"], row["seconds"]) for row in front} == {("0.9", "9.0"), ("0.8", "5.0"), ("0.6", "1.0")}
    assert list(front[0]) == list(table[0])
    assert {"pareto.png", "slice_1.png", "slice_2.png", "history.png", "parallel.png"} <= set(outcome.files)
    assert set(outcome.left_out) == {"learning_curves.png"}


@pytest.mark.parametrize("states", ["c" * 40, "ccp" * 14], ids=["none pruned", "some pruned"])
def test_importances_find_the_parameter_that_matters(tmp_path: Path, states: str) -> None:
    outcome = write_outcome(sweep(states), tmp_path, ["mean Dice"])
    shares = json.loads(outcome.files["importances.json"].read_text("utf-8"))["importances"]
    assert sum(shares.values()) == pytest.approx(1.0)
    assert next(iter(shares)) == "learning_rate" and shares["learning_rate"] > 0.5
    assert set(shares) <= {"learning_rate", "dropout", "loss", "depth"}


def test_a_parameter_that_few_trials_have_gets_no_share() -> None:
    assert "depth" not in importances(sweep("ccc" * 3 + "ppp" * 3 + "cc"))
    assert "depth" in importances(sweep("ccc" * 5))


def filled(rates: list[float], *more: str, dice: float = 0.5) -> optuna.Study:
    """A study of trials that reach the same and differ in `a` only."""
    study = optuna.create_study(direction="maximize")
    for rate in rates:
        params = {"a": rate, **dict.fromkeys(more, 0.1)}
        study.add_trial(create_trial(value=dice, params=params, distributions=dict.fromkeys(params, DROPOUT)))
    return study


@pytest.mark.parametrize(
    ("study", "reason"),
    [
        (sweep(""), "0 trials are done"),
        (sweep("c" * 9), "9 trials are done and 0 pruned"),
        (sweep("cc" + "p" * 20), "2 trials are done and 20 pruned"),
        (filled([0.1] * 12), "two parameters"),
        (filled([0.1] * 12, "b"), "differ in no parameter"),
        (filled([number / 24 for number in range(12)], "b"), "not in what they reached"),
    ],
    ids=["none", "few", "few done", "one parameter", "constant", "same values"],
)
def test_importances_that_cannot_be_told_are_left_out(tmp_path: Path, study: optuna.Study, reason: str) -> None:
    outcome = write_outcome(study, tmp_path, ["mean Dice"])
    assert reason in outcome.left_out["importances.json"]
    assert "importances.png" in outcome.left_out
    assert not (tmp_path / "importances.json").exists()


def test_pictures_are_drawn_and_show_something(tmp_path: Path) -> None:
    outcome = write_outcome(sweep("ccp" * 12 + "ffr", error="no"), tmp_path, ["mean Dice"])
    assert outcome.left_out == {}
    assert {name for name in outcome.files if name.endswith(".png")} == PICTURES
    for name in PICTURES:
        assert outcome.files[name] == tmp_path / "pictures" / name
        with Image.open(outcome.files[name]) as picture:
            assert picture.format == "PNG" and min(picture.size) > 200
            assert len(picture.convert("RGB").getcolors(2**24) or []) > 50
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize("states", ["", "r", "f", "p", "c", "cc", "fpr"])
def test_what_cannot_be_drawn_is_said(tmp_path: Path, states: str) -> None:
    outcome = write_outcome(sweep(states), tmp_path, ["mean Dice"])
    assert len(rows(outcome.files["trials.csv"])) == len(states)
    assert {name for name in {**outcome.files, **outcome.left_out} if name.endswith(".png")} == PICTURES
    assert not [reason for reason in outcome.left_out.values() if "Error" in reason or "\n" in reason]
    assert ("history.png" in outcome.files) == ("c" in states)
    assert ("learning_curves.png" in outcome.files) == bool({"c", "p"} & set(states))
    assert ("slice.png" in outcome.files) == (states == "cc")


def test_odd_values_are_drawn_too(tmp_path: Path) -> None:
    study = sweep("cccc")
    for value in (float("inf"), -1e9):
        study.add_trial(create_trial(value=value, params={"learning_rate": 0.1}, distributions={"learning_rate": RATE}))
    study.add_trial(
        create_trial(value=0.5, params={"loss": None}, distributions={"loss": CategoricalDistribution([None, 1])})
    )
    outcome = write_outcome(study, tmp_path, ["$x_$y"])
    assert set(outcome.left_out) <= {"importances.json", "importances.png"}


def test_without_matplotlib_there_is_a_reason_and_no_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "autoseg.hpo.pictures", raising=False)
    outcome = write_outcome(sweep("ccp"), tmp_path, ["mean Dice"])
    assert outcome.left_out["pictures"] == "matplotlib is not installed: pip install 'autoseg[sweeps]'"
    assert set(outcome.files) == {"trials.csv"}


def test_the_callers_own_plots_are_left_alone(tmp_path: Path) -> None:
    pyplot = pytest.importorskip("matplotlib.pyplot", reason="matplotlib is not installed")
    before, open_figures = dict(pyplot.rcParams), pyplot.get_fignums()
    write_outcome(sweep("ccp"), tmp_path, ["mean Dice"])
    assert dict(pyplot.rcParams) == before and pyplot.get_fignums() == open_figures
