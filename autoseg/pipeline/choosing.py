"""Which members an ensemble has, and how they answer together: by what they say out of fold, as far as it is kept."""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from autoseg.bundles.marks import bundle_weights, validation_folder
from autoseg.devices import PREDICTING_SCALING
from autoseg.engine.combination import Combination
from autoseg.ensemble.doubt import fit_doubt
from autoseg.ensemble.members import AUTO, LeftOut, choose_members, fit_members, standing
from autoseg.ensemble.methods import BEST_FAMILY, Network
from autoseg.ensemble.selecting import Selection
from autoseg.errors import InputError, NoResultError
from autoseg.pipeline.inputs import fingerprint, made_from
from autoseg.pipeline.pace import Pace
from autoseg.pipeline.session import Session
from autoseg.pipeline.training import run_jobs, trainings
from autoseg.records import Case, Datalist, Event, Job, LeaderboardEntry, Resources
from autoseg.workspace import Workspace, read_json, read_keys, restored, write_json

LONGEST = 900.0  # seconds in which an ensemble is chosen, where no limit says less


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
    found = _selected(session, datalist, _Question(fit, given, name), planned)
    by_name = {entry.name: entry for entry in leaderboard}
    if found is not None:
        members = sorted((by_name[member] for member in found.weights), key=lambda entry: (entry.fold, entry.algo))
        if given is None:
            unheard = {entry.algo for entry in fit} - set(found.families)
            left_out += [(name, "too few probabilities of its validation cases are kept") for name in sorted(unheard)]
        else:
            trimmed = [entry.name for entry in given if entry.name not in found.weights]
            left_out += [(name, "the limit on prediction time leaves no time for it") for name in trimmed]
    else:
        if given is None:
            given = choose_members(leaderboard, n_best=config.n_best, unvalidated_ok=unvalidated_ok)[0]
        members, late = _in_time(session, datalist, given, leaderboard, planned)
        left_out += late
    for left, reason in left_out:
        session.notify(Event("warning", f"{left} stays out of the ensemble: {reason}"))
    if not members:
        raise NoResultError("no trained network is fit for an ensemble")
    combination = Combination(config.ensemble_mode)
    if found is not None:
        weights = {member.name: found.weights[member.name] for member in members}
        combination = replace(
            combination, weights=weights, temperature=found.temperature, post_processing=found.post_processing
        )
    _record(session, name, members, left_out, combination, found)
    session.stage(_said(name, members, found))
    return Ensemble(tuple(member.name for member in members), combination)


def _in_time(
    session: Session,
    datalist: Datalist,
    members: list[LeaderboardEntry],
    board: Sequence[LeaderboardEntry],
    planned: Pace | None,
) -> tuple[list[LeaderboardEntry], LeftOut]:
    """Members chosen without a selection, as far as limits on their prediction let: (those kept, those left out)."""
    ranks, left_out = {entry.name: standing(entry, board) for entry in board}, list[tuple[str, str]]()
    limit = session.config.predict_seconds_per_case
    if limit is not None:
        reason = "predict_seconds_per_case leaves no time for it"
        members, left_out = in_time(members, limit, _seconds_a_case(session, datalist, board), ranks, reason)
    if planned is not None and session.clock is not None:
        seconds = session.clock.left - planned.closing + planned.selecting
        members, late = in_time(members, seconds, planned.member_seconds, ranks)
        left_out += late
    return members, left_out


def keep_members_so_far(session: Session, leaderboard: Sequence[LeaderboardEntry]) -> None:
    """ensemble.json of the networks that are trained by now: a run that is cut off can predict with them.

    One that was chosen before stays, as long as its members have weights.
    """
    workspace, method = session.workspace, session.config.ensemble_method
    with contextlib.suppress(InputError, AttributeError, TypeError):
        record = read_json(workspace.ensemble_json)
        bundles = [workspace.named_bundle(name) for name in record["members"]]
        if not record.get("interim") and bundles and all(bundle_weights(bundle).is_file() for bundle in bundles):
            return
    members, left_out = choose_members(leaderboard, method, n_best=session.config.n_best, unvalidated_ok=True)
    if members:
        _record(session, method, members, left_out, Combination(session.config.ensemble_mode), interim=True)


