"""One run on real data: Task04_Hippocampus, five folds, this machine; prints Dice of both kinds of unseen cases.

    .venv/bin/python benchmarks/hippocampus.py --minutes 40

`--minutes` bounds the whole call. The cross-validation is over the 180 training cases, each predicted at its original
geometry by the one network that did not train on it; the testing cases are predicted by the ensemble.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from hippocampus_data import DATA, missing
from rich.console import Console

from autoseg.config import load_config
from autoseg.pipeline import run
from autoseg.report.screen import Screen

RESERVED = 2.0  # minutes for analysis, preprocessing, prediction and evaluation


def main() -> int:
    """Run and print; exit code 1 where the data are missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=40.0, help="of the whole call")
    parser.add_argument("--work_dir", default="work_dirs/hippocampus")
    parser.add_argument("--data", type=Path, default=DATA)
    given = parser.parse_args()
    if missing(given.data):
        return 1
    started = time.monotonic()
    config = load_config(
        None,
        work_dir=given.work_dir,
        datalist=str(given.data / "datalist.json"),
        modality="MRI",
        algos=["segresnet"],
        minutes=max(1.0, given.minutes - RESERVED),
    )
    with Screen(Console()) as screen:
        result = run(config, screen)
    folds = result.cross_validation["segresnet"]
    by_label = ", ".join(f"{result.labels[int(k)]} {v['mean']:.4f}" for k, v in folds["dice"].items())
    print(f"cross-validation ({folds['n_cases']} cases): mean Dice {folds['mean_dice']:.4f} ({by_label})")
    evaluation = result.evaluation
    if evaluation is None:
        print("no testing cases were evaluated", file=sys.stderr)
        return 1
    by_label = ", ".join(f"{result.labels[int(k)]} {v.mean:.4f}" for k, v in evaluation.dice.items())
    tested = len({row.case for row in evaluation.cases})
    minutes = (time.monotonic() - started) / 60
    print(
        f"testing ({tested} cases, {len(result.members)} networks): mean Dice {evaluation.mean_dice:.4f} ({by_label})"
    )
    print(
        f"hippocampus: {minutes:.1f} of {given.minutes:g} minutes, cross-validation {folds['mean_dice']:.4f}, "
        f"testing {evaluation.mean_dice:.4f}"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
