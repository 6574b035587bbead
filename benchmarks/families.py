"""Every family on hippocampus (fold 0), equal minutes: validation Dice, seconds a step, parameters, peak memory.

`python benchmarks/families.py [--minutes 3] [--data FOLDER] [--work_dir FOLDER] [--algos a,b] [--search]`; one after
another, each with every core (or the first GPU). Minutes are of training, its validations included; the final scoring
comes on top. With `--search` DiNTS searches for its architecture, in its share of the minutes.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import fire
from hippocampus_data import DATA

from autoseg import pipeline
from autoseg.bundles import available_templates
from autoseg.bundles.marks import bundle_settings
from autoseg.config import load_config
from autoseg.devices import detect_devices, job_environment
from autoseg.engine.bundle import Bundle
from autoseg.workspace import read_json


def main(
    minutes: float = 3.0,
    data: str = str(DATA),
    work_dir: str = "work_dirs/families",
    algos: Any = None,
    search: bool = False,
) -> None:
    """Write the bundles, train them, print the table."""
    names = list(available_templates()) if algos is None else [algos] if isinstance(algos, str) else list(algos)
    config = load_config(
        {"modality": "MRI", "datalist": f"{data}/datalist.json"},
        **{"work_dir": work_dir, "algos": names, "num_fold": 1},
        family_settings={"dints": {"search": True}} if search else {},
    )
    bundles = pipeline.generate(config)
    print(f"{'family':<12} {'Dice':>6} {'s/step':>7} {'steps':>6} {'M parameters':>12} {'peak GiB':>8}")
    for bundle in bundles:
        print(row(bundle, 60 * minutes), flush=True)
    print(f"{minutes:g} minutes of training a family, {detect_devices().cores} cores, {detect_devices().kind}")


def row(bundle: Path, seconds: float) -> str:
    """Train one bundle in a process of its own; its line of the table."""
    devices = detect_devices()
    gpus = (devices.gpus[0].index,) if devices.gpus else ()
    command = [sys.executable, str(bundle / "scripts" / "train.py"), "run"]
    settings = bundle_settings(bundle)
    searching = float(settings["search_share"]) * seconds if settings.get("search") else 0.0
    command += [f"--max_seconds={seconds - searching}", "--num_epochs=None", "--num_iterations=None"]
    command += [f"--search_seconds={searching}"] if searching else []
    environment = {**os.environ, **job_environment(gpus, devices.cores)}
    with open(bundle / "benchmark.log", "w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        return f"{bundle.name}: exit code {process.returncode}, see {bundle / 'benchmark.log'}"
    scores = read_json(bundle / "scores.json")
    parameters = sum(p.numel() for p in Bundle.load(bundle).network().parameters()) / 1e6
    each, memory = (seconds - searching) / scores["steps"], usage.ru_maxrss / 2**20
    name = bundle.name.rsplit("_", 1)[0]
    return f"{name:<12} {scores['mean_dice']:6.4f} {each:7.3f} {scores['steps']:6d} {parameters:12.2f} {memory:8.2f}"


if __name__ == "__main__":
    fire.Fire(main)
