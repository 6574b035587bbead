"""Which members an ensemble has, and how they answer together: by what they say out of fold, as far as it is kept."""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from autoseg.bundles.marks import validation_folder
from autoseg.devices import THREAD_SCALING
from autoseg.engine.combination import Combination
from autoseg.ensemble.doubt import fit_doubt
from autoseg.ensemble.members import AUTO, choose_members, fit_members, standing
from autoseg.ensemble.methods import BEST_FAMILY, Network
from autoseg.ensemble.selecting import Selection
from autoseg.errors import InputError, NoResultError
from autoseg.pipeline.inputs import fingerprint, made_from
from autoseg.pipeline.pace import Pace
from autoseg.pipeline.session import Session
from autoseg.pipeline.training import run_jobs
from autoseg.records import Case, Datalist, Event, Job, LeaderboardEntry, Resources
from autoseg.workspace import Workspace, read_json, read_keys, restored, write_json


@dataclass(frozen=True)
class Ensemble:
    """Members' names, and how they answer together."""

    members: tuple[str, ...]
    combination: Combination = field(default_factory=Combination)


def pick_members(
    session: Session,
    datalist: Datalist,
    leaderboard: Sequence[LeaderboardEntry],
    *,
    unvalidated_ok: bool,
    method: Any = None,
    planned: Pace | None = None,
) -> Ensemble:
    """Members by the configured method, or by MONAI's AlgoEnsemble `method`; ensemble.json tells of them.

    What they say out of fold gives weights, temperature and post-processing. Of what a time limit leaves too little
    time for, the best ones that can still predict the testing cases are kept.
    """
    config = session.config
    name = config.ensemble_method if method is None else type(method).__name__
    fit, left_out = fit_members(leaderboard, unvalidated_ok)
    given: list[LeaderboardEntry] | None = None
    if method is not None:
        from autoseg.ensemble.custom import choose_by

        given = choose_by(method, session.workspace.root, fit)
    elif name != AUTO:
        given = choose_members(leaderboard, name, n_best=config.n_best, unvalidated_ok=unvalidated_ok)[0]
    found = _selected(session, datalist, fit if given is None else given, given is not None, name, planned)
    by_name = {entry.name: entry for entry in leaderboard}
    if found is not None:
        members = sorted((by_name[member] for member in found.weights), key=lambda entry: (entry.fold, entry.algo))
    else:
        members = given or choose_members(leaderboard, n_best=config.n_best, unvalidated_ok=unvalidated_ok)[0]
    ranks = {entry.name: standing(entry, leaderboard) for entry in leaderboard}
    if found is None and config.predict_seconds_per_case is not None:
        members, late = in_time(
            members,
            config.predict_seconds_per_case,
            _seconds_a_case(session, leaderboard),
            ranks,
            "predict_seconds_per_case leaves no time for it",
        )
        left_out = [*left_out, *late]
    if planned is not None and session.clock is not None:
        seconds = session.clock.left - planned.closing + planned.selecting
        members, late = in_time(members, seconds, planned.member_seconds, ranks)
        left_out = [*left_out, *late]
    for left, reason in left_out:
        session.notify(Event("warning", f"{left} stays out of the ensemble: {reason}"))
    if not members:
        raise NoResultError("no trained network is fit for an ensemble")
    record = _record(session, name, members, left_out, found)
    session.stage(_said(name, members, found))
    return Ensemble(tuple(member.name for member in members), Combination.of(record))


def keep_members_so_far(session: Session, leaderboard: Sequence[LeaderboardEntry]) -> None:
    """ensemble.json of the networks that are trained by now: a run that is cut off can predict with them."""
    method = session.config.ensemble_method
    members, left_out = choose_members(leaderboard, method, n_best=session.config.n_best, unvalidated_ok=True)
    if members:
        _record(session, method, members, left_out, None)


def standing_ensemble(
    session: Session, workspace: Workspace, board: Sequence[LeaderboardEntry], method: Any
) -> Ensemble | None:
    """What `pick_members` would choose again, were nothing else to change; None where it is chosen anew."""
    config, record = session.config, read_json(workspace.ensemble_json)
    name = config.ensemble_method if method is None else type(method).__name__
    if record.get("method") == name and record.get("asked") == _asked(session):
        same = {**record, "mode": config.ensemble_mode}
        return Ensemble(tuple(record["members"]), Combination.of(same))
    if method is not None or name == AUTO:
        return None
    unvalidated = all(math.isnan(entry.mean_dice) for entry in board)
    members, _ = choose_members(board, name, n_best=config.n_best, unvalidated_ok=unvalidated)
    return Ensemble(tuple(member.name for member in members), Combination(config.ensemble_mode))


