"""The end of a sweep: default and best trial on cases that no trial has seen, and the files that say what came out."""

from __future__ import annotations

import contextlib
import functools
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from optuna.trial import TrialState

from autoseg.errors import InputError, NoResultError
from autoseg.hpo.outcome import write_outcome
from autoseg.hpo.race import Paired, paired
from autoseg.hpo.sweep import Sweep
from autoseg.pipeline import predicting
from autoseg.pipeline.session import Session
from autoseg.records import Case, Datalist, Event, JobResult
from autoseg.workspace import Workspace, read_json, restored, write_json, write_yaml


@dataclass(frozen=True)
class SweepResult:
    """What a sweep ended with.

    `winner`: the best trial, by its number; `better`: whether it beats the default on the cases held out, by `gain`;
    `default`, `best`: of the first objective on these cases. `trials`: how many ended how. `ranking`: the best ones.
    `busy`: share of the slots' seconds that trainings took, `start_up`: that of their start, which `busy` includes.
    """

    work_dir: Path
    winner: int
    family: str
    overrides: dict[str, Any]
    better: bool
    sentence: str
    gain: Paired | None = None
    default: float | None = None
    best: float | None = None
    trials: dict[str, int] = field(default_factory=dict)
    busy: float = 0.0
    start_up: float = 0.0
    seconds: float = 0.0
    ranking: tuple[dict[str, Any], ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        """0, or 3 where a trial failed: the result is valid all the same."""
        return 3 if self.trials.get("failed") else 0

    @property
    def paths(self) -> dict[str, Path]:
        """The files to look at, those that exist."""
        hpo = Workspace(self.work_dir).hpo
        names = {"best": "best.yaml", "trials": "trials.csv", "front": "pareto.csv", "pictures": "pictures"}
        names |= {"study": "journal.log", "summary": "summary.json"}
        return {name: hpo / file for name, file in names.items() if (hpo / file).exists()}


SHOWN = 5  # trials in the ranking
WORDS = {TrialState.COMPLETE: "done", TrialState.PRUNED: "ended early", TrialState.FAIL: "failed"}


def judge(session: Session, feed: Sweep, split: Datalist) -> SweepResult:
    """Compare, decide, write hpo/best.yaml and what else tells of the sweep. NoResultError where no trial is done."""
    hpo = session.workspace.hpo
    ranked = feed.ranked()
    if not ranked:
        raise NoResultError(_commonest_error(feed))
    default = feed.default()
    winner = feed.race.incumbent if feed.race.incumbent not in (None, default) else None
    rival = winner if winner is not None else next((number for number in ranked if number != default), None)
    may_predict = (default, rival, feed.race.incumbent, *ranked[:SHOWN])
    feed.forget_weights({number for number in may_predict if number is not None})
    outcome = write_outcome(feed.study, hpo, [o.name for o in feed.objectives], default)
    gain: Paired | None = None
    values: tuple[float | None, float | None] = (None, None)
    failed: tuple[JobResult, ...] = ()
    if default is not None and rival is not None:
        gain, values, failed = _held_out(session, feed, split, default, rival)
    open_race = rival is not None and rival not in feed.race.dismissed and rival != winner and feed.undecided()
    better = (winner is not None or open_race) and gain is not None and gain.low > 0
    chosen = feed.asked[rival if rival is not None else ranked[0]]
    reasons: dict[str, list[str]] = {}
    for name, reason in outcome.left_out.items():
        reasons.setdefault(reason, []).append(name)
    notes = tuple(f"{', '.join(names)} left out: {reason}" for reason, names in reasons.items())
    why = "its race was not over" if open_race else "did not beat it by more than noise in the search"
    why = "is not clearly better" if winner is not None else why
    sentence = _sentence(feed, default, rival, gain, values, better, why)
    best = {chosen.family: chosen.overrides} if better else {}
    write_yaml(hpo / "best.yaml", best, versioned=False, header=f"for --set @best.yaml: {sentence}")
    states = Counter(WORDS[t.state] for t in feed.study.get_trials(deepcopy=False) if t.state in WORDS)
    states["failed"] += len(failed)
    result = SweepResult(
        session.workspace.root, chosen.number, chosen.family, chosen.overrides, better, sentence, gain, *values,
        dict(+states), ranking=_ranking(feed, default), notes=notes,
    )  # fmt: skip
    for note in notes:
        session.notify(Event("warning", note))
    session.notify(Event("result", sentence, {"winner": chosen.number, "better": better, "files": outcome.files}))
    return result


def write_summary(result: SweepResult, feed: Sweep, key: str) -> None:
    """hpo/summary.json: the result and every comparison of the race. `key`: of data and terms, see `finished`."""
    verdicts = [
        {"trial": trial, "against": against, **vars(found), "verdict": verdict}
        for trial, against, found, verdict in feed.race.verdicts
    ]
    write_json(Workspace(result.work_dir).hpo / "summary.json", {**vars(result), "race": verdicts, "key": key})


def finished(session: Session, key: str) -> SweepResult | None:
    """The result of a sweep of this `key` that ended in an earlier call."""
    path = session.workspace.hpo / "summary.json"
    with contextlib.suppress(InputError):
        plain = read_json(path)
        if isinstance(plain, dict) and plain.pop("key", None) == key:
            plain.pop("race", None)
            return replace(restored(SweepResult, plain, path), work_dir=session.workspace.root)
    return None


def _ranking(feed: Sweep, default: int | None) -> tuple[dict[str, Any], ...]:
    """The best trials and the default, best first, by the first objective on the trials' own folds."""
    ranked = feed.ranked()
    shown = [number for place, number in enumerate(ranked) if place < SHOWN or number == default]
    objective, own = feed.objectives[0], range(feed.terms.folds)
    return tuple(
        {
            "trial": number,
            "default": number == default,
            "family": feed.asked[number].family,
            "objective": objective.name,
            "value": objective.value([feed.scores[number, fold] for fold in own]),
            "folds": sum((number, fold) in feed.scores for fold in range(feed.race.folds)),
            "overrides": feed.asked[number].overrides,
        }
        for number in shown
    )


def _held_out(
    session: Session, feed: Sweep, split: Datalist, default: int, rival: int
) -> tuple[Paired | None, tuple[float | None, float | None], tuple[JobResult, ...]]:
    """(how much better the rival is, the objective of default and rival, jobs that failed), on the cases held out.

    Each predicts them by the ensemble of its networks of the folds that both were trained on; cases that one of them
    could not predict do not count.
    """
    folds = [f for f in range(feed.race.folds) if {(default, f), (rival, f)} <= feed.scores.keys()]
    objective, found, failed = feed.objectives[0], [], list[JobResult]()
    session.stage(f"held-out cases: {len(split.testing)}, by trials {default} (the default) and {rival}")
    for number in (default, rival):
        bundles = [feed.bundle(number, fold) for fold in folds]
        label = f"held_out_{number:04d}"
        folder = session.workspace.hpo / "held_out" / f"trial_{number:04d}"
        output = functools.partial(_output, folder)
        asked = predicting.Asked(bundles, split.testing, output, label)
        predictions, lost, _ = predicting.predict_cases(session, asked)
        failed += lost
        evaluation = predicting.evaluated(session, split, predictions)
        found.append([{**vars(row), "label": str(row.label)} for row in (evaluation.cases if evaluation else ())])
    common = {row["case"] for row in found[0]} & {row["case"] for row in found[1]}
    if not common:
        return None, (None, None), tuple(failed)
    scores = [{"cases": [row for row in rows if row["case"] in common]} for rows in found]
    values = [objective.by_case([one]) for one in scores]
    means = [objective.value([one]) if objective.metric else fmean(values[n].values()) for n, one in enumerate(scores)]
    return paired(values[1], values[0]), (means[0], means[1]), tuple(failed)


def _output(folder: Path, case: Case) -> Path:
    return folder / f"{case.id}.nii.gz"


def _sentence(
    feed: Sweep,
    default: int | None,
    rival: int | None,
    gain: Paired | None,
    values: tuple[float | None, float | None],
    better: bool,
    why: str,
) -> str:
    """Whether the winner is better than the default, by how much, and what is kept."""
    if default is None:
        return "the default configuration could not be trained: there is nothing to compare with"
    if rival is None:
        return "no trial but the default is done: the default is kept"
    if gain is None:
        return f"the default is kept: the cases held out could not be predicted by it and by trial {rival}"
    name = feed.objectives[0].name
    measured = f"{name} {values[1]:.4f} against {values[0]:.4f}"
    interval = f"{gain.mean:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}] over {gain.n} cases that no trial has seen"
    if better:
        return f"trial {rival} is better than the default: {measured}, {interval}"
    return f"the default is kept: trial {rival} {why}; {measured}, {interval}"


def _commonest_error(feed: Sweep) -> str:
    """All trials failed: the errors by how often they came, the commonest first."""
    errors = Counter(
        str(t.user_attrs.get("error", "no error is known")).splitlines()[0]
        for t in feed.study.get_trials(deepcopy=False)
        if t.state is TrialState.FAIL
    )
    if not errors:
        return "no trial is done"
    said = "; ".join(f"{'once' if n == 1 else f'{n} times'}: {error}" for error, n in errors.most_common(3))
    pruned = sum(t.state is TrialState.PRUNED for t in feed.study.get_trials(deepcopy=False))
    return f"{f'no trial is done, {pruned} were ended early' if pruned else 'every trial failed'}: {said}"
