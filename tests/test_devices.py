"""Cores, memory and GPUs that a process may use, and the slots made of them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from autoseg import devices
from autoseg.devices import (
    NO_DEVICE,
    Devices,
    Gpu,
    available_cores,
    available_memory,
    detect_devices,
    job_environment,
    lost_gpus,
    plan_slots,
    torch_device,
)
from autoseg.errors import AutosegError
from autoseg.records import Slot

GIB = 2**30


@pytest.fixture
def cgroup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """An empty cgroup file system, and the way to write a file of it; eight cores and 64 GiB around it."""

    class Memory:
        total = 64 * GIB

    monkeypatch.setattr(devices, "CGROUP", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(devices.psutil, "virtual_memory", Memory)

    def write(name: str, text: str) -> None:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)

    return write


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Gpu, ...]]:
    """A fake nvidia-smi that says `lines`; returns the GPUs that are seen."""

    def see(*lines: str, visible: str | None = None) -> tuple[Gpu, ...]:
        program = tmp_path / "nvidia-smi"
        said = "\n".join(f"echo '{line}'" for line in lines)
        program.write_text(f"#!/bin/sh\n{said}\n")
        program.chmod(0o755)
        monkeypatch.setattr(shutil, "which", lambda name: str(program) if name == "nvidia-smi" else None)
        if visible is None:
            monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        else:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        devices._nvidia_gpus.cache_clear()
        try:
            return detect_devices().gpus
        finally:
            devices._nvidia_gpus.cache_clear()

    return see


TWO = ("0, GPU-aaa, NVIDIA H200, 143771, Default", "1, GPU-bbb, NVIDIA H200, 143771, Exclusive_Process")


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 8),
        ({"cpu.max": "max 100000"}, 8),
        ({"cpu.max": "200000 100000"}, 2),
        ({"cpu.max": "250000 100000"}, 2),
        ({"cpu.max": "50000 100000"}, 1),
        ({"cpu.max": "6400000 100000"}, 8),
        ({"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"}, 3),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8),
        ({"cpu.max": "nonsense"}, 8),
    ],
)
def test_cores(cgroup: Callable[[str, str], None], files: dict[str, str], cores: int) -> None:
    for name, text in files.items():
        cgroup(name, text)
    assert available_cores() == cores


@pytest.mark.parametrize(
    ("files", "memory"),
    [
        ({}, 64 * GIB),
        ({"memory.max": "max"}, 64 * GIB),
        ({"memory.max": str(4 * GIB)}, 4 * GIB),
        ({"memory/memory.limit_in_bytes": str(5 * GIB)}, 5 * GIB),
        ({"memory/memory.limit_in_bytes": "9223372036854771712"}, 64 * GIB),
    ],
)
def test_memory(cgroup: Callable[[str, str], None], files: dict[str, str], memory: int) -> None:
    for name, text in files.items():
        cgroup(name, text)
    assert available_memory() == memory


@pytest.mark.parametrize(
    ("visible", "indices"),
    [
        (None, ["0", "1"]),
        ("", []),
        ("1", ["1"]),
        ("1,0", ["1", "0"]),
        ("GPU-bbb", ["GPU-bbb"]),
        ("-1", []),
        ("0,-1,1", ["0"]),
        ("7", []),
    ],
)
def test_gpus_that_are_visible(smi: Callable[..., tuple[Gpu, ...]], visible: str | None, indices: list[str]) -> None:
    gpus = smi(*TWO, visible=visible)
    assert [gpu.index for gpu in gpus] == indices
    assert all(gpu.memory == 143771 * 2**20 for gpu in gpus)
    assert all(gpu.exclusive == (gpu.uuid == "GPU-bbb") for gpu in gpus)


def test_gpu_without_memory_of_its_own(smi: Callable[..., tuple[Gpu, ...]]) -> None:
    assert smi("0, GPU-aaa, NVIDIA GB10, [N/A], Default")[0].memory == available_memory()


def test_driver_that_fails(smi: Callable[..., tuple[Gpu, ...]]) -> None:
    assert smi("NVIDIA-SMI has failed because it could not communicate with the driver") == ()


def test_a_gpu_that_is_lost_from_the_start_is_none(smi: Callable[..., tuple[Gpu, ...]]) -> None:
    lost = "Unable to determine the device handle for GPU 0000:02:00.0: GPU is lost.  Reboot the system"
    assert [gpu.index for gpu in smi(lost, TWO[1])] == ["1"]
    assert [gpu.index for gpu in smi(TWO[0], "1, GPU-bbb, NVIDIA H200, [GPU is lost], [GPU is lost]")] == ["0"]


LOST = "Unable to determine the device handle for GPU 0000:02:00.0: GPU is lost.  Reboot the system to recover this GPU"


@pytest.mark.parametrize(
    ("says", "reason"),
    [
        (TWO[1], None),
        ("No devices were found", "No devices were found"),
        (LOST, "GPU is lost"),
        ("1, GPU-bbb, [Unknown Error], [Unknown Error], ERR!", "ERR!"),
        ("0, GPU-bbb, NVIDIA H200, 143771, Default", "counts it as 0"),
        ("Failed to initialize NVML: Driver/library version mismatch", None),
        ("", None),
    ],
)
def test_a_gpu_that_has_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, smi: Callable[..., tuple[Gpu, ...]], says: str, reason: str | None
) -> None:
    """The fake answers for each GPU alone, as it is asked: the first is well."""
    seen = smi(*TWO)
    monkeypatch.setattr(devices, "_nvidia_gpus", lambda: seen)
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\ncase $2 in GPU-aaa) echo '{TWO[0]}';; GPU-bbb) echo '{says}';; *) exit 9;; esac\n")
    slots = [Slot(f"gpu{gpu.index}", "cuda", 1, gpu.index) for gpu in seen]
    lost = lost_gpus([*slots, Slot("cpu0", "cpu", 1)])
    assert list(lost) == ([] if reason is None else ["1"])
    assert reason is None or reason in lost["1"]
    assert lost_gpus(slots[:1]) == {}


def test_a_given_gpu_that_cannot_be_used_is_not_replaced_by_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    for none in ("", "-1", "NoDevFiles"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", none)
        assert torch_device().type == "cpu"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2")
    with pytest.raises(AutosegError, match=f"{NO_DEVICE}, where CUDA_VISIBLE_DEVICES names 2"):
        torch_device()


@pytest.mark.gpu
def test_real_gpus_are_not_lost() -> None:
    slots = plan_slots(detect_devices(), 1)
    if slots[0].gpu is None:
        pytest.skip("no CUDA GPU")
    assert lost_gpus(slots) == {}


def test_slots_of_gpus() -> None:
    machine = Devices(10, 64 * GIB, tuple(Gpu(str(i), "H200", 80 * GIB) for i in range(4)))
    slots = plan_slots(machine, 20)
    assert [(slot.gpu, slot.cpus, slot.device) for slot in slots] == [(str(i), 2, "cuda") for i in range(4)]
    assert (machine.kind, machine.job_memory) == ("cuda", 80 * GIB)


@pytest.mark.parametrize("cores", [1, 2, 3, 7, 16])
@pytest.mark.parametrize("jobs", [0, 1, 2, 5, 40])
def test_slots_of_cores_never_exceed_them(cores: int, jobs: int) -> None:
    slots = plan_slots(Devices(cores, 256 * GIB), jobs)
    assert sum(slot.cpus for slot in slots) == cores
    assert all(slot.cpus >= 1 for slot in slots)
    assert len(slots) <= max(1, jobs)
    assert len({slot.id for slot in slots}) == len(slots)


def test_slots_side_by_side_where_memory_allows() -> None:
    assert len(plan_slots(Devices(2, 64 * GIB), 5)) == 2
    assert len(plan_slots(Devices(2, 64 * GIB), 1)) == 1
    assert len(plan_slots(Devices(8, 7 * GIB), 8)) == 2
    assert len(plan_slots(Devices(8, GIB), 8)) == 1


def test_metal_is_one_slot() -> None:
    machine = Devices(8, 16 * GIB, mps=True)
    assert machine.kind == "mps"
    assert [slot.device for slot in plan_slots(machine, 5)] == ["mps"]


def test_environment_of_a_job() -> None:
    environment = job_environment(("2", "3"), 4)
    assert environment["CUDA_VISIBLE_DEVICES"] == "2,3"
    assert environment["OMP_NUM_THREADS"] == "4"
    assert job_environment((), 1)["CUDA_VISIBLE_DEVICES"] == ""
    assert all(isinstance(value, str) for value in environment.values())


def gpus(count: int, memory: int, cores: int, exclusive: bool = False) -> Devices:
    return Devices(cores, 256 * GIB, tuple(Gpu(str(i), "H200", memory * GIB, "", exclusive) for i in range(count)))


@pytest.mark.parametrize(
    ("machine", "jobs", "job_memory", "names"),
    [
        (gpus(1, 80, 16), 5, 0, ["gpu0"]),
        (gpus(1, 80, 16), 5, 2, ["gpu0.0", "gpu0.1", "gpu0.2", "gpu0.3", "gpu0.4"]),
        (gpus(1, 80, 16), 1, 2, ["gpu0"]),
        (gpus(1, 80, 6), 5, 2, ["gpu0.0", "gpu0.1", "gpu0.2"]),
        (gpus(1, 80, 3), 5, 2, ["gpu0"]),
        (gpus(1, 80, 16), 5, 26, ["gpu0.0", "gpu0.1"]),
        (gpus(1, 80, 16), 5, 27, ["gpu0"]),
        (gpus(1, 12, 64), 20, 1, [f"gpu0.{i}" for i in range(5)]),  # the contexts count
        (gpus(1, 80, 16, exclusive=True), 5, 2, ["gpu0"]),
        (gpus(4, 80, 32), 5, 2, ["gpu0.0", "gpu1", "gpu2", "gpu3", "gpu0.1"]),
        (gpus(2, 80, 16), 4, 2, ["gpu0.0", "gpu1.0", "gpu0.1", "gpu1.1"]),
    ],
)
def test_small_jobs_share_a_gpu(machine: Devices, jobs: int, job_memory: int, names: list[str]) -> None:
    slots = plan_slots(machine, jobs, job_memory * GIB)
    assert [slot.id for slot in slots] == names
    for gpu in machine.gpus:
        mine = [slot for slot in slots if slot.gpu == gpu.index]
        assert sum(slot.cpus for slot in mine) == machine.cores // len(machine.gpus)
        assert sum(slot.memory for slot in mine) <= gpu.memory
        assert all(slot.memory > job_memory * GIB for slot in mine)
        assert len(mine) == 1 or all(slot.cpus >= 2 for slot in mine)
