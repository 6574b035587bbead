"""Seconds of a CPU training step with and without the allocator settings that every job gets (glibc, so Linux).

    python benchmarks/allocator.py [--rounds 4] [--steps 6] [--threads 1] [--network unet|segresnet]

`devices.job_environment` keeps freed tensors in the process, where glibc by itself gives large ones back to the kernel
and faults their pages in again at the next step. The settings must stand before a process starts, so each measurement
is a process of its own; those with and without them alternate, so that other work on the machine touches both alike.
A step is forward, loss, backward and update on a batch of 2 patches of 64 voxels a side; a process tells the median of
its steps, the first two left out. Printed last: the medians over the rounds, and their ratio.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time

import fire

from autoseg.devices import job_environment

WARM_UP = 2


def measure(steps: int, network: str) -> None:
    """What one process does: print the seconds of every step as JSON."""
    import torch
    from monai.losses import DiceCELoss
    from monai.networks.nets import SegResNet, UNet

    torch.manual_seed(0)
    made = {
        "unet": lambda: UNet(3, 1, 3, channels=(16, 32, 64, 128), strides=(2, 2, 2), num_res_units=2),
        "segresnet": lambda: SegResNet(3, init_filters=16, in_channels=1, out_channels=3),
    }[network]()
    loss = DiceCELoss(softmax=True, to_onehot_y=True)
    optimizer = torch.optim.AdamW(made.parameters())
    image, label = torch.rand(2, 1, 64, 64, 64), torch.randint(0, 3, (2, 1, 64, 64, 64))
    seconds = []
    for _ in range(WARM_UP + steps):
        started = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        loss(made(image), label).backward()
        optimizer.step()
        seconds.append(time.perf_counter() - started)
    print(json.dumps(seconds))


def step_seconds(kept: bool, threads: int, steps: int, network: str) -> float:
    """Median seconds of a step in a fresh process, with the settings of a job or without those of its allocator."""
    job = job_environment((), threads)
    allocator = {name for name in job if name.startswith("MALLOC_")}
    environment = {name: value for name, value in {**os.environ, **job}.items() if kept or name not in allocator}
    command = [sys.executable, __file__, "measure", str(steps), network]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return statistics.median(json.loads(done.stdout.splitlines()[-1])[WARM_UP:])


def run(rounds: int = 4, steps: int = 6, threads: int = 1, network: str = "unet") -> None:
    """Measure both in turn, `rounds` times, and print a line a round and the medians."""
    if platform.libc_ver()[0] != "glibc":
        print("these settings are glibc's: nothing to measure here")
        return
    found: dict[bool, list[float]] = {True: [], False: []}
    for number in range(rounds):
        for kept in ((True, False), (False, True))[number % 2]:
            found[kept].append(step_seconds(kept, threads, steps, network))
        print(f"round {number + 1}: {found[False][-1]:.3f} s without, {found[True][-1]:.3f} s with", flush=True)
    without, kept_ = statistics.median(found[False]), statistics.median(found[True])
    ratio = without / kept_
    print(f"{network}: {without:.3f} s a step without, {kept_:.3f} s with the allocator settings: {ratio:.2f} times")


if __name__ == "__main__":
    fire.Fire({"run": run, "measure": measure} if sys.argv[1:2] == ["measure"] else run)
