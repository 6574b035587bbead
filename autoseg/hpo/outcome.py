"""What a sweep leaves to be read: the table of its trials, the Pareto front, importances and pictures."""

from __future__ import annotations

import csv
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from autoseg.workspace import atomic_file, write_json

FEWEST, TOP = 10, 5  # trials: with fewer there are no importances; at least so many are the best


@dataclass(frozen=True)
class Outcome:
    """The files that were written, and the reasons why others were not, by file name ("trials.csv", "history.png")."""

    files: dict[str, Path] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    def add(self, path: Path) -> None:
        """Counts a file among those written."""
        self.files[path.name] = path


def write_outcome(study: optuna.Study, folder: Path, objectives: Sequence[str], default: int | None = 0) -> Outcome:
    """Writes `trials.csv`, `pareto.csv` (of two objectives), `importances.json` and `pictures/*.png` into `folder`.

    `objectives`: the names of the study's objectives, in order. `default`: the trial that pictures mark as the one with
    the planned settings. Errors of the file system come through; what the trials do not suffice for is left out.
    """
    outcome = Outcome()
    trials = study.get_trials(deepcopy=False)
    outcome.add(_write_table(folder / "trials.csv", trials, trials, objectives))
    if len(objectives) > 1:
        outcome.add(_write_table(folder / "pareto.csv", study.best_trials, trials, objectives))
    shares: Mapping[str, float] = {}
    try:
        shares = importances(study)
    except ValueError as error:
        outcome.left_out["importances.json"] = str(error)
    else:
        write_json(folder / "importances.json", {"importances": shares})
        outcome.add(folder / "importances.json")
    try:
        from autoseg.hpo.pictures import History, draw
    except ImportError as error:
        outcome.left_out["pictures"] = f"{error.name} is not installed: pip install 'autoseg[sweeps]'"
        return outcome
    directions = [direction.name.lower() for direction in study.directions]
    drawn, left_out = draw(History(trials, tuple(objectives), directions, shares, default), folder / "pictures")
    for path in drawn:
        outcome.add(path)
    outcome.left_out.update(left_out)
    return outcome


def importances(study: optuna.Study) -> dict[str, float]:
    """The share of each parameter in how far a trial is among the best, largest first; they sum to 1.

    By PED-ANOVA (Watanabe et al., IJCAI 2023), conditional parameters included: the best tenth of the trials, at least
    five, against all. Pruned trials are none of the best; a parameter that fewer than five of those that were done have
    is left out, for one or two of them would seem to make all the difference. ValueError where the trials cannot tell.
    """
    done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    pruned = study.get_trials(deepcopy=False, states=(TrialState.PRUNED,))
    count = len(done) + len(pruned)
    if count < FEWEST or len(done) < TOP:
        raise ValueError(
            f"{len(done)} trials are done and {len(pruned)} pruned; importances need {TOP} and {FEWEST} in all"
        )
    names = sorted({name for trial in done for name in trial.params})
    names = [name for name in names if sum(name in trial.params for trial in done) >= TOP]
    if len(names) < 2:
        raise ValueError(f"it takes two parameters that {TOP} trials have that are done")
    ranked = optuna.create_study(directions=study.directions)
    ranked.add_trials(done)
    if pruned:  # there is one objective, then
        values = [trial.values[0] for trial in done]
        last = min(values) - 1 if study.directions[0] is StudyDirection.MAXIMIZE else max(values) + 1
        ranked.add_trials(create_trial(value=last, params=t.params, distributions=t.distributions) for t in pruned)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)  # of `normalize`
        warnings.simplefilter("ignore", UserWarning)  # that shares would be equal, which is seen below
        best = min(len(done), max(TOP, math.ceil(count / 10)))
        evaluator = PedAnovaImportanceEvaluator(target_quantile=best / count)
        raw = get_param_importances(ranked, evaluator=evaluator, params=names, normalize=False)
    total = sum(raw.values())
    if not total > 0:
        raise ValueError("the trials differ in no parameter, or not in what they reached")
    return {name: value / total for name, value in raw.items()}


def _write_table(
    path: Path, trials: Iterable[FrozenTrial], all_trials: Sequence[FrozenTrial], objectives: Sequence[str]
) -> Path:
    rows = [list(_cells(trial, objectives)) for trial in sorted(trials, key=lambda trial: trial.number)]
    # the columns are those of all trials, so that both tables have the same
    columns = sorted(
        dict.fromkeys(
            (order, kind, name) for trial in all_trials for order, kind, name, _ in _cells(trial, objectives)
        ),
        key=lambda column: column[0],
    )
    header: dict[tuple[str, str], str] = {}
    for _, kind, name in columns:  # a parameter may be called like an objective, say
        header[kind, name] = f"{kind}.{name}" if name in header.values() else name
    with atomic_file(path) as file:
        table = csv.DictWriter(file, header.values(), restval="", lineterminator="\n")
        table.writeheader()
        table.writerows({header[kind, name]: value for _, kind, name, value in row} for row in rows)
    return path


def _cells(trial: FrozenTrial, objectives: Sequence[str]) -> Iterator[tuple[int, str, str, Any]]:
    """(place of the column, kind, name, value) of what a trial has; columns of one place stand as they come."""
    yield 0, "trial", "number", trial.number
    yield 1, "trial", "state", trial.state.name.lower()
    for name, value in zip(objectives, trial.values or [""] * len(objectives), strict=True):
        yield 2, "objective", name, value
    yield 3, "trial", "seconds", round(trial.duration.total_seconds(), 3) if trial.duration else ""
    yield 4, "trial", "started", trial.datetime_start.isoformat(timespec="seconds") if trial.datetime_start else ""
    # the family is a parameter where it is searched, and is else known from what the trial was made of
    for name, value in trial.params.items():
        yield 5 if name == "family" else 6, "parameter", name, value
    for name, value in trial.user_attrs.items():
        if isinstance(value, (str, int, float)) and not (name == "family" and "family" in trial.params):
            place = {"family": 5, "error": 8}.get(name, 7)
            yield place, "attribute", name, value.replace("\r", "") if isinstance(value, str) else value
