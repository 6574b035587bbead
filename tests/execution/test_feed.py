"""Jobs that come one by one, and some that are ended early: on the virtual clock, and with real processes."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autoseg.errors import InputError, NoResultError
from autoseg.execution import FakeExecutor, FakeRun, Feed, LocalExecutor, Scheduler, read_result
from autoseg.records import Event, Job, JobResult, Resources, Slot

CPU = [Slot(f"cpu{i}", "cpu", 1) for i in range(4)]
GPU = [Slot(f"gpu{i}", "cuda", 4, str(i), name="NVIDIA H200") for i in range(2)]
METRICS = "metrics.jsonl"


def validation(step: int, dice: float = 0.5) -> dict[str, Any]:
    return {"step": step, "mean_dice": dice}


class Jobs(Feed):
    """Gives the jobs of a list, and finds those unwanted whose last Dice lies below `least`."""

    def __init__(self, jobs: Sequence[Job | None], least: float = 0.0):
        self.left, self.least = list(jobs), least
        self.told: list[tuple[str, str]] = []
        self.heard: list[tuple[str, int]] = []

    def next(self) -> Job | None:
        return self.left.pop(0) if self.left else None

    def finished(self) -> bool:
        return not self.left

    def ended(self, job: Job, result: JobResult) -> None:
        self.told.append((job.id, result.status))

    def unwanted(self, job: Job, progress: Sequence[Mapping[str, Any]]) -> str | None:
        assert progress and job.id not in dict(self.told)
        self.heard += [(job.id, line["step"]) for line in progress]
        dice = progress[-1]["mean_dice"]
        return f"Dice {dice} below {self.least}" if dice < self.least else None


class Room:
    """A folder of jobs, and the events and starts of the last run."""

    def __init__(self, root: Path):
        self.root, self.jobs_dir = root, root / "jobs"
        self.events: list[Event] = []
        self.executor = FakeExecutor()

    def job(self, name: str, cost: float = 1.0, **values: Any) -> Job:
        (self.root / name).mkdir(exist_ok=True)
        values = {"fingerprint": "f1", "outputs": ("model.pt",), "progress": METRICS, **values}
        return Job(name, ("fake",), str(self.root / name), cost=cost, **values)

    def run(
        self,
        feed: Feed,
        behaviour: Callable[[Job], FakeRun] = lambda job: FakeRun(job.cost),
        jobs: Sequence[Job] = (),
        slots: Sequence[Slot] = CPU[:1],
        **options: Any,
    ) -> dict[str, JobResult]:
        self.events.clear()
        self.executor = FakeExecutor(behaviour)
        return Scheduler(self.executor, slots, self.jobs_dir, self.events.append, **options).run(jobs, feed)

    def kinds(self, kind: str) -> list[Event]:
        return [event for event in self.events if event.kind == kind]

    @property
    def starts(self) -> list[str]:
        return [process.job.id for process in self.executor.history]


@pytest.fixture
def room(tmp_path: Path) -> Room:
    return Room(tmp_path)


def test_a_feed_keeps_the_slots_busy_and_is_asked_no_sooner(room: Room) -> None:
    class Watched(Jobs):
        def next(self) -> Job | None:
            now = room.executor.clock
            assert sum(process.ends > now for process in room.executor.history) < 3, "asked, and no slot is free"
            return super().next()

    feed = Watched([room.job(f"t{i}", 1 + (7 * i) % 5) for i in range(20)])
    results = room.run(feed, slots=CPU[:3])
    assert list(results) == room.starts == [f"t{i}" for i in range(20)]
    assert sorted(feed.told) == sorted((name, "done") for name in results)
    history = room.executor.history
    assert [process.started for process in history[3:]] == sorted(process.ends for process in history)[:17]


def test_the_slot_of_an_unwanted_job_is_the_next_ones_within_one_poll(room: Room) -> None:
    feed = Jobs([room.job("bad", 1000), room.job("good", 3)], least=0.3)
    lines = ((4.0, {"step": 1}), (5.0, validation(2, 0.2)))
    results = room.run(feed, lambda job: FakeRun(job.cost, metrics=lines if job.id == "bad" else ()), max_tries=3)
    assert [(p.job.id, p.exit_code) for p in room.executor.history] == [("bad", -15), ("good", 0)]
    assert 5.0 <= room.executor.history[1].started <= 5.0 + 2 * 0.2 + 1e-6  # heard at one poll, free at the next
    stopped = results["bad"]
    assert (stopped.status, stopped.error, stopped.outputs) == ("stopped", "Dice 0.2 below 0.3", ())
    assert (stopped.tries, read_result(room.jobs_dir / "bad")) == (1, stopped)
    (event,) = room.kinds("job_stopped")
    assert event.message == "bad stopped: Dice 0.2 below 0.3"
    assert event.facts["id"] == "bad" and event.facts["reason"] == stopped.error
    assert event.facts["seconds"] == pytest.approx(stopped.seconds, abs=1e-3)
    assert feed.told == [("bad", "stopped"), ("good", "done")] and feed.heard == [("bad", 2)]
    assert room.kinds("job_failed") == []


def test_what_ends_well_in_that_moment_is_done_and_its_last_validation_is_heard(room: Room) -> None:
    feed = Jobs([room.job("t0", 3), room.job("t1", 3)], least=0.3)
    runs = {"t0": FakeRun(3, metrics=((3.0, validation(2, 0.1)),)), "t1": FakeRun(3, metrics=((2.9, validation(2)),))}
    results = room.run(feed, lambda job: runs[job.id])
    assert feed.told == [("t0", "done"), ("t1", "done")] and feed.heard == [("t0", 2), ("t1", 2)]
    assert results["t0"].outputs == ("model.pt",) and room.kinds("job_stopped") == []


@pytest.mark.parametrize("words", ["OSError: [Errno 28] No space left on device", "CUDA error: GPU is lost"])
def test_nothing_else_is_blamed_for_an_unwanted_job(room: Room, words: str) -> None:
    job = room.job("t0", 9, resources=Resources(gpus=1))
    feed = Jobs([job, replace(room.job("t1"), resources=Resources(gpus=1))], least=0.3)
    run = FakeRun(9, log=f"{words}\n", metrics=((1.0, validation(1, 0.1)),))
    results = room.run(feed, lambda job: run if job.id == "t0" else FakeRun(1), slots=GPU[:1], lost_gpus=lambda _: {})
    assert {name: result.status for name, result in results.items()} == {"t0": "stopped", "t1": "done"}
    assert room.kinds("warning") == [] and room.starts == ["t0", "t1"]


def test_a_failing_job_is_tried_again_and_told_of_once(room: Room) -> None:
    feed = Jobs([room.job("bad"), replace(room.job("none"), argv=()), room.job("good")])
    results = room.run(feed, lambda job: FakeRun(1, int(job.id == "bad"), "ValueError: no\n"), max_tries=3)
    assert feed.told == [("bad", "failed"), ("none", "failed"), ("good", "done")]
    assert room.starts == ["bad", "bad", "bad", "good"]
    assert {name: result.tries for name, result in results.items()} == {"bad": 3, "none": 3, "good": 1}
    assert (results["bad"].error or "").startswith("ValueError: no")


def test_what_was_done_or_stopped_is_kept_and_told_with_its_validations(room: Room) -> None:
    def jobs() -> Jobs:
        return Jobs([room.job("done", 3), room.job("stopped", 9), room.job("other", 9)], least=0.3)

    def behaviour(job: Job) -> FakeRun:
        lines = (
            (1.0, {"warning": "the loss is nan", "step": 5}),
            (2.0, validation(7, 0.5 if job.id == "done" else 0.2)),
        )
        return FakeRun(job.cost, metrics=lines)

    first = jobs()
    before = room.run(first, behaviour)
    assert first.told == [("done", "done"), ("stopped", "stopped"), ("other", "stopped")]
    again = jobs()
    again.left[2] = replace(room.job("other", 9), fingerprint="f2")
    after = room.run(again, behaviour)
    assert room.starts == ["other"] and after["other"].tries == 1
    assert {name: after[name] for name in ("done", "stopped")} == {name: before[name] for name in ("done", "stopped")}
    assert again.told == first.told and again.heard == [("done", 7), ("stopped", 7), ("other", 7)]
    assert room.kinds("job_done")[0].facts["kept"] and room.kinds("job_stopped")[0].facts["kept"]
    assert "Dice 0.2 below 0.3" in room.kinds("job_stopped")[0].message
    assert [event.facts["id"] for event in room.kinds("warning")] == ["other"]
    states = {row["id"]: row["state"] for row in room.kinds("jobs")[-1].facts["jobs"]}
    assert states == {"done": "kept", "stopped": "stopped", "other": "stopped"}


def test_a_stopped_result_keeps_no_job_of_the_list(room: Room) -> None:
    lines = ((1.0, validation(1, 0.1)),)
    room.run(Jobs([room.job("t0", 9)], least=0.3), lambda job: FakeRun(9, metrics=lines))
    assert room.run(Feed(), jobs=[room.job("t0", 9)])["t0"].status == "done"


def test_validations_are_handed_over_once_through_all_tries(room: Room) -> None:
    """A try that goes on from a checkpoint writes metrics.jsonl anew up to there, as the engine does."""
    codes = iter([1, 1, 0])

    def behaviour(job: Job) -> FakeRun:
        metrics = Path(job.cwd) / METRICS
        kept = metrics.read_text().splitlines(keepends=True)[:2] if metrics.exists() else []
        (anew := metrics.with_name("anew")).write_text("".join(kept))
        anew.replace(metrics)
        steps = range(10 * len(kept) + 10, 51, 10)
        lines = tuple((step / 10, {**validation(step), "seconds": len(kept)}) for step in steps)
        return FakeRun(6, next(codes), metrics=((0.0, {"step": 1}), *lines) if not kept else lines)

    feed = Jobs([room.job("t0")])
    assert room.run(feed, behaviour, max_tries=3)["t0"].tries == 3
    once = [("t0", step) for step in (10, 20, 30, 40, 50)]
    assert feed.heard == [*once, ("t0", 30), ("t0", 40), ("t0", 50)], "what came out otherwise is new"


@pytest.mark.parametrize("fingerprint", ["f1", "f2"])
def test_a_later_run_hears_the_validations_of_the_try_that_was_cut_off(room: Room, fingerprint: str) -> None:
    class Broken(Jobs):
        def unwanted(self, job: Job, progress: Sequence[Mapping[str, Any]]) -> str | None:
            super().unwanted(job, progress)
            if progress[-1]["step"] == 20:
                raise KeyboardInterrupt
            return None

    lines = tuple((step / 10, validation(step)) for step in (10, 20))
    with pytest.raises(KeyboardInterrupt):
        room.run(broken := Broken([room.job("t0")]), lambda job: FakeRun(9, metrics=lines))
    assert broken.heard == [("t0", 10), ("t0", 20)] and broken.told == []
    feed = Jobs([room.job("t0", fingerprint=fingerprint)])
    result = room.run(feed, lambda job: FakeRun(9, metrics=((1.0, validation(30)),)))["t0"]
    earlier = [("t0", 10), ("t0", 20)] if fingerprint == "f1" else []
    assert feed.heard == [*earlier, ("t0", 30)] and result.tries == 1 + bool(earlier)


@pytest.mark.parametrize("method", ["next", "ended", "unwanted", "finished"])
def test_an_exception_of_the_feed_cancels_what_runs_and_comes_through(room: Room, method: str) -> None:
    class Broken(Jobs):
        def __getattribute__(self, name: str) -> Any:
            if name == method and room.executor.clock >= 2:
                raise NoResultError("every trial failed")
            return super().__getattribute__(name)

    feed = Broken([room.job(f"t{i}", cost) for i, cost in enumerate((50, 2, 1))])
    with pytest.raises(NoResultError, match="every trial failed"):
        room.run(feed, lambda job: FakeRun(job.cost, metrics=((2.0, validation(1)),)), slots=CPU[:2])
    long = read_result(room.jobs_dir / "t0")
    assert long is not None and long.status == "cancelled"
    assert "t0" not in dict(feed.told) and room.executor.history[0].exit_code == -15


def test_after_a_signal_the_feed_is_asked_no_more(room: Room) -> None:
    class Interrupting(Jobs):
        def next(self) -> Job | None:
            signal.raise_signal(signal.SIGINT)
            return super().next()

    feed = Interrupting([room.job("t0"), room.job("t1")])
    with pytest.raises(KeyboardInterrupt):
        room.run(feed, slots=CPU[:2])
    result = read_result(room.jobs_dir / "t0")
    assert room.starts == ["t0"] and result is not None and result.status == "cancelled" and feed.told == []


def test_a_feed_that_has_none_at_present_is_asked_again(room: Room) -> None:
    feed = Jobs([None, None, None, room.job("t0"), None, room.job("t1")])
    assert list(room.run(feed, slots=CPU[:2])) == ["t0", "t1"]
    assert [event.facts["total"] for event in room.kinds("jobs")] == sorted(
        e.facts["total"] for e in room.kinds("jobs")
    )
    assert [event.facts["finished"] == event.facts["total"] for event in room.kinds("jobs")].index(True) == len(
        room.kinds("jobs")
    ) - 1, "the last table alone says that all is over"


def test_a_feed_without_jobs_ends_at_once(room: Room) -> None:
    assert room.run(Feed()) == {} and room.executor.clock == 0.0


def test_jobs_of_the_list_come_first_and_are_not_the_feeds(room: Room) -> None:
    lines = ((0.5, validation(1, 0.1)),)
    feed = Jobs([room.job("t0", 9), room.job("t1", 1, needs=("short",)), room.job("t2", needs=("t0",))], least=0.3)
    jobs = [room.job("short", 1), room.job("wide", 5, resources=Resources(gpus=2)), room.job("long", 4)]
    behaviour = {"t0": FakeRun(9, metrics=lines), "long": FakeRun(4, metrics=lines)}
    results = room.run(feed, lambda job: behaviour.get(job.id, FakeRun(job.cost)), jobs, slots=GPU)
    assert list(results) == ["short", "wide", "long", "t0", "t1", "t2"]
    assert room.starts == ["wide", "long", "short", "t0", "t1"]
    assert feed.heard == [("t0", 1)] and feed.told == [("t0", "stopped"), ("t1", "done"), ("t2", "skipped")]
    assert results["t2"].error == "needs t0, which was stopped"


def test_the_table_grows_and_does_not_foretell_an_end_that_it_cannot_know(room: Room) -> None:
    feed = Jobs([room.job(f"t{i}", 2) for i in range(4)], least=0.3)
    room.run(
        feed, lambda job: FakeRun(9 if job.id == "t1" else 2, metrics=((1.0, validation(1, 0.1)),)[: job.id == "t1"])
    )
    tables = [event.facts for event in room.kinds("jobs")]
    assert [facts["total"] for facts in tables] == sorted(facts["total"] for facts in tables)
    assert all(facts["seconds_left"] is None for facts in tables if facts["total"] < 4)
    assert any(facts["seconds_left"] for facts in tables if facts["total"] == 4)
    assert [row["state"] for row in tables[-1]["jobs"]] == ["done", "stopped", "done", "done"]
    assert tables[-1]["finished"] == tables[-1]["total"] == 4


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"id": "t0"}, "used by several jobs"),
        ({"resources": Resources(gpus=3)}, "asks for 3 GPUs, there are 2"),
        ({"needs": ("t9",)}, "no job is called 't9'"),
    ],
)
def test_a_job_that_can_never_run_is_refused_when_it_comes(room: Room, wrong: dict[str, Any], words: str) -> None:
    feed = Jobs([room.job("t0", 9), replace(room.job("t1"), **wrong)])
    with pytest.raises(InputError, match=words):
        room.run(feed, slots=GPU)
    assert room.starts == ["t0"] and feed.told == []


def test_without_a_slot_left_the_feed_is_asked_no_more(room: Room) -> None:
    feed = Jobs([room.job(f"t{i}", resources=Resources(gpus=1)) for i in range(5)])
    results = room.run(
        feed,
        lambda job: FakeRun(1, 1, "RuntimeError: No CUDA GPUs are available\n"),
        slots=GPU,
        lost_gpus=lambda slots: {slot.gpu: "GPU is lost" for slot in slots if slot.gpu},
    )
    assert feed.told == [("t0", "failed"), ("t1", "failed")] and len(feed.left) == 3
    assert all("no GPU is left" in (result.error or "") for result in results.values())


TRAINING = """
import json, signal, sys, time
if "stubborn" in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
for step in range(600):
    with open("metrics.jsonl", "a") as file:
        file.write(json.dumps({"step": step, "mean_dice": float(sys.argv[1])}) + "\\n")
    if "quick" in sys.argv:
        break
    time.sleep(0.1)