def standing_ensemble(
    session: Session, workspace: Workspace, board: Sequence[LeaderboardEntry], method: Any
) -> Ensemble | None:
    """What `pick_members` would choose again, were nothing else to change; None where it is chosen anew."""
    config, record = session.config, read_json(workspace.ensemble_json)
    name = config.ensemble_method if method is None else type(method).__name__
    if record.get("method") == name and record.get("asked") == _asked(session) and not record.get("interim"):
        with contextlib.suppress(AttributeError, TypeError, ValueError, KeyError):  # a record that was edited
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
    combination: Combination,
    found: Selection | None = None,
    interim: bool = False,
) -> None:
    """Write ensemble.json. `found`: what chose the members; `interim`: not all trainings have ended."""
    rows = _out_of_fold(session.workspace, members) if found is None or not found.rows else found.rows
    record: dict[str, Any] = {
        **({"interim": True} if interim else {}),
        "method": method,
        "asked": _asked(session),
        **vars(combination),
        "members": [member.name for member in members],
        "left_out": [{"name": left, "reason": reason} for left, reason in left_out],
    }
    if found is not None:
        told = vars(found).items()
        record["selection"] = {key: value for key, value in told if key not in (*vars(combination), "rows")}
    record["doubt"] = fit_doubt(rows)
    write_json(session.workspace.ensemble_json, record)


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


class _Question(NamedTuple):
    """Entries to choose among, or those of them that are `given` by the method `name`."""

    fit: list[LeaderboardEntry]
    given: list[LeaderboardEntry] | None
    name: str


def _selected(session: Session, datalist: Datalist, asked: _Question, planned: Pace | None) -> Selection | None:
    """What out-of-fold probabilities choose, or say of the members that are given; None where none are kept, where
    members vote, and where choosing came to nothing.
    """
    workspace = session.workspace
    spec = _spec(session, datalist, asked, planned)
    if session.config.ensemble_mode != "mean" or spec is None:
        return None
    folder = workspace.job("select")
    result = folder / "selection.json"
    names = [network.name for network in spec["networks"]]
    files = [path for name in names for path in sorted(validation_folder(workspace.root / name).glob("*.npz"))]
    stamps = {path.relative_to(workspace.root).as_posix(): path.stat().st_mtime_ns for path in files}
    told = {key: value for key, value in spec.items() if key not in ("families", "networks", "seconds")}
    told |= {"networks": names, "asked": _asked(session), "time_limit": session.config.time_limit}
    inputs = made_from(files=stamps, settings=told)
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
    if _had_more_time(folder, spec["seconds"]):
        result.unlink(missing_ok=True)
    limit = LONGEST if planned is None or session.clock is None else planned.selecting
    write_json(folder / "spec.json", {**spec, "deadline": time.time() + limit, "results": str(result)})
    results = run_jobs(session, [job], session.whole_machine())
    if results["select"].status != "done":
        session.notify(Event("warning", "the ensemble could not be chosen by what its members say out of fold"))
        return None
    plain = read_json(result)
    if "reason" not in plain:
        return restored(Selection, plain, result)
    session.stage(f"the ensemble is not chosen out of fold: {plain['reason']}")
    if plain.get("no_time"):  # another time there may be more
        result.unlink()
    return None


def _had_more_time(folder: Path, seconds: float | None) -> bool:
    """Whether an earlier selection stands there whose members take more than `seconds` to predict a case, which they
    might take then.
    """
    if seconds is None:
        return False
    with contextlib.suppress(InputError, AttributeError):
        before = read_json(folder / "spec.json").get("seconds")
        chosen = restored(Selection, read_json(folder / "selection.json"), folder / "selection.json").chosen
        return (before is None or seconds < before) and chosen.seconds > seconds
    return False


