"""Ways of choosing an ensemble by what is known of some cases out of fold, and what each is worth on the others."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from autoseg.ensemble.answers import Answers, Scores, Shares, mean_of
from autoseg.ensemble.members import ALL, BEST_BY_FOLD, BEST_N

BEST_FAMILY, GREEDY = "best family", "greedy selection"
PARTS = 5  # of the cases: each is judged by what was chosen by the other parts
PICKS, PATIENCE = 15, 4  # of the greedy selection: most, and how many without a gain end it
Weights = dict[str, float]  # by a member's name


@dataclass(frozen=True)
class Network:
    """A trained network: its folder's name, family and fold, and seconds that it takes to predict a case."""

    name: str
    family: str
    fold: int
    seconds: float


class Methods:
    """Choosing among `networks`; of every method's choice so much is kept as predicts a case in `seconds`.

    MONAI's three ways, the networks of the best family alone, and greedy forward selection with replacement (Caruana et
    al., Ensemble selection from libraries of models, 2004) among families.
    """

    def __init__(self, answers: Answers, networks: Sequence[Network], n_best: int, seconds: float = math.inf):
        self.answers, self.n_best, self.seconds = answers, n_best, seconds
        self.networks = list(networks)
        self.of_family = {name: [n for n in networks if n.family == name] for name in answers.families}

    def all_of_them(self) -> dict[str, Callable[[Sequence[str]], Weights]]:
        """By name: members' weights by what cases say. Of equal ones the first is preferred."""
        ways = {
            BEST_FAMILY: self.best_family,
            BEST_BY_FOLD: self.by_fold,
            BEST_N: self.best_n,
            ALL: lambda cases: dict.fromkeys((n.name for n in self.networks), 1.0),
            GREEDY: self.greedy,
        }
        return {name: self._in_time(way) for name, way in ways.items()}

    def _in_time(self, way: Callable[[Sequence[str]], Weights]) -> Callable[[Sequence[str]], Weights]:
        return lambda cases: self.trimmed(way(cases), cases)

    def trimmed(self, weights: Weights, cases: Sequence[str]) -> Weights:
        """As many of these members as predict a case in time, one at least: from each family in turn, the one with the
        most weight first, of equal ones the one that cases say is better; weights of those that go pass to the others
        of their family.
        """
        chosen = [n for n in self.networks if n.name in weights]
        if sum(n.seconds for n in chosen) <= self.seconds:
            return weights
        whole = {f: sum(weights[n.name] for n in chosen if n.family == f) for f in self.of_family}
        values = {f: _rank(self._value({f: 1.0}, cases)) for f in whole}

        def turn(n: Network) -> tuple[int, float, float]:
            return [m for m in chosen if m.family == n.family].index(n), -whole[n.family], -values[n.family]

        turns = sorted(chosen, key=turn)
        kept: list[Network] = []
        for network in turns:
            if sum(n.seconds for n in kept) + network.seconds <= self.seconds:
                kept.append(network)
        kept = kept or [min(chosen, key=lambda n: n.seconds)]
        return {n.name: whole[n.family] / sum(m.family == n.family for m in kept) for n in kept}

    def shares(self, weights: Weights) -> Shares:
        """How much each family counts in an ensemble of these weights."""
        totals = {f: sum(weights.get(n.name, 0.0) for n in own) for f, own in self.of_family.items()}
        return self.answers.shares(totals)

    def cost(self, weights: Weights) -> float:
        """Seconds a case."""
        return sum(n.seconds for n in self.networks if n.name in weights)

    def best_family(self, cases: Sequence[str]) -> Weights:
        """All networks of the family with the best mean Dice."""
        best = max(self.answers.families, key=lambda name: _rank(self._value({name: 1.0}, cases)))
        return self._whole({best: 1.0})

    def by_fold(self, cases: Sequence[str]) -> Weights:
        """Of each fold the best network; where nothing is known of a fold's, that of the best family."""
        chosen = []
        overall = {name: self._value({name: 1.0}, cases) for name in self.answers.families}
        for fold in sorted({n.fold for n in self.networks}):
            own = [n for n in self.networks if n.fold == fold]
            seen = [case for case in cases if self.answers.fold[case] == fold]
            ranks = {n.name: self._value({n.family: 1.0}, seen) if seen else overall[n.family] for n in own}
            chosen.append(max(own, key=lambda n: _rank(ranks[n.name])).name)
        return dict.fromkeys(chosen, 1.0)

    def best_n(self, cases: Sequence[str]) -> Weights:
        """The `n_best` networks with the best mean Dice on what they have not seen."""
        ranks = {}
        for n in self.networks:
            seen = [case for case in cases if self.answers.fold[case] == n.fold]
            ranks[n.name] = self._value({n.family: 1.0}, seen or cases)
        ranked = sorted(self.networks, key=lambda n: (-_rank(ranks[n.name]), n.name))
        return dict.fromkeys((n.name for n in ranked[: self.n_best]), 1.0)

    def greedy(self, cases: Sequence[str]) -> Weights:
        """Families one after the other, again and again, the one that gains most; the shortest of the best so far."""
        counts: dict[str, float] = dict.fromkeys(self.answers.families, 0.0)
        best, best_value, since = dict(counts), -math.inf, 0
        for pick in range(PICKS):
            further = [{**counts, name: counts[name] + 1} for name in counts]
            values = self._values([self.trimmed(self._whole(some), cases) for some in further], cases)
            value, counts = max(zip(values, further, strict=True), key=lambda pair: pair[0])
            if pick == 0 or value > best_value + 1e-9:
                best, best_value, since = dict(counts), value, pick
            elif pick - since >= PATIENCE or len(counts) == 1:
                break
        return self._whole(best)

    def _whole(self, shares: dict[str, float]) -> Weights:
        """A family's share on all its networks alike."""
        return {n.name: shares[f] / len(own) for f, own in self.of_family.items() if shares.get(f) for n in own}

    def _value(self, shares: dict[str, float], cases: Sequence[str]) -> float:
        (scores,) = self.answers.scores([self.answers.shares(shares)])
        return mean_of(scores, cases)

    def _values(self, some: Sequence[Weights], cases: Sequence[str]) -> list[float]:
        return [_rank(mean_of(s, cases)) for s in self.answers.scores([self.shares(weights) for weights in some])]


def _rank(value: float) -> float:
    return -math.inf if math.isnan(value) else value


def parts(answers: Answers) -> Iterator[tuple[list[str], list[str]]]:
    """(cases to choose by, cases to judge by), PARTS times: every case is judged by once, all folds alike."""
    order = sorted(answers.cases, key=lambda case: (answers.fold[case], case))
    for part in range(min(PARTS, len(order))):
        judged = order[part::PARTS]
        yield [case for case in order if case not in judged], judged


@dataclass(frozen=True)
class Part:
    """Cases that are judged by what was chosen by the others: families' shares."""

    others: list[str]
    judged: list[str]
    shares: Shares


def nested(
    answers: Answers, methods: Methods, way: Callable[[Sequence[str]], Weights]
) -> tuple[list[Part], dict[str, Scores]]:
    """(the parts, with what a method chooses for each without it; Dice of every case by that choice)."""
    chosen = [Part(others, judged, methods.shares(way(others))) for others, judged in parts(answers)]
    found: dict[str, Scores] = {}
    for part in chosen:
        (scores,) = answers.scores([part.shares])
        found |= {case: scores[case] for case in part.judged}
    return chosen, found
