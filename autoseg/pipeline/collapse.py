"""Networks that have collapsed, far below their siblings: trained once more, with another seed."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from autoseg.bundles.marks import bundle_settings, is_foreign_bundle
from autoseg.ensemble.members import collapsed, told_dice
from autoseg.pipeline.session import Session
from autoseg.pipeline.training import reseeded, training_jobs
from autoseg.records import Datalist, Event, JobResult, LeaderboardEntry
from autoseg.workspace import write_json

OTHER_SEED = 7919  # added to the seed
MADE = ("models", "validation", "tensorboard", "scores.json", "metrics.jsonl", "progress.yaml")
WORTH = 0.5  # of the time a training was planned to take, that must be left for another


def reseed_collapsed(
    session: Session,
    bundles: Sequence[Path],
    datalist: Datalist,
    board: Sequence[LeaderboardEntry],
    results: Mapping[str, JobResult],
    seconds: float,
) -> list[str]:
    """Give each collapsed network another seed and forget its training, once; returns the names of those bundles.

    `seconds`: that are left for trainings; one that trained over twice as long stays as it is. What was reseeded is
    in reseeded.json, {bundle: {seed, fingerprint of the training that collapsed}}: it counts as long as that training
    would be the same again.
    """
    fallen = collapsed(board)
    if not fallen:
        return []
    known = reseeded(session.workspace)
    jobs = {job.id: job for job in training_jobs(session, bundles, datalist, seeds={})}
    again = []
    for entry in fallen:
        bundle = session.workspace.root / entry.name
        was = known.get(entry.name, {})
        if is_foreign_bundle(bundle) or was.get("fingerprint") == jobs[entry.name].fingerprint:
            continue
        needed = WORTH * entry.seconds + max(0.0, results[entry.name].seconds - entry.seconds)  # its start, its scores
        if needed > seconds:
            session.notify(Event("warning", f"{entry.name} collapsed, and there is no time to train it anew"))
            continue
        seconds -= needed
        for name in MADE:
            path = bundle / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        seed = int(bundle_settings(bundle)["seed"]) + OTHER_SEED
        known[entry.name] = {"seed": seed, "fingerprint": jobs[entry.name].fingerprint}
        write_json(session.workspace.reseeded_json, {"bundles": known})
        message = f"{entry.name} collapsed (Dice {told_dice(entry):.3f}): it is trained once more, with seed {seed}"
        session.notify(Event("warning", message, {"id": entry.name, "seed": seed}))
        again.append(entry.name)
    return again
