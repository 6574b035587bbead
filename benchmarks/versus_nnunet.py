"""autoseg against nnU-Net: the same cases, the same machine, the same minutes, scored alike on the same unseen cases.

    .venv/bin/python benchmarks/versus_nnunet.py --minutes 2 5 15 45            # hippocampus, fold 0 is unseen
    .venv/bin/python benchmarks/versus_nnunet.py --minutes 5 --unseen testing   # the listed testing cases are
    .venv/bin/python benchmarks/versus_nnunet.py --minutes 5 --data anisotropic # generated: see KINDS
    .venv/bin/python benchmarks/versus_nnunet.py --minutes 2 5 15 45 --show     # the table of what is kept

nnU-Net is installed into a virtual environment of its own (`<work_dir>/venv`, torch as ours is pinned). It gets
3d_fullres on all cases that may be learned from (fold `all`). How many iterations fit is measured before its clock
starts, with a few of them and a prediction; then plan, preprocessing, training and prediction count, as autoseg's
whole call does. Its epochs are of 250 iterations, or there is one of fewer where the time is shorter; its learning rate
is annealed from iteration to iteration (by itself it is from epoch to epoch, of which there are few here or one).
Threads and allocator are the same for both. What was trained and scored is kept by tool and budget: the same command
goes on where it was ended. Scores, with the machine and the commit they are of, are written to
`benchmarks/results/versus_nnunet` as well, by data, tool and budget.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

from hippocampus_data import DATA, missing
from machine import machine
from scores import dice_by_case, paired

from autoseg.datalist import load_datalist, plain_datalist
from autoseg.demo import make_demo_data
from autoseg.devices import available_cores, detect_devices, job_environment
from autoseg.evaluation import evaluate_pairs
from autoseg.records import Case, Datalist
from autoseg.workspace import read_json, write_json

ROOT = Path(__file__).resolve().parents[1]
NNUNET = "nnunetv2==2.8.1"
EPOCH = 250  # iterations of nnU-Net
TRIED = 6  # iterations by which its speed is measured, the first two apart
RESULTS = ROOT / "benchmarks" / "results" / "versus_nnunet"
KINDS: dict[str, dict[str, Any]] = {
    "anisotropic": {"shape": (64, 64, 20), "spacing": (0.8, 0.8, 3.0), "training": 24, "testing": 16},
    "channels": {"shape": (48, 48, 40), "channels": 3, "training": 24, "testing": 16},
    "lesions": {"shape": (80, 80, 64), "labels": (1, 2), "training": 24, "testing": 16},
    "classes": {"shape": (56, 56, 48), "labels": (1, 2, 3, 4, 5), "training": 24, "testing": 16},
}
# nnU-Net's own trainer, told its length, its rate annealed by iterations; called by its class, for its command imports
# every trainer that there is, and one of them needs a package that does not go with every torch. The last argument is
# where the ends of the steps (Unix time) and the last one's learning rate are written.
TRAINER = """
import json, os, sys, time
import torch
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as original


class nnUNetTrainer(original.nnUNetTrainer):
    def __init__(self, plans, configuration, fold, dataset_json, device):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs, self.num_iterations_per_epoch = int(sys.argv[2]), int(sys.argv[3])
        self.num_val_iterations_per_epoch = 1
        self.ends = []

    def train_step(self, batch):
        self.lr_scheduler.step(len(self.ends) / self.num_iterations_per_epoch)
        found = super().train_step(batch)
        self.ends.append(time.time())
        return found


if __name__ == "__main__":
    device = torch.device(sys.argv[1])
    torch.set_num_threads(os.cpu_count() if device.type == "cpu" else 1)
    folder = os.path.join(os.environ["nnUNet_preprocessed"], "Dataset001_versus")
    plans, dataset = (json.load(open(os.path.join(folder, name + ".json"))) for name in ("nnUNetPlans", "dataset"))
    plans["continue_training"] = False
    trainer = nnUNetTrainer(plans, "3d_fullres", "all", dataset, device)
    trainer.run_training()
    rate = trainer.optimizer.param_groups[0]["lr"]
    json.dump({"ends": trainer.ends, "last_rate": rate}, open(sys.argv[4], "w"))
