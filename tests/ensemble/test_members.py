"""Who is a member: best by fold, best N, all; and who is left out, with which word."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace

import pytest

from autoseg.ensemble import METHODS, choose_members
from autoseg.ensemble.members import collapsed
from autoseg.errors import InputError
from autoseg.records import LeaderboardEntry


def entry(name: str, dice: float, status: str = "done") -> LeaderboardEntry:
    algo, fold = name.rsplit("_", 1)
    return LeaderboardEntry(algo, int(fold), status, dice, {} if math.isnan(dice) else {"1": dice})


BOARD = [entry("a_0", 0.8), entry("a_1", 0.6), entry("b_0", 0.7), entry("b_1", 0.9), entry("b_2", 0.75)]


def names(members: list[LeaderboardEntry]) -> list[str]:
    return [member.name for member in members]


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("AlgoEnsembleBestByFold", ["a_0", "b_1", "b_2"]),
        ("AlgoEnsembleBestN", ["b_1", "a_0"]),
        ("AlgoEnsembleAll", ["a_0", "a_1", "b_0", "b_1", "b_2"]),
    ],
)
def test_methods(method: str, expected: list[str]) -> None:
    members, left_out = choose_members(BOARD, method, n_best=2)
    assert (names(members), left_out) == (expected, [])


def test_best_by_fold_is_the_default_and_ties_do_not_depend_on_the_order() -> None:
    tied = [entry("b_0", 0.5), entry("a_0", 0.5), entry("a_1", 0.5)]
    assert names(choose_members(tied)[0]) == names(choose_members(tied[::-1])[0]) == ["a_0", "a_1"]


def test_fewer_than_n_are_all() -> None:
    assert len(choose_members(BOARD, "AlgoEnsembleBestN", n_best=9)[0]) == 5


@pytest.mark.parametrize("method", METHODS)
def test_failed_nan_and_collapsed_folds_are_left_out_with_a_word(method: str) -> None:
    bad = [
        LeaderboardEntry("c", 0, "done", math.nan, {"1": math.nan}),
        entry("c_1", 0.02),
        entry("c_2", 0.5),
        entry("c_3", 0.55),
        entry("d_0", 0.95, "failed"),
    ]
    members, left_out = choose_members([*BOARD, *bad], method, n_best=20)
    assert not {"c_0", "c_1", "d_0"} & set(names(members))
    reasons = dict(left_out)
    assert set(reasons) == {"c_0", "c_1", "d_0"}
    assert "not a number" in reasons["c_0"]
    assert "collapsed" in reasons["c_1"] and "0.020" in reasons["c_1"] and "0.525" in reasons["c_1"]
    assert "failed" in reasons["d_0"]


@pytest.mark.parametrize("method", METHODS)
def test_a_network_that_cannot_predict_is_no_member_however_good(method: str) -> None:
    blind = replace(entry("c_0", 0.99), predicts=False)
    members, left_out = choose_members([blind, *BOARD], method)
    assert blind not in members
    ((name, reason),) = left_out
    assert name == "c_0" and "InferClass could not predict" in reason


def test_a_network_on_all_cases_that_has_not_even_learned_those_has_collapsed() -> None:
    folds, fallen = [entry("c_0", 0.5), entry("c_1", 0.55)], replace(entry("c_2", math.nan), recall_dice=0.1)
    fine, unknown = replace(entry("c_3", math.nan), recall_dice=0.3), entry("c_4", math.nan)
    board = [*folds, fallen, fine, unknown]
    members, left_out = choose_members(board, "AlgoEnsembleAll")
    assert members == [*folds, fine, unknown]
    assert left_out == [("c_2", "its training collapsed: mean Dice 0.100, the family's other folds have 0.525")]
    assert collapsed(board) == [fallen]


def test_where_nothing_is_learnt_well_nothing_has_collapsed() -> None:
    hard = [entry("a_0", 0.05), entry("a_1", 0.2), entry("a_2", 0.25)]
    assert choose_members(hard, "AlgoEnsembleAll") == (hard, [])
    assert choose_members([entry("a_0", 0.05), entry("b_1", 0.9)], "AlgoEnsembleAll")[1] == []  # another family


def test_networks_without_validation_are_members_only_where_said() -> None:
    blind = [entry("a_0", math.nan), entry("b_0", math.nan)]
    assert names(choose_members(blind)[0]) == []
    for method in METHODS:
        assert names(choose_members(blind, method, unvalidated_ok=True)[0]) == ["a_0", "b_0"]
    diverged = LeaderboardEntry("a", 0, "done", math.nan, {"1": math.nan})
    assert choose_members([diverged], unvalidated_ok=True)[0] == []


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("AlgoEnsembleBestByFold", ["a_0", "b_1", "b_2", "b_3"]),
        ("AlgoEnsembleBestN", ["b_1", "a_0", "b_2", "b_3"]),
        ("AlgoEnsembleAll", ["a_0", "a_1", "b_0", "b_1", "b_2", "a_3", "b_3"]),
    ],
)
def test_networks_of_all_cases_rank_by_what_their_family_has(method: str, expected: list[str]) -> None:
    board = [*BOARD, entry("a_3", math.nan), entry("b_3", math.nan)]  # families' medians: 0.7 and 0.75
    assert names(choose_members(board, method, n_best=4)[0]) == expected
    failed = [*BOARD, entry("b_3", math.nan, "failed")]
    assert choose_members(failed, "AlgoEnsembleAll")[1] == [("b_3", "its training is not done (failed)")]


def test_bad_words_are_refused() -> None:
    with pytest.raises(InputError, match="did you mean 'AlgoEnsembleBestN'"):
        choose_members(BOARD, "EnsembleBestN")
    with pytest.raises(InputError, match="n_best"):
        choose_members(BOARD, "AlgoEnsembleBestN", n_best=0)


def test_choosing_loads_no_torch() -> None:
    code = "import sys, autoseg.ensemble; sys.exit('torch' in sys.modules or 'monai' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
