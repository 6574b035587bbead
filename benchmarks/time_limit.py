"""Whole calls on Task04_Hippocampus at several time limits: is the time kept, and does more of it make better networks?

    .venv/bin/python benchmarks/time_limit.py --limits 2m,5m,15m,40m

Each is one `autoseg run --time_limit` in a process and a work_dir of its own, timed from its start to its end. Prints
the time used, cross-validation and Dice of the 20 testing cases (reported, nothing is chosen by them), and of each step
up in time the paired 95 % interval of the gain over those cases. A limit is kept where the time used is within 5 % or
30 s of it, whichever is more. Exit code 1 where one was not, or where an interval lies below zero.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from hippocampus_data import DATA, missing

from autoseg.config.keys import READERS
from autoseg.evaluation import Evaluation, read_evaluation
from autoseg.evaluation.statistics import bootstrap_mean
from autoseg.workspace import Workspace, read_json


def main() -> int:
    """Run them all, shortest first, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--limits", default="2m,5m,15m,40m")
    parser.add_argument("--work_dir", type=Path, default=Path("work_dirs/time_limit"))
    parser.add_argument("--data", type=Path, default=DATA)
    given = parser.parse_args()
    if missing(given.data):
        return 1
    rows = [call(limit, given.work_dir / limit, given.data) for limit in given.limits.split(",")]
    print("\n| limit | used, s | over | trained | cross-validation | testing | gain (95 %) |\n" + "| --- " * 7 + "|")
    kept, worse = 0, 0
    for before, (limit, used, workspace) in zip([None, *rows], rows, strict=False):
        allowed = READERS["time_limit"](limit)
        kept += abs(used - allowed) <= max(0.05 * allowed, 30.0)
        evaluation = read_evaluation(workspace.evaluation_json)
        gain = ""
        if before is not None:
            mean, low, high = paired(read_evaluation(before[2].evaluation_json), evaluation)
            worse += high < 0
            gain = f"{mean:+.4f} [{low:+.4f}, {high:+.4f}]"
        folds = read_json(workspace.cross_validation_json)["families"]
        validated = ", ".join(f"{name} {scores['mean_dice']:.4f}" for name, scores in folds.items())
        trained = ", ".join(f"{e['algo']}_{e['fold']}" for e in read_json(workspace.leaderboard_json)["entries"])
        over = used / allowed - 1
        print(f"| {limit} | {used:.0f} | {over:+.1%} | {trained} | {validated} | {evaluation.mean_dice:.4f} | {gain} |")
    print(f"\ntime_limit: {kept} of {len(rows)} limits kept, {worse} of {len(rows) - 1} steps up in time for the worse")
    return 0 if kept == len(rows) and not worse else 1


def call(limit: str, work_dir: Path, data: Path) -> tuple[str, float, Workspace]:
    """(limit, seconds used, work_dir) of one whole call; ends the benchmark where it fails."""
    argv = [sys.executable, "-m", "autoseg", "run", "--datalist", str(data / "datalist.json"), "--modality", "MRI"]
    started = time.monotonic()
    code = subprocess.run([*argv, "--time_limit", limit, "--work_dir", str(work_dir)], check=False).returncode
    if code:
        raise SystemExit(f"the run of {limit} ended with exit code {code}")
    return limit, time.monotonic() - started, Workspace(work_dir)


def paired(one: Evaluation, other: Evaluation) -> tuple[float, float, float]:
    """(mean, low, high) of how much better `other` is, over the cases that both evaluated."""
    a, b = by_case(one), by_case(other)
    return bootstrap_mean([b[case] - a[case] for case in sorted(a.keys() & b.keys())])


def by_case(evaluation: Evaluation) -> dict[str, float]:
    """Mean Dice of every case over its classes."""
    rows: dict[str, list[float]] = {}
    for row in evaluation.cases:
        rows.setdefault(row.case, []).append(row.dice)
    return {case: float(np.nanmean(values)) for case, values in rows.items()}


if __name__ == "__main__":
    raise SystemExit(main())
