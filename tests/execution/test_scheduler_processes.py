"""The scheduler with real processes: fake GPUs, logs, signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from autoseg.execution import LocalExecutor, Scheduler
from autoseg.records import Event, Job, Resources, Slot

GPU = [Slot(f"gpu{i}", "cuda", 1, str(i)) for i in range(4)]
REPORT = """
import json, os, sys, time
began = time.monotonic()
time.sleep(float(sys.argv[1]))
facts = {"gpus": os.environ["CUDA_VISIBLE_DEVICES"], "began": began, "ended": time.monotonic()}
facts["threads"] = os.environ["OMP_NUM_THREADS"]
json.dump(facts, open("report.json", "w"))
print("report written", flush=True)
"""


def reporting_job(root: Path, name: str, seconds: float, gpus: int = 1) -> Job:
    folder = root / f"Bündel {name}"
    folder.mkdir()
    argv = (sys.executable, "-I", "-S", "-c", REPORT, str(seconds))
    resources = Resources(gpus=gpus)
    return Job(name, argv, str(folder), outputs=("report.json",), cost=seconds, resources=resources, fingerprint="x")


def test_four_gpus_none_shared_and_a_wide_job_gets_two(tmp_path: Path) -> None:
    jobs = [reporting_job(tmp_path, f"one_{i}", 0.2 + 0.05 * (i % 4)) for i in range(9)]
    jobs += [reporting_job(tmp_path, f"two_{i}", 0.3, gpus=2) for i in range(2)]
    events: list[Event] = []
    results = Scheduler(LocalExecutor(), GPU, tmp_path / "jobs", events.append).run(jobs)
    assert {result.status for result in results.values()} == {"done"}
    reports = {job.id: json.loads((Path(job.cwd) / "report.json").read_text()) for job in jobs}
    assert {gpu for r in reports.values() for gpu in r["gpus"].split(",")} == {"0", "1", "2", "3"}
    for job in jobs:
        mine = reports[job.id]["gpus"].split(",")
        assert len(set(mine)) == len(mine) == job.resources.gpus
        assert reports[job.id]["threads"] == str(len(mine))
        assert (tmp_path / "jobs" / job.id / "output.log").read_text() == "report written\n"
    for job, other in ((a, b) for a in jobs for b in jobs if a.id < b.id):
        a, b = reports[job.id], reports[other.id]
        if a["began"] < b["ended"] and b["began"] < a["ended"]:
            assert not set(a["gpus"].split(",")) & set(b["gpus"].split(",")), f"{job.id} and {other.id} share"
    starts = {e.facts["id"]: e.facts["gpus"] for e in events if e.kind == "job_started"}
    assert {name: ",".join(gpus) for name, gpus in starts.items()} == {n: r["gpus"] for n, r in reports.items()}
    busiest = max(sum(1 for r in reports.values() if r["began"] <= s["began"] < r["ended"]) for s in reports.values())
    assert busiest >= 3, "the jobs ran one after another"


def test_the_true_error_of_a_script_is_told(tmp_path: Path) -> None:
    script = tmp_path / "träin it.py"
    script.write_text("def fit():\n    raise KeyError('label 7')\nprint('loading')\nfit()\n", encoding="utf-8")
    job = Job("train_0", (sys.executable, str(script)), str(tmp_path))
    shot = Job("shot", ("/bin/sh", "-c", "kill -9 $$"), str(tmp_path))
    results = Scheduler(LocalExecutor(), GPU[:2], tmp_path / "jobs", lambda event: None).run([job, shot])
    lines = (results["train_0"].error or "").splitlines()
    assert lines[0] == "KeyError: 'label 7'" and "loading" in lines and len(lines) <= 21
    assert (results["shot"].error or "").startswith("killed by SIGKILL")


RUN = """
import sys
from pathlib import Path
from autoseg.execution import LocalExecutor, Scheduler
from autoseg.records import Job, Slot
root = Path(sys.argv[1])
script = "echo $$ > pid$0; exec sleep 60"
jobs = [Job(f"j{i}", ("/bin/sh", "-c", script, str(i)), str(root), cost=3 - i) for i in range(3)]
slots = [Slot("cpu0", "cpu", 1), Slot("cpu1", "cpu", 1)]
try:
    Scheduler(LocalExecutor(), slots, root / "jobs", lambda event: None).run(jobs)
except KeyboardInterrupt:
    raise SystemExit(130)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_cancels_the_jobs_and_is_told(tmp_path: Path, number: signal.Signals) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    run = subprocess.Popen([sys.executable, "-c", RUN, str(tmp_path)], env=environment)
    pids = [tmp_path / "pid0", tmp_path / "pid1"]
    try:
        end = time.monotonic() + 10
        while not all(p.exists() and p.read_text().endswith("\n") for p in pids):
            assert time.monotonic() < end
            time.sleep(0.02)
        run.send_signal(number)
        assert run.wait(10) == 130
    finally:
        run.kill()
        run.wait()
    for path in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(int(path.read_text()), 0)
    results = [json.loads((tmp_path / "jobs" / f"j{i}" / "result.json").read_text()) for i in range(2)]
    assert [result["status"] for result in results] == ["cancelled", "cancelled"]
    assert not (tmp_path / "jobs" / "j2" / "result.json").exists()


def test_handlers_are_as_before(tmp_path: Path) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    Scheduler(LocalExecutor(), GPU[:1], tmp_path, lambda e: None).run([Job("a", ("/bin/sh", "-c", ":"), str(tmp_path))])
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_the_end_of_a_job_is_noticed_at_once(tmp_path: Path) -> None:
    jobs = [Job(f"j{i}", ("/bin/sh", "-c", ":"), str(tmp_path)) for i in range(10)]
    began = time.monotonic()
    Scheduler(LocalExecutor(), GPU[:1], tmp_path / "jobs", lambda e: None, poll_seconds=5.0).run(jobs)
    assert time.monotonic() - began < 5.0  # ten jobs one after another, fifty seconds if each end waited for a look
