"""One training in several processes, a GPU each, as torchrun starts them: gradients are averaged, rank 0 speaks.

By torchrun's variables RANK, LOCAL_RANK and WORLD_SIZE; a process that was started otherwise is alone, and all of this
does nothing.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Iterator
from datetime import timedelta

import torch
import torch.distributed as dist

PATIENCE = timedelta(days=2)  # with rank 0, which alone validates and scores
DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of Linux's prctl


class Ranks:
    """This process among those of its training: `rank` of `world`. See `join`."""

    def __init__(self, rank: int = 0, world: int = 1, device: torch.device | None = None):
        self.rank, self.world, self.device = rank, world, device or torch.device("cpu")

    @classmethod
    def join(cls, device: torch.device) -> Ranks:
        """Meet the other processes, if there are others: by NCCL on GPUs, else by gloo. Can be called again."""
        world = int(os.environ.get("WORLD_SIZE", "1"))
        if world == 1:
            return cls(device=device)
        if not dist.is_initialized():
            _end_with_parent()
            if device.type == "cuda":
                torch.cuda.set_device(device)
            torch.set_num_threads(max(1, torch.get_num_threads() // int(os.environ.get("LOCAL_WORLD_SIZE", world))))
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
        return cls(dist.get_rank(), world, device)

    @property
    def first(self) -> bool:
        """Whether this process writes, validates and decides."""
        return self.rank == 0

    def wrap(self, network: torch.nn.Module) -> torch.nn.Module:
        """The network as it is trained: its gradients are the mean of all processes'."""
        if self.world == 1:
            return network
        ids = [self.device.index] if self.device.type == "cuda" else None
        # layers that are frozen, wait, or lead nowhere have no gradient in a step
        return torch.nn.parallel.DistributedDataParallel(network, device_ids=ids, find_unused_parameters=True)

    def agreed(self, *values: float) -> tuple[float, ...]:
        """Rank 0's values, for all."""
        if self.world == 1:
            return values
        told = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.broadcast(told, 0)
        return tuple(told.tolist())

    def mean(self, value: float) -> float:
        """The mean of all processes' values."""
        if self.world == 1:
            return value
        told = torch.tensor(value, dtype=torch.float64, device=self.device)
        dist.all_reduce(told)
        return float(told) / self.world

    @contextlib.contextmanager
    def first_alone(self) -> Iterator[None]:
        """Rank 0 goes through this first, the others when it is through."""
        if not self.first:
            self.agreed(0.0)
        yield
        if self.first:
            self.agreed(0.0)

    def part(self) -> None:
        """Leave the others."""
        if self.world > 1 and dist.is_initialized():
            dist.destroy_process_group()


def _end_with_parent() -> None:
    """torchrun puts its processes into sessions of their own: without this, they would outlive it when it is killed."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(DEATH_SIGNAL, signal.SIGKILL)
