"""What the verbs print at their end: tables, sentences, and the files to look at."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autoseg.pipeline import RunResult
    from autoseg.pipeline.judging import SweepResult
    from autoseg.report.screen import Screen


def make_screen() -> Screen:
    """The terminal, or a log of lines."""
    from rich.console import Console

    from autoseg.report.screen import Screen

    # a log or a pipe has no width of its own; tables need more than the 80 columns that rich takes then
    return Screen(Console(width=None if sys.stdout.isatty() else 110))


def show_result(result: RunResult) -> int:
    """Print what came out, and where it is; returns the exit code."""
    from autoseg.report import tables

    screen = make_screen()
    if result.dry is not None:
        screen.print(tables.plan_table(result.dry.families))
        screen.print(tables.outlook_table(result.dry.jobs))
        for note in result.dry.notes:
            print(note)
        print("dry run: nothing was changed; the same command without --dry_run does this")
        return 0
    if result.leaderboard:
        screen.print(tables.leaderboard_table(result.leaderboard, result.labels))
    if result.cross_validation:
        screen.print(tables.cross_validation_table(result.cross_validation, result.labels))
    if result.evaluation is not None:
        screen.print(tables.evaluation_table(result.evaluation, result.labels))
    if result.sweep is not None:
        print(f"sweep: {result.sweep.sentence}")
    if result.members:
        print(f"ensemble of {', '.join(result.members)}")
    for name, path in result.paths.items():
        print(f"{name + ':':<18} {path}")
    for job in result.failed:
        print(f"failed: {job.id} ({job.status}), log: {job.log}", file=sys.stderr)
    return result.exit_code


def show_sweep(result: SweepResult) -> int:
    """Print what a sweep came to; returns the exit code."""
    from autoseg.report import tables

    make_screen().print(tables.trials_table(result.ranking))
    ended = ", ".join(f"{count} {how}" for how, count in sorted(result.trials.items()))
    print(f"trials:   {ended}; in trainings {result.busy:.0%} of the slots' time, {result.start_up:.0%} in their start")
    print(f"result:   {result.sentence}")
    for name, path in result.paths.items():
        print(f"{name + ':':<9} {path}")
    return result.exit_code


def show_status(state: Mapping[str, Any], json: bool) -> None:
    """Where a run stands."""
    from json import dumps

    from autoseg.records import to_plain
    from autoseg.report import tables

    if json:
        print(dumps(to_plain(state), indent=1, ensure_ascii=False))
        return
    holder = state.get("run")
    print(f"run: {state['work_dir']}" + (f" (process {holder['pid']} on {holder['host']})" if holder else ""))
    if state["stage"]:
        print(f"stage: {state['stage']}")
    if state["time"]:
        spent, limit = (tables.duration(state["time"][key]) for key in ("spent", "limit"))
        print(f"time: {spent} of {limit}")
    print(f"disk: {state['bytes'] / 2**20:.0f} MiB")
    for name, job in state["jobs"].items():
        print(tables.job_line(name, job))
    if state["leaderboard"]:
        make_screen().print(tables.leaderboard_table(state["leaderboard"], state.get("labels")))
    print(f"ensemble: {', '.join(state['members']) or 'none yet'}")
