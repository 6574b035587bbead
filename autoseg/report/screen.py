"""The screen of a run: a live table in a terminal, plain lines elsewhere. It listens to events and decides nothing."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from autoseg.records import Event
from autoseg.report.tables import duration, jobs_table, left_in_all, render, steps

logger = logging.getLogger(__name__)
JOBS_EVERY_SECONDS = 30.0
STYLES = {"stage": "bold", "warning": "yellow", "job_failed": "bold red", "job_done": "green", "result": "bold green"}
SHOWN_ERROR_LINES = 20


class Screen:
    """Shows events as they come: `with Screen(Console()) as screen: run(config, notify=screen)`.

    In a terminal: one line an event, and below them the table of jobs and a line of progress, drawn anew a few times
    a second. Elsewhere: lines only, that of the jobs every 30 s, that of progress every 10 %. It never raises: what it
    cannot show must not end a run.
    """

    def __init__(self, console: Console | None = None):
        self.console = console or Console()
        self.live_table = self.console.is_terminal and not self.console.is_dumb_terminal
        self._lock = threading.RLock()
        self._live: Live | None = None
        self._jobs: Mapping[str, Any] | None = None
        self._jobs_at = 0.0
        self._said = 0.0
        self._progress: tuple[str, int, int] | None = None
        self._tenths: tuple[str, int] = ("", 0)

    def __enter__(self) -> Screen:
        if self.live_table:
            self._live = Live(
                get_renderable=self._below, console=self.console, refresh_per_second=4, transient=True,
                redirect_stdout=False, redirect_stderr=False,
            )  # fmt: skip
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        live, self._live = self._live, None
        if live is not None:
            live.stop()
            if self._jobs is not None:  # cut short: where the jobs stood
                self._print_table(self._jobs)

    def __call__(self, event: Event) -> None:
        show: Callable[[Event], None] = {
            "jobs": self._on_jobs, "progress": self._on_progress, "job_failed": self._on_failure
        }.get(event.kind, self._line)  # fmt: skip
        with self._lock:
            try:
                show(event)
            except Exception:
                logger.debug("event of kind %r could not be shown", event.kind, exc_info=True)

    def print(self, content: RenderableType) -> None:
        """Print a table or text above what is live; in the letters that the console can write."""
        with self._lock:
            if isinstance(content, Table) and not self._writes_unicode():
                content = Text(render(content, self.console.width, unicode=False))
            self.console.print(self._written(content) if isinstance(content, Text) else content)

    def _line(self, event: Event) -> None:
        if event.kind != "job_started":
            self._progress = None
        clock = time.strftime("%H:%M:%S", time.localtime(event.time))
        word = "warning: " if event.kind == "warning" else ""
        self._say(Text.assemble((f"{clock} ", "dim"), (f"{word}{event.message}", STYLES.get(event.kind, ""))))

    def _on_failure(self, event: Event) -> None:
        self._line(event)
        facts = event.facts
        lines = str(facts.get("error") or "").splitlines()
        if len(lines) > 1 and lines[0] == facts.get("headline"):
            lines = lines[1:]  # said already
        for line in lines[-SHOWN_ERROR_LINES:]:
            self._say(Text(f"    | {line}", "red"))
        if facts.get("log"):
            self._say(Text(f"    log: {facts['log']}"))

    def _on_jobs(self, event: Event) -> None:
        facts = event.facts
        ended = facts["finished"] >= facts["total"]
        if self._live is not None:
            jobs_table(facts["jobs"], facts["finished"], facts["total"])  # what fails, fails here, not while drawing
            if ended and facts["total"] > 1:
                self._print_table(facts)
            self._jobs, self._jobs_at = (None if ended else facts), time.monotonic()
            return
        running = [row for row in facts["jobs"] if row.get("state") == "running"]
        if self._said == 0.0 or ended:
            self._said = event.time if not ended else 0.0
        elif event.time - self._said >= JOBS_EVERY_SECONDS:
            self._said = event.time
            left = left_in_all(facts["total"], facts.get("seconds_left"))
            parts = [f"{facts['finished']} of {facts['total']} jobs finished{left}", *map(_short, running)]
            self._line(Event("jobs", "; ".join(parts), time=event.time))

    def _on_progress(self, event: Event) -> None:
        stage, done, total = str(event.facts["stage"]), int(event.facts["done"]), int(event.facts["total"])
        if self._live is not None:
            self._progress = (stage, done, total) if done < total else None
            return
        tenth = 10 * done // max(1, total)
        if self._tenths[0] != stage or tenth < self._tenths[1]:
            self._tenths = (stage, 0)
        if tenth > self._tenths[1]:
            self._tenths = (stage, tenth)
            self._line(Event("progress", f"{stage}: {done} of {total}", time=event.time))

    def _say(self, line: Text) -> None:
        """One line, however long: what is written to a file or copied from a terminal must not be broken."""
        self.console.print(self._written(line), soft_wrap=True, highlight=False, markup=False)

    def _print_table(self, facts: Mapping[str, Any]) -> None:
        self.print(jobs_table(facts["jobs"], facts["finished"], facts["total"]))

    def _writes_unicode(self) -> bool:
        return self.console.encoding.lower().replace("-", "").startswith("utf")

    def _written(self, text: Text) -> Text:
        """The text with what the console's encoding lacks as '?', and without control characters."""
        plain = "".join(letter if letter.isprintable() or letter in "\n\t" else " " for letter in text.plain)
        encoding = "ascii" if not self._writes_unicode() else "utf-8"
        cleaned = text.copy()
        cleaned.plain = plain.encode(encoding, errors="replace").decode(encoding)
        return cleaned

    def _below(self) -> RenderableType:
        """What stands below the lines: the table of jobs and the line of progress. Called by the drawing thread."""
        parts: list[RenderableType] = []
        facts, progress = self._jobs, self._progress  # another thread may set them to None meanwhile
        if facts is not None:
            passed = time.monotonic() - self._jobs_at
            rows = [_moved(row, passed) for row in _fitting(facts["jobs"], self.console.height - 8)]
            left = facts.get("seconds_left")
            left = None if left is None else max(0.0, left - passed)
            table = jobs_table(rows, facts["finished"], facts["total"], left)
            hidden = len(facts["jobs"]) - len(rows)
            table.caption = f"{hidden} more" if hidden else None
            parts.append(table if self._writes_unicode() else Text(render(table, self.console.width, unicode=False)))
        if progress is not None:
            stage, done, total = progress
            line = Table.grid(padding=(0, 1))
            bar = ProgressBar(total=max(1, total), completed=done, width=40)
            line.add_row(self._written(Text(stage)), bar, Text(f"{done}/{total}"))
            parts.append(line)
        return Group(*parts)


