"""A run seen from outside: status, logs, cancel; on folders made by hand and on a process that holds the lock."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from autoseg.errors import InputError
from autoseg.pipeline import cancel, job_log, status
from autoseg.report.tables import job_line
from autoseg.workspace import Workspace, write_json

HOLD = """
import sys, time
from autoseg.workspace import Workspace
with Workspace(sys.argv[1]).lock({"datalist": "d.json"}):
    print("held", flush=True)
    time.sleep(100)
"""


@pytest.fixture
def work_dir(odd_path: Path) -> Path:
    """A job that runs, with its progress, one that failed at its second try, and one that has not begun."""
    root = odd_path / "w"
    folder = root / "jobs" / "segresnet_0"
    (root / "segresnet_0").mkdir(parents=True)
    write_json(
        folder / "job.json", {"id": "segresnet_0", "cwd": str(root / "segresnet_0"), "progress": "metrics.jsonl"}
    )
    write_json(folder / "result.json", {"id": "segresnet_0", "status": "running", "tries": 1, "error": None})
    (folder / "output.log").write_text("one\ntwo\nthree\n")
    line = {"step": 30, "num_iterations": 40, "seconds": 30.0, "loss": 0.5, "mean_dice": 0.75}
    (root / "segresnet_0" / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    events = [{"kind": "stage", "message": "training"}]
    events += [{"kind": "job_started", "facts": {"id": "segresnet_0", "device": f"gpu{n}"}} for n in (0, 1)]
    (root / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events) + '{"kind": "sta')
    write_json(root / "clock.json", {"limit": 900.0, "spent": 73.8})
    failed = {"id": "dints_0", "status": "failed", "tries": 2, "error": "killed by signal 9\nmore"}
    write_json(root / "jobs" / "dints_0" / "result.json", failed)
    (root / "jobs" / "dints_1").mkdir()
    return root


@pytest.fixture
def holder(work_dir: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(work_dir)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_status_while_a_run_is_at_work(work_dir: Path, holder: subprocess.Popen[str]) -> None:
    found = status(work_dir)
    assert found["run"]["pid"] == holder.pid and found["run"]["datalist"] == "d.json"
    assert found["bytes"] > 100
    assert found["stage"] == "training" and found["time"] == {"limit": 900.0, "spent": 73.8}
    lines = [job_line(name, job) for name, job in found["jobs"].items()]
    assert lines == [
        "job dints_0: failed (try 2, killed by signal 9)",
        "job dints_1: not finished",
        "job segresnet_0: running (gpu1, step 30/40, best Dice 0.7500, 0:10 left)",
    ]


def test_what_ran_when_the_run_died_was_interrupted(work_dir: Path) -> None:
    found = status(work_dir)
    assert found["run"] is None and found["jobs"]["segresnet_0"]["status"] == "interrupted"


def test_logs(work_dir: Path) -> None:
    assert job_log(work_dir, "segresnet_0", 2) == ["two", "three"]
    assert job_log(work_dir, "dints_1", 2) == []
    with pytest.raises(InputError, match="did you mean 'segresnet_0'"):
        job_log(work_dir, "segresnet0", 2)
    with pytest.raises(InputError, match="not there"):
        job_log(work_dir / "nowhere", "segresnet_0", 2)


def test_cancel_ends_the_process_and_waits_for_it(work_dir: Path, holder: subprocess.Popen[str]) -> None:
    assert cancel(work_dir) == holder.pid
    assert holder.wait(10) < 0
    with pytest.raises(InputError, match="no run is at work"):
        cancel(work_dir)


def test_a_run_on_another_host_is_named_and_left_alone(work_dir: Path, holder: subprocess.Popen[str]) -> None:
    lock = Workspace(work_dir).lock_file
    lock.write_text(json.dumps({"pid": os.getpid(), "host": "elsewhere"}))
    with pytest.raises(InputError, match=f"process {os.getpid()} on elsewhere"):
        cancel(work_dir)
    assert holder.poll() is None
