"""Which devices, cores and memory this process may use, and how jobs share them. The one home of that choice.

Limits are those of the container (CPU affinity, cgroup v1 and v2 quotas), not of the host.
"""

from __future__ import annotations

import functools
import math
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from autoseg.records import Slot

if TYPE_CHECKING:
    import torch

CGROUP = Path("/sys/fs/cgroup")
# Speed of one training step grows about as threads ** 0.67 (SegResNetDS of 16 filters, bf16, batch 2 of 40x56x40:
# 0.60 s with one thread, 0.38 s with two), so jobs side by side beat one job on all cores.
THREAD_SCALING = 0.67
MIN_MEMORY_A_JOB = 3 * 2**30


@dataclass(frozen=True)
class Gpu:
    """A GPU as CUDA names it in CUDA_VISIBLE_DEVICES, and its memory in bytes."""

    index: str
    name: str
    memory: int


@dataclass(frozen=True)
class Devices:
    """What this process may use: cores, bytes of memory, GPUs, and Apple's Metal."""

    cores: int
    memory: int
    gpus: tuple[Gpu, ...] = ()
    mps: bool = False

    @property
    def kind(self) -> str:
        return "cuda" if self.gpus else "mps" if self.mps else "cpu"

    @property
    def job_memory(self) -> int:
        """Bytes of the memory in which a job's network lives: the smallest GPU's, or the process's."""
        return min((gpu.memory for gpu in self.gpus), default=self.memory)


def detect_devices() -> Devices:
    """Look at this machine as this process may use it. Loads no torch and opens no CUDA context."""
    gpus = _nvidia_gpus()
    mps = not gpus and sys.platform == "darwin" and os.uname().machine == "arm64"
    return Devices(available_cores(), available_memory(), gpus, mps)


def forget_devices() -> None:
    """Look anew at the next `detect_devices`: CUDA_VISIBLE_DEVICES was changed."""
    _nvidia_gpus.cache_clear()


def available_cores() -> int:
    """Whole cores this process may use (at least 1): affinity and cgroup quota, whichever is less."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(affinity, max(1, math.floor(min(_cgroup_cpus(), 2**20) + 1e-6))))


def available_memory() -> int:
    """Bytes of memory this process may use: the machine's, or the container's limit where that is less."""
    limits = [_cgroup_number("memory.max"), _cgroup_number("memory/memory.limit_in_bytes")]
    return int(min([psutil.virtual_memory().total, *(limit for limit in limits if limit)]))


def plan_slots(devices: Devices, jobs: int) -> tuple[Slot, ...]:
    """The slots that run `jobs` equal jobs soonest: one a GPU, else shares of the cores that add up to them.

    On a CPU, s slots of c/s cores finish n jobs in about ceil(n/s) * (c/s) ** -THREAD_SCALING; the best s wins,
    as far as the memory goes round.
    """
    jobs = max(1, jobs)
    if devices.gpus:
        cpus = max(1, devices.cores // len(devices.gpus))
        return tuple(Slot(f"gpu{g.index}", "cuda", cpus, g.index, g.memory) for g in devices.gpus)
    if devices.mps:
        return (Slot("mps", "mps", devices.cores, None, devices.memory),)
    most = max(1, min(devices.cores, jobs, devices.memory // MIN_MEMORY_A_JOB))
    count = min(
        range(1, most + 1),
        key=lambda s: (math.ceil(jobs / s) * (devices.cores // s) ** -THREAD_SCALING, s),
    )
    share, rest = divmod(devices.cores, count)
    return tuple(Slot(f"cpu{i}", "cpu", share + (i < rest), None, devices.memory // count) for i in range(count))


def job_environment(slot_gpus: tuple[str, ...], cpus: int) -> dict[str, str]:
    """Environment of a job: exactly its GPUs, no more threads than its cores, and an allocator that keeps memory.

    glibc hands large freed tensors back to the kernel, which costs a CPU step up to 40 %; the settings must stand
    before Python starts.
    """
    environment = {
        name: str(cpus)
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
    }
    environment |= {"CUDA_VISIBLE_DEVICES": ",".join(slot_gpus), "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    environment |= {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(8 * 2**30), "PYTHONUNBUFFERED": "1"}
    return environment


def torch_device() -> torch.device:
    """The device a job computes on: its first visible GPU, Metal, or the CPU."""
    import torch

    if torch.cuda.is_available():
        return torch.device("cuda", 0)
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


@functools.cache
def _nvidia_gpus() -> tuple[Gpu, ...]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    program = shutil.which("nvidia-smi")
    if visible == "" or program is None:
        return ()
    query = [program, "--query-gpu=index,uuid,name,memory.total", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ()
    rows = [[cell.strip() for cell in line.split(",")] for line in answer.splitlines() if line.count(",") == 3]
    gpus = {index: (uuid, Gpu(index, name, _mebibytes(mib))) for index, uuid, name, mib in rows}
    if visible is None:
        return tuple(gpu for _, gpu in gpus.values())
    chosen = []
    for word in (w.strip() for w in visible.split(",")):
        found = [Gpu(word, g.name, g.memory) for i, (uuid, g) in gpus.items() if word == i or uuid.startswith(word)]
        if not word or not found:
            break  # CUDA, too, sees only the devices before the first that is none
        chosen.append(found[0])
    return tuple(chosen)


def _mebibytes(text: str) -> int:
    """Bytes of nvidia-smi's MiB; GPUs that share the machine's memory say [N/A] and get the process's."""
    try:
        return int(float(text)) * 2**20
    except ValueError:
        return available_memory()


def _cgroup_cpus() -> float:
    """Cores that the cgroup's quota grants; infinity without one."""
    try:
        quota, period = (CGROUP / "cpu.max").read_text().split()[:2]
    except (OSError, ValueError):
        quota = str(_cgroup_number("cpu/cpu.cfs_quota_us") or "max")
        period = str(_cgroup_number("cpu/cpu.cfs_period_us") or 100000)
    return math.inf if quota == "max" else int(quota) / int(period)


def _cgroup_number(name: str) -> int | None:
    """A limit file's number; None where there is no file, no limit, or one so high that it means none."""
    try:
        number = int((CGROUP / name).read_text())
    except (OSError, ValueError):
        return None
    return number if 0 < number < 2**60 else None
