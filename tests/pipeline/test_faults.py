"""Killed at any moment, a run goes on and ends as one that was left alone: the same weights, the same leaderboard."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from autoseg.config import RunConfig, load_config
from autoseg.demo import make_demo_data
from autoseg.pipeline import RunResult, run
from autoseg.records import Event
from autoseg.workspace import read_json, write_yaml

TINY = {"init_filters": 8, "blocks_down": [1, 1], "dsdepth": 1, "roi_size": [16, 16, 16], "num_iterations": 40}
GIVEN = {"modality": "MRI", "num_fold": 2, "algos": ["segresnet"], "settings": TINY}


def configure(work_dir: Path, datalist: Path) -> RunConfig:
    return load_config(None, work_dir=str(work_dir), datalist=str(datalist), **GIVEN)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(datalist, work_dir) of a run that was left alone."""
    folder = tmp_path_factory.mktemp("Lauf é 2")
    datalist = make_demo_data(folder / "data", training=6, testing=1, shape=(24, 24, 20))
    assert run(configure(folder / "w", datalist)).exit_code == 0
    return datalist, folder / "w"


def training_processes(work_dir: Path) -> list[psutil.Process]:
    """The jobs of a run, found by what they were started with."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if any(word.startswith(str(work_dir)) and word.endswith("train.py") for word in words):
            found.append(process)
    return found


def steps_done(work_dir: Path) -> int:
    """Lines of metrics.jsonl in all bundles."""
    return sum(len(path.read_bytes().splitlines()) for path in work_dir.glob("*/metrics.jsonl"))


def cut_short(work_dir: Path) -> list[Path]:
    """Bundles with something to go on from that are not through."""
    bundles = (path.parents[1] for path in work_dir.glob("*/models/checkpoint.pt"))
    return [bundle for bundle in bundles if not (bundle / "scores.json").is_file()]


def until(happened: Callable[[], Any], seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.02)


def assert_same_result(work_dir: Path, reference: Path) -> None:
    for name in ("segresnet_0", "segresnet_1"):
        for file in ("model.pt", "model_final.pt"):
            one, other = (torch.load(w / name / "models" / file, weights_only=True) for w in (work_dir, reference))
            assert all(torch.equal(one[key], other[key]) for key in other), f"{name}/{file}"
    boards = [read_json(w / "leaderboard.json")["entries"] for w in (work_dir, reference)]
    known = [{k: v for k, v in entry.items() if k != "seconds"} for board in boards for entry in board]
    assert known[: len(boards[0])] == known[len(boards[0]) :]


def test_a_job_that_is_killed_goes_on_from_its_checkpoint(undisturbed: tuple[Path, Path], odd_path: Path) -> None:
    datalist, reference = undisturbed
    work_dir = odd_path / "w"
    reached: list[int] = []

    def kill() -> None:
        until(lambda: steps_done(work_dir) >= 3 and training_processes(work_dir))
        victim = training_processes(work_dir)[0]
        victim.kill()
        reached.append(victim.pid)

    thread = threading.Thread(target=kill)
    thread.start()
    events: list[Event] = []
    result: RunResult = run(configure(work_dir, datalist), events.append)
    thread.join()
    assert reached and result.exit_code == 0
    (failed,) = [event for event in events if event.kind == "job_failed"]
    assert failed.facts["again"] and "is tried again" in failed.message
    assert_same_result(work_dir, reference)


def start(work_dir: Path, datalist: Path) -> subprocess.Popen[bytes]:
    """The same run by the command, in a session of its own."""
    source = work_dir.parent / "input.yaml"
    write_yaml(source, {**GIVEN, "datalist": str(datalist)}, versioned=False)
    command = [sys.executable, "-m", "autoseg", "run", "--input", str(source), "--work_dir", str(work_dir)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)


def test_a_run_whose_orchestrator_is_killed_goes_on(undisturbed: tuple[Path, Path], odd_path: Path) -> None:
    datalist, reference = undisturbed
    work_dir = odd_path / "w"
    for _ in range(5):  # on a machine with other work to do, both trainings may be over before the kill comes
        process = start(work_dir, datalist)
        until(lambda: cut_short(work_dir) or process.poll() is not None)  # noqa: B023 - called at once
        process.kill()
        process.wait()
        until(lambda: not training_processes(work_dir), 20)
        if cut_short(work_dir):
            break
        shutil.rmtree(work_dir)
    events: list[Event] = []
    result = run(configure(work_dir, datalist), events.append)
    assert result.exit_code == 0
    assert any("goes on: interrupted at step" in event.message for event in events), "it says what is not redone"
    assert_same_result(work_dir, reference)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_twenty_kills_at_random_moments(undisturbed: tuple[Path, Path], odd_path: Path) -> None:
    """kill -9, SIGTERM and SIGINT of the orchestrator, of a job, of all of them; the same command each time."""
    datalist, reference = undisturbed
    random_ = random.Random(4)
    kills = finished = 0
    while kills < 20:
        work_dir = odd_path / f"w{finished}"
        process = start(work_dir, datalist)
        wait = random_.uniform(2.0, 25.0)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(wait)
        if process.poll() is None:
            jobs = training_processes(work_dir)
            choice = random_.choice(["run", "job", "both", "term", "int"])
            if choice in ("job", "both"):
                for job in jobs:
                    with contextlib.suppress(psutil.Error):
                        job.kill()
            if choice == "job" and jobs:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(5)
            number = {"term": signal.SIGTERM, "int": signal.SIGINT}.get(choice, signal.SIGKILL)
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, number)
            process.wait()
            until(lambda: not training_processes(work_dir), 20)  # noqa: B023 - called at once
            kills += 1
            continue
        assert process.returncode == 0
        assert_same_result(work_dir, reference)
        shutil.rmtree(work_dir)
        finished += 1
    assert run(configure(odd_path / f"w{finished}", datalist)).exit_code == 0
    assert_same_result(odd_path / f"w{finished}", reference)
