"""A disk that fills during a run: what was to be written waits, jobs go on when there is room, nothing is torn."""

from __future__ import annotations

import errno
import logging
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from autoseg import workspace
from autoseg.engine.bundle import Bundle
from autoseg.engine.checkpoints import load_checkpoint, save_checkpoint
from autoseg.engine.trainer import Hook, Trainer
from autoseg.errors import InputError
from autoseg.execution import FakeExecutor, FakeRun, Scheduler
from autoseg.records import Event, Job, Slot
from autoseg.workspace import Workspace, append_line

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
MakeBundle = Callable[..., Path]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workspace, "PAUSE_SECONDS", 0.05)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MiB."""
    folder = tmp_path / "kleine Platte"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("no file system may be mounted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path, left: int = 0) -> Path:
    """A file that leaves `left` bytes of the disk."""
    path = folder / "ballast"
    with open(path, "wb", buffering=0) as file:
        while (some := min(65536, workspace.room(folder) - left)) > 0:
            file.write(bytes(some))
    return path


def test_patience_says_why_and_ends_with_the_answer(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    answers = iter([FULL, FULL, None])

    def write() -> int:
        error = next(answers)
        if error:
            raise error
        return 7

    with caplog.at_level(logging.WARNING):
        assert workspace.patiently(write, tmp_path / "a.json") == 7
    (said,) = caplog.messages
    assert "a.json is full: waiting for room" in said


def test_other_errors_are_not_waited_for(tmp_path: Path) -> None:
    def write() -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    with pytest.raises(PermissionError):
        workspace.patiently(write, tmp_path)


def test_a_checkpoint_waits_for_room_and_the_old_one_stays(small_disk: Path) -> None:
    path = small_disk / "checkpoint.pt"
    save_checkpoint(path, {"a": torch.zeros(10)})
    ballast = fill(small_disk, left=200_000)
    seen: list[list[str]] = []

    def free() -> None:
        time.sleep(0.5)
        assert len(load_checkpoint(path)["a"]) == 10
        seen.append(os.listdir(small_disk))
        ballast.unlink()

    thread = threading.Thread(target=free)
    thread.start()
    save_checkpoint(path, {"a": torch.zeros(1_000_000)})
    thread.join()
    assert seen and len(load_checkpoint(path)["a"]) == 1_000_000
    assert os.listdir(small_disk) == ["checkpoint.pt"]


def test_a_disk_that_is_full_at_the_start_is_bad_input(small_disk: Path) -> None:
    fill(small_disk)
    with pytest.raises(InputError, match="work_dir: cannot be written: No space"):
        Workspace(small_disk / "w").create()


def test_a_line_is_appended_whole_or_not_at_all(small_disk: Path) -> None:
    path = small_disk / "metrics.jsonl"
    append_line(path, "one")
    fill(small_disk)
    with pytest.raises(OSError, match="No space"):
        append_line(path, "x" * 100_000)
    assert path.read_text() == "one\n"


class Fills(Hook):
    """Fills the disk at step 2 and frees it a second later."""

    def __init__(self, folder: Path):
        self.folder = folder

    def on_step(self, trainer: Trainer, loss: float) -> None:
        if trainer.progress.step == 2:
            ballast = fill(self.folder)
            threading.Timer(1.0, ballast.unlink).start()


def test_a_training_waits_and_ends_as_if_nothing_had_been(make_bundle: MakeBundle, small_disk: Path) -> None:
    alone, crowded = make_bundle(name="alone_0"), make_bundle(name="crowded_0")
    Trainer(Bundle.load(alone)).run()
    (crowded / "models").rmdir() if (crowded / "models").exists() else None
    (small_disk / "models").mkdir()
    (crowded / "models").symlink_to(small_disk / "models")
    Trainer(Bundle.load(crowded), hooks=(Fills(small_disk),)).run()
    ends = [torch.load(root / "models" / "model_final.pt", weights_only=True) for root in (alone, crowded)]
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])


def test_a_job_that_died_of_it_goes_on_when_there_is_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It costs no try, and no other job starts in the meantime."""
    free = iter([0] * 5)
    monkeypatch.setattr("autoseg.execution.scheduler.room", lambda _: next(free, 2**40))
    runs = iter([FakeRun(3, 1, "OSError: [Errno 28] No space left on device\n"), FakeRun(3), FakeRun(3)])
    events: list[Event] = []
    jobs = [Job(name, ("fake",), str(tmp_path), fingerprint="f") for name in "ab"]
    executor = FakeExecutor(lambda job: next(runs))
    results = Scheduler(executor, [Slot("cpu0", "cpu", 1)], tmp_path / "jobs", events.append).run(jobs)
    assert {name: (r.status, r.tries) for name, r in results.items()} == {"a": ("done", 1), "b": ("done", 1)}
    assert [start.job.id for start in executor.history] == ["a", "a", "b"]
    said = [event.message for event in events if event.kind in ("warning", "stage")]
    assert "a ended for want of disk space" in said[0] and "room on the disk again" in said[1]
