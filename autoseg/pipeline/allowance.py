"""How long a sweep may take, how long each of its trials trains, and what can still begin."""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from autoseg.errors import Fault, InputError
from autoseg.hpo.sweep import JOB_SECONDS
from autoseg.pipeline.clock import Clock
from autoseg.pipeline.pace import prediction_seconds
from autoseg.pipeline.session import Session
from autoseg.records import Case, Slot
from autoseg.workspace import read_json, write_json

TRIALS = 30  # where nothing says how many
START_SECONDS = 30.0  # of a training, for its process and the scores at its end, until some are known
A_CASE = 0.5  # seconds to predict a case by one network on a slot, until some were
SHORTEST = 20.0  # seconds of a trial's training
SPARE = 0.05  # of the time: trainings and cases differ
BUDGET = ("num_epochs", "num_iterations", "max_seconds")
TERMS = "terms.json"  # in hpo/: study, storage, a token of its own, the trials' budget; later calls keep to it


class Allowance:
    """Counts a sweep's time and gives its trials their budget.

    `scores`: of the trainings that ended, by (trial, fold), as the sweep knows them. A training beside others takes a
    slot; a race needs as many as both of its trials may lack.
    """

    def __init__(self, session: Session, slots: Sequence[Slot], held_out: Sequence[Case], folds: int, race_folds: int):
        config, asked = session.config, session.config.hpo_params
        self.session, self.slots, self.held_out = session, slots, held_out
        self.folds, self.race_folds = folds, max(folds, race_folds)
        self.scores: Mapping[tuple[int, int], Mapping[str, Any]] = {}
        self.path = session.workspace.hpo / TERMS
        self.record: dict[str, Any] = read_json(self.path) if self.path.is_file() else {}
        self.own: Clock | None = None
        if asked.time_limit or (config.hpo and session.clock is not None):
            half = session.clock.limit / 2 if session.clock is not None else 0.0  # of a run's time, where none is said
            self.own = Clock(asked.time_limit or half, session.workspace.hpo / "clock.json")
            session.clocks.append(self.own)
        self.clock = self.own or session.clock
        self._refuse_another_study()
        self.token = str(self.record.get("token") or secrets.token_hex(4))
        self.budget = self._budget()

    def _refuse_another_study(self) -> None:
        """Trials of two studies would have the same folders."""
        asked = self.session.config.hpo_params
        wanted = {"study": asked.study, "storage": asked.storage}
        for key, value in wanted.items():
            if self.record and self.record.get(key) != value:
                message = (
                    f"the work_dir holds trials of {key} {self.record.get(key)}, not {value}: give another work_dir"
                )
                raise InputError([Fault(str(self.path), key, message)])

    def keep(self) -> None:
        """Write the terms, which later calls keep to."""
        asked = self.session.config.hpo_params
        kept = {"study": asked.study, "storage": asked.storage, "token": self.token, "budget": self.budget}
        write_json(self.path, kept)

    def _budget(self) -> dict[str, Any]:
        """How long a trial trains, as hyper-parameters over the planned ones."""
        config, asked = self.session.config, self.session.config.hpo_params
        unbound = dict.fromkeys(BUDGET)
        if asked.trial_steps:
            return {**unbound, "num_iterations": asked.trial_steps}
        if asked.trial_minutes:
            return {**unbound, "max_seconds": round(60 * asked.trial_minutes, 1)}
        if any(map(config.says, BUDGET)):
            return {}
        if self.record:
            return dict(self.record.get("budget") or {})
        return {} if self.clock is None else {**unbound, "max_seconds": self._seconds(self.clock.limit)}

    def _seconds(self, limit: float) -> float:
        """Of a trial's training, so that those asked for, one race and the comparison at the end fit the limit."""
        trainings = (self.session.config.hpo_params.n_trials or TRIALS) * self.folds
        usable, least = (1 - SPARE) * limit - self.closing(), SHORTEST + START_SECONDS
        rounds = math.ceil(trainings / len(self.slots)) + self._race_rounds()
        rounds = min(rounds, int(usable / least))
        if rounds < 1 + self._race_rounds():
            needed = (least * (1 + self._race_rounds()) + self.closing()) / (1 - SPARE)
            message = f"{limit:.0f} s are too short: a sweep of these data needs {needed:.0f} s at least"
            raise InputError([Fault("", "time_limit", message)])
        return round(usable / rounds - START_SECONDS, 1)

    def _race_rounds(self) -> int:
        """How often all slots are filled by what two trials may lack of a race."""
        return math.ceil(2 * (self.race_folds - self.folds) / len(self.slots))

    @property
    def left(self) -> float:
        clocks = [clock for clock in (self.clock, self.session.clock) if clock is not None]
        return min((clock.left for clock in clocks), default=math.inf)

    def in_time(self, further: bool) -> bool:
        """Whether a training that starts now is over early enough, and behind a further trial a race.

        Where no trial is done yet, the first ones begin as long as they can end.
        """
        rounds = 1 + self._race_rounds() if further and self.scores else 1
        return self.left > rounds * self.typical() + self.closing()

    def deadline(self) -> float:
        """When trainings must be over, come what may; seconds since the epoch."""
        return time.time() + self.left - self.closing()

    def typical(self) -> float:
        """Seconds of a training, its process and its scores included: four of five are no longer."""
        seconds = sorted(map(job_seconds, self.scores.values()))
        if seconds:
            return seconds[int(0.8 * (len(seconds) - 1) + 0.5)]
        return float(self.budget.get("max_seconds") or 0.0) + START_SECONDS

    def closing(self) -> float:
        """Seconds of the comparison: cases held out, predicted by two ensembles and scored, and the files."""
        known = [float(found.get("seconds_a_case") or A_CASE) for found in self.scores.values()]
        a_case = fmean(known) if known else A_CASE
        fixed, times = prediction_seconds(self.session, self.held_out, self.slots)
        return 10.0 + 2 * (fixed + times * self.race_folds * a_case)


def job_seconds(found: Mapping[str, Any]) -> float:
    """Of a training, its process included, by its scores; as far as they say it, where it is one of an earlier call."""
    if JOB_SECONDS in found:
        return float(found[JOB_SECONDS])
    cases = len({row["case"] for row in found["cases"]})
    parts = (found.get("start_seconds", 0.0), found.get("seconds", 0.0), cases * (found.get("seconds_a_case") or 0.0))
    return float(sum(map(float, parts)))
