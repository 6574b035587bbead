"""How fast a family trains and predicts on this machine, as a share of its network run bare on random tensors.

    .venv/bin/python benchmarks/throughput.py [--algos segresnet] [--cores 1] [--rounds 5] [--data FOLDER --modality CT]

Training: patches a second of the engine's own steps (cut, augmented, learned from, averaged), beside the same network,
loss and optimiser fed with one random batch again and again. Prediction: voxels a second from the image's file to the
label map's, beside the same network on random windows of the shapes and the number that it was called with. Both in one
process with the environment of a job, in turns (of a step; of a few cases), so that what else the machine does touches
both alike. Waiting: the share of a training step's time until its batch is there.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

from hippocampus_data import DATA, missing

STEPS, CASES, WARM = 20, 3, 5  # a turn; steps that are not counted
WANTED, LONGEST_WAIT = 0.9, 0.05


def main() -> int:
    """A line a family, the worst of all last; exit code 1 where the data are missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algos", nargs="+", default=["segresnet"])
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--modality", default="MRI")
    parser.add_argument("--cores", type=int, default=1, help="of a training's slot; a prediction has all of them")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)  # the process that measures
    parser.add_argument("--predict", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps((prediction if given.predict else training)(given.one, given.rounds)))
        return 0
    if missing(given.data):
        return 1
    from autoseg import pipeline
    from autoseg.config import load_config
    from autoseg.devices import available_cores

    with tempfile.TemporaryDirectory() as folder:
        config = load_config(
            {"modality": given.modality, "datalist": str(given.data / "datalist.json")},
            **{"work_dir": folder, "algos": given.algos, "num_fold": 1},
        )
        shares, waits = [], []
        for bundle in pipeline.generate(config):
            step = measured(bundle, given.cores, given.rounds)
            case = measured(bundle, available_cores(), given.rounds, "--predict")
            print(f"{bundle.name}: {line(step, 'patches')}, {step['waiting']:.1%} of it waiting for data", flush=True)
            print(f"{bundle.name}: {line(case, 'voxels')}", flush=True)
            shares += [step["ours"] / step["bare"], case["ours"] / case["bare"]]
            waits.append(step["waiting"])
    print(
        f"{min(shares):.2f} of the bare network at least (wanted: {WANTED}), "
        f"{max(waits):.1%} waiting for data at most (wanted: {LONGEST_WAIT:.0%})"
    )
    return 0


def line(found: dict[str, float], unit: str) -> str:
    share = found["ours"] / found["bare"]
    return f"{found['ours']:,.4g} {unit} a second, bare {found['bare']:,.4g}: a share of {share:.3f}"


def measured(bundle: Path, cores: int, rounds: int, *more: str) -> dict[str, float]:
    """What a process of its own says, on its last line; that of a job in all that is set before it starts."""
    from autoseg.devices import detect_devices, job_environment

    gpus = tuple(gpu.index for gpu in detect_devices().gpus[:1])
    argv = [sys.executable, __file__, "--one", str(bundle), "--rounds", str(rounds), *more]
    done = subprocess.run(argv, env={**os.environ, **job_environment(gpus, cores)}, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def training(root: Path, rounds: int) -> dict[str, float]:
    """Patches a second, ours and bare, and the share of our steps' time that goes by before the batch is there."""
    import torch
    from monai.data import set_track_meta

    from autoseg.engine.bundle import Bundle
    from autoseg.engine.trainer import Trainer

    class Watched(Trainer):
        waited = 0.0

        def _feed(self) -> None:
            super()._feed()
            self._batches = self._timed(self._batches)

        def _timed(self, batches: Iterator[Any]) -> Iterator[Any]:
            while True:
                started = time.monotonic()
                batch = next(batches)
                self.waited += time.monotonic() - started
                yield batch

    trainer = Watched(Bundle.load(root))
    settings, device = trainer.settings, trainer.device
    size = [n for axis, n in enumerate(settings["roi_size"]) if axis != settings["slice_axis"]]
    image = torch.randn(trainer.batch, int(settings["input_channels"]), *size, device=device)
    image = image.to(memory_format=trainer.layout)  # type: ignore[call-overload]
    classes = len(settings["label_values"])
    label = torch.randint(0, classes, (trainer.batch, 1, *size), device=device).float()

    def bare() -> None:
        trainer.optimizer.zero_grad(set_to_none=True)
        with trainer.autocast():
            outputs = trainer.network(image)
        loss = trainer.loss(outputs, label)
        loss.backward()  # type: ignore[no-untyped-call]
        trainer.optimizer.step()

    def seconds(work: Callable[[], object]) -> float:
        started = time.monotonic()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.monotonic() - started

    set_track_meta(False)
    trainer._feed()
    for _ in range(WARM):
        trainer._step(), bare()
    trainer.waited = 0.0
    pairs = [(seconds(trainer._step), seconds(bare)) for _ in range(STEPS * rounds)]
    ours, plain = map(sum, zip(*pairs, strict=True))
    patches = len(pairs) * trainer.batch
    return {"ours": patches / ours, "bare": patches / plain, "waiting": trainer.waited / ours}


def prediction(root: Path, rounds: int) -> dict[str, float]:
    """Voxels a second of whole images, ours and those of the bare network."""
    import nibabel as nib
    import torch

    from autoseg.devices import torch_device
    from autoseg.engine.bundle import Bundle
    from autoseg.engine.checkpoints import save_checkpoint
    from autoseg.engine.precision import autocast_for
    from autoseg.engine.predictor import Predictor

    bundle = Bundle.load(root)
    if not bundle.weights.is_file():
        save_checkpoint(bundle.weights, bundle.network().state_dict())
    cases = bundle.cases()[1][:CASES]
    voxels = sum(int(torch.tensor(nib.load(case.image[0]).shape[:3]).prod()) for case in cases)
    device = torch_device()
    predictor = Predictor([bundle], device)
    network = predictor._networks(0)[0]
    called: list[torch.Size] = []
    hook = network.register_forward_pre_hook(lambda module, inputs: called.append(inputs[0].shape))

    def ours() -> float:
        started = time.monotonic()
        for case in cases:
            predictor.write(case, root / "throughput.nii.gz")
        return time.monotonic() - started

    ours()
    hook.remove()
    windows = {shape: torch.randn(shape, device=device) for shape in set(called)}

    @torch.inference_mode()
    def bare() -> float:
        started = time.monotonic()
        for shape in called:
            with autocast_for(bundle.settings["precision"], device):
                network(windows[shape])
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.monotonic() - started

    bare()
    turns = [(ours(), bare()) for _ in range(rounds)]
    return {"ours": voxels / median(a for a, _ in turns), "bare": voxels / median(b for _, b in turns)}


if __name__ == "__main__":
    raise SystemExit(main())
