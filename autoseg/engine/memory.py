"""How much memory is used, and whether an error says that it ran out, of a GPU or of the machine."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable
from typing import TypeVar

import torch

T = TypeVar("T")
CPU_ALLOCATOR = "can't allocate memory"  # torch raises a plain RuntimeError there


def out_of_memory(error: BaseException) -> bool:
    """True of CUDA's error, Python's, and that of torch's allocator on the CPU."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or CPU_ALLOCATOR in str(error)


def with_less(work: Callable[[], T], less: Callable[[], str | None], told: Callable[[str], None]) -> T:
    """What `work` gives. Where memory runs out `less` makes it smaller and says how, `told` hears it, and it is tried
    again; the error is raised where `less` says None: it can be no smaller.
    """
    said: str | None = None
    while True:
        try:
            if said is not None:
                told(said)
            return work()
        except (MemoryError, RuntimeError) as error:
            said = less() if out_of_memory(error) else None
            if said is None:
                raise
        free_memory()  # out of the handler, whose frames hold the tensors


def free_memory() -> None:
    """Give back what CUDA's caching allocator holds and nobody uses."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def used_memory(device: torch.device) -> int:
    """Bytes at the peak of this process: of the GPU, reserved; on a CPU, of the machine."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