"""


@pytest.mark.parametrize("manner", ["plain", "stubborn"])
def test_the_slot_of_an_unwanted_process_is_free_within_five_seconds(tmp_path: Path, manner: str) -> None:
    def job(name: str, dice: float, manner: str) -> Job:
        (tmp_path / name).mkdir()
        argv = (sys.executable, "-I", "-S", "-c", TRAINING, str(dice), manner)
        return Job(name, argv, str(tmp_path / name), progress=METRICS)

    unwanted_at = []

    class Timed(Jobs):
        def unwanted(self, job: Job, progress: Sequence[Mapping[str, Any]]) -> str | None:
            reason = super().unwanted(job, progress)
            if reason and not unwanted_at:
                unwanted_at.append(time.monotonic())
            return reason

    started_at: dict[str, float] = {}

    def notify(event: Event) -> None:
        if event.kind == "job_started":
            started_at[event.facts["id"]] = time.monotonic()

    feed = Timed([job("bad", 0.1, manner), job("good", 0.9, "quick")], least=0.3)
    Scheduler(LocalExecutor(), CPU[:1], tmp_path / "jobs", notify).run([], feed)
    assert feed.told == [("bad", "stopped"), ("good", "done")]
    assert started_at["good"] - unwanted_at[0] < (5.0 if manner == "stubborn" else 2.0)
    steps = [json.loads(line)["step"] for line in (tmp_path / "bad" / METRICS).read_text().splitlines()]
    assert [step for name, step in feed.heard if name == "bad"] == steps, "each line once, the last one too"
