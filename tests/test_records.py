"""Records to plain values and back, and what they say of folds."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from autoseg.errors import Fault, Faults, InputError, nearest
from autoseg.records import Case, Datalist, Job, JobResult, LeaderboardEntry, Resources, Slot, from_plain, to_plain

RECORDS = [
    Case("a", ("/x/a_0.nii", "/x/a_1.nii"), "/x/l.nii", 0, "p"),
    Case("b", ("/x/b.nii",)),
    Datalist("/d.json", "/", (Case("a", ("/a.nii",), "/l.nii", 1),), (), (Case("t", ("/t.nii",)),), {7: "mandible"}, 2),
    Slot("gpu0", "cuda", 4, "0", 2**30),
    Job("t", ("python", "-m", "x"), "/w", {"A": "1"}, Resources(1, 2, 3), ("p",), ("o",), "f", 2.5, "metrics.jsonl"),
    JobResult("t", "failed", "f", (), 2, 1.5, "Error: x", "/w/log"),
    LeaderboardEntry("segresnet", 0, "done", 0.9, {"1": 0.8, "2": 1.0}, 100, 3.5),
]


@pytest.mark.parametrize("record", RECORDS, ids=lambda r: type(r).__name__)
def test_there_and_back(record: object) -> None:
    assert from_plain(type(record), json.loads(json.dumps(to_plain(record)))) == record


def test_nan_is_none_and_nan_again() -> None:
    plain = to_plain(LeaderboardEntry("a", 0, "failed", math.nan, {"1": math.inf}))
    assert (plain["mean_dice"], plain["dice"]) == (None, {"1": None})
    back = from_plain(LeaderboardEntry, plain)
    assert math.isnan(back.mean_dice)
    assert math.isnan(back.dice["1"])


def test_numpy_and_paths() -> None:
    plain = to_plain({"a": np.float32(0.5), 1: np.arange(3), "p": Path("/x"), "n": np.nan, "b": np.bool_(True)})
    assert json.loads(json.dumps(plain)) == {"a": 0.5, "1": [0, 1, 2], "p": "/x", "n": None, "b": True}


def test_schema_version_is_let_through_and_others_are_not() -> None:
    plain = to_plain(Case("a", ("/a.nii",)))
    assert from_plain(Case, {"schema_version": 1, **plain}).id == "a"
    with pytest.raises(ValueError, match="unknown fields for Case: colour"):
        from_plain(Case, {**plain, "colour": "red"})
    with pytest.raises(ValueError, match="missing fields for Case: image"):
        from_plain(Case, {"id": "a"})


def test_split() -> None:
    cases = tuple(Case(str(i), (f"/{i}.nii",), "/l.nii", i % 3) for i in range(6))
    datalist = Datalist("/d.json", "/", cases, num_fold=3)
    training, validation = datalist.split(1)
    assert [c.id for c in validation] == ["1", "4"]
    assert {*training, *validation} == {*cases}
    assert datalist.split(-1) == (cases, ())
    held = Case("v", ("/v.nii",), "/l.nii")
    assert Datalist("/d.json", "/", cases, (held,), num_fold=1).split(0) == (cases, (held,))


def test_faults_are_raised_together_and_once() -> None:
    faults = Faults()
    faults.raise_if_any()
    faults.add(Path("/a.json"), "x", "wrong")
    faults.add("/a.json", "x", "wrong")
    faults.extend([Fault("", "y", "wrong, too")])
    with pytest.raises(InputError) as caught:
        faults.raise_if_any()
    assert str(caught.value) == "/a.json: x: wrong\ny: wrong, too"
    assert caught.value.exit_code == 2


def test_nearest() -> None:
    assert nearest("FLOD", ["image", "fold"]) == " (did you mean 'fold'?)"
    assert nearest("algoensemblebestn", ["AlgoEnsembleBestN"]) == " (did you mean 'AlgoEnsembleBestN'?)"
    assert nearest("xyz", ["image", "fold"]) == ""
    assert nearest("num_epochs", ["num_fold"], 0.7) == ""