def _asked(session: Session) -> dict[str, Any]:
    """Beside the method, what the choice depends on that a user says."""
    return {"n_best": session.config.n_best, "predict_seconds_per_case": session.config.predict_seconds_per_case}


def _record(
    session: Session,
    method: str,
    members: Sequence[LeaderboardEntry],
    left_out: Sequence[tuple[str, str]],
    found: Selection | None,
) -> dict[str, Any]:
    """Write ensemble.json, and return what is in it."""
    rows = _out_of_fold(session.workspace, members) if found is None else found.rows
    record: dict[str, Any] = {
        "method": method,
        "asked": _asked(session),
        "mode": session.config.ensemble_mode,
        "members": [member.name for member in members],
        "left_out": [{"name": left, "reason": reason} for left, reason in left_out],
    }
    if found is not None:
        record |= {"weights": {member.name: found.weights[member.name] for member in members}}
        record |= {"temperature": found.temperature, "post_processing": found.post_processing}
        record["selection"] = {key: value for key, value in vars(found).items() if key not in (*record, "rows")}
        record["selection"]["method"] = found.method
    record["doubt"] = fit_doubt(rows)
    write_json(session.workspace.ensemble_json, record)
    return {**record, "post_processing": read_json(session.workspace.ensemble_json).get("post_processing")}


def _out_of_fold(workspace: Workspace, members: Sequence[LeaderboardEntry]) -> list[dict[str, Any]]:
    """The rows of cross_validation.json of the members' families."""
    if not workspace.cross_validation_json.is_file():
        return []
    families = read_keys(workspace.cross_validation_json, "families")[0]
    names = dict.fromkeys(member.algo for member in members if member.algo in families)
    return [row for name in names for row in families[name]["cases"]]


def _said(name: str, members: Sequence[LeaderboardEntry], found: Selection | None) -> str:
    """Who is chosen, what that is worth out of fold, and whether it was worth it."""
    names = ", ".join(member.name for member in members)
    if found is None:
        return f"ensemble: {name} of {len(members)}: {names}"
    chosen, single = found.chosen, next(one for one in found.candidates if one.method == BEST_FAMILY)
    how = f" ({chosen.method})" if name == AUTO else ""
    said = f"ensemble: {name}{how} of {len(members)}: {names}; mean Dice out of fold {found.mean_dice:.4f}"
    if set(chosen.members) != set(single.members):
        gain, low, high = chosen.gain
        against = f"{gain:+.4f} [{low:+.4f}, {high:+.4f}] against the best family alone"
        cost = f"{chosen.seconds:.2g} s of prediction a case for {single.seconds:.2g} s"
        said += f", {against}{'' if low > 0 else ', no better than it'}, {cost}"
    if found.temperature != 1.0:
        said += f"; temperature {found.temperature:.2f}"
    if found.post_processing:
        said += f"; post-processing of label{'s' * (len(found.post_processing) > 1)} "
        said += ", ".join(f"{label} ({found.gains[label]:+.4f})" for label in found.post_processing)
    return said


def _selected(
    session: Session,
    datalist: Datalist,
    entries: Sequence[LeaderboardEntry],
    fixed: bool,
    name: str,
    planned: Pace | None,
) -> Selection | None:
    """What out-of-fold probabilities choose among the entries, or say of them where they are `fixed`; None where none
    are kept, where members vote, and where choosing came to nothing.
    """
    spec = _spec(session, datalist, entries)
    if session.config.ensemble_mode != "mean" or spec is None:
        return None
    if fixed:
        spec |= {"given": {entry.name: 1.0 for entry in entries if entry.algo in spec["families"]}, "method": name}
        if len(spec["given"]) < len(entries):
            return None
    workspace = session.workspace
    folder = workspace.job("select")
    result = folder / "selection.json"
    files = [path for entry in entries for path in sorted(validation_folder(workspace.root / entry.name).glob("*.npz"))]
    stamps = {path.relative_to(workspace.root).as_posix(): path.stat().st_mtime_ns for path in files}
    labels = {case.id: Path(case.label).stat().st_mtime_ns for case in datalist.training if case.label}
    inputs = made_from(files=stamps, training=labels, settings={**spec, "time_limit": session.config.time_limit})
    job = Job(
        id="select",
        argv=(sys.executable, "-m", "autoseg.ensemble", "select", str(folder / "spec.json")),
        cwd=str(folder),
        outputs=(result.name,),
        inputs=inputs,
        fingerprint=fingerprint(inputs),
        resources=Resources(cpus=session.devices.cores),
    )
    folder.mkdir(parents=True, exist_ok=True)
    limit = time.time() + planned.selecting if planned is not None and session.clock is not None else None
    write_json(folder / "spec.json", {**spec, "deadline": limit, "results": str(result)})
    results = run_jobs(session, [job], session.whole_machine())
    if results["select"].status != "done":
        session.notify(Event("warning", "the ensemble could not be chosen by what its members say out of fold"))
        return None
    plain = read_json(result)
    if "reason" in plain:
        session.stage(f"the ensemble is not chosen out of fold: {plain['reason']}")
        return None
    return restored(Selection, plain, result)


