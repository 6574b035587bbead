"""What an executor is: it starts, polls and cancels; it decides nothing and writes no run state."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Generic, TypeVar

from autoseg.records import Job

Handle = TypeVar("Handle")


class Executor(ABC, Generic[Handle]):
    """A place where processes run. Every implementation passes `tests/execution/test_executors.py`."""

    @abstractmethod
    def start(self, job: Job, environment: Mapping[str, str], log: Path) -> Handle:
        """Start `job.argv` in `job.cwd` with exactly `environment`; stdout and stderr are appended to `log`.

        Raises OSError or ValueError where it cannot be started (no such program, no such folder).
        """

    @abstractmethod
    def poll(self, handle: Handle) -> int | None:
        """Exit code, negative for the signal that ended it; None while any of it runs. Never blocks."""

    @abstractmethod
    def cancel(self, handle: Handle) -> None:
        """Ask the job and its children to end, and end them soon after if they do not. Never blocks; `poll` tells."""

    def wait(self, seconds: float) -> None:
        """Return after `seconds`, or sooner when a job may have ended."""
        time.sleep(seconds)

    def now(self) -> float:
        """Seconds on the clock by which `wait` waits."""
        return time.monotonic()

    def close(self) -> None:
        """Let go of everything; what still runs is killed. `start` may be called again afterwards."""
        return None
