"""Sweeps replayed on a table of learning curves: every method of search meets the same trainings, in seconds.

A virtual clock runs two slots as a sweep does: a free slot asks Optuna at once, whatever runs on the other; a training
reports after each tenth of its budget and is told when its process ends, start-up and scores included; one that is
pruned keeps its slot for `STOP_SECONDS` more. Sampler, pruner and space are the sweep's own. The planned configuration
is the first trial.

The table holds trainings of some configurations only. So a suggestion is answered by the configuration nearest to it
that this sweep has not used yet, and Optuna is told of that one's parameters, not of those it suggested. Nearest: by
the sum over the parameters of |a - b| on the parameter's own scale, its range being 1 long; of a choice 1 where they
differ; `ALONE` of one that only one of the two has (Gower, A general coefficient of similarity, 1971). What follows:
- Every method draws without replacement from one pool, and all of them are at its best once it is used up. Costs up to
  half of the pool, full trainings, tell methods apart; later figures flatter whoever is behind.
- A sampler cannot go where the pool has nothing. With a few dozen points in as many dimensions as here the nearest one
  differs from what was wished for in most parameters: the table understates what a good sampler gains, and says of a
  pruner what it would gain.
- Random search is no even draw from the pool either: configurations at its edge are nearest to more suggestions.
The Wilcoxon pruner compares trials case by case over several folds, and the table is of one: it is not replayed.
"""

from __future__ import annotations

import csv
import heapq
import itertools
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import optuna
from optuna.trial import TrialState

from autoseg.hpo.domains import Choices, Domain, Scale
from autoseg.hpo.space import BoundSpace, read_space
from autoseg.hpo.study import make_pruner, make_sampler
from autoseg.hpo.sweep import STEPS

FAMILY = "segresnet"
TEMPLATE = Path(__file__).resolve().parents[1] / "algorithm_templates" / FAMILY
SLOTS = 2
STOP_SECONDS = 5.0  # until the slot of a pruned trial is free: no more is promised
ALONE = 0.5
PLAN = "plan: "  # begins the comment that holds the planned settings
CURVE = [f"dice_{10 * tenth}" for tenth in range(1, STEPS + 1)]
SCORES = [*CURVE, "final", "start_seconds", "train_seconds", "seconds"]


@dataclass(frozen=True)
class Row:
    """A training: Optuna's parameters, Dice after each tenth (NaN: none yet), final Dice, seconds from the start of its
    process until the first step, of training, and of the whole process."""

    parameters: dict[str, Any]
    curve: tuple[float, ...]
    final: float
    start: float
    trained: float
    seconds: float


@dataclass(frozen=True)
class Table:
    """`rows` by number, the planned configuration's the first; `space`: what they were drawn from."""

    rows: dict[int, Row]
    space: BoundSpace
    domains: Mapping[str, Domain]

    @property
    def best(self) -> float:
        return max(row.final for row in self.rows.values())

    @property
    def worst(self) -> float:
        return min(row.final for row in self.rows.values())

    @property
    def full(self) -> float:
        """Seconds of a full trial, on average."""
        return fmean(row.seconds for row in self.rows.values())

    def nearest(self, wanted: Mapping[str, Any], numbers: Mapping[int, Any]) -> int:
        """The one of these numbers whose parameters are nearest."""
        return min(numbers, key=lambda number: (self.distance(wanted, self.rows[number].parameters), number))

    def distance(self, one: Mapping[str, Any], other: Mapping[str, Any]) -> float:
        both = one.keys() & other.keys()
        apart = sum(_apart(self.domains[name], one[name], other[name]) for name in sorted(both))
        return apart + ALONE * len(one.keys() ^ other.keys())


def _apart(domain: Domain, one: Any, other: Any) -> float:
    if isinstance(domain, Choices):
        return float(one != other)
    numbers = domain.factor if isinstance(domain, Scale) else domain
    ends = (numbers.low, numbers.high, float(one), float(other))
    low, high, a, b = map(math.log, ends) if numbers.log else ends
    return abs(a - b) / (high - low)


def bind(plan: Mapping[str, Any]) -> tuple[BoundSpace, dict[str, Domain]]:
    """The family's own space around a plan, and its domains by Optuna's name."""
    space = read_space({FAMILY: TEMPLATE}).bound({FAMILY: plan})
    options = space.parameters[FAMILY].items()
    return space, {name + o.label: o.domain for name, some in options for o in some if not o.domain.single}


