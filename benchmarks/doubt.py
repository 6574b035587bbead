"""What the doubt of finished runs is worth on their testing cases: are those to be looked at the worst ones?

    .venv/bin/python benchmarks/doubt.py WORK_DIR [WORK_DIR ...]

By run: the mean difference between predicted and true Dice of a case, their rank correlation, and how many of the worst
tenth of the cases were flagged (recall) and how many of the flagged belong to it (precision). The rule was learned from
cross-validation; the testing cases are read here for the first time.
"""

from __future__ import annotations

import math
from pathlib import Path
from statistics import fmean

import fire
from scipy.stats import spearmanr
from scores import dice_by_case

from autoseg.workspace import Workspace, read_json

WORST = 0.1


def main(*work_dirs: str) -> None:
    """A line a run."""
    for work_dir in work_dirs:
        workspace = Workspace(work_dir)
        found = read_json(workspace.doubt_json)
        dice = dice_by_case(read_json(workspace.evaluation_json)["cases"])
        rows = [row for row in found["cases"] if row["case"] in dice and row["mean_dice"] is not None]
        predicted, true = [row["mean_dice"] for row in rows], [dice[row["case"]] for row in rows]
        worst = {row["case"] for row in sorted(rows, key=lambda r: dice[r["case"]])[: math.ceil(WORST * len(rows))]}
        flagged = {row["case"] for row in rows if row["look"]}
        hit = len(worst & flagged)
        print(
            f"{Path(work_dir).name}: {len(rows)} cases, learned from {found['n_cases']}; predicted Dice off by "
            f"{fmean(abs(a - b) for a, b in zip(predicted, true, strict=True)):.4f}, in the mean "
            f"{fmean(predicted) - fmean(true):+.4f}; rank correlation {spearmanr(predicted, true).statistic:.2f}; "
            f"{len(flagged)} flagged, {hit} of the worst {len(worst)}: recall {hit / len(worst):.2f}, precision "
            f"{hit / len(flagged) if flagged else math.nan:.2f}"
        )


if __name__ == "__main__":
    fire.Fire(main)
