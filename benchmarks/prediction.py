"""Peak memory and time of one ensembled prediction: three networks, 512x512x200 voxels, 3 and 25 classes.

    python benchmarks/prediction.py [--shape 512x512x200] [--classes 3 25] [--mode mean] [--resample 1.5]

Three small SegResNets with random weights (how long a network takes is not what is measured) predict one generated
CT-like image, from its file to the label map's file, in the process that a run starts for it and with that process's
environment. Memory is the process's largest resident set, as the kernel reports it at its end. `--resample MM` lets
the networks see an image of that isotropic spacing, so that probabilities are interpolated on the way back. The bound
is 6 GiB. Scratch files of 2 bytes a class and voxel (2.6 GB with 25 classes) go to the temporary folder. About eight
minutes on two cores; the figure is printed last.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from autoseg.devices import available_cores, job_environment
from autoseg.records import Case
from autoseg.workspace import read_json, write_json, write_yaml

REPOSITORY = Path(__file__).resolve().parents[1]
LIMIT = 6 * 2**30
NETWORKS = 3
NETWORK = {"init_filters": 8, "blocks_down": [1, 1, 1], "dsdepth": 1}


def write_image(path: Path, shape: tuple[int, ...]) -> None:
    """An int16 volume in Hounsfield units: a soft-tissue body with a few organs in air, and noise."""
    import nibabel as nib

    random = np.random.default_rng(0)
    x, y, z = np.ogrid[tuple(slice(-1, 1, n * 1j) for n in shape)]  # type: ignore[misc]
    image = np.full(shape, -1000, np.int16)
    image[np.broadcast_to(x**2 + (y / 0.8) ** 2 < 0.85, shape)] = 20
    for cx, cy, cz, radius, value in ((-0.3, 0, 0.2, 0.3, 90), (0.4, 0.1, -0.2, 0.2, 160), (0, -0.4, 0, 0.15, 700)):
        image[(x - cx) ** 2 + (y - cy) ** 2 + (z - cz) ** 2 < radius**2] = value
    for plane in image:
        plane += random.normal(0, 20, plane.shape).astype(np.int16)
    nib.save(nib.Nifti1Image(image, np.diag([-0.8, -0.8, 1.5, 1.0])), path)


def write_bundles(work: Path, classes: int, options: argparse.Namespace) -> list[Path]:
    """Three bundles as the planner writes them, with random weights."""
    import torch

    from autoseg.bundles import find_templates, load_algo
    from autoseg.engine.bundle import Bundle
    from autoseg.engine.checkpoints import save_checkpoint
    from autoseg.planning import Plan

    pairs = [{"image": f"image_{n}.nii.gz", "label": f"label_{n}.nii.gz", "fold": n} for n in range(2)]
    for name in (str(value) for pair in pairs for key, value in pair.items() if key != "fold"):
        (work / name).touch()  # a bundle needs a datalist, though nothing is trained here
    write_json(work / "datalist.json", {"training": pairs})
    source = {"modality": "CT", "datalist": str(work / "datalist.json"), "dataroot": str(work)}
    write_yaml(work / "input.yaml", source, versioned=False)
    names = {str(value): f"organ {value}" for value in range(1, classes)}
    values = {"modality": "CT", "label_values": list(range(classes)), "class_names": names, "output_classes": classes}
    values |= {"normalize_mode": "ct", "intensity_bounds": [[-200.0, 300.0, 20.0, 60.0]], **NETWORK}
    values |= {"roi_size": list(options.patch), "overlap": options.overlap, "precision": options.precision}
    values |= {
        "resample": options.resample is not None,
        "resample_to_spacing": [options.resample] * 3 if options.resample else [0.8, 0.8, 1.5],
    }
    bundles = []
    for fold in range(NETWORKS):
        algo = load_algo("segresnet", find_templates(("segresnet",))["segresnet"])
        algo.set_data_source(str(work / "input.yaml"))
        algo.export_to_disk(str(work), f"segresnet_{fold}", fold=fold, plan=Plan(values, dict.fromkeys(values, "")))
        bundle = Bundle.load(work / f"segresnet_{fold}")
        torch.manual_seed(fold)
        save_checkpoint(bundle.weights, bundle.network().state_dict())
        bundles.append(bundle.root)
    return bundles


def measure(work: Path, spec: dict[str, object]) -> tuple[int, float]:
    """(peak resident bytes, seconds) of the prediction process; its log is shown where it fails."""
    write_json(work / "spec.json", spec)
    arguments = [sys.executable, "-m", "autoseg.ensemble", "predict", str(work / "spec.json")]
    environment = {**os.environ, **job_environment((), available_cores()), "PYTHONPATH": str(REPOSITORY)}
    log = os.open(work / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    started = time.monotonic()
    redirect = [(os.POSIX_SPAWN_DUP2, log, 1), (os.POSIX_SPAWN_DUP2, log, 2)]
    child = os.posix_spawn(sys.executable, arguments, environment, file_actions=redirect)
    _, status, usage = os.wait4(child, 0)  # the usage of this process alone
    os.close(log)
    if status:
        raise SystemExit((work / "log").read_text())
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024), time.monotonic() - started


def numbers(text: str) -> tuple[int, ...]:
    return tuple(int(word) for word in text.split("x"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--shape", type=numbers, default=(512, 512, 200))
    parser.add_argument("--patch", type=numbers, default=(96, 96, 64))
    parser.add_argument("--classes", type=int, nargs="+", default=[3, 25])
    parser.add_argument("--overlap", type=float, default=0.25)
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="bfloat16")
    parser.add_argument("--mode", choices=["mean", "vote"], default="mean")
    parser.add_argument("--resample", type=float, help="isotropic spacing in mm; the image has 0.8 x 0.8 x 1.5")
    options = parser.parse_args()
    figures = []
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "image.nii.gz"
        write_image(image, options.shape)
        for classes in options.classes:
            work = Path(folder) / f"{classes} classes"
            work.mkdir()
            output = work / "case_ensemble.nii.gz"
            spec = {
                "bundles": write_bundles(work, classes, options),
                "cases": [Case("case", (str(image),))],
                "outputs": {"case": output},
                "mode": options.mode,
                "scratch": work / "scratch",
                "results": work / "predictions.json",
                "progress": work / "metrics.jsonl",
            }
            memory, seconds = measure(work, spec)
            assert read_json(work / "predictions.json")["predictions"] and output.stat().st_size
            figures.append((classes, memory, seconds))
            print(f"{classes} classes: {memory / 2**30:.2f} GiB, {seconds:.0f} s", flush=True)
    worst = max(memory for _, memory, _ in figures)
    shape = "x".join(map(str, options.shape))
    each = "; ".join(f"{classes} classes {memory / 2**30:.2f} GiB in {s:.0f} s" for classes, memory, s in figures)
    kept = f"{'within' if worst <= LIMIT else 'OVER'} {LIMIT / 2**30:.0f} GiB"
    print(f"{NETWORKS} networks, {shape}, {options.mode}, {available_cores()} cores: {each}; {kept}")
    return 0 if worst <= LIMIT else 1


if __name__ == "__main__":
    raise SystemExit(main())
