"""What a 3D convolution of one small patch takes on this CPU, forward and back, and a step of the network made of them.

    .venv/bin/python benchmarks/convolution.py [--threads 1]

In float32 as torch computes it, in float32 within `OneDnnConvolutions`, and in bfloat16; the ways take turns, so that
what else the machine does touches all alike. The middle of the rounds, in ms, and the ratio to the first way.
"""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from monai.networks.nets import SegResNetDS

from autoseg.engine.precision import OneDnnConvolutions, has_bfloat16

WAYS: dict[str, Callable[[], contextlib.AbstractContextManager[Any]]] = {
    "float32": contextlib.nullcontext,
    "float32, oneDNN": OneDnnConvolutions,
    "bfloat16": lambda: torch.autocast("cpu", torch.bfloat16),
}


def main() -> None:
    """A line a network and way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    print(f"{torch.backends.cpu.get_cpu_capability()}, bfloat16 instructions: {'yes' if has_bfloat16() else 'no'}")
    segresnet = SegResNetDS(init_filters=8, blocks_down=(1, 2, 2, 4), in_channels=1, out_channels=3, norm="instance")
    for name, network, channels in (
        ("convolution, 8 channels, 32x48x32", torch.nn.Conv3d(8, 8, 3, padding=1), 8),
        ("SegResNetDS, 8 filters, 32x48x32", segresnet, 1),
    ):
        image = torch.randn(1, channels, 32, 48, 32, requires_grad=True)
        took: dict[str, list[float]] = {way: [] for way in WAYS}
        for _ in range(given.rounds + 1):
            for way, context in WAYS.items():
                started = time.perf_counter()
                with context():
                    output = network(image)
                output.float().square().mean().backward()
                took[way].append(1e3 * (time.perf_counter() - started))
        middle = {way: median(times[1:]) for way, times in took.items()}
        for way, milliseconds in middle.items():
            print(f"{name}: {way} {milliseconds:.1f} ms, {milliseconds / middle['float32']:.2f} of float32's")


if __name__ == "__main__":
    main()
