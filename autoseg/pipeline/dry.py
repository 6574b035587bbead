"""A dry run: plans and bundles are made in a folder that goes away again, and compared with what is in the work_dir."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from autoseg.bundles.marks import SEARCH_STATE, architecture_file, family_and_fold, is_foreign_bundle, same_files
from autoseg.config import RunConfig
from autoseg.pipeline import prepare
from autoseg.pipeline.choosing import standing_ensemble
from autoseg.pipeline.inputs import (
    UNSEEN,
    bundle_changes,
    bundle_parts,
    case_digests,
    fingerprint,
    made_from,
    setting_texts,
    several,
)
from autoseg.pipeline.pace import among, choice_key, kept_choice
from autoseg.pipeline.predicting import asked_of_testing, prediction_jobs
from autoseg.pipeline.searching import begun_without, search_jobs
from autoseg.pipeline.session import Notify, Session, shadow_session
from autoseg.pipeline.standing import ANEW, KEPT, RUNS, Outlook, outlook
from autoseg.pipeline.training import reseeded, training_jobs
from autoseg.pipeline.watching import read_leaderboard
from autoseg.planning import Plan
from autoseg.planning.budget import Choice
from autoseg.records import Datalist, Job
from autoseg.workspace import Workspace, read_json, read_yaml, write_yaml


@dataclass(frozen=True)
class DryRun:
    """What the call would do without `dry_run`: a row a job, `notes` on what cannot be said yet.

    `families`: the plan, as in plan.json; `labels`: what is predicted, by value.
    """

    jobs: tuple[Outlook, ...] = ()
    families: dict[str, Any] = field(default_factory=dict)
    labels: dict[int, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Drafts:
    """What planning gave: the datalist with folds, bundles as they would be, and foreign ones that would be written."""

    datalist: Datalist
    bundles: list[Path]
    unwritten: dict[Path, Plan]
    families: dict[str, Any]


def look_ahead(config: RunConfig, notify: Notify, *, only_training: bool = False, method: Any = None) -> DryRun:
    """Analyse and plan, and say of every job what a run would do with it. Raises InputError as a run would.

    Of a work_dir that is there only the cache of the analysis may grow; one that is not is not made.
    `method`: an AlgoEnsemble of MONAI, as `run` takes it.
    """
    with shadow_session(config, notify) as (session, real):
        drafts = _draft(session, real)
        found = DryRun(families=drafts.families, labels=drafts.datalist.scored)
        if config.train is False:
            return replace(found, notes=("train is false: nothing runs after the bundles are written",))
        searches = _searches(session, drafts, real)
        trainings, notes = _trainings(session, drafts, real)
        taking_part = {f"search_{row.id}" for row in trainings}
        jobs = [*_preprocessing(drafts, real), *(row for row in searches if row.id in taking_part), *trainings]
        if drafts.datalist.testing and not only_training and config.ensemble is not False:
            jobs += _predictions(replace(session, workspace=real), drafts.datalist, trainings, method)
    if config.not_use_cache:
        jobs = [job if job.fate == RUNS else replace(job, fate=ANEW, reason="not_use_cache") for job in jobs]
    if config.hpo:
        notes = ["hpo: the sweep comes first; a configuration that is better is trained beside these", *notes]
    return replace(found, jobs=tuple(jobs), notes=tuple(notes))


def _draft(session: Session, real: Workspace) -> _Drafts:
    """Analyse, plan and write bundles into the session's own folder; what the switches of stages keep is taken over."""
    config, shadow = session.config, session.workspace
    if config.analyze is False:
        prepare.refuse_missing(real.datastats_yaml, "analyze")
        for name in ("datalist.json", "datastats.yaml"):
            shutil.copyfile(real.root / name, shadow.root / name)
        source = {**read_yaml(real.input_yaml), "datalist": str(shadow.datalist_json)}
        write_yaml(shadow.input_yaml, source, versioned=False)
        datalist = prepare.stored_datalist(shadow)
    else:
        datalist = prepare.analyse(session, real.cache / "analysis" if real.root.exists() else None)
    if config.algo_gen is False:
        planned = read_json(real.plan_json)["families"] if real.plan_json.exists() else {}
        return _Drafts(datalist, prepare.standing_bundles(config, real, datalist), {}, planned)
    from autoseg.bundles.contract import is_foreign
    from autoseg.bundles.foreign import stands

    plans, folders = prepare.make_plans(session, datalist), prepare.families(config)
    bundles: list[Path] = []
    unwritten: dict[Path, Plan] = {}
    for name, plan in plans.items():
        if not is_foreign(folders[name]):
            bundles += prepare.write_bundles(session, datalist, {name: plan})
            continue
        for target in (real.bundle(name, fold) for fold in config.folds(datalist, foreign=True)):
            if stands(target, folders[name], shadow, datalist, plan):
                bundles.append(target)
            else:
                unwritten[target] = plan
    return _Drafts(datalist, bundles, unwritten, read_json(shadow.plan_json)["families"])


