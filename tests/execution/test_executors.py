"""The contract of an executor: every one of them passes these tests."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from autoseg.execution import Executor, FakeExecutor, FakeRun, LocalExecutor
from autoseg.records import Job


class LocalWorld:
    """Jobs of real processes."""

    def __init__(self, cwd: Path):
        self.cwd = cwd
        self.executor: Executor[Any] = LocalExecutor(grace_seconds=0.3)

    def job(self, seconds: float = 0.0, exit_code: int = 0, log: str = "", output: str | None = None) -> Job:
        lines = [f"printf '%s' '{log}'", f"sleep {seconds}"]
        lines += [f": > '{output}'"] if output else []
        script = "; ".join([*lines, f"exit {exit_code}"])
        return Job("job", ("/bin/sh", "-c", script), str(self.cwd), outputs=(output,) if output else ())


class FakeWorld:
    """The same jobs on a virtual clock."""

    def __init__(self, cwd: Path):
        self.cwd = cwd
        self.runs: dict[str, FakeRun] = {}
        self.executor: Executor[Any] = FakeExecutor(lambda job: self.runs[job.id])

    def job(self, seconds: float = 0.0, exit_code: int = 0, log: str = "", output: str | None = None) -> Job:
        name = f"job{len(self.runs)}"
        self.runs[name] = FakeRun(seconds, exit_code, log)
        return Job(name, ("fake",), str(self.cwd), outputs=(output,) if output else ())


@pytest.fixture(params=[LocalWorld, FakeWorld])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    cwd = tmp_path / "Läufe mit Leerzeichen"
    cwd.mkdir()
    made = request.param(cwd)
    yield made
    made.executor.close()


PATH = {"PATH": "/usr/bin:/bin"}


def finish(executor: Executor[Any], handle: Any, limit: float = 10.0) -> int:
    end = executor.now() + limit
    while executor.poll(handle) is None:
        assert executor.now() < end, "the job did not end"
        executor.wait(0.2)
    code = executor.poll(handle)
    assert code is not None
    return code


@pytest.mark.parametrize("code", [0, 1, 77])
def test_exit_code_is_told_and_stays(world: Any, code: int) -> None:
    handle = world.executor.start(world.job(exit_code=code), PATH, world.cwd / "log")
    assert finish(world.executor, handle) == code
    assert world.executor.poll(handle) == code


def test_a_running_job_has_no_exit_code_and_its_end_wakes_the_waiting(world: Any) -> None:
    handle = world.executor.start(world.job(seconds=0.4), PATH, world.cwd / "log")
    began = world.executor.now()
    assert world.executor.poll(handle) is None
    while world.executor.poll(handle) is None:
        world.executor.wait(30.0)
    assert 0.3 <= world.executor.now() - began < 5.0


def test_waiting_takes_the_time_it_was_given_where_nothing_ends(world: Any) -> None:
    began = world.executor.now()
    world.executor.wait(0.1)
    assert world.executor.now() - began >= 0.09


def test_output_goes_to_the_log_after_what_is_there(world: Any) -> None:
    log = world.cwd / "new folder" / "output.log"
    for word in ("first ", "zweite Zeile ä"):
        finish(world.executor, world.executor.start(world.job(log=word), PATH, log))
    assert log.read_text(encoding="utf-8") == "first zweite Zeile ä"


def test_outputs_are_there_once_it_has_ended(world: Any) -> None:
    finish(world.executor, world.executor.start(world.job(output="model.pt"), PATH, world.cwd / "log"))
    assert (world.cwd / "model.pt").exists()


def test_jobs_side_by_side(world: Any) -> None:
    began = world.executor.now()
    handles = [world.executor.start(world.job(seconds=0.5), PATH, world.cwd / f"log{i}") for i in range(4)]
    assert [finish(world.executor, handle) for handle in handles] == [0, 0, 0, 0]
    assert world.executor.now() - began < 1.5


def test_cancel_ends_one_job_and_no_other(world: Any) -> None:
    long = world.executor.start(world.job(seconds=60), PATH, world.cwd / "a")
    other = world.executor.start(world.job(seconds=0.5), PATH, world.cwd / "b")
    world.executor.cancel(long)
    world.executor.cancel(long)
    assert finish(world.executor, long) in (-signal.SIGTERM, -signal.SIGKILL)
    assert finish(world.executor, other) == 0
    world.executor.cancel(other)
    assert world.executor.poll(other) == 0


def test_close_ends_what_runs_and_leaves_the_executor_usable(world: Any) -> None:
    handle = world.executor.start(world.job(seconds=60), PATH, world.cwd / "a")
    world.executor.close()
    assert finish(world.executor, handle) < 0
    assert finish(world.executor, world.executor.start(world.job(), PATH, world.cwd / "b")) == 0


@pytest.mark.parametrize("broken", ["argv", "cwd"])
def test_what_cannot_be_started_is_an_oserror(world: Any, broken: str) -> None:
    good = world.job()
    job = Job("x", good.argv, str(world.cwd / "nowhere")) if broken == "cwd" else Job("x", (), good.cwd)
    with pytest.raises((OSError, ValueError, IndexError)):
        world.executor.start(job, PATH, world.cwd / "log")
