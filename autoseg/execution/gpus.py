"""Whether it was a job's GPU that failed it, and which GPUs are out of use for that."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from autoseg.devices import NO_DEVICE
from autoseg.records import Slot

LostGpus = Callable[[Sequence[Slot]], Mapping[str, str]]
# What CUDA, torch and the driver say where the device is meant and never the program. An illegal address or an
# unspecified launch failure may be either's fault: there nvidia-smi decides alone.
GONE = (NO_DEVICE, "No CUDA GPUs are available", "GPU is lost", "fallen off the bus")
SICK = (
    "uncorrectable ECC error encountered",
    "uncorrectable NVLink error",
    "CUDA-capable device(s) is/are busy or unavailable",
    "all CUDA-capable devices are busy or unavailable",
)
MOST_FAILURES = 2  # of jobs, by a GPU that is there and says that it is sick


class GpuWatch:
    """GPUs that fail jobs: `out` holds those out of use, by `Slot.gpu`, with the reason."""

    def __init__(self, lost_gpus: LostGpus):
        """`lost_gpus` tells which of some slots' GPUs are there no more: `autoseg.devices.lost_gpus`, or a test's."""
        self.lost_gpus = lost_gpus
        self.out: dict[str, str] = {}
        self._failures: Counter[str] = Counter()

    def blame(self, slots: Sequence[Slot], lines: Sequence[str]) -> dict[str, str]:
        """The GPUs that failed a job on `slots`, with the reason; empty where it was the job. `lines`: of its log.

        What the log says is held against a GPU only where the job had no other.
        """
        gpus = [slot.gpu for slot in slots if slot.gpu is not None]
        found = dict(self.lost_gpus(slots)) or {gpu: self.out[gpu] for gpu in gpus if gpu in self.out}
        self.out.update(found)
        said = next((line.strip() for line in reversed(lines) if any(words in line for words in (*GONE, *SICK))), None)
        if not found and said is not None and len(gpus) == 1:
            found = {gpus[0]: said}
            self._failures[gpus[0]] += 1
            if self._failures[gpus[0]] >= MOST_FAILURES or any(words in said for words in GONE):
                self.out.update(found)
        return found
