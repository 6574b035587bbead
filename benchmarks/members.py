"""What networks of folds and those on all cases are worth, each and together, on the testing cases of a finished run.

    .venv/bin/python benchmarks/members.py WORK_DIR

Every network of the run predicts every testing case that has a reference; ensembles are means of their probabilities.
Prints mean Dice of each network and of the ensembles, by size, of folds, of networks on all cases and of both, and
paired differences with their 95 % intervals. The run is of one family, its labels are exclusive.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import fire
import numpy as np
import torch
from scores import paired

from autoseg.datalist import load_datalist
from autoseg.devices import torch_device
from autoseg.engine.bundle import Bundle
from autoseg.engine.classes import Classes
from autoseg.engine.predictor import Predictor
from autoseg.evaluation import mean_dice, read_label_map
from autoseg.evaluation.metrics import dice_by_label
from autoseg.workspace import Workspace, read_json


def main(work_dir: str) -> None:
    """Predict, print; nothing is written."""
    workspace = Workspace(Path(work_dir))
    datalist = load_datalist(workspace.root / "datalist.json")
    board = [entry for entry in read_json(workspace.leaderboard_json)["entries"] if entry["status"] == "done"]
    names = sorted((f"{entry['algo']}_{entry['fold']}" for entry in board), key=lambda n: int(n.rpartition("_")[2]))
    bundles = {name: Bundle.load(workspace.root / name) for name in names}
    cases = [case for case in datalist.testing if case.label]
    labels = sorted(datalist.labels)
    classes = Classes.of(next(iter(bundles.values())).settings)
    references = [np.asarray(read_label_map(str(case.label)).data) for case in cases]
    said: dict[str, list[Any]] = {}
    for name, bundle in bundles.items():
        predictor = Predictor([bundle], torch_device())
        said[name] = [predictor.probabilities(case)[0] for case in cases]

    def dice(members: Sequence[str]) -> list[float]:
        found = []
        for number, reference in enumerate(references):
            mean = torch.from_numpy(np.mean([said[name][number] for name in members], 0))
            found.append(mean_dice([dice_by_label(classes.decide(mean), reference, labels)]))
        return found

    folds = [name for name, bundle in bundles.items() if bundle.cases()[1]]
    whole = [name for name in names if name not in folds]
    for name in names:
        print(f"{name}: {fmean(dice([name])):.4f}{' (all cases)' if name in whole else ''}", flush=True)
    for number in range(1, 1 + min(len(folds), len(whole))):
        some, others = dice(folds[:number]), dice(whole[:number])
        print(f"{number} of folds {fmean(some):.4f}, {number} on all cases {fmean(others):.4f}: {paired(others, some)}")
    both = dice(names)
    print(f"all {len(names)}: {fmean(both):.4f}")
    for what, part in (("those of folds", folds), ("those on all cases", whole)):
        if part:
            print(f"all less {what}: {paired(both, dice(part))}")


if __name__ == "__main__":
    fire.Fire(main)
