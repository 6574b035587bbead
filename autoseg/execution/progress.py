"""How far a job is, read from the metrics.jsonl that it writes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

MAX_BYTES = 1 << 20  # a tick of the live table reads no more; the next goes on


class MetricsReader:
    """Follows a growing metrics.jsonl: reads only what was added, and only whole lines.

    Lines that are no JSON object are passed over; a file that shrank or was replaced is read from its beginning.
    """

    def __init__(self, path: Path | None, *, from_start: bool, before: MetricsReader | None = None):
        """`from_start=False` passes over what stands there already: it is another training's.

        `before`: the reader of the try before, whose validations are not handed out again.
        """
        self.path = path
        self._offset = 0
        self._file_id: int | None = None
        self._latest: dict[str, Any] = {}
        self._best: float | None = None
        self._heard = 0.0
        self._warnings: list[str] = []
        self._validations: list[dict[str, Any]] = []
        self._handed: set[bytes] = before._handed if before is not None else set()
        status = self._stat()
        if status is not None and not from_start:
            self._file_id, self._offset = status

    def update(self, now: float) -> None:
        """Read what was added; `now` is the time on the scheduler's clock, in seconds."""
        status = self._stat()
        if self.path is None or status is None:
            return
        file_id, size = status
        if file_id != self._file_id or size < self._offset:
            self._file_id, self._offset = file_id, 0
        if size == self._offset:
            return
        try:
            with open(self.path, "rb") as file:
                file.seek(self._offset)
                chunk = file.read(MAX_BYTES)
        except OSError:
            return
        whole = chunk.rfind(b"\n") + 1
        if whole == 0 and len(chunk) == MAX_BYTES:  # no line is that long: pass over it
            whole = len(chunk)
        self._offset += whole
        for line in chunk[:whole].splitlines():
            self._take(line, now)

    def catch_up(self, now: float) -> None:
        """Read all that was added, however much it is."""
        before = -1
        while self._offset != before:
            before = self._offset
            self.update(now)

    def _take(self, line: bytes, now: float) -> None:
        try:
            values = json.loads(line)
        except ValueError:
            return
        if not isinstance(values, dict):
            return
        self._latest.update({key: value for key, value in values.items() if value is not None})
        self._heard = now
        if isinstance(values.get("warning"), str):
            self._warnings.append(values["warning"])
        dice = _number(values.get("mean_dice"))
        if dice is not None:
            self._best = dice if self._best is None else max(self._best, dice)
            if line not in self._handed:  # a training that goes back to a checkpoint writes the whole file anew
                self._handed.add(line)
                self._validations.append(values)

    def facts(self, now: float) -> dict[str, Any]:
        """step, steps, epoch, loss, mean_dice (the last), best_dice and seconds_left; None where not known."""
        latest = self._latest
        return {
            "step": _whole(latest.get("step")),
            "steps": _whole(latest.get("num_iterations")),
            "epoch": _whole(latest.get("epoch")),
            "loss": _number(latest.get("loss")),
            "mean_dice": _number(latest.get("mean_dice")),
            "best_dice": self._best,
            "seconds_left": self._seconds_left(now),
        }

    def warnings(self) -> list[str]:
        """What the job has warned of since this was asked last."""
        new, self._warnings = self._warnings, []
        return new

    def validations(self) -> list[dict[str, Any]]:
        """Lines with a finite mean_dice, whole, that were read since this was asked last; none twice."""
        new, self._validations = self._validations, []
        return new

    def _seconds_left(self, now: float) -> float | None:
        """From the share of the steps done, or of the seconds granted: whichever ends sooner."""
        step, steps = _number(self._latest.get("step")), _number(self._latest.get("num_iterations"))
        seconds, budget = _number(self._latest.get("seconds")), _number(self._latest.get("max_seconds"))
        if seconds is None:
            return None
        guesses = []
        if step and steps:
            guesses.append(seconds * (steps - step) / step)
        if budget:
            guesses.append(budget - seconds)
        return max(0.0, min(guesses) - (now - self._heard)) if guesses else None

    def _stat(self) -> tuple[int, int] | None:
        try:
            status = self.path.stat() if self.path is not None else None
        except OSError:
            return None
        return (status.st_ino, status.st_size) if status is not None else None


def _number(value: Any) -> float | None:
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    return None


def _whole(value: Any) -> int | None:
    number = _number(value)
    return None if number is None else int(number)
