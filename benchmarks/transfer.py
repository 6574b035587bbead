"""Fine-tuning against training from scratch: hippocampus, 20 cases, the same steps, several seeds.

    .venv/bin/python benchmarks/transfer.py --tasks cases --seeds 3     about 35 minutes on two cores

Weights come from a SegResNet trained on 80 other cases: once on both labels (`cases`), once on the posterior part
alone, to be tuned for the anterior one (`label`). Every seed draws its own 20 cases of 50 to tune on; Dice is over the
same 50 cases, from which neither training has learned; the best validation on them says which weights are kept, with
and without a start alike. All are of the data set's `training`. Goes on where it was killed.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path
from statistics import fmean
from typing import Any

from hippocampus_data import DATA, missing
from scores import dice_by_case

from autoseg.config import load_config
from autoseg.evaluation.statistics import bootstrap_mean
from autoseg.pipeline import train
from autoseg.records import Event
from autoseg.workspace import read_json, write_json

SEEN, UNSEEN, FEW = 80, 50, 20  # cases of the source, of the comparison, of the tuning
TASKS: dict[str, tuple[Any, Any]] = {
    "cases": (None, None),
    "label": ([{"name": "posterior", "index": [2]}], [{"name": "anterior", "index": [1]}]),
}
SOURCE_STEPS = 1000


def main() -> int:
    """Train and print; exit code 1 where the data are missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, nargs="+", default=[50, 200])
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--work_dir", type=Path, default=Path("work_dirs/transfer"))
    parser.add_argument("--data", type=Path, default=DATA)
    given = parser.parse_args()
    if missing(given.data):
        return 1
    plain = read_json(given.data / "datalist.json")
    cases = sorted(plain["training"], key=lambda case: str(case["image"]))
    random.Random(0).shuffle(cases)
    unseen, seen, others = cases[:UNSEEN], cases[UNSEEN : UNSEEN + SEEN], cases[UNSEEN + SEEN :]
    rows = []
    for task in given.tasks:
        there, here = TASKS[task]
        folder = given.work_dir.absolute() / task
        source = split(folder / "source.json", plain, seen, others)
        trained(given, folder / "source", source, there, SOURCE_STEPS, 0)
        for steps in given.steps:
            dice: dict[str, list[dict[str, float]]] = {"scratch": [], "tuned": []}
            for seed in range(given.seeds):
                few = random.Random(seed).sample(others, FEW)
                datalist = split(folder / f"{seed}.json", plain, few, unseen)
                for arm, found in dice.items():
                    weights = str(folder / "source") if arm == "tuned" else None
                    home = folder / f"{arm}_{steps}_{seed}"
                    found.append(trained(given, home, datalist, here, steps, seed, weights))
            rows.append(row(task, steps, dice))
            print(rows[-1], flush=True)
    print("\n| weights of | steps | from scratch | tuned | difference |\n| --- | --- | --- | --- | --- |")
    print(*rows, sep="\n")
    return 0


def split(path: Path, plain: dict[str, Any], training: list[dict[str, Any]], validation: list[dict[str, Any]]) -> Path:
    """A datalist whose fold 0 is `validation`."""
    listed = [{**case, "fold": 1} for case in training] + [{**case, "fold": 0} for case in validation]
    write_json(path, {**{k: v for k, v in plain.items() if k not in ("testing", "validation")}, "training": listed})
    return path


def trained(
    given: argparse.Namespace,
    home: Path,
    datalist: Path,
    names: Any,
    steps: int,
    seed: int,
    pretrained: str | None = None,
) -> dict[str, float]:
    """Mean Dice by case of fold 0's validation cases."""
    print(f"{home.relative_to(given.work_dir.absolute())}: {steps} steps", flush=True)
    config = load_config(
        None,
        **{"work_dir": str(home), "datalist": str(datalist), "dataroot": str(given.data), "modality": "MRI"},
        **{"algos": ["segresnet"], "num_fold": 1, "class_names": names, "seed": seed, "pretrained": pretrained},
        settings={"num_iterations": steps},
    )
    train(config, said)
    return dice_by_case(read_json(home / "segresnet_0" / "scores.json")["cases"])


def said(event: Event) -> None:
    if event.kind in ("warning", "job_failed") or "taken over" in event.message:
        print(f"  {event.message}", flush=True)


def row(task: str, steps: int, dice: dict[str, list[dict[str, float]]]) -> str:
    """Means over seeds and cases; the difference is paired by case, its interval bootstrapped over the cases."""
    means = {arm: {case: fmean(found[case] for found in seeds) for case in seeds[0]} for arm, seeds in dice.items()}
    differences = [means["tuned"][case] - value for case, value in means["scratch"].items()]
    mean, low, high = bootstrap_mean(differences)
    scratch, tuned = (fmean(means[arm].values()) for arm in ("scratch", "tuned"))
    wins = sum(fmean(t.values()) > fmean(s.values()) for s, t in zip(dice["scratch"], dice["tuned"], strict=True))
    seeds = f"better in {wins} of {len(dice['tuned'])} seeds"
    return f"| {task} | {steps} | {scratch:.4f} | {tuned:.4f} | {mean:+.4f} [{low:+.4f}, {high:+.4f}], {seeds} |"


if __name__ == "__main__":
    raise SystemExit(main())