"""


def main() -> int:
    """Train what is not trained yet, score, print the table; exit code 1 where the data are missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, nargs="+", default=[2.0, 5.0])
    parser.add_argument("--data", choices=["hippocampus", *KINDS], default="hippocampus")
    parser.add_argument("--unseen", choices=["fold", "testing"], help="default: fold; of what is generated, testing")
    parser.add_argument("--tools", nargs="+", choices=["autoseg", "nnunet"], default=["autoseg", "nnunet"])
    parser.add_argument("--work_dir", type=Path, default=Path("work_dirs/versus"))
    parser.add_argument("--venv", type=Path, help="an environment that has nnU-Net; default: one is made")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where scores are kept")
    parser.add_argument("--show", action="store_true", help="run nothing, print the table of what is kept")
    given = parser.parse_args()
    keep = given.results / question(given)
    asked = [(tool, minutes) for minutes in given.minutes for tool in given.tools]
    if not given.show and not run_all(given, asked, keep):
        return 1
    print_kept(asked, keep)
    return 0


def question(given: argparse.Namespace) -> str:
    """The folder's name of what is asked: the data, and which of them are unseen."""
    return f"{given.data}_{unseen(given)}"


def unseen(given: argparse.Namespace) -> str:
    """As asked; else fold 0, or the testing cases of generated data, which have no folds."""
    return given.unseen or ("fold" if given.data == "hippocampus" else "testing")


def run_all(given: argparse.Namespace, asked: Sequence[tuple[str, float]], keep: Path) -> bool:
    """Run what is asked, (tool, minutes) each, and not done yet; False where the data are missing."""
    home = given.work_dir.absolute() / question(given)
    if given.data == "hippocampus":
        if missing(DATA):
            return False
        source = DATA / "datalist.json"
    else:
        source = make_demo_data(home / "data", **KINDS[given.data])
    datalist = divided(source, home / "datalist.json", unseen(given))
    print(f"{given.data}: {len(datalist.training)} cases to learn from, {len(datalist.testing)} unseen", flush=True)
    for tool, minutes in asked:
        folder = home / f"{tool}_{minutes:g}"
        result = folder / "result.json"
        if not result.is_file() or "facts" not in read_json(result):
            told = {"labels": datalist.labels, "machine": where(), "commit": commit()}
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            run = Autoseg(home, folder) if tool == "autoseg" else NnUNet(home, folder, datalist, given)
            seconds, facts = run(60.0 * minutes)
            cases = [] if "refused" in facts else scored(datalist, folder / "predictions")
            write_json(result, {"seconds": round(seconds, 1), "facts": facts, **told, "cases": cases})
        found = read_json(result)
        write_json(keep / f"{tool}_{minutes:g}.json", found)
        print(row(tool, minutes, found), flush=True)
    return True


def where() -> str:
    """The GPUs, or the machine."""
    return ", ".join(gpu.name for gpu in detect_devices().gpus) or machine()


def commit() -> str:
    """The commit of this code; `+` where files differ from it, those of results apart."""

    def asked(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=False)
        return done.stdout.strip()

    changed = asked("status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmarks/results")
    return asked("rev-parse", "--short=7", "HEAD") + "+" * bool(changed)


def divided(source: Path, target: Path, unseen: str) -> Datalist:
    """A datalist of the cases to learn from, as `training` without folds, and of the unseen ones, as `testing`."""
    whole = load_datalist(source)
    held_out = whole.testing if unseen == "testing" else tuple(c for c in whole.training if c.fold == 0)
    learn = [case for case in whole.training if case not in held_out]
    if not held_out:
        raise SystemExit(f"{source}: no fold 0 is given, use --unseen testing")
    training, testing = (tuple(replace(case, fold=None) for case in cases) for cases in (learn, held_out))
    listed = replace(whole, dataroot=str(target.parent), num_fold=0, training=training, testing=testing)
    write_json(target, plain_datalist(listed))
    return load_datalist(target)


