"""The rule that says which predictions to look at: what it learns, what it refuses to learn, what it finds."""

from __future__ import annotations

from typing import Any

import numpy as np

from autoseg.ensemble.doubt import LEAST_CASES, DoubtRule, doubts, fit_doubt
from autoseg.records import from_plain, to_plain


def rows(cases: int, seed: int = 0) -> list[dict[str, Any]]:
    """Two labels whose Dice is 0.2 and 0.1 below what is expected, with some noise."""
    random = np.random.default_rng(seed)
    found = []
    for number in range(cases):
        for label, lost in ((1, 0.2), (3, 0.1)):
            expected = float(random.uniform(0.6, 0.95))
            dice = expected - lost + float(random.normal(0, 0.02))
            found.append({"case": f"case_{number}", "label": label, "dice": dice, "expected": expected})
    return found


def test_a_line_a_label() -> None:
    rule = fit_doubt(rows(60))
    assert rule is not None and rule.n_cases == 60 and list(rule.lines) == ["1", "3"]
    (found,) = doubts(rule, {"new": {"1": 0.9, "3": 0.8}})
    assert found.dice["1"] is not None and abs(found.dice["1"] - 0.7) < 0.03
    assert found.dice["3"] is not None and abs(found.dice["3"] - 0.7) < 0.03
    assert found.mean_dice is not None and abs(found.mean_dice - 0.7) < 0.03


def test_about_a_tenth_is_to_be_looked_at_and_it_is_the_worst() -> None:
    rule = fit_doubt(rows(400))
    assert rule is not None
    unseen = rows(200, seed=1)
    expected: dict[str, dict[str, float | None]] = {}
    dice: dict[str, list[float]] = {}
    for row in unseen:
        expected.setdefault(row["case"], {})[str(row["label"])] = row["expected"]
        dice.setdefault(row["case"], []).append(row["dice"])
    found = doubts(rule, expected)
    flagged = {one.case for one in found if one.look}
    worst = set(sorted(dice, key=lambda case: sum(dice[case]))[:20])
    assert 8 <= len(flagged) <= 40
    assert len(flagged & worst) >= 0.6 * len(worst)
    means = [one.mean_dice for one in found]
    assert means == sorted(means)  # type: ignore[type-var]


def test_too_few_cases_or_no_expectation_teach_nothing() -> None:
    assert fit_doubt(rows(LEAST_CASES - 1)) is None
    assert fit_doubt([{**row, "expected": None} for row in rows(20)]) is None
    assert fit_doubt([{"case": "a", "label": 1, "dice": 0.5}] * 20) is None  # rows of an older version
    assert fit_doubt([]) is None


def without(label: int, cases: int, there: int) -> list[dict[str, Any]]:
    """Rows of cases in which nothing was found of a label, `there` of them nevertheless holding it."""
    return [
        {"case": f"case_{n}", "label": label, "dice": 0.0 if n < there else None, "expected": None}
        for n in range(cases)
    ]


def test_a_rare_label_takes_the_line_of_all_and_an_absent_one_has_none() -> None:
    rare = {"case": "case_9", "label": 7, "dice": 0.4, "expected": 0.8}
    rule = fit_doubt([*rows(30), rare, *without(7, 9, there=1), *without(8, 30, there=0)])
    assert rule is not None and set(rule.lines) == {"1", "3", "7"}
    assert rule.missed == {"1": 1.0, "3": 1.0, "7": 0.12, "8": 0.0}  # (1 of 9, and 2 of 10 as one more) of 10
    (found,) = doubts(rule, {"new": {"7": 0.8, "8": None, "9": 0.5, "10": None}})
    assert found.dice["8"] is None and found.dice["9"] is None and found.dice["10"] is None
    assert found.mean_dice == found.dice["7"]
    (nothing,) = doubts(rule, {"empty": {"7": None}})
    assert nothing.mean_dice is None and not nothing.look


def test_a_label_that_is_mostly_there_and_was_not_found_is_one_to_look_at() -> None:
    rule = fit_doubt([*rows(30), *without(5, 6, there=4)])
    assert rule is not None and rule.missed == {"1": 1.0, "3": 1.0, "5": round(4 / 6, 6)}
    found = doubts(rule, {"good": {"1": 0.95, "3": 0.95}, "bad": {"1": 0.95, "3": None}})
    assert [(one.case, one.look) for one in found] == [("bad", True), ("good", False)]
    assert found[0].dice["3"] == 0.0
    everything = doubts(rule, {"blank": {"1": None, "3": None, "5": None}})
    assert everything[0].mean_dice == 0.0 and everything[0].look
    old = DoubtRule(rule.lines, rule.look_below, 30, 2)  # of a version that did not know
    assert doubts(old, {"bad": {"1": None}})[0].mean_dice is None


def test_one_of_many_labels_is_enough_and_missing_it_often_hides_none() -> None:
    many = [{**row, "label": label} for row in rows(30) if row["label"] == 1 for label in range(1, 14)]
    rule = fit_doubt(many)
    assert rule is not None
    everywhere: dict[str, float | None] = {str(label): 0.95 for label in range(1, 14)}
    (lacking,) = doubts(rule, {"new": {**everywhere, "4": None}})
    assert lacking.look and lacking.mean_dice is not None and lacking.mean_dice > rule.look_below
    assert not doubts(rule, {"new": everywhere})[0].look
    lesions = fit_doubt([row for row in rows(30) if row["label"] == 1] + without(1, 10, there=10))
    assert lesions is not None and lesions.look_below > 0.3
    assert doubts(lesions, {"blank": {"1": None}})[0].look


def test_a_label_that_is_mostly_absent_but_never_quite_ruled_out_is_not_missed() -> None:
    traces = [{"case": f"case_{n}", "label": 2, "dice": 0.7 if n < 3 else None, "expected": 0.0} for n in range(30)]
    rule = fit_doubt([*rows(30), *traces])
    assert rule is not None and rule.missed["2"] == 0.1
    assert not doubts(rule, {"clean": {"1": 0.95, "3": 0.95, "2": None}})[0].look


def test_dice_stays_between_0_and_1_and_a_line_never_falls() -> None:
    rule = DoubtRule({"1": (-0.5, 2.0)}, 0.1, 10)
    low, high = doubts(rule, {"low": {"1": 0.1}, "high": {"1": 0.9}})
    assert (low.mean_dice, high.mean_dice) == (0.0, 1.0) and low.look and not high.look
    falling = [{"case": str(n), "label": 1, "dice": 1 - n / 20, "expected": n / 20} for n in range(20)]
    rule_of_falling = fit_doubt(falling)
    assert rule_of_falling is not None and rule_of_falling.lines["1"][1] == 0.0


def test_the_rule_survives_its_file() -> None:
    rule = fit_doubt(rows(20))
    assert rule is not None and from_plain(DoubtRule, to_plain(rule)) == rule
