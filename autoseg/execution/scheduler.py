"""Runs jobs over slots, longest first; the only writer of run state."""

from __future__ import annotations

import contextlib
import logging
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from autoseg.devices import LAUNCHER, job_environment, lost_gpus
from autoseg.errors import InputError
from autoseg.execution.entry import Entry, jobs_event
from autoseg.execution.executor import Executor
from autoseg.execution.feed import Feed
from autoseg.execution.gpus import GpuWatch, LostGpus
from autoseg.execution.plan import assign, check_jobs, gpu_count, longest_first
from autoseg.execution.results import describe_failure, is_done, log_tail, missing_outputs, read_result
from autoseg.execution.signals import SignalCounter
from autoseg.records import Event, Job, JobResult, Slot
from autoseg.workspace import LITTLE, patiently, room, says_full, write_json

logger = logging.getLogger(__name__)
TABLE_SECONDS = 1.0
CANCEL_SECONDS = 60.0
FATES = {"failed": "failed", "skipped": "was skipped", "stopped": "was stopped"}  # of jobs that others need
ENOUGH = 64 * 2**20  # bytes free on the disk for jobs that had filled it to go on


class Scheduler:
    """Spreads jobs over slots and keeps `<jobs_dir>/<id>/{job.json,result.json,output.log}`."""

    def __init__(
        self,
        executor: Executor[Any],
        slots: Sequence[Slot],
        jobs_dir: Path,
        notify: Callable[[Event], None],
        poll_seconds: float = 0.2,
        max_tries: int = 1,
        stuck_seconds: float = math.inf,
        at_start: Callable[[Job], Job] = lambda job: job,
        lost_gpus: LostGpus = lost_gpus,
        at_loss: Callable[[str], None] = lambda gpu: None,
    ):
        """`poll_seconds`: the longest time between two looks; an executor that can tells of an end at once.

        `max_tries`: how often `run` starts a job before it counts as failed; one that says (by exit code 2) that its
        input is wrong is not tried again. `stuck_seconds`: a job whose log and progress have not grown for so long is
        ended. `at_start` gives the job as it is to be started, each time: what it knows of the moment goes into `argv`.
        `lost_gpus` is asked when a job on a GPU has failed; `at_loss` hears of each `Slot.gpu` that is out of use.
        """
        self.at_start, self.at_loss, self.gpus = at_start, at_loss, GpuWatch(lost_gpus)
        self.stuck_seconds = stuck_seconds
        self.executor, self.slots, self.jobs_dir = executor, tuple(slots), Path(jobs_dir)
        self.notify, self.poll_seconds, self.max_tries = notify, poll_seconds, max_tries
        self._entries: dict[str, Entry] = {}
        self._feed, self._offered = Feed(), self.slots
        self._signals = SignalCounter()
        self._cramped = False

    def run(self, jobs: Sequence[Job], feed: Feed | None = None) -> dict[str, JobResult]:
        """Run the jobs; returns every job's result, in the order given: done, failed or skipped.

        A job that is done already is kept as it is. One that fails touches no other but those that need it, which
        are skipped. SIGINT and SIGTERM, like any exception, cancel what runs (its result says `cancelled`) and
        raise: KeyboardInterrupt for the signals. Raises InputError for jobs that can never run, before any starts.

        A `feed` is asked for further jobs whenever a slot is free and no job waits for one, until it is finished or
        no slot is left; their results follow the others. One of its jobs that it does not want any longer is stopped:
        that is no failure, and no later run tries it again from the same inputs. InputError also for a job of the
        feed that can never run.
        """
        check_jobs(jobs, self.slots)
        self._feed, self._offered = Feed() if feed is None else feed, self.slots
        self._entries = {job.id: Entry(job, self.jobs_dir / job.id) for job in longest_first(jobs)}
        with self._signals.counting():
            try:
                for entry in self._in_state("waiting"):
                    self._recall(entry)
                self._loop()
            except BaseException:
                self._cancel_running()
                raise
            finally:
                self.executor.close()
        results = self.results
        return {name: results[name] for name in dict.fromkeys([*(job.id for job in jobs), *results]) if name in results}

    @property
    def results(self) -> dict[str, JobResult]:
        """Of the jobs that have ended so far, by their ids."""
        return {name: entry.result for name, entry in self._entries.items() if entry.result is not None}

    def _recall(self, entry: Entry) -> None:
        """What an earlier run left of a job made from the same inputs: its tries or, where it is over, its result."""
        result = read_result(entry.folder)
        if result is None or result.fingerprint != entry.job.fingerprint:
            return
        entry.tries = result.tries
        facts: dict[str, Any] = {"id": entry.job.id, "kept": True}
        if is_done(entry.job, result):
            event = Event("job_done", f"{entry.job.id} kept: it was done before, from the same inputs", facts)
        elif entry.fed and result.status == "stopped":
            facts |= {"reason": result.error, "seconds": result.seconds}
            event = Event("job_stopped", f"{entry.job.id} kept: it was stopped before: {result.error}", facts)
        else:
            return
        entry.recall(result)
        self._hand_over(entry)
        self._tell(entry, event)

    def _loop(self) -> None:
        shown = -TABLE_SECONDS
        while True:
            for entry in self._in_state("running"):
                code = self.executor.poll(entry.handle)
                if code is not None:
                    self._ended(entry, code)
                elif self._hand_over(entry):
                    self.executor.cancel(entry.handle)
                else:
                    self._end_if_stuck(entry)
            self._fail_homeless()
            self._skip_hopeless()
            self._start_ready()
            if self._signals.count:
                raise KeyboardInterrupt
            unfinished = self._in_state("waiting", "running")
            over = not unfinished and not self._growing()
            if over or (unfinished and self.executor.now() - shown >= TABLE_SECONDS):
                shown = self.executor.now()
                self._show_jobs()
            if over:
                return
            self.executor.wait(self.poll_seconds)

    def _growing(self) -> bool:
        """Whether the feed may bring further jobs."""
        return bool(self.slots) and not self._feed.finished()

    def _in_state(self, *states: str) -> list[Entry]:
        return [entry for entry in self._entries.values() if entry.state in states]

    def _fail_homeless(self) -> None:
        """Fail what waits for a GPU where none is left: a lost one does not come back in this run."""
        for entry in self._in_state("waiting") if self.gpus.out else ():
            if (entry.job.resources.gpus and not gpu_count(self.slots)) or not self.slots:
                reasons = "; ".join(dict.fromkeys(self.gpus.out.values()))
                reason = f"no GPU is left: {reasons}"
                self._failed(entry, reason, reason, hopeless=True)

    def _skip_hopeless(self) -> None:
        skipped = True
        while skipped:  # one skipped job dooms those that need it
            skipped = False
            for entry in self._in_state("waiting"):
                lost = [n for n in entry.job.needs if self._entries[n].state in FATES]
                if lost:
                    skipped = True
                    reason = f"needs {lost[0]}, which {FATES[self._entries[lost[0]].state]}"
                    facts = {"id": entry.job.id, "needs": lost}
                    event = Event("job_skipped", f"{entry.job.id} skipped: {reason}", facts)
                    self._finish(entry, "skipped", reason, event)

    def _start_ready(self) -> None:
        """Fill the free slots: with jobs that wait, and where none does, with those that the feed brings."""
        while self._has_room():
            busy = {slot for entry in self._in_state("running") for slot in entry.slots}
            free = [slot for slot in self.slots if slot not in busy]
            ready = [
                entry.job
                for entry in self._in_state("waiting")
                if all(self._entries[need].state in ("done", "kept") for need in entry.job.needs)
            ]
            if not free or not (ready or self._take_next()):
                return
            given = assign(ready, free, self.slots)
            for name, slots in given.items():  # one that cannot be started leaves its slot to the next
                self._start(self._entries[name], slots)
            if ready and not given:  # they wait for more GPUs than are free
                return

    def _take_next(self) -> bool:
        """Whether the feed brought a job: it waits now, or was over before it began."""
        job = self._feed.next() if not self._signals.count else None
        if job is None:
            return False
        check_jobs([job], self._offered, self._entries)
        entry = self._entries[job.id] = Entry(job, self.jobs_dir / job.id, fed=True)
        self._recall(entry)
        return True

    def _start(self, entry: Entry, slots: tuple[Slot, ...]) -> None:
        job = self.at_start(entry.job)
        entry.begin(slots, self.executor.now())
        # from here on an older result is no evidence: the outputs are about to change
        running = JobResult(job.id, "running", job.fingerprint, tries=entry.tries, log=str(entry.log))
        self._write(entry.folder / "job.json", job)
        self._write(entry.folder / "result.json", running)
        entry.open_log()
        gpus = tuple(slot.gpu for slot in slots if slot.gpu is not None) if job.resources.gpus else ()
        cpus = sum(slot.cpus for slot in slots)
        own = {name: value for name, value in os.environ.items() if name not in LAUNCHER}
        environment = {**own, **job_environment(gpus, cpus), **job.env}
        try:
            entry.handle = self.executor.start(job, environment, entry.log)
        except (OSError, ValueError) as error:
            self._failed(entry, f"could not be started: {error}", f"could not be started: {error}")
            return
        entry.state = "running"
        cores = f"{cpus} core{'s' if cpus != 1 else ''}"
        facts = {"id": job.id, "device": entry.device, "gpus": gpus, "cpus": cpus, "tries": entry.tries}
        self.notify(Event("job_started", f"{job.id} started on {entry.device} ({cores})", facts))

    def _hand_over(self, entry: Entry) -> bool:
        """Hand the feed the new validations of a job of its; whether it says that the job is not wanted any longer."""
        if not entry.fed:
            return False
        entry.metrics.catch_up(self.executor.now())
        lines = entry.metrics.validations()
        reason = self._feed.unwanted(entry.job, lines) if lines else None
        if entry.unwanted is None:
            entry.unwanted = reason
        return reason is not None

    def _end_if_stuck(self, entry: Entry) -> None:
        """Ask a job to end that has given no sign of life for too long; `_ended` then finds the reason in `fault`."""
        quiet = entry.quiet_seconds(self.executor.now())
        if entry.fault is None and quiet > self.stuck_seconds and room(entry.folder) >= LITTLE:
            entry.fault = f"stuck: its log and progress have not grown for {quiet:.0f} s; it was ended"
            self.executor.cancel(entry.handle)

    def _ended(self, entry: Entry, code: int) -> None:
        entry.seconds = self.executor.now() - entry.started
        self._hand_over(entry)
        missing = missing_outputs(entry.job)
        if entry.fault is None and code == 0 and not missing:
            facts = {"id": entry.job.id, "seconds": entry.seconds, "tries": entry.tries}
            self._finish(entry, "done", None, Event("job_done", f"{entry.job.id} done in {entry.seconds:.1f} s", facts))
            return
        if entry.unwanted is not None:
            facts = {"id": entry.job.id, "reason": entry.unwanted, "seconds": entry.seconds}
            event = Event("job_stopped", f"{entry.job.id} stopped: {entry.unwanted}", facts)
            self._finish(entry, "stopped", entry.unwanted, event)
            return
        lines = log_tail(entry.log, entry.log_start)
        if code != InputError.exit_code and self._gpu_failed(entry, lines):
            return
        if entry.fault is not None:
            self._failed(entry, entry.fault, entry.fault, code)
            return
        headline, error = describe_failure(code, lines)
        if code and (says_full("\n".join(lines)) or room(entry.folder) < LITTLE):
            self._wait_for_room(entry)
            return
        if code == 0:
            headline = f"ended well, but did not write {', '.join(missing)}"
            error = "\n".join([headline, *error.splitlines()[1:]])
        self._failed(entry, headline, error, code)

    def _gpu_failed(self, entry: Entry, lines: list[str]) -> bool:
        """Whether a job failed for want of its GPU: it then waits for another, and the try does not count."""
        known = set(self.gpus.out)
        blamed = self.gpus.blame(entry.slots, lines) if entry.job.resources.gpus else {}
        if not blamed:
            return False
        names = {slot.gpu: f"GPU {slot.gpu} ({slot.name or slot.device})" for slot in entry.slots}
        entry.wait(counts=False)
        for gpu, reason in blamed.items():
            facts = {"id": entry.job.id, "gpu": gpu, "reason": reason, "log": str(entry.log)}
            fate = "is out of use" if gpu in self.gpus.out else "has failed a job, and is tried once more"
            if gpu not in known:
                self.notify(Event("warning", f"{names[gpu]} {fate}: {reason}", facts))
        wide = entry.job.resources
        if wide.gpus > 1:  # it does not wait for others to end: those that are left to it are enough
            fewer = replace(wide, gpus=max(1, wide.gpus - len(blamed.keys() & self.gpus.out.keys())))
            entry.job = replace(entry.job, resources=fewer)
        for gpu in set(self.gpus.out) - known:
            self.slots = tuple(slot for slot in self.slots if slot.gpu != gpu)
            self.at_loss(gpu)
        self.notify(Event("stage", f"{entry.job.id} was failed by its GPU, not by itself: it waits for a free one"))
        return True

    def _wait_for_room(self, entry: Entry) -> None:
        """A job that died of a full disk waits, and no job starts until there is room."""
        entry.wait(counts=False)
        self._cramped = True
        message = f"{entry.job.id} ended for want of disk space: it goes on when there is room in {self.jobs_dir}"
        self.notify(Event("warning", message, {"id": entry.job.id, "log": str(entry.log)}))

    def _has_room(self) -> bool:
        """Whether jobs may start: after one died of a full disk, only once there is room again."""
        if self._cramped and room(self.jobs_dir) >= ENOUGH:
            self._cramped = False
            self.notify(Event("stage", "there is room on the disk again: the jobs go on"))
        return not self._cramped

    def _failed(self, entry: Entry, headline: str, error: str, code: int | None = None, hopeless: bool = False) -> None:
        again = entry.starts < self.max_tries and code != InputError.exit_code and not hopeless
        facts: dict[str, Any] = {"id": entry.job.id, "headline": headline, "error": error, "log": str(entry.log)}
        facts |= {"exit_code": code, "tries": entry.tries, "again": again}
        message = f"{entry.job.id} failed{', and is tried again' if again else ''}: {headline}"
        event = Event("job_failed", message, facts)
        if again:
            entry.wait(counts=True)
            self.notify(event)
        else:
            self._finish(entry, "failed", error, event)

    def _finish(self, entry: Entry, status: str, error: str | None, event: Event) -> None:
        """A job ended for good."""
        self._write(entry.folder / "result.json", entry.end(status, error))
        self._tell(entry, event)

    def _tell(self, entry: Entry, event: Event) -> None:
        """Tell all that a job is over, and then the feed, where it is one of its."""
        self.notify(event)
        if entry.fed and entry.result is not None:
            self._feed.ended(entry.job, entry.result)

    def _write(self, path: Path, record: Job | JobResult) -> None:
        """Write a record, however long the disk is full; Ctrl-C ends the waiting."""

        def pause(seconds: float) -> None:
            if self._signals.count:
                raise KeyboardInterrupt
            self.executor.wait(seconds)

        def say(message: str) -> None:
            self.notify(Event("warning", message, {"path": str(path)}))

        patiently(lambda: write_json(path, record), path, say=say, pause=pause)

    def _show_jobs(self) -> None:
        entries = tuple(self._entries.values())
        event = jobs_event(entries, self.slots, self.executor.now(), growing=self._growing())
        for entry in entries:
            for message in entry.metrics.warnings():
                self.notify(Event("warning", f"{entry.job.id}: {message}", {"id": entry.job.id}))
        self.notify(event)

    def _cancel_running(self) -> None:
        """Cancel all jobs, wait until they have ended, and say so; a second signal ends the waiting."""
        running = self._in_state("running")
        for entry in running:
            with contextlib.suppress(Exception):
                self.executor.cancel(entry.handle)
        deadline, signals = self.executor.now() + CANCEL_SECONDS, self._signals.count
        while self.executor.now() < deadline and self._signals.count <= max(1, signals):
            if all(self.executor.poll(entry.handle) is not None for entry in running):
                break
            self.executor.wait(min(0.1, self.poll_seconds))
        for entry in running:
            entry.seconds = self.executor.now() - entry.started
            try:
                self._write(entry.folder / "result.json", entry.end("cancelled", "cancelled while it ran"))
            except (OSError, KeyboardInterrupt):
                logger.warning("%s: the result could not be written", entry.folder, exc_info=True)
        with contextlib.suppress(Exception):  # a listener that is broken must not hide why the run ends
            if running:
                self.notify(Event("warning", f"cancelled: {', '.join(entry.job.id for entry in running)}"))
            self._show_jobs()
