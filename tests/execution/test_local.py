"""What real processes ask for beyond the contract: groups, stubborn children, a killed orchestrator."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from autoseg.execution import LocalExecutor
from autoseg.records import Job

ENVIRONMENT = {"PATH": "/usr/bin:/bin"}


@pytest.fixture
def executor() -> Iterator[LocalExecutor]:
    made = LocalExecutor(grace_seconds=0.3)
    yield made
    made.close()


def shell(script: str, cwd: Path) -> Job:
    return Job("job", ("/bin/sh", "-c", script), str(cwd))


def wait_for(path: Path, limit: float = 10.0) -> str:
    end = time.monotonic() + limit
    while not (path.exists() and path.read_text().endswith("\n")):
        assert time.monotonic() < end, f"{path} did not appear"
        time.sleep(0.02)
    return path.read_text()


def gone(pid: int, limit: float = 5.0) -> bool:
    """Whether the process ends within the limit; a zombie, which its new parent has not looked at, has ended."""
    end = time.monotonic() + limit
    while time.monotonic() < end:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        time.sleep(0.02)
    return False


def finish(executor: LocalExecutor, handle: object, limit: float = 10.0) -> int:
    end = time.monotonic() + limit
    while (code := executor.poll(handle)) is None:  # type: ignore[arg-type]
        assert time.monotonic() < end
        executor.wait(0.1)
    return code


needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")


def test_environment_is_exactly_what_was_given(executor: LocalExecutor, tmp_path: Path) -> None:
    log = tmp_path / "log"
    job = Job("job", ("/usr/bin/env",), str(tmp_path))
    assert finish(executor, executor.start(job, {"ONLY": "this, and $HOME `id`"}, log)) == 0
    assert log.read_text() == "ONLY=this, and $HOME `id`\n"


@needs_proc
def test_cancel_kills_one_that_ignores_sigterm_and_its_children(executor: LocalExecutor, tmp_path: Path) -> None:
    job = shell("trap '' TERM; sleep 60 & echo $! > child; while :; do sleep 0.1; done", tmp_path)
    handle = executor.start(job, ENVIRONMENT, tmp_path / "log")
    child = int(wait_for(tmp_path / "child"))
    executor.cancel(handle)
    assert finish(executor, handle) == -signal.SIGKILL
    assert gone(child)


@needs_proc
def test_children_left_behind_are_killed_with_their_leader(executor: LocalExecutor, tmp_path: Path) -> None:
    handle = executor.start(shell("sleep 60 & echo $! > child; exit 3", tmp_path), ENVIRONMENT, tmp_path / "log")
    assert finish(executor, handle) == 3
    assert gone(int(wait_for(tmp_path / "child")))


def test_a_terminals_interrupt_does_not_reach_the_job(executor: LocalExecutor, tmp_path: Path) -> None:
    handle = executor.start(shell("sleep 0.2", tmp_path), ENVIRONMENT, tmp_path / "log")
    assert os.getsid(handle.process.pid) != os.getsid(0)
    assert os.getpgid(handle.process.pid) == handle.process.pid
    assert finish(executor, handle) == 0


ORCHESTRATOR = """
import os, sys, time
from pathlib import Path
from autoseg.execution import LocalExecutor
from autoseg.records import Job
job = Job("job", ("/bin/sh", "-c", "sleep 60 & echo $! > child; echo $$ > leader; wait"), sys.argv[1])
LocalExecutor().start(job, dict(os.environ), Path(sys.argv[1]) / "log")
Path(sys.argv[1], "started").write_text("1\\n")
time.sleep(60)
"""


@needs_proc
def test_no_job_outlives_an_orchestrator_that_was_killed(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    orchestrator = subprocess.Popen([sys.executable, "-c", ORCHESTRATOR, str(tmp_path)], env=environment)
    try:
        pids = [int(wait_for(tmp_path / name)) for name in ("child", "leader", "started")][:2]
    finally:
        orchestrator.kill()
        orchestrator.wait()
    assert all(gone(pid) for pid in pids)
