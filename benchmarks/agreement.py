"""Would agreement say which predictions are bad? A finished run's networks are asked again, in nine variants each.

    .venv/bin/python benchmarks/agreement.py WORK_DIR

A variant mirrors, rotates, scales or disturbs each window, and moves the answer back. By case: how well each answer's
mask overlaps with that of their mean (Dice, over labels), what the mean expects (`autoseg.engine.expected`), its
entropy and the volume. Printed is the rank correlation of each with the true Dice: out of fold, where a case is asked
of the one network that has not seen it, and on the testing cases, where all are asked; then that of a ridge regression
on all of them, a fold judged by the others', and how many of the worst tenth are among its lowest tenth. The run is of
one family, its labels are exclusive.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import fire
import numpy as np
import numpy.typing as npt
import torch
from scipy.stats import spearmanr
from torch.nn.functional import affine_grid, grid_sample

from autoseg.datalist import load_datalist
from autoseg.devices import torch_device
from autoseg.engine.bundle import Bundle
from autoseg.engine.classes import Classes
from autoseg.engine.expected import ExpectedDice
from autoseg.engine.out_of_fold import LEAST
from autoseg.engine.predictor import Predictor
from autoseg.evaluation import read_label_map
from autoseg.evaluation.metrics import dice_by_label
from autoseg.records import Case
from autoseg.workspace import Workspace, read_json

VARIANTS: tuple[tuple[str, float], ...] = (
    ("plain", 0.0),
    ("mirrored", 0.0),
    *(("rotated", degrees) for degrees in (10.0, -10.0)),
    *(("scaled", factor) for factor in (0.92, 1.08)),
    ("noise", 0.15),
    *(("gamma", exponent) for exponent in (0.8, 1.25)),
)
WORST, RIDGE = 0.1, 100.0
Array = npt.NDArray[np.float64]


class Varied(torch.nn.Module):
    """A network that sees its windows [B, C, X, Y, Z] in a variant, and answers for them as they were."""

    def __init__(self, network: torch.nn.Module, kind: str, amount: float):
        super().__init__()
        self.network, self.kind, self.amount = network, kind, amount

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        if self.kind == "mirrored":
            return self._answer(windows.flip(2)).flip(2)
        if self.kind in ("rotated", "scaled"):
            return self._moved(self._answer(self._moved(windows, 1)), -1)
        if self.kind == "noise":
            generator = torch.Generator().manual_seed(0)
            windows = windows + self.amount * torch.randn(windows.shape, generator=generator).to(windows.device)
        if self.kind == "gamma":
            low, high = windows.amin(), windows.amax()
            windows = ((windows - low) / (high - low)).pow(self.amount)
            windows = (windows - windows.mean()) / windows.std()
        return self._answer(windows)

    def _answer(self, windows: torch.Tensor) -> torch.Tensor:
        found: Any = self.network(windows)
        answer: torch.Tensor = found[0] if isinstance(found, (list, tuple)) else found
        return answer

    def _moved(self, volumes: torch.Tensor, sign: int) -> torch.Tensor:
        matrix = torch.eye(3, 4)
        if self.kind == "scaled":
            matrix[:, :3] *= self.amount**sign
        else:
            angle = math.radians(sign * self.amount)
            matrix[:2, :2] = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        grid = affine_grid(matrix[None].expand(len(volumes), -1, -1), list(volumes.shape), align_corners=False)
        return grid_sample(volumes.float(), grid.to(volumes.device), padding_mode="border", align_corners=False)


def main(work_dir: str) -> None:
    """Ask, correlate, print; nothing is written."""
    workspace = Workspace(Path(work_dir))
    datalist = load_datalist(workspace.root / "datalist.json")
    board = [entry for entry in read_json(workspace.leaderboard_json)["entries"] if entry["status"] == "done"]
    if len({entry["algo"] for entry in board}) != 1:
        raise SystemExit(f"{work_dir}: a run of one family is asked for")
    bundles = {entry["fold"]: Bundle.load(workspace.root / f"{entry['algo']}_{entry['fold']}") for entry in board}
    networks = {bundle.root: bundle.trained_network().eval() for bundle in bundles.values()}
    rows: list[tuple[int, dict[str, float]]] = []  # by the fold that answers
    for fold, bundle in sorted(bundles.items()):
        bundle.settings["mirror_axes_inference"] = []  # that is one of the variants
        rows += [(fold, asked(case, [bundle], networks)) for case in datalist.split(fold)[1]]
        print(f"{bundle.name}: {len(rows)} cases", flush=True)
    seen = [row for row in rows if not math.isnan(row[1]["dice"])]
    tested = [asked(case, list(bundles.values()), networks) for case in datalist.testing if case.label]
    report(seen, [row for row in tested if not math.isnan(row["dice"])])


def asked(case: Case, bundles: Sequence[Bundle], networks: dict[Path, torch.nn.Module]) -> dict[str, float]:
    """True Dice and what might tell it, means over labels; NaN where a label is neither found nor there."""
    answers = []
    for kind, amount in VARIANTS:
        for bundle in bundles:
            varied = {bundle.root: Varied(networks[bundle.root], kind, amount)}
            answers.append(Predictor([bundle], torch_device(), networks=varied).probabilities(case)[0])
    classes = Classes.of(bundles[0].settings)
    mean = torch.from_numpy(np.mean(answers, 0))
    hoped = ExpectedDice(classes)
    hoped.add(mean)
    labels = classes.keys
    decided, masks = classes.decide(mean), [classes.decide(torch.from_numpy(answer)) for answer in answers]
    true = dice_by_label(decided, np.asarray(read_label_map(str(case.label)).data), labels)
    agreed = [dice_by_label(decided, mask, labels) for mask in masks]
    by_label: dict[str, list[float]] = {}
    for output, label in enumerate(labels, 1):
        p, size = mean[output][mean[output] >= LEAST], max(1, int(np.count_nonzero(decided == label)))
        own = np.reshape([found[str(label)] for found in agreed], (len(VARIANTS), -1)).mean(1)
        found = {f"agreement, {kind} {amount:g}": own[n] for n, (kind, amount) in enumerate(VARIANTS)}
        found |= {"dice": true[str(label)], "agreement of all": own.mean(), "expected": hoped.by_key()[label] or 0.0}
        found |= {"entropy": -float((p * (1 - p)).sum()) / size, "volume": math.log(size)}
        for name, number in found.items():
            by_label.setdefault(name, []).append(float(number))
    return {name: fmean(numbers) for name, numbers in by_label.items()}


def report(seen: Sequence[tuple[int, dict[str, float]]], tested: Sequence[dict[str, float]]) -> None:
    """A line a measure, and one of the regression."""
    names = [name for name in seen[0][1] if name != "dice"]
    folds = np.array([fold for fold, _ in seen])
    known, unseen = (
        np.nan_to_num([[row[name] for name in names] for row in rows]) for rows in ([row for _, row in seen], tested)
    )
    dice, true = np.array([row["dice"] for _, row in seen]), np.array([row["dice"] for row in tested])
    print(f"\n| measure | {len(dice)} out of fold | {len(true)} testing cases |\n| --- | --- | --- |")
    for column, name in enumerate(names):
        own, other = spearmanr(known[:, column], dice).statistic, spearmanr(unseen[:, column], true).statistic
        print(f"| {name} | {own:+.2f} | {other:+.2f} |")
    crossed = np.zeros(len(dice))
    for fold in np.unique(folds):
        crossed[folds == fold] = ridge(known[folds != fold], dice[folds != fold], known[folds == fold])
    both = ((crossed, dice), (ridge(known, dice, unseen), true))
    told = [f"{spearmanr(*pair).statistic:+.2f}, {found_worst(*pair)}" for pair in both]
    print(f"| ridge regression | {told[0]} | {told[1]} |")


def ridge(known: Array, dice: Array, asked_for: Array) -> Array:
    """Predicted Dice of rows, from measures [cases, measures] and Dice of others."""
    middle, spread = known.mean(0), known.std(0) + 1e-9
    x = (known - middle) / spread
    weights = np.linalg.solve(x.T @ x + RIDGE * np.eye(x.shape[1]), x.T @ (dice - dice.mean()))
    found: Array = (asked_for - middle) / spread @ weights + dice.mean()
    return found


def found_worst(predicted: Array, true: Array) -> str:
    """How many of the worst tenth are among the lowest tenth."""
    count = math.ceil(WORST * len(true))
    hits = len(set(np.argsort(true)[:count]) & set(np.argsort(predicted)[:count]))
    return f"{hits} of the worst {count}"


if __name__ == "__main__":
    fire.Fire(main)
