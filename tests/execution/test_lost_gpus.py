"""A GPU that fails a job is taken out of use, and the job goes on another."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from autoseg.devices import detect_devices, forget_devices, plan_slots
from autoseg.execution import FakeExecutor, FakeRun, LocalExecutor, Scheduler
from autoseg.execution.gpus import GONE, SICK
from autoseg.records import Event, Job, JobResult, Resources, Slot

GPU = [Slot(f"gpu{i}", "cuda", 4, str(i), name="NVIDIA H200") for i in range(3)]
LOST = "nvidia-smi says: GPU is lost"
AMBIGUOUS = "RuntimeError: CUDA error: unspecified launch failure\n"


class Machine:
    """GPUs of which some have gone, and jobs that fail on those, or as `log` says on all of `sick`."""

    def __init__(self, root: Path, gone: Sequence[str] = (), sick: Mapping[str, str] | None = None):
        self.root, self.gone, self.sick = root, set(gone), dict(sick or {})
        self.events: list[Event] = []
        self.heard: list[str] = []
        self.tries: dict[str, list[str]] = {}

    def lost_gpus(self, slots: Sequence[Slot]) -> dict[str, str]:
        return {slot.gpu: LOST for slot in slots if slot.gpu in self.gone}

    def jobs(self, count: int, gpus: int = 1) -> list[Job]:
        resources = Resources(gpus=gpus)
        return [Job(f"j{i}", ("fake",), str(self.root), resources=resources, cost=10 - i) for i in range(count)]

    def run(self, jobs: list[Job], slots: Sequence[Slot] = GPU, max_tries: int = 1) -> dict[str, JobResult]:
        executor = FakeExecutor()

        class Watched(FakeExecutor):
            """Behaves by the GPU it was given."""

            def start(inner, job: Job, environment: Mapping[str, str], log: Path):  # type: ignore[no-untyped-def]  # noqa: N805
                mine = environment["CUDA_VISIBLE_DEVICES"].split(",")
                self.tries.setdefault(job.id, []).append(",".join(mine))
                failing = [gpu for gpu in mine if gpu in self.gone | set(self.sick)]
                said = self.sick.get(failing[0], AMBIGUOUS) if failing else ""
                inner.behaviour = lambda job: FakeRun(1.0, 1 if failing else 0, said)
                return super().start(job, environment, log)

        executor = Watched()
        scheduler = Scheduler(
            executor,
            slots,
            self.root / "jobs",
            self.events.append,
            max_tries=max_tries,
            lost_gpus=self.lost_gpus,
            at_loss=self.heard.append,
        )
        return scheduler.run(jobs)

    def told(self, kind: str) -> list[str]:
        return [event.message for event in self.events if event.kind == kind]


MakeMachine = Callable[..., Machine]


@pytest.fixture
def machine(tmp_path: Path) -> MakeMachine:
    return lambda **values: Machine(tmp_path, **values)


def test_the_job_of_a_lost_gpu_goes_to_another(machine: MakeMachine) -> None:
    found = machine(gone=["1"])
    results = found.run(found.jobs(5))
    assert {name: (result.status, result.tries) for name, result in results.items()} == {
        f"j{i}": ("done", 1) for i in range(5)
    }
    assert found.tries["j1"][0] == "1" and found.tries["j1"][1] in ("0", "2") and len(found.tries["j1"]) == 2
    assert sum("1" in gpus for gpus in found.tries.values()) == 1, "no other job was given it"
    assert found.told("warning") == [f"GPU 1 (NVIDIA H200) is out of use: {LOST}"]
    assert found.heard == ["1"] and found.told("job_failed") == []


@pytest.mark.parametrize("words", GONE)
def test_what_the_log_says_of_a_device_that_has_gone(machine: MakeMachine, words: str) -> None:
    found = machine(sick={"0": f"RuntimeError: CUDA error: {words}\nmore\n"})
    assert found.run(found.jobs(2), GPU[:2])["j0"].status == "done"
    assert found.tries["j0"] == ["0", "1"]
    assert found.told("warning") == [f"GPU 0 (NVIDIA H200) is out of use: RuntimeError: CUDA error: {words}"]


@pytest.mark.parametrize("words", SICK)
def test_a_gpu_that_says_it_is_sick_is_tried_once_more(machine: MakeMachine, words: str) -> None:
    found = machine(sick={"0": f"RuntimeError: CUDA error: {words}\n"})
    results = found.run(found.jobs(1), GPU[:2])
    assert (results["j0"].status, results["j0"].tries) == ("done", 1)
    assert found.tries["j0"] == ["0", "0", "1"]
    assert [words in message for message in found.told("warning")] == [True, True]
    assert "is tried once more" in found.told("warning")[0] and "is out of use" in found.told("warning")[1]


def test_an_ambiguous_error_on_a_gpu_that_is_there_is_the_jobs_own(machine: MakeMachine) -> None:
    found = machine(sick={"0": AMBIGUOUS})
    results = found.run(found.jobs(2), GPU[:1], max_tries=3)
    assert (results["j0"].status, results["j0"].tries) == ("failed", 3)
    assert found.told("warning") == [] and found.heard == []


def test_without_a_gpu_the_rest_fails_with_the_reason(machine: MakeMachine) -> None:
    found = machine(gone=["0", "1", "2"])
    results = found.run(found.jobs(5), max_tries=3)
    assert {result.status for result in results.values()} == {"failed"}
    assert {result.error for result in results.values()} == {f"no GPU is left: {LOST}"}
    assert [event.facts["again"] for event in found.events if event.kind == "job_failed"] == [False] * 5
    assert sorted(found.heard) == ["0", "1", "2"] and len(found.told("warning")) == 3


def test_a_wide_job_goes_on_over_the_gpus_that_are_left(machine: MakeMachine) -> None:
    found = machine(gone=["2"])
    results = found.run([*found.jobs(1, gpus=3), *[job for job in found.jobs(3) if job.id != "j0"]])
    assert all((result.status, result.tries) == ("done", 1) for result in results.values())
    assert found.tries["j0"] == ["0,1,2", "0,1"]


def test_it_does_not_wait_for_another_wide_one_to_end(machine: MakeMachine) -> None:
    """Of four GPUs two jobs have two each; where one is lost, one is left to each of its job's, and is enough."""
    found = machine(gone=["0"])
    four = [Slot(f"gpu{i}", "cuda", 2, str(i), name="NVIDIA H200") for i in range(4)]
    results = found.run(found.jobs(2, gpus=2), four)
    assert all((result.status, result.tries) == ("done", 1) for result in results.values())
    assert found.tries == {"j0": ["0,1", "1"], "j1": ["2,3"]}


