"""What every verb of a run shares: configuration, work_dir, devices, and where events go."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from autoseg.config import RunConfig
from autoseg.devices import Devices, detect_devices, plan_slots
from autoseg.errors import NoResultError
from autoseg.pipeline.clock import Clock, ending
from autoseg.records import Event, Slot
from autoseg.workspace import Workspace
from autoseg.workspace.lock import refuse_in_use

Notify = Callable[[Event], None]
VOLATILE = ("progress", "jobs")  # shown, not kept


def silent(event: Event) -> None:
    """The default listener: hears nothing."""


@dataclass
class Session:
    """One verb at work. `devices` are those that are left: GPUs may be lost on the way."""

    config: RunConfig
    workspace: Workspace
    devices: Devices
    listener: Notify
    clock: Clock | None = None  # of a call with a time limit
    job_memory: int = 0  # bytes of a GPU that trainings reserve, where it was measured that several are to share one
    lost: list[str] = field(default_factory=list)  # names of GPUs
    retries: int = 0  # jobs started again
    clocks: list[Clock] = field(default_factory=list)  # of parts of the call

    def notify(self, event: Event) -> None:
        """Log to events.jsonl and tell the listener."""
        for clock in (*self.clocks, *([self.clock] if self.clock else [])):
            clock.tick()
        self.retries += event.kind == "job_failed" and bool(event.facts.get("again"))
        if event.kind not in VOLATILE:
            self.workspace.log_event(event)
        self.listener(event)

    def stage(self, message: str) -> None:
        self.notify(Event("stage", message))

    def slots(self, jobs: int, job_memory: int = 0) -> tuple[Slot, ...]:
        """Slots for that many jobs, no more than the configuration allows; `job_memory` as in `plan_slots`."""
        limit = self.config.max_parallel
        return plan_slots(self.devices, min(jobs, limit or jobs), job_memory)[:limit]

    def training_slots(self, jobs: int) -> tuple[Slot, ...]:
        """Slots for that many trainings, which may share GPUs."""
        return self.slots(jobs, self.job_memory)

    def trainings(self, networks: int, folds: int) -> int:
        """For how many of a family's `networks` slots are made.

        On a CPU, where more slots are smaller ones, not for those that a time limit may add to the folds.
        """
        return networks if self.devices.gpus or self.config.refit is not None else min(networks, folds)

    def lose(self, gpu: str) -> None:
        """Go on without the GPU of that index."""
        self.lost += [f"{gpu} ({found.name})" for found in self.devices.gpus if found.index == gpu]
        self.devices = replace(self.devices, gpus=tuple(g for g in self.devices.gpus if g.index != gpu))

    def refuse_without_gpus(self) -> None:
        """NoResultError where all GPUs, for which everything was planned, are lost: on a CPU it would take days."""
        if self.lost and not self.devices.gpus:
            raise NoResultError(f"no GPU is left to train on: {', '.join(self.lost)} out of use")

    def whole_machine(self) -> tuple[Slot, ...]:
        """One slot with every core: for work that spreads over the cores by itself."""
        return (replace(plan_slots(self.devices, 1)[0], cpus=self.devices.cores),)


@contextmanager
def open_session(config: RunConfig, listener: Notify | None, *, timed: bool = False) -> Iterator[Session]:
    """Make and lock the work_dir for the length of a verb; a time limit counts where the verb is `timed`."""
    workspace = Workspace(config.work_dir)
    with workspace.lock({"datalist": config.datalist}):
        clock = Clock(config.time_limit, workspace.clock_json) if config.time_limit and timed else None
        with ending(clock):
            yield Session(config, workspace, detect_devices(), listener or silent, clock)


@contextmanager
def shadow_session(config: RunConfig, listener: Notify) -> Iterator[tuple[Session, Workspace]]:
    """(a session in a folder that goes away again, the real work_dir, which is refused as for a run): for dry runs.

    A work_dir that is not there is not made.
    """
    real = Workspace(config.work_dir)
    if real.root.exists():
        real.create()
        real.refuse_links()
        refuse_in_use(real)
    with tempfile.TemporaryDirectory(prefix="autoseg_") as folder:
        yield Session(config, Workspace(folder), detect_devices(), listener), real
