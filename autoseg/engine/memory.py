"""How much memory is used, and whether an error says that it ran out, of a GPU or of the machine."""

from __future__ import annotations

import psutil
import torch

CPU_ALLOCATOR = "can't allocate memory"  # torch raises a plain RuntimeError there


def out_of_memory(error: BaseException) -> bool:
    """True of CUDA's error, Python's, and that of torch's allocator on the CPU."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or CPU_ALLOCATOR in str(error)


def free_memory() -> None:
    """Give back what CUDA's caching allocator holds and nobody uses."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def used_memory(device: torch.device) -> int:
    """Bytes of the GPU that this process reserved at its peak; on a CPU those that it has now."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    return int(psutil.Process().memory_info().rss)
