"""Analysis against MONAI's DataAnalyzer (CPU) on generated CT-like cases: wall time and peak memory.

    python benchmarks/analysis.py [--cases 40] [--shape 256 256 128] [--workers N]

Each analyser runs in a process of its own, from start to written YAML files, with its defaults (MONAI loads with four
worker processes); memory is the peak, sampled, over its tree of processes: the sum of resident sets, and of
proportional ones (shared pages counted once) where the system tells. The figure stands in the last line.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import psutil
import yaml

ROOT = Path(__file__).resolve().parents[1]
SAMPLE_SECONDS = 0.05


def generate(folder: Path, cases: int, shape: tuple[int, int, int]) -> None:
    """Bodies of noise in air of -1024, with three organs; int16 images, uint8 labels, lightly compressed."""
    nib.openers.Opener.default_compresslevel = 1
    training = []
    grid = np.meshgrid(*(np.linspace(-1, 1, n, dtype=np.float32) for n in shape), indexing="ij", sparse=True)
    for number in range(cases):
        rng = np.random.default_rng(number)
        noise = rng.integers(-45, 45, shape, dtype=np.int16)
        scale = rng.uniform(0.7, 0.9, 2)
        body = (grid[0] / scale[0]) ** 2 + (grid[1] / scale[1]) ** 2 + 0 * grid[2] < 1
        image = np.where(body, noise + np.int16(40), np.int16(-1024))
        label = np.zeros(shape, np.uint8)
        for value, (x, y, size) in enumerate(((-0.4, 0.1, 0.25), (0.3, 0.2, 0.2), (0.0, -0.4, 0.1)), start=1):
            organ = (grid[0] - x) ** 2 + (grid[1] - y) ** 2 + (grid[2] - rng.uniform(-0.3, 0.3)) ** 2 < size**2
            label[organ] = value
            image[organ] += np.int16(60 * value)
        affine = np.diag([-0.8, -0.8, rng.uniform(1.5, 3.0), 1.0])
        names = {"image": f"case_{number:03d}.nii.gz", "label": f"case_{number:03d}_label.nii.gz"}
        nib.save(nib.Nifti1Image(image.astype(np.int16), affine), folder / names["image"])
        nib.save(nib.Nifti1Image(label, affine), folder / names["label"])
        training.append({**names, "fold": number % 5})
    (folder / "datalist.json").write_text(json.dumps({"training": training}))


def run_ours(folder: Path, workers: int) -> None:
    from autoseg.analysis import examine, summarize
    from autoseg.records import Case
    from autoseg.workspace import write_yaml

    training = json.loads((folder / "datalist.json").read_text())["training"]
    cases = [Case(c["image"].split(".")[0], (str(folder / c["image"]),), str(folder / c["label"])) for c in training]
    reports = examine(cases, workers=workers, cache_dir=folder / "cache", notify=lambda event: None)
    assert not any(report.faults for report in reports)
    stats, by_case = summarize(reports)
    write_yaml(folder / "ours.yaml", stats, versioned=False)
    write_yaml(folder / "ours_by_case.yaml", by_case, versioned=False)


def run_monai(folder: Path) -> None:
    from monai.apps.auto3dseg import DataAnalyzer

    output = str(folder / "monai.yaml")
    analyser = DataAnalyzer(str(folder / "datalist.json"), str(folder), output_path=output, device="cpu")
    analyser.get_all_case_stats()


def measure(name: str, folder: Path, workers: int) -> dict[str, float]:
    """Run one analyser; seconds, and the peaks of its process tree in MiB."""
    command = [sys.executable, __file__, "--run", name, "--folder", str(folder), "--workers", str(workers)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    began = time.perf_counter()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    peaks = {"rss": 0, "pss": 0}
    tree = psutil.Process(process.pid)
    while process.poll() is None:
        for key, value in tree_memory(tree).items():
            peaks[key] = max(peaks[key], value)
        time.sleep(SAMPLE_SECONDS)
    seconds = time.perf_counter() - began
    if process.returncode:
        raise SystemExit(f"{name} failed:\n{process.stderr.read().decode() if process.stderr else ''}")
    return {"seconds": seconds, **{key: value / 2**20 for key, value in peaks.items()}}


def tree_memory(root: psutil.Process) -> dict[str, int]:
    total = {"rss": 0, "pss": 0}
    try:
        processes = [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return total
    for process in processes:
        try:
            memory = process.memory_full_info()
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        total["rss"] += memory.rss
        total["pss"] += getattr(memory, "pss", 0)
    return total


def largest_difference(ours: Any, theirs: Any) -> float:
    """Relative, over every number that MONAI wrote."""
    if isinstance(theirs, dict):
        return max((largest_difference(ours[key], item) for key, item in theirs.items()), default=0.0)
    if isinstance(theirs, list):
        return max((largest_difference(a, b) for a, b in zip(ours, theirs, strict=True)), default=0.0)
    if isinstance(theirs, str):
        return 0.0 if ours == theirs else math.inf
    return abs(ours - theirs) / max(1.0, abs(theirs))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=40)
    parser.add_argument("--shape", type=int, nargs=3, default=(256, 256, 128))
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--run", choices=("autoseg", "monai"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run == "autoseg":
        return run_ours(options.folder, options.workers)
    if options.run == "monai":
        return run_monai(options.folder)
    with tempfile.TemporaryDirectory(prefix="autoseg analysis ") as name:
        folder = Path(name)
        began = time.perf_counter()
        generate(folder, options.cases, tuple(options.shape))
        size = "x".join(map(str, options.shape))
        print(f"{options.cases} cases of {size} generated in {time.perf_counter() - began:.0f} s", flush=True)
        results = {}
        for analyser in ("autoseg", "monai"):
            results[analyser] = measure(analyser, folder, options.workers)
            r = results[analyser]
            memory = f"peak {r['rss']:6.0f} MiB resident, {r['pss']:6.0f} MiB proportional"
            print(f"{analyser:8s}{r['seconds']:8.1f} s  {memory}", flush=True)
        read = [yaml.safe_load((folder / f"{name}_by_case.yaml").read_text()) for name in ("ours", "monai")]
        print(f"largest relative difference of any value by case or summary: {largest_difference(*read):.1e}")
        ours, theirs = results["autoseg"], results["monai"]
        kind = "pss" if ours["pss"] else "rss"
        print(
            f"analysis: {theirs['seconds'] / ours['seconds']:.1f} times faster than MONAI's DataAnalyzer "
            f"({ours['seconds']:.1f} s against {theirs['seconds']:.1f} s) with {ours[kind] / theirs[kind]:.2f} of its "
            f"peak memory ({ours[kind]:.0f} MiB against {theirs[kind]:.0f} MiB)"
        )
    return None


if __name__ == "__main__":
    main()