def _spec(session: Session, datalist: Datalist, asked: _Question, planned: Pace | None) -> dict[str, Any] | None:
    """Families, cases and networks for a selection; None where the best family has kept no probabilities."""
    root = session.workspace.root
    wanted = {entry.algo for entry in (asked.fit if asked.given is None else asked.given)}
    kept = [e for e in asked.fit if e.algo in wanted and any(validation_folder(root / e.name).glob("*.npz"))]
    names = list(dict.fromkeys(entry.algo for entry in kept))
    ranks = {entry.name: standing(entry, asked.fit) for entry in asked.fit}
    ranked = _best_first(asked.fit, ranks)
    if not names or (ranked[0].algo not in names and asked.given is None) or (asked.given and wanted - set(names)):
        return None
    taken, seconds = _prediction_times(session, datalist, asked.fit, planned)
    folds = sorted({entry.fold for entry in kept})
    return {
        "families": {name: {str(e.fold): str(root / e.name) for e in kept if e.algo == name} for name in names},
        "cases": {case.id: fold for case, fold in _seen_by(datalist, folds)},
        "labels": {str(key): name for key, name in datalist.scored.items()},
        "regions": [list(values) for values in datalist.regions.values()],
        "networks": [Network(e.name, e.algo, e.fold, taken.get(e.algo, 0.0)) for e in ranked if e.algo in names],
        "n_best": session.config.n_best,
        "seconds": seconds,
        "given": None if asked.given is None else {entry.name: 1.0 for entry in asked.given},
        "method": asked.name,
    }


def _prediction_times(
    session: Session, datalist: Datalist, entries: Sequence[LeaderboardEntry], planned: Pace | None
) -> tuple[dict[str, float], float | None]:
    """(seconds that a network of each family takes to predict a case, most that an ensemble may take).

    Within a time limit they are as measured before the trainings, and the most is also what is left of it.
    """
    taken, limit = _seconds_a_case(session, datalist, entries), session.config.predict_seconds_per_case
    if planned is None or session.clock is None or not datalist.testing:
        return taken, limit
    cases = len(datalist.testing)
    at_a_time = len(session.slots(cases)) if session.devices.gpus else 1
    taken |= {name: at_a_time * seconds / cases for name, seconds in planned.member_seconds.items()}
    left = at_a_time * max(0.0, session.clock.left - planned.closing) / cases
    return taken, left if limit is None else min(left, limit)


def _seen_by(datalist: Datalist, folds: Sequence[int]) -> list[tuple[Case, int]]:
    """Which fold's networks answer for each case: those that have not seen it."""
    if datalist.validation:  # none has
        return [(case, folds[i % len(folds)]) for i, case in enumerate(datalist.validation)]
    return [(case, case.fold) for case in datalist.training if case.fold is not None and case.fold in folds]


def _seconds_a_case(session: Session, datalist: Datalist, entries: Sequence[LeaderboardEntry]) -> dict[str, float]:
    """By family, what a network of it took to predict a validation case, as the whole machine would."""
    bundles = [session.workspace.root / entry.name for entry in entries]
    slot = session.training_slots(trainings(session, bundles, datalist))[0]
    faster = 1.0 if session.devices.gpus else (session.devices.cores / slot.cpus) ** PREDICTING_SCALING
    taken: dict[str, list[float]] = {}
    for entry, bundle in zip(entries, bundles, strict=True):
        with contextlib.suppress(InputError, KeyError, TypeError):
            scores = read_json(bundle / "scores.json")
            if scores["seconds_a_case"]:  # else it had no case to predict
                taken.setdefault(entry.algo, []).append(float(scores["seconds_a_case"]) / faster)
    return {name: round(fmean(values), 3) for name, values in taken.items()}


def in_time(
    members: Sequence[LeaderboardEntry],
    seconds: float,
    member_seconds: Mapping[str, float],
    ranks: Mapping[str, float],
    reason: str = "the time limit leaves too little time for its predictions",
) -> tuple[list[LeaderboardEntry], list[tuple[str, str]]]:
    """(the best of the members that predict within `seconds`, or the fastest; those left out, with the reason).

    `ranks`: the mean Dice by which each is judged, of one without validation what its family has elsewhere, or NaN.
    """
    ordered = _best_first(members, ranks)
    kept: list[LeaderboardEntry] = []
    for member in ordered:
        needed = member_seconds.get(member.algo, 0.0)
        if needed <= seconds:
            kept.append(member)
            seconds -= needed
    kept = kept or sorted(ordered, key=lambda member: member_seconds.get(member.algo, 0.0))[:1]
    left_out = [(member.name, reason) for member in ordered if member not in kept]
    return [member for member in members if member in kept], left_out


def _best_first(entries: Sequence[LeaderboardEntry], ranks: Mapping[str, float]) -> list[LeaderboardEntry]:
    """By their ranks; those without one come last."""
    return sorted(entries, key=lambda entry: -ranks[entry.name] if math.isfinite(ranks[entry.name]) else 0.0)
