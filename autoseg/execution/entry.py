"""A job in a run: where it stands, what its files show of it, and the table of all."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autoseg.execution.plan import seconds_left
from autoseg.execution.progress import MetricsReader
from autoseg.execution.results import output_sizes
from autoseg.records import Event, Job, JobResult, Slot


@dataclass
class Entry:
    """A job and its folder. `tries` counts its starts under the present fingerprint, `starts` those of this run.

    `state` is waiting, running, kept (it was done before) or the status of its result. Times are in seconds on the
    executor's clock; `log_start` is the byte at which the present try's part of the log begins. `fault` and `unwanted`
    say why the scheduler, or the feed that the job is `fed` by, ends the present try.
    """

    job: Job
    folder: Path
    fed: bool = False
    state: str = "waiting"
    tries: int = 0
    starts: int = 0
    slots: tuple[Slot, ...] = ()
    handle: Any = None
    started: float = 0.0
    seconds: float = 0.0
    log_start: int = 0
    metrics: MetricsReader = field(default_factory=lambda: MetricsReader(None, from_start=True))
    fault: str | None = None
    unwanted: str | None = None
    result: JobResult | None = None
    _sizes: tuple[int, ...] = ()
    _grew: float = 0.0

    @property
    def log(self) -> Path:
        return self.folder / "output.log"

    @property
    def progress(self) -> Path | None:
        return Path(self.job.cwd) / self.job.progress if self.job.progress else None

    @property
    def device(self) -> str:
        return "+".join(slot.id for slot in self.slots)

    def begin(self, slots: tuple[Slot, ...], now: float) -> None:
        """A further try begins, on `slots`."""
        self.slots, self.started, self.seconds = slots, now, 0.0
        self.tries, self.starts = self.tries + 1, self.starts + 1
        self.fault, self.unwanted, self._sizes, self._grew = None, None, (), now
        self.metrics = MetricsReader(self.progress, from_start=self.tries > 1, before=self.metrics)

    def recall(self, result: JobResult) -> None:
        """It ended in an earlier run, and `result` stands; its validations are the feed's to hear, not its warnings."""
        self.state, self.result = "kept" if result.status == "done" else result.status, result
        if self.fed:
            self.metrics = MetricsReader(self.progress, from_start=True)
            self.metrics.catch_up(0.0)
            self.metrics.warnings()

    def open_log(self) -> None:
        """A first try gets an empty log, a further one is appended under a line that says so."""
        if self.tries == 1:
            self.log.unlink(missing_ok=True)
        if self.log.exists():
            with open(self.log, "a", encoding="utf-8") as file:
                file.write(f"\n=== try {self.tries}, {time.strftime('%Y-%m-%d %H:%M:%S')} ===\n")
        self.log_start = self.log.stat().st_size if self.log.exists() else 0

    def quiet_seconds(self, now: float) -> float:
        """For how long its log and progress have not grown, as far as this was asked."""
        sizes = tuple(path.stat().st_size if path.exists() else -1 for path in (self.log, self.progress or self.log))
        if sizes != self._sizes:
            self._sizes, self._grew = sizes, now
        return now - self._grew

    def wait(self, *, counts: bool) -> None:
        """Its turn is to come again; a try that ended by no fault of the job's own does not count."""
        self.state, self.slots, self.handle = "waiting", (), None
        if not counts:
            self.tries, self.starts = self.tries - 1, self.starts - 1

    def end(self, status: str, error: str | None) -> JobResult:
        """The job is over; returns its result, which is its state from here on."""
        done = status == "done"
        self.state = status
        self.result = JobResult(
            id=self.job.id,
            status=status,
            fingerprint=self.job.fingerprint,
            outputs=self.job.outputs if done else (),
            tries=self.tries,
            seconds=round(self.seconds, 3),
            error=error,
            log=str(self.log) if self.starts else None,
            sizes=output_sizes(self.job) if done else {},
        )
        return self.result

    def row(self, now: float) -> dict[str, Any]:
        """Its row of the live table: id, state, device, seconds, tries, and `MetricsReader.facts`."""
        self.metrics.update(now)
        running = self.state == "running"
        row = {"id": self.job.id, "state": self.state, "device": self.device, **self.metrics.facts(now)}
        row["seconds"] = now - self.started if running else self.result.seconds if self.result else 0.0
        row["seconds_left"] = row["seconds_left"] if running else None
        row["tries"] = self.tries
        return row


def jobs_event(entries: Sequence[Entry], slots: Sequence[Slot], now: float, *, growing: bool = False) -> Event:
    """The event "jobs": a row a job, how many of them are finished, and the seconds until all are.

    `growing`: more jobs may come, so that nobody knows how long all will take.
    """
    rows = [entry.row(now) for entry in entries]
    running = [(entry, row) for entry, row in zip(entries, rows, strict=True) if entry.state == "running"]
    waiting = [entry.job.cost for entry in entries if entry.state == "waiting"]
    left = seconds_left(
        [(entry.job.cost, entry.seconds) for entry in entries if entry.state == "done" and entry.starts],
        [(entry.job.cost, row["seconds"], row["seconds_left"]) for entry, row in running],
        waiting,
        len(slots),
    )
    finished = len(rows) - len(running) - len(waiting)
    facts = {"jobs": rows, "finished": finished, "total": len(rows), "seconds_left": None if growing else left}
    return Event("jobs", f"{finished} of {len(rows)} jobs finished", facts)
