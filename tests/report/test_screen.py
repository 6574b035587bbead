"""The screen: plain lines where there is no terminal, a live table where there is one; it never raises."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table

from autoseg.execution import FakeExecutor, FakeRun, Scheduler
from autoseg.records import Event, Job, Slot
from autoseg.report.screen import Screen
from autoseg.report.tables import leaderboard_table


def job_row(name: str, state: str = "running", **values: Any) -> dict[str, Any]:
    return {"id": name, "state": state, "device": "gpu0", "tries": 1, "seconds": 65.0, **values}


def jobs(time: float, finished: int, *rows: dict[str, Any]) -> Event:
    return Event("jobs", "", {"jobs": list(rows), "finished": finished, "total": len(rows)}, time)


def shown(events: list[Event], *, encoding: str = "utf-8") -> list[str]:
    """What a screen without a terminal writes."""
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, newline="\n")
    with Screen(Console(file=stream, force_terminal=False, width=60)) as screen:
        for event in events:
            screen(event)
    stream.flush()
    stream.seek(0)
    text = stream.read()
    assert "\x1b" not in text
    return [re.sub(r"^\d\d:\d\d:\d\d ", "", line) for line in text.splitlines()]


def test_one_line_an_event_however_long_and_whatever_is_in_it() -> None:
    long = "stage /däta/" + "x" * 100 + " [red]not markup[/red] [/] :smile:"
    assert shown([Event("stage", long), Event("never heard of", "fine"), Event("warning", "odd\x1b[31m")]) == [
        long,
        "fine",
        "warning: odd [31m",
    ]


def test_letters_that_the_console_lacks() -> None:
    assert shown([Event("stage", "Größe ✓")], encoding="ascii") == ["Gr??e ?"]


def test_a_failure_shows_the_end_of_its_log_and_where_it_is() -> None:
    facts = {"id": "a", "headline": "ValueError: [no]", "error": "ValueError: [no]\nloading\nValueError: [no]"}
    lines = shown([Event("job_failed", "a failed: ValueError: [no]", {**facts, "log": "/w/jobs/a/output.log"})])
    assert lines == [
        "a failed: ValueError: [no]",
        "    | loading",
        "    | ValueError: [no]",
        "    log: /w/jobs/a/output.log",
    ]


def test_jobs_every_30_seconds_and_progress_every_tenth() -> None:
    running = job_row("segresnet_0", step=5, steps=10, loss=0.5, best_dice=0.8, seconds_left=65.0)
    lines = shown([jobs(1000.0 + second, 0, running, job_row("b", "waiting")) for second in range(70)])
    assert lines == ["0 of 2 jobs finished; segresnet_0 step 5/10 loss 0.5000 best Dice 0.8000 1:05 left"] * 2
    done = [Event("progress", "", {"stage": "analysis", "done": i, "total": 200}) for i in range(201)]
    assert shown(done) == [f"analysis: {20 * i} of 200" for i in range(1, 11)]
    few = [Event("progress", "", {"stage": s, "done": i, "total": 3}) for s in ("a", "b", "b") for i in range(4)]
    assert len(shown(few)) == 9


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize(
    "facts", [{}, {"jobs": 3}, {"jobs": [{}], "finished": "x", "total": None}, {"jobs": 3, "finished": 0, "total": 2}]
)
def test_it_never_raises(facts: dict[str, Any], terminal: bool) -> None:
    stream = io.StringIO()
    with Screen(Console(file=stream, force_terminal=terminal, _environ={"TERM": "xterm"})) as screen:
        for kind in ("jobs", "progress", "job_failed", "job_done", "?"):
            screen(Event(kind, "a line", facts))
        if screen._live is not None:
            screen._live.refresh()
        screen(Event("stage", "the end"))
    assert "the end" in stream.getvalue()


def terminal_screen(stream: io.StringIO, height: int = 40) -> Screen:
    return Screen(Console(file=stream, force_terminal=True, width=100, height=height, _environ={"TERM": "xterm"}))


def plain(stream: io.StringIO) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())


def test_a_terminal_gets_a_table_and_lines_above_it() -> None:
    stream = io.StringIO()
    with terminal_screen(stream) as screen:
        screen(jobs(0.0, 0, job_row("segresnet_0", step=7, steps=9), job_row("b", "waiting")))
        screen(Event("progress", "", {"stage": "reading", "done": 3, "total": 8}))
        screen._live.refresh()  # type: ignore[union-attr]
        live = plain(stream)
        screen(Event("stage", "a new stage"))
        screen(jobs(0.0, 2, job_row("segresnet_0", "done"), job_row("b", "failed")))
    for part in ("0 of 2 finished", "segresnet_0", "7/9", "waiting", "reading", "3/8"):
        assert part in live
    end = plain(stream)
    assert "a new stage" in end and end.count("2 of 2 finished") == 1


def test_an_unfinished_table_stays_when_the_run_is_cut_short() -> None:
    stream = io.StringIO()
    with pytest.raises(KeyboardInterrupt), terminal_screen(stream) as screen:
        screen(jobs(0.0, 0, job_row("segresnet_0", "cancelled")))
        raise KeyboardInterrupt
    assert "cancelled" in plain(stream).splitlines()[-2]


def test_a_hundred_jobs_on_a_small_screen_show_those_that_run() -> None:
    stream = io.StringIO()
    rows = [job_row(f"job_{i:03d}", "running" if i == 90 else "waiting" if i > 90 else "done") for i in range(100)]
    with terminal_screen(stream, height=20) as screen:
        screen(jobs(0.0, 90, *rows))
        screen._live.refresh()  # type: ignore[union-attr]
        live = plain(stream)
    assert "job_090" in live and "job_000" in live and "job_050" not in live and "88 more" in live


def test_tables_are_printed_in_the_letters_there_are() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii", newline="\n")
    table: Table = leaderboard_table([], {1: "Größe"})
    Screen(Console(file=stream, force_terminal=False, width=100)).print(table)
    stream.flush()
    stream.seek(0)
    assert "Gr??e" in stream.read()


def test_the_schedulers_events(tmp_path: Path) -> None:
    stream = io.StringIO()
    made = [Job(name, ("x",), str(tmp_path), cost=40) for name in ("good", "bad")]
    executor = FakeExecutor(lambda job: FakeRun(40, int(job.id == "bad"), "KeyError: 'x'\n"))
    with terminal_screen(stream) as screen:
        Scheduler(executor, [Slot("cpu0", "cpu", 2)], tmp_path / "jobs", screen).run(made)
    text = plain(stream)
    log = str(tmp_path / "jobs" / "bad" / "output.log")
    for part in ("good started on cpu0 (2 cores)", "bad failed: KeyError: 'x'", f"log: {log}", "2 of 2 finished"):
        assert part in text