def environment(**more: str) -> dict[str, str]:
    """Threads and allocator, the same for both tools."""
    gpus = tuple(gpu.index for gpu in detect_devices().gpus)
    return {**os.environ, **job_environment(gpus, available_cores()), **more}


def command(argv: Sequence[str | Path], log: Path, env: Mapping[str, str], well: Sequence[int] = (0,)) -> float:
    """Run a process to its end, which must be one of the exit codes `well`; returns its seconds."""
    started = time.monotonic()
    with open(log, "ab") as file:
        code = subprocess.run([str(word) for word in argv], stdout=file, stderr=file, env=dict(env)).returncode
    if code not in well:
        raise SystemExit(f"exit code {code}: {' '.join(map(str, argv))} (log: {log})")
    return time.monotonic() - started


class Autoseg:
    """`autoseg run` as a user calls it, with the time limit, and no other setting."""

    def __init__(self, home: Path, folder: Path):
        self.home, self.folder = home, folder

    def __call__(self, limit: float) -> tuple[float, dict[str, Any]]:
        """(seconds of the call, facts)."""
        work_dir = self.folder / "run"
        argv: list[str | Path] = [
            sys.executable,
            "-m",
            "autoseg",
            "run",
            "--datalist",
            self.home / "datalist.json",
            "--modality",
            "MRI",
        ]
        argv += ["--work_dir", work_dir, "--time_limit", f"{limit:g}s"]
        # 2: the limit is refused; 3: a valid result although a job failed
        log = self.folder / "output.log"
        seconds = command(argv, log, environment(), well=(0, 2, 3))
        if not (work_dir / "ensemble_output").is_dir():
            last = log.read_text("utf-8").strip().splitlines()[-1]
            if "time_limit: " not in last:
                raise SystemExit(f"{last} (log: {log})")
            return seconds, {"refused": last}
        shutil.copytree(work_dir / "ensemble_output", self.folder / "predictions")
        board = read_json(work_dir / "leaderboard.json")["entries"]
        return seconds, {"networks": len(board), "steps": [entry["steps"] for entry in board]}


