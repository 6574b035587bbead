"""The time limit of a call: what is left of it, and when each training must be over."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from autoseg.devices import makespan
from autoseg.errors import AutosegError, InputError
from autoseg.planning.budget import largest
from autoseg.records import Job
from autoseg.workspace import read_keys, read_lines, write_json

KEPT_SECONDS = 5.0  # between two notes of the time spent: so much a killed run forgets


class Clock:
    """Counts the seconds of `limit`. Those of earlier calls that were cut off count, too: the same command goes on.

    `path`: where the time spent is noted, as {limit, spent}; it is gone when a run ends well.
    """

    def __init__(self, limit: float, path: Path):
        self.limit, self.path = limit, path
        self._started, self._noted = time.monotonic(), 0.0
        known, spent = noted(path)
        self.before = spent if known == limit else 0.0  # seconds that earlier calls spent

    @property
    def spent(self) -> float:
        return self.before + time.monotonic() - self._started

    @property
    def left(self) -> float:
        return self.limit - self.spent

    def tick(self) -> None:
        """Note the time spent, every few seconds."""
        now = time.monotonic()
        if now - self._noted >= KEPT_SECONDS:
            self._noted = now
            with contextlib.suppress(OSError):  # a full disk costs the note, not the run
                write_json(self.path, {"limit": self.limit, "spent": round(self.spent, 1)})

    def end(self) -> None:
        """The run ended well: the next call has all of its limit."""
        self.path.unlink(missing_ok=True)


@contextlib.contextmanager
def ending(clock: Clock | None) -> Iterator[None]:
    """What ends well or with an error of ours has ended; what is killed or interrupted goes on with what is left."""
    ended = False
    try:
        yield
        ended = True
    except AutosegError:
        ended = True
        raise
    finally:
        if ended and clock is not None:
            clock.end()


def noted(path: Path) -> tuple[float, float]:
    """(limit, seconds spent) of a call that has not ended, by its note; NaN and 0 where there is none."""
    with contextlib.suppress(InputError, TypeError, ValueError):
        limit, spent = (float(value) for value in read_keys(path, "limit", "spent"))
        return limit, spent
    return math.nan, 0.0


class Deadlines:
    """Tells each training, when it starts, when it must be over, so that all of them are by `end`.

    `seconds`: what each job may take, by its id, as planned. What others took longer or shorter is shared by those
    that have not started; the last job of a slot gets all that is left. `end`: seconds since the epoch.
    """

    def __init__(self, seconds: Mapping[str, float], spent: Mapping[str, float], slots: int, end: float):
        self.waiting = {name: max(0.0, planned - spent.get(name, 0.0)) for name, planned in seconds.items()}
        self.slots, self.end = slots, end
        self._given: dict[str, float] = {}

    def give(self, job: Job) -> Job:
        """The job as it starts now, its deadline among its arguments."""
        now = time.time()
        if job.id in self.waiting or job.id in self._given:
            own = self.waiting.pop(job.id, 0.0)
            busy = sorted((t for name, t in self._given.items() if name != job.id), reverse=True)[: self.slots - 1]
            free = self.slots - len(busy)
            if job.id in self._given:  # another try
                deadline = self._given[job.id]
            elif len(self.waiting) < free:  # nobody waits for this slot
                deadline = self.end
            else:
                deadline = now + own * self._factor(now, own, [max(0.0, t - now) for t in busy])
            self._given[job.id] = deadline
            return replace(job, argv=(*job.argv, "--deadline", f"{deadline:.1f}"))
        return job

    def _factor(self, now: float, own: float, busy: Sequence[float]) -> float:
        """By what the planned seconds of this job and of those that wait must be multiplied to fill the time."""
        planned, left = [own, *self.waiting.values()], self.end - now
        return largest(
            lambda factor: makespan([factor * seconds for seconds in planned], self.slots, busy) <= left,
            max(0.0, left) / max(own, 1.0),
        )


def with_checkpoint(line: Mapping[str, Any]) -> bool:
    """Whether a line of metrics.jsonl was written with a checkpoint, scored or not."""
    return bool(line.get("checkpoint", "mean_dice" in line))


def last_line(path: Path, counts: Callable[[Mapping[str, Any]], bool] = with_checkpoint) -> dict[str, Any]:
    """The last line that counts of a file such as metrics.jsonl; {} where there is none."""
    return next((line for line in reversed(list(read_lines(path))) if counts(line)), {})


def seconds_spent(
    jobs: Mapping[str, Path], counts: Callable[[Mapping[str, Any]], bool] = with_checkpoint
) -> dict[str, float]:
    """Seconds that jobs have behind them where they go on, by the last line that counts of each one's file."""
    lasts = {name: last_line(path, counts) for name, path in jobs.items()}
    return {name: float(last["seconds"]) for name, last in lasts.items() if last.get("seconds")}
