"""Pure rules of the scheduler: what may be run at all, in which order, on which slots, and how long it will take."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from autoseg.devices import makespan
from autoseg.errors import Faults, nearest
from autoseg.records import Job, Slot


def check_jobs(jobs: Sequence[Job], slots: Sequence[Slot], known: Collection[str] = ()) -> None:
    """Refuse what can never run; raises InputError with every fault, before anything starts.

    `known`: the ids of jobs of the same run that were checked before.
    """
    faults = Faults()
    ids = [*known, *(job.id for job in jobs)]
    gpus = gpu_count(slots)
    if jobs and not slots:
        faults.add("jobs", "slots", "there is no slot to run anything on")
    for job in jobs:
        if ids.count(job.id) > 1:
            faults.add(f"job {job.id}", "id", "is used by several jobs")
        if not job.id or job.id in (".", "..") or "/" in job.id or "\0" in job.id:
            faults.add(f"job {job.id!r}", "id", "is the name of a folder: not empty, and without '/'")
        if job.resources.gpus > gpus:
            faults.add(f"job {job.id}", "resources.gpus", f"asks for {job.resources.gpus} GPUs, there are {gpus}")
        for need in job.needs:
            if need not in ids:
                faults.add(f"job {job.id}", "needs", f"no job is called '{need}'{nearest(need, ids)}")
    for name in _circular(jobs):
        faults.add(f"job {name}", "needs", "waits for itself, by way of the jobs it needs")
    faults.raise_if_any()


def _circular(jobs: Sequence[Job]) -> list[str]:
    """Jobs on a circle of needs, or behind one."""
    left = {job.id: set(job.needs) for job in jobs}
    while True:
        free = [name for name, needs in left.items() if not (needs & set(left))]
        if not free:
            return sorted(left)
        for name in free:
            del left[name]


def longest_first(jobs: Sequence[Job]) -> list[Job]:
    """Jobs by the cost of the longest chain that begins with them, longest first; equal ones as given.

    Longest processing time first (Graham 1969) keeps the makespan within 4/3 of the best; with needs the chain
    counts, as in critical-path scheduling.
    """
    behind: dict[str, list[Job]] = {job.id: [] for job in jobs}
    for job in jobs:
        for need in job.needs:
            behind[need].append(job)
    chain: dict[str, float] = {}

    def length(job: Job) -> float:
        if job.id not in chain:
            chain[job.id] = job.cost + max((length(after) for after in behind[job.id]), default=0.0)
        return chain[job.id]

    return sorted(jobs, key=lambda job: -length(job))


def gpu_count(slots: Sequence[Slot]) -> int:
    """How many GPUs the slots have; those that share one count it once."""
    return len({slot.gpu for slot in slots} - {None})


def assign(ready: Sequence[Job], free: Sequence[Slot], slots: Sequence[Slot]) -> Mapping[str, tuple[Slot, ...]]:
    """Slots for as many of the `ready` jobs (in order of precedence) as the `free` ones allow, by job id.

    A job takes a slot of as many GPUs as it asks for, or of all where there are fewer, the idlest first where slots
    share them; one that asks for none takes a slot without a GPU, or any slot where all have one. A job that must wait
    for more GPUs keeps the free ones from those behind it: it would wait for ever else.
    """
    left = list(free)
    given: dict[str, tuple[Slot, ...]] = {}
    without_gpu = any(slot.gpu is None for slot in slots)
    for job in ready:
        gpus = min(job.resources.gpus, max(1, gpu_count(slots)))
        fitting = [slot for slot in left if (slot.gpu is not None if gpus else slot.gpu is None or not without_gpu)]
        busy = Counter(slot.gpu for slot in slots if slot not in left)
        first: dict[str, Slot] = {}  # of every GPU, or every slot without one
        for slot in sorted(fitting, key=lambda slot: busy[slot.gpu] if slot.gpu is not None else 0):
            first.setdefault(slot.id if slot.gpu is None else slot.gpu, slot)
        taken = tuple(first.values())[: max(1, gpus)]
        if len(taken) == max(1, gpus):
            given[job.id] = taken
        left = [slot for slot in left if slot not in taken]
    return given


def seconds_left(
    done: Sequence[tuple[float, float]],
    running: Sequence[tuple[float, float, float | None]],
    waiting: Sequence[float],
    slots: int,
) -> float | None:
    """Seconds until all jobs have ended, or None as long as nothing is known of their speed.

    `done`: (cost, seconds) of jobs that ran; `running`: (cost, seconds passed, seconds left if it says so); `waiting`:
    costs. What a unit of cost takes is taken from those that are done or say how long they will be.
    """
    known = [*done, *((cost, passed + left) for cost, passed, left in running if left is not None)]
    cost = sum(cost for cost, _ in known)
    if cost <= 0:
        return None
    rate = sum(seconds for _, seconds in known) / cost
    ends = [left if left is not None else max(0.0, own * rate - passed) for own, passed, left in running]
    return makespan([own * rate for own in waiting], slots, ends)