def test_all_slots_of_a_shared_gpu_go_with_it(machine: MakeMachine) -> None:
    found = machine(gone=["0"])
    shared = [Slot(f"gpu{g}.{part}", "cuda", 2, g, name="NVIDIA H200") for part in (0, 1) for g in ("0", "1")]
    results = found.run(found.jobs(4), shared)
    assert all((result.status, result.tries) == ("done", 1) for result in results.values())
    assert len(found.told("warning")) == 1 and found.heard == ["0"]


def test_a_job_that_uses_no_gpu_has_none_to_blame(machine: MakeMachine) -> None:
    found = machine(gone=["0"], sick={"": "no CUDA-capable device is detected\n"})
    results = found.run(found.jobs(1, gpus=0), GPU[:1])
    assert results["j0"].status == "failed" and found.heard == []


ROW = "NVIDIA H200, 143771, Default"
PROGRAM = """\
import os, sys
if os.environ["CUDA_VISIBLE_DEVICES"] == "1":
    open("lost", "w").close()
    sys.exit("RuntimeError: CUDA error: unspecified launch failure")
open("out", "w").close()
"""


@pytest.fixture
def two_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder where an nvidia-smi lists two GPUs, and the second one no more once there is a file `lost`."""
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    lines = [
        "#!/bin/sh",
        f'[ "$2" != GPU-b ] && echo "0, GPU-a, {ROW}"',
        '[ "$2" = GPU-a ] && exit 0',
        f'[ -e "{tmp_path}/lost" ] && echo "No devices were found" && exit 6',
        f'echo "1, GPU-b, {ROW}"',
    ]
    program.write_text("\n".join(lines) + "\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    forget_devices()
    yield tmp_path
    forget_devices()


def test_processes_and_a_real_question(two_gpus: Path) -> None:
    events: list[Event] = []
    slots = plan_slots(detect_devices(), 2)
    assert [slot.gpu for slot in slots] == ["0", "1"]
    argv, resources = (sys.executable, "-c", PROGRAM), Resources(gpus=1)
    jobs = [Job(name, argv, str(two_gpus), outputs=("out",), resources=resources) for name in ("a", "b")]
    results = Scheduler(LocalExecutor(), slots, two_gpus / "jobs", events.append).run(jobs)
    assert {(result.status, result.tries) for result in results.values()} == {("done", 1)}
    told = [event.message for event in events if event.kind == "warning"]
    assert told == ["GPU 1 (NVIDIA H200) is out of use: nvidia-smi says: No devices were found"]
