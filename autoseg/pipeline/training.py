"""Bundles as jobs over the slots, and what they scored: the leaderboard and the cross-validation."""

from __future__ import annotations

import json
import math
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from autoseg.bundles.marks import architecture_file, bundle_settings, family_and_fold, is_foreign_bundle, less_file
from autoseg.config import RunConfig
from autoseg.errors import NoResultError
from autoseg.execution import Feed, LocalExecutor, Scheduler
from autoseg.pipeline.clock import Deadlines
from autoseg.pipeline.inputs import Inputs, bundle_parts, case_digests, fingerprint, made_from
from autoseg.pipeline.session import Session
from autoseg.pipeline.standing import ANEW, CHECKPOINT, GOES_ON, is_stale, outlook
from autoseg.records import Case, Datalist, Event, Job, JobResult, LeaderboardEntry, Resources, Slot
from autoseg.workspace import Workspace, atomic_file, read_json, read_keys, write_json

LEAST_PATIENCE = 90.0  # seconds with a job that says nothing, where time is limited


def run_jobs(
    session: Session,
    jobs: Sequence[Job],
    slots: Sequence[Slot],
    at_start: Callable[[Job], Job] = lambda job: job,
    on_done: Callable[[dict[str, JobResult]], None] = lambda results: None,
    feed: Feed | None = None,
) -> dict[str, JobResult]:
    """Run jobs, and those that a `feed` gives, over the slots, as the configuration says; the session loses the GPUs
    that fall out of use.

    `on_done` is told the results so far whenever a job ended well.
    """

    def notify(event: Event) -> None:
        session.notify(event)
        if event.kind == "job_done":
            on_done(scheduler.results)

    config = session.config
    scheduler = Scheduler(
        LocalExecutor(),
        slots,
        session.workspace.jobs,
        notify,
        max_tries=config.max_tries,
        stuck_seconds=stuck_seconds(config),
        at_start=at_start,
        at_loss=session.lose,
    )
    return scheduler.run(jobs, feed)


def stuck_seconds(config: RunConfig) -> float:
    """After which a job without a sign of life is ended: sooner where a time limit would not outlast the waiting."""
    limit = math.inf if config.time_limit is None else max(LEAST_PATIENCE, config.time_limit / 10)
    return min(60 * config.stuck_minutes, limit)


def preprocess(session: Session, bundles: Sequence[Path], datalist: Datalist) -> None:
    """Fill the cache of preprocessed cases, once for all bundles that agree. A failure is left to the trainings."""
    from autoseg.engine.bundle import Bundle

    ours = [path for path in bundles if not is_foreign_bundle(path)]
    by_key = {Bundle.load(path).preprocessing_key(): path for path in reversed(ours)}
    cases = {"training": case_digests(datalist.training), "validation": case_digests(datalist.validation)}
    inputs = {key: made_from(**cases, preprocessing={"key": key}) for key in by_key}
    progress = {key: f"jobs/preprocess_{key}/metrics.jsonl" for key in by_key}
    jobs = [
        Job(
            id=f"preprocess_{key}",
            argv=(sys.executable, "-m", "autoseg.engine", "preprocess", str(path), progress[key]),
            cwd=str(session.workspace.root),
            outputs=(f"cache/preprocessed/{key}",),
            inputs=inputs[key],
            fingerprint=fingerprint(inputs[key]),
            resources=Resources(cpus=session.devices.cores),
            progress=progress[key],
        )
        for key, path in by_key.items()
    ]
    if not jobs:
        return
    session.stage(f"preprocessing: {len(datalist.training) + len(datalist.validation)} cases")
    run_jobs(session, jobs, session.whole_machine())


def reseeded(workspace: Workspace) -> dict[str, dict[str, Any]]:
    """Bundles that were given another seed, because with their own they collapsed (see `reseed_collapsed`)."""
    path = workspace.reseeded_json
    return dict(read_keys(path, "bundles")[0]) if path.is_file() else {}


