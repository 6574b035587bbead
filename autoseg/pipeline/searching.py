"""Architectures that are searched for: a job a bundle, before its training, which reads what it found."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from autoseg.bundles.marks import FOUND, PICTURE, SEARCH_LINES, SEARCH_STATE, bundle_settings, is_foreign_bundle
from autoseg.devices import makespan
from autoseg.execution.results import is_done, read_result
from autoseg.pipeline.clock import seconds_spent
from autoseg.pipeline.inputs import fingerprint
from autoseg.pipeline.session import Session
from autoseg.pipeline.standing import is_stale
from autoseg.pipeline.training import run_jobs, training_inputs, training_jobs
from autoseg.planning.budget import SEARCH_START, seconds_a_share
from autoseg.records import Datalist, Event, Job, Resources
from autoseg.workspace import Workspace

LEAST_SECONDS = 45.0  # of a search, its process's start included: in less nothing is found


@dataclass(frozen=True)
class Span:
    """Of a limited time: `seconds` a search may take, its process's start included, and all of them side by side."""

    seconds: float
    together: float


def search_jobs(session: Session, bundles: Sequence[Path], datalist: Datalist) -> list[Job]:
    """A job for every bundle whose setting `search` is on; none where no bundle's is."""
    jobs = []
    for bundle in bundles:
        if is_foreign_bundle(bundle) or not bundle_settings(bundle).get("search"):
            continue
        inputs = training_inputs(bundle, datalist)
        del inputs["validation"]
        jobs.append(
            Job(
                id=f"search_{bundle.name}",
                argv=(sys.executable, "-m", "autoseg.engine", "search", str(bundle)),
                cwd=str(bundle),
                outputs=(FOUND,),
                inputs=inputs,
                fingerprint=fingerprint(inputs),
                resources=Resources(gpus=1 if session.devices.gpus else 0),
                progress=SEARCH_LINES,
            )
        )
    return jobs


def searches_left(session: Session, bundles: Sequence[Path], datalist: Datalist) -> list[Job]:
    """The searches that are to run: not those that are done, nor where a training was begun without one.

    That is where a search has found nothing, or there was no time for it: the same command does not begin anew.
    """
    workspace, jobs = session.workspace, search_jobs(session, bundles, datalist)
    left = [job for job in jobs if not is_done(job, read_result(workspace.job(job.id)))]
    if not left:
        return []
    begun = begun_without(training_jobs(session, bundles, datalist), workspace)
    return [job for job in left if Path(job.cwd).name not in begun]


def begun_without(trainings: Sequence[Job], workspace: Workspace) -> set[str]:
    """The bundles, by name, whose training was begun as it would be now; `trainings` know what has been found."""
    results = [(job, read_result(workspace.job(job.id))) for job in trainings]
    return {job.id for job, result in results if result is not None and result.fingerprint == job.fingerprint}


def forget_stale(session: Session, bundles: Sequence[Path], datalist: Datalist) -> None:
    """Remove what searches have left that were made from other inputs."""
    for job in search_jobs(session, bundles, datalist):
        if is_stale(job, session.workspace.job(job.id)):
            for name in (FOUND, PICTURE, SEARCH_STATE, SEARCH_LINES):
                (Path(job.cwd) / name).unlink(missing_ok=True)


def time_to_search(session: Session, left: Sequence[Job], networks: int) -> Span | None:
    """What searches may take of a limited time: their share of that of a training, one of `networks`.

    None where that is too little to find anything, and none has begun; or where there is nothing to search.
    """
    if session.clock is None or not left:
        return None
    settings = bundle_settings(Path(left[0].cwd))
    training = seconds_a_share(session.clock.left, [1.0] * networks, len(session.slots(networks)))
    seconds = float(settings["search_share"]) * training
    behind = seconds_spent({job.id: Path(job.cwd) / SEARCH_LINES for job in left}, lambda line: True)
    if seconds < LEAST_SECONDS and not behind:
        return None
    if said := settings["search_seconds"]:
        seconds = min(seconds, float(said) + SEARCH_START)
    each = [max(SEARCH_START, seconds - behind.get(job.id, 0.0)) for job in left]
    return Span(seconds, makespan(each, len(session.slots(len(left)))))


def search_architectures(
    session: Session, bundles: Sequence[Path], datalist: Datalist, span: Span | None = None
) -> None:
    """Find the architectures that are not found yet; within a limited time in `span`, which is None for no time.

    A bundle for which nothing is found, or no time is left, trains its fixed architecture: a warning says so.
    """
    left = searches_left(session, bundles, datalist)
    if not left:
        return
    session.refuse_without_gpus()
    if session.clock is not None:
        if span is None:
            names = ", ".join(Path(job.cwd).name for job in left)
            message = f"{names}: the time is too short to search, the fixed architecture is trained"
            session.notify(Event("warning", message))
            return
        left = [replace(job, argv=(*job.argv, f"{max(1.0, span.seconds - SEARCH_START):.1f}")) for job in left]
    session.stage(f"search: the architecture of {len(left)} networks, on the halves of their training cases")
    # a search keeps every operation in memory: it shares no GPU, whatever was measured of trainings
    for name, result in run_jobs(session, left, session.slots(len(left))).items():
        if result.status != "done":
            why = (result.error or result.status).splitlines()[0]
            message = f"{name} found nothing, the fixed architecture is trained: {why}"
            session.notify(Event("warning", message))
