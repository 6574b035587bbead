"""The scheduler on a virtual clock: order, slots, needs, failures, what counts as done, events."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from autoseg.errors import InputError
from autoseg.execution import FakeExecutor, FakeRun, LocalExecutor, Scheduler, is_done, read_result
from autoseg.records import Event, Job, JobResult, Resources, Slot

CPU = [Slot(f"cpu{i}", "cpu", 2) for i in range(8)]
GPU = [Slot(f"gpu{i}", "cuda", 4, str(i)) for i in range(4)]


class Room:
    """A folder with a scheduler over a fake executor, and the events it told."""

    def __init__(self, root: Path):
        self.root = root
        self.jobs_dir = root / "jobs"
        self.events: list[Event] = []
        self.executor = FakeExecutor()

    def job(self, name: str, cost: float = 1.0, **values: object) -> Job:
        folder = self.root / f"földer {name}"
        folder.mkdir(exist_ok=True)
        return Job(name, ("fake",), str(folder), cost=cost, fingerprint="f1", **values)  # type: ignore[arg-type]

    def run(
        self,
        jobs: list[Job],
        slots: list[Slot],
        behaviour: Callable[[Job], FakeRun] | None = None,
        max_tries: int = 1,
    ) -> dict[str, JobResult]:
        self.events.clear()
        self.executor = FakeExecutor(behaviour) if behaviour else FakeExecutor()
        scheduler = Scheduler(self.executor, slots, self.jobs_dir, self.events.append, max_tries=max_tries)
        return scheduler.run(jobs)

    def kinds(self, kind: str) -> list[Event]:
        return [event for event in self.events if event.kind == kind]


@pytest.fixture
def room(tmp_path: Path) -> Room:
    return Room(tmp_path)


def test_longest_first_over_the_slots(room: Room) -> None:
    costs = [1.0, 5.0, 3.0, 4.0, 2.0, 3.0]
    room.run([room.job(f"j{i}", cost) for i, cost in enumerate(costs)], CPU[:2])
    assert [p.job.cost for p in room.executor.history] == sorted(costs, reverse=True)
    assert room.executor.clock == pytest.approx(9.0)
    results = [read_result(room.jobs_dir / f"j{i}") for i in range(6)]
    assert [r.seconds for r in results if r] == costs


@pytest.mark.parametrize("slots", [1, 2, 4, 8])
def test_never_more_jobs_than_slots_and_no_slot_idle_while_one_waits(room: Room, slots: int) -> None:
    jobs = [room.job(f"j{i}", 1.0 + (7 * i) % 5) for i in range(20)]
    room.run(jobs, CPU[:slots])
    edges = sorted({p.started for p in room.executor.history})
    for moment in edges:
        running = [p for p in room.executor.history if p.started <= moment < p.ends]
        waiting = [p for p in room.executor.history if p.started > moment]
        assert len(running) == slots or (not waiting and len(running) < slots)
    assert room.executor.clock <= sum(j.cost for j in jobs) / slots + max(j.cost for j in jobs)


def test_needs_come_first_and_the_chain_counts_as_its_length(room: Room) -> None:
    jobs = [room.job("last", 1, needs=("middle",)), room.job("big", 4), room.job("middle", 3, needs=("first",))]
    room.run([*jobs, room.job("first", 2)], CPU[:1])
    assert [p.job.id for p in room.executor.history] == ["first", "big", "middle", "last"]


def test_a_failure_touches_only_those_that_need_it(room: Room) -> None:
    jobs = [room.job("bad", 3), room.job("good", 2), room.job("child", needs=("bad",))]
    jobs += [room.job("grandchild", needs=("child",)), room.job("friend", needs=("good",))]
    text = "".join(f"line {i}\n" for i in range(100)) + "Traceback (most recent call last):\n  here\nValueError: no\n"
    results = room.run(jobs, CPU[:1], lambda j: FakeRun(1, 1, text) if j.id == "bad" else FakeRun(1))
    states = {name: result.status for name, result in results.items()}
    assert states == {"bad": "failed", "good": "done", "child": "skipped", "grandchild": "skipped", "friend": "done"}
    assert list(results) == [job.id for job in jobs]
    error = results["bad"].error or ""
    assert error.splitlines()[0] == "ValueError: no"
    assert error.splitlines()[1:] == [*(f"line {i}" for i in range(83, 100)), *text.splitlines()[-3:]]
    assert results["child"].error == "needs bad, which failed" and results["child"].tries == 0
    assert results["grandchild"].error == "needs child, which was skipped"
    [failed] = room.kinds("job_failed")
    assert failed.facts["id"] == "bad" and failed.facts["exit_code"] == 1
    assert Path(failed.facts["log"]).read_text() == text and results["bad"].log == failed.facts["log"]


def test_what_is_done_is_kept(room: Room) -> None:
    jobs = [room.job("a", outputs=("model.pt",)), room.job("b", outputs=("x/y.json",), needs=("a",))]
    room.run(jobs, CPU[:1])
    again = room.run(jobs, CPU[:1])
    assert room.executor.history == []
    assert {name: (r.status, r.tries) for name, r in again.items()} == {"a": ("done", 1), "b": ("done", 1)}
    assert all(event.facts["kept"] and "kept" in event.message for event in room.kinds("job_done"))
    assert [row["state"] for row in room.kinds("jobs")[-1].facts["jobs"]] == ["kept", "kept"]


@pytest.mark.parametrize("change", ["fingerprint", "output", "torn result", "status", "no result"])
def test_nothing_else_says_done(room: Room, change: str) -> None:
    job = room.job("a", outputs=("model.pt",))
    room.run([job], CPU[:1])
    record = room.jobs_dir / "a" / "result.json"
    if change == "fingerprint":
        job = replace(job, fingerprint="f2")
    elif change == "output":
        (Path(job.cwd) / "model.pt").unlink()
    elif change == "torn result":
        record.write_text(record.read_text()[:20])
    elif change == "status":
        record.write_text(json.dumps({**json.loads(record.read_text()), "status": "cancelled"}))
    else:
        record.unlink()
    results = room.run([job], CPU[:1])
    assert len(room.executor.history) == 1
    assert results["a"].status == "done"
    assert results["a"].tries == (2 if change in ("output", "status") else 1)


def test_ending_well_without_the_outputs_is_a_failure(room: Room) -> None:
    job = room.job("a", outputs=("model.pt", "scores.json"))
    result = room.run([job], CPU[:1], lambda j: FakeRun(1, 0, "all is well\n", missing=("scores.json",)))["a"]
    assert result.status == "failed" and result.outputs == ()
    assert result.error == "ended well, but did not write scores.json\nall is well"
    assert not is_done(job, read_result(room.jobs_dir / "a"))


def test_while_a_job_runs_its_old_result_is_no_evidence(room: Room) -> None:
    job = room.job("a", outputs=("model.pt",))
    room.run([job], CPU[:1])
    seen = []

    def behaviour(started: Job) -> FakeRun:
        seen.append(read_result(room.jobs_dir / "a"))
        return FakeRun(1)

    room.run([replace(job, fingerprint="f2")], CPU[:1], behaviour)
    assert seen[0] is not None and seen[0].status == "running" and not is_done(job, seen[0])


def test_what_cannot_be_started_fails_alone(room: Room) -> None:
    jobs = [replace(room.job("a", 9), argv=()), room.job("b"), replace(room.job("c", 8), cwd="/no/such/folder")]
    results = room.run(jobs, CPU[:1])
    assert [results[name].status for name in "abc"] == ["failed", "done", "failed"]
    assert "No such file" in (results["a"].error or "")


def test_further_tries_where_they_are_granted(room: Room) -> None:
    codes = iter([1, 1, 0])
    result = room.run([room.job("a")], CPU[:1], lambda j: FakeRun(1, next(codes), "oops\n"), max_tries=3)["a"]
    assert result.status == "done" and result.tries == 3
    assert [event.facts["again"] for event in room.kinds("job_failed")] == [True, True]
    log = (room.jobs_dir / "a" / "output.log").read_text()
    assert log.count("oops") == 3 and log.count("=== try") == 2


def test_a_job_whose_input_is_wrong_is_not_tried_again(room: Room) -> None:
    result = room.run([room.job("a")], CPU[:1], lambda j: FakeRun(1, 2, "no such file\n"), max_tries=3)["a"]
    assert (result.status, result.tries) == ("failed", 1)


def test_a_job_without_a_sign_of_life_is_ended_and_tried_again(room: Room) -> None:
    runs = iter([FakeRun(1e6), FakeRun(5)])
    room.executor = FakeExecutor(lambda job: next(runs))
    scheduler = Scheduler(room.executor, CPU[:1], room.jobs_dir, room.events.append, max_tries=2, stuck_seconds=60)
    result = scheduler.run([room.job("a")])["a"]
    assert (result.status, result.tries) == ("done", 2)
    (failed,) = room.kinds("job_failed")
    assert "stuck" in failed.message and "is tried again" in failed.message
    assert 60 < room.executor.clock < 70


def test_a_stopped_process_is_ended_and_tried_again(tmp_path: Path) -> None:
    """SIGSTOP: the process is there, and does nothing; it cannot even heed SIGTERM."""
    script = "test -e stopped && exit 0; touch stopped; kill -STOP $$"
    job = Job("a", ("/bin/sh", "-c", script), str(tmp_path), fingerprint="f1")
    events: list[Event] = []
    limits = {"max_tries": 2, "stuck_seconds": 0.5}
    result = Scheduler(LocalExecutor(0.2), CPU[:1], tmp_path / "jobs", events.append, **limits).run([job])["a"]
    assert (result.status, result.tries) == ("done", 2)
    assert "stuck" in next(event.message for event in events if event.kind == "job_failed")


def test_what_grows_is_alive(room: Room) -> None:
    """A log that grows now and then keeps a job going, however long it takes."""
    job = room.job("a", progress="metrics.jsonl")
    room.executor = FakeExecutor(lambda job: FakeRun(600))

    def notify(event: Event) -> None:
        with open(Path(job.cwd) / "metrics.jsonl", "a") as file:
            file.write("{}\n")

    scheduler = Scheduler(room.executor, CPU[:1], room.jobs_dir, notify, max_tries=1, stuck_seconds=60)
    assert scheduler.run([job])["a"].status == "done"


def test_a_new_fingerprint_starts_a_new_log(room: Room) -> None:
    job = room.job("a")
    room.run([job], CPU[:1], lambda j: FakeRun(1, 1, "old error\n"))
    result = room.run([replace(job, fingerprint="f2")], CPU[:1], lambda j: FakeRun(1, 1, "new\n"))["a"]
    assert (room.jobs_dir / "a" / "output.log").read_text() == "new\n" and result.tries == 1


def test_gpus_are_given_whole_and_a_wide_job_is_not_starved(room: Room) -> None:
    jobs = [room.job(f"j{i}", 10 - i, resources=Resources(gpus=1)) for i in range(8)]
    jobs.append(room.job("wide", 7.5, resources=Resources(gpus=3)))
    room.run(jobs, GPU)
    for process in room.executor.history:
        mine = process.environment["CUDA_VISIBLE_DEVICES"].split(",")
        assert len(mine) == process.job.resources.gpus
        assert process.environment["OMP_NUM_THREADS"] == str(4 * len(mine))
        for other in room.executor.history:
            if other is not process and other.started < process.ends and process.started < other.ends:
                assert not set(mine) & set(other.environment["CUDA_VISIBLE_DEVICES"].split(","))
    order = [process.job.id for process in room.executor.history]
    assert order.index("wide") == 3  # the fourth longest: the free GPU is kept for it until two more are


def test_jobs_on_shared_gpus_spread_and_a_wide_one_gets_distinct_gpus(room: Room) -> None:
    shared = [Slot(f"gpu{g}.{part}", "cuda", 2, str(g)) for g in range(2) for part in range(2)]
    one = Resources(gpus=1)
    room.run(
        [room.job("a", 9, resources=one), room.job("b", 8, resources=one), room.job("c", 1, resources=one)], shared
    )
    seen = [process.environment["CUDA_VISIBLE_DEVICES"] for process in room.executor.history]
    assert seen == ["0", "1", "0"]
    jobs = [room.job("d", 9, resources=one), room.job("wide", 8, resources=Resources(gpus=2))]
    room.run(jobs, shared)
    assert [p.environment["CUDA_VISIBLE_DEVICES"] for p in room.executor.history] == ["0", "1,0"]
    assert [p.started for p in room.executor.history] == [0.0, 0.0]
    with pytest.raises(InputError, match="asks for 3 GPUs, there are 2"):
        room.run([room.job("wider", resources=Resources(gpus=3))], shared)


def test_a_job_without_gpus_sees_none_and_prefers_a_cpu_slot(room: Room) -> None:
    jobs = [room.job("cpu", 9), room.job("gpu", 1, resources=Resources(gpus=1))]
    room.run(jobs, [GPU[0], CPU[0]])
    seen = {p.job.id: (p.environment["CUDA_VISIBLE_DEVICES"], p.started) for p in room.executor.history}
    assert seen == {"cpu": ("", 0.0), "gpu": ("0", 0.0)}
    (room.jobs_dir / "cpu" / "result.json").unlink()
    room.run(jobs[:1], GPU[:1])
    assert room.executor.history[0].environment["CUDA_VISIBLE_DEVICES"] == ""


def test_environment_is_ours_then_the_devices_then_the_jobs(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "77")
    monkeypatch.setenv("AUTOSEG_TEST", "kept")
    room.run([room.job("a"), room.job("b", env={"OMP_NUM_THREADS": "1"})], CPU[:1])
    threads = {p.job.id: p.environment["OMP_NUM_THREADS"] for p in room.executor.history}
    assert threads == {"a": "2", "b": "1"}
    assert room.executor.history[0].environment["AUTOSEG_TEST"] == "kept"


def test_what_can_never_run_is_refused_at_once(room: Room) -> None:
    jobs = [room.job("a", needs=("b",)), room.job("b", needs=("a",)), room.job("train_0", needs=("train_1x",))]
    jobs += [replace(room.job("x"), id="../x"), room.job("two", resources=Resources(gpus=5)), room.job("train_0")]
    with pytest.raises(InputError) as caught:
        room.run(jobs, GPU)
    text = str(caught.value)
    for part in ("waits for itself", "no job is called 'train_1x'", "name of a folder", "asks for 5 GPUs, there are 4"):
        assert part in text
    assert "used by several jobs" in text and "did you mean 'train_0'" in text
    assert not room.jobs_dir.exists() and room.executor.history == []


def test_no_jobs_are_soon_done(room: Room) -> None:
    assert room.run([], CPU) == {}


def test_the_table_tells_once_a_second_where_every_job_is(room: Room) -> None:
    jobs = [room.job("a", 4, progress="metrics.jsonl"), room.job("b", 2), room.job("c", 1, needs=("a",))]
    metrics = Path(jobs[0].cwd) / "metrics.jsonl"
    metrics.write_text('{"step": 999, "seconds": 9, "mean_dice": 0.99}\n')  # of an earlier training

    def behaviour(job: Job) -> FakeRun:
        if job.id == "a":
            lines = [{"step": 10, "num_iterations": 40, "epoch": 1, "seconds": 1.0, "loss": 0.7, "mean_dice": 0.8}]
            lines.append({"step": 20, "num_iterations": 40, "epoch": 2, "seconds": 2.0, "loss": 0.5, "mean_dice": 0.6})
            with open(metrics, "a", encoding="utf-8") as file:
                file.write("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 30, "num')
        return FakeRun(job.cost)

    room.run(jobs, CPU[:2], behaviour)
    tables = [event.facts for event in room.kinds("jobs")]
    assert 5 <= len(tables) <= 8
    first = {row["id"]: row for row in tables[0]["jobs"]}
    expected = {"state": "running", "device": "cpu0", "step": 20, "steps": 40, "epoch": 2, "loss": 0.5, "tries": 1}
    expected |= {"mean_dice": 0.6, "best_dice": 0.8, "seconds": 0.0, "seconds_left": 2.0}
    assert expected.items() <= first["a"].items()
    assert first["c"]["state"] == "waiting" and first["c"]["device"] == "" and first["c"]["step"] is None
    second = {row["id"]: row for row in tables[1]["jobs"]}["a"]
    assert math.isclose(second["seconds_left"], 1.0, abs_tol=0.3)  # the clock goes on between two lines
    assert tables[-1]["finished"] == tables[-1]["total"] == 3
    assert {row["state"] for row in tables[-1]["jobs"]} == {"done"}
    assert all(row["seconds_left"] is None for row in tables[-1]["jobs"])


def test_what_a_job_warns_of_is_told_once(room: Room) -> None:
    job = room.job("a", 4, progress="metrics.jsonl")

    def behaviour(job: Job) -> FakeRun:
        line = {"step": 7, "warning": "the loss is nan at step 9: back to step 7"}
        (Path(job.cwd) / "metrics.jsonl").write_text(json.dumps(line) + "\n")
        return FakeRun(job.cost)

    room.run([job], CPU[:1], behaviour)
    (event,) = room.kinds("warning")
    assert event.message == "a: the loss is nan at step 9: back to step 7" and event.facts == {"id": "a"}


def test_an_exception_cancels_what_runs_and_comes_through(room: Room) -> None:
    def notify(event: Event) -> None:
        room.events.append(event)
        if event.kind == "job_done":
            raise BrokenPipeError("the listener is gone")

    room.executor = FakeExecutor()
    jobs = [room.job("short", 1), room.job("long", 50), room.job("later", 0.5)]
    scheduler = Scheduler(room.executor, CPU[:2], room.jobs_dir, notify)
    with pytest.raises(BrokenPipeError):
        scheduler.run(jobs)
    result = read_result(room.jobs_dir / "long")
    assert result is not None and result.status == "cancelled" and result.tries == 1
    assert read_result(room.jobs_dir / "later") is None
    assert room.executor.history[0].exit_code == -15
    assert {row["id"]: row["state"] for row in room.kinds("jobs")[-1].facts["jobs"]} == {
        "long": "cancelled",
        "short": "done",
        "later": "waiting",
    }
    results = room.run(jobs, CPU[:2])
    assert {name: (r.status, r.tries) for name, r in results.items()} == {
        "short": ("done", 1),
        "long": ("done", 2),
        "later": ("done", 1),
    }


def test_job_json_is_the_job(room: Room) -> None:
    from autoseg.records import from_plain

    job = room.job("a", resources=Resources(cpus=3), env={"A": "b"}, outputs=("x",))
    room.run([job], CPU[:1])
    assert from_plain(Job, json.loads((room.jobs_dir / "a" / "job.json").read_text())) == job
