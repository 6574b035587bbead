"""A sweep at work: asks Optuna for trials, hands them to the scheduler as jobs, ends bad ones early, tells of them.

A trial is trained on its own folds, one after another, and is told when the last one is done. One that leads is then
trained on further folds and compared with the best one (see `race`), which Optuna hears nothing of.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from autoseg.errors import Fault, InputError, one_line
from autoseg.execution import Feed
from autoseg.hpo.bound import PLANNED, BoundSpace
from autoseg.hpo.objectives import Objective
from autoseg.hpo.race import Race
from autoseg.hpo.study import points_left
from autoseg.records import Event, Job, JobResult
from autoseg.workspace import read_json, read_keys, write_json

RACE = "race"  # the study's user attribute with the verdicts
BARREN = 10  # trials in a row that come to nothing: no further one is asked for
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
    the race; `in_time(further)`: whether a training that starts now ends in time, a further trial or one of the race;
    `whole(bundle, scores)`: whether a training had all of its budget.
    """

    n_trials: float = math.inf
    folds: int = 1
    race_folds: int = 1
    in_time: Callable[[bool], bool] = lambda further: True
    whole: Callable[[Path, Mapping[str, Any]], bool] = lambda bundle, scores: True


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
        """`make_job(asked, fold)` writes the bundle of a trial and gives its job; where it cannot, the trial fails."""
        self.study, self.space, self.objectives, self.folder = study, space, tuple(objectives), folder
        self.make_job, self.terms, self.notify = make_job, terms, notify
        self.asked: dict[int, Asked] = {}
        self.scores: dict[tuple[int, int], dict[str, Any]] = {}
        self.lost: set[tuple[int, int]] = set()  # trainings of the race that failed
        self.race = Race(max(terms.folds, terms.race_folds), self._by_case)
        self._handles: dict[int, optuna.Trial] = {}
        self._waiting: list[tuple[int, int]] = []  # trainings of trials that go on
        self._running: dict[str, tuple[int, int]] = {}  # by job
        self._raced: list[tuple[int, int]] | None = None  # what the race wants, until something changes
        self._barren = 0  # trials in a row that failed, or that a callable gave up
        self._take_up()
        self._enqueue_defaults()

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
            except (InputError, ValueError, LookupError, TypeError, ArithmeticError) as error:
                # nothing that a space suggests may end the sweep, or block it when it is taken up again
                self._failed(number, fold, str(error) if isinstance(error, InputError) else one_line(error))
                continue
            self._running[job.id] = wanted
            return job

    def finished(self) -> bool:
        return not self._running and not self._waiting and not self._race_wants() and not self._may_ask()

    def unwanted(self, job: Job, progress: Sequence[Mapping[str, Any]]) -> str | None:
        number, fold = self._running[job.id]
        if fold >= self.terms.folds or len(self.objectives) > 1 or self._by_cases:
            return None
        handle, known = self._handles[number], set(self._trial(number).intermediate_values)
        tenth = 0
        for line in progress:
            tenth = _tenth(line)
            value = self.objectives[0].reported(line.get("dice") or {})
            step = STEPS * fold + tenth
            if step not in known and not math.isnan(value):
                handle.report(value, step)
                known.add(step)
        if 0 < tenth < STEPS and not self._is_default(number) and handle.should_prune():
            pruner = type(self.study.pruner).__name__
            return f"at {10 * tenth} % of its training its Dice is too low beside other trials' ({pruner})"
        return None

    def ended(self, job: Job, result: JobResult) -> None:
        number, fold = self._running.pop(job.id)
        self._raced = None
        if result.status == "done":
            self._tidy(self.bundle(number, fold), keep=True)
            self._scored(number, fold, result.seconds)
        elif result.status == "stopped":
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
        while self._may_ask():
            number = self._ask()
            if number is not None:
                return number, 0
        return None

    def _race_wants(self) -> list[tuple[int, int]]:
        """Trainings of the race that do not run yet, as far as time allows."""
        if self._raced is None:
            self._raced = self._settled()
        running = set(self._running.values())
        return [one for one in self._raced if one not in running and self.terms.in_time(False)]

    def _settled(self) -> list[tuple[int, int]]:
        """Let the race decide all that it can; what must be trained for the next decision."""
        if self.race.incumbent is None:
            self.race.incumbent = self.default()
        ranked, known, before = self.ranked(), len(self.race.verdicts), -1
        wanted: list[tuple[int, int]] = []
        while not wanted and before < len(self.race.verdicts):
            before = len(self.race.verdicts)
            wanted = self.race.settle(ranked, lambda number, fold: (number, fold) in self.lost)
        if known < len(self.race.verdicts):
            self.study.set_user_attr(RACE, self.race.plain())
        return wanted

    def _may_ask(self) -> bool:
        if self._barren >= BARREN:
            return False
        trials = self.study.get_trials(deepcopy=False)
        waiting = [t for t in trials if t.state is TrialState.WAITING]
        more = len(trials) - len(waiting) < self.terms.n_trials and points_left(self.study)
        # a default that failed in an earlier call is tried again, however many trials there are
        again = any(PLANNED in t.user_attrs for t in waiting)
        return (more or again) and self.terms.in_time(True)

    def _ask(self) -> int | None:
        """A new trial; None where a callable fails or gives it up, of which it is told."""
        handle = self.study.ask()
        self._handles[handle.number] = handle
        try:
            suggested = self.space.suggest(handle)
        except InputError as error:
            self._tell(handle.number, TrialState.FAIL, str(error))
            return None
        except optuna.TrialPruned as error:
            self._tell(handle.number, TrialState.PRUNED, str(error) or "given up by the space's callable")
            return None
        except ValueError as error:  # Optuna's storages keep the choices of a parameter
            self._tell(handle.number, TrialState.FAIL, str(error))
            message = f"differs from that of the study's earlier trials: {error} Give another work_dir"
            raise InputError([Fault("", "space", message)]) from error
        # the default is the plan itself, even where the space does not hold it
        overrides = {} if PLANNED in handle.user_attrs else suggested.overrides
        self.asked[handle.number] = asked = Asked(handle.number, suggested.family, overrides)
        write_json(self.home(handle.number) / "trial.json", asked)
        return handle.number

    def _enqueue_defaults(self) -> None:
        """The planned configuration of every family comes first; once more where it failed in an earlier call."""
        trials = self.study.get_trials(deepcopy=False)
        there = {t.user_attrs.get(PLANNED) for t in trials if t.state is not TrialState.FAIL}
        for family in (name for name in self.space.families if name not in there):
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
                    self._tidy(scores.parent, keep=True)
            if trial.state is TrialState.RUNNING:
                self._handles[trial.number] = optuna.Trial(self.study, trial._trial_id)
                self._waiting.append((trial.number, 0))
        verdicts = self.study.user_attrs.get(RACE, [])
        if {row[0] for row in verdicts} <= set(self.ranked()):
            self.race.recall(verdicts)

    # how it went

    def _scored(self, number: int, fold: int, seconds: float) -> None:
        """A training is done: the trial goes on to its next fold, or is told."""
        try:
            found = read_json(self.bundle(number, fold) / "scores.json")
        except InputError as error:
            self._failed(number, fold, str(error))
            return
        if not self.terms.whole(self.bundle(number, fold), found):
            self._failed(number, fold, "cut short by the time limit")
            return
        self.scores[number, fold] = {**found, JOB_SECONDS: seconds}
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
        for key in ("mean_dice", "steps", "seconds", "seconds_a_case", "memory"):
            known = [float(one[key]) for one in all_own if one.get(key) is not None]
            if known:
                self._handles[number].set_user_attr(key, fmean(known))
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
        handle, objective = self._handles[number], self.objectives[0]
        folds = [sorted({str(row["case"]) for row in self.scores[number, f]["cases"]}) for f in range(fold + 1)]
        values, known = objective.by_case([self.scores[number, fold]]), self._trial(number).intermediate_values
        sign = 1.0 if objective.direction == "maximize" else -1.0
        # a case without a value keeps its place: other trials may have one of it
        for place, case in enumerate(folds[fold], sum(map(len, folds[:fold]))):
            if case in values and place not in known:
                handle.report(sign * values[case], place)
        return not self._is_default(number) and handle.should_prune()

    def _failed(self, number: int, fold: int, error: str) -> None:
        if fold < self.terms.folds:
            self._tell(number, TrialState.FAIL, error)
        else:
            self.lost.add((number, fold))
            self._tidy(self.bundle(number, fold), keep=False)
            self._raced = None

    def _tell(self, number: int, state: TrialState, error: str, values: list[float] | None = None) -> None:
        """Tell Optuna, and whoever listens."""
        if error:
            handle = self._handles.get(number) or optuna.Trial(self.study, self._trial(number)._trial_id)
            handle.set_user_attr("error", error)
        self.study.tell(number, values, state)
        self._raced = None
        name, family = f"trial {number}", self.asked[number].family if number in self.asked else "?"
        facts = {"number": number, "family": family, "state": state.name, "values": values, "error": error or None}
        said = {TrialState.PRUNED: "ended early", TrialState.FAIL: "failed"}.get(state, "")
        if values:
            pairs = zip(self.objectives, values, strict=True)
            said = ", ".join(f"{objective.name} {value:.4g}" for objective, value in pairs)
        if error:
            said += f": {error.splitlines()[0]}"
        self.notify(Event("trial", f"{name}: {said}", facts))
        if state is not TrialState.COMPLETE and number in self.asked:
            for fold in range(self.terms.folds):
                self._tidy(self.bundle(number, fold), keep=False)
        self._barren = self._barren + 1 if state is TrialState.FAIL or number not in self.asked else 0
        if self._barren == BARREN:
            self.notify(Event("warning", f"{BARREN} trials in a row came to nothing: no further one is asked for"))

    def undecided(self) -> bool:
        """Whether a trial leads whose race is not over, for want of time."""
        return bool(self._settled())

    def forget_weights(self, kept: Collection[int]) -> None:
        """Delete the weights of all trials but those `kept`: they will not predict any more."""
        for number, fold in self.scores:
            if number not in kept:
                self._tidy(self.bundle(number, fold), keep=False)

    def ranked(self) -> list[int]:
        """Trials that are done and whose scores are at hand, by the first objective, best first."""
        sign = -1.0 if self.objectives[0].direction == "maximize" else 1.0
        done = [
            (sign * t.values[0], t.number)
            for t in self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
            if all((t.number, fold) in self.scores for fold in range(self.terms.folds))
        ]
        return [number for _, number in sorted(done)]

    def default(self) -> int | None:
        """The first family's planned configuration, once it is done."""
        return next(filter(self._is_default, self.ranked()), None)

    def _is_default(self, number: int) -> bool:
        return self._trial(number).user_attrs.get(PLANNED) == self.space.families[0]

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
