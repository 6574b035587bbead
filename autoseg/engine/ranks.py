"""One training in several processes, a GPU each, as torchrun starts them: gradients are averaged, rank 0 speaks.

By torchrun's variables RANK, LOCAL_RANK and WORLD_SIZE; a process that was started otherwise is alone, and all of this
does nothing.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from datetime import timedelta

import torch
import torch.distributed as dist

from autoseg.devices import NO_DEVICE

PATIENCE = timedelta(days=2)  # with rank 0, which alone validates and scores
logger = logging.getLogger(__name__)
DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of Linux's prctl
STARTED_BY = "AUTOSEG_LAUNCHER"  # the environment variable in which `launch` leaves its process id


def launch(processes: str, script: Sequence[str]) -> int:
    """Run a script with its arguments by torchrun, `processes` of them: a number, or `gpu`, one for each GPU in sight.

    Returns the exit code of the one that failed first; where a signal ended that one, it ends this process, too.
    """
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # the script's own words are better
    if processes == "gpu" and not torch.cuda.is_available():
        raise SystemExit(f"torchrun: {NO_DEVICE}")
    os.environ[STARTED_BY] = str(os.getpid())
    try:
        main(["--standalone", f"--nproc-per-node={processes}", *script])
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode < 0:  # as the script would have ended alone
            logger.error("process %d of the training was killed by signal %d", rank, -failure.exitcode)
            os.kill(os.getpid(), -failure.exitcode)
        return int(failure.exitcode)
    return 0


def is_left_alone(error: BaseException) -> bool:
    """Whether an error says no more than that another process of this training has ended: that one says why."""
    alone = not dist.is_initialized() or dist.get_world_size() == 1
    return not alone and any(words in str(error) for words in ("closed by peer", "reset by peer"))


class Ranks:
    """This process among those of its training: `rank` of `world`. See `join`."""

    def __init__(self, rank: int = 0, world: int = 1, device: torch.device | None = None):
        self.rank, self.world, self.device = rank, world, device or torch.device("cpu")

    @classmethod
    def join(cls, device: torch.device) -> Ranks:
        """Meet the other processes, if there are others: by NCCL on GPUs, else by gloo. Can be called again."""
        world = int(os.environ.get("WORLD_SIZE", "1"))
        if "RANK" in os.environ:  # torchrun's, alone or with others
            _end_with_parent()
        if world == 1:
            return cls(device=device)
        if not dist.is_initialized():
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
        """Leave the others. Only the first process goes on: the others end here, their work is done.

        At once, for freeing what DDP holds may wait forever: Python's lock is kept while gloo's thread is joined, which
        asks for it to free the tensors of its last broadcast.
        """
        if self.world == 1 or not dist.is_initialized():
            return
        dist.destroy_process_group()
        if not self.first:
            logging.shutdown()
            os._exit(0)


def _end_with_parent() -> None:
    """torchrun puts its processes into sessions of their own: without this, they would outlive it when it is killed."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(DEATH_SIGNAL, signal.SIGKILL)
    starter = os.environ.get(STARTED_BY, str(os.getppid()))
    if starter != str(os.getppid()):  # it was killed before
        raise SystemExit(f"process {starter}, which has started this one, is gone")
