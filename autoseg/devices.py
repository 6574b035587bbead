"""Which devices, cores and memory this process may use, and how jobs share them. The one home of that choice.

Limits are those of the container (CPU affinity, cgroup v1 and v2 quotas), not of the host.
"""

from __future__ import annotations

import functools
import heapq
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from autoseg.errors import AutosegError
from autoseg.records import Slot

if TYPE_CHECKING:
    import torch

CGROUP = Path("/sys/fs/cgroup")
# Speed of one training step grows about as threads ** 0.55 (SegResNetDS of 8 filters, bf16, one patch of 32x48x32: 1.5
# times as fast with two as with one, the middle of four pairs), so jobs side by side beat one job on all cores.
THREAD_SCALING = 0.55
PREDICTING_SCALING = 0.5  # of predictions: two threads are 1.3 (six networks) to 1.8 times (54 windows) as fast as one
MIN_MEMORY_A_JOB = 3 * 2**30
SHARED_MEMORY = 0.85  # of a GPU's memory for the jobs side by side on it: the rest is lost between their blocks
CONTEXT_MEMORY = 768 * 2**20  # bytes that CUDA and its libraries take for every process, unseen by torch's allocator
SMALL_JOB = 1 / 3  # of a GPU's memory: larger jobs keep it busy alone
CORES_A_SHARE = 2  # that a job on a GPU needs to be fed
NVIDIA_SMI_SECONDS = 30
NO_DEVICE = "no CUDA-capable device is detected"  # CUDA's own words (cudaErrorNoDevice)
# what nvidia-smi says of a GPU that has gone: it is not there, not reachable, or its fields cannot be read
GONE = re.compile(r"No devices were found|is lost|Unable to determine the device handle|Unknown Error|ERR!", re.I)


@dataclass(frozen=True)
class Gpu:
    """A GPU as CUDA names it in CUDA_VISIBLE_DEVICES, its memory in bytes, and whether it takes one process alone."""

    index: str
    name: str
    memory: int
    uuid: str = ""
    exclusive: bool = False


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


def lost_gpus(slots: Iterable[Slot]) -> dict[str, str]:
    """Those of the slots' GPUs that are there no more, by `Slot.gpu`, with what nvidia-smi says.

    Each is asked for alone: of all together, drivers that have lost one tell nothing of the others. Where nvidia-smi
    gives no answer, none is known to be lost.
    """
    wanted = {slot.gpu for slot in slots}
    lost = {}
    for gpu in (gpu for gpu in _nvidia_gpus() if gpu.index in wanted):
        said = _nvidia_smi("--id", gpu.uuid)
        there = [row for row in _rows(said) if row[1] == gpu.uuid]
        if there and gpu.index.isdigit() and there[0][0] != gpu.index:  # CUDA counts without the lost one, too
            lost[gpu.index] = f"nvidia-smi counts it as {there[0][0]} now"
        elif not there and GONE.search(said):
            lost[gpu.index] = f"nvidia-smi says: {' '.join(said.split())}"
    return lost


