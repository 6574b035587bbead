"""A sweep at work: asks Optuna for trials, has them trained as jobs, ends bad ones early, tells how they went.

A trial is trained on its own folds, one after another, and is told when the last one is done. One that leads is then
trained on further folds and compared with the best one (see `race`), which Optuna hears nothing of.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from autoseg.errors import InputError
from autoseg.execution import Feed
from autoseg.hpo.bound import PLANNED, BoundSpace
from autoseg.hpo.objectives import Objective
from autoseg.hpo.race import Race
from autoseg.hpo.study import points_left
from autoseg.records import Event, Job, JobResult
from autoseg.workspace import read_json, read_keys, write_json

STEPS = 10  # reports of a training to Optuna: tenths of its budget
JOB_SECONDS = "job_seconds"  # added to the scores of a training: of its process


@dataclass(frozen=True)
class Asked:
    """`trials/<number>/trial.json`: what Optuna asked for. `overrides`: hyper-parameters over the planned ones."""

    number: int
    family: str
    overrides: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Terms:
    """How far a sweep goes. `n_trials`: of the study; `folds`: on which a trial is trained; `race_folds`: with those of
    the race; `in_time(further)`: whether a training that starts now ends in time, a further trial or one of the race.
    """

    n_trials: float = math.inf
    folds: int = 1
    race_folds: int = 1
    in_time: Callable[[bool], bool] = lambda further: True


class Sweep(Feed):
    """Feeds a scheduler with the trainings of trials. `folder`: the run's hpo/."""

    def __init__(
        self,
        study: optuna.Study,
        space: BoundSpace,
        objectives: Sequence[Objective],
        folder: Path,
        make_job: Callable[[Asked, int], Job],
        terms: Terms,
        notify: Callable[[Event], None],
    ):
        """`make_job(asked, fold)` writes the bundle of a trial and gives its job; an InputError fails the trial."""
        self.study, self.space, self.objectives, self.folder = study, space, tuple(objectives), folder
        self.make_job, self.terms, self.notify = make_job, terms, notify
        self.asked: dict[int, Asked] = {}
        self.scores: dict[tuple[int, int], dict[str, Any]] = {}
        self.lost: set[tuple[int, int]] = set()  # trainings of the race that failed
        self.race = Race(max(terms.folds, terms.race_folds), self._by_case)
        self._handles: dict[int, optuna.Trial] = {}
        self._waiting: list[tuple[int, int]] = []  # trainings of trials that go on
        self._running: dict[str, tuple[int, int]] = {}  # by job
        self._enqueue_defaults()
        self._take_up()

    def bundle(self, number: int, fold: int) -> Path:
        """Where the bundle of a trial's training on a fold stands."""
        return self.home(number) / f"{self.asked[number].family}_{fold}"

    def home(self, number: int) -> Path:
        return self.folder / "trials" / f"{number:04d}"

    # what the scheduler asks

    def next(self) -> Job | None:
        while True:
            wanted = self._wanted()
            if wanted is None:
                return None
            number, fold = wanted
            try:
                job = self.make_job(self.asked[number], fold)
            except InputError as error:
                self._failed(number, fold, str(error))
                continue
            self._running[job.id] = wanted
            return job

    def finished(self) -> bool:
        return not self._running and not self._waiting and not self._race_wants() and not self._may_ask()

    def unwanted(self, job: Job, progress: Sequence[Mapping[str, Any]]) -> str | None:
        number, fold = self._running[job.id]
        if fold >= self.terms.folds or len(self.objectives) > 1 or self._by_cases:
            return None
        handle, known = self._handles[number], self._trial(number).intermediate_values
        tenth = 0
        for line in progress:
            tenth = _tenth(line)
            value = self.objectives[0].reported(line.get("dice") or {})
            step = STEPS * fold + tenth
            if step not in known and not math.isnan(value):
                handle.report(value, step)
        if 0 < tenth < STEPS and handle.should_prune():
            pruner = type(self.study.pruner).__name__
            return f"at {10 * tenth} % of its training its Dice is too low beside other trials' ({pruner})"
        return None

    def ended(self, job: Job, result: JobResult) -> None:
        number, fold = self._running.pop(job.id)
        if result.status == "done":
            self._scored(number, fold, result.seconds)
            self._tidy(self.bundle(number, fold), keep=True)
        elif result.status == "stopped":
            self._tidy(self.bundle(number, fold), keep=False)
            self._tell(number, TrialState.PRUNED, str(result.error))
        else:
            self._failed(number, fold, str(result.error or result.status))

    # what comes next

    def _wanted(self) -> tuple[int, int] | None:
        """The next training: of a trial that goes on, of the race, or of a new trial."""
        if self._waiting:
            return self._waiting.pop(0)
        raced = self._race_wants()
        if raced:
            return raced[0]
        return (self._ask(), 0) if self._may_ask() else None

    def _race_wants(self) -> list[tuple[int, int]]:
        """Trainings of the race that do not run yet, as far as time allows."""
        wanted, before = list[tuple[int, int]](), object()
        while not wanted and before != (len(self.race.verdicts), self.race.incumbent):
            before = (len(self.race.verdicts), self.race.incumbent)
            if self.race.incumbent is None:
                self.race.incumbent = self.default()
            wanted = self.race.settle(self.ranked(), lambda number, fold: (number, fold) in self.lost)
        running = set(self._running.values())
        return [one for one in wanted if one not in running and self.terms.in_time(False)]

    def _may_ask(self) -> bool:
        begun = [t for t in self.study.get_trials(deepcopy=False) if t.state is not TrialState.WAITING]
        return len(begun) < self.terms.n_trials and points_left(self.study) and self.terms.in_time(True)

    def _ask(self) -> int:
        handle = self.study.ask()
        suggested = self.space.suggest(handle)
        # the default is the plan itself, even where the space does not hold it
        overrides = {} if PLANNED in handle.user_attrs else suggested.overrides
        asked = Asked(handle.number, suggested.family, overrides)
        self.asked[handle.number], self._handles[handle.number] = asked, handle
        write_json(self.home(handle.number) / "trial.json", asked)
        return handle.number

    def _enqueue_defaults(self) -> None:
        """The planned configuration of every family comes first."""
        if not self.study.get_trials(deepcopy=False):
            for family in self.space.families:
                self.study.enqueue_trial(self.space.default(family), user_attrs={PLANNED: family})

    def _take_up(self) -> None:
        """The trials of earlier calls: those that were running go on, or are told as failed where that cannot be."""
        for trial in self.study.get_trials(deepcopy=False):
            path = self.home(trial.number) / "trial.json"
            try:
                number, family, overrides = read_keys(path, "number", "family", "overrides")
                self.asked[trial.number] = Asked(int(number), str(family), dict(overrides))
            except (InputError, TypeError, ValueError):
                if trial.state is TrialState.RUNNING:
                    self._tell(trial.number, TrialState.FAIL, f"cut off before {path} was written")
                continue
            for fold in range(self.race.folds):
                scores = self.bundle(trial.number, fold) / "scores.json"
                if trial.state is TrialState.COMPLETE and scores.is_file():
                    self.scores[trial.number, fold] = read_json(scores)
            if trial.state is TrialState.RUNNING:
                self._handles[trial.number] = optuna.Trial(self.study, trial._trial_id)
                self._waiting.append((trial.number, 0))

    # how it went

    def _scored(self, number: int, fold: int, seconds: float) -> None:
        """A training is done: the trial goes on to its next fold, or is told."""
        found = {**read_json(self.bundle(number, fold) / "scores.json"), JOB_SECONDS: seconds}
        self.scores[number, fold] = found
        if fold >= self.terms.folds:
            return  # of the race
        if fold + 1 < self.terms.folds:
            if self._by_cases and self._hopeless(number, fold):
                self._tell(number, TrialState.PRUNED, f"worse than the best trial by its cases, after {fold + 1} folds")
            else:
                self._waiting.insert(0, (number, fold + 1))
            return
        all_own = [self.scores[number, own] for own in range(self.terms.folds)]
        values = [objective.value(all_own) for objective in self.objectives]
        handle = self._handles[number]
        for key in ("mean_dice", "steps", "seconds", "seconds_a_case", "memory"):
            handle.set_user_attr(key, fmean(float(one.get(key) or math.nan) for one in all_own))
        if any(map(math.isnan, values)):
            self._tell(number, TrialState.FAIL, "no validation case has a value")
        else:
            self._tell(number, TrialState.COMPLETE, "", values)

    @staticmethod
    def _tidy(bundle: Path, keep: bool) -> None:
        """Of many trials only what may be used again stays: the best weights, if at all, and the records."""
        for path in (bundle / "models").glob("*.pt"):
            if path.name != "model.pt" or not keep:
                path.unlink(missing_ok=True)
        shutil.rmtree(bundle / "validation", ignore_errors=True)

    def _hopeless(self, number: int, fold: int) -> bool:
        """Report a fold's cases, each a step of its own, to a pruner that compares by cases; whether it gives up."""
        handle, cases = self._handles[number], self.objectives[0].by_case([self.scores[number, fold]])
        first = sum(len(self.objectives[0].by_case([self.scores[number, f]])) for f in range(fold))
        for place, case in enumerate(sorted(cases), first):
            sign = 1.0 if self.objectives[0].direction == "maximize" else -1.0
            handle.report(sign * cases[case], place)
        return handle.should_prune()

    def _failed(self, number: int, fold: int, error: str) -> None:
        if fold < self.terms.folds:
            self._tell(number, TrialState.FAIL, error)
        else:
            self.lost.add((number, fold))

    def _tell(self, number: int, state: TrialState, error: str, values: list[float] | None = None) -> None:
        """Tell Optuna, and whoever listens."""
        handle = optuna.Trial(self.study, self._trial(number)._trial_id)
        if error:
            handle.set_user_attr("error", error)
        self.study.tell(number, values, state)
        name, family = f"trial {number}", self.asked[number].family if number in self.asked else "?"
        facts = {"number": number, "family": family, "state": state.name, "values": values, "error": error or None}
        said = {TrialState.PRUNED: "ended early", TrialState.FAIL: "failed"}.get(state, "")
        if values:
            pairs = zip(self.objectives, values, strict=True)
            said = ", ".join(f"{objective.name} {value:.4g}" for objective, value in pairs)
        parts = [name, said, *error.splitlines()[:1]]
        self.notify(Event("trial", ": ".join(part for part in parts if part), facts))

    def ranked(self) -> list[int]:
        """Trials that are done and whose scores are at hand, by the first objective, best first."""
        sign = -1.0 if self.objectives[0].direction == "maximize" else 1.0
        done = [
            (sign * t.values[0], t.number)
            for t in self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
            if (t.number, 0) in self.scores
        ]
        return [number for _, number in sorted(done)]

    def default(self) -> int | None:
        """The first family's planned configuration, once it is done."""
        ranked = self.ranked()
        planned = (t for t in self.study.get_trials(deepcopy=False) if t.number in ranked and PLANNED in t.user_attrs)
        return next((t.number for t in planned if t.user_attrs[PLANNED] == self.space.families[0]), None)

    def _by_case(self, number: int, fold: int) -> dict[str, float] | None:
        found = self.scores.get((number, fold))
        return None if found is None else self.objectives[0].by_case([found])

    def _trial(self, number: int) -> FrozenTrial:
        return self.study.get_trials(deepcopy=False)[number]

    @property
    def _by_cases(self) -> bool:
        return isinstance(self.study.pruner, optuna.pruners.WilcoxonPruner)


def _tenth(line: Mapping[str, Any]) -> int:
    """At which tenth of its budget a training is, by a line of its metrics.jsonl."""
    shares = [
        float(line[done]) / float(line[whole])
        for done, whole in (("step", "num_iterations"), ("seconds", "max_seconds"))
        if line.get(done) and line.get(whole)
    ]
    return min(STEPS, max(1, round(STEPS * max(shares, default=0.0))))
