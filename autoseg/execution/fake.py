"""An executor without processes, on a virtual clock: hours of scheduling in milliseconds, for tests and dry runs."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autoseg.execution.executor import Executor
from autoseg.records import Job


@dataclass(frozen=True)
class FakeRun:
    """What a job does: how long it runs, its exit code, what it prints, and which of its outputs it leaves out.

    `metrics`: the lines that it adds to its `progress` file, each with the second in which it does.
    """

    seconds: float = 1.0
    exit_code: int = 0
    log: str = ""
    missing: tuple[str, ...] = ()
    metrics: tuple[tuple[float, Mapping[str, Any]], ...] = ()


@dataclass(eq=False)
class FakeProcess:
    """One start of a job: its span on the virtual clock, and the environment it was given."""

    job: Job
    run: FakeRun
    log: Path
    environment: dict[str, str]
    started: float
    ends: float
    exit_code: int | None = None
    written: int = 0


@dataclass
class FakeExecutor(Executor[FakeProcess]):
    """Runs each job as `behaviour(job)` says, and keeps every start in `history`.

    A job whose `argv` is empty, or whose `cwd` is not a folder, cannot be started, as with real processes.
    """

    behaviour: Callable[[Job], FakeRun] = lambda job: FakeRun(seconds=job.cost)
    clock: float = 0.0
    history: list[FakeProcess] = field(default_factory=list)

    def start(self, job: Job, environment: Mapping[str, str], log: Path) -> FakeProcess:
        if not job.argv or not Path(job.cwd).is_dir():
            raise FileNotFoundError(2, "No such file or directory", job.argv[0] if job.argv else job.cwd)
        run = self.behaviour(job)
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "a", encoding="utf-8") as file:
            file.write(run.log)
        handle = FakeProcess(job, run, log, dict(environment), self.clock, self.clock + run.seconds)
        self.history.append(handle)
        return handle

    def poll(self, handle: FakeProcess) -> int | None:
        if handle.exit_code is None:
            self._write_metrics(handle)
        if handle.exit_code is None and self.clock >= handle.ends:
            for output in handle.job.outputs:
                if handle.run.exit_code == 0 and output not in handle.run.missing:
                    path = Path(handle.job.cwd) / output
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.touch()
            handle.exit_code = handle.run.exit_code
        return handle.exit_code

    def _write_metrics(self, handle: FakeProcess) -> None:
        ripe = [line for second, line in handle.run.metrics if handle.started + second <= self.clock]
        if handle.job.progress and len(ripe) > handle.written:
            with open(Path(handle.job.cwd) / handle.job.progress, "a", encoding="utf-8") as file:
                file.writelines(json.dumps(line) + "\n" for line in ripe[handle.written :])
            handle.written = len(ripe)

    def cancel(self, handle: FakeProcess) -> None:
        if self.poll(handle) is None:
            handle.ends, handle.exit_code = self.clock, -int(signal.SIGTERM)

    def wait(self, seconds: float) -> None:
        """Jump ahead by `seconds`, or to the next end of a job."""
        ends = [handle.ends for handle in self.history if handle.exit_code is None]
        self.clock = max(self.clock, min([self.clock + seconds, *ends]))

    def now(self) -> float:
        return self.clock

    def close(self) -> None:
        for handle in self.history:
            self.cancel(handle)
