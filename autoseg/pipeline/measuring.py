"""How fast families train and predict here: jobs of a few steps, on the slots that trainings will have."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from autoseg.bundles.marks import family_and_fold
from autoseg.pipeline.inputs import bundle_parts, case_digests, fingerprint, made_from
from autoseg.pipeline.session import Session
from autoseg.pipeline.training import run_jobs, trainings
from autoseg.records import Datalist, Job, Resources, Slot, Speed
from autoseg.workspace import read_json, restored

SHARING_GAIN = 1.1  # times as many steps in the same time that trainings side by side on a GPU must make
SHARING_LIMIT = 600.0  # seconds: in a shorter call, trying it out costs more than it gives


def measure(session: Session, bundles: Sequence[Path], datalist: Datalist) -> dict[str, Speed]:
    """The speed of every family, of its first fold, on the slots that trainings will have.

    Small trainings that could share GPUs are also measured side by side, and `session.job_memory` says so where that
    makes SHARING_GAIN times as many steps.
    """
    number = trainings(session, bundles, datalist)
    slots = session.slots(number)
    alone = _measured(session, bundles, datalist, slots, "measure")
    memory = max((speed.memory for speed in alone.values()), default=0)
    side_by_side = session.slots(number, memory)
    hurried = session.clock is not None and session.clock.limit < SHARING_LIMIT
    session.job_memory = 0
    if len(side_by_side) <= len(slots) or hurried:
        return alone
    shared = _measured(session, bundles, datalist, side_by_side, "measure_shared")
    if set(shared) != set(alone):
        return alone
    gain = len(side_by_side) / len(slots) * sum(s.step for s in alone.values()) / sum(s.step for s in shared.values())
    if gain < SHARING_GAIN:
        return alone
    session.job_memory = memory
    session.stage(f"{len(side_by_side)} trainings share {len(slots)} GPUs: {gain:.1f} times as many steps in a second")
    return shared


def _measured(
    session: Session, bundles: Sequence[Path], datalist: Datalist, slots: Sequence[Slot], label: str
) -> dict[str, Speed]:
    """Speeds on these slots, with as many jobs at a time as will be trained on one GPU, or on all cores."""
    first = first_bundles(bundles)
    beside = [b for b in bundles if b not in first.values()] if len(slots) > len(session.devices.gpus) else []
    measured = [*first.values(), *beside[: max(0, len(slots) - len(first))]]
    cases = {"training": case_digests(datalist.training), "validation": case_digests(datalist.validation)}
    jobs = []
    for bundle in measured:
        folder = session.workspace.job(f"{label}_{bundle.name}")
        inputs = made_from(**bundle_parts(bundle), **cases, slots={slot.id: slot for slot in slots})
        jobs.append(
            Job(
                id=folder.name,
                argv=(sys.executable, "-m", "autoseg.engine", "measure", str(bundle), str(folder / "speed.json")),
                cwd=str(session.workspace.root),
                outputs=(f"jobs/{folder.name}/speed.json",),
                inputs=inputs,
                fingerprint=fingerprint(inputs),
                resources=Resources(gpus=1 if session.devices.gpus else 0),
            )
        )
    session.stage(f"measuring: a few steps of {', '.join(first)}{' side by side' if 'shared' in label else ''}")
    results = run_jobs(session, jobs, slots)
    session.refuse_without_gpus()
    speeds = {}
    for name, bundle in first.items():
        job = f"{label}_{bundle.name}"
        if results[job].status == "done":
            path = session.workspace.job(job) / "speed.json"
            speeds[name] = restored(Speed, read_json(path), path)
    return speeds


def family_of(bundle: Path) -> str:
    """The name of a bundle's family."""
    return family_and_fold(bundle)[0]


def fold_of(bundle: Path) -> int:
    """The number of a bundle's fold."""
    return family_and_fold(bundle)[1]


def first_bundles(bundles: Sequence[Path]) -> dict[str, Path]:
    """The first bundle of every family."""
    return {family_of(bundle): bundle for bundle in reversed(bundles)}
