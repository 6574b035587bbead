"""What every verb of a run shares: configuration, work_dir, devices, and where events go."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from autoseg.config import RunConfig
from autoseg.devices import Devices, detect_devices, plan_slots
from autoseg.pipeline.clock import Clock
from autoseg.records import Event, Slot
from autoseg.workspace import Workspace

Notify = Callable[[Event], None]
VOLATILE = ("progress", "jobs")  # shown, not kept


def silent(event: Event) -> None:
    """The default listener: hears nothing."""


@dataclass(frozen=True)
class Session:
    """One verb at work."""

    config: RunConfig
    workspace: Workspace
    devices: Devices
    listener: Notify
    clock: Clock | None = None  # of a call with a time limit

    def notify(self, event: Event) -> None:
        """Log to events.jsonl and tell the listener."""
        if self.clock is not None:
            self.clock.tick()
        if event.kind not in VOLATILE:
            self.workspace.log_event(event)
        self.listener(event)

    def stage(self, message: str) -> None:
        self.notify(Event("stage", message))

    def slots(self, jobs: int) -> tuple[Slot, ...]:
        """Slots for that many jobs, no more than the configuration allows."""
        limit = self.config.max_parallel
        return (
            plan_slots(self.devices, jobs)[:limit]
            if self.devices.gpus
            else plan_slots(self.devices, min(jobs, limit or jobs))
        )

    def whole_machine(self) -> tuple[Slot, ...]:
        """One slot with every core: for work that spreads over the cores by itself."""
        return (replace(plan_slots(self.devices, 1)[0], cpus=self.devices.cores),)


@contextmanager
def open_session(config: RunConfig, listener: Notify | None) -> Iterator[Session]:
    """Make and lock the work_dir for the length of a verb."""
    workspace = Workspace(config.work_dir)
    with workspace.lock({"datalist": config.datalist}):
        clock = Clock(config.time_limit, workspace.clock_json) if config.time_limit else None
        yield Session(config, workspace, detect_devices(), listener or silent, clock)
