"""What windows are worth: each fold's validation cases, predicted in all planned windows and in fewer.

    .venv/bin/python benchmarks/windows.py WORK_DIR [--most 29]

Prints, by fold and level of `autoseg.planning.windows`, mean Dice, seconds a case, and the paired difference from all
windows with its 95 % interval. `--most` cases of a fold; the testing cases are not looked at.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from statistics import fmean

import fire
from scores import paired

from autoseg.bundles.marks import bundle_settings
from autoseg.devices import torch_device
from autoseg.engine.bundle import Bundle
from autoseg.engine.classes import Classes
from autoseg.engine.predictor import Predictor
from autoseg.evaluation import mean_dice, onto_grid_of
from autoseg.planning.windows import LEVELS, fewer_windows
from autoseg.workspace import Workspace, read_json


def main(work_dir: str, most: int = 29) -> None:
    """Predict, print; nothing is written but what a temporary folder holds."""
    workspace = Workspace(Path(work_dir))
    board = [entry for entry in read_json(workspace.leaderboard_json)["entries"] if entry["status"] == "done"]
    for name in sorted(f"{entry['algo']}_{entry['fold']}" for entry in board):
        root = workspace.root / name
        planned = bundle_settings(root)
        if not Bundle.load(root).cases()[1]:
            continue
        all_windows: list[float] = []
        for level in LEVELS:
            settings = {key: planned[key] for key in ("overlap", "mirror_axes_inference")}
            settings |= fewer_windows(planned, level)
            bundle = Bundle.load(root, settings)
            started = time.monotonic()
            found = dice(bundle, most)
            seconds = (time.monotonic() - started) / len(found)
            all_windows = all_windows or found
            mirrored = "mirrored" if settings["mirror_axes_inference"] else "as it is"
            words = f"overlap {settings['overlap']:g}, {mirrored}"
            print(f"{name}, {len(found)} cases, {words}: {fmean(found):.4f}, {seconds:.2f} s a case", end="")
            print(f", {paired(found, all_windows)}" if level else "", flush=True)


def dice(bundle: Bundle, most: int) -> list[float]:
    """Mean Dice over the labels of each of a bundle's first validation cases."""
    scored, predictor = Classes.of(bundle.settings).scored, Predictor([bundle], torch_device())
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for case in [case for case in bundle.cases()[1] if case.label][:most]:
            path = Path(folder) / "prediction.nii.gz"
            predictor.write(case, path)
            prediction = scored.read(path)
            reference, _ = onto_grid_of(prediction, scored.read(str(case.label)))
            found.append(mean_dice([scored.dice(prediction.data, reference.data)]))
    return found


if __name__ == "__main__":
    fire.Fire(main)