def read_table(path: Path) -> Table:
    """Raises SystemExit where the table is not of the present search space."""
    with open(path, newline="", encoding="utf-8") as file:
        lines = list(file)
    plan = next(line.removeprefix(f"# {PLAN}") for line in lines if line.startswith(f"# {PLAN}"))
    reader = csv.DictReader(line for line in lines if not line.startswith("#"))
    space, domains = bind(json.loads(plan))
    columns = set(reader.fieldnames or ()) - {"number", *SCORES}
    if columns != set(domains):
        other = ", ".join(sorted(columns ^ set(domains)))
        raise SystemExit(f"{path} is of another search space ({other}): make it again")
    return Table({int(found["number"]): _row(found, domains) for found in reader}, space, domains)


def _row(found: Mapping[str, str], domains: Mapping[str, Domain]) -> Row:
    numbers = {name: float(found[name] or "nan") for name in SCORES}
    parameters = {name: _value(domain, found[name]) for name, domain in domains.items() if found[name]}
    curve = tuple(numbers[name] for name in CURVE)
    return Row(parameters, curve, *(numbers[name] for name in SCORES[len(CURVE) :]))


def _value(domain: Domain, cell: str) -> Any:
    if isinstance(domain, Choices):
        return next(value for value in domain.points() if str(value) == cell)
    return int(cell) if not isinstance(domain, Scale) and domain.whole else float(cell)


class Replay:
    """One sweep over the table. `scores`: (cost in full trials, best final Dice so far), as trials are done."""

    def __init__(self, table: Table, sampler: Any, pruner: Any, seed: int):
        self.table, self.left = table, dict.fromkeys(table.rows)
        self.study = optuna.create_study(
            study_name="replay",  # Hyperband's brackets hang on the name
            direction="maximize",
            sampler=make_sampler(sampler, seed, table.space.grid),
            pruner=make_pruner(pruner, STEPS),
        )
        self.scores = [(0.0, table.worst)]
        self.begun = self.pruned = 0

    def run(self, budget: float) -> Replay:
        """Until `budget` full trials are spent, or every configuration of the table is used."""
        order = itertools.count()
        running: list[tuple[float, int, Iterator[float]]] = []
        for _ in range(SLOTS):
            heapq.heappush(running, (0.0, next(order), iter(())))
        end = budget * self.table.full / SLOTS
        while running and running[0][0] <= end:
            now, _, trial = heapq.heappop(running)
            self.now = now
            until = next(trial, None)
            if until is None and self.left:
                trial = self._trial(now, *self._ask())
                until = next(trial)
            if until is not None:
                heapq.heappush(running, (until, next(order), trial))
        return self

    def _ask(self) -> tuple[optuna.Trial, Row]:
        """A trial that Optuna asks for, as near as the table comes to it."""
        number = min(self.left)
        if self.begun:
            wish = self.study.ask()
            self.table.space.suggest(wish)
            number = self.table.nearest(wish.params, self.left)
            self.study.tell(wish, state=TrialState.FAIL)  # which samplers pass over
        del self.left[number]
        row = self.table.rows[number]
        self.study.enqueue_trial(row.parameters)
        handle = self.study.ask()
        self.table.space.suggest(handle)
        assert handle.params == row.parameters
        self.begun += 1
        return handle, row

    def _trial(self, began: float, handle: optuna.Trial, row: Row) -> Iterator[float]:
        """When something happens to a trial next; what that is, is done once that time has come."""
        for tenth, value in enumerate(row.curve, 1):
            yield began + row.start + row.trained * tenth / STEPS
            if not math.isnan(value):
                handle.report(value, tenth)
                if tenth < STEPS and handle.should_prune():
                    self.study.tell(handle, state=TrialState.PRUNED)
                    self.pruned += 1
                    yield self.now + STOP_SECONDS
                    return
        yield began + row.seconds
        self.study.tell(handle, row.final)
        cost = SLOTS * self.now / self.table.full
        self.scores.append((cost, max(row.final, self.scores[-1][1])))


@dataclass(frozen=True)
class Outcome:
    """Of a method: mean best final Dice over the seeds at each of the costs, trials begun and pruned, on average."""

    scores: np.ndarray
    begun: float
    pruned: float


def replay(table: Table, sampler: Any, pruner: Any, seeds: int, costs: np.ndarray) -> Outcome:
    """A method over all seeds; `costs`: in full trials, ascending, the last one the budget."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    runs = [Replay(table, sampler, pruner, seed).run(float(costs[-1])) for seed in range(seeds)]
    by_seed = []
    for run in runs:
        times, best = zip(*run.scores, strict=True)
        by_seed.append(np.array(best)[np.searchsorted(times, costs, side="right") - 1])
    return Outcome(np.mean(by_seed, axis=0), fmean(r.begun for r in runs), fmean(r.pruned for r in runs))


def reaches(outcome: Outcome, score: float, costs: np.ndarray) -> float:
    """The cost at which the mean score is `score`, as a share of the budget; infinite where it is never."""
    there = np.flatnonzero(outcome.scores >= score - 1e-12)
    return float(costs[there[0]] / costs[-1]) if len(there) else math.inf
