"""The ensemble that out-of-fold probabilities choose: members, weights, temperature, post-processing. No torch.

Figures are nested: a case is judged by what a method chooses, with temperature and post-processing, without it. Which
of the methods is taken is decided by these figures themselves, so that the best of them is a little too good.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any

import numpy as np

from autoseg.engine.combination import PostProcessing, post_processed
from autoseg.engine.out_of_fold import LEAST
from autoseg.ensemble import calibration
from autoseg.ensemble.answers import Answers, Mixture, NoTimeError, Scores, Shares, by_case, dice, expected, mean_of
from autoseg.ensemble.clearing import Rules, Trial
from autoseg.ensemble.methods import BEST_FAMILY, Methods, Part, Weights, nested
from autoseg.errors import NoResultError
from autoseg.evaluation import bootstrap_mean

FEWEST = 8  # cases: fewer choose nothing
GAIN = 1e-4  # of a label's mean Dice, that post-processing must add
SURER = 0.002  # of a mean negative log-likelihood, so much better must a temperature make it, relatively


@dataclass(frozen=True)
class Candidate:
    """What a method chooses by all cases, members and their weights; and its mean Dice where each case is judged by
    what is chosen without it.

    `gain`: over the best family alone, with its 95 % interval; `seconds`: to predict a case.
    """

    method: str
    members: dict[str, float]
    mean_dice: float
    gain: tuple[float, float, float]
    seconds: float


@dataclass(frozen=True)
class Selection:
    """The chosen ensemble.

    `mean_dice`: nested, post-processing included, over `n_cases`; `likelihood`: mean negative logarithm of the true
    class's probability, nested, before and after the temperature. `families`: those that were heard. `gains`: by label
    with post-processing, what it adds to its Dice, nested. `rows`: by case and label Dice and what is expected of it.
    """

    method: str
    weights: dict[str, float]
    temperature: float
    post_processing: dict[int, PostProcessing]
    candidates: tuple[Candidate, ...]
    mean_dice: float
    n_cases: int
    likelihood: tuple[float, float]
    families: tuple[str, ...] = ()
    gains: dict[int, float] = field(default_factory=dict)
    rows: tuple[dict[str, Any], ...] = ()

    @property
    def chosen(self) -> Candidate:
        return next(one for one in self.candidates if one.method == self.method)


def select(answers: Answers, methods: Methods, given: Weights | None = None, name: str = "") -> Selection:
    """The method with the best nested mean Dice, with temperature and post-processing; `given` are members that are
    chosen already, by the method `name`. NoResultError where fewer than FEWEST cases have answers.
    """
    if len(answers.cases) < FEWEST:
        raise NoResultError(f"{len(answers.cases)} cases with probabilities of all families are too few to choose by")
    ways = methods.all_of_them()
    if given is not None:
        if unheard := set(given) - {network.name for network in methods.networks}:
            raise NoResultError(f"too few probabilities are kept of {', '.join(sorted(unheard))}")
        ways = {BEST_FAMILY: ways[BEST_FAMILY], name: lambda cases: methods.trimmed(given, cases)}
    judged = {key: nested(answers, methods, way) for key, way in ways.items()}
    single = by_case(judged[BEST_FAMILY][1])
    candidates = []
    for key, way in ways.items():
        weights, own = way(answers.cases), by_case(judged[key][1])
        gain = bootstrap_mean([own[case] - single[case] for case in sorted(own.keys() & single.keys())])
        mean = round(mean_of(judged[key][1], answers.cases), 6)
        rounded = (round(gain[0], 6), round(gain[1], 6), round(gain[2], 6))
        candidates.append(Candidate(key, _rounded(weights), mean, rounded, round(methods.cost(weights), 3)))
    best = candidates[-1] if given is not None else max(candidates, key=lambda one: one.mean_dice)
    finish = _Finish(answers, methods.shares(best.members), judged[best.method][0])
    found = Selection(
        best.method,
        best.members,
        1.0,
        {},
        tuple(candidates),
        best.mean_dice,
        len(answers.cases),
        (math.nan, math.nan),
        answers.families,
    )
    try:  # what is found by the deadline counts
        temperature, likelihood = finish.temperature()
        found = replace(found, temperature=temperature, likelihood=likelihood)
        found = replace(found, rows=tuple(finish.rows(temperature, {})))
        rules, gains, scores = finish.post_processing(judged[best.method][1])
        rows = tuple(finish.rows(temperature, rules)) if rules else found.rows
        mean = round(mean_of(scores, answers.cases), 6)
        return replace(found, post_processing=rules, mean_dice=mean, gains=gains, rows=rows)
    except NoTimeError:
        return found


def _rounded(weights: Weights) -> Weights:
    """Weights that sum up to 1."""
    total = sum(weights.values())
    return {name: round(weight / total, 6) for name, weight in weights.items()}


class _Finish:
    """What follows once the families' shares are known; each part is judged with the shares that were chosen for it."""

    def __init__(self, answers: Answers, shares: Shares, parts: Sequence[Part]):
        self.answers, self.shares, self.parts = answers, shares, parts
        self.all_shares = list(dict.fromkeys([shares, *(part.shares for part in parts)]))

    def temperature(self) -> tuple[float, tuple[float, float]]:
        """(the temperature, or 1 where it makes cases that it was not fitted on no likelier; likelihoods, nested)."""
        drawn: dict[Shares, dict[str, tuple[calibration.Table, calibration.Table]]] = {}
        for shares in self.all_shares:
            drawn[shares] = {
                case: calibration.drawn(
                    self.answers.mixture(case, shares), self.answers.scored, len(self.answers.cases)
                )
                for case in self.answers.cases
            }
        before, after = [], []
        for part in self.parts:
            own = drawn[part.shares]
            found = calibration.fitted([own[case] for case in part.others])
            known = [own[case] for case in part.judged if len(own[case][0])]
            before += [calibration.likelihood(*one, 1.0) for one in known]
            after += [calibration.likelihood(*one, found) for one in known]
        if not before:
            return 1.0, (math.nan, math.nan)
        means = round(float(np.mean(before)), 6), round(float(np.mean(after)), 6)
        better = means[1] < (1 - SURER) * means[0]
        return (calibration.fitted(list(drawn[self.shares].values())) if better else 1.0), means

    def post_processing(
        self, plain: Mapping[str, Scores]
    ) -> tuple[dict[int, PostProcessing], dict[int, float], dict[str, Scores]]:
        """(rules by label, what each adds to its label's Dice, Dice by case with them): those that gain, nested.

        A label's voxels become background or take its place, so no other label can lose. Regions have no rules.
        """
        kept: dict[int, PostProcessing] = {}
        gains: dict[int, float] = {}
        scores = {case: dict(row) for case, row in plain.items()}
        if self.answers.scored.regions:
            return kept, gains, scores
        rules, known = Rules(self.answers), [self.answers.cases, *(part.others for part in self.parts)]
        every = {label: {rule for cases in known for rule in rules.of(label, cases)} for label in self.answers.keys}
        trials = {shares: Trial(self.answers, shares, every) for shares in self.all_shares}
        for label in self.answers.keys:
            rule = trials[self.shares].best(label, rules.of(label, self.answers.cases), self.answers.cases)
            found: dict[str, float] = {}
            changed: list[float] = []
            for part in self.parts:
                trial = trials[part.shares]
                by = trial.best(label, rules.of(label, part.others), part.others)
                changed += trial.gains(label, by, part.judged)
                found |= {case: trial.dice[label][case][by] for case in part.judged}
            if rule is not None and fmean(changed) >= GAIN:
                kept[label], gains[label] = rule, round(fmean(changed), 6)
                for case, value in found.items():
                    scores[case][str(label)] = value
        return kept, gains, scores

    def rows(self, temperature: float, rules: Mapping[int, PostProcessing]) -> list[dict[str, Any]]:
        """By case and label, Dice and what the probabilities expect of it, at the temperature."""
        found = []
        for case in self.answers.cases:
            mixture = self.answers.mixture(case, self.shares)
            decided = self.answers.decided(mixture.probabilities)
            mixture = at_temperature(mixture, temperature, bool(self.answers.scored.regions))
            hoped = expected(mixture, decided, self.answers.scored)
            decided = post_processed(decided, rules, mixture.voxel)
            for key, value in dice(mixture, decided, self.answers.scored).items():
                reached = None if math.isnan(value) else value
                found.append({"case": case, "label": int(key), "dice": reached, "expected": hoped[key]})
        return found


def at_temperature(mixture: Mixture, temperature: float, regions: bool) -> Mixture:
    """The mixture at a temperature, as the predictor has it."""
    p = mixture.probabilities
    if temperature == 1.0 or not p.size:
        return mixture
    changed = p.copy()
    if regions:
        open_ = p >= LEAST
        changed[open_] = calibration.tempered(np.stack([1 - p[open_], p[open_]], 1), temperature)[:, 1]
    else:
        open_ = p.max(0) >= LEAST
        some = p[:, open_]
        whole = np.concatenate([np.clip(1 - some.sum(0, keepdims=True), 0, 1), some]).T
        changed[:, open_] = calibration.tempered(whole, temperature)[:, 1:].T
    return mixture._replace(probabilities=changed)
