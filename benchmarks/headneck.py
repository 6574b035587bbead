"""The default families on HeadNeckCT, by one call: Dice by class and family, and whether left and right are told apart.

    .venv/bin/python benchmarks/headneck.py run --minutes 54 --refit 3     # and then
    .venv/bin/python benchmarks/headneck.py report               # the tables of a run once more
    .venv/bin/python benchmarks/headneck.py together             # its families averaged, in cross-validation

`--minutes` bounds the training stage; `--refit`: networks on all of the 24 training cases, beside those of folds. The
cross-validation is over these cases, each predicted at its own geometry by the networks that did not train on it; the
six testing cases are predicted by the ensemble. A case counts as exchanged where the predicted right parotid overlaps
the left one of the reference more than the right one.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import fire
import nibabel as nib
import numpy as np
from rich.console import Console

from autoseg.config import load_config
from autoseg.datalist import load_datalist
from autoseg.devices import torch_device
from autoseg.engine.bundle import Bundle
from autoseg.engine.predictor import Predictor
from autoseg.evaluation import dice_by_label, mean_dice, read_evaluation, read_label_map
from autoseg.pipeline import run as run_pipeline
from autoseg.report.screen import Screen
from autoseg.workspace import Workspace, read_json, read_yaml

DATA = Path(__file__).resolve().parents[2] / "shared" / "datasets" / "HeadNeckCT"
RIGHT, LEFT = 3, 4


def run(minutes: float = 54.0, refit: int = 3, data: str = str(DATA), work_dir: str = "work_dirs/headneck") -> None:
    """The one call, then the report."""
    started = time.monotonic()
    config = load_config(None, work_dir=work_dir, datalist=f"{data}/datalist.json", minutes=minutes, refit=refit)
    with Screen(Console()) as screen:
        run_pipeline(config, screen)
    print(f"{(time.monotonic() - started) / 60:.1f} minutes in all")
    report(work_dir)


def report(work_dir: str = "work_dirs/headneck") -> None:
    """Tables in Markdown, from the files of a finished run."""
    workspace = Workspace(work_dir)
    families = read_json(workspace.cross_validation_json)["families"]
    evaluation = read_evaluation(workspace.evaluation_json)
    columns = {name: (scores["mean_dice"], scores["dice"]) for name, scores in families.items()}
    print("\n| class | " + " | ".join([*columns, "ensemble, testing"]) + " |")
    print("| --- |" + " --- |" * (len(columns) + 1))
    for value, name in evaluation.labels.items():
        cells = [f"{dice[value]['mean']:.3f}" for _, dice in columns.values()]
        print(f"| {name} | " + " | ".join([*cells, f"{evaluation.dice[value].mean:.3f}"]) + " |")
    means = [f"{mean:.4f}" for mean, _ in columns.values()]
    print("| mean | " + " | ".join([*means, f"{evaluation.mean_dice:.4f}"]) + " |\n")
    pairs = list(_pairs(workspace, list(families)))
    exchanged = [case for case, predicted, reference in pairs if _exchanged(predicted, reference)]
    print(f"parotids exchanged in {len(exchanged)} of {len(pairs)} predictions {', '.join(exchanged)}".rstrip())
    best = max(mean for mean, _ in columns.values())
    print(f"headneck: best family {best:.4f}, ensemble on the testing cases {evaluation.mean_dice:.4f}")


def together(work_dir: str = "work_dirs/headneck") -> None:
    """What averaging the families is worth, without the testing cases: a fold's cases by the mean of its networks."""
    workspace = Workspace(work_dir)
    names = list(read_json(workspace.cross_validation_json)["families"])
    scores = []
    folds = load_datalist(workspace.datalist_json, read_yaml(workspace.input_yaml)["dataroot"]).num_fold
    for fold in range(folds):
        bundles = [Bundle.load(workspace.bundle(name, fold)) for name in names]
        predictor = Predictor(bundles, torch_device())
        for case in bundles[0].cases()[1]:
            reference = np.asarray(read_label_map(str(case.label)).data)
            scores.append(dice_by_label(predictor.predict(case).labels, reference, predictor.classes.keys))
    print(f"{' and '.join(names)} together, {len(scores)} cases by {folds} folds: mean Dice {mean_dice(scores):.4f}")


def _pairs(workspace: Workspace, families: list[str]) -> Iterator[tuple[str, Path, str]]:
    """(name, prediction, reference) of every validation case by every family, and of the testing cases."""
    datalist = load_datalist(workspace.datalist_json, read_yaml(workspace.input_yaml)["dataroot"])
    for fold in range(datalist.num_fold):
        for case in datalist.split(fold)[1]:
            for family in families:
                path = workspace.bundle(family, fold) / "validation" / f"{case.id}.nii.gz"
                yield f"{case.id} ({family})", path, str(case.label)
    for case in datalist.testing:
        yield case.id, workspace.prediction(case.id), str(case.label)


def _exchanged(predicted: Path, reference: str) -> bool:
    labels, truth = (np.asarray(nib.load(path).dataobj) for path in (predicted, reference))  # type: ignore[attr-defined]
    overlaps = {(p, r): np.count_nonzero((labels == p) & (truth == r)) for p in (RIGHT, LEFT) for r in (RIGHT, LEFT)}
    return bool(overlaps[RIGHT, LEFT] > overlaps[RIGHT, RIGHT] or overlaps[LEFT, RIGHT] > overlaps[LEFT, LEFT])


if __name__ == "__main__":
    fire.Fire({"run": run, "report": report, "together": together})
