"""Races: a challenger wins by more than noise on the same cases, or not at all."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from autoseg.hpo.race import Paired, Race, paired

FOLDS, CASES = 3, 20
DEFAULT = 0
Values = Mapping[str, float]


def never(trial: int, fold: int) -> bool:
    return False


class Track:
    """Trials of known quality: `scores` holds what has been trained, `lost` what fails."""

    def __init__(
        self,
        quality: Mapping[int, float],
        noise: float = 0.01,
        cases: int = CASES,
        folds: int = FOLDS,
        seed: int = 0,
    ):
        self.quality, self.noise, self.cases, self.folds, self.seed = quality, noise, cases, folds, seed
        self.scores: dict[tuple[int, int], Values] = {}
        self.lost: set[tuple[int, int]] = set()
        self.failing: set[tuple[int, int]] = set()
        self.trained: list[tuple[int, int]] = []
        self.race = self.new()

    def new(self) -> Race:
        return Race(self.folds, lambda trial, fold: self.scores.get((trial, fold)), DEFAULT)

    def values(self, trial: int, fold: int) -> Values:
        """Cases differ much from one another, and little between trials."""
        difficulty = np.random.default_rng(fold).uniform(-0.3, 0.3, self.cases)
        own = np.random.default_rng([self.seed, trial, fold]).normal(0, self.noise, self.cases)
        found = self.quality[trial] + difficulty + own
        return {f"{fold}_{place}": float(value) for place, value in enumerate(found)}

    def train(self, trial: int, fold: int = 0) -> None:
        assert (trial, fold) not in {*self.scores, *self.lost}, "trained twice"
        self.trained.append((trial, fold))
        if (trial, fold) in self.failing:
            self.lost.add((trial, fold))
        else:
            self.scores[trial, fold] = self.values(trial, fold)

    def ranked(self) -> list[int]:
        done = [trial for trial, fold in self.scores if fold == 0]
        return sorted(done, key=lambda trial: -float(np.mean(list(self.scores[trial, 0].values()))))

    def settle(self, race: Race | None = None) -> list[tuple[int, int]]:
        race, before = race or self.race, -1
        wanted: list[tuple[int, int]] = []
        while not wanted and before < len(race.verdicts):
            before = len(race.verdicts)
            wanted = race.settle(self.ranked(), lambda trial, fold: (trial, fold) in self.lost)
        return wanted

    def run(self, trials: Sequence[int]) -> Race:
        """Train the trials one after another, each followed by what the race wants."""
        for trial in trials:
            self.train(trial)
            while wanted := self.settle():
                for one in wanted:
                    self.train(*one)
        return self.race


def reasons(race: Race) -> dict[int, str]:
    return {trial: reason for trial, _, _, reason in race.verdicts}


def test_a_challenger_that_is_better_wins_on_two_folds() -> None:
    track = Track({0: 0.80, 1: 0.84})
    race = track.run([0, 1])
    assert race.incumbent == 1 and reasons(race) == {1: "is better"}
    assert track.trained == [(0, 0), (1, 0), (1, 1), (0, 1)], "the third fold was not needed"
    (_, than, found, _) = race.verdicts[0]
    assert than == 0 and found.n == 2 * CASES and found.low > 0 and found.p < 0.001
    assert found.mean == pytest.approx(0.04, abs=0.01)


def test_a_challenger_by_noise_alone_is_dismissed() -> None:
    wins = 0
    for seed in range(40):
        race = Track({0: 0.80, 1: 0.80}, noise=0.03, seed=seed).run([0, 1])
        wins += race.incumbent == 1
        assert race.incumbent == 1 or not race.verdicts or "is not ahead" in race.verdicts[0][3]
    assert wins <= 5, "equal trials win by chance in one case of ten, by two looks at 5 %"


def test_a_lead_that_does_not_last_is_given_up_on_the_next_fold() -> None:
    track = Track({0: 0.80, 1: 0.84})
    track.train(0)
    track.train(1)
    assert track.settle() == [(1, 1), (0, 1)]
    track.scores[0, 1] = track.values(0, 1)
    assert track.settle() == [(1, 1)], "what is at hand is not trained again"
    track.scores[1, 1] = {case: value - 0.08 for case, value in track.scores[0, 1].items()}
    assert track.settle() == [] and track.race.incumbent == 0
    assert reasons(track.race) == {1: f"is not ahead over {2 * CASES} cases"}


def test_an_unclear_lead_is_decided_on_the_last_fold() -> None:
    track = Track({0: 0.80, 1: 0.81}, noise=0.06, cases=6)
    track.scores = {(trial, fold): {f"{fold}{place}": 0.5 for place in range(6)} for trial in (0, 1) for fold in (0, 1)}
    for fold in (0, 1):
        track.scores[1, fold] = {f"{fold}{place}": 0.5 + 0.1 * (-1) ** place + 0.01 for place in range(6)}
    assert track.settle() == [(1, 2), (0, 2)], "two folds have not said it"
    track.scores |= {(trial, 2): {f"2{place}": 0.5 for place in range(6)} for trial in (0, 1)}
    assert track.settle() == [] and reasons(track.race) == {1: "is not ahead by more than noise over 18 cases"}


def test_what_ranks_below_the_incumbent_does_not_race() -> None:
    track = Track({0: 0.80, 1: 0.70, 2: 0.60})
    race = track.run([0, 1, 2])
    assert race.incumbent == 0 and not race.verdicts and len(track.trained) == 3


def test_the_incumbent_changes_and_is_the_one_to_beat() -> None:
    track = Track({0: 0.80, 1: 0.84, 2: 0.83, 3: 0.90, 4: 0.70})
    race = track.run([0, 1, 2, 3, 4])
    assert race.incumbent == 3
    assert [(trial, than) for trial, than, _, _ in race.verdicts] == [(1, 0), (3, 1)]
    assert not [one for one in track.trained if one[0] in (2, 4) and one[1]], "they did not lead"


def test_one_that_is_dismissed_does_not_come_again() -> None:
    track = Track({0: 0.80, 1: 0.84})
    track.train(0)
    track.train(1)
    track.scores |= {(1, 1): {"x": 0.1}, (0, 1): {"x": 100.0}}
    assert [track.settle() for _ in range(3)] == [[], [], []] and len(track.race.verdicts) == 1


@pytest.mark.parametrize("quality", [0.8, 0.0])
def test_equal_values_change_nothing(quality: float) -> None:
    track = Track({0: quality, 1: quality}, noise=0.0)
    track.train(0)
    track.scores[1, 0] = dict(track.scores[0, 0])
    race = track.race
    assert race.settle([1, 0], never) == [] and race.incumbent == 0
    assert reasons(race) == {1: f"is not ahead over {CASES} cases"}


def test_a_challenger_that_cannot_be_trained_is_dismissed_and_the_next_one_comes() -> None:
    track = Track({0: 0.80, 1: 0.86, 2: 0.83})
    track.failing = {(1, 1)}
    for trial in (0, 1, 2):
        track.train(trial)
    while wanted := track.settle():
        for one in wanted:
            track.train(*one)
    assert track.race.incumbent == 2 and reasons(track.race)[1] == "could not be trained on fold 1"


@pytest.mark.parametrize("failing", [{(0, 1)}, {(0, 1), (0, 2)}])
def test_folds_that_the_incumbent_was_lost_on_are_left_out(failing: set[tuple[int, int]]) -> None:
    track = Track({0: 0.80, 1: 0.84})
    track.failing = failing
    race = track.run([0, 1])
    assert race.incumbent == 1 and race.verdicts[0][2].n == CASES * (FOLDS - len(failing))


def test_without_a_default_nobody_races() -> None:
    track = Track({1: 0.9})
    track.race.incumbent = None
    track.train(1)
    assert track.settle() == [] and not track.race.verdicts


def test_on_one_fold_the_first_decides() -> None:
    track = Track({0: 0.80, 1: 0.84, 2: 0.8401}, folds=1)
    assert track.run([0, 1, 2]).incumbent == 1 and len(track.trained) == 3


def test_cases_without_a_value_are_not_compared() -> None:
    track = Track({0: 0.80, 1: 0.84})
    track.train(0)
    track.scores[1, 0] = {f"other_{place}": 0.9 for place in range(CASES)}
    assert track.race.settle([1, 0], never) == [(1, 1), (0, 1)], "a fold without a common case says nothing yet"


def test_many_cases() -> None:
    track = Track({0: 0.80, 1: 0.802}, noise=0.02, cases=2000)
    race = track.run([0, 1])
    assert race.incumbent == 1 and race.verdicts[0][2].n == 4000


def test_a_few_cases_cannot_tell() -> None:
    track = Track({0: 0.5, 1: 0.9}, noise=0.0, cases=1)
    race = track.run([0, 1])
    assert race.incumbent == 0 and reasons(race) == {1: "is not ahead by more than noise over 3 cases"}


@pytest.mark.parametrize("order", [(0, 1, 2, 3, 4, 5), (0, 5, 4, 3, 2, 1), (0, 3, 1, 5, 2, 4)])
def test_a_race_that_goes_on_from_its_verdicts_comes_to_the_same(order: tuple[int, ...]) -> None:
    track = Track({0: 0.80, 1: 0.815, 2: 0.825, 3: 0.80, 4: 0.835, 5: 0.83}, noise=0.03)
    race = track.run(order)
    assert race.verdicts and track.settle() == []
    again = track.new()
    again.recall(json.loads(json.dumps(race.plain())))
    assert track.settle(again) == [], "all that it needs is there"
    assert (again.incumbent, again.dismissed, again.verdicts) == (race.incumbent, race.dismissed, race.verdicts)


def test_the_scores_alone_would_not_do() -> None:
    """2 leads 1, which beat 0; 2 does not beat 1, but would have beaten 0: from the scores alone it would win."""
    track, own = Track({}, folds=1), np.random.default_rng(1).normal(0.052, 0.02, CASES)
    base = {f"c{place}": 0.5 + 0.01 * place for place in range(CASES)}
    track.scores = {(0, 0): base, (1, 0): {case: value + 0.05 for case, value in base.items()}}
    assert track.settle() == [] and track.race.incumbent == 1
    track.scores[2, 0] = {case: value + float(more) for (case, value), more in zip(base.items(), own, strict=True)}
    assert track.ranked() == [2, 1, 0]
    assert track.settle() == [] and track.race.incumbent == 1 and track.race.dismissed == {2}
    fresh, again = track.new(), track.new()
    again.recall(track.race.plain())
    track.settle(fresh)
    track.settle(again)
    assert fresh.incumbent == 2 and again.incumbent == 1


def test_a_challenger_that_could_not_be_trained_may_try_in_a_later_call() -> None:
    track = Track({0: 0.80, 1: 0.86})
    track.failing = {(1, 1)}
    track.run([0, 1])
    again = track.new()
    again.recall(track.race.plain())
    track.lost.clear()
    assert track.settle(again) == [(1, 1)]


def test_paired() -> None:
    one = {f"c{place}": 0.8 + 0.01 * place for place in range(12)}
    other = {f"c{place}": 0.7 + 0.01 * place for place in range(1, 14)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = paired(one, other)
        assert found.n == 11 and found.mean == pytest.approx(0.1) and found.p == pytest.approx(0.5**11)
        assert paired(other, one).p > 0.99 and paired(other, one).mean == pytest.approx(-0.1)
        assert paired(one, one) == Paired(12, 0.0, 0.0, 0.0, 1.0)
        zeros = {**one, "c0": 0.81, "c1": 0.83}
        assert paired(zeros, one).n == 12 and 0.1 < paired(zeros, one).p < 1
        assert paired({"a": 2.0}, {"a": 1.0}) == Paired(1, 1.0, 1.0, 1.0, 0.5)
        nothing = paired(one, {"other": 1.0})
    assert nothing.n == 0 and nothing.p == 1.0 and math.isnan(nothing.mean)
