"""Trainings share a GPU where it was measured that they may; a lost GPU is lost to the whole call."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from autoseg.config import RunConfig, load_config
from autoseg.demo import make_demo_data
from autoseg.devices import Devices, Gpu
from autoseg.errors import NoResultError
from autoseg.pipeline import generate, measuring, searching, training
from autoseg.pipeline.clock import Clock, Deadlines
from autoseg.pipeline.prepare import stored_datalist
from autoseg.pipeline.session import Session, silent
from autoseg.records import Datalist, Job, JobResult, Slot, Speed
from autoseg.workspace import Workspace, write_json

GIB = 2**30
DATA = Datalist("d.json", "/", (), num_fold=3)
BUNDLES = [Path("/nowhere") / f"{name}_{fold}" for name in ("segresnet", "dints") for fold in range(3)]
MakeSession = Callable[..., Session]


@pytest.fixture
def make_session(tmp_path: Path) -> MakeSession:
    """`make_session(gpus, time_limit)`: a session on GPUs of 80 GiB and 16 cores."""

    def make(count: int = 1, time_limit: float | None = None, **values: object) -> Session:
        config = RunConfig(datalist="d.json", dataroot="/", modality="CT", work_dir=str(tmp_path / "w"), **values)  # type: ignore[arg-type]
        gpus = tuple(Gpu(str(i), "H200", 80 * GIB) for i in range(count))
        clock = Clock(time_limit, tmp_path / "clock.json") if time_limit else None
        (tmp_path / "w").mkdir()
        return Session(config, Workspace(tmp_path / "w"), Devices(16, 64 * GIB, gpus), silent, clock)

    return make


@pytest.fixture
def speeds(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[list[str]]]:
    """`speeds(memory, shared)`: what measuring jobs find, a step of 1 s alone and of `shared` side by side."""
    batches: list[list[str]] = []

    def set_speeds(memory: int, shared: float | None) -> list[list[str]]:
        def run_jobs(session: Session, jobs: Sequence[Job], slots: Sequence[Slot]) -> dict[str, JobResult]:
            batches.append([job.id for job in jobs])
            results = {}
            for job in jobs:
                step = shared if "shared" in job.id else 1.0
                if step is not None:
                    write_json(session.workspace.job(job.id) / "speed.json", Speed(5.0, step, 1.0, memory * GIB))
                results[job.id] = JobResult(job.id, "failed" if step is None else "done")
            return results

        monkeypatch.setattr(measuring, "run_jobs", run_jobs)
        monkeypatch.setattr(measuring, "bundle_parts", lambda bundle: {"settings": {"name": bundle.name}})
        return batches

    return set_speeds


def test_small_trainings_share_where_that_is_faster(make_session: MakeSession, speeds: Callable[..., object]) -> None:
    session, batches = make_session(), speeds(2, 3.0)
    found = measuring.measure(session, BUNDLES, DATA)
    assert [len(batch) for batch in batches] == [2, 6]  # type: ignore[arg-type]
    assert {name: speed.step for name, speed in found.items()} == {"segresnet": 3.0, "dints": 3.0}
    assert [slot.id for slot in session.training_slots(6)] == [f"gpu0.{i}" for i in range(6)]
    assert [slot.id for slot in session.slots(6)] == ["gpu0"], "predictions do not share"


def test_on_a_cpu_nothing_is_shared_whatever_may_be_trained_beside_the_folds(
    make_session: MakeSession, speeds: Callable[..., list[list[str]]]
) -> None:
    session, batches = make_session(0, 3600.0), speeds(2, 1.0)
    folds = replace(DATA, num_fold=5)
    bundles = [Path("/nowhere") / f"segresnet_{fold}" for fold in range(8)]
    assert len(session.slots(8)) > len(session.slots(training.trainings(session, bundles, folds)))
    measuring.measure(session, bundles, folds)
    assert len(batches) == 1 and session.job_memory == 0


@pytest.mark.parametrize(
    ("memory", "shared", "time_limit", "measured"),
    [
        (30, 1.0, None, 1),  # too large
        (2, 5.9, None, 2),  # one training keeps the GPU busy
        (2, None, None, 2),  # side by side they fail
        (2, 1.0, 300.0, 1),  # no time to try it out
    ],
)
def test_they_do_not_share_otherwise(
    make_session: MakeSession,
    speeds: Callable[..., list[list[str]]],
    memory: int,
    shared: float | None,
    time_limit: float | None,
    measured: int,
) -> None:
    session, batches = make_session(time_limit=time_limit), speeds(memory, shared)
    found = measuring.measure(session, BUNDLES, DATA)
    assert len(batches) == measured and found["segresnet"].step == 1.0
    assert [slot.id for slot in session.training_slots(6)] == ["gpu0"]


def test_max_parallel_bounds_the_jobs_on_a_gpu(make_session: MakeSession) -> None:
    session = make_session(max_parallel=2)
    session.job_memory = 2 * GIB
    assert [(slot.id, slot.cpus) for slot in session.training_slots(6)] == [("gpu0.0", 8), ("gpu0.1", 8)]


def test_a_lost_gpu_is_lost_to_the_whole_call(make_session: MakeSession) -> None:
    session = make_session(2)
    session.lose("0")
    session.refuse_without_gpus()
    assert [slot.id for slot in session.slots(6)] == ["gpu1"] and session.lost == ["0 (H200)"]
    session.lose("1")
    with pytest.raises(NoResultError, match=r"no GPU is left to train on: 0 \(H200\), 1 \(H200\) out of use"):
        session.refuse_without_gpus()
    assert session.devices.kind == "cpu", "what is trained can still predict"


def test_deadlines_count_the_slots_that_are_left(make_session: MakeSession, monkeypatch: pytest.MonkeyPatch) -> None:
    session, counts = make_session(3), []
    deadlines = Deadlines({f"a_{i}": 100.0 for i in range(3)}, {}, 3, 1e12)

    def run_jobs(
        session: Session, jobs: Sequence[Job], slots: Sequence[Slot], start: Callable[[Job], Job], *_: object
    ) -> dict[str, JobResult]:
        for number, job in enumerate(jobs):
            start(job)
            counts.append(deadlines.slots)
            session.lose(str(number))
        return {job.id: JobResult(job.id, "done") for job in jobs}

    monkeypatch.setattr(training, "run_jobs", run_jobs)
    monkeypatch.setattr(training, "training_jobs", lambda *_: [Job(f"a_{i}", ("x",), "/") for i in range(3)])
    training.train(session, [], DATA, deadlines)
    assert counts == [3, 2, 1]


@pytest.mark.parametrize(("gpus", "jobs", "each"), [(0, 3, 0), (1, 3, 1), (4, 3, 1), (6, 3, 2), (8, 3, 2), (8, 1, 8)])
def test_trainings_take_several_gpus_only_where_there_are_more_gpus(
    make_session: MakeSession, gpus: int, jobs: int, each: int
) -> None:
    session = make_session(gpus)
    assert training.gpus_a_job(session, jobs) == each
    session.config = replace(session.config, multigpu=False)
    assert training.gpus_a_job(session, jobs) == min(1, gpus)


def test_such_a_training_runs_by_torchrun_and_a_search_on_one_gpu(make_session: MakeSession, tmp_path: Path) -> None:
    datalist = make_demo_data(tmp_path / "data", training=4, testing=0, shape=(24, 24, 20))
    given = {"work_dir": str(tmp_path / "run"), "datalist": str(datalist), "modality": "MRI", "num_fold": 2}
    bundles = generate(load_config(given, algos=["dints"], settings={"search": True}))
    session = make_session(8)
    listed = stored_datalist(Workspace(tmp_path / "run"))
    for job in training.training_jobs(session, bundles, listed):
        assert job.argv[:5] == (sys.executable, "-m", "autoseg.engine", "torchrun", "gpu")
        assert job.argv[5] == str(Path(job.cwd) / "scripts" / "train.py") and job.resources.gpus == 4
    assert {job.resources.gpus for job in searching.search_jobs(session, bundles, listed)} == {1}
    session.config = replace(session.config, multigpu=False)
    alone = training.training_jobs(session, bundles, listed)
    assert all(job.argv[1].endswith("train.py") and job.resources.gpus == 1 for job in alone)