def plan_slots(devices: Devices, jobs: int, job_memory: int = 0) -> tuple[Slot, ...]:
    """The slots that run `jobs` equal jobs soonest: on GPUs (see `_gpu_slots`), else shares of the cores.

    On a CPU, s slots of c/s cores finish n jobs in about ceil(n/s) * (c/s) ** -THREAD_SCALING; the best s wins,
    as far as the memory goes round. `job_memory`: bytes that a job was seen to reserve of a GPU; 0 where that is not
    known.
    """
    jobs = max(1, jobs)
    if devices.gpus:
        return _gpu_slots(devices, jobs, job_memory)
    if devices.mps:
        return (Slot("mps", "mps", devices.cores, None, devices.memory),)
    most = max(1, min(devices.cores, jobs, devices.memory // MIN_MEMORY_A_JOB))
    count = min(
        range(1, most + 1),
        key=lambda s: (math.ceil(jobs / s) * (devices.cores // s) ** -THREAD_SCALING, s),
    )
    share, rest = divmod(devices.cores, count)
    return tuple(Slot(f"cpu{i}", "cpu", share + (i < rest), None, devices.memory // count) for i in range(count))


def _gpu_slots(devices: Devices, jobs: int, job_memory: int) -> tuple[Slot, ...]:
    """One slot a GPU; several, where small jobs fit side by side, named gpu0.0, gpu0.1, ... with equal parts of it.

    No more than jobs go round, each with CORES_A_SHARE cores, and as many as SHARED_MEMORY holds with their contexts.
    That only jobs under SMALL_JOB of the memory leave a GPU time for others is an assumption, not a measurement: their
    kernels are small beside their launches. The first slot of every GPU comes first, so that few jobs spread.
    """
    cores = max(1, devices.cores // len(devices.gpus))
    shares = []
    for number, gpu in enumerate(devices.gpus):
        small = 0 < job_memory < SMALL_JOB * gpu.memory and not gpu.exclusive
        fit = int(SHARED_MEMORY * gpu.memory / (job_memory + CONTEXT_MEMORY)) if small else 1
        wanted = jobs // len(devices.gpus) + (number < jobs % len(devices.gpus))
        shares.append(max(1, min(fit, cores // CORES_A_SHARE, wanted)))
    slots = []
    for part in range(max(shares)):
        for gpu, count in zip(devices.gpus, shares, strict=True):
            if part < count:
                name = f"gpu{gpu.index}" + (f".{part}" if count > 1 else "")
                cpus = cores // count + (part < cores % count)
                slots.append(Slot(name, "cuda", cpus, gpu.index, gpu.memory // count, gpu.name))
    return tuple(slots)


def makespan(costs: Sequence[float], slots: int, busy: Sequence[float] = ()) -> float:
    """When the last of the jobs ends, started longest first, each on the slot that is free first (Graham 1969).

    `busy`: when slots that are taken will be free.
    """
    ends = [*busy, *([0.0] * (slots - len(busy)))]
    heapq.heapify(ends)
    for cost in sorted(costs, reverse=True):
        heapq.heapreplace(ends, ends[0] + cost)
    return max(ends)


# by which torchrun's processes know one another: ours, if we are one of them, are not a job's
LAUNCHER = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


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
    """The device a job computes on: its first visible GPU, Metal, or the CPU.

    AutosegError where a GPU was given that cannot be used: a job must not take days on the CPU instead.
    """
    import torch

    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))  # of torchrun's processes, one a GPU
    given = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    if torch.backends.cuda.is_built() and re.match(r"\d|GPU-|MIG-", given):
        message = f"{NO_DEVICE}, where CUDA_VISIBLE_DEVICES names {given} (set it to '' for the CPU)"
        raise AutosegError(message)
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


@functools.cache
def _nvidia_gpus() -> tuple[Gpu, ...]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible == "":
        return ()
    gpus = {
        index: Gpu(index, name, _mebibytes(mib), uuid, mode.startswith("Exclusive"))
        for index, uuid, name, mib, mode in _rows(_nvidia_smi())
    }
    if visible is None:
        return tuple(gpus.values())
    chosen = []
    for word in (w.strip() for w in visible.split(",")):
        found = [replace(g, index=word) for i, g in gpus.items() if word == i or g.uuid.startswith(word)]
        if not word or not found:
            break  # CUDA, too, sees only the devices before the first that is none
        chosen.append(found[0])
    return tuple(chosen)


def _nvidia_smi(*question: str) -> str:
    """What nvidia-smi says of the GPUs, on both of its channels; nothing where it cannot be run or hangs."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return ""
    query = ["--query-gpu=index,uuid,name,memory.total,compute_mode", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(
            [program, *question, *query], capture_output=True, text=True, timeout=NVIDIA_SMI_SECONDS, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return answer.stdout + answer.stderr


def _rows(said: str) -> list[list[str]]:
    """The GPUs among nvidia-smi's lines that can be read: index, uuid, name, MiB of memory, compute mode."""
    lines = [line for line in said.splitlines() if line.count(",") == 4 and not GONE.search(line)]
    return [[cell.strip() for cell in line.split(",")] for line in lines]


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
