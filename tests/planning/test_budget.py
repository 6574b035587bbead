"""Time divided among jobs, and what is worth training in it."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest

from autoseg.devices import makespan
from autoseg.planning.budget import (
    FOLD_SHARE,
    FOLD_STEPS,
    LEAST_STEPS,
    SEARCH_START,
    Candidate,
    Choice,
    Room,
    choose,
    least_seconds,
    seconds_a_share,
    share_out,
    windows_share,
)
from autoseg.planning.plan import BY_USER, Plan
from autoseg.records import Speed

QUICK = Candidate("segresnet", Speed(5.0, 0.5, 1.0), steps=1000, enough=3000, cases=8, share=3.0)
SLOW = Candidate("dints", Speed(5.0, 1.0, 1.0), steps=1000, enough=3000, cases=8)


def room(seconds: float, slots: int = 2) -> Room:
    return Room(seconds, slots, closing=20.0, a_member=5.0)


def chosen(
    seconds: float, *candidates: Candidate, folds: int = 3, named: bool = False, all_folds: bool = False
) -> Choice:
    choice = choose(candidates or (QUICK, SLOW), folds, room(seconds), named=named, all_folds=all_folds)
    assert choice is not None
    return choice


@pytest.mark.parametrize(
    ("costs", "slots", "end"),
    [([1.0], 4, 1.0), ([3, 3, 3, 1, 1, 1], 2, 6.0), ([2, 2, 2], 2, 4.0), ([5, 4, 3, 3], 2, 8.0)],
)
def test_makespan(costs: list[float], slots: int, end: float) -> None:
    assert makespan(costs, slots) == end


def test_shares_fill_the_time() -> None:
    unit = seconds_a_share(600.0, [3, 1, 3, 1, 3, 1], 2)
    assert makespan([3 * unit, unit] * 3, 2) == pytest.approx(600.0)


def plan(share: float, **settings: Any) -> Plan:
    made = Plan(share=share)
    for key, value in settings.items():
        made.set(key, value, BY_USER)
    return made


@pytest.mark.parametrize("slots", [1, 2, 3, 4])
@pytest.mark.parametrize("said", [{}, {"search_seconds": 90.0}])
def test_minutes_are_shared_by_searches_and_trainings(slots: int, said: dict[str, float]) -> None:
    plans = {"segresnet": plan(3.0), "dints": plan(1.0, **said), "other": plan(1.0, betas=1)}
    settings = {
        "segresnet": {},
        "dints": {"search": True, "search_share": 0.3, "search_seconds": None, **said},
    }
    share_out(3600.0, plans, settings, 3, slots)
    assert plans["other"].settings == {"betas": 1}, "of a foreign template"
    found = {name: plans[name].settings for name in settings}
    assert found["segresnet"]["num_epochs"] is None
    # a training's budget is its part less start and last validation: 15 s and a twentieth of it, a minute at most
    own = {name: min(s + 60, (s + 15) / 0.95) for name, s in ((n, f["max_seconds"]) for n, f in found.items())}
    searches = makespan([found["dints"]["search_seconds"] + SEARCH_START] * 3, slots)
    trainings = makespan([own["segresnet"], own["dints"], own["segresnet"] / 3] * 3, slots)
    assert searches + trainings == pytest.approx(3600.0, abs=2.0)


def test_what_the_user_sets_of_the_time_stays() -> None:
    plans = {"segresnet": plan(1.0, num_epochs=5)}
    share_out(3600.0, plans, {"segresnet": {"num_epochs": 5}}, 1, 1)
    assert plans["segresnet"].settings == {"num_epochs": 5, "max_seconds": 3540.0}


def test_too_little_time_gives_nothing_and_the_least_is_enough() -> None:
    least = least_seconds((QUICK, SLOW), room(0), named=False)
    assert choose((QUICK, SLOW), 3, room(least - 1), named=False, all_folds=False) is None
    choice = chosen(least + 1)
    assert choice.folds >= 1
    assert list(choice.seconds) == ["segresnet"]


def test_both_slots_are_used_however_short_the_time() -> None:
    choice = chosen(150.0)
    assert choice.folds == 2
    assert LEAST_STEPS <= choice.steps["segresnet"] < FOLD_STEPS


def test_another_fold_comes_when_all_get_their_steps() -> None:
    folds = [chosen(seconds).folds for seconds in (150, 300, 600, 1200, 1800, 3600)]
    assert folds == sorted(folds)
    assert folds[-1] == 3
    assert chosen(3600).steps["segresnet"] >= FOLD_SHARE * QUICK.enough
    assert chosen(1200).steps["segresnet"] >= FOLD_STEPS
    assert chosen(1200).folds == 2, "three would get fewer than half of what is enough"


def test_folds_come_in_full_rounds_over_the_slots_or_all_of_them() -> None:
    found = [choose([QUICK], 5, room(s), named=False, all_folds=False) for s in range(100, 12_000, 20)]
    assert [n for n, _ in itertools.groupby(one.folds for one in found if one is not None)] == [2, 4, 5]
    found = [choose([QUICK], 5, room(s, slots=1), named=False, all_folds=False) for s in range(100, 12_000, 20)]
    assert [n for n, _ in itertools.groupby(one.folds for one in found if one is not None)] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("slots", "wanted"),
    [
        (1, [(1, 0), (2, 0), (2, 1), (2, 2), (3, 2), (3, 3), (4, 3), (5, 3)]),
        (2, [(2, 0), (2, 2), (3, 3), (5, 3)]),
        (4, [(2, 2), (5, 3)]),
        (8, [(4, 3), (5, 3)]),
    ],
)
def test_half_of_the_networks_see_all_cases_and_rounds_that_are_begun_are_filled(
    slots: int, wanted: list[tuple[int, int]]
) -> None:
    found = [choose([QUICK], 5, room(s, slots), named=False, all_folds=False, refit=3) for s in range(100, 36_000, 20)]
    assert [n for n, _ in itertools.groupby((c.folds, c.refit) for c in found if c is not None)] == wanted


def test_what_windows_take_is_scoring_and_predictions() -> None:
    choice = chosen(3600.0)
    more = windows_share((QUICK, SLOW), room(3600.0), choice)
    assert more == pytest.approx((makespan([1.0 * 8] * choice.folds, 2) + choice.networks * 5.0) / 3600.0)
    refit = replace(choice, folds=choice.folds - 1, refit=1)  # of which no case is scored
    assert windows_share((QUICK, SLOW), room(3600.0), refit) < more


def test_another_round_comes_when_each_gets_what_is_enough() -> None:
    found = [choose([QUICK], 5, room(s), named=False, all_folds=False, refit=3) for s in range(100, 36_000, 20)]
    steps = {
        both: [c.steps["segresnet"] for c in found if c and (c.folds, c.refit) == both] for both in [(3, 3), (5, 3)]
    }
    assert min(steps[3, 3]) >= FOLD_SHARE * QUICK.enough
    assert min(steps[5, 3]) >= QUICK.enough
    assert all(c.steps == {"segresnet": QUICK.steps_in(c.seconds["segresnet"])} for c in found if c)


def test_networks_that_were_asked_for_beside_all_folds_are_all_trained() -> None:
    choice = choose([QUICK], 5, room(700.0), named=False, all_folds=True, refit=2)
    assert choice is not None
    assert (choice.folds, choice.refit) == (5, 2)
    assert makespan([choice.seconds["segresnet"]] * 7, 2) == pytest.approx(choice.training)


def test_more_time_never_means_fewer_steps_for_the_first_family() -> None:
    found = [chosen(float(seconds)) for seconds in range(1200, 12_000, 600)]
    steps = [choice.steps["segresnet"] for choice in found]
    fewer = [pair for pair in itertools.pairwise(found) if pair[0].steps["segresnet"] > pair[1].steps["segresnet"]]
    # where there is another network, and where the second family joins
    assert [(after.networks - before.networks, len(after.steps) - len(before.steps)) for before, after in fewer] == [
        (1, 0),
        (0, 1),
    ]
    assert min(steps[steps.index(max(steps)) :]) >= FOLD_STEPS


def test_another_family_joins_with_its_planned_steps_once_the_first_has_enough() -> None:
    short, long = chosen(2400.0), chosen(7200.0)
    assert list(short.seconds) == ["segresnet"]
    assert "3000 steps" in short.left_out["dints"]
    assert list(long.seconds) == ["segresnet", "dints"]
    assert long.steps["segresnet"] >= 3000
    assert long.steps["dints"] == pytest.approx(1000, abs=1)
    assert makespan([*long.seconds.values()] * 3, 2) <= long.training + 1e-6


def test_named_families_are_all_trained_by_their_shares() -> None:
    choice = chosen(600.0, named=True)
    assert choice.seconds["segresnet"] == pytest.approx(3 * choice.seconds["dints"])
    assert not choice.left_out


def test_folds_that_were_asked_for_are_all_trained() -> None:
    assert chosen(200.0, QUICK, folds=5).folds == 2
    assert chosen(400.0, QUICK, folds=5, all_folds=True).folds == 5


@pytest.mark.parametrize("seconds", [130.0, 200.0, 300.0, 600.0])
@pytest.mark.parametrize("slots", [1, 5, 8])
@pytest.mark.parametrize("all_folds", [False, True])
def test_whatever_is_chosen_gets_its_least_steps(seconds: float, slots: int, all_folds: bool) -> None:
    space = Room(seconds, slots, closing=20.0, a_member=50.0)
    choice = choose((QUICK, SLOW), 5, space, named=False, all_folds=all_folds)
    if choice is not None:
        assert min(choice.steps.values()) >= LEAST_STEPS - 1
        assert choice.training > 0
        assert choice.folds == 5 or not all_folds
