"""What a part of the recipe is worth: trainings that differ in it alone, equal seconds, several seeds, paired by case.

    .venv/bin/python benchmarks/ablations/ablate.py --seconds 120 --seeds 2 \\
        --variants "base" "num_images_per_batch=1" "init_filters=8 learning_rate=0.005"

Each variant is a list of hyper-parameters over what the planner gives (`base`: none). Every training has one core (or
one GPU) to itself, as many side by side as there are; fold 0 of the data set's `training` is scored at its original
geometry, and nothing else is looked at. What was trained is kept, by data and plan: the same command goes on where it
was ended, another plan begins anew.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from hippocampus_data import DATA, missing
from scores import dice_by_case

from autoseg import pipeline
from autoseg.config import load_config, parse_value
from autoseg.devices import detect_devices, plan_slots
from autoseg.evaluation.statistics import bootstrap_mean
from autoseg.execution import LocalExecutor, Scheduler
from autoseg.pipeline.inputs import bundle_parts, fingerprint
from autoseg.records import Event, Job, Resources
from autoseg.workspace import read_json


def main() -> int:
    """Train, score, print; exit code 1 where the data are missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", nargs="+", required=True, help="settings of each; the first is what others meet")
    parser.add_argument("--seconds", type=float, default=120.0, help="of a training, its validations included")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--family", default="segresnet")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--modality", default="MRI")
    parser.add_argument("--work_dir", type=Path, default=Path("work_dirs/ablations"))
    given = parser.parse_args()
    if missing(given.data):
        return 1
    home = given.work_dir.absolute()
    config = load_config(
        {"modality": given.modality, "datalist": str(given.data / "datalist.json"), "work_dir": str(home)},
        algos=[given.family],
        num_fold=1,
    )
    (bundle,) = pipeline.generate(config)
    pairs = [(variant, seed) for seed in range(given.seeds) for variant in given.variants]
    jobs = {pair: job_of(bundle, home, *pair, given.seconds) for pair in pairs}
    slots = plan_slots(detect_devices(), len(jobs))
    Scheduler(LocalExecutor(), slots, home / "jobs", said).run(list(jobs.values()))
    scores = {pair: scores_of(Path(job.cwd)) for pair, job in jobs.items()}
    place = f"{slots[0].cpus} cores" if slots[0].gpu is None else slots[0].name
    print_table(given.variants, given.seeds, f"{given.seconds:g} s of {place} each", scores)
    return 0


def job_of(bundle: Path, home: Path, variant: str, seed: int, seconds: float) -> Job:
    """The training of one variant and seed, in a copy of the bundle."""
    words = "_".join(variant.split()).replace("/", "-").replace("'", "").replace('"', "")
    plan = fingerprint({**bundle_parts(bundle), "cases": read_json(home / "datalist.json")})[:8]
    name = f"{words}_{seconds:g}s_{seed}_{plan}"
    place = home / "trained" / name / bundle.name
    if not place.is_dir():
        draft = home / "drafts" / name
        shutil.rmtree(draft, ignore_errors=True)
        shutil.copytree(bundle, draft)
        settings = draft / "configs" / "hyper_parameters.yaml"
        text = settings.read_text("utf-8").replace("../cache", str(home / "cache"))
        settings.write_text(text.replace("../datalist.json", str(home / "datalist.json")), "utf-8")
        place.parent.mkdir(parents=True, exist_ok=True)
        draft.rename(place)
    said = [] if variant == "base" else [word.partition("=") for word in variant.split()]
    flags = [f"--{key}={json.dumps(parse_value(value))}" for key, _, value in said]
    flags += [f"--seed={seed}", f"--max_seconds={seconds}", "--num_epochs=None", "--num_iterations=None"]
    return Job(
        id=name,
        argv=(sys.executable, str(place / "scripts" / "train.py"), "run", *flags),
        cwd=str(place),
        outputs=("scores.json",),
        fingerprint=name,
        resources=Resources(gpus=1 if detect_devices().gpus else 0),
        progress="metrics.jsonl",
    )


def said(event: Event) -> None:
    if event.kind in ("job_done", "job_failed", "warning"):
        print(f"  {event.message}", flush=True)


def scores_of(place: Path) -> dict[str, Any]:
    """{steps, cases: mean Dice by case} of a training; no cases where it failed."""
    if not (place / "scores.json").is_file():
        return {"steps": 0, "cases": {}}
    found = read_json(place / "scores.json")
    return {"steps": found["steps"], "cases": dice_by_case(found["cases"])}


def print_table(variants: Sequence[str], seeds: int, terms: str, scores: dict[tuple[str, int], dict[str, Any]]) -> None:
    """Means over cases and seeds; the difference from the first variant is paired by case, over the means of seeds."""
    print(f"\n{terms}, {seeds} seeds\n\n| variant | steps | Dice | difference from the first |")
    print("| --- | --- | --- | --- |")
    first: dict[str, float] = {}
    for variant in variants:
        runs = [scores[variant, seed] for seed in range(seeds)]
        if not all(run["cases"] for run in runs):
            print(f"| {variant} | | failed | |")
            continue
        means = {case: fmean(run["cases"][case] for run in runs) for case in runs[0]["cases"]}
        first = first or means
        mean, low, high = bootstrap_mean([means[case] - first[case] for case in means])
        steps = round(fmean(run["steps"] for run in runs))
        line = f"| {variant} | {steps} | {fmean(means.values()):.4f} "
        print(line + ("| |" if means is first else f"| {mean:+.4f} [{low:+.4f}, {high:+.4f}] |"))


if __name__ == "__main__":
    raise SystemExit(main())