def _spec(session: Session, datalist: Datalist, entries: Sequence[LeaderboardEntry]) -> dict[str, Any] | None:
    """Families, cases and networks for a selection; None where no family has kept probabilities."""
    root = session.workspace.root
    kept = [entry for entry in entries if any(validation_folder(root / entry.name).glob("*.npz"))]
    names = list(dict.fromkeys(entry.algo for entry in kept))
    if not names:
        return None
    families = {name: {str(e.fold): str(root / e.name) for e in kept if e.algo == name} for name in names}
    folds = sorted({entry.fold for entry in kept})
    ranked = sorted(
        (entry for entry in entries if entry.algo in names),
        key=lambda e: -standing(e, entries) if math.isfinite(standing(e, entries)) else 0.0,
    )
    seconds = _seconds_a_case(session, entries)
    return {
        "families": families,
        "cases": {case.id: fold for case, fold in _seen_by(datalist, folds)},
        "labels": {str(key): name for key, name in datalist.scored.items()},
        "regions": [list(values) for values in datalist.regions.values()],
        "networks": [Network(e.name, e.algo, e.fold, seconds.get(e.algo, 0.0)) for e in ranked],
        "n_best": session.config.n_best,
        "seconds": session.config.predict_seconds_per_case,
    }


def _seen_by(datalist: Datalist, folds: Sequence[int]) -> list[tuple[Case, int]]:
    """Which fold's networks answer for each case: those that have not seen it."""
    if datalist.validation:  # none has
        return [(case, folds[i % len(folds)]) for i, case in enumerate(datalist.validation)]
    return [(case, case.fold) for case in datalist.training if case.fold is not None and case.fold in folds]


def _seconds_a_case(session: Session, entries: Sequence[LeaderboardEntry]) -> dict[str, float]:
    """By family, what a network of it took to predict a validation case, as the whole machine would."""
    slot = session.training_slots(len(entries))[0]
    faster = 1.0 if session.devices.gpus else (session.devices.cores / slot.cpus) ** THREAD_SCALING
    taken: dict[str, list[float]] = {}
    for entry in entries:
        with contextlib.suppress(InputError, KeyError, TypeError):
            scores = read_json(session.workspace.root / entry.name / "scores.json")
            taken.setdefault(entry.algo, []).append(float(scores["seconds_a_case"]) / faster)
    return {name: round(fmean(values), 3) for name, values in taken.items()}


def in_time(
    members: Sequence[LeaderboardEntry],
    seconds: float,
    member_seconds: Mapping[str, float],
    ranks: Mapping[str, float],
    reason: str = "the time limit leaves too little time for its predictions",
) -> tuple[list[LeaderboardEntry], list[tuple[str, str]]]:
    """(the best of the members that predict within `seconds`, one at least; those left out, with the reason).

    `ranks`: the mean Dice by which each is judged, of one without validation what its family has elsewhere, or NaN.
    """
    kept: list[LeaderboardEntry] = []
    left_out: list[tuple[str, str]] = []
    for member in sorted(members, key=lambda m: -ranks[m.name] if math.isfinite(ranks[m.name]) else 0.0):
        seconds -= member_seconds.get(member.algo, 0.0)
        if seconds >= 0 or not kept:
            kept.append(member)
        else:
            left_out.append((member.name, reason))
    return [member for member in members if member in kept], left_out