def _trainings(session: Session, drafts: _Drafts, real: Workspace) -> tuple[list[Outlook], list[str]]:
    """(the fate of every training, what a time limit leaves open)."""
    found = _standing(session, drafts, real)
    named = session.config.algos is not None or session.config.time_limit is None
    for place, plan in drafts.unwritten.items() if named else ():  # where time is limited, foreign ones by name alone
        training, validation = drafts.datalist.split(family_and_fold(place)[1])
        cases = {"training": case_digests(training), "validation": case_digests(validation)}
        inputs = made_from(settings=setting_texts(plan.settings), **cases)
        job = Job(place.name, (), str(place), inputs=inputs, fingerprint=fingerprint(inputs))
        found.append(outlook(job, real.job(job.id), [UNSEEN]))
    if session.config.time_limit is None:
        return found, []
    taking = [bundle for bundle in drafts.bundles if named or _ours(bundle)]
    ids = {bundle.name for bundle in taking} | ({place.name for place in drafts.unwritten} if named else set())
    key = choice_key(taking, drafts.datalist, session.config)
    choice = None if named and drafts.unwritten else kept_choice(real, key)
    return _in_time([row for row in found if row.id in ids], choice, real, drafts.datalist.num_fold)


def _standing(session: Session, drafts: _Drafts, real: Workspace) -> list[Outlook]:
    """The fate of the training of every bundle that was drafted."""
    found = []
    jobs = training_jobs(session, drafts.bundles, drafts.datalist, reseeded(real))
    for bundle, job in zip(drafts.bundles, jobs, strict=True):
        place = real.root / job.id
        found.append(outlook(replace(job, cwd=str(place)), real.job(job.id), _edited(bundle, place)))
    return found


def _edited(bundle: Path, place: Path) -> list[str] | None:
    """How the bundle that stands in the work_dir differs from its draft; None where it does not, or none stands."""
    if not place.is_dir() or same_files(bundle, place):
        return None
    return bundle_changes(place, bundle_parts(bundle))


def _searches(session: Session, drafts: _Drafts, real: Workspace) -> list[Outlook]:
    """The fate of every search; what one has found that is kept is put into the draft: trainings are made from it."""
    jobs = search_jobs(session, drafts.bundles, drafts.datalist)
    if not jobs:
        return []
    fates = []
    begun = begun_without(training_jobs(session, drafts.bundles, drafts.datalist, reseeded(real)), real)
    for job in jobs:
        draft, place = Path(job.cwd), real.root / Path(job.cwd).name
        edited = _edited(draft, place)
        found = outlook(replace(job, cwd=str(place)), real.job(job.id), edited, goes_on_from=SEARCH_STATE)
        if found.fate == KEPT and draft != place:
            shutil.copyfile(architecture_file(place), architecture_file(draft))
        elif found.fate != KEPT and draft.name in begun:
            found = Outlook(job.id, KEPT, "its training was begun with the fixed architecture")
        fates.append(found)
    return fates


def _in_time(
    found: list[Outlook], choice: Choice | None, real: Workspace, folds: int
) -> tuple[list[Outlook], list[str]]:
    """Those that an earlier call chose for this limit, else all that can be chosen."""
    if choice is None:
        open_yet = "time_limit: which of these trainings are done is chosen when their speeds have been measured"
        return found, [open_yet]
    names = {bundle.name for bundle in among(choice, [real.root / row.id for row in found], folds)}
    chosen = [row for row in found if row.id in names]
    return chosen, [f"time_limit: {len(chosen)} of {len(found)} trainings, as an earlier call chose them"]


def _ours(bundle: Path) -> bool:
    return not is_foreign_bundle(bundle)


def _preprocessing(drafts: _Drafts, real: Workspace) -> list[Outlook]:
    """How many cases are not in the cache as they are now, by what families make of them."""
    from autoseg.engine.bundle import Bundle
    from autoseg.engine.cache import is_fresh

    cases = [case for case in (*drafts.datalist.training, *drafts.datalist.validation) if case.label]
    found = []
    for key in dict.fromkeys(Bundle.load(path).preprocessing_key() for path in drafts.bundles if _ours(path)):
        folder = real.cache / "preprocessed" / key
        left = sum(not is_fresh(folder / case.id, case) for case in cases)
        reason = f"{left} of {len(cases)} cases" if left else f"{len(cases)} cases are there"
        found.append(Outlook(f"preprocess_{key}", RUNS if left else KEPT, reason))
    return found


def _predictions(session: Session, datalist: Datalist, trainings: Sequence[Outlook], method: Any) -> list[Outlook]:
    """The fate of the predictions, which are kept where all trainings are and nothing else of theirs has changed."""
    real = session.workspace
    fate = ANEW if real.evaluation_json.exists() or real.ensemble_output.exists() else RUNS
    open_yet = [row.id for row in trainings if row.fate != KEPT]
    if open_yet:
        return [Outlook("predict", fate, f"after {several(open_yet)}")]
    board = read_leaderboard(real) if real.leaderboard_json.exists() else ()
    if {entry.name for entry in board} != {row.id for row in trainings} or not real.ensemble_json.exists():
        return [Outlook("predict", fate, "the ensemble is chosen anew")]
    chosen = standing_ensemble(session, real, board, method)
    if chosen is None:
        return [Outlook("predict", fate, "the ensemble is chosen anew")]
    jobs = prediction_jobs(session, asked_of_testing(session, datalist, chosen))
    return [outlook(job, real.job(job.id)) for job, _ in jobs]
