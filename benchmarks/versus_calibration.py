"""Are probabilities as sure as they are right? autoseg and nnU-Net on the unseen cases of benchmarks/versus_nnunet.py.

    .venv/bin/python benchmarks/versus_calibration.py --minutes 5 15 45     # after versus_nnunet.py of these minutes

Both predict the unseen cases once more by what they were trained for there, with probabilities; no clock runs. The
expected calibration error of the foreground (15 bins of equal width) is over the voxels in which either tool gives it
1 % or more, or the reference has it: over those of all cases, and case by case with the paired difference. autoseg
without its temperature stands beside it.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import numpy.typing as npt
from scores import paired
from versus_nnunet import KINDS, NnUNet, question

from autoseg.datalist import load_datalist
from autoseg.devices import torch_device
from autoseg.engine.combination import Combination
from autoseg.engine.foreign import open_bundle
from autoseg.engine.predictor import Predictor
from autoseg.ensemble.calibration import calibration_error
from autoseg.evaluation import read_label_map
from autoseg.records import Datalist
from autoseg.workspace import Workspace, read_json, write_json

LEAST = 0.01
Foreground = dict[str, npt.NDArray[np.float32]]  # by case, the probability of anything but background [X, Y, Z]


def main() -> int:
    """A line a budget."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, nargs="+", default=[5.0])
    parser.add_argument("--data", choices=["hippocampus", *KINDS], default="hippocampus")
    parser.add_argument("--unseen", choices=["fold", "testing"], help="as versus_nnunet.py has it")
    parser.add_argument("--work_dir", type=Path, default=Path("work_dirs/versus"))
    parser.add_argument("--venv", type=Path, help="that of versus_nnunet.py")
    given = parser.parse_args()
    home = given.work_dir.absolute() / question(given)
    datalist = load_datalist(home / "datalist.json")
    for minutes in given.minutes:
        kept = home / f"calibration_{minutes:g}.json"
        if not kept.is_file():
            ours, plain = by_autoseg(datalist, home / f"autoseg_{minutes:g}" / "run")
            theirs = by_nnunet(datalist, NnUNet(home, home / f"nnunet_{minutes:g}", datalist, given))
            write_json(kept, errors(datalist, {"autoseg": ours, "without temperature": plain, "nnunet": theirs}))
        print(line(minutes, read_json(kept)), flush=True)
    return 0


def by_autoseg(datalist: Datalist, work_dir: Path) -> tuple[Foreground, Foreground]:
    """(as the ensemble answers, as it would without its temperature)."""
    workspace = Workspace(work_dir)
    record = read_json(workspace.ensemble_json)
    combination = Combination.of(record)
    bundles = [open_bundle(workspace.named_bundle(name)) for name in record["members"]]
    found = []
    for how in (combination, replace(combination, temperature=1.0)):
        predictor = Predictor(bundles, torch_device(), how)
        found.append({case.id: 1 - predictor.probabilities(case)[0][0] for case in datalist.testing})
    return found[0], found[1]


def by_nnunet(datalist: Datalist, nnunet: NnUNet) -> Foreground:
    """By its own command, with `--save_probabilities`."""
    target = nnunet.folder / "probabilities"
    shutil.rmtree(target, ignore_errors=True)
    nnunet.predict(nnunet.images, target, "--save_probabilities")
    found = {}
    for case in datalist.testing:
        with np.load(target / f"{case.id}.npz", allow_pickle=False) as stored:
            found[case.id] = 1 - stored["probabilities"][0].astype(np.float32).transpose()  # its axes are z, y, x
    return found


def errors(datalist: Datalist, found: Mapping[str, Foreground]) -> dict[str, Any]:
    """By tool the error over all voxels, and that of each case."""
    pooled: dict[str, list[npt.NDArray[np.float32]]] = {tool: [] for tool in found}
    truths, by_case = [], {tool: dict[str, float]() for tool in found}
    for case in datalist.testing:
        truth = np.asarray(read_label_map(str(case.label)).data) > 0
        counted = truth | np.any([own[case.id] >= LEAST for own in found.values()], 0)
        truths.append(truth[counted])
        for tool, own in found.items():
            said = np.clip(own[case.id][counted], 0, 1)
            pooled[tool].append(said)
            by_case[tool][case.id] = calibration_error(said, truths[-1])
    truth = np.concatenate(truths)
    return {
        tool: {"pooled": calibration_error(np.concatenate(own), truth), "cases": by_case[tool]}
        for tool, own in pooled.items()
    }


def line(minutes: float, found: Mapping[str, Any]) -> str:
    """What is printed of a budget."""
    said = [
        f"{tool} {one['pooled']:.4f} (case by case {fmean(one['cases'].values()):.4f})"
        for tool, one in found.items()
        if tool != "schema_version"
    ]
    ours, theirs = found["autoseg"]["cases"], found["nnunet"]["cases"]
    gain = paired(list(ours.values()), [theirs[case] for case in ours])
    return f"{minutes:g} minutes: {', '.join(said)}; autoseg - nnU-Net by case {gain}"


if __name__ == "__main__":
    raise SystemExit(main())
