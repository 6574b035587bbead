"""What a sweep looks for, read from scores."""

from __future__ import annotations

import math
from typing import Any

import pytest

from autoseg.errors import InputError
from autoseg.hpo.objectives import Objective, read_objectives

LABELS = {1: "anterior", 2: "posterior"}
DICE = Objective("mean_dice", "dice")


def scores(*cases: dict[str, Any], metric: str = "dice") -> dict[str, Any]:
    """scores.json of cases, each a value by label, and the case's name as `case`."""
    names = [str(values.pop("case", f"c{place}")) for place, values in enumerate(cases)]
    rows = [
        {"case": name, "label": int(label[1:]), metric: value}
        for name, values in zip(names, cases, strict=True)
        for label, value in values.items()
    ]
    return {"cases": rows}


def faults(given: Any, scored: dict[int, str] | None = None) -> list[str]:
    with pytest.raises(InputError) as caught:
        read_objectives(given, scored)
    return [fault.message for fault in caught.value.faults if fault.field == "objective"]


def test_mean_dice_is_over_cases_then_over_labels_that_have_a_value() -> None:
    found = scores({"L1": 0.9, "L2": 0.2}, {"L1": 0.7, "L2": None}, {"L1": 0.8})
    assert DICE.value([found]) == pytest.approx((0.8 + 0.2) / 2)
    assert DICE.by_case([found]) == pytest.approx({"c0": 0.55, "c1": 0.7, "c2": 0.8})


def test_cases_without_any_value_are_left_out() -> None:
    found = scores({"L1": None, "L2": math.nan}, {"L1": 0.5})
    assert DICE.by_case([found]) == {"c1": 0.5} and DICE.value([found]) == 0.5
    assert math.isnan(DICE.value([scores({"L1": None})])) and DICE.by_case([scores({"L1": None})]) == {}


def test_folds_are_taken_together_case_by_case() -> None:
    """The mean is over all cases, not over the folds' means."""
    folds = [scores({"case": "a", "L1": 0.1}), scores({"case": "b", "L1": 0.7}, {"case": "c", "L1": 0.7})]
    assert DICE.value(folds) == pytest.approx(0.5)
    assert DICE.by_case(folds) == {"a": 0.1, "b": 0.7, "c": 0.7}


def test_weights_are_by_value_or_name_and_others_do_not_count() -> None:
    found = scores({"L1": 0.9, "L2": 0.3, "L3": 0.0})
    for given in ({"1": 2, "posterior": 1}, {1: 2, "2": 1}, {"anterior": 4.0, "posterior": 2.0}):
        (objective,) = read_objectives(given, LABELS)
        assert objective.direction == "maximize" and objective.name == "weighted_dice"
        assert objective.value([found]) == pytest.approx(0.7)
        assert objective.by_case([found]) == pytest.approx({"c0": 0.7})
    (alone,) = read_objectives({"posterior": 5}, LABELS)
    assert alone.value([found]) == pytest.approx(0.3)
    assert alone.by_case([scores({"L1": 0.9}, {"L2": 0.4})]) == {"c1": 0.4}, "a case without the class says nothing"


def test_regions_are_weighted_by_name_or_number() -> None:
    (objective,) = read_objectives({"whole tumour": 1, "2": 3}, {1: "whole tumour", 2: "core"})
    assert objective.weights == {"1": 1.0, "2": 3.0}
    assert objective.value([scores({"L1": 0.8, "L2": 0.4})]) == pytest.approx(0.5)


def test_labels_that_are_called_like_a_value_are_not_mixed_up() -> None:
    (objective,) = read_objectives({"1": 1}, {1: "2", 2: "1"})
    assert objective.weights == {"1": 1.0}


@pytest.mark.parametrize("name", ["hd95", "asd", "volume_difference", "relative_volume_difference"])
def test_of_distances_less_is_better(name: str) -> None:
    (objective,) = read_objectives(name)
    found = scores({"L1": 2.0, "L2": 4.0}, {"L1": 6.0}, metric=name)
    assert objective.direction == "minimize" and objective.name == f"mean_{name}"
    assert objective.value([found]) == pytest.approx(4.0)
    assert objective.by_case([found]) == {"c0": -3.0, "c1": -6.0}, "more is better in any case"


@pytest.mark.parametrize("name", ["volume_difference", "relative_volume_difference"])
def test_too_little_is_no_better_than_too_much(name: str) -> None:
    """Differences of volume are prediction minus reference: the least of them would be the emptiest prediction."""
    (objective,) = read_objectives(name)
    low, high = scores({"L1": -9.0}, metric=name), scores({"L1": 9.0}, metric=name)
    assert objective.value([low]) == objective.value([high]) == 9.0
    assert objective.by_case([low]) == objective.by_case([high])
    assert objective.value([scores({"L1": -9.0}, {"L1": 9.0}, metric=name)]) == 9.0


@pytest.mark.parametrize("given", ["dice", "mean_dice", ["mean_dice"], ("dice",)])
def test_dice_has_two_spellings(given: Any) -> None:
    assert read_objectives(given) == (DICE,)


@pytest.mark.parametrize(("cost", "values"), [("seconds", (1.0, 3.0)), ("memory", (10, 30))])
def test_a_cost_is_the_second_of_two(cost: str, values: tuple[float, float]) -> None:
    first, second = read_objectives(["dice", cost])
    key = {"seconds": "seconds_a_case", "memory": "memory"}[cost]
    found = [{**scores({"L1": 0.5}), key: value} for value in values]
    assert (first.direction, second.direction, second.name) == ("maximize", "minimize", cost)
    assert second.value(found) == sum(values) / 2
    assert "give dice," in faults(cost)[0] and "give dice," in faults([cost, "dice"])[0]


def test_what_a_validation_while_training_says_of_it() -> None:
    dice = {"1": 0.9, "2": 0.5, "3": None}
    assert DICE.reported(dice) == pytest.approx(0.7)
    assert read_objectives({"2": 1})[0].reported(dice) == 0.5
    assert read_objectives("iou")[0].reported(dice) == pytest.approx(0.7)
    hd95 = read_objectives("hd95")[0]
    assert hd95.reported(dice) == pytest.approx(0.3), "of what is to be small the report is small where Dice is high"
    assert hd95.reported({"1": 0.99}) < hd95.reported({"1": 0.5})
    assert math.isnan(DICE.reported({})) and math.isnan(DICE.reported({"1": None}))
    assert math.isnan(read_objectives({"2": 1})[0].reported({"1": 0.5}))


def test_every_fault_at_once() -> None:
    said = faults(["dicee", "hd59"])
    assert len(said) == 2 and "did you mean 'dice'" in said[0] and "'hd95'" in said[1] and "memory" in said[1]
    said = faults([{"anteriro": 1, "9": 2}, "second"], LABELS)
    assert len(said) == 3 and "'anteriro' is no label" in said[0] and "anterior" in said[0]
    assert "'9' is no label" in said[1] and "'second' is none of" in said[2]
    assert "'0' is no label" in faults({"0": 1}, LABELS)[0], "the background is not scored"


def test_the_same_twice_is_refused() -> None:
    assert "mean_dice twice" in faults(["dice", "mean_dice"])[0]
    assert "seconds twice" in " ".join(faults(["seconds", "seconds"]))
    assert "'anterior' is given twice" in faults({"1": 1, "anterior": 2}, LABELS)[0]


def test_labels_that_are_not_known_yet_are_not_judged() -> None:
    assert read_objectives({"whatever": 1})[0].weights == {"whatever": 1.0}
