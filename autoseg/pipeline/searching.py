"""Architectures that are searched for: a job a bundle, before its training, which reads what it found."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from autoseg.bundles.marks import architecture_file, bundle_settings, is_foreign_bundle
from autoseg.execution.results import is_done, read_result
from autoseg.pipeline.inputs import bundle_parts, case_digests, fingerprint, made_from
from autoseg.pipeline.session import Session
from autoseg.pipeline.training import run_jobs, split_of
from autoseg.planning.budget import seconds_a_share
from autoseg.records import Datalist, Event, Job, Resources

LEAST_SECONDS = 45.0  # of a search, its process's start included: in less nothing is found


def search_jobs(session: Session, bundles: Sequence[Path], datalist: Datalist) -> list[Job]:
    """A job for every bundle whose setting `search` is on; none where no bundle's is."""
    jobs = []
    for bundle in bundles:
        if is_foreign_bundle(bundle) or not bundle_settings(bundle).get("search"):
            continue
        training, _ = split_of(bundle, datalist)
        inputs = made_from(**bundle_parts(bundle), training=case_digests(training))
        jobs.append(
            Job(
                id=f"search_{bundle.name}",
                argv=(sys.executable, "-m", "autoseg.engine", "search", str(bundle)),
                cwd=str(bundle),
                outputs=(architecture_file(bundle).name,),
                inputs=inputs,
                fingerprint=fingerprint(inputs),
                resources=Resources(gpus=1 if session.devices.gpus else 0),
                progress="search.jsonl",
            )
        )
    return jobs


def search_architectures(session: Session, bundles: Sequence[Path], datalist: Datalist) -> None:
    """Find the architectures that are not found yet, in a share of a limited time.

    A bundle for which nothing is found, or no time is left, trains its fixed architecture: a warning says so.
    """
    jobs = search_jobs(session, bundles, datalist)
    left = [job for job in jobs if not is_done(job, read_result(session.workspace.job(job.id)))]
    if not left:
        return
    for job in left:  # of other inputs
        for path in (architecture_file(Path(job.cwd)), Path(job.cwd) / "search.jsonl"):
            path.unlink(missing_ok=True)
    session.refuse_without_gpus()
    slots = session.training_slots(len(left))
    if session.clock is not None:
        settings = bundle_settings(Path(left[0].cwd))
        given = float(settings["search_share"]) * session.clock.left
        seconds = seconds_a_share(given, [1.0] * len(left), len(slots))
        if seconds < LEAST_SECONDS:
            names = ", ".join(Path(job.cwd).name for job in left)
            message = f"{names}: the time is too short to search, the fixed architecture is trained"
            session.notify(Event("warning", message))
            return
        seconds = min(seconds - LEAST_SECONDS / 3, float(settings["search_seconds"] or seconds))
        jobs = [replace(job, argv=(*job.argv, f"{seconds:.1f}")) for job in jobs]
    session.stage(f"search: the architecture of {len(left)} networks, on the halves of their training cases")
    for name, result in run_jobs(session, jobs, slots).items():
        if result.status != "done":
            why = (result.error or result.status).splitlines()[0]
            message = f"{name} found nothing, the fixed architecture is trained: {why}"
            session.notify(Event("warning", message))