def _moved(row: Mapping[str, Any], seconds: float) -> Mapping[str, Any]:
    """A running job's row with its clock put forward since the event."""
    if row.get("state") != "running":
        return row
    left = row.get("seconds_left")
    return {
        **row,
        "seconds": (row.get("seconds") or 0.0) + seconds,
        "seconds_left": None if left is None else max(0.0, left - seconds),
    }


def _fitting(rows: list[Mapping[str, Any]], most: int) -> list[Mapping[str, Any]]:
    """The rows that fit the screen, in their order: those that run first, then those that wait, then the ended."""
    rank = {"running": 0, "failed": 1, "waiting": 2}
    chosen = sorted(range(len(rows)), key=lambda i: (rank.get(str(rows[i].get("state")), 3), i))[: max(3, most)]
    return [rows[i] for i in sorted(chosen)]


def _short(row: Mapping[str, Any]) -> str:
    """A running job in a few words."""
    words = [str(row.get("id"))]
    if row.get("step") is not None:
        words.append(f"step {steps(row)}")
    for key, name in (("loss", "loss"), ("best_dice", "best Dice")):
        if row.get(key) is not None:
            words.append(f"{name} {row[key]:.4f}")
    if row.get("seconds_left") is not None:
        words.append(f"{duration(row['seconds_left'])} left")
    return " ".join(words)