def training_jobs(
    session: Session,
    bundles: Sequence[Path],
    datalist: Datalist,
    seeds: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[Job]:
    """One training a bundle, with the seed it was given after a collapse: as `seeds` says, or `reseeded`."""
    jobs = []
    others = reseeded(session.workspace) if seeds is None else seeds
    gpus = gpus_a_job(session, len(bundles))
    for bundle, cost in zip(bundles, _costs(bundles, datalist), strict=True):
        argv: tuple[str, ...] = (sys.executable, str(bundle / "scripts" / "train.py"), "run")
        outputs: tuple[str, ...] = ("models/model.pt", "progress.yaml", "scores.json")
        if is_foreign_bundle(bundle):
            argv, outputs = (sys.executable, "-m", "autoseg.engine", "train_foreign", str(bundle)), ("scores.json",)
        elif session.clock is not None and not _steps_said(session.config, bundle):
            argv = (*argv, "--num_epochs", "None")  # the deadline alone ends it
        inputs = training_inputs(bundle, datalist)
        found = architecture_file(bundle)
        if found.is_file():
            inputs["architecture"] = {"found": found.read_text("utf-8")}
        elif "search" in inputs["settings"]:
            argv = (*argv, "--search", "False")
        other = others.get(bundle.name, {})
        if other.get("fingerprint") == fingerprint(inputs):
            argv = (*argv, "--seed", str(other["seed"]))
            inputs["settings"]["seed"] = str(other["seed"])
        spread = gpus if not is_foreign_bundle(bundle) else min(1, gpus)
        if spread > 1:  # one process for each GPU that it is given: where some are lost, fewer
            argv = (*torchrun("gpu"), *argv[1:])
        jobs.append(
            Job(
                id=bundle.name,
                argv=argv,
                cwd=str(bundle),
                outputs=outputs,
                inputs=inputs,
                fingerprint=fingerprint(inputs),
                resources=Resources(gpus=spread),
                cost=cost,
                progress="metrics.jsonl",
            )
        )
    return jobs


def training_inputs(bundle: Path, datalist: Datalist) -> Inputs:
    """What a training is made from, before an architecture is found for it or a collapse has given it another seed."""
    training, validation = split_of(bundle, datalist)
    return made_from(**bundle_parts(bundle), training=case_digests(training), validation=case_digests(validation))


def trainings(session: Session, bundles: Sequence[Path], datalist: Datalist) -> int:
    """For how many trainings slots are made where these bundles are to be trained: see `Session.trainings`."""
    networks = Counter(family_and_fold(bundle)[0] for bundle in bundles)
    return sum(session.trainings(number, datalist.num_fold) for number in networks.values())


def gpus_a_job(session: Session, jobs: int) -> int:
    """GPUs that each of so many trainings takes: several where there are twice as many GPUs, or more, 0 on a CPU."""
    gpus = len(session.devices.gpus)
    if not session.config.multigpu or session.config.max_parallel:
        return min(1, gpus)
    return max(min(1, gpus), gpus // max(1, jobs))


def torchrun(processes: str) -> tuple[str, ...]:
    """The start of a command line that runs a script in several processes, as `autoseg.engine.ranks.launch` does."""
    return (sys.executable, "-m", "autoseg.engine", "torchrun", processes)


def forget_stale(session: Session, jobs: Sequence[Job]) -> None:
    """Remove, with a word, checkpoints that a training would go on from although what it is made from has changed."""
    for job in jobs:
        found, root = outlook(job, session.workspace.job(job.id)), Path(job.cwd)
        if is_stale(job, session.workspace.job(job.id)):
            less_file(root).unlink(missing_ok=True)
        if found.fate == ANEW and (root / CHECKPOINT).is_file():
            session.notify(Event("warning", f"{job.id} is trained anew: {found.reason}", {"id": job.id}))
            for path in (*(root / CHECKPOINT).parent.glob("checkpoint*"), root / "metrics.jsonl"):
                path.unlink(missing_ok=True)


def _steps_said(config: RunConfig, bundle: Path) -> bool:
    """Whether the user says how many steps or epochs this bundle trains."""
    said = config.said(family_and_fold(bundle)[0])
    return bool(said.get("num_epochs") or said.get("num_iterations"))


def split_of(bundle: Path, datalist: Datalist) -> tuple[tuple[Case, ...], tuple[Case, ...]]:
    """(training, validation) cases of a bundle's fold."""
    return datalist.split(family_and_fold(bundle)[1])


def _costs(bundles: Sequence[Path], datalist: Datalist) -> list[float]:
    """How long trainings take beside one another.

    How long a foreign one takes is its own secret: it counts as ours do on average, alone by its number of cases.
    """
    cases = {bundle: len(split_of(bundle, datalist)[0]) for bundle in bundles}
    known = {b: _voxels(bundle_settings(b), n) for b, n in cases.items() if not is_foreign_bundle(b)}
    typical = fmean(known.values()) if known else None
    return [known.get(b, float(n) if typical is None else typical) for b, n in cases.items()]


def _voxels(settings: Mapping[str, Any], cases: int) -> float:
    """How many voxels a network sees in its training, in proportion to which it takes long; or its seconds."""
    patches = settings["num_iterations"] or settings["num_epochs"]
    if not patches:
        return float(settings["max_seconds"] or 1.0)
    if settings["num_iterations"] is None:
        patches *= cases
    else:
        patches *= settings["num_images_per_batch"]
    return float(patches * math.prod(settings["roi_size"]))


def train(
    session: Session,
    bundles: Sequence[Path],
    datalist: Datalist,
    deadlines: Deadlines | None = None,
    on_done: Callable[[dict[str, JobResult]], None] = lambda results: None,
    told: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, JobResult]:
    """Train every bundle, by its deadline if there are some; raises NoResultError where none could be trained.

    `told`: by bundle, hyper-parameters of which a training that is done need not be made anew.
    """
    session.refuse_without_gpus()
    jobs = training_jobs(session, bundles, datalist)
    if deadlines is not None:
        jobs = [replace(job, cost=deadlines.waiting.get(job.id, job.cost)) for job in jobs]
    slots = session.training_slots(trainings(session, bundles, datalist))

    def start(job: Job) -> Job:
        more = [(f"--{key}", json.dumps(value)) for key, value in (told or {}).get(job.id, {}).items()]
        job = replace(job, argv=(*job.argv, *(word for pair in more for word in pair)))
        if deadlines is None:
            return job
        left = {gpu.index for gpu in session.devices.gpus}
        deadlines.slots = sum(slot.gpu is None or slot.gpu in left for slot in slots)
        return deadlines.give(job)

    places = ", ".join(f"{s.id} ({s.cpus} core{'s' if s.cpus > 1 else ''})" for s in slots)
    session.stage(f"training: {len(jobs)} jobs over {places}")
    for job in jobs:
        found = outlook(job, session.workspace.job(job.id))
        if found.fate == GOES_ON:
            session.notify(Event("stage", f"{job.id} goes on: {found.reason}", {"id": job.id}))
    results = run_jobs(session, jobs, slots, start, on_done)
    if all(result.status != "done" for result in results.values()):
        first = next(iter(results.values()))
        headline = (first.error or first.status).splitlines()[0]
        raise NoResultError(f"no training ended well; the first error: {headline} (log: {first.log})")
    return results


def write_leaderboard(
    session: Session, results: dict[str, JobResult], bundles: Sequence[Path]
) -> tuple[LeaderboardEntry, ...]:
    """leaderboard.json from the scores of every bundle, best first; and cross_validation.json over all folds."""
    entries = []
    cases: dict[str, list[dict[str, Any]]] = {}
    for bundle in bundles:
        algo, fold = family_and_fold(bundle)
        status = results[bundle.name].status if bundle.name in results else "missing"
        scores = read_json(bundle / "scores.json") if status == "done" else {}
        cases.setdefault(algo, []).extend(scores.get("cases", []))
        entries.append(
            LeaderboardEntry(
                algo=algo,
                fold=fold,
                status=status,
                mean_dice=_number(scores.get("mean_dice")),
                dice={label: _number(value) for label, value in scores.get("dice", {}).items()},
                steps=int(scores.get("steps", 0)),
                seconds=float(scores.get("seconds", 0.0)),
                predicts=bool(scores.get("predicts", True)),
                recall_dice=scores.get("recall_dice"),
            )
        )
        if not math.isnan(entries[-1].mean_dice):
            _tell_monai(bundle / "algo_object.json", entries[-1].mean_dice)
    entries.sort(key=lambda e: (math.isnan(e.mean_dice), -e.mean_dice if not math.isnan(e.mean_dice) else 0, e.name))
    write_json(session.workspace.leaderboard_json, {"entries": entries})
    write_json(
        session.workspace.cross_validation_json,
        {"families": {algo: cross_validation(rows) for algo, rows in cases.items()}},
    )
    return tuple(entries)


def _tell_monai(path: Path, mean_dice: float) -> None:
    """Add the score to algo_object.json, by which MONAI's AutoRunner and ensembles know that a bundle is trained."""
    with atomic_file(path) as file:
        json.dump({**json.loads(path.read_text("utf-8")), "best_metric": mean_dice}, file)


def cross_validation(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Mean Dice by label over the cases of all folds, each predicted by the network that did not see it."""
    from autoseg.evaluation import bootstrap_mean

    dice = {}
    for label in sorted({int(row["label"]) for row in rows}):
        values = [float(r["dice"]) for r in rows if int(r["label"]) == label and r["dice"] is not None]
        mean, low, high = bootstrap_mean(values)
        dice[str(label)] = {"mean": mean, "low": low, "high": high}
    known = [d["mean"] for d in dice.values() if not math.isnan(d["mean"])]
    mean_dice = sum(known) / len(known) if known else math.nan
    return {"mean_dice": mean_dice, "dice": dice, "n_cases": len({row["case"] for row in rows}), "cases": list(rows)}


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def failures(results: dict[str, JobResult]) -> tuple[JobResult, ...]:
    """The jobs that did not end well; each was named when it failed."""
    return tuple(result for result in results.values() if result.status != "done")