class NnUNet:
    """nnU-Net's three commands: plan and preprocess, train on all cases, predict."""

    def __init__(self, home: Path, folder: Path, datalist: Datalist, given: argparse.Namespace):
        self.home, self.folder, self.datalist = home, folder, datalist
        self.bin = (given.venv or given.work_dir.absolute() / "venv") / "bin"
        if not (self.bin / "nnUNetv2_train").is_file():
            install(self.bin.parent, given.work_dir.absolute() / "install.log")
        self.device = "cuda" if detect_devices().gpus else "cpu"

    def __call__(self, limit: float) -> tuple[float, dict[str, Any]]:
        """(seconds of the three commands, facts)."""
        speed = self.home / "nnunet_speed.json"
        if not speed.is_file():
            write_json(speed, self._measured())
        known = read_json(speed)
        raw(self.datalist, self.folder / "raw")
        planning = self._plan()
        left = limit - planning - known["start"] - known["predict"]
        iterations = max(1, int(left / known["iteration"]))
        if left < known["iteration"]:
            print(f"  {limit:g} s are too short for nnU-Net's plan and prediction: it gets one iteration", flush=True)
        epochs = max(1, round(iterations / EPOCH))
        training, told = self._train(epochs, max(1, iterations // epochs))
        seconds = planning + training + self.predict(self.images, self.folder / "predictions")
        return seconds, {"epochs": epochs, "iterations": len(told["ends"]), "last_rate": round(told["last_rate"], 6)}

    def _measured(self) -> dict[str, float]:
        """Seconds of an iteration, of a training's start and end, of the prediction: before the clock runs."""
        own, self.folder = self.folder, self.home / "nnunet_speed"
        shutil.rmtree(self.folder, ignore_errors=True)
        raw(self.datalist, self.folder / "raw")
        self._plan()
        seconds, told = self._train(1, TRIED)
        iteration = fmean(after - before for before, after in pairwise(told["ends"][2:]))
        found = {"iteration": iteration, "start": seconds - TRIED * iteration, "predict": 0.0}
        found["predict"] = self.predict(self.images, self.folder / "predictions")
        self.folder = own
        return found

    def _environment(self) -> dict[str, str]:
        folders = {f"nnUNet_{part}": str(self.folder / part) for part in ("raw", "preprocessed", "results")}
        cores = str(available_cores())
        return environment(**folders, nnUNet_n_proc_DA=cores, nnUNet_def_n_proc=cores)

    def _plan(self) -> float:
        cores = str(available_cores())
        argv = [self.bin / "nnUNetv2_plan_and_preprocess", "-d", "1", "-c", "3d_fullres", "-np", cores, "-npfp", cores]
        return command(argv, self.folder / "output.log", self._environment())

    def _train(self, epochs: int, iterations: int) -> tuple[float, dict[str, Any]]:
        """(seconds of the command, the `ends` of its steps, the `last_rate`)."""
        script, times = self.folder / "train.py", self.folder / "times.json"
        script.write_text(TRAINER, "utf-8")
        argv = [self.bin / "python", script, self.device, str(epochs), str(iterations), times]
        seconds = command(argv, self.folder / "output.log", self._environment())
        return seconds, json.loads(times.read_text("utf-8"))

    @property
    def images(self) -> Path:
        """The unseen ones."""
        return self.folder / "raw" / "Dataset001_versus" / "imagesTs"

    def predict(self, images: Path, target: Path, *more: str) -> float:
        """Predict a folder by what is trained; seconds."""
        argv = [self.bin / "nnUNetv2_predict", "-d", "1", "-c", "3d_fullres", "-f", "all", "-i", images, "-o", target]
        argv += ["-device", self.device, "-npp", "1", "-nps", "1", *more]
        return command(argv, self.folder / "output.log", self._environment())


def install(venv: Path, log: Path) -> None:
    """nnU-Net in an environment of its own, with the torch that constraints.txt pins."""
    pins = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    torch = next(line for line in pins if line.startswith("torch=="))
    log.parent.mkdir(parents=True, exist_ok=True)
    print(f"installing {NNUNET} into {venv}", flush=True)
    command([sys.executable, "-m", "venv", venv], log, os.environ)
    command([venv / "bin" / "python", "-m", "pip", "install", "-q", torch, NNUNET], log, os.environ)


def raw(datalist: Datalist, folder: Path) -> None:
    """The cases as nnU-Net's raw folder: links, no copies; label values without gaps."""
    home = folder / "Dataset001_versus"
    (home / "labelsTr").mkdir(parents=True)
    for images, cases in (("imagesTr", datalist.training), ("imagesTs", datalist.testing)):
        linked(cases, home / images)
    for case in datalist.training:
        (home / "labelsTr" / f"{case.id}.nii.gz").symlink_to(str(case.label))
    if sorted(datalist.labels) != list(range(1, 1 + len(datalist.labels))):
        raise SystemExit("nnU-Net takes labels 1, 2, ... alone")
    channels = {str(number): "MRI" for number in range(len(datalist.training[0].image))}
    labels = {"background": 0, **{name: value for value, name in datalist.labels.items()}}
    described = {"channel_names": channels, "labels": labels, "file_ending": ".nii.gz"}
    (home / "dataset.json").write_text(json.dumps({**described, "numTraining": len(datalist.training)}), "utf-8")


def linked(cases: Sequence[Case], folder: Path) -> Path:
    """A folder of links to the images, named as nnU-Net has it."""
    folder.mkdir(parents=True)
    for case in cases:
        for number, path in enumerate(case.image):
            (folder / f"{case.id}_{number:04d}.nii.gz").symlink_to(path)
    return folder


def scored(datalist: Datalist, predictions: Path) -> list[dict[str, Any]]:
    """A row a case and label: Dice and the 95 % Hausdorff distance, as `autoseg evaluate` gives them."""
    pairs = []
    for case in datalist.testing:
        alone, in_folder = f"{case.id}.nii.gz", f"{case.id}/{case.id}_ensemble.nii.gz"
        found = predictions / (alone if (predictions / alone).is_file() else in_folder)
        pairs.append((case.id, str(found), str(case.label)))
    evaluation = evaluate_pairs(pairs, labels=datalist.labels, workers=available_cores())
    return [{"case": r.case, "label": r.label, "dice": r.dice, "hd95": r.hd95} for r in evaluation.cases]


def row(tool: str, minutes: float, result: Mapping[str, Any]) -> str:
    """A line of the table: Dice by class and in the mean, HD95, and what the time was used for."""
    rows, labels = result["cases"], [int(value) for value in result["labels"]]
    used = f"{result['seconds']:.0f} s; " + "; ".join(f"{key} {value}" for key, value in result["facts"].items())
    if not rows:
        return f"| {minutes:g} | {tool} |" + " |" * (len(labels) + 2) + f" {used} |"
    classes = [fmean(r["dice"] for r in rows if r["label"] == value and r["dice"] is not None) for value in labels]
    distances = [r["hd95"] for r in rows if r["hd95"] is not None]
    missed = f" ({len(rows) - len(distances)} without)" if len(distances) < len(rows) else ""
    far = f"{fmean(distances):.2f}" if distances else ""
    dice = " | ".join(f"{value:.4f}" for value in [*classes, fmean(dice_by_case(rows).values())])
    return f"| {minutes:g} | {tool} | {dice} | {far}{missed} | {used} |"


def print_kept(asked: Sequence[tuple[str, float]], keep: Path) -> None:
    """The table of what a folder keeps of what is asked."""
    kept = {pair: keep / f"{pair[0]}_{pair[1]:g}.json" for pair in asked}
    print_table({pair: read_json(path) for pair, path in kept.items() if path.is_file()})


def print_table(found: Mapping[tuple[str, float], Mapping[str, Any]]) -> None:
    """All of it in Markdown, the machines, and paired differences with their 95 % intervals: of autoseg from nnU-Net at
    the same budget, and at its largest one.
    """
    if not found:
        print("nothing is kept of these")
        return
    labels = next(iter(found.values()))["labels"]
    print(f"\n| minutes | tool | {' | '.join(labels.values())} | mean Dice | HD95 mm | used |")
    print("| --- |" + " --- |" * (len(labels) + 4))
    for (tool, budget), result in found.items():
        print(row(tool, budget, result))
    print()
    for place, code in dict.fromkeys((result["machine"], result["commit"]) for result in found.values()):
        print(f"{place}: code of {code}")
    longest = max((budget for tool, budget in found if tool == "nnunet"), default=0.0)
    for (tool, budget), ours in found.items():
        for other in dict.fromkeys((budget, longest)):
            if tool == "autoseg" and ours["cases"] and ("nnunet", other) in found:
                print(f"{budget:g} minutes, nnU-Net's {other:g}: {difference(ours, found['nnunet', other])}")


def difference(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    """autoseg's mean Dice less nnU-Net's, paired by case, with its 95 % interval."""
    own, other = dice_by_case(ours["cases"]), dice_by_case(theirs["cases"])
    gain = paired([own[case] for case in other], list(other.values()))
    wins = sum(own[case] > value for case, value in other.items())
    elsewhere = "" if ours["machine"] == theirs["machine"] else " (not on the same machine)"
    return f"autoseg - nnU-Net {gain}, better in {wins} of {len(other)} cases{elsewhere}"


if __name__ == "__main__":
    raise SystemExit(main())
