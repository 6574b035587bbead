"""A run seen from outside, while it runs or after: where it stands, what a job printed, and how to end it."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import socket
import time
from collections import deque
from pathlib import Path
from typing import Any

import psutil

from autoseg.errors import Fault, InputError, nearest
from autoseg.execution.progress import MetricsReader
from autoseg.execution.results import read_result
from autoseg.pipeline.clock import noted
from autoseg.pipeline.prepare import refuse_missing
from autoseg.records import LeaderboardEntry, to_plain
from autoseg.workspace import Workspace, read_keys, read_lines, restored
from autoseg.workspace.lock import lock_holder

CANCEL_SECONDS = 90.0  # a run waits up to 60 s for its jobs


def status(work_dir: str | Path) -> dict[str, Any]:
    """Where a run stands, from its files.

    `run`: the process at work in it, with host and start, or None. `stage`: what it said it was at last. `time`: limit
    and seconds spent of a call that has a time limit, or None. `jobs`: of each its state, device, tries, last error
    and, while it runs, step, steps, epoch, loss, mean_dice, best_dice, seconds_left. `bytes`: of disk used.
    """
    workspace = Workspace(work_dir)
    refuse_missing(workspace.root, "run")
    holder = lock_holder(workspace)
    board = read_leaderboard(workspace) if workspace.leaderboard_json.exists() else ()
    members = read_keys(workspace.ensemble_json, "members")[0] if workspace.ensemble_json.exists() else []
    (labels,) = read_keys(workspace.datalist_json, "labels") if workspace.datalist_json.exists() else [{}]
    labels = labels if isinstance(labels, dict) else {}
    regions = [name for name, values in labels.items() if isinstance(values, list)]
    stage, devices = _story(workspace.events_jsonl)
    limit, spent = noted(workspace.clock_json)
    jobs = {folder.name: _job(folder, holder is not None) for folder in sorted(workspace.jobs.glob("*"))}
    return {
        "work_dir": str(workspace.root),
        "run": holder,
        "stage": stage,
        "time": None if math.isnan(limit) else {"limit": limit, "spent": spent},
        "jobs": {name: {"device": devices.get(name), **job} for name, job in jobs.items()},
        "leaderboard": to_plain(board),
        "members": members,
        "labels": dict(enumerate(regions, 1)) or labels,
        "bytes": _bytes(workspace.root),
    }


def read_leaderboard(workspace: Workspace) -> tuple[LeaderboardEntry, ...]:
    """What leaderboard.json holds; an `InputError` where that is no leaderboard of bundles of this run."""
    path = workspace.leaderboard_json
    (plain,) = read_keys(path, "entries")
    if not isinstance(plain, list):
        raise InputError([Fault(str(path), "entries", "is not a list")])
    entries = tuple(restored(LeaderboardEntry, entry, path) for entry in plain)
    for entry in entries:
        workspace.named_bundle(entry.name)
    return entries


def _story(events: Path) -> tuple[str | None, dict[str, str]]:
    """(the last stage, by job the device it started on last) as events.jsonl tells; torn lines tell nothing."""
    stage, devices = None, {}
    for event in read_lines(events):
        with contextlib.suppress(KeyError, TypeError):
            if event["kind"] == "stage":
                stage = str(event["message"])
            elif event["kind"] == "job_started":
                devices[str(event["facts"]["id"])] = str(event["facts"]["device"])
    return stage, devices


def _bytes(folder: Path) -> int:
    """Of the files in a folder; what vanishes while this looks, as temporary files do, counts nothing."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            total += path.lstat().st_size
    return total


def _job(folder: Path, run_alive: bool) -> dict[str, Any]:
    """A job's record; one that is said to run although no run is at work was cut off."""
    result = read_result(folder)
    if result is None:
        return {"status": "not finished"}
    found: dict[str, Any] = to_plain(result)
    if result.status != "running":
        return found
    if not run_alive:
        return {**found, "status": "interrupted"}
    cwd, progress = read_keys(folder / "job.json", "cwd", "progress")
    reader = MetricsReader(Path(str(cwd)) / str(progress) if progress else None, from_start=True)
    reader.catch_up(0.0)
    return {**found, **reader.facts(0.0)}


def job_log(work_dir: str | Path, job: str, lines: int) -> list[str]:
    """The last lines of what a job has printed; InputError, with the jobs there are, where it is none of them."""
    workspace = Workspace(work_dir)
    refuse_missing(workspace.root, "run")
    known = sorted(folder.name for folder in workspace.jobs.glob("*"))
    if job not in known:
        listed = f"; there are {', '.join(known)}" if known else "; nothing was started yet"
        raise InputError([Fault(str(workspace.root), job, f"no such job{nearest(job, known) or listed}")])
    log = workspace.job(job) / "output.log"
    if not log.exists():
        return []
    with open(log, encoding="utf-8", errors="replace") as file:
        return [line.rstrip("\n") for line in deque(file, maxlen=lines)]


def cancel(work_dir: str | Path) -> int:
    """End the run at work in the work_dir as Ctrl-C does, wait until it has, and return the number of its process.

    InputError where none is, or on another host; TimeoutError where it has not ended after `CANCEL_SECONDS`.
    """
    workspace = Workspace(work_dir)
    refuse_missing(workspace.root, "run")
    holder = lock_holder(workspace)
    if holder is None:
        raise InputError([Fault(str(workspace.root), "work_dir", "no run is at work here")])
    pid, host = holder.get("pid"), holder.get("host")
    if host != socket.gethostname() or not isinstance(pid, int):
        raise InputError([Fault(str(workspace.root), "work_dir", f"in use by process {pid} on {host}: end it there")])
    if not _holds(pid, workspace.lock_file):  # whatever the file says, no other process is ended
        raise InputError([Fault(str(workspace.lock_file), "pid", f"process {pid} does not hold it: nothing was ended")])
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + CANCEL_SECONDS
    while lock_holder(workspace) is not None:
        if time.monotonic() > deadline:
            raise TimeoutError(f"process {pid} has not ended after {CANCEL_SECONDS:.0f} s")
        time.sleep(0.1)
    return pid


def _holds(pid: int, path: Path) -> bool:
    """Whether the process has the file open."""
    try:
        return os.path.realpath(path) in (file.path for file in psutil.Process(pid).open_files())
    except (psutil.Error, ValueError):
        return False
